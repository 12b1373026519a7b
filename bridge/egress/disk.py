"""The part of a sink's queue that is on the disk: what an outbox does when it has a `Shelf`.

Every event but a partial is kept before it is given to the sink; a partial waits until its number
is. Of each call the first rows are in memory as well, `PAGE` at the most and `limit` of all calls
together; the others are on the disk only, `Backlog.disk` of them, all behind `Backlog.after`. They
are loaded, a page at a time, when it is the call's turn. So an outage of hours costs disk, not
memory, and a restart begins with a line per call.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from bridge.egress.pending import Backlog, Pending, Row
from bridge.egress.shelf import Shelf
from bridge.egress.store_types import LeftBacklog, Loaded, Shed, StoredRow
from bridge.types import CallEvent, Ended, Refused

PAGE = 64  # rows of one call in memory
AHEAD = 16  # rows left of a page when the next one is asked for
FEW = 16  # rows of a call that is loaded while there is no room in memory
LATER = 1.0  # s until a page is asked for again

log = logging.getLogger("callscribe.outbox")


class Disk:
    """`enter(backlog)` is told when a call's head may be given to the sink, or be loaded.

    `limit`: rows in memory, beyond which calls are loaded by `FEW`; `loads`: calls that are loaded
    at once; `answered()` is told that one has been. `longest(attempts)`: seconds that the schedule
    has a row wait at most.
    """

    def __init__(
        self,
        shelf: Shelf,
        pending: Pending,
        counters: Counter[str],
        *,
        limit: int,
        loads: int,
        clock: Callable[[], float],
        longest: Callable[[int], float],
        enter: Callable[[Backlog], None],
        answered: Callable[[], None],
    ) -> None:
        self.rows = 0  # that are on the disk only
        self.loading = 0  # calls
        self._buried = False
        self._shelf, self._pending, self._counters = shelf, pending, counters
        self._limit, self._loads = limit, loads
        self._clock, self._longest, self._enter = clock, longest, enter
        self._answered = answered
        shelf.listener = self

    # -- what the outbox asks --------------------------------------------------------------------

    def keep(self, backlog: Backlog, row: Row) -> bool:
        """Keep a new row. True: it belongs in memory as well."""
        full = len(self._pending) >= self._limit
        if row.rank == 0:
            if backlog.disk or full or self._shelf.crowded:
                self._counters["dropped_partial"] += 1
                return False
            row.stored = not self._shelf.wait(row.event)
            return True
        taken = self._shelf.keep(row.event, row.rank, ends=ends(row.event))
        row.stored = taken != "waits"
        if taken == "no":
            row.loose = True
            return True
        if backlog.disk or backlog.loading or full or len(backlog.rows) >= PAGE:
            self._count(backlog, backlog.disk + 1)
            backlog.added += 1
            return False
        backlog.after = max(backlog.after, row.event.seq)
        return True

    def ready(self, backlog: Backlog) -> bool:
        """May the head go, or must it be loaded?"""
        return self.wanting(backlog) or self.deliverable(backlog)

    def deliverable(self, backlog: Backlog) -> bool:
        head = backlog.head
        if head is None or not head.stored:
            return False
        return not backlog.disk or head.event.seq <= backlog.after

    def wanting(self, backlog: Backlog) -> bool:
        """Must rows be loaded before anything of this call can go?"""
        if not backlog.disk or backlog.loading:
            return False
        head = backlog.head
        return head is None or head.event.seq > backlog.after

    @property
    def busy(self) -> bool:
        """So many are being loaded that the others should wait for them."""
        return self.loading >= self._loads and not self._shelf.failing

    def load(self, backlog: Backlog) -> None:
        """Ask for the call's next page, or, where that cannot be asked now, later."""
        if not self._ask(backlog):
            backlog.due = max(backlog.due, self._clock() + LATER)
            self._enter(backlog)

    def _ask(self, backlog: Backlog) -> bool:
        page = min(PAGE, max(FEW, self._limit - len(self._pending)))
        if self.loading >= self._loads:
            return False
        if not self._shelf.load(backlog.call, backlog.after, page):
            return False
        backlog.loading, backlog.added = True, 0
        self.loading += 1
        return True

    def taken(self, backlog: Backlog, row: Row) -> None:
        """The sink has it."""
        self._shelf.done(backlog.call, row.event.seq, kept=row.rank > 0)
        few = len(backlog.rows) <= AHEAD and len(self._pending) < self._limit
        if backlog.disk and few and not backlog.loading:
            self._ask(backlog)

    def again(self, backlog: Backlog, row: Row, wait: float) -> None:
        if row.rank > 0:
            self._shelf.again(backlog.call, row.event.seq, row.attempts, wait)

    def dead(self, backlog: Backlog, row: Row, error: str) -> None:
        if row.rank > 0:
            self._shelf.dead(backlog.call, row.event.seq, error)

    def over(self, backlog: Backlog) -> None:
        """Nothing of the call is left, and nothing will come."""
        self._shelf.over(backlog.call)

    def bury(self, error: str) -> int:
        """The sink wants nothing more. How many rows on the disk that concerns."""
        self._shelf.bury(error)
        self._buried = True
        left = self.rows
        for backlog in self._pending.backlogs():
            self._count(backlog, 0)
        return left

    def _count(self, backlog: Backlog, disk: int) -> None:
        self.rows += disk - backlog.disk
        backlog.disk = disk

    # -- what the store answers --------------------------------------------------------------------

    def safe(self, call: str, seq: int) -> None:
        backlog = self._pending.find(call)
        row = backlog.rows.get(seq) if backlog is not None else None
        if backlog is not None and row is not None:
            row.stored = True
            if backlog.head is row:
                self._enter(backlog)

    def loaded(self, told: Loaded) -> None:
        backlog = self._pending.find(told.call)
        if backlog is None or not backlog.loading:  # asked of a file that was set aside
            return
        backlog.loading = False
        self.loading -= 1
        self._answered()
        if told.more and not told.rows:  # the store has failed at it
            backlog.due = max(backlog.due, self._clock() + LATER)
        for stored in () if self._buried else told.rows:
            self._add(backlog, stored)
        left = 0 if self._buried else backlog.added
        if told.more and not self._buried:
            left = max(1, backlog.disk - len(told.rows), backlog.added)
        self._count(backlog, left)
        self._tidy(backlog)
        self._enter(backlog)

    def _add(self, backlog: Backlog, stored: StoredRow) -> None:
        event = stored.event
        backlog.after = max(backlog.after, event.seq)
        if event.seq in backlog.rows:
            return
        age = max(0.0, self._shelf.wall() - stored.at)  # below 0: the clock was set back
        self._pending.add(backlog, Row(event, self._clock() - age, stored.attempts))

    def adopt(self, left: LeftBacklog) -> None:
        if self._buried or (left.over and not left.rows):
            return
        backlog = self._pending.backlog(left.call)
        backlog.last = max(backlog.last, left.last)
        backlog.over = backlog.over or left.over
        backlog.after = -1  # what is in memory, of a call that we have, is found again
        self._count(backlog, backlog.disk + left.rows)
        if left.attempts:  # not longer than the schedule says, should the clock have been set back
            wait = min(max(0.0, left.due - self._shelf.wall()), self._longest(left.attempts))
            backlog.due = self._clock() + wait
        self._enter(backlog)

    def shed(self, told: Shed) -> None:
        self._counters["dropped_full"] += len(told.seqs)
        backlog = self._pending.find(told.call)
        if backlog is None:
            return
        for seq in told.seqs:
            row = backlog.rows.get(seq)
            if row is None:
                self._count(backlog, max(0, backlog.disk - 1))
            elif not row.flying:
                self._pending.remove(backlog, row)
        self._tidy(backlog)
        self._enter(backlog)

    def renewed(self) -> None:
        lost = self.rows
        if lost:
            self._counters["lost_disk"] += lost
            log.error("outbox: %d events were in the broken file only", lost)
        for backlog in self._pending.backlogs():
            self._count(backlog, 0)
            if backlog.loading:
                backlog.loading = False
                self.loading -= 1
            for row in backlog.rows.values():
                if row.rank > 0:
                    self._shelf.keep(row.event, row.rank, ends=ends(row.event))
            self._tidy(backlog)
            self._enter(backlog)

    def _tidy(self, backlog: Backlog) -> None:
        if self._pending.tidy(backlog):
            self.over(backlog)


def ends(event: CallEvent) -> bool:
    """Is it its call's last?"""
    return isinstance(event.body, Ended | Refused)
