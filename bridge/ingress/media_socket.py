"""What a protocol on a media WebSocket is: messages and the time in, events out. Pure.

Theory of operation. A `MediaSocket` speaks one peer's protocol on one WebSocket that is open
already (bridge/transport/websocket.py does frames, pings and closing; bridge/socket_user.py who may
open one, and the lines of the switchboard). It is given whole messages and returns what they mean:
legs that begin and end, their audio and digits. What is heard of its legs comes back by `told`,
`heard` and `finalised`; what it wants to send is collected by `messages`. It ends the connection by
setting `goodbye`. It keeps no audio and counts on nothing but its peer's messages.

Whoever adds a protocol writes one file here, and one line in `bridge.socket_kinds.PROTOCOLS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import orjson

from bridge.ingress.opening import Opening as Opening
from bridge.ingress.opening import SocketRules as SocketRules
from bridge.ingress.said import AWAY as AWAY
from bridge.ingress.said import BUSY as BUSY
from bridge.ingress.said import DIGITS as DIGITS
from bridge.ingress.said import INVALID as INVALID
from bridge.ingress.said import NORMAL as NORMAL
from bridge.ingress.said import POLICY as POLICY
from bridge.ingress.said import TOO_LARGE as TOO_LARGE
from bridge.ingress.said import WRONG_KIND as WRONG_KIND
from bridge.ingress.said import SocketError as SocketError
from bridge.ingress.said import clean as clean
from bridge.ingress.said import extras as extras
from bridge.ingress.said import identifier as identifier
from bridge.ingress.said import is_uuid
from bridge.ingress.said import parse as parse
from bridge.ingress.said import table as table
from bridge.ingress.said import words as words
from bridge.types import CallEvent, CallInfo, Closed, Frame, Heard, LegName, Warned

NEVER = float("inf")
MAX_UNREAD = 1 << 20  # bytes of messages that the peer has not read
# -- what a protocol says ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LegBegan:
    """A leg begins. `call` groups legs: two that say the same are one call; empty: of its own.

    `uuid`: call control knows this leg by it, or will; empty: it does not.
    """

    leg: LegName
    call: str = ""
    info: CallInfo = field(default_factory=lambda: CallInfo(id=""))
    uuid: str = ""


@dataclass(slots=True)  # as `bridge.types.Audio`
class LegAudio:
    """Audio of one leg."""

    leg: LegName
    frame: Frame


@dataclass(frozen=True, slots=True)
class LegDigit:
    """A DTMF digit of one leg."""

    leg: LegName
    digit: str


@dataclass(frozen=True, slots=True)
class LegAsked:
    """The peer wants what it has said so far; `finalised` is called when all of it was told."""

    leg: LegName


@dataclass(frozen=True, slots=True)
class LegEnded:
    """No more audio of this leg. Its last words are still told, and then `Ended` of its call."""

    leg: LegName
    reason: str = "hangup"


SocketEvent: TypeAlias = LegBegan | LegAudio | LegDigit | LegAsked | LegEnded | Warned | Closed


class MediaSocket(Protocol):
    """One peer's protocol. `next_at`: when `expire` wants to be called; `NEVER`: not at all."""

    next_at: float
    goodbye: tuple[int, str] | None
    until_block: int
    """Where audio comes in equal messages: how many complete a block of 80 ms. 1: wake us for each.
    """
    lingers: bool
    """The peer ends a connection when it is told to (`hung_up`): it is not ours to end."""

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        """A text message, as UTF-8 that nobody has checked. Raises `SocketError`."""

    def texts(self, messages: Sequence[bytes], now: float) -> Sequence[SocketEvent]:
        """Text messages that came in one read. Raises `SocketError`."""

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        """A binary message. Raises `SocketError`."""

    def expire(self, now: float) -> Sequence[SocketEvent]:
        """Let time pass."""

    def eof(self, reason: str) -> Sequence[SocketEvent]:
        """The peer has closed, or is gone: every leg ends."""

    def told(self, leg: LegName, event: CallEvent) -> None:
        """An event of a leg, or of its call as a whole."""

    def heard(self, leg: LegName, heard: Heard) -> None:
        """One step of a leg's recogniser, in seconds of the call."""

    def finalised(self, leg: LegName) -> None:
        """All that was said before `LegAsked` has been told."""

    def refused(self, leg: LegName, reason: str) -> None:
        """The leg was not taken: `reason` is that of `bridge.types.Refused`."""

    def taken(self, leg: LegName) -> None:
        """The leg has its slot."""

    def hung_up(self, reason: str) -> None:
        """Call control (``bridge``) or the ``engine`` ends a leg, and with it the connection."""

    def messages(self) -> Sequence[str | bytes]:
        """What to send now: text as str, binary as bytes. Empties the list."""


class MediaBase:
    """What protocols have in common. Implements `MediaSocket` for one that only listens.

    Until the first leg has begun (`begin`), `start_deadline` runs.
    """

    next_at: float
    until_block = 1
    lingers = False

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        self.opening = opening
        self.rules = rules
        self.goodbye: tuple[int, str] | None = None
        self.legs: list[LegName] = []  # that have begun and not ended
        self.next_at = now + rules.start_deadline
        self._out: list[str | bytes] = []
        self._unread = 0
        self._started = False
        self._warned: set[str] = set()

    # -- for protocols ---------------------------------------------------------------------------

    def begin(
        self, leg: LegName, call: str = "", info: CallInfo | None = None, uuid: str = ""
    ) -> LegBegan:
        """A leg begins, and whoever waited for that need not any more. Raises `SocketError`."""
        if uuid and not is_uuid(uuid):
            raise SocketError(POLICY, "uuid: expected 123e4567-e89b-12d3-a456-426614174000")
        self._started = True
        self.next_at = NEVER
        self.legs.append(leg)
        return LegBegan(leg, call, info or CallInfo(id=""), uuid)

    def warn(self, kind: str, text: str) -> Sequence[SocketEvent]:
        """Something odd that does not end the connection; each kind once."""
        if kind in self._warned:
            return ()
        self._warned.add(kind)
        return (Warned(kind, text),)

    def end(self, leg: LegName, reason: str = "hangup") -> list[SocketEvent]:
        """A leg that has begun ends. Idempotent."""
        if leg not in self.legs:
            return []
        self.legs.remove(leg)
        return [LegEnded(leg, reason)]

    def say(self, message: str | bytes | Mapping[str, Any]) -> None:
        """Queue a message: JSON, text or binary. A peer that does not read is told goodbye."""
        if self.goodbye is not None:
            return
        data = message if isinstance(message, str | bytes) else orjson.dumps(message).decode()
        self._unread += len(data)
        self._out.append(data)
        if self._unread > MAX_UNREAD:
            self._out.clear()
            self.leave(POLICY, "the client does not read what it is sent")

    def leave(self, code: int, reason: str) -> None:
        """End the connection after what was said so far."""
        self.goodbye = self.goodbye or (code, reason)

    # -- MediaSocket -----------------------------------------------------------------------------

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        raise SocketError(WRONG_KIND, "this protocol has no text messages")

    def texts(self, messages: Sequence[bytes], now: float) -> Sequence[SocketEvent]:
        """One after the other, until it wants to leave."""
        events: list[SocketEvent] = []
        try:
            for message in messages:
                if self.goodbye is None:
                    events += self.text(message, now)
        except SocketError as e:
            e.before = events
            raise
        return events

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        raise SocketError(WRONG_KIND, "this protocol has no binary messages")

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if not self._started and now >= self.next_at:
            self.next_at = NEVER
            raise SocketError(
                POLICY, f"nothing has started within {self.rules.start_deadline:g} seconds"
            )
        return ()

    def eof(self, reason: str) -> Sequence[SocketEvent]:
        return [event for leg in list(self.legs) for event in self.end(leg, reason)]

    def told(self, leg: LegName, event: CallEvent) -> None:
        """Nothing: a protocol that only listens."""

    def heard(self, leg: LegName, heard: Heard) -> None:
        """Nothing."""

    def finalised(self, leg: LegName) -> None:
        """Nothing."""

    def refused(self, leg: LegName, reason: str) -> None:
        self.leave(BUSY, f"the call was not taken: {reason}")

    def taken(self, leg: LegName) -> None:
        """Nothing."""

    def hung_up(self, reason: str) -> None:
        """Nothing."""

    def messages(self) -> Sequence[str | bytes]:
        if not self._out:
            return ()
        out, self._out = self._out, []
        self._unread = 0
        return out
