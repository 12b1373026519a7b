"""Queue 2: what stands between the calls and one sink, so that neither waits for the other.

Theory of operation. A dispatcher takes from the queue (`queue.py`), which knows whose turn it is,
and gives each due call's head (or a run that begins with it) to the sink, in about `concurrency`
tasks at a time. So events of a call stay in order, and a call that waits for a retry holds up
nobody else. A head that fails is due again later; whatever happens to an event, the next one that
the sink takes says how many it was not given (`gap_before`).

With a shelf (`shelf.py`, `disk.py`) every event is on the disk before the sink is asked the first
time, and leaves it when the sink has taken it; what does not fit into memory is on the disk only.

A sink that fails for everybody is not asked by everybody: after `TRIP` failures in a row the
breaker is open, and one due head per `PROBE` seconds is let through until one is taken. Then all
calls are due again, for what they waited for was the sink's recovery.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

from bridge.egress.pending import Backlog, Row
from bridge.egress.queue import PARTIAL_TTL, Queue
from bridge.egress.retry import SCHEDULE, Breaker, backoff, too_late
from bridge.egress.runs import Part, RunSink, Shared
from bridge.egress.shelf import Shelf
from bridge.egress.telling import State, Teller
from bridge.errors import DeliveryError
from bridge.interfaces import Egress
from bridge.types import CallEvent, Partial

DELIVERY_LIMIT = 90.0  # seconds; for sinks that forgot a deadline of their own
CLOSE_LIMIT = 5.0  # seconds for a sink to let go
AT_ONCE = 128  # events that are begun before other work has its turn
FAULT_WAIT = BUSY_WAIT = 1.0  # seconds

Wait: TypeAlias = Callable[[asyncio.Event, float | None], Awaitable[None]]


async def wait_for(event: asyncio.Event, seconds: float | None) -> None:
    """Return when `event` is set or `seconds` have passed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Outbox:
    """One sink's queue. Everything happens on the event loop's thread.

    Give it every event of every call: events that the sink does not want (`wants(event)`, where
    a sink has it) are left out here, so that a call's end is seen and gaps are counted.
    `wait(event, seconds)` returns when the event is set or the time has passed. `delivered` is told
    how many seconds after it came an event was taken.
    """

    def __init__(
        self,
        sink: Egress,
        *,
        limit: int = 10_000,
        concurrency: int = 32,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        schedule: Sequence[float] = SCHEDULE,
        wait: Wait = wait_for,
        delivered: Callable[[float], None] = lambda seconds: None,
        shelf: Shelf | None = None,
    ) -> None:
        self.name = sink.name
        self.counters: Counter[str] = Counter()
        self._sink, self._concurrency = sink, concurrency
        self._clock, self._jitter, self._schedule, self._wait = clock, jitter, schedule, wait
        self._on_delivered = delivered
        self._wake = asyncio.Event()
        self._queue = Queue(
            self.counters, limit=limit, loads=concurrency, clock=clock, shelf=shelf,
            wake=self._wake.set, longest=lambda attempts: backoff(schedule, attempts, 1.0),
        )  # fmt: skip
        self._breaker = Breaker()
        self._flying: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._deadline: float | None = None  # set while flushing
        self._teller = Teller(sink.name)
        self._runs = sink if isinstance(sink, RunSink) and getattr(sink, "batch", False) else None
        self._gone = self._closed = False

    @property
    def queued(self) -> int:
        """Events waiting or with the sink."""
        return len(self._queue)

    @property
    def oldest(self) -> float:
        """Age of the oldest queued event in seconds; 0 when there is none."""
        return self._queue.oldest

    @property
    def calls(self) -> int:
        """Calls that are remembered: those with events queued, and those not over."""
        return self._queue.calls

    @property
    def state(self) -> State:
        if self._gone:
            return "gone"
        if self._breaker.open:
            return "open"
        return "failing" if self._breaker.failures else "ok"

    # -- events come in ----------------------------------------------------------------------

    def put(self, event: CallEvent) -> None:
        """Queue one event. Never blocks, never raises; what is dropped is counted.

        An event that is queued already is not queued twice.
        """
        if self._closed or self._gone:
            self.counters["dropped_shutdown" if self._closed else "disabled"] += 1
            return
        self._queue.put(event, wanted=self._wants(event))

    def _wants(self, event: CallEvent) -> bool:
        wants: Callable[[CallEvent], bool] | None = getattr(self._sink, "wants", None)
        try:
            return wants is None or wants(event)
        except Exception as error:
            self._odd(event, error)
            return True

    def _odd(self, event: CallEvent, error: Exception) -> None:
        self.counters["errors"] += 1
        self._teller.odd(event, error)

    # -- events go out -----------------------------------------------------------------------

    async def start(self) -> None:
        """Start the sink, then deliver. What the sink's `start` raises is the caller's to judge."""
        await self._sink.start()
        self._task = asyncio.create_task(self._run(), name=f"outbox {self.name}")

    async def _run(self) -> None:
        while not self._finished():
            self._wake.clear()
            try:
                self._launch(self._clock())
            except Exception as error:  # a fault of ours: calls wait a second for it, not for ever
                self.counters["errors"] += 1
                self._teller.fault(error)
                self._queue.enter_all(self._clock() + FAULT_WAIT)
            await self._wait(self._wake, self._pause())

    def _launch(self, now: float) -> None:
        """Give the sink every head that is due, as far as concurrency and breaker let."""
        self._queue.expire(now)
        shared, events = Shared(self._runs), 0
        while len(self._flying) < self._concurrency and now >= self._breaker.ask_at:
            part = self._queue.take(now, self._runs) if events < AT_ONCE else None
            if part is None:
                break
            events += len(part.rows)
            may = part.fresh and not self._breaker.failures
            if may and shared.takes(part):
                continue
            if may and shared.parts:  # they are full
                self._send(shared.parts)
                shared = Shared(self._runs)
                if shared.takes(part):
                    continue
            self._send([part])
        if shared.parts:  # may be one more than `concurrency`, of which it is the last
            self._send(shared.parts)

    def _send(self, parts: Sequence[Part]) -> None:
        """Begin a delivery."""
        self._breaker.asked(self._clock())
        for part in parts:
            self.counters["retries"] += part.rows[0].attempts > 0
            self._fly(part, True)
        task = asyncio.create_task(self._deliver(parts))
        self._flying.add(task)
        task.add_done_callback(self._landed)

    def _pause(self) -> float | None:
        """Seconds until there is something to do of which nobody will tell."""
        times = [] if self._deadline is None else [self._deadline]
        due = self._queue.due
        if self._queue.loading:  # an answer is told, but that it failed not
            times.append(self._clock() + BUSY_WAIT)
        elif due is not None and len(self._flying) < self._concurrency:
            times.append(max(due, self._breaker.ask_at))
        return max(0.0, min(times) - self._clock()) if times else None

    def _fly(self, part: Part, up: bool) -> None:
        part.backlog.flying = up
        for row in part.rows:
            row.flying = up

    async def _deliver(self, parts: Sequence[Part]) -> None:
        events = [event for part in parts for event in part.events]
        failure: DeliveryError | None = None
        try:
            async with asyncio.timeout(DELIVERY_LIMIT):
                if self._runs is not None:
                    bodies = [body for part in parts for body in part.bodies_for(self._runs)]
                    await self._runs.deliver_run(events, bodies)
                else:
                    await self._sink.deliver(events[0])
        except DeliveryError as error:
            failure = error
        except asyncio.CancelledError as error:
            if self._closed:
                raise
            failure = DeliveryError(f"{self.name} was interrupted: {type(error).__name__}")
        except Exception as error:
            self._odd(events[0], error)
            failure = DeliveryError(f"{self.name} failed: {type(error).__name__}")
        finally:
            for part in parts:
                self._fly(part, False)
        if self._closed:  # the sink would not be cancelled
            return
        if failure is None:
            for part in parts:
                for row in part.rows:
                    self._delivered(part.backlog, row)
        else:
            self._failed(parts, failure)
        for part in parts:
            self._queue.enter(part.backlog)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._wake.set()

    def _delivered(self, backlog: Backlog, row: Row) -> None:
        self._on_delivered(self._clock() - row.since)
        self._queue.taken(backlog, row)
        if self._breaker.taken() and not self._gone:
            self._teller.recovery(self.queued)
            self._queue.hurry()

    def _failed(self, parts: Sequence[Part], error: DeliveryError) -> None:
        now, before = self._clock(), self.state
        for part in parts:
            part.rows[0].attempts += 1
        self._breaker.failed(now, error.retry_after or 0.0)
        self._gone = self._gone or error.gone
        self._teller.change(before, self.state, error, now)
        if self._gone:
            return self._queue.bury(str(error))
        for part in parts:
            together = len(parts) > 1 or len(part.rows) > 1
            self._put_off(part.backlog, part.rows, error, now, together)

    def _put_off(
        self,
        backlog: Backlog,
        rows: Sequence[Row],
        error: DeliveryError,
        now: float,
        together: bool,
    ) -> None:
        """One call's rows were not taken."""
        row = rows[0]
        if row.stale:
            self._queue.drop(backlog, row, "superseded")
        elif error.permanent and together:  # one of them may be to blame; which will be seen
            backlog.alone, row.attempts = len(rows), 0
        elif error.permanent or too_late(row.attempts, now - row.since):
            self._teller.given_up(row.event, error)
            self._queue.give_up(backlog, row, str(error))
        else:
            due = self._again(row, now, error.retry_after)
            self._queue.put_off(backlog, row, due, wish=error.retry_after is not None)

    def _again(self, row: Row, now: float, wish: float | None) -> float:
        """When to try a second time: the sink's wish wins over the schedule."""
        if wish is not None:
            return now + max(0.0, wish)
        due = now + backoff(self._schedule, row.attempts, self._jitter())
        if isinstance(row.event.body, Partial):  # which is dropped then, and holds up nobody
            due = min(due, row.since + PARTIAL_TTL)
        return due

    # -- the end -----------------------------------------------------------------------------

    def _finished(self) -> bool:
        """True when flushing is over: all is done, time is up, or nothing comes due in time."""
        if self._deadline is None:
            return False
        now = self._clock()
        if now >= self._deadline or (not self._flying and not self._queue.in_memory):
            return True
        due = self._queue.due
        if self._flying or due is None:
            return False
        return max(due, self._breaker.ask_at) > self._deadline

    async def close(self, timeout: float) -> int:  # noqa: ASYNC109 - a flush, not a cancellation
        """Flush for at most `timeout` seconds, then let go. Returns how many events are lost.

        What is on the disk is not lost. Every waiting head is tried at once, whatever its back-off.
        """
        if self._task is not None and self._deadline is None:
            self._deadline = self._clock() + timeout
            self._breaker.ask_at = 0.0
            self._queue.hurry()
            await self._task
        self._closed = True
        for task in self._flying:
            task.cancel()
        if self._flying:
            await asyncio.wait(self._flying, timeout=CLOSE_LIMIT)
        left = self._queue.clear()
        self.counters["dropped_shutdown"] += left
        if self._task is not None:
            await self._let_go()
        return left

    async def _let_go(self) -> None:
        self._task = None
        try:
            async with asyncio.timeout(CLOSE_LIMIT):
                await self._sink.close()
        except Exception as error:
            self._teller.odd_close(error)
