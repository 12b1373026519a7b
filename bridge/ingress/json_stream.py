"""Streams of JSON messages with base64 audio, as Twilio has made them common. Pure.

What Twilio, SignalWire, Telnyx, Plivo and Exotel share: a ``start`` that says what comes, ``media``
with a chunk's number and its time in milliseconds, ``dtmf``, ``stop``. Their files say how each of
them differs. ``inbound`` is what the party says, ``outbound`` what it hears: caller and callee,
unless the parameter ``leg`` says ``callee`` (a call that we placed: then the party is the callee).
A call may be one stream with both tracks, or two streams that name the same call. Nothing is ever
sent.
"""

from __future__ import annotations

import binascii
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.audio.codecs import Codec, codec
from bridge.ingress.chunk_order import HOLD, ChunkOrder
from bridge.ingress.media_socket import (
    INVALID,
    NEVER,
    POLICY,
    LegAudio,
    LegDigit,
    MediaBase,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
    parse,
    table,
    words,
)
from bridge.types import CallInfo, Frame, LegName

SLACK = 0.01  # s: timestamps are in whole milliseconds, packets a little late or early
MAX_GAP = 3600.0  # s; beyond it a timestamp is nonsense
DIGITS = frozenset("0123456789*#ABCD")
TRACKS: Mapping[str, LegName] = {"inbound": "caller", "outbound": "callee"}
TURNED: Mapping[str, LegName] = {"inbound": "callee", "outbound": "caller"}


@dataclass(frozen=True, slots=True)
class Stream:
    """What a ``start`` says. `call` is an id; `tracks`: those that come, none named: all."""

    call: str
    encoding: tuple[str, int] = ("pcmu", 8000)  # a codec's name and rate
    tracks: Collection[str] = ()
    leg: str = "caller"
    info: CallInfo = field(default_factory=lambda: CallInfo(id=""))


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message's audio. `at`: milliseconds since the stream began."""

    payload: bytes
    at: int


class Track:
    """One direction of a stream: its codec, and where its samples lie on the leg's clock."""

    __slots__ = ("_clock", "_codec", "leg", "order")

    def __init__(self, leg: LegName, decoder: Codec, order: ChunkOrder[Chunk]) -> None:
        self.leg: LegName = leg
        self.order = order
        self._codec = decoder
        self._clock = 0  # samples

    def audio(self, chunk: Chunk) -> LegAudio:
        """Behind the last, or where a gap ends."""
        samples = self._codec.decode(chunk.payload)
        rate = self._codec.rate
        gap = chunk.at * rate // 1000 - self._clock
        if SLACK * rate < gap < MAX_GAP * rate:
            self._clock += gap
        start = self._clock
        self._clock += len(samples)
        return LegAudio(self.leg, Frame(samples, rate, start))


class JsonStream(MediaBase):
    """One stream. `passed`: events that mean nothing here; `epoch`: timestamps are Unix time;
    `depth`: how many chunks are held while an earlier one may still come."""

    per_block = 4
    passed: frozenset[str] = frozenset({"connected", "mark", "clear"})
    epoch = False
    depth = 0

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._tracks: dict[str, Track] = {}
        self._zero: int | None = None if self.epoch else 0  # milliseconds

    def started(self, start: Mapping[str, Any], message: Mapping[str, Any]) -> Stream:
        """Each one's own. Raises `SocketError`."""
        raise NotImplementedError

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        said = parse(message)
        match said.get("event"):
            case "media":
                return self._media(table(said, "media"), now)
            case "start":
                return self._start(self.started(table(said, "start"), said))
            case "dtmf":
                return self._digit(table(said, "dtmf"))
            case "stop":
                return self.eof("hangup")
            case "error":
                return self.warn("peer_error", f"an error is reported: {_error(said)}")
            case str() as name if name in self.passed:
                return ()
        return self.warn("unknown_event", "an event that we do not know; it is passed over")

    def _start(self, stream: Stream) -> Sequence[SocketEvent]:
        if self._started:
            raise SocketError(POLICY, "a second start; a stream has one")
        legs = TURNED if stream.leg == "callee" else TRACKS
        named = {_side(track) for track in stream.tracks} or set(legs)
        wanted = [track for track in legs if track in named]
        if not wanted:
            raise SocketError(POLICY, "tracks: expected inbound, outbound or both")
        for track in wanted:
            try:
                decoder = codec(*stream.encoding)
            except ValueError as e:
                raise SocketError(POLICY, str(e)) from None
            self._tracks[track] = Track(legs[track], decoder, ChunkOrder(self.depth))
        return [self.begin(legs[track], stream.call, stream.info) for track in wanted]

    def _media(self, media: Mapping[str, Any], now: float) -> Sequence[SocketEvent]:
        track = self._tracks.get(_side(media.get("track", "inbound")))
        if track is None or track.leg not in self.legs:
            if not self._started:
                return self.warn("early_media", "audio before the start; it is passed over")
            return self.warn("unknown_track", "audio of a track that was not announced")
        try:
            payload = binascii.a2b_base64(media["payload"], strict_mode=True)
            number, at = int(media["chunk"]), int(media["timestamp"])
        except (KeyError, TypeError, ValueError, OverflowError):  # binascii.Error is a ValueError
            raise SocketError(
                INVALID, "media: expected payload in base64, chunk and timestamp as numbers"
            ) from None
        if self._zero is None:
            self._zero = at
        chunks = track.order.take(number, Chunk(payload, at - self._zero), now)
        if chunks is None:
            return self.warn("duplicate", "a chunk came twice, or late; it is passed over")
        self._plan()
        return [track.audio(chunk) for chunk in chunks]

    def _plan(self) -> None:
        """Chunks that are held are not held for long."""
        self.next_at = min((t.order.since + HOLD for t in self._tracks.values()), default=NEVER)

    def _digit(self, dtmf: Mapping[str, Any]) -> Sequence[SocketEvent]:
        track = self._tracks.get(_side(dtmf.get("track", "inbound")))
        digit = words(dtmf, "digit")
        if track is None or track.leg not in self.legs or digit not in DIGITS:
            return self.warn("bad_digit", "a digit that is none, or of no track")
        return (LegDigit(track.leg, digit),)

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if not self._started:
            return super().expire(now)
        events = [
            track.audio(chunk)
            for track in self._tracks.values()
            if track.leg in self.legs and now >= track.order.since + HOLD
            for chunk in track.order.rest()
        ]
        self._plan()
        return events

    def eof(self, reason: str) -> Sequence[SocketEvent]:
        held = [
            track.audio(chunk)
            for track in self._tracks.values()
            if track.leg in self.legs
            for chunk in track.order.rest()
        ]
        self.next_at = NEVER if self._started else self.next_at
        return [*held, *super().eof(reason)]


def _side(track: object) -> str:
    """``inbound_track`` and ``inbound`` are the same."""
    return track.removesuffix("_track") if isinstance(track, str) else ""


def _error(said: Mapping[str, Any]) -> str:
    payload = said.get("payload")
    inner = payload if isinstance(payload, dict) else said
    return " ".join(filter(None, (words(inner, name) for name in ("code", "title", "detail"))))


def named_tracks(value: object) -> list[str]:
    """A list of tracks; what is no list names none, what is in no list is none."""
    if not isinstance(value, list):
        return []
    return [track for track in value if isinstance(track, str)] or ["none"]
