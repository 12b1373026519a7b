"""Which leg is on which row of the batch. Pure.

Theory of operation. A lease is one leg's right to one slot; all its state hangs on the lease and
dies with it. A slot goes

    FREE → lease() → ACTIVE → finish() → DRAINING → FREE        evict(): from any state → FREE

`schedule()` takes one block from each lease that has one; a row without a block is not active and
its state in the model must not move. A lease's first step is `fresh`: the model resets the row.
When a finishing lease has no blocks left it is fed silence for the model's delay and one block
more, so that the last word before a hang-up is heard. `commit()` hands each row's result only to
the lease that the step was scheduled for, and only if that lease still holds its slot: a result
that comes late never reaches the slot's next caller.

The queue of a lease is bounded and loses its oldest block. The model counts the blocks that it
was given, the leg those that it pushed: `_breaks` maps the one time to the other.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from bridge.errors import Busy
from bridge.types import Block, Heard, Word

log = logging.getLogger(__name__)

MAX_TRIES = 3  # steps that the same block may be in
MAX_BREAKS = 16  # discontinuities remembered; words older than these keep the oldest one's offset


class State(Enum):
    """Of a lease."""

    ACTIVE = "active"
    DRAINING = "draining"
    FREE = "free"


class SlotLease:
    """One leg's right to one slot. Implements `bridge.interfaces.Lease`."""

    __slots__ = (
        "_breaks", "_pushed", "_slots", "_taken", "done", "drain_left", "dropped", "failures",
        "fresh", "heard", "queue", "slot", "state", "steps",
    )  # fmt: skip

    def __init__(
        self, slots: Slots, slot: int, heard: Callable[[Heard], None], done: Callable[[], None]
    ) -> None:
        self.slot = slot
        self.heard = heard
        self.done = done
        self.state = State.ACTIVE
        self.queue: deque[tuple[int, Block]] = deque()
        self.fresh = True
        self.steps = 0  # of the model, since fresh
        self.dropped = 0
        self.failures = 0  # steps in a row that failed with this lease in them
        self.drain_left = slots.drain
        self._slots = slots
        self._pushed = 0  # blocks; the index of the next one
        self._taken = 0  # index of the block that the model expects next
        self._breaks: deque[tuple[int, int]] = deque(maxlen=MAX_BREAKS)  # (model step, block)

    def push(self, block: Block) -> None:
        """Queue one block; a full queue loses its oldest."""
        if self.state is not State.ACTIVE:
            return
        while len(self.queue) >= self._slots.queue_blocks:  # `put_back` may add one more
            self.queue.popleft()
            self.dropped += 1
        self.queue.append((self._pushed, block))
        self._pushed += 1
        self._slots.wake()

    def finish(self) -> None:
        """No more audio: drain, then `done`."""
        if self.state is State.ACTIVE:
            self.state = State.DRAINING
            self._slots.wake()

    def evict(self) -> None:
        """Give the slot back now."""
        self._slots.free(self)

    def take(self) -> Block | None:
        """The next block to step with; None when there is none, silence is not asked for."""
        if not self.queue:
            return None
        index, block = self.queue.popleft()
        if index != self._taken or self.fresh:
            self._breaks.append((self.steps, index))
        self._taken = index + 1
        return block

    def put_back(self, block: Block) -> None:
        """A block whose step failed: the row starts anew with it.

        Audio that is in `MAX_TRIES` failed steps in a row is given up, or one leg's block that no
        model can take would cost everybody the engine for ever.
        """
        self.failures += 1
        if self.failures >= MAX_TRIES:
            self.failures = 0
            self.dropped += 1
            return
        self._taken -= 1
        self.queue.appendleft((self._taken, block))

    def restart(self) -> None:
        """The model behind the row is a new one."""
        self.fresh = True
        self.steps = 0
        self._breaks.clear()

    def on_leg_clock(self, heard: Heard) -> Heard:
        """Model time → leg time, exact around dropped blocks."""
        if not self._breaks or (len(self._breaks) == 1 and self._breaks[0] == (0, 0)):
            return heard
        return replace(
            heard,
            words=tuple(map(self._shifted, heard.words)),
            tentative=tuple(map(self._shifted, heard.tentative)),
            at=heard.at + self._offset(heard.at, end=True),
        )

    def _shifted(self, word: Word) -> Word:
        start = word.start + self._offset(word.start)
        end = word.end + self._offset(word.end, end=True)
        return replace(word, start=start, end=max(start, end))

    def _offset(self, seconds: float, *, end: bool = False) -> float:
        """Seconds from model time to leg time.

        What begins with a block belongs to that block and what ends there to the one before,
        whatever is lost in rounding.
        """
        step, block = self._breaks[0]
        at = seconds / self._slots.block_seconds + (-1e-6 if end else 1e-6)
        for later_step, later_block in self._breaks:
            if later_step > at:
                break
            step, block = later_step, later_block
        return (block - step) * self._slots.block_seconds


@dataclass(frozen=True, slots=True)
class Row:
    """One active row of a step. `block` None: silence (draining)."""

    lease: SlotLease
    block: Block | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step, and who it is computed for."""

    rows: list[Row] = field(default_factory=list)
    finished: list[SlotLease] = field(default_factory=list)  # with nothing to drain

    def __bool__(self) -> bool:
        return bool(self.rows or self.finished)


class Slots:
    """The table of slots. `wake` is called when there is something to schedule."""

    def __init__(
        self,
        slots: int,
        *,
        block_seconds: float,
        delay: float,
        queue_blocks: int,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.slots = slots
        self.block_seconds = block_seconds
        self.drain = round(delay / block_seconds) + 1  # blocks of silence
        self.queue_blocks = queue_blocks
        self.wake = wake
        self._leases: dict[int, SlotLease] = {}
        self._free = deque(range(slots))

    @property
    def used(self) -> int:
        """Slots that are leased."""
        return len(self._leases)

    @property
    def leases(self) -> Sequence[SlotLease]:
        """All leases that hold a slot."""
        return list(self._leases.values())

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> SlotLease:
        """The slot that has been free the longest. Raises `Busy`."""
        if not self._free:
            raise Busy("busy", f"all {self.slots} slots of the engine are taken")
        lease = SlotLease(self, self._free.popleft(), heard, done)
        self._leases[lease.slot] = lease
        return lease

    def free(self, lease: SlotLease) -> None:
        """The slot goes back. Idempotent."""
        if lease.state is State.FREE:
            return
        lease.state = State.FREE
        lease.queue.clear()
        del self._leases[lease.slot]
        self._free.append(lease.slot)

    def schedule(self) -> Plan:
        """One block of every lease that has one."""
        plan = Plan()
        for lease in self._leases.values():
            block = lease.take()
            if block is not None:
                plan.rows.append(Row(lease, block, lease.fresh))
            elif lease.state is State.DRAINING:
                if lease.fresh or lease.drain_left == 0:
                    plan.finished.append(lease)
                    continue
                lease.drain_left -= 1
                plan.rows.append(Row(lease, None, False))
            else:
                continue
            lease.fresh = False
        return plan

    def commit(self, plan: Plan, results: Sequence[Heard]) -> None:
        """Each row's result to the lease that it was computed for. `results`: one per slot."""
        for row in plan.rows:
            lease = row.lease
            if lease.state is State.FREE:
                continue
            lease.steps += 1
            lease.failures = 0
            try:
                lease.heard(lease.on_leg_clock(results[lease.slot]))
            except Exception:  # costs the leg, not the others of this step
                log.exception("a leg failed over what it heard and loses its slot")
                self._over(lease)
        drained = [
            row.lease
            for row in plan.rows
            if row.block is None and row.lease.drain_left == 0 and not row.lease.queue
        ]
        for lease in (*plan.finished, *drained):
            if lease.state is not State.FREE:
                self._over(lease)

    def _over(self, lease: SlotLease) -> None:
        self.free(lease)
        try:
            lease.done()
        except Exception:  # costs the leg, not the engine
            log.exception("a leg failed over its end")

    def abandon(self, plan: Plan) -> None:
        """The step failed and the model with it: every row starts anew, no block is lost."""
        for row in plan.rows:
            if row.lease.state is not State.FREE and row.block is not None:
                row.lease.put_back(row.block)
        for lease in self._leases.values():
            lease.restart()
