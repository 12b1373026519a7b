"""Vonage's Voice API, endpoint ``websocket``. Pure.

Source: Vonage's "WebSockets in the Vonage Voice API". The first message is text, and says the
format and the headers of the NCCO; then come binary ones, linear samples, little-endian, 20 ms
each. The WebSocket is a member of a conference: what it hears is the mix of all others, one leg.
Headers that are known here: ``leg``, ``call``, ``from``, ``to``; without ``call`` the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    extras,
    identifier,
    parse,
    words,
)
from bridge.ingress.raw_stream import RawMedia
from bridge.ingress.said import leg_name
from bridge.types import CallInfo, LegName

_FORM = re.compile(r"audio/l16; *rate=([0-9]{4,5})")


class Vonage(RawMedia):
    """One leg into a conversation."""

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._leg: LegName = "caller"

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        said = parse(message)
        match said.get("event"):
            case "websocket:connected":
                return self._start(said, now)
            case "websocket:dtmf":
                digit = words(said, "digit")
                if digit in DIGITS and self.streaming:
                    return (LegDigit(self._leg, digit),)
                return self.warn("bad_digit", "a digit that is none, or before the start")
            case "websocket:cleared" | "websocket:notify":
                return ()
        return self.warn("unknown_event", "an event that we do not know; it is passed over")

    def _start(self, said: Mapping[str, Any], now: float) -> Sequence[SocketEvent]:
        if self._started:
            raise SocketError(POLICY, "a second websocket:connected; a leg has one")
        form = words(said, "content-type")
        found = _FORM.fullmatch(form.lower())
        if found is None:
            raise SocketError(POLICY, f"content-type {form!r}: expected audio/l16;rate=16000")
        try:
            decoder = codec("l16le", int(found[1]))
        except ValueError as e:
            raise SocketError(POLICY, str(e)) from None
        self._leg = leg_name(said)
        name = next((n for n in ("call", "conversation_uuid", "uuid") if said.get(n)), "")
        call = identifier(said[name], name) if name else ""
        info = CallInfo(
            id="",
            caller=words(said, "from"),
            callee=words(said, "to"),
            extra=extras(said, ("event", "content-type", "leg", "call", "from", "to")),
        )
        began = self.begin(self._leg, call, info)
        self.stream(decoder, (self._leg,), now)
        return [began]

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        if not self.streaming:
            return self.warn("early_media", "audio before the start; it is passed over")
        return self.feed(message, now)
