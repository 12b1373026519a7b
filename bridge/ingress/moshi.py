"""Kyutai's moshi-server: MessagePack maps on /api/asr-streaming. Pure.

Source: moshi-server and the example clients of delayed-streams-modeling. In:
``Init``, ``Audio`` (float32, 24 kHz), ``OggOpus``, ``Marker``. Out: ``Ready`` with the slot,
``Word`` and at once its ``EndWord`` (our words are complete when they are told), ``Step``,
``Marker``, ``Error``. Where we differ:

* a ``Marker`` comes back when what was sent before it has been heard, also to a client that sends
  nothing behind it; there it waits for audio;
* ``step_idx`` counts the blocks of this stream, not those of the server, and a ``Step`` may stand
  for several while nobody speaks;
* ``prs`` has one value four times, the pause that the recogniser hears: with Kyutai's models the
  head for two seconds ahead, the one (index 2) that their clients ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from bridge.ingress.media_socket import (
    BUSY,
    INVALID,
    POLICY,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
)
from bridge.ingress.pcm import Client, from_floats, from_list
from bridge.types import Heard, LegName, Samples

STEP = 0.08  # s; 12.5 a second
MAX_MARKERS = 16  # that were not acknowledged yet
FULL = ("busy", "overload", "limit")


class Moshi(Client):
    """One stream."""

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._markers: deque[int | None] = deque()  # None: asked for by ourselves
        self._opus: Opus | None = None

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        """What is none of their messages ends the stream, with an ``Error``."""
        try:
            return self._understand(_unpacked(message), now)
        except SocketError as e:
            self._error(str(e))
            raise

    def _understand(self, said: Mapping[str, Any], now: float) -> Sequence[SocketEvent]:
        match said.get("type"):
            case "Audio":
                return self.audio(now, from_list(said.get("pcm")))
            case "OggOpus":
                self._opus = self._opus or Opus()
                return self.audio(now, self._opus.feed(said.get("data")))
            case "Marker":
                id = said.get("id")
                if not isinstance(id, int) or isinstance(id, bool):
                    raise SocketError(INVALID, "Marker: expected a whole number as id")
                if len(self._markers) >= MAX_MARKERS:
                    raise SocketError(POLICY, f"{MAX_MARKERS} markers wait to be acknowledged")
                return [*self.open(now), *self.ask(id)]
            case "Init":
                return self.open(now)
        raise SocketError(INVALID, "expected a message of type Init, Audio, OggOpus or Marker")

    def ask(self, marker: int | None = None) -> list[SocketEvent]:
        self._markers.append(marker)
        return super().ask()

    # -- out -------------------------------------------------------------------------------------

    def taken(self, leg: LegName) -> None:
        self._send("Ready")

    def refused(self, leg: LegName, reason: str) -> None:
        self._error("no free channels" if reason in FULL else f"not taken: {reason}")
        self.leave(BUSY, "no free channels")

    def hung_up(self, reason: str) -> None:
        self._error(f"ended by the {reason}")

    def heard(self, leg: LegName, heard: Heard) -> None:
        super().heard(leg, heard)
        for word in heard.words:
            self._send("Word", text=word.text, start_time=word.start)
            self._send("EndWord", stop_time=word.end)
        self._send(
            "Step",
            step_idx=round(self.listened / STEP),
            prs=[float(heard.pause)] * 4,
            buffered_pcm=round(self.waiting() * self.rate),
        )

    def finalised(self, leg: LegName) -> None:
        marker = self._markers.popleft() if self._markers else None
        if marker is not None:
            self._send("Marker", id=marker)

    def _error(self, sentence: str) -> None:
        self._send("Error", message=sentence)

    def _send(self, kind: str, **more: Any) -> None:
        packed: bytes = msgpack.packb({"type": kind, **more}, use_single_float=True)
        self.say(packed)


def _unpacked(message: bytes) -> Mapping[str, Any]:
    """A map. Raises `SocketError`."""
    try:
        found = msgpack.unpackb(message, raw=False, unicode_errors="replace")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        found = None  # broken, cut off, too deep, an unhashable key
    if isinstance(found, dict):
        return found
    raise SocketError(INVALID, "the message is no MessagePack map")


class Opus:
    """An Ogg stream of Opus, decoded by the library that moshi brings. Raises `SocketError`."""

    def __init__(self) -> None:
        try:
            import sphn  # here: most bridges never hear any, and it is no requirement
        except ImportError:
            raise SocketError(
                POLICY, "OggOpus needs a library on the server: pip install sphn; send Audio"
            ) from None
        self._reader = sphn.OpusStreamReader(24000)

    def feed(self, data: object) -> Samples:
        """Bytes of the stream, cut anywhere."""
        if not isinstance(data, bytes):
            raise SocketError(INVALID, "OggOpus: expected bytes as data")
        try:
            return from_floats(self._reader.append_bytes(data))
        except ValueError as e:  # from its decoder
            raise SocketError(INVALID, f"OggOpus: {e}"[:120]) from None
