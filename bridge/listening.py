"""Legs that are listened to for one turn, while a dialplan waits. Pure.

The dialplan has called one subroutine and waits in it for its audio connection to end. So there are
two things to do, in this order: say what was heard (`Listened`, which AMI sets as variables of the
channel), and end the connection once Asterisk has acknowledged that (`part`). The other way round
16 of 100 dialplans read their variables before these were set.

The turn's end ends it at once. When time is up the leg gets no more audio and the engine says what
it still holds back, which takes as long as a few of its steps; that is the result then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.call import Call
from bridge.leg import Leg
from bridge.line import Line
from bridge.types import CallEvent, CallInfo, EndOfTurn, Final, Listen, Listened

DRAIN = 2.0  # s for the engine's last words when time is up
LATE = 3.0  # s that an engine may be behind before nobody has spoken

Part = Callable[[CallInfo, Callable[[], None]], None]
"""Ends a line when call control has acknowledged what it was told, or will not."""


@dataclass(slots=True)
class _Ear:
    """One leg that is listened to. `over`: why it gets no more audio; `until`: for how long."""

    call: Call
    leg: Leg
    line: Line
    listen: Listen
    over: str = ""
    until: float = 0.0
    finals: list[Final] = field(default_factory=list)

    def result(self, status: str) -> Listened:
        words = [word for final in self.finals for word in final.words]
        mean = sum(word.confidence for word in words) / len(words) if words else None
        language = next((f.language for f in reversed(self.finals) if f.language), "")
        return Listened(status, " ".join(final.text for final in self.finals), mean, language)


class Listening:
    """All of them. `close(line, reason)` gives a leg no more audio."""

    def __init__(self, close: Callable[[Line, str], None], part: Part) -> None:
        self._close = close
        self._part = part
        self._ears: dict[tuple[str, str], _Ear] = {}  # by call and leg

    def __len__(self) -> int:
        return len(self._ears)

    def begin(self, call: Call, leg: Leg, line: Line, listen: Listen) -> None:
        """The line has become a leg of the call, and its dialplan waits."""
        call.learn(CallInfo(id="", listening=True))
        self._ears.setdefault((call.id, leg.name), _Ear(call, leg, line, listen))

    def told(self, event: CallEvent) -> None:
        """An event of any call has gone out."""
        ear = self._ears.get((event.call.id, event.leg or ""))
        if ear is None:
            return
        match event.body:
            case Final():
                ear.finals.append(event.body)
            case EndOfTurn() if not ear.over and not ear.line.closed:
                self._tell(ear, "heard")
                self._close(ear.line, "heard")

    def leg_over(self, line: Line) -> None:
        """A line's leg has heard its last."""
        for ear in [ear for ear in self._ears.values() if ear.line is line]:
            self._tell(ear, _status(ear))

    def expire(self, now: float) -> None:
        """Let time pass."""
        for ear in list(self._ears.values()):
            if ear.over:
                if now >= ear.until:
                    self._tell(ear, _status(ear))
            elif not ear.line.closed and self._is_over(ear, now):
                ear.over, ear.until = "timeout", now + DRAIN
                self._close(ear.line, "timeout")

    def _is_over(self, ear: _Ear, now: float) -> bool:
        waited = now - ear.line.opened
        if waited >= ear.listen.seconds:
            return True
        if ear.leg.spoken or waited < ear.listen.begin:
            return False
        # What was said just now is still in the engine, which says how far it has listened
        listened = ear.leg.listened - ear.leg.offset
        return listened >= ear.listen.begin or waited >= ear.listen.begin + LATE

    def _tell(self, ear: _Ear, status: str) -> None:
        """Say it, and then end the connection, where the other side has not."""
        del self._ears[ear.call.id, ear.leg.name]
        try:
            ear.call.told_dialplan(ear.leg.name, ear.result(status))
        finally:  # or the dialplan would wait for its own clock
            if status != "hangup":
                self._part(ear.call.info, ear.line.hang_up)


def _status(ear: _Ear) -> str:
    """Of a leg that ended without the end of a turn."""
    if ear.over:
        return "timeout" if ear.finals else "silence"
    match ear.line.closed:
        case "":
            return "unavailable"  # the engine gave it up
        case "bridge":
            return "ended"
        case _:
            return "hangup"
