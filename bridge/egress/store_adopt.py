"""Taking over what processes that are gone have left. Blocking; inside a transaction.

A backlog of nobody's (owner 0) is one that an operator wants delivered after all.
"""

from __future__ import annotations

import logging
import sqlite3

from bridge.egress.packed import unpack_info
from bridge.egress.store_keys import name
from bridge.egress.store_owner import Owner
from bridge.egress.store_types import Adopted, LeftBacklog
from bridge.types import LeftCall, LegName

IDS = 10_000  # of calls that are over, at the most

_BACKLOGS = """
SELECT b.sink, b.call, b.last, b.over, count(e.id), min(e.seq) FROM backlog b
LEFT JOIN event e ON e.sink = b.sink AND e.call = b.call AND e.state = 0
WHERE b.owner = ? GROUP BY b.sink, b.call ORDER BY min(e.id)
"""

_FINISHED = """
DELETE FROM backlog WHERE owner = ? AND over = 1 AND NOT EXISTS (
    SELECT 1 FROM event e WHERE e.sink = backlog.sink AND e.call = backlog.call AND e.state = 0)
"""

log = logging.getLogger("callscribe.outbox")


def adopt(db: sqlite3.Connection, owner: Owner) -> Adopted:
    """What is ours from now on."""
    owners = [row[0] for row in db.execute("SELECT id FROM owner WHERE id != ?", (owner.id,))]
    gone = [other for other in owners if not owner.alive(other)]
    backlogs: list[LeftBacklog] = []
    calls: list[LeftCall] = []
    for other in (0, *gone):
        backlogs += _backlogs(db, owner.id, other)
        calls += _calls(db, owner.id, other)
    for other in gone:
        db.execute("DELETE FROM owner WHERE id = ?", (other,))
        owner.forget(other)
    over = db.execute("SELECT id FROM call WHERE over = 1 ORDER BY at DESC LIMIT ?", (IDS,))
    ids = tuple(name(row[0]) for row in reversed(over.fetchall())) if gone else ()
    return Adopted(tuple(backlogs), tuple(calls), ids)


def _backlogs(db: sqlite3.Connection, mine: int, other: int) -> list[LeftBacklog]:
    if db.execute("SELECT 1 FROM backlog WHERE owner = ? LIMIT 1", (other,)).fetchone() is None:
        return []
    found = []
    for sink, call, last, over, rows, first in db.execute(_BACKLOGS, (other,)).fetchall():
        attempts, due = 0, 0.0
        if first is not None:
            attempts, due = db.execute(
                "SELECT attempts, due FROM event WHERE sink = ? AND call = ? AND seq = ?",
                (sink, call, first),
            ).fetchone()
            last = min(last, first - 1)  # a dead letter that is tried again comes late: no gap
        found.append(LeftBacklog(name(sink), name(call), rows, last, bool(over), attempts, due))
    db.execute(_FINISHED, (other,))
    db.execute("UPDATE backlog SET owner = ? WHERE owner = ?", (mine, other))
    return found


def _calls(db: sqlite3.Connection, mine: int, other: int) -> list[LeftCall]:
    rows = db.execute(
        "SELECT info, next, began, at, caller_turn, callee_turn FROM call"
        " WHERE owner = ? AND over = 0 ORDER BY at",
        (other,),
    ).fetchall()
    found = []
    for info, after, began, at, caller, callee in rows:
        turns: dict[LegName, int] = {"caller": caller, "callee": callee}
        try:
            found.append(LeftCall(unpack_info(info), after, began, at, turns))
        except ValueError as error:
            log.error("a call that a dead process has left cannot be read: %s", error)
    db.execute("UPDATE call SET owner = ? WHERE owner = ? AND over = 0", (mine, other))
    return found
