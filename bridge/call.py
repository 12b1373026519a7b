"""One call: its legs, the numbers of its events, its end. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields, replace

from bridge.audio.resample import Bank
from bridge.interfaces import Recogniser
from bridge.leg import Leg
from bridge.turns import TurnRules
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EventBody,
    Final,
    LeftCall,
    LegCounts,
    LegName,
    Listened,
    Refused,
    RuleFired,
    Started,
)

MAX_FINALS = 2000  # kept per call for GET /calls/{id}


class Call:
    """One or two legs that talk with each other.

    `publish` gets every event, numbered from 0 without gaps: `Started` first, `Ended` last.
    `wall()` is Unix time. `over` is called after `Ended`. `left`: where the call was when its
    process died; its numbers, its clock and its turns go on, and it is not `Started` again.
    """

    def __init__(
        self,
        info: CallInfo,
        *,
        publish: Callable[[CallEvent], None],
        over: Callable[[Call], None],
        wall: Callable[[], float],
        now: float,
        pause_digits: str = "",
        left: LeftCall | None = None,
    ) -> None:
        self.info = info
        self.listened: Listened | None = None
        self._paused_by = ""  # all legs, also those that come
        self._pause_digits = pause_digits
        self.began_at = wall() if left is None else left.began
        self.began = now if left is None else now - max(0.0, wall() - left.began)
        self.ended: Ended | None = None
        self.legs: dict[LegName, Leg] = {}
        self.finals: deque[tuple[LegName, Final]] = deque(maxlen=MAX_FINALS)
        self._publish = publish
        self._over = over
        self._wall = wall
        self._seq = 0 if left is None else left.next
        self._turns = {} if left is None else left.turns
        self._started = left is not None
        self._holds = 0

    @property
    def id(self) -> str:
        """The call's id, ours to call control."""
        return self.info.id

    def add_leg(
        self,
        name: LegName,
        recogniser: Recogniser,
        rules: TurnRules,
        *,
        now: float,
        latency: Callable[[str, float], None] = lambda stage, end: None,
        over: Callable[[], None] = lambda: None,
        bank: Bank | None = None,
    ) -> Leg:
        """A leg of this call, its clock set to the call's. Raises `Busy`, ValueError if taken.

        `over` is called when the leg has heard its last, and before the call ends of it.
        """
        if self.ended is not None or name in self.legs:
            raise ValueError(f"the call has had its {name} leg")

        def leg_over(_: Leg) -> None:
            over()
            self._leg_over()

        leg = Leg(
            name,
            recogniser,
            rules,
            tell=self._told,
            over=leg_over,
            offset=now - self.began,
            latency=latency,
            bank=bank,
            pause_digits=self._pause_digits,
            toggle=self._toggle,
            turn=self._turns.get(name, -1) + 1,
        )
        if not self._started:
            self._started = True
            self._number(None, Started())
        self.legs[name] = leg
        if self._paused_by:
            leg.pause(self._paused_by)
        return leg

    def pause(self, name: LegName | None, by: str) -> None:
        """Do not hear this leg, or the call (None: all legs, also one to come), for a while."""
        if name is None:
            self._paused_by = by
        for leg in self._named(name):
            leg.pause(by)

    def resume(self, name: LegName | None, by: str) -> None:
        """Hear this leg, or all of them, again."""
        if name is None:
            self._paused_by = ""
        for leg in self._named(name):
            leg.resume(by)

    def _named(self, name: LegName | None) -> list[Leg]:
        return [leg for leg in self.legs.values() if name in (None, leg.name)]

    def _toggle(self) -> None:
        """Somebody has pressed the digits for it: the whole call, whoever it was."""
        if self._paused_by or any(leg.paused for leg in self.legs.values()):
            self.resume(None, "dtmf")
        else:
            self.pause(None, "dtmf")

    def told_dialplan(self, leg: LegName, result: Listened) -> None:
        """What came of listening, for the dialplan that waits for it."""
        if self.ended is None:
            self.listened = result
            self._number(leg, result)

    def learn(self, info: CallInfo) -> None:
        """Call control told us more. What was known is not overwritten by what is empty."""
        self.info = merged(self.info, info)

    def end(self) -> None:
        """The last leg has been given up without its lease being done."""
        for leg in self.legs.values():
            leg.abort()
        self._end()

    def hold(self) -> None:
        """Something of this call is being done, and will be told: it does not end before that."""
        self._holds += 1

    def release(self) -> None:
        """It has been told."""
        self._holds -= 1
        self._leg_over()

    def fired(self, leg: LegName | None, body: RuleFired) -> None:
        """What came of a rule, as an event of this call."""
        if self.ended is None:
            self._number(leg, body)

    def _told(self, leg: Leg, body: EventBody) -> None:
        if self.ended is not None:
            return  # nothing comes after `Ended`
        if isinstance(body, Final):
            self.finals.append((leg.name, body))
        self._number(leg.name, body)

    def _leg_over(self) -> None:
        if self._holds:
            return
        if all(other.ended and not other.draining for other in self.legs.values()):
            self._end()

    def _end(self) -> None:
        if self.ended is not None:
            return
        counts: dict[str, LegCounts] = {name: leg.counts() for name, leg in self.legs.items()}
        seconds = max(
            (leg.offset + counts[name].seconds for name, leg in self.legs.items()), default=0.0
        )
        reason = next((leg.reason for leg in self.legs.values() if leg.reason), "engine")
        self.ended = Ended(reason, seconds, counts)
        self._number(None, self.ended)
        self._over(self)

    def _number(self, leg: LegName | None, body: EventBody) -> None:
        event = CallEvent(self.info, self._seq, self._wall(), leg, body)
        self._seq += 1
        self._publish(event)

    def text(self) -> str:
        """The conversation so far (`conversation`)."""
        return conversation(self.finals)


def conversation(finals: Iterable[tuple[LegName, Final]]) -> str:
    """A line per final, in order of time."""
    ordered = sorted(finals, key=lambda pair: pair[1].words[0].start)
    return "".join(f"{leg}: {final.text}\n" for leg, final in ordered)


def merged(old: CallInfo, new: CallInfo) -> CallInfo:
    """`old` with what `new` knows besides; the id stays."""
    changes = {
        f.name: value
        for f in fields(new)
        if f.name not in ("id", "ingress", "extra") and (value := getattr(new, f.name))
    }
    return replace(old, **changes, extra={**old.extra, **new.extra})


def lost(left: LeftCall, at: float) -> CallEvent:
    """The last event of a call that did not come back."""
    seconds = max(0.0, left.at - left.began)
    return CallEvent(left.info, left.next, at, None, Ended("lost", seconds, {}))


def refusal(info: CallInfo, reason: str, at: float) -> CallEvent:
    """The only event of a call that was not taken."""
    return CallEvent(info, 0, at, None, Refused(reason))
