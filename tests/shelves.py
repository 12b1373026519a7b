"""A store on disk that commits when told, for outboxes whose clock stands still."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bridge.egress.shelf import Shelf
from bridge.egress.store import Store
from bridge.egress.store_types import (
    Adopt,
    Adopted,
    Keep,
    Loaded,
    Op,
    Renewed,
    Safe,
    Shed,
    StoreLimits,
)
from bridge.egress.store_writer import Taken
from bridge.types import LeftCall


class Inline:
    """`StoreWriter` without its thread: `commit()` does what waits, and answers."""

    def __init__(self, path: Path, wall, limits: StoreLimits | None = None) -> None:
        self.store = Store(path, limits or StoreLimits(), wall=wall)
        self.counters: Counter[str] = Counter()
        self.trouble = ""
        self.full = False
        self.refuses: tuple[type[Op], ...] = (Keep,)
        self.ops: list[Op] = []
        self.shelf = Shelf(self, "sink", wall)  # type: ignore[arg-type]
        self.calls: tuple[LeftCall, ...] = ()

    def put(self, op: Op) -> Taken:
        if self.full and isinstance(op, self.refuses):
            return "no"
        self.ops.append(op)
        return "late" if self.trouble else "waits"

    def commit(self) -> None:
        ops, self.ops = self.ops, []
        if not ops:
            return
        for result in self.store.apply(ops):
            self._tell(result)

    def _tell(self, result) -> None:
        listener = self.shelf.listener
        assert listener is not None
        match result:
            case Safe():
                listener.safe(result.call, result.seq)
            case Loaded():
                listener.loaded(result)
            case Shed():
                listener.shed(result)
            case Adopted():
                self.calls = result.calls
                for left in result.backlogs:
                    listener.adopt(left)
            case Renewed():
                listener.renewed()

    def adopt(self) -> None:
        self.put(Adopt())
        self.commit()

    def crash(self) -> None:
        """What was not committed is lost; the lock is let go of, as the kernel does."""
        self.ops.clear()
        self.store.abandon()
        owner, self.store._owner = self.store._owner, None
        if owner is not None:
            owner.release()
