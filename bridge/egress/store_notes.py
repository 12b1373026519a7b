"""Which numbers of which calls are used up (the table `call`). Blocking."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from bridge.egress.packed import pack_info
from bridge.egress.store_keys import key, rows
from bridge.egress.store_types import Note
from bridge.types import CallEvent, Ended, EndOfTurn, Final, Partial, Refused

_WRITE = """
INSERT INTO call (id, owner, next, began, at, over, caller_turn, callee_turn, info)
SELECT v->>0, v->>1, v->>2, v->>3, v->>4, v->>5, v->>6, v->>7, CAST(v->>8 AS BLOB)
FROM (SELECT value AS v FROM json_each(?)) WHERE true ON CONFLICT DO UPDATE SET
    owner = excluded.owner, next = max(next, excluded.next), at = excluded.at,
    over = max(over, excluded.over), info = excluded.info,
    caller_turn = max(caller_turn, excluded.caller_turn),
    callee_turn = max(callee_turn, excluded.callee_turn)
"""


class _Row:
    """What one transaction notes of one call."""

    __slots__ = ("at", "began", "event", "over", "turns")

    def __init__(self, event: CallEvent) -> None:
        self.event = event  # the newest
        self.began = event.at
        self.over = False
        self.turns = {"caller": -1, "callee": -1}

    def add(self, event: CallEvent) -> None:
        self.event = event
        body = event.body
        self.over = self.over or isinstance(body, Ended | Refused)
        if event.leg is not None and isinstance(body, Partial | Final | EndOfTurn):
            self.turns[event.leg] = max(self.turns[event.leg], body.turn)


def write(db: sqlite3.Connection, owner: int, notes: Sequence[Note]) -> None:
    """One row per call, however many of its events there are."""
    calls: dict[str, _Row] = {}
    for note in notes:
        call = note.event.call.id
        row = calls.get(call)
        if row is None:
            row = calls[call] = _Row(note.event)
        row.add(note.event)
    if calls:
        db.execute(_WRITE, (rows([_values(row, owner) for row in calls.values()]),))


def _values(row: _Row, owner: int) -> tuple[object, ...]:
    event = row.event
    turns = row.turns["caller"], row.turns["callee"]
    return (
        *(key(event.call.id), owner, event.seq + 1, row.began, event.at, int(row.over), *turns),
        pack_info(event.call).decode(),
    )
