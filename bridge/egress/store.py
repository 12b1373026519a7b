"""The outbox's file: what has still to be told, on the disk. Blocking; one thread at a time.

Theory of operation. One row per sink and event, deleted when the sink has taken it. Everything that
is asked between two commits becomes one transaction (`apply`), so that a busy bridge pays for one
fsync per five or ten milliseconds, not per event. Beside the events two small tables: `backlog`
says, per sink and call, what the sink took last and which process delivers it; `call` says which
numbers are used up. What a process leaves behind is adopted by another (`Adopt`).

Partials are never in it: each is worthless as soon as there is a newer one or ten seconds have
passed, and at two or three a second and leg they would be most of what is written. Only their
numbers are (`Note`), in the same transaction as everything else.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bridge.egress import store_notes
from bridge.egress.packed import pack, unpack
from bridge.egress.store_adopt import adopt
from bridge.egress.store_keys import key, name, rows
from bridge.egress.store_owner import Owner
from bridge.egress.store_schema import connect
from bridge.egress.store_types import (
    Adopt,
    Again,
    Await,
    Bury,
    Dead,
    Done,
    Keep,
    Load,
    Loaded,
    Note,
    Op,
    Over,
    Result,
    Safe,
    Shed,
    StoredRow,
    StoreLimits,
    Tidy,
)
from bridge.types import CallEvent

CROWDED = 0.95  # of the room: what matters least of calls that are over goes
SHED_AT_ONCE = 10_000  # rows
MEASURE_EVERY, MEASURE_ROWS = 0.1, 1000  # s, or rows, between two looks at how full the file is
ERROR_TEXT = 500  # characters of why a letter is dead

_COUNTS = ("SELECT count(*) FROM event", "SELECT count(*) FROM event WHERE state = 1")
_EACH = "(SELECT value AS v FROM json_each(?)) j"
_KEEP = f"""
INSERT OR IGNORE INTO event (sink, call, seq, rank, at, body)
SELECT v->>0, v->>1, v->>2, v->>3, v->>4, CAST(v->>5 AS BLOB) FROM {_EACH}
"""
_BACKLOG = f"""
INSERT INTO backlog (sink, call, owner, over) SELECT v->>0, v->>1, v->>2, v->>3 FROM {_EACH}
WHERE true ON CONFLICT DO UPDATE SET owner = iif(owner = 0, 0, excluded.owner),
    over = max(over, excluded.over)
"""
# CROSS JOIN: the few rows outside, the index of the many inside
_DONE = f"""
DELETE FROM event WHERE id IN (SELECT e.id FROM {_EACH} CROSS JOIN event e
    WHERE e.sink = v->>0 AND e.call = v->>1 AND e.seq = v->>2)
"""
_LAST = f"""
UPDATE backlog SET last = max(last, v->>2) FROM {_EACH} WHERE sink = v->>0 AND call = v->>1
"""
_OVER = f"""
DELETE FROM backlog WHERE (sink, call) IN (SELECT v->>0, v->>1 FROM {_EACH}) AND NOT EXISTS (
    SELECT 1 FROM event e WHERE e.sink = backlog.sink AND e.call = backlog.call AND e.state = 0)
"""
_SHED = """
DELETE FROM event WHERE id IN (
    SELECT e.id FROM event e JOIN backlog b USING (sink, call)
    WHERE e.state = 0 AND e.rank = 1 AND b.over = 1 LIMIT ?) RETURNING sink, call, seq
"""


class Store:
    """`rows` and `size` (bytes in use) are those of the last commit. Raises `sqlite3.Error`."""

    def __init__(
        self, path: Path, limits: StoreLimits, *, wall: Callable[[], float] = time.time
    ) -> None:
        self.path, self.limits = path, limits
        self.rows = self.dead = self.size = 0
        self._wall = wall
        self._db: sqlite3.Connection | None = None
        self._owner: Owner | None = None
        self._change = 0  # rows more, in the present transaction
        self._measured, self._rows_measured = float("-inf"), 0
        self._packed: tuple[CallEvent, str] | None = None

    @property
    def fill(self) -> float:
        """How much of the room is used, 1: all of it."""
        return max(self.rows / self.limits.rows, self.size / self.limits.size)

    def open(self) -> None:
        """Open or make the file; again is fine. Raises also `BrokenFile` and OSError."""
        if self._db is not None:
            return
        db = connect(self.path)
        try:
            self._owner = self._owner or Owner(self.path)
            db.execute(
                "INSERT OR IGNORE INTO owner VALUES (?, ?, ?)",
                (self._owner.id, os.getpid(), self._wall()),
            )
            self._db = db
            self._count()
        except BaseException:
            self._db = None
            db.close()
            raise

    def close(self) -> None:
        """Let go of the file; what it holds is anybody's from now on."""
        self.abandon()
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.release()

    def abandon(self) -> None:
        """Close the file and go on being its owner: it may be opened again."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def apply(self, ops: Sequence[Op]) -> list[Result]:
        """Do all of this, or, when it raises, nothing of it."""
        self.open()
        assert self._db is not None and self._owner is not None
        self._change = 0
        self._db.execute("BEGIN IMMEDIATE")
        try:
            results = self._do(self._db, self._owner, ops)
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self.rows += self._change
        self._measure()
        return results

    def _do(self, db: sqlite3.Connection, owner: Owner, ops: Sequence[Op]) -> list[Result]:
        """By kind, because a statement for many rows costs little more than one for one.

        The order of kinds is the one in which the life of an event goes.
        """
        kinds: dict[type, list[Any]] = {}
        for op in ops:
            kinds.setdefault(type(op), []).append(op)
        results: list[Result] = []
        store_notes.write(db, owner.id, kinds.get(Note, ()))
        self._keep(db, owner.id, kinds.get(Keep, ()))
        results += [Safe(op.sink, op.call, op.seq) for op in kinds.get(Await, ())]
        results += [Safe(op.sink, op.event.call.id, op.event.seq) for op in kinds.get(Keep, ())]
        self._again(db, kinds.get(Again, ()))
        self._dead(db, kinds.get(Dead, ()), kinds.get(Bury, ()))
        self._done(db, kinds.get(Done, ()), kinds.get(Over, ()))
        if Tidy in kinds:
            results += self._tidy(db)
        results += [self._load(db, op) for op in kinds.get(Load, ())]
        if Adopt in kinds:
            results.append(adopt(db, owner))
        return results

    def _keep(self, db: sqlite3.Connection, owner: int, ops: Sequence[Keep]) -> None:
        if not ops:
            return
        over: dict[tuple[str, str], int] = {}
        kept = []
        for op in ops:
            event, place = op.event, (key(op.sink), key(op.event.call.id))
            over[place] = over.get(place, 0) | op.ends
            kept.append((*place, event.seq, op.rank, event.at, self._pack(event)))
        self._change += db.execute(_KEEP, (rows(kept),)).rowcount
        db.execute(_BACKLOG, (rows([(*place, owner, int(end)) for place, end in over.items()]),))

    def _pack(self, event: CallEvent) -> str:
        """As text; once for all sinks, which keep it one after the other."""
        if self._packed is None or self._packed[0] is not event:
            self._packed = (event, pack(event).decode())
        return self._packed[1]

    def _again(self, db: sqlite3.Connection, ops: Sequence[Again]) -> None:
        db.executemany(
            "UPDATE event SET attempts = ?, due = ? WHERE sink = ? AND call = ? AND seq = ?",
            [(op.attempts, op.due, key(op.sink), key(op.call), op.seq) for op in ops],
        )

    def _dead(self, db: sqlite3.Connection, ops: Sequence[Dead], buried: Sequence[Bury]) -> None:
        now = self._wall()  # from which they are kept
        letters = [(now, op.error[:ERROR_TEXT], key(op.sink), key(op.call), op.seq) for op in ops]
        set_dead = "UPDATE event SET state = 1, attempts = attempts + 1, at = ?, error = ?"
        found = db.executemany(
            f"{set_dead} WHERE sink = ? AND call = ? AND seq = ? AND state = 0", letters
        ).rowcount
        for op in buried:
            found += db.execute(
                f"{set_dead} WHERE sink = ? AND state = 0",
                (now, op.error[:ERROR_TEXT], key(op.sink)),
            ).rowcount
            db.execute("DELETE FROM backlog WHERE sink = ?", (key(op.sink),))
        self.dead += max(0, found)

    def _done(self, db: sqlite3.Connection, ops: Sequence[Done], over: Sequence[Over]) -> None:
        last: dict[tuple[str, str], int] = {}
        gone = []
        for op in ops:
            place = (key(op.sink), key(op.call))
            last[place] = op.seq
            if op.kept:
                gone.append((*place, op.seq))
        if gone:
            self._change -= db.execute(_DONE, (rows(gone),)).rowcount
        if last:
            db.execute(_LAST, (rows([(*place, seq) for place, seq in last.items()]),))
        if over:
            db.execute(_OVER, (rows([(key(op.sink), key(op.call)) for op in over]),))

    def _load(self, db: sqlite3.Connection, op: Load) -> Loaded:
        place = (key(op.sink), key(op.call))
        found = db.execute(
            "SELECT seq, attempts, due, at, body FROM event WHERE sink = ? AND call = ? AND seq > ?"
            " AND state = 0 ORDER BY seq LIMIT ?",
            (*place, op.after, op.limit + 1),
        ).fetchall()
        loaded = []
        for seq, attempts, due, at, body in found[: op.limit]:
            try:
                loaded.append(StoredRow(unpack(body), attempts, due, at))
            except ValueError as error:  # of another version, or written by somebody else
                self._dead(db, [Dead(op.sink, op.call, seq, f"cannot be read: {error}")], ())
        return Loaded(op.sink, op.call, tuple(loaded), len(found) > op.limit)

    def _tidy(self, db: sqlite3.Connection) -> list[Result]:
        now, limits = self._wall(), self.limits
        db.execute("DELETE FROM event WHERE state = 1 AND at < ?", (now - limits.dead_for,))
        db.execute("DELETE FROM call WHERE over = 1 AND at < ?", (now - limits.calls_for,))
        # Another process, or an operator, may have written too.
        self.rows, self.dead = (db.execute(count).fetchone()[0] for count in _COUNTS)
        self._change = 0
        if self.fill < CROWDED:
            return []
        shed = db.execute(_SHED, (SHED_AT_ONCE,)).fetchall()
        self._change -= len(shed)
        places: dict[tuple[str, str], list[int]] = {}
        for sink, call, seq in shed:
            places.setdefault((name(sink), name(call)), []).append(seq)
        return [Shed(sink, call, tuple(seqs)) for (sink, call), seqs in places.items()]

    def _count(self) -> None:
        assert self._db is not None
        self.rows, self.dead = (self._db.execute(count).fetchone()[0] for count in _COUNTS)
        self._measure()

    def _measure(self) -> None:
        """How much of the file is in use; not at every commit of a busy bridge."""
        assert self._db is not None
        now, unseen = time.monotonic(), abs(self.rows - self._rows_measured)
        if now < self._measured + MEASURE_EVERY and unseen < MEASURE_ROWS:
            return
        self._measured, self._rows_measured = now, self.rows
        pages, free, size = (
            self._db.execute(f"PRAGMA {what}").fetchone()[0]
            for what in ("page_count", "freelist_count", "page_size")
        )
        self.size = (pages - free) * size
