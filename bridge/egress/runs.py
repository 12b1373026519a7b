"""Several events in one go, for sinks that take them so. Pure.

A *part* is what one call has in a delivery: its head, or a run of events from it on. A call's run
is made once and tried again as it was: it has a name of its own (`webhook-id`), by which a receiver
knows that it has had it. In it are no partials: a newer one may replace them meanwhile.

Parts of several calls share a delivery when none of them has failed before. What a sink did not
take so is tried again call by call, so that no call waits for another's trouble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, runtime_checkable

from bridge.egress.pending import Backlog, Row
from bridge.types import CallEvent

MOST = 64  # events in a delivery


@runtime_checkable
class RunSink(Protocol):
    """A sink that takes runs, of at most `run_bytes` bytes."""

    run_bytes: int

    def encode(self, event: CallEvent) -> bytes:
        """An event as it is in a run."""

    async def deliver_run(self, events: Sequence[CallEvent], bodies: Sequence[bytes]) -> None:
        """Hand over all of them, one at least, in order. Raises `DeliveryError`: none was taken."""


@dataclass(slots=True, eq=False)
class Part:
    """One call's part of a delivery: rows, and their events as this sink is told of them."""

    backlog: Backlog
    rows: list[Row]
    events: list[CallEvent]
    bodies: list[bytes] | None = None  # encoded, where they have been

    def bodies_for(self, sink: RunSink) -> list[bytes]:
        """Made once. Raises whatever the sink's `encode` does."""
        if self.bodies is None:
            self.bodies = [sink.encode(event) for event in self.events]
        return self.bodies

    @property
    def fresh(self) -> bool:
        """May it share? Neither has it failed, nor is it of a run that is taken apart."""
        return not self.rows[0].attempts and not self.backlog.alone


class Shared:
    """Parts that go together. `sink` None: it takes no runs."""

    def __init__(self, sink: RunSink | None) -> None:
        self.parts: list[Part] = []
        self._sink = sink
        self._size = self._events = 0

    def takes(self, part: Part) -> bool:
        """Add the part, if there is room for it, and for the first there is.

        False also for what cannot be encoded: it goes alone, and costs nobody else anything.
        """
        many = self._events + len(part.events)
        if self._sink is None or (self.parts and many > MOST):
            return False
        try:
            bodies = part.bodies_for(self._sink)
        except Exception:  # the sink says so when it is to deliver it
            return False
        size = self._size + sum(map(len, bodies)) + len(bodies)
        if self.parts and size > self._sink.run_bytes:
            return False
        self.parts.append(part)
        self._size, self._events = size, many
        return True


def part_of(backlog: Backlog, sink: RunSink | None) -> Part:
    """What goes now: the head, alone or with what follows it. Not for a call without a head."""
    rows = list(islice(backlog.rows.values(), MOST if sink is not None else 1))
    if sink is None or backlog.alone > 0:
        return _part(backlog, rows[:1])
    made = backlog.run
    if made and list(islice(backlog.rows, len(made))) == made:
        return _part(backlog, rows[: len(made)])
    n = 0
    while n < len(rows) and rows[n].rank > 0 and _may_go(backlog, rows[n]):
        n += 1
    part = _fitting(_part(backlog, rows[: max(1, n)]), sink)
    backlog.run = [row.event.seq for row in part.rows] if len(part.rows) > 1 else []
    return part


def _part(backlog: Backlog, rows: list[Row]) -> Part:
    return Part(backlog, rows, told(backlog, rows))


def _fitting(part: Part, sink: RunSink) -> Part:
    """As many of them as go together, 1 at least; what cannot be encoded goes alone."""
    bodies: list[bytes] = []
    size = 0
    for event in part.events:
        try:
            body = sink.encode(event)
        except Exception:
            break
        size += len(body) + 1
        if bodies and size > sink.run_bytes:
            break
        bodies.append(body)
    n = max(1, len(bodies))
    return Part(part.backlog, part.rows[:n], part.events[:n], bodies or None)


def _may_go(backlog: Backlog, row: Row) -> bool:
    return row.stored and (not backlog.disk or row.event.seq <= backlog.after)


def told(backlog: Backlog, rows: Sequence[Row]) -> list[CallEvent]:
    """The rows' events, each with the number of events before it that the sink is not given."""
    events, last = [], backlog.last
    for row in rows:
        gap = max(0, row.event.seq - last - 1)
        same = gap == row.event.gap_before
        events.append(row.event if same else replace(row.event, gap_before=gap))
        last = row.event.seq
    return events
