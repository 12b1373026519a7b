"""The outbox's file as an operator looks into it, while a bridge may have it open. Blocking.

Each change is one short transaction; a running bridge finds what is to be tried again within some
seconds (`shelf.ADOPT_EVERY`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.contract import event_type
from bridge.egress.packed import unpack
from bridge.egress.store_keys import key, name
from bridge.egress.store_schema import VERSION, reason
from bridge.errors import BridgeError

PATIENCE = 5.0  # seconds for the bridge's own commits


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one sink has still to be given. `oldest`: Unix time."""

    sink: str
    rows: int
    calls: int
    oldest: float
    dead: int


@dataclass(frozen=True, slots=True)
class Letter:
    """One event that was given up, at `at` (Unix time). `type` is empty when it cannot be read."""

    id: int
    sink: str
    call: str
    seq: int
    type: str
    attempts: int
    at: float
    error: str


@contextmanager
def opened(path: Path) -> Iterator[Letters]:
    """The file, which must be there. Raises `BridgeError`."""
    if not path.is_file():
        raise BridgeError(f"{path}: there is no such file; has the bridge run with outbox.path?")
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise BridgeError(f"{path}: not an outbox of this version of callscribe")
        yield Letters(db)
    except sqlite3.Error as error:
        raise BridgeError(f"{path}: {reason(error)}") from None
    finally:
        db.close()


class Letters:
    """Dead letters by id, by sink, or all of them: `ids` empty and `sink` empty."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def waiting(self) -> list[Waiting]:
        """Per sink."""
        rows = self._db.execute(
            "SELECT sink, sum(state = 0), count(DISTINCT CASE state WHEN 0 THEN call END),"
            " min(CASE state WHEN 0 THEN at END), sum(state) FROM event GROUP BY sink ORDER BY sink"
        )
        return [
            Waiting(name(s), n, calls, oldest or 0.0, dead) for s, n, calls, oldest, dead in rows
        ]

    def dead(self, sink: str = "", limit: int = 100) -> list[Letter]:
        """The newest first."""
        rows = self._db.execute(
            "SELECT id, sink, call, seq, attempts, at, error, body FROM event WHERE state = 1"
            " AND (? = '' OR sink = ?) ORDER BY at DESC, id DESC LIMIT ?",
            (key(sink), key(sink), limit),
        )
        return [
            Letter(id, name(sink), name(call), seq, _type(body), attempts, at, error)
            for id, sink, call, seq, attempts, at, error, body in rows
        ]

    def retry(self, ids: Sequence[int] = (), sink: str = "") -> int:
        """Have them delivered after all; how many."""
        where, values = _chosen(ids, sink)
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            # Nobody's, so that whoever runs takes it over; `last` counts no gap before it.
            self._db.execute(
                "INSERT INTO backlog (sink, call, last, owner, over)"
                " SELECT sink, call, min(seq) - 1, 0, 1 FROM event"
                f" WHERE {where} GROUP BY sink, call"
                " ON CONFLICT DO UPDATE SET owner = 0",
                values,
            )
            return self._db.execute(
                f"UPDATE event SET state = 0, attempts = 0, due = 0, error = '' WHERE {where}",
                values,
            ).rowcount

    def drop(self, ids: Sequence[int] = (), sink: str = "") -> int:
        """Delete them; how many."""
        where, values = _chosen(ids, sink)
        with self._db:
            return self._db.execute(f"DELETE FROM event WHERE {where}", values).rowcount

    def drop_pending(self, sink: str) -> int:
        """Delete all that a sink, which no bridge serves any more, has still to be given."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM backlog WHERE sink = ?", (key(sink),))
            return self._db.execute(
                "DELETE FROM event WHERE state = 0 AND sink = ?", (key(sink),)
            ).rowcount


def _chosen(ids: Sequence[int], sink: str) -> tuple[str, list[object]]:
    where, values = "state = 1", list[object]()
    if ids:
        where += f" AND id IN ({', '.join('?' * len(ids))})"
        values += ids
    if sink:
        where += " AND sink = ?"
        values.append(key(sink))
    return where, values


def _type(body: bytes) -> str:
    try:
        return event_type(unpack(body))
    except ValueError:
        return ""
