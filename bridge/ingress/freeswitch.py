"""FreeSWITCH's mod_audio_stream and mod_audio_fork. Pure.

Source: both modules' own. Binary messages are linear samples, little-endian, of
any length; ``stereo`` interleaves what the channel says and what it hears. Nothing on the wire says
who calls, how fast, or how many: the URL does (``/freeswitch/UUID?rate=16000&mix=stereo``), or the
metadata that the command was given, which come first, as text: JSON with the same names, or not.

Events go back on the same socket. mod_audio_fork, told by its subprotocol, makes
``mod_audio_fork::transcription`` of ``{"type":"transcription","data":{…}}`` and
``mod_audio_fork::json`` of what is of the type json; mod_audio_stream makes
``mod_audio_stream::json`` of any text. ``reply=fork|stream|none`` in the URL decides otherwise.

mod_audio_fork says that it wants the last words, and will send no more, by an empty binary message
(graceful-shutdown). From then on it cannot even close: we do, when they are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.audio.codecs import codec
from bridge.contract import body
from bridge.ingress.media_socket import (
    DIGITS,
    INVALID,
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
from bridge.types import CallEvent, CallInfo, Ended, EndOfTurn, Final, LegName, Partial

MIXES: Mapping[str, int] = {"mono": 1, "mixed": 1, "stereo": 2}
KNOWN = ("rate", "mix", "uuid", "call", "leg", "reply", "caller", "callee")


class FreeSwitch(RawMedia):
    """One fork of one channel."""

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._mine: LegName = "caller"
        self._done = False  # the peer sends no more, and waits for the last words
        self._form = opening.query.get("reply", "fork" if opening.offered else "stream")

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        if not self._started:
            return self._begin(_metadata(message), now)
        said = _metadata(message)
        digit = words(said, "digit") or words(said, "dtmf")
        if "dtmf" in (said.get("type"), said.get("event")) and digit in DIGITS and self.legs:
            return (LegDigit(self._mine, digit),)
        return ()  # send_text, and the text of stop: for others

    def _begin(self, metadata: Mapping[str, Any], now: float) -> Sequence[SocketEvent]:
        if self._form not in ("fork", "stream", "none"):
            raise SocketError(POLICY, "reply: expected fork, stream or none")
        segment = self.opening.path.removeprefix("/freeswitch").strip("/")
        given: dict[str, Any] = {**metadata, **self.opening.query}
        channel = segment or clean(given.get("uuid", ""))
        if channel:
            identifier(channel, "uuid")
        call = identifier(given["call"], "call") if given.get("call") else channel
        legs = self._legs(given)
        try:
            decoder = codec("l16le", _rate(given.get("rate", "8000")))
        except ValueError as e:
            raise SocketError(POLICY, str(e)) from None
        info = CallInfo(
            id="",
            channel=channel,
            caller=clean(given.get("caller", "")),
            callee=clean(given.get("callee", "")),
            extra=extras(metadata, KNOWN),
        )
        began = [self.begin(leg, call, info) for leg in legs]
        self.stream(decoder, legs, now)
        return began

    def _legs(self, given: Mapping[str, Any]) -> tuple[LegName, ...]:
        mix = given.get("mix", "mono")
        if not isinstance(mix, str) or mix not in MIXES:
            raise SocketError(POLICY, "mix: expected mono, mixed or stereo, as in the command")
        self._mine = leg_name(given)
        if MIXES[mix] == 1:
            return (self._mine,)
        return ("caller", "callee") if self._mine == "caller" else ("callee", "caller")

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        began: Sequence[SocketEvent] = ()
        if not self._started:  # without metadata
            began = self._begin({}, now)
        if self._done:
            return began
        if not message:
            self._done = True
            self.next_at = float("inf")
            return [*began, *self.eof("hangup")]
        return [*began, *self.feed(message, now)]

    # -- back ------------------------------------------------------------------------------------

    def told(self, leg: LegName, event: CallEvent) -> None:
        if event.leg is None and leg != self._mine:
            return  # of the call: once
        match event.body:
            case Partial() | Final() | EndOfTurn():
                self._tell("transcription", body(event).decode())
            case _:
                self._tell("json", body(event).decode())
        if isinstance(event.body, Ended) and self._done:
            self.leave(1000, "")

    def refused(self, leg: LegName, reason: str) -> None:
        self._tell("error", f'{{"type":"call.refused","data":{{"reason":"{reason}"}}}}')
        super().refused(leg, reason)

    def _tell(self, kind: str, text: str) -> None:
        if self._form == "fork":
            self.say(f'{{"type":"{kind}","data":{text}}}')
        elif self._form == "stream":
            self.say(text)


def _rate(value: object) -> int:
    """``8k``, ``16k`` or a number, as the commands take it. Raises `SocketError`."""
    text = str(value).lower()
    number = text.removesuffix("k")
    if number.isascii() and number.isdecimal() and len(number) <= 6:
        return int(number) * (1000 if number != text else 1)
    raise SocketError(INVALID, "rate: expected 8k, 16k or a number of Hz")


def _metadata(message: bytes) -> dict[str, Any]:
    """JSON, if it is that; anything else has no fields."""
    try:
        return parse(message)
    except SocketError:
        text = clean(message[:800].decode("utf-8", "replace"))
        return {"metadata": text} if text else {}
