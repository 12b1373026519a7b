"""Twilio Media Streams: JSON messages, base64 of 8 kHz mu-law. Pure.

Source: Twilio's "Media Streams - WebSocket messages" (PROTOCOLS §6.1). Numbers come as strings.
`inbound` is what the party says, `outbound` what it hears: caller and callee, unless the parameter
``leg`` of the TwiML says ``callee`` (a call that we placed: then the party is the callee). A call
may be one stream with both tracks or two streams with one callSid. Nothing is ever sent: any
message on a one-way stream is an error there (31924).
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from bridge.audio import g711
from bridge.ingress.media_socket import (
    INVALID,
    POLICY,
    LegAudio,
    LegDigit,
    MediaBase,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
    extras,
    identifier,
    parse,
    table,
    words,
)
from bridge.types import CallInfo, Frame, LegName, Warned

RATE = 8000
PER_MS = RATE // 1000
PACKET, BLOCK = 160, 640  # samples of a message, of a block
SLACK = 80  # samples: timestamps are in whole milliseconds, packets a little late or early
MAX_GAP = 3600 * RATE  # samples; beyond it a timestamp is nonsense
DIGITS = frozenset("0123456789*#ABCD")


def twiml(url: str) -> str:
    """What a number's webhook answers: both parties go to `url`, and the call goes on."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Response><Start><Stream url={quoteattr(url)} "
        'track="both_tracks"/></Start><!-- your own verbs: <Dial>, … --></Response>\n'
    )


class Track:
    """One direction of a stream: where its samples lie on the leg's clock."""

    __slots__ = ("chunk", "clock", "leg")

    def __init__(self, leg: LegName) -> None:
        self.leg = leg
        self.chunk = 0  # of the last message
        self.clock = 0  # samples

    def place(self, milliseconds: int, samples: int) -> int:
        """Where audio of this timestamp begins: behind the last, or where a gap ends."""
        at = milliseconds * PER_MS
        if at - self.clock > SLACK and at - self.clock < MAX_GAP:
            self.clock = at
        start = self.clock
        self.clock += samples
        return start


class Twilio(MediaBase):
    """One stream."""

    tracks: Mapping[str, LegName] = {"inbound": "caller", "outbound": "callee"}

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._tracks: dict[str, Track] = {}
        self._warned: set[str] = set()

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        said = parse(message)
        match said.get("event"):
            case "media":
                return self._media(table(said, "media"))
            case "start":
                return self._start(table(said, "start"))
            case "dtmf":
                return self._digit(table(said, "dtmf"))
            case "stop":
                return self.eof("hangup")
            case "connected" | "mark":
                return ()
        return self._warn("unknown_event", "an event that we do not know; it is passed over")

    def _start(self, start: Mapping[str, Any]) -> Sequence[SocketEvent]:
        if self._started:
            raise SocketError(POLICY, "a second start; a stream has one")
        form = start.get("mediaFormat")
        if isinstance(form, dict) and form.get("encoding", "audio/x-mulaw") != "audio/x-mulaw":
            raise SocketError(POLICY, "mediaFormat.encoding: expected audio/x-mulaw")
        call = identifier(start.get("callSid"), "callSid")
        parameters = extras(start.get("customParameters"))
        legs = self._legs(parameters)
        named = start.get("tracks")
        wanted = [t for t in self.tracks if not isinstance(named, list) or t in named]
        if not wanted:
            raise SocketError(POLICY, "tracks: expected inbound, outbound or both")
        info = CallInfo(
            id="",
            caller=parameters.get("from", ""),
            callee=parameters.get("to", ""),
            extra={
                **parameters,
                "stream_sid": words(start, "streamSid"),
                "account_sid": words(start, "accountSid"),
            },
        )
        self._tracks = {track: Track(legs[track]) for track in wanted}
        return [self.begin(legs[track], call, info) for track in wanted]

    def _legs(self, parameters: Mapping[str, str]) -> Mapping[str, LegName]:
        if parameters.get("leg") == "callee":
            return {"inbound": "callee", "outbound": "caller"}
        return self.tracks

    def _media(self, media: Mapping[str, Any]) -> Sequence[SocketEvent]:
        track = self._tracks.get(media.get("track", "inbound"))
        if track is None:
            if not self._started:
                return self._warn("early_media", "audio before the start; it is passed over")
            return self._warn("unknown_track", "audio of a track that was not announced")
        try:
            payload = binascii.a2b_base64(media["payload"], strict_mode=True)
            chunk, at = int(media["chunk"]), int(media["timestamp"])
        except (KeyError, TypeError, ValueError):  # binascii.Error is a ValueError
            raise SocketError(
                INVALID, "media: expected payload in base64, chunk and timestamp as numbers"
            ) from None
        if chunk <= track.chunk:
            return self._warn("duplicate", "a chunk came twice, or late; it is passed over")
        track.chunk = chunk
        samples = g711.decode_ulaw(payload)
        start = track.place(at, len(samples))
        self.until_block = self._until_block(track)
        return (LegAudio(track.leg, Frame(samples, RATE, start)),)

    def _until_block(self, track: Track) -> int:
        """Messages until this track's block is complete; the other track's come in between."""
        return (BLOCK - track.clock % BLOCK) // PACKET * len(self._tracks) or 1

    def _digit(self, dtmf: Mapping[str, Any]) -> Sequence[SocketEvent]:
        track = self._tracks.get(words(dtmf, "track").removesuffix("_track") or "inbound")
        digit = words(dtmf, "digit")
        if track is None or digit not in DIGITS:
            return self._warn("bad_digit", "a digit that is none, or of no track")
        return (LegDigit(track.leg, digit),)

    def _warn(self, kind: str, text: str) -> Sequence[SocketEvent]:
        """Once per stream."""
        if kind in self._warned:
            return ()
        self._warned.add(kind)
        return (Warned(kind, text),)
