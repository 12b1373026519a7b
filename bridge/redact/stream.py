"""Events in, redacted events out, for sinks that want the same redacted. Pure.

Theory of operation. Of every leg, the last words are kept, those that have gone out too: a number
that began there is found when it goes on. After each final they are looked at afresh.
Events wait in one queue per call, in order of `seq`; the head goes out when all of its words are
decided, that is, when none of them may belong to something that goes on.

What waits goes out when the next words show that it was none; a few digits, or a word that may
begin an address, when the turn ends; and everything `hold` seconds after the leg's last final, for
who says no more must not hold up the call. From then on only what follows is masked.

Masked words become one, as long as they were together: how many digits there were is not told.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from bridge.redact.kinds import DIGITS, Kind
from bridge.redact.scan import NEAR, scan
from bridge.types import (
    CallEvent,
    Ended,
    EndOfTurn,
    Final,
    LegName,
    Listened,
    Partial,
    Paused,
    Pressed,
    Refused,
    Resumed,
    RuleFired,
    Started,
    Word,
)

KEPT = 96  # words of a leg that are kept when they have gone out, at most: a card, with fillers
MAX_HELD = 256  # events of a call that wait; beyond it they go out as they are known


@dataclass(slots=True)
class _Leg:
    """One leg's last words. Words are counted from the leg's first."""

    words: list[str] = field(default_factory=list)
    labels: list[Kind | None] = field(default_factory=list)  # of `words`
    base: int = 0  # the count of words[0]
    open: int = 0  # words before it are decided …
    weak: int = 0  # … and before it, while the turn goes on
    closed: int = 0  # words before it can be part of nothing that is said from now on
    turn_over: bool = False
    due: float = 0.0  # when all of them are
    out: int = 0  # words before it have gone out
    said: list[str] = field(default_factory=list)  # finals of this turn, as they went out
    turns: list[str] = field(default_factory=list)  # as they went out, where a dialplan listens

    @property
    def end(self) -> int:
        return self.base + len(self.words)

    @property
    def decided(self) -> int:
        return self.open if self.turn_over else self.weak


@dataclass(slots=True)
class _Call:
    legs: dict[LegName | None, _Leg] = field(default_factory=dict)
    queue: deque[tuple[CallEvent, int]] = field(default_factory=deque)
    """Events, each with the count of words that must be decided before it may go."""

    def leg(self, name: LegName | None) -> _Leg:
        return self.legs.setdefault(name, _Leg())


class RedactStream:
    """`kinds` to redact; `regions` whose telephone numbers are known; `hold` in seconds.

    Partials are not given out, for what they say may be the half of a number; nor are digits that
    were pressed, where digits are redacted: they are how cards and PINs are told to machines, and
    an event without its digit would still tell how many there were. A sink sees in `gap_before`
    that there was something. A rule's firing is told without what it fired on. `counters`: kinds
    (masked), partials, digits, late, overflow.
    """

    def __init__(self, kinds: frozenset[Kind], regions: Sequence[str], hold: float) -> None:
        self.counters: Counter[str] = Counter()
        self._kinds, self._regions, self._hold = kinds, tuple(regions), hold
        self._calls: dict[str, _Call] = {}

    @property
    def held(self) -> int:
        """Events that wait."""
        return sum(len(call.queue) for call in self._calls.values())

    def put(self, event: CallEvent, now: float) -> list[CallEvent]:
        """One event of a call, in order; what may go out now."""
        call = self._calls.setdefault(event.call.id, _Call())
        match event.body:
            case Partial():
                self.counters["partials"] += 1
                return []
            case Pressed() if self._kinds & DIGITS:
                self.counters["digits"] += 1
                return []
            case Final() as final:
                self._hear(call.leg(event.leg), final, now)
                call.queue.append((event, call.leg(event.leg).end))
            case EndOfTurn():
                call.leg(event.leg).turn_over = True
                call.queue.append((event, 0))
            case Ended() | Refused():
                self._all_decided(call)
                call.queue.append((event, 0))
                del self._calls[event.call.id]
            case Listened():  # a dialplan waits, and what is said from now on is no part of it
                leg = call.leg(event.leg)
                leg.open = leg.weak = leg.end
                call.queue.append((event, 0))
            case Started() | Pressed() | RuleFired() | Paused() | Resumed():
                call.queue.append((event, 0))
            case _:
                assert_never(event.body)
        if len(call.queue) > MAX_HELD:
            self.counters["overflow"] += 1
            self._all_decided(call)
        return self._out(call)

    def expire(self, now: float, failed: Callable[[str, Exception], None]) -> list[CallEvent]:
        """Let time pass; what may go out now. A call at which that fails is forgotten."""
        out: list[CallEvent] = []
        for call_id, call in list(self._calls.items()):
            if not call.queue:
                continue
            for leg in call.legs.values():
                if now >= leg.due and leg.decided < leg.end:
                    self.counters["late"] += 1
                    leg.open = leg.weak = leg.end
            try:
                out += self._out(call)
            except Exception as e:
                self.forget(call_id)
                failed(call_id, e)
        return out

    def forget(self, call_id: str) -> None:
        """Drop what is known of a call, and what waits of it."""
        self._calls.pop(call_id, None)

    def _hear(self, leg: _Leg, final: Final, now: float) -> None:
        """A final's words join the leg's, and all are looked at."""
        leg.words += [word.text for word in final.words]
        cut = min(leg.out, max(leg.closed - NEAR, leg.end - KEPT)) - leg.base
        if cut > 0:
            del leg.words[:cut], leg.labels[:cut]
            leg.base += cut
        found = scan(leg.words, self._kinds, self._regions)
        # What is closed keeps its label: what that depends on may have been forgotten.
        leg.labels[leg.closed - leg.base :] = found.labels[leg.closed - leg.base :]
        leg.open, leg.weak = leg.base + found.open, leg.base + found.weak
        leg.closed = leg.base + found.closed
        leg.turn_over = False
        leg.due = now + self._hold

    @staticmethod
    def _all_decided(call: _Call) -> None:
        for leg in call.legs.values():
            leg.open = leg.weak = leg.end

    def _out(self, call: _Call) -> list[CallEvent]:
        out: list[CallEvent] = []
        while call.queue:
            event, end = call.queue[0]
            leg = call.leg(event.leg)
            if end > leg.decided:
                break
            call.queue.popleft()
            out.append(self._redacted(event, leg))
        return out

    def _redacted(self, event: CallEvent, leg: _Leg) -> CallEvent:
        match event.body:
            case Final() as final:
                first = leg.out - leg.base
                leg.out += len(final.words)
                labels = leg.labels[first : first + len(final.words)]
                said = self._masked(final, labels)
                leg.said.append(said.text)
                return event if said is final else replace(event, body=said)
            case EndOfTurn() as turn:
                text, leg.said = " ".join(leg.said), []
                if event.call.listening:
                    leg.turns.append(text)
                return event if text == turn.text else replace(event, body=replace(turn, text=text))
            case Listened() as heard:
                text = " ".join([*leg.turns, *leg.said])
                return replace(event, body=replace(heard, text=text))
            case RuleFired() as fired:  # that it fired is told, and on what is not
                return replace(event, body=replace(fired, matched="", text="", words=()))
        return event

    def _masked(self, final: Final, labels: Sequence[Kind | None]) -> Final:
        """The final with each row of words of one kind as one word: "[card]", while they lasted."""
        if not any(labels):
            return final
        words: list[Word] = []
        before: Kind | None = None
        for word, kind in zip(final.words, labels, strict=True):
            if kind is None:
                words.append(word)
            elif kind == before:
                words[-1] = replace(
                    words[-1],
                    end=max(words[-1].end, word.end),
                    confidence=min(words[-1].confidence, word.confidence),
                )
            else:
                self.counters[kind] += 1
                words.append(replace(word, text=f"[{kind}]"))
            before = kind
        return replace(final, text=" ".join(word.text for word in words), words=tuple(words))
