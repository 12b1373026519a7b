"""Which leg is on which row of the batch. Pure.

Theory of operation. A lease is one leg's right to one slot; all its state hangs on the lease and
dies with it. A slot goes

    FREE → lease() → ACTIVE → finish() → DRAINING → FREE        evict(): from any state → FREE

`schedule()` takes one block from each lease that has one; a row without a block is not active and
its state in the model must not move. A lease's first step is `fresh`: the model resets the row.
When a finishing lease has no blocks left it is fed silence for the model's delay and one block
more, and on while a word is still being spelt, so that the last word before a hang-up is heard.
`commit()` hands each row's result only to the lease that the step was scheduled for, and only if
that lease still holds its slot: a result that comes late never reaches the slot's next caller.

Two things come before the blocks of the queue:

- *Silence of a flush*. The model says a word only `delay` seconds of audio after it. When a
  speaker has paused, `flush()` feeds the row as much silence at once, at the speed of steps and
  not of time, and the last words are out; audio that comes meanwhile waits in the queue.
- *Blocks to be heard again*. The last blocks that the model took are kept. When the model is lost
  or the row is stuck, the row starts afresh some seconds back, and words that the leg was told
  before are left out (`bridge/engine/align.py`).

The queue of a lease is bounded and loses its oldest block. The model counts the steps of its row,
the leg the blocks that it pushed; `RowClock` maps the one time to the other.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from bridge.engine.align import Replay
from bridge.engine.clock import RowClock
from bridge.errors import Busy
from bridge.types import Block, Heard, Word

log = logging.getLogger(__name__)

MAX_TRIES = 3  # steps that the same block may be in and fail
MAX_SPELLING = 1.0  # s of silence beyond the delay for a last word that is not complete
WARM_UP = 3.0  # s of audio before the last word from which a row starts again
SAID = 64  # words remembered, to know them again
FLUSH_APART = 0.4  # s of audio between flushes, each of which costs the row half a second's steps
FLUSH_BEHIND = 2  # blocks waiting; a row that is further behind hears its own audio first
PATIENCE = 6.0  # s from one fresh start of a stuck row to the next, doubled while it stays silent
MAX_PATIENCE = 300.0  # s; music on hold is no speech, however often it is heard


class State(Enum):
    """Of a lease."""

    ACTIVE = "active"
    DRAINING = "draining"
    FREE = "free"


class SlotLease:
    """One leg's right to one slot. Implements `bridge.interfaces.Lease`."""

    __slots__ = (
        "_again", "_clock", "_drain_left", "_failed_at", "_flush_left", "_kept", "_patience",
        "_patient_until", "_pushed", "_replay", "_said", "_slots", "_spelling", "_spelling_left",
        "_taken", "_tries", "_unflushed", "done", "dropped", "fresh", "heard", "queue", "slot",
        "state",
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
        self.dropped = 0
        self._slots = slots
        self._clock = RowClock(slots.block_seconds)
        self._pushed = 0  # blocks; the index of the next one
        self._taken = 0  # index after that of the newest block that the model took
        self._kept: deque[tuple[int, Block]] = deque(maxlen=slots.keep_blocks)
        self._again: deque[tuple[int, Block]] = deque()  # to be heard a second time
        self._said: deque[Word] = deque(maxlen=SAID)
        self._replay: Replay | None = None
        self._failed_at = 0  # blocks taken when steps began to fail
        self._tries = 0  # failed steps there
        self._unflushed = 0  # blocks since the last flush
        self._flush_left = 0  # blocks of silence
        self._spelling = False  # a word is begun and not complete
        self._patience = PATIENCE
        self._patient_until = 0  # block index
        self._start_drain()

    # -- the leg's side --------------------------------------------------------------------------

    def push(self, block: Block) -> None:
        """Queue one block; a full queue loses its oldest."""
        if self.state is not State.ACTIVE:
            return
        if len(self.queue) >= self._slots.queue_blocks:
            self.queue.popleft()
            self.dropped += 1
        self.queue.append((self._pushed, block))
        self._pushed += 1
        self._slots.wake()

    def flush(self) -> None:
        """The speaker has paused: what the model holds back is wanted now."""
        if (
            self.state is State.ACTIVE
            and self._slots.flush_blocks
            and self._unflushed * self._slots.block_seconds >= FLUSH_APART
            and len(self.queue) <= FLUSH_BEHIND
            and not self._again
            and not self._flush_left
            and not self.fresh
        ):
            self._unflushed = 0
            self._flush_left = self._slots.flush_blocks
            self._slots.counters["flushes"] += 1
            self._slots.wake()
            self._slots.hurry()

    def finish(self) -> None:
        """No more audio: drain, then `done`."""
        if self.state is State.ACTIVE:
            self.state = State.DRAINING
            self._flush_left = 0  # draining is as much silence
            self._slots.wake()
            self._slots.hurry()

    def evict(self) -> None:
        """Give the slot back now."""
        self._slots.free(self)

    # -- the batch's side ------------------------------------------------------------------------

    def next(self) -> Row | None:
        """What this row does in the next step; None: it stays as it is."""
        if self._flush_left:
            self._flush_left -= 1
            return self._silent()
        if self._again:
            return self._listen(*self._again.popleft())
        if self.queue:
            return self._listen(*self.queue.popleft())
        if self.state is not State.DRAINING or self.fresh:
            return None
        if self._drain_left:
            self._drain_left -= 1
            return self._silent()
        if self._spelling and self._spelling_left:
            self._spelling_left -= 1
            return self._silent(ending=not self._spelling_left)
        return None

    @property
    def hurried(self) -> bool:
        """The row is to go on at the speed of steps: in a flush, in a drain, or behind."""
        return bool(
            self._flush_left or self._again or self.state is State.DRAINING or len(self.queue) > 1
        )

    @property
    def drained(self) -> bool:
        """True when a finishing lease, for which `next` had nothing, is at its end."""
        return self.state is State.DRAINING

    def _listen(self, index: int, block: Block) -> Row:
        fresh, self.fresh = self.fresh, False
        self._clock.block(index)
        self._taken = index + 1
        self._unflushed += 1
        self._kept.append((index, block))
        return Row(self, block, fresh)

    def _silent(self, *, ending: bool = False) -> Row:
        self._clock.silence()
        return Row(self, None, False, ending)

    def take_heard(self, heard: Heard) -> None:
        """The row's result, in the model's time, on to the leg."""
        heard = self._clock.on_leg(heard)
        if self._replay is not None or self._again:
            heard = self._only_news(heard)
        self._spelling = bool(heard.tentative)
        if heard.words:
            self._said.extend(heard.words)
            self._patience = PATIENCE
        self.heard(heard)
        if heard.stuck and self.state is not State.FREE and self._taken >= self._patient_until:
            self._patient_until = self._taken + round(self._patience / self._slots.block_seconds)
            self._patience = min(2 * self._patience, MAX_PATIENCE)
            self._slots.counters["watchdog_resets"] += 1
            self.listen_again()

    def _only_news(self, heard: Heard) -> Heard:
        """Without words that were said, or a pause that has long been over."""
        words, tentative = heard.words, heard.tentative
        if self._replay is not None:
            words, tentative = self._replay.new(words), self._replay.unsaid(tentative)
            if self._replay.over:
                self._replay = None
        pause = 0.0 if self._again else heard.pause
        return Heard(words, tentative, pause, heard.at, heard.settled, heard.stuck)

    def failed(self, row: Row) -> bool:
        """The step with this row failed and the model is lost. False: the lease is given up.

        Audio that the model fails over again and again is given up, first the block and then all
        that is kept, or one leg's audio would cost everybody the engine for ever.
        """
        if self._taken > self._failed_at + MAX_TRIES:  # it has got past that place
            self._failed_at, self._tries = self._taken, 0
        self._tries += 1
        if self._tries < MAX_TRIES:
            return True
        if row.block is None:
            return self.state is not State.DRAINING
        lost = len(self._kept) if self._tries >= 2 * MAX_TRIES else 1
        for _ in range(lost):
            self._kept.pop()
        self.dropped += lost
        return True

    def listen_again(self) -> None:
        """Start the row afresh, from before the last word that the leg was told."""
        since = self._said[-1].start - WARM_UP if self._said else 0.0
        first = since / self._slots.block_seconds
        kept = [pair for pair in self._kept if pair[0] >= first]
        self._again.extendleft(reversed(kept))
        self._slots.counters["blocks_replayed"] += len(kept)
        self._kept.clear()
        self.fresh = True
        self._clock.restart()
        self._flush_left = 0
        self._start_drain()
        self._replay = Replay(self._said) if self._said else None
        self._slots.wake()

    def forget(self) -> None:
        """Let go of all audio; whoever holds on to a lease that is over needs none."""
        for blocks in (self.queue, self._again, self._kept):
            blocks.clear()

    def _start_drain(self) -> None:
        self._drain_left = self._slots.drain
        self._spelling_left = round(MAX_SPELLING / self._slots.block_seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """One active row of a step. `block` None: silence. `ending`: the row's last step."""

    lease: SlotLease
    block: Block | None
    fresh: bool
    ending: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One step, and who it is computed for."""

    rows: list[Row] = field(default_factory=list)
    finished: list[SlotLease] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.finished)


class Slots:
    """The table of slots. `wake` is called when there is something to schedule, `hurry` when it
    should not wait for more.

    `delay`: seconds from audio to its words. `keep_seconds`: of audio kept to be heard again.
    """

    def __init__(
        self,
        slots: int,
        *,
        block_seconds: float,
        delay: float,
        queue_blocks: int,
        wake: Callable[[], None] = lambda: None,
        hurry: Callable[[], None] = lambda: None,
        keep_seconds: float = 12.0,
        flush: bool = True,
        counters: Counter[str] | None = None,
    ) -> None:
        self.slots = slots
        self.block_seconds = block_seconds
        self.drain = round(delay / block_seconds) + 1  # blocks of silence
        self.flush_blocks = self.drain if flush else 0
        self.keep_blocks = max(1, round(keep_seconds / block_seconds))  # what is in a step
        self.queue_blocks = queue_blocks
        self.wake, self.hurry = wake, hurry
        self.counters: Counter[str] = Counter() if counters is None else counters
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
        lease.forget()
        del self._leases[lease.slot]
        self._free.append(lease.slot)

    @property
    def hurried(self) -> bool:
        """Nothing is won by waiting: somebody cannot, all have a block, or nobody has one."""
        leases = self._leases.values()
        if any(lease.hurried for lease in leases):
            return True
        waiting = sum(bool(lease.queue) for lease in leases)
        return waiting in (0, len(leases))

    def schedule(self) -> Plan:
        """One block of every lease that has one."""
        plan = Plan()
        for lease in self._leases.values():
            row = lease.next()
            if row is not None:
                plan.rows.append(row)
            elif lease.drained:
                plan.finished.append(lease)
        return plan

    def commit(self, plan: Plan, results: Mapping[int, Heard]) -> None:
        """Each row's result, by slot, to the lease that it was computed for."""
        for row in plan.rows:
            lease = row.lease
            heard = results.get(lease.slot)
            if heard is None or lease.state is State.FREE:
                continue
            try:
                lease.take_heard(heard)
            except Exception:  # costs the leg, not the others of this step
                log.exception("a leg failed over what it heard and loses its slot")
                self._over(lease)
        for lease in plan.finished:
            if lease.state is not State.FREE:
                self._over(lease)

    def _over(self, lease: SlotLease) -> None:
        self.free(lease)
        try:
            lease.done()
        except Exception:  # costs the leg, not the engine
            log.exception("a leg failed over its end")

    def abandon(self, plan: Plan) -> None:
        """The step failed and the model with it: every row starts anew, a few seconds back."""
        hopeless = [
            row.lease
            for row in plan.rows
            if row.lease.state is not State.FREE and not row.lease.failed(row)
        ]
        for lease in hopeless:
            self._over(lease)
        for lease in self._leases.values():
            lease.listen_again()
