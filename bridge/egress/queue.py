"""The rows of one sink and whose turn it is: what an `Outbox` takes from; it has no task.

Every call with rows has one entry in the agenda, by the time its head is due. What there is no room
for is dropped here, in the order of `pending.py`; what is on the disk is loaded when its call's
turn has come. Nothing here waits: `wake()` is called when there may be something to take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from bridge.egress.disk import Disk
from bridge.egress.pending import Agenda, Backlog, Pending, Row
from bridge.egress.runs import Part, RunSink, part_of
from bridge.egress.shelf import Shelf
from bridge.types import CallEvent, Ended, Partial, Refused

PARTIAL_TTL = 10.0  # seconds; what somebody was saying then helps nobody now


class Queue:
    """All calls' rows for one sink, in memory and, with a `shelf`, on the disk.

    `limit`: rows in memory. `loads`, `longest`: see `Disk`. `clock` in seconds.
    """

    def __init__(
        self,
        counters: Counter[str],
        *,
        limit: int,
        loads: int,
        clock: Callable[[], float],
        wake: Callable[[], None],
        shelf: Shelf | None,
        longest: Callable[[int], float],
    ) -> None:
        self._counters, self._limit, self._clock, self._wake = counters, limit, clock, wake
        self._pending = Pending()
        self._agenda = Agenda()
        self._disk: Disk | None = None
        if shelf is not None:
            self._disk = Disk(
                shelf, self._pending, counters, limit=limit, loads=loads, clock=clock,
                longest=longest, enter=self.enter, answered=wake,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._pending) + (self._disk.rows if self._disk is not None else 0)

    @property
    def in_memory(self) -> int:
        return len(self._pending)

    @property
    def oldest(self) -> float:
        """Age of the oldest row in memory, seconds; 0 when there is none."""
        since = self._pending.oldest
        return 0.0 if since is None else max(0.0, self._clock() - since)

    @property
    def calls(self) -> int:
        """Calls that are remembered: those with rows, and those not over."""
        return self._pending.calls

    @property
    def due(self) -> float | None:
        """When the next call is due, or None. May be too soon, never too late."""
        return self._agenda.due

    @property
    def loading(self) -> bool:
        """So much is being loaded that there is nothing to take before one of it has come."""
        return self._disk is not None and self._disk.busy

    # -- rows come in ------------------------------------------------------------------------

    def put(self, event: CallEvent, *, wanted: bool) -> None:
        """Queue an event, unless it is already, or see only that its call is over."""
        backlog = (self._pending.backlog if wanted else self._pending.find)(event.call.id)
        if backlog is None:
            return
        if wanted and event.seq not in backlog.rows:
            self._add(backlog, event)
        if isinstance(event.body, Ended | Refused):  # only now: it is a row of a call that is up
            backlog.over = True
        self._tidy(backlog)

    def _add(self, backlog: Backlog, event: CallEvent) -> None:
        now = self._clock()
        self.expire(now)
        row = Row(event, now)
        old = self._pending.replaced_by(backlog, event)
        if self._disk is None or self._disk.keep(backlog, row):
            self._pending.add(backlog, row)
        if old is not None and old.flying:
            old.stale = True
        elif old is not None:
            self.drop(backlog, old, "superseded")
        if (self._disk is None or row.loose) and len(self._pending) > self._limit:
            self._shed(backlog, row)
        self.enter(backlog, now)

    def _shed(self, newcomer: Backlog, row: Row) -> None:
        """One row has to go: the order is `pending`'s, in which the newcomer takes part."""
        disk = self._disk is not None
        backlog, victim = self._pending.victim(row.rank, disk=disk) or (newcomer, row)
        partial = isinstance(victim.event.body, Partial)
        was_head = backlog.head is victim
        self.drop(backlog, victim, "dropped_partial" if partial else "dropped_full")
        now = self._clock()
        if was_head and backlog.ticket and backlog.due > now and not backlog.wish:
            self._arm(backlog, now)  # its back-off went with it

    def expire(self, now: float) -> None:
        """Drop the partials that nobody needs any more."""
        for backlog, row in self._pending.partials_due(now, PARTIAL_TTL):
            self.drop(backlog, row, "expired")

    # -- whose turn it is --------------------------------------------------------------------

    def enter(self, backlog: Backlog, due: float | None = None) -> None:
        """The call waits its turn from `due` on, unless it does already, or nothing is ready.

        Without `due` it waits behind those who wait; but where memory is full whoever has rows
        there comes first, so that what is over the limit is of a few calls, however many wait on
        the disk.
        """
        if backlog.ticket or backlog.flying:
            return
        ready = backlog.rows if self._disk is None else self._disk.ready(backlog)
        if ready:
            self._arm(backlog, self._turn(backlog) if due is None else due)

    def enter_all(self, due: float) -> None:
        """As `enter`, every call."""
        for backlog in self._pending.backlogs():
            self.enter(backlog, due)

    def _turn(self, backlog: Backlog) -> float:
        now = self._clock()
        full = self._disk is not None and len(self._pending) >= self._limit
        return 0.0 if full and backlog.rows and backlog.due <= now else max(backlog.due, now)

    def _arm(self, backlog: Backlog, due: float) -> None:
        self._agenda.add(backlog, due)
        self._wake()

    def hurry(self) -> None:
        """All calls are due now, but for those whose wait the sink itself asked for."""
        self._agenda.hurry(self._clock())
        self._wake()

    def take(self, now: float, runs: RunSink | None) -> Part | None:
        """What the call has that has been due longest; what is not ready is begun to be loaded."""
        while not self.loading:
            backlog = self._agenda.take(now)
            if backlog is None:
                return None
            if self._disk is not None and self._disk.wanting(backlog):
                self._disk.load(backlog)
                continue
            row = backlog.head
            if row is not None and row.stored:  # else `enter` is told when it may
                return part_of(backlog, runs)
        return None

    # -- rows go -----------------------------------------------------------------------------

    def taken(self, backlog: Backlog, row: Row) -> None:
        """The sink has it."""
        backlog.last = max(backlog.last, row.event.seq)
        backlog.alone = max(0, backlog.alone - 1)
        if self._disk is not None:
            self._disk.taken(backlog, row)
        self.drop(backlog, row, "delivered")

    def give_up(self, backlog: Backlog, row: Row, error: str) -> None:
        """The sink will never have it: a dead letter where there is a disk."""
        if self._disk is not None:
            self._disk.dead(backlog, row, error)
        backlog.alone = max(0, backlog.alone - 1)
        self.drop(backlog, row, "failed_permanent")

    def put_off(self, backlog: Backlog, row: Row, due: float, *, wish: bool) -> None:
        """The head is due again at `due`. `wish`: the sink said so, and nothing makes it sooner."""
        backlog.wish, backlog.due = wish, due
        if self._disk is not None:
            self._disk.again(backlog, row, due - self._clock())

    def drop(self, backlog: Backlog, row: Row, counter: str) -> None:
        self._pending.remove(backlog, row)
        self._counters[counter] += 1
        self._tidy(backlog)

    def _tidy(self, backlog: Backlog) -> None:
        if self._pending.tidy(backlog) and self._disk is not None:
            self._disk.over(backlog)

    def bury(self, error: str) -> None:
        """The sink wants nothing more. What it has just now goes when it has answered."""
        if self._disk is not None:
            self._counters["disabled"] += self._disk.bury(error)
        for backlog, row in self._pending.waiting():
            self.drop(backlog, row, "disabled")
        for backlog in self._pending.backlogs():
            backlog.over = True
            self._tidy(backlog)
        self._agenda = Agenda()

    def clear(self) -> int:
        """Forget everything. Returns how many rows are lost: those that are on no disk."""
        return self._pending.clear(kept=self._disk is not None)
