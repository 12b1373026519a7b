"""The rows that one sink has still to be given, in memory.

`Outbox` keeps no row of its own, it only asks here. A row is one event; a backlog is one call's
rows in order of `seq`, with the call's place in the agenda, which says whose head is due. A backlog
dies with its call. Where there is a store, more of a call's rows may be on the disk (`disk.py`).

Which row goes first when there is no room (`victim`): the lowest rank, and in it the oldest.
  0  partials                       worthless as soon as there is a newer one
  1  call.started, dtmf             the call goes on without them
  2  transcript.final, turn.ended   what was said,
     rule.fired                     and what was done about it
  3  call.ended, call.refused       without them, call control waits for ever
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from bridge.types import (
    CallEvent,
    Ended,
    EndOfTurn,
    EventBody,
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
)

RANKS: dict[type[EventBody], int] = {
    Partial: 0,
    Started: 1,
    Pressed: 1,
    Paused: 2,
    Resumed: 2,
    Final: 2,
    EndOfTurn: 2,
    Listened: 2,
    RuleFired: 2,
    Ended: 3,
    Refused: 3,
}


@dataclass(slots=True, eq=False)
class Row:
    """One event on its way. `since` is when it came, in seconds of the outbox's clock."""

    event: CallEvent
    since: float
    attempts: int = 0  # that failed
    flying: bool = False  # the sink has it just now; it can neither be superseded nor dropped
    stale: bool = False  # something newer came while it was flying: not worth a second attempt
    stored: bool = True  # on the disk, or with no need to be: the sink may have it
    loose: bool = False  # should be on the disk, and is not: lost with the process

    @property
    def rank(self) -> int:
        return RANKS[type(self.event.body)]


@dataclass(slots=True, eq=False)
class Backlog:
    """One call's rows, oldest first, and when the first of them is due."""

    call: str
    rows: OrderedDict[int, Row] = field(default_factory=OrderedDict)  # by seq
    partials: dict[LegName | None, Row] = field(default_factory=dict)  # the newest of each leg
    last: int = -1  # seq of the event that the sink took last
    over: bool = False  # the call's last event has come
    flying: bool = False  # the head is with the sink
    due: float = 0.0  # when the head may go, seconds of the outbox's clock
    wish: bool = False  # `due` is the sink's own wish (Retry-After): nothing makes it sooner
    ticket: int = 0  # names the backlog's one valid entry in the agenda; 0: it has none
    disk: int = 0  # rows that are on the disk only …
    after: int = -1  # … all of them behind this seq
    loading: bool = False  # some of them are being loaded, and since that was asked …
    added: int = 0  # … so many more have been written
    run: list[int] = field(default_factory=list)  # seqs that were tried together (`runs.py`)
    alone: int = 0  # so many rows go one by one, because together they were not taken

    @property
    def head(self) -> Row | None:
        return next(iter(self.rows.values()), None)


class Pending:
    """All backlogs of one sink, and their rows by rank and age."""

    def __init__(self) -> None:
        self._backlogs: dict[str, Backlog] = {}
        # OrderedDict, because a dict from whose front one takes gets slow to take from
        self._ranks = tuple(OrderedDict[Row, Backlog]() for _ in range(4))

    def __len__(self) -> int:
        return sum(map(len, self._ranks))

    @property
    def calls(self) -> int:
        return len(self._backlogs)

    def find(self, call: str) -> Backlog | None:
        return self._backlogs.get(call)

    def backlog(self, call: str) -> Backlog:
        """The call's backlog, made if there is none."""
        found = self._backlogs.get(call)
        if found is None:
            found = self._backlogs[call] = Backlog(call)
        return found

    def backlogs(self) -> list[Backlog]:
        return list(self._backlogs.values())

    def add(self, backlog: Backlog, row: Row) -> None:
        behind = not backlog.rows or row.event.seq > next(reversed(backlog.rows))
        backlog.rows[row.event.seq] = row
        if not behind:  # a dead letter that an operator wants delivered after all
            backlog.rows = OrderedDict(sorted(backlog.rows.items()))
        self._ranks[row.rank][row] = backlog
        if isinstance(row.event.body, Partial):
            backlog.partials[row.event.leg] = row

    def remove(self, backlog: Backlog, row: Row) -> None:
        """Take the row out; the call stays until `tidy`."""
        del backlog.rows[row.event.seq]
        del self._ranks[row.rank][row]
        if backlog.partials.get(row.event.leg) is row:
            del backlog.partials[row.event.leg]

    def tidy(self, backlog: Backlog) -> bool:
        """Forget a call of which nothing is left and nothing will come; True when that was done."""
        if not backlog.over or backlog.rows or backlog.disk or backlog.loading:
            return False
        return self._backlogs.pop(backlog.call, None) is not None

    def replaced_by(self, backlog: Backlog, event: CallEvent) -> Row | None:
        """The partial that `event` makes worthless: its leg's, for a final only of its turn."""
        row = backlog.partials.get(event.leg)
        if row is None or not isinstance(row.event.body, Partial):
            return None
        match event.body:
            case Partial():
                return row
            case Final(turn=turn) if turn == row.event.body.turn:
                return row
        return None

    def victim(self, rank: int, *, disk: bool = False) -> tuple[Backlog, Row] | None:
        """The row to drop for one of `rank`: none above it, none that is flying.

        `disk`: rows are on a disk, and to drop one that is would not help.
        """
        for rows in self._ranks[: rank + 1]:
            for row, backlog in rows.items():
                if not row.flying and (row.loose or not row.rank or not disk):
                    return backlog, row
        return None

    def partials_due(self, now: float, ttl: float) -> list[tuple[Backlog, Row]]:
        """Waiting partials that are `ttl` seconds old at `now`, oldest first."""
        old = []
        for row, backlog in self._ranks[0].items():
            if now < row.since + ttl:
                break
            if not row.flying:
                old.append((backlog, row))
        return old

    def waiting(self) -> list[tuple[Backlog, Row]]:
        """All rows that are not flying, by rank and age."""
        rows = (item for rank in self._ranks for item in rank.items())
        return [(backlog, row) for row, backlog in rows if not row.flying]

    @property
    def oldest(self) -> float | None:
        """When the oldest row came, or None."""
        return min((next(iter(rank)).since for rank in self._ranks if rank), default=None)

    def clear(self, *, kept: bool = False) -> int:
        """Drop everything. Returns how many rows there were; with `kept`, that are on no disk."""
        count = sum(not kept or not row.rank or row.loose for rank in self._ranks for row in rank)
        self._backlogs.clear()
        for rank in self._ranks:
            rank.clear()
        return count


class Agenda:
    """Calls by the time that their head is due; of those due, the one that waited longest first.

    An entry is never taken out of the heap's middle: a backlog's ticket says which entry counts.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Backlog]] = []  # (due, ticket, backlog)
        self._tickets = itertools.count(1)

    @property
    def due(self) -> float | None:
        """When the next call is due, or None. May be that of an entry that counts no more."""
        return self._heap[0][0] if self._heap else None

    def add(self, backlog: Backlog, due: float) -> None:
        """Enter the call, in the place of the entry that it may have."""
        backlog.due, backlog.ticket = due, next(self._tickets)
        heapq.heappush(self._heap, (due, backlog.ticket, backlog))

    def take(self, now: float) -> Backlog | None:
        """The call that has been due longest, if any, and out with its entry."""
        while self._heap and self._heap[0][0] <= now:
            _, ticket, backlog = heapq.heappop(self._heap)
            if ticket == backlog.ticket:
                backlog.ticket = 0
                if backlog.rows or backlog.disk:
                    return backlog
        return None

    def hurry(self, now: float) -> None:
        """Everybody is due at once, but for those whose wait is the sink's own wish."""
        backlogs = [backlog for _, ticket, backlog in self._heap if ticket == backlog.ticket]
        for backlog in backlogs:
            backlog.due = backlog.due if backlog.wish else min(backlog.due, now)
        self._heap = [(backlog.due, backlog.ticket, backlog) for backlog in backlogs]
        heapq.heapify(self._heap)
