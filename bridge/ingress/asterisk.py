"""Asterisk's chan_websocket, when Asterisk connects to us. Pure.

Source: channels/chan_websocket.c of 22.10. Text messages are events,
JSON or ``NAME key:value key:value``; binary ones the codec's bytes, without a header and of any
length. The first event is MEDIA_START, which says the format. Nothing comes while the channel is
silent or a digit is pressed, so the leg's clock follows arrival.

Asterisk knows the WebSocket's channel, not the one that speaks: who that is stands in the URL, by
``v(…)`` of the dial string. ``leg`` and ``call`` say which leg of which call this is (two with the
same call are its two legs), ``channel uniqueid linkedid caller callee`` who speaks, and ``uuid``
is one that call control announces, as AudioSocket's. Only HANGUP is ever sent, at our side's end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bridge.audio.codecs import codec
from bridge.ingress.media_socket import (
    DIGITS,
    POLICY,
    LegDigit,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
    clean,
    extras,
    identifier,
    parse,
    words,
)
from bridge.ingress.raw_stream import RawMedia
from bridge.ingress.said import leg_name
from bridge.types import CallInfo, LegName

FORMATS: Mapping[str, tuple[str, int]] = {
    "ulaw": ("pcmu", 8000),
    "alaw": ("pcma", 8000),
    "g722": ("g722", 16000),
    "slin": ("l16le", 8000),
    "slin12": ("l16le", 12000),
    "slin16": ("l16le", 16000),
    "slin24": ("l16le", 24000),
    "slin32": ("l16le", 32000),
    "slin44": ("l16le", 44100),
    "slin48": ("l16le", 48000),
}
"""Asterisk's name of a format → ours."""

EVENTS = frozenset({
    "MEDIA_XOFF", "MEDIA_XON", "QUEUE_DRAINED", "MEDIA_BUFFERING_COMPLETED",
    "MEDIA_MARK_PROCESSED", "STATUS",
})  # fmt: skip
"""Of what we would send."""
WHO = ("channel", "uniqueid", "linkedid", "caller", "callee", "context", "exten")
HELD = 65536  # bytes of audio before MEDIA_START: 8 s of mu-law, 2 s of slin16


class Asterisk(RawMedia):
    """One channel of ``Dial(WebSocket/…)`` or of ARI's external media."""

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._leg: LegName = "caller"
        self._early: deque[bytes] = deque()
        self._held = 0  # bytes of it
        self._json = True

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        self._json = message.lstrip()[:1] == b"{"
        said = parse(message) if self._json else _plain(message)
        match said.get("event"):
            case "MEDIA_START":
                return self._start(said, now)
            case "DTMF_END":
                digit = words(said, "digit")
                if digit in DIGITS and self.streaming:
                    return (LegDigit(self._leg, digit),)
                return self.warn("bad_digit", "a digit that is none, or before MEDIA_START")
            case "ERROR":
                return self.warn("peer_error", f"Asterisk reports: {words(said, 'error_text')}")
            case str() as name if name in EVENTS:
                return ()
        return self.warn("unknown_event", "an event that we do not know; it is passed over")

    def _start(self, said: Mapping[str, Any], now: float) -> Sequence[SocketEvent]:
        if self._started:
            raise SocketError(POLICY, "a second MEDIA_START; a channel has one")
        query = self.opening.query
        name = words(said, "format") or query.get("format", "")
        if name not in FORMATS:
            raise SocketError(
                POLICY,
                f"format {clean(name)!r} is not decoded here; dial with c(ulaw), c(slin), "
                "c(slin16) or another of " + " ".join(FORMATS),
            )
        self._leg = leg_name(query)
        call = identifier(query["call"], "call") if query.get("call") else ""
        try:
            decoder = codec(*FORMATS[name])
        except ValueError as e:  # a library is not installed
            raise SocketError(POLICY, str(e)) from None
        began = self.begin(self._leg, call, self._info(said), query.get("uuid", ""))
        self.stream(decoder, (self._leg,), now)
        early = b"".join(self._early)
        self._early.clear()
        return [began, *self.feed(early, now)]

    def _info(self, said: Mapping[str, Any]) -> CallInfo:
        """Who speaks; the WebSocket's own channel where nobody says."""
        query = self.opening.query
        known = {name: clean(query[name]) for name in WHO if query.get(name)}
        own = {"channel": words(said, "channel"), "uniqueid": words(said, "channel_id")}
        if not known.get("channel") and not query.get("uuid"):
            known |= {name: value for name, value in own.items() if value}
        variables = said.get("channel_variables")
        extra = extras(
            {k: v for k, v in variables.items() if not k.startswith("MEDIA_WEBSOCKET_")}
            if isinstance(variables, dict)
            else {}
        )
        extra["media_channel"] = own["channel"]
        extra["connection"] = words(said, "connection_id")
        return replace(
            CallInfo(id="", extra={k: v for k, v in extra.items() if v}),
            **known,  # type: ignore[arg-type]  # WHO: fields that are strings
        )

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        if self.streaming:
            return self.feed(message, now)
        if not message:  # it would take room that no byte pays for
            return ()
        self._early.append(message)
        self._held += len(message)
        if self._held <= HELD:
            return ()
        while self._held > HELD:
            self._held -= len(self._early.popleft())
        return self.warn("early_media", "much audio before MEDIA_START; the oldest is lost")

    def refused(self, leg: LegName, reason: str) -> None:
        self.hung_up(reason)
        super().refused(leg, reason)

    def hung_up(self, reason: str) -> None:
        self.say({"command": "HANGUP"} if self._json else "HANGUP")


def _plain(message: bytes) -> dict[str, str]:
    """``NAME key:value key:value``, as JSON would have it. A value may have colons."""
    name, *pairs = clean(message.decode("utf-8", "replace")[:2000], 2000).split() or [""]
    found = {"event": name}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if colon and key != "event":
            found[key] = value
    return found
