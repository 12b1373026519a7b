"""Genesys Cloud AudioHook, version 2. Pure.

Source: Genesys' AudioHook protocol reference and reference implementation. Text messages are JSON
with numbers: ours are counted in ``seq``, the client's in ``clientseq``. After its ``open`` we
choose a medium and say ``opened``; then come binary messages, PCMU at 8 kHz, one channel or two
interleaved: ``external`` is the customer, our caller, ``internal`` the agent, our callee. The clock
is what was sent and what the client says it has discarded. An open for no conversation (all zeros)
is a probe of the connection: it is answered, and no leg begins.

It is the client that ends a session, by ``close``, which is answered by ``closed`` when the last
words have been told. Where we want an end we say ``disconnect``, and why; and hang up where no
close comes of it. So an error of the client's is a message, not a close code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.audio import g711
from bridge.ingress.media_socket import (
    DIGITS,
    NEVER,
    POLICY,
    LegAsked,
    LegAudio,
    LegDigit,
    MediaBase,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
    clean,
    extras,
    identifier,
    parse,
    table,
    words,
)
from bridge.types import CallEvent, CallInfo, Ended, Frame, LegName

RATE = 8000
LEGS: Mapping[str, LegName] = {"external": "caller", "internal": "callee"}
CHANNELS = (["external", "internal"], ["internal", "external"], ["external"], ["internal"])
"""What we take, the best first."""
NOBODY = "00000000-0000-0000-0000-000000000000"
LAST_WORDS = 4.0  # s after which ``closed`` is said whatever is still to come; Genesys waits for 5
CLOSE_WITHIN = 5.0  # s from our ``disconnect`` or ``closed`` to the client's close
MAX_GAP = 3600.0  # s
_DURATION = re.compile(r"PT([0-9]{1,7}(?:\.[0-9]{1,9})?)S")


class AudioHook(MediaBase):
    """One session."""

    lingers = True

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self._id = ""
        self._seq = 0  # of our last message
        self._client_seq = 0  # of the client's
        self._medium: dict[str, Any] = {}
        self._channels: tuple[LegName, ...] = ()
        self._taken = 0  # legs
        self._rest = b""  # half of an interleaved pair
        self._clock = 0  # samples
        self._state = "new"  # open, closing (it has said close), ending (we want it to), closed

    # -- in --------------------------------------------------------------------------------------

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        try:
            return self._take(self._checked(parse(message)), now)
        except SocketError as e:
            return self._fail(str(e), now)

    def _checked(self, said: dict[str, Any]) -> dict[str, Any]:
        """The frame around every message. Raises `SocketError`."""
        if said.get("version") != "2":
            raise SocketError(POLICY, 'version: expected "2"')
        if said.get("seq") == self._client_seq + 1:
            self._client_seq += 1
        elif self._state != "ending":  # where only its close is waited for
            raise SocketError(POLICY, f"seq: expected {self._client_seq + 1}")
        heard = said.get("serverseq", 0)
        if not isinstance(heard, int) or not 0 <= heard <= self._seq:
            raise SocketError(POLICY, f"serverseq: expected at most {self._seq}")
        session = identifier(said.get("id"), "id")
        if self._id not in ("", session):
            raise SocketError(POLICY, "id: expected that of the session")
        self._id = session
        return said

    def _take(self, said: dict[str, Any], now: float) -> Sequence[SocketEvent]:
        parameters = table(said, "parameters")
        match said.get("type"):
            case "ping":
                self._answer("pong")
                return ()
            case "close":
                return self._close(now)
            case "error":
                text = f"{words(parameters, 'code')} {words(parameters, 'message')}"
                return self.warn("peer_error", f"Genesys reports: {text}")
            case _ if self._state not in ("new", "open"):
                return ()  # it is ending: only the above is of interest
            case "open":
                return self._open(parameters)
            case "discarded" | "resumed":
                self._skip(parameters.get("discarded"))
                return ()
            case "paused":  # nothing more comes: what was said so far is wanted
                return [LegAsked(leg) for leg in self.legs]
            case "dtmf":
                digit = words(parameters, "digit")
                if digit in DIGITS and "caller" in self.legs:
                    return (LegDigit("caller", digit),)
                return self.warn("bad_digit", "a digit that is none, or before the start")
            case "update":
                return ()
        return self.warn("unknown_event", "a message that we do not know; it is passed over")

    def _open(self, parameters: Mapping[str, Any]) -> Sequence[SocketEvent]:
        if self._state == "open":
            raise SocketError(POLICY, "a second open; a session has one")
        medium = _choose(parameters.get("media"))
        call = identifier(parameters.get("conversationId"), "conversationId")
        self._state, self._started, self.next_at = "open", True, NEVER
        self._medium = medium
        if call == NOBODY:
            self._opened()
            return ()
        self._channels = tuple(LEGS[channel] for channel in medium["channels"])
        info = self._info(parameters)
        return [self.begin(leg, call, info) for leg in self._channels]

    def _info(self, parameters: Mapping[str, Any]) -> CallInfo:
        given = parameters.get("participant")
        who: Mapping[str, Any] = given if isinstance(given, dict) else {}
        known = {
            "organization_id": words(parameters, "organizationId"),
            "participant_id": words(who, "id"),
            "session_id": self._id,
            "caller_name": words(who, "aniName"),
            "language": words(parameters, "language"),
        }
        return CallInfo(
            id="",
            caller=words(who, "ani"),
            callee=words(who, "dnis"),
            extra={
                **extras(parameters.get("customConfig")),
                **{name: value for name, value in known.items() if value},
            },
        )

    def _skip(self, discarded: object) -> None:
        """The client has thrown so much away: the clock runs on. Raises `SocketError`."""
        found = _DURATION.fullmatch(discarded) if isinstance(discarded, str) else None
        if found is None:
            raise SocketError(POLICY, "discarded: expected a duration such as PT1.5S")
        self._clock += int(min(float(found[1]), MAX_GAP) * RATE)

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        if self._state == "new":
            return self._fail("audio before the open", now)
        if not self._channels or self._state != "open":
            return ()
        data = self._rest + message
        whole = len(data) - len(data) % len(self._channels)
        data, self._rest = data[:whole], data[whole:]
        start, n = self._clock, len(self._channels)
        self._clock += whole // n
        samples = g711.decode_ulaw(data)
        return [
            LegAudio(leg, Frame(np.ascontiguousarray(samples[i::n]), RATE, start))
            for i, leg in enumerate(self._channels)
            if leg in self.legs and data
        ]

    # -- the end ---------------------------------------------------------------------------------

    def _close(self, now: float) -> Sequence[SocketEvent]:
        if self._state in ("closing", "closed"):
            return ()
        waits = bool(self.legs)
        self._state, self._started = "closing", True
        ended = super().eof("hangup")
        if waits:
            self.next_at = now + LAST_WORDS
        else:
            self._closed(now)
        return ended

    def _closed(self, now: float) -> None:
        self._answer("closed")
        self._state = "closed"
        self.next_at = now + CLOSE_WITHIN

    def _fail(self, info: str, now: float) -> Sequence[SocketEvent]:
        """The client has broken the protocol: it is told, and is to close."""
        if self._state not in ("new", "open"):
            return ()
        self._disconnect("error", info)
        self.next_at = now + CLOSE_WITHIN
        return super().eof("protocol")

    def _disconnect(self, reason: str, info: str = "") -> None:
        self._answer("disconnect", {"reason": reason} | ({"info": info} if info else {}))
        self._state, self._started = "ending", True

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if not self._started or now < self.next_at:
            return super().expire(now)
        if self._state == "closing":
            self._closed(now)
            return ()
        if self._state == "ending" and self.next_at == 0.0:  # said outside of any message
            self.next_at = now + CLOSE_WITHIN
            return super().eof("bridge")
        self.leave(1000, "") if self._state == "closed" else self.leave(POLICY, "no close came")
        self.next_at = NEVER
        return ()

    def eof(self, reason: str) -> Sequence[SocketEvent]:
        self._state = "closed"
        return super().eof(reason)

    def taken(self, leg: LegName) -> None:
        self._taken += 1
        if self._taken == len(self._channels) and self._state == "open":
            self._opened()

    def _opened(self) -> None:
        self._answer("opened", {"startPaused": False, "media": [self._medium]})

    def told(self, leg: LegName, event: CallEvent) -> None:
        if isinstance(event.body, Ended) and self._state == "closing":
            self._answer("closed")
            self._state = "closed"

    def refused(self, leg: LegName, reason: str) -> None:
        if self._state == "open":
            self._disconnect("error", f"the call was not taken: {reason}")
            self.next_at = 0.0

    def hung_up(self, reason: str) -> None:
        if self._state == "open":
            self._disconnect("completed")
            self.next_at = 0.0

    def _answer(self, kind: str, parameters: Mapping[str, Any] | None = None) -> None:
        self._seq += 1
        self.say(
            {
                "version": "2",
                "type": kind,
                "seq": self._seq,
                "clientseq": self._client_seq,
                "id": self._id or NOBODY,
                "parameters": parameters or {},
            }
        )


def _choose(media: object) -> dict[str, Any]:
    """The best of what is offered. Raises `SocketError`."""
    offered = [m for m in media if isinstance(m, dict)] if isinstance(media, list) else []
    for channels in CHANNELS:
        for medium in offered:
            form = (medium.get("type"), medium.get("format"), medium.get("rate"))
            if form == ("audio", "PCMU", RATE) and medium.get("channels") == channels:
                return {"type": "audio", "format": "PCMU", "channels": channels, "rate": RATE}
    named = clean([m.get("format") for m in offered[:8]])
    raise SocketError(
        POLICY, f"media: expected PCMU at 8000 Hz, of one channel or two, not {named}"
    )
