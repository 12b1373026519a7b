"""Several events of one call in one go, for sinks that take them so. Pure.

A run is made once and tried again as it was: it has a name of its own (`webhook-id`), by which a
receiver knows that it has had it. Partials go alone: a newer one may replace them meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol, runtime_checkable

from bridge.egress.pending import Backlog, Row
from bridge.types import CallEvent

MOST = 64  # events in a run


@runtime_checkable
class RunSink(Protocol):
    """A sink that takes runs."""

    def fits(self, events: Sequence[CallEvent]) -> int:
        """How many of them go together, 1 at least."""

    async def deliver_run(self, events: Sequence[CallEvent]) -> None:
        """Hand over all of them, in order. Raises `DeliveryError`: none was taken."""


def run_of(backlog: Backlog, sink: RunSink | None) -> list[Row]:
    """What goes now: the head, alone or with what follows it. Not for a call without a head."""
    rows = list(islice(backlog.rows.values(), MOST if sink is not None else 1))
    if sink is None or backlog.alone > 0:
        return rows[:1]
    made = backlog.run
    if made and list(islice(backlog.rows, len(made))) == made:
        return rows[: len(made)]
    n = 0
    while n < len(rows) and rows[n].rank > 0 and _may_go(backlog, rows[n]):
        n += 1
    if n > 1:
        n = max(1, min(n, sink.fits(told(backlog, rows[:n]))))
    backlog.run = [row.event.seq for row in rows[:n]] if n > 1 else []
    return rows[: max(1, n)]


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
