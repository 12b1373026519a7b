"""Deepgram's live API, a subset: /v1/listen. Pure.

Source: deepgram-sdk's types and Deepgram's documentation. What we hear decides where they and we
differ: a final that a pause made is ``speech_final`` (``endpointing`` is `turns`' business), one
that was cut out of long speech is not. ``transcript`` has the punctuation of the recogniser with
``punctuate`` or ``smart_format``, and is bare words without. Models and languages are not chosen
here. Without ``encoding`` the audio is a WAV file. Who sends nothing for ten seconds, not even a
KeepAlive, is closed with 1011 and NET-0001, as there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.ingress.deepgram_results import MODEL, MODEL_ID, Channel, iso, results
from bridge.ingress.media_socket import (
    BUSY,
    NORMAL,
    POLICY,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
    parse,
)
from bridge.ingress.pcm import Client, Pcm, rate_of, seconds
from bridge.ingress.wav_stream import WavHeader
from bridge.types import CallEvent, EndOfTurn, Final, Heard, LegName, Partial, Samples, Word

NO_AUDIO = (1011, "NET-0001: neither audio nor a text message came within the time-out")
PAUSE = 0.5  # from which on the speaker pauses
MAX_ASKED = 8  # Finalize under way
CANNOT = {
    "type": "ConfigureFailure",
    "code": "CONFIGURE_KEYTERMS_NOT_SUPPORTED",
    "description": "this server's model takes no settings",
}
PLACES: Mapping[LegName, int] = {"caller": 0, "callee": 1}


def _wanted(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() == "true"


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    value = query.get(name) or str(default)
    if value.isdecimal() and len(value) < 8 and 0 <= int(value) <= most:
        return int(value)
    raise SocketError(POLICY, f"{name}: expected a whole number up to {most}")


class Deepgram(Client):
    """One stream. Raises `SocketError` for a request that cannot be."""

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        query = opening.query
        self.idle = rules.patience
        self._interim = _wanted(query, "interim_results")
        self._events = _wanted(query, "vad_events")
        self._punctuate = _wanted(query, "punctuate") or _wanted(query, "smart_format")
        self._utterance_end = _number(query, "utterance_end_ms", 0, 60_000) / 1000
        self._both = _wanted(query, "multichannel")
        self._sha = hashlib.sha256()
        self._pcm: Pcm | None = None
        self._header = WavHeader()
        self._channels: dict[LegName, Channel] = {"caller": Channel()}
        encoding = query.get("encoding")
        if encoding is None:
            self.next_at = now + self.idle  # the file's header says what begins
        elif encoding in ("linear16", "mulaw", "alaw"):
            rate = rate_of(query.get("sample_rate"), 0 if encoding == "linear16" else 8000)
            self._hears(encoding, _number(query, "channels", 1, 2), rate)
        else:
            raise SocketError(POLICY, "encoding: expected linear16, mulaw or alaw")

    def _hears(self, encoding: str, channels: int, rate: int) -> None:
        if channels not in (1, 2):
            raise SocketError(POLICY, "channels: expected 1 or 2")
        self.rate = rate_of(rate, 0)
        self._pcm = Pcm(encoding, channels)
        if channels == 2 and self._both:
            self.names = ("caller", "callee")
            self._channels["callee"] = Channel()

    # -- in --------------------------------------------------------------------------------------

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        if not message:  # an old way to say CloseStream
            return self._close(now)
        self._sha.update(message)
        if self._pcm is None:
            self._last_message = now
            found = self._header.feed(message)
            if found is None:
                return ()
            self._hears(found.encoding, found.channels, found.rate)
            message = found.audio
        assert self._pcm is not None
        return self.audio(now, *self._legs(self._pcm.feed(message)))

    def _legs(self, channels: list[Samples]) -> list[Samples]:
        """Each channel a leg; or the mean of both, where they are not told apart."""
        if len(channels) == len(self.names):
            return channels
        mixed: Samples = (channels[0] // 2 + channels[1] // 2).astype(channels[0].dtype)
        return [mixed]

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        """A message that we do not understand costs itself."""
        try:
            kind = parse(message).get("type")
        except SocketError as e:
            kind = "?"
            self._error(str(e), message)
        began = self.open(now) if self._pcm is not None else []
        match kind:
            case "CloseStream":
                return [*began, *self._close(now)]
            case "Finalize" if all(len(c.asked) < MAX_ASKED for c in self._channels.values()):
                return [*began, *self.ask(explicit=True)] if self._pcm is not None else ()
            case "Configure":
                self.say({**CANNOT, "request_id": self.opening.id})
            case "KeepAlive" | "Finalize":
                self._last_message = now
            case _ if kind != "?":
                self._error("expected KeepAlive, Finalize or CloseStream", message)
        return began

    def _error(self, sentence: str, message: bytes) -> None:
        said = message[:200].decode("utf-8", "replace")
        self.say(
            {"type": "Error", "variant": "SchemaError", "description": sentence, "message": said}
        )

    def ask(self, *, explicit: bool = False) -> list[SocketEvent]:
        for channel in self._channels.values():
            channel.asked.append(explicit)
        return super().ask()

    def _close(self, now: float) -> list[SocketEvent]:
        if not self.legs:
            self._metadata()
        return self.finish("hangup", (NORMAL, ""), now)

    def silent(self, now: float) -> list[SocketEvent]:
        return self.finish("timeout", NO_AUDIO, now)

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if self._pcm is None:  # nobody knows yet what begins
            self.next_at = self._last_message + self.idle
            return self.silent(now) if now >= self.next_at else ()
        return super().expire(now)

    # -- out -------------------------------------------------------------------------------------

    def heard(self, leg: LegName, heard: Heard) -> None:
        super().heard(leg, heard)
        channel = self._channels[leg]
        channel.listened, channel.paused = heard.at, heard.pause >= PAUSE
        words = (*heard.words, *heard.tentative)
        if words:
            channel.last_end, channel.open = words[-1].end, True
            if not channel.speaking and self._events:
                at = seconds(words[0].start)
                self.say({"type": "SpeechStarted", "channel": self._index(leg), "timestamp": at})
            channel.speaking = True
        over = self._utterance_end and heard.at - channel.last_end >= self._utterance_end
        if channel.open and over and not heard.tentative:
            channel.open = False
            end = seconds(channel.last_end)
            self.say({"type": "UtteranceEnd", "channel": self._index(leg), "last_word_end": end})

    def told(self, leg: LegName, event: CallEvent) -> None:
        channel = self._channels[leg]
        match event.body:
            case Partial(words=words) if self._interim and not (channel.asked and channel.asked[0]):
                self.say(self._results(leg, words, channel.listened))
            case Final(words=words):
                self._final(leg, channel, words)
            case EndOfTurn():
                channel.speaking = False
        super().told(leg, event)

    def _final(self, leg: LegName, channel: Channel, words: Sequence[Word]) -> None:
        self._release(channel)
        found = self._results(leg, words, max(channel.since, words[-1].end))
        channel.since = words[-1].end
        over = channel.paused or leg not in self.legs  # the last words of a stream end it
        found |= {"is_final": True, "speech_final": over}
        if channel.asked and channel.asked[0]:
            channel.held = found
        else:
            self.say(found)

    def _release(self, channel: Channel) -> None:
        if channel.held is not None:
            self.say(channel.held)
        channel.held = None

    def finalised(self, leg: LegName) -> None:
        """The last final of a Finalize says so; an empty one does where there was nothing."""
        channel = self._channels[leg]
        if not channel.asked or not channel.asked.popleft():
            return
        empty = self._results(leg, (), max(channel.since, channel.listened))
        found = channel.held or empty
        channel.held = None
        self.say(found | {"is_final": True, "speech_final": True, "from_finalize": True})

    def _results(self, leg: LegName, words: Sequence[Word], end: float) -> dict[str, Any]:
        since = self._channels[leg].since
        found = results(words, since, max(since, end), punctuate=self._punctuate)
        ids = {"request_id": self.opening.id, "model_info": MODEL, "model_uuid": MODEL_ID}
        return {**found, "channel_index": self._index(leg), "metadata": ids}

    def _index(self, leg: LegName) -> list[int]:
        return [PLACES[leg], len(self.names)]

    def _metadata(self) -> None:
        self.say(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": self.opening.id,
                "sha256": self._sha.hexdigest(),
                "created": iso(self.opening.at),
                "duration": seconds(self.clock / self.rate),
                "channels": self._pcm.channels if self._pcm is not None else 1,
                "models": [MODEL_ID],
                "model_info": {MODEL_ID: MODEL},
            }
        )

    def ended(self, event: CallEvent) -> None:
        self._metadata()

    def refused(self, leg: LegName, reason: str) -> None:
        self.leave(BUSY, f"not taken: {reason}")
