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
from bridge.ingress.arrival import until_block
from bridge.ingress.byte_order import EitherOrder
from bridge.ingress.chunk_order import HOLD, ChunkOrder
from bridge.ingress.media_socket import (
    DIGITS,
    INVALID,
    NEVER,
    POLICY,
    LegAudio,
    LegBegan,
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
AHEAD = 60.0  # s that it may be ahead of the time since the start; beyond that it is, too
TOGETHER = frozenset({"pcmu", "pcma"})  # a byte is a sample, wherever payloads are cut
TRACKS: Mapping[str, LegName] = {"inbound": "caller", "outbound": "callee"}
TURNED: Mapping[str, LegName] = {"inbound": "callee", "outbound": "caller"}


@dataclass(frozen=True, slots=True)
class Stream:
    """What a ``start`` says. `call` is an id.

    `tracks`: those that come; none named: a leg begins with its first audio. `encoding`: a codec's
    name and rate; ``l16?`` is linear, in an order that is to be found out.
    """

    call: str
    encoding: tuple[str, int] = ("pcmu", 8000)
    tracks: Collection[str] = ()
    leg: str = "caller"
    info: CallInfo = field(default_factory=lambda: CallInfo(id=""))


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message's audio. `at`: milliseconds since the stream began."""

    payload: bytes
    at: int


class Track:
    """One direction of a stream: its codec, and where its samples lie on the leg's clock.

    Chunks that follow each other are decoded together, by `flush`: of four at once, as they come
    in one read, each costs a third.
    """

    __slots__ = (
        "_clock", "_codec", "_gap", "_last", "_most", "_run", "_start", "_zero", "leg", "order",
    )  # fmt: skip

    def __init__(
        self, leg: LegName, decoder: Codec, order: ChunkOrder[Chunk], zero: int = 0
    ) -> None:
        self.leg: LegName = leg
        self.order = order
        self._codec = decoder
        self._zero = zero  # when the leg began, in the stream's milliseconds
        self._clock = 0  # samples
        self._last = 0  # of the last message
        self._gap, self._most = SLACK * decoder.rate, MAX_GAP * decoder.rate
        self._run: list[bytes] = []  # of `_start` and on, not decoded yet
        self._start = 0

    def until_block(self, streams: int) -> int:
        """See `MediaSocket`."""
        return until_block(self._clock, self._codec.rate, self._last, streams)

    def add(self, chunk: Chunk) -> Sequence[LegAudio]:
        """Behind the last, or where a gap ends; what was before the gap."""
        gap = (chunk.at - self._zero) * self._codec.rate // 1000 - self._clock
        before: Sequence[LegAudio] = ()
        if self._gap < gap < self._most:
            before = self.flush()
            self._clock += gap
        if not self._run:
            self._start = self._clock
        self._run.append(chunk.payload)
        self._last = self._codec.samples(len(chunk.payload))
        self._clock += self._last
        return before if self._codec.name in TOGETHER else [*before, *self.flush()]

    def flush(self) -> Sequence[LegAudio]:
        """What has been added, as one frame."""
        if not self._run:
            return ()
        run, self._run = self._run, []
        samples = self._codec.decode(run[0] if len(run) == 1 else b"".join(run))
        frame = Frame(samples, self._codec.rate, self._start, False, len(run))
        return (LegAudio(self.leg, frame),)


class JsonStream(MediaBase):
    """One stream. `passed`: events that mean nothing here; `epoch`: timestamps are Unix time;
    `depth`: how many chunks are held while an earlier one may still come."""

    passed: frozenset[str] = frozenset({"connected", "mark", "clear"})
    epoch = False
    depth = 0

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._tracks: dict[str, Track] = {}
        self._stream: Stream | None = None
        self._zero: int | None = None if self.epoch else 0  # milliseconds
        self._since = now

    def started(self, start: Mapping[str, Any], message: Mapping[str, Any]) -> Stream:
        """Each one's own. Raises `SocketError`."""
        raise NotImplementedError

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        return self.texts([message], now)

    def texts(self, messages: Sequence[bytes], now: float) -> Sequence[SocketEvent]:
        """See `MediaBase`."""
        events: list[SocketEvent] = []
        try:
            for message in messages:
                said = parse(message)
                if said.get("event") == "media":
                    events += self._media(table(said, "media"), now)
                else:
                    events += self._flush()
                    events += self._other(said)
        except SocketError as e:
            e.before = [*events, *self._flush()]
            raise
        events += self._flush()
        self._plan()
        return events

    def _flush(self) -> list[SocketEvent]:
        return [event for track in self._tracks.values() for event in track.flush()]

    def _other(self, said: dict[str, Any]) -> Sequence[SocketEvent]:
        match said.get("event"):
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
        self._stream, self._started, self.next_at = stream, True, NEVER
        _decoder(*stream.encoding)  # or it would be found out with the first audio
        named = {_side(track) for track in stream.tracks}
        wanted = [track for track in TRACKS if track in named]
        if named and not wanted:
            raise SocketError(POLICY, "tracks: expected inbound, outbound or both")
        return [self._open(stream, track) for track in wanted]

    def _open(self, stream: Stream, track: str, zero: int = 0) -> LegBegan:
        leg = (TURNED if stream.leg == "callee" else TRACKS)[track]
        order: ChunkOrder[Chunk] = ChunkOrder(self.depth)
        self._tracks[track] = Track(leg, _decoder(*stream.encoding), order, zero)
        return self.begin(leg, stream.call, stream.info)

    def _media(self, media: Mapping[str, Any], now: float) -> Sequence[SocketEvent]:
        if self._stream is None:
            return self.warn("early_media", "audio before the start; it is passed over")
        try:
            payload = binascii.a2b_base64(media["payload"], strict_mode=True)
            number, at = int(media["chunk"]), int(media["timestamp"])
        except (KeyError, TypeError, ValueError, OverflowError):  # binascii.Error is a ValueError
            raise SocketError(
                INVALID, "media: expected payload in base64, chunk and timestamp as numbers"
            ) from None
        if self._zero is None:
            self._zero = at
        at -= self._zero
        if at > 1000 * (now - self._since + AHEAD):  # silence that nobody has lived through
            at = 0
        side = _side(media.get("track", "inbound"))
        events: list[SocketEvent] = []
        if side not in self._tracks and side in TRACKS and not self._stream.tracks:
            events.append(self._open(self._stream, side, at))
        track = self._tracks.get(side)
        if track is None:
            return self.warn("unknown_track", "audio of a track that was not announced")
        chunks = track.order.take(number, Chunk(payload, at), now)
        if chunks is None:
            odd = self.warn("duplicate", "a chunk came twice, or late; it is passed over")
            return [*events, *odd]
        for chunk in chunks:
            events += track.add(chunk)
        self.until_block = track.until_block(len(self._tracks))
        return events

    def _plan(self) -> None:
        """Chunks that are held are not held for long."""
        if self._started and self.depth:
            since = [track.order.since for track in self._tracks.values()]
            self.next_at = min(since, default=NEVER) + HOLD

    def _digit(self, dtmf: Mapping[str, Any]) -> Sequence[SocketEvent]:
        track = self._tracks.get(_side(dtmf.get("track", "inbound")))
        digit = words(dtmf, "digit")
        if track is None or digit not in DIGITS:
            return self.warn("bad_digit", "a digit that is none, or of no track")
        return (LegDigit(track.leg, digit),)

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if not self._started:
            return super().expire(now)
        events: list[SocketEvent] = []
        for track in self._tracks.values():
            if now >= track.order.since + HOLD:
                events += _rest(track)
        self._plan()
        return events

    def eof(self, reason: str) -> Sequence[SocketEvent]:
        tracks, self._tracks, self._stream = self._tracks, {}, None  # what comes now is no audio
        held = [event for track in tracks.values() for event in _rest(track)]
        self.next_at = NEVER if self._started else self.next_at
        return [*held, *super().eof(reason)]


def _rest(track: Track) -> list[SocketEvent]:
    """All that a track still holds."""
    before = [event for chunk in track.order.rest() for event in track.add(chunk)]
    return [*before, *track.flush()]


def _decoder(name: str, rate: int) -> Codec:
    try:
        known = codec("l16" if name == "l16?" else name, rate)
    except ValueError as e:
        raise SocketError(POLICY, str(e)) from None
    return EitherOrder(rate) if name == "l16?" else known


def l16_or_mulaw(form: object, name: str) -> tuple[str, int]:
    """Of ``mediaFormat``: linear at the rate that is called `name`, or mu-law."""
    given = form if isinstance(form, dict) else {}
    encoding = str(given.get("encoding", "audio/x-mulaw")).lower().partition(";")[0]
    match encoding.removeprefix("audio/").removeprefix("x-"):
        case "mulaw" | "pcmu":
            return "pcmu", 8000
        case "l16":
            return "l16?", rate_of(given, name, 8000)
    raise SocketError(POLICY, "mediaFormat.encoding: expected audio/x-mulaw or audio/x-l16")


def rate_of(form: Mapping[str, Any], name: str, default: int) -> int:
    """Hz, as a number or its digits. Raises `SocketError`."""
    value = form.get(name, default)
    text = str(value) if isinstance(value, str | int) else ""
    if text.isascii() and text.isdecimal() and len(text) <= 6:
        return int(text)
    raise SocketError(POLICY, f"{name}: expected a number of Hz")


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
