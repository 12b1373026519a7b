"""Schedule → step on the model's thread → commit. Turns a `BatchModel` into a `Recogniser`.

A step runs as soon as the last one is done and somebody has a block; a leg that fell behind
catches up one block per step. The model is made, called and dropped on one thread only. A step
that raises costs the model: it is made anew on a fresh thread, and legs go on with the audio that
is still queued. After `MAX_FAILURES` within a minute the engine is not ready, and is tried again
every `RETRY` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bridge.engine.slots import Plan, SlotLease, Slots
from bridge.errors import Busy, EngineUnavailable
from bridge.interfaces import Batch, BatchModel, Upsampling
from bridge.types import Heard

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a minute
RETRY = 5.0  # s


class Batcher:
    """The local batch. Implements `bridge.interfaces.Recogniser`.

    `make` is called on the model's thread and may take long. `on_step` gets (seconds, rows).
    """

    upsampling: Upsampling = "filter"

    def __init__(
        self,
        name: str,
        make: Callable[[], BatchModel],
        *,
        slots: int,
        rate: int,
        block: int,
        delay: float,
        queue_seconds: float,
        on_step: Callable[[float, int], None] = lambda seconds, rows: None,
    ) -> None:
        self.name = name
        self.rate = rate
        self.block = block
        self.slots = slots
        self.counters: Counter[str] = Counter()
        self.on_step = on_step
        self._make = make
        self._wake = asyncio.Event()
        block_seconds = block / rate
        self._table = Slots(
            slots,
            block_seconds=block_seconds,
            delay=delay,
            queue_blocks=max(2, round(queue_seconds / block_seconds)),
            wake=self._wake.set,
        )
        self._thread: ThreadPoolExecutor | None = None
        self._model: BatchModel | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)

    @property
    def used(self) -> int:
        """Slots that are leased."""
        return self._table.used

    @property
    def ready(self) -> bool:
        """A model is loaded and has not just failed."""
        return self._model is not None

    async def start(self) -> None:
        """Make the model. Raises `EngineUnavailable`."""
        try:
            await self._load()
        except Exception as e:
            self._drop()
            raise EngineUnavailable(f"the engine {self.name!r} cannot be loaded: {e}") from e
        self._task = asyncio.create_task(self._run(), name=f"engine {self.name}")

    async def close(self) -> None:
        """Stop stepping and free every slot."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for lease in self._table.leases:
            lease.evict()
        self._drop()

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> SlotLease:
        """A fresh slot. Raises `Busy`."""
        if self._model is None:
            raise Busy("not ready", "the engine is not ready")
        return self._table.lease(heard, done)

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            plan = self._table.schedule()
            if not plan:
                self._wake.clear()
                continue
            results: Sequence[Heard] = ()
            if plan.rows:
                stepped = await self._step(plan)
                if stepped is None:
                    self._table.abandon(plan)
                    await self._reload()
                    continue
                results = stepped
            self._table.commit(plan, results)

    async def _step(self, plan: Plan) -> Sequence[Heard] | None:
        assert self._model is not None
        model, began = self._model, time.perf_counter()

        def step() -> Sequence[Heard]:
            return model.step(_batch(plan, model))

        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, step)
        except Exception as e:
            self.counters["step_errors"] += 1
            log.error("the engine's step failed, the engine is made anew: %r", e)
            return None
        self.on_step(time.perf_counter() - began, len(plan.rows))
        return results

    async def _load(self) -> None:
        self._drop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{self.name}")
        self._model = await asyncio.get_running_loop().run_in_executor(self._thread, self._make)

    async def _reload(self) -> None:
        """Until it works: at once, but not ready and slower when it keeps failing."""
        while True:
            self._failures.append(time.monotonic())
            self._drop()
            if len(self._failures) == MAX_FAILURES and self._failures[-1] - self._failures[0] < 60:
                await asyncio.sleep(RETRY)
            try:
                await self._load()
            except Exception as e:
                self._model = None
                self.counters["load_errors"] += 1
                log.error("the engine cannot be made anew, next try in %.0f s: %r", RETRY, e)
            else:
                self.counters["restarts"] += 1
                return

    def _drop(self) -> None:
        self._model = None
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None


def _batch(plan: Plan, model: BatchModel) -> Batch:
    pcm = np.zeros((model.slots, model.block), np.float32)
    active = np.zeros(model.slots, np.bool_)
    fresh = np.zeros(model.slots, np.bool_)
    for row in plan.rows:
        slot = row.lease.slot
        active[slot] = True
        fresh[slot] = row.fresh
        if row.block is not None:
            pcm[slot] = row.block
    return Batch(pcm, active, fresh)
