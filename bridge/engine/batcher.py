"""Schedule → step on the model's thread → commit. Turns a `BatchModel` into a `Recogniser`.

A step runs as soon as the last one is done and somebody has a block, or, with `coalesce`, so long
after the last one began, that more legs may be in it; a leg that fell behind catches up one block
per step. The model is made, called and dropped on one thread only. A step
that raises costs the model: it is made anew on a fresh thread, and every leg is heard again from a
few seconds back. After `MAX_FAILURES` within a minute the engine is not ready, and is tried again
every `RETRY` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bridge.config import EngineSettings
from bridge.engine.budget import StepBudget
from bridge.engine.slots import Plan, SlotLease, Slots
from bridge.errors import Busy, EngineUnavailable
from bridge.interfaces import BatchModel, Upsampling
from bridge.types import Heard

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a minute
RETRY = 5.0  # s
SPELLING = 3  # blocks beyond the delay in which a last word is completed


@dataclass(frozen=True, slots=True)
class BatchRules:
    """Settings of [engine]; see bridge/config.py. Seconds."""

    queue_seconds: float = 10.0
    replay_seconds: float = 12.0
    step_budget: float | None = None
    flush: bool = True
    coalesce: float = 0.0


def rules(settings: EngineSettings, budget: float | None = None) -> BatchRules:
    """Those of the configuration. `budget`: what no setting means; 0 in the setting: no limit."""
    limit = budget if settings.step_budget is None else settings.step_budget
    return BatchRules(
        settings.queue_seconds,
        settings.replay_seconds,
        limit or None,
        settings.flush,
        settings.coalesce,
    )


class Batcher:
    """The local batch. Implements `bridge.interfaces.Recogniser`.

    `make` is called on the model's thread and may take long. `on_step` gets (seconds, rows).
    `language` tells the language of a text.
    """

    upsampling: Upsampling = "filter"

    def __init__(
        self,
        name: str,
        make: Callable[[], BatchModel],
        *,
        rate: int,
        block: int,
        rules: BatchRules,
        language: Callable[[str], str] = lambda text: "",
        on_step: Callable[[float, int], None] = lambda seconds, rows: None,
    ) -> None:
        self.name = name
        self.rate = rate
        self.block = block
        self.slots = 0  # until the model has said how many
        self.settle = 0.0
        self.counters: Counter[str] = Counter()
        self.on_step = on_step
        self.language = language
        self.budget = StepBudget(rules.step_budget)
        self._make = make
        self._rules = rules
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._table: Slots | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._model: BatchModel | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._began = -math.inf  # the last step
        self._closed = False

    @property
    def used(self) -> int:
        """Slots that are leased."""
        return self._table.used if self._table is not None else 0

    @property
    def model(self) -> BatchModel | None:
        """The model, while there is one. Its thread is another."""
        return self._model

    @property
    def ready(self) -> bool:
        """A model is loaded and has not just failed."""
        return self._model is not None

    async def start(self) -> None:
        """Make the model. Raises `EngineUnavailable`."""
        try:
            model = await self._load()
        except EngineUnavailable:
            await self._drop()
            raise
        except Exception as e:
            await self._drop()
            raise EngineUnavailable(f"the engine {self.name!r} cannot be loaded: {e}") from e
        self.slots = model.slots
        block_seconds = self.block / self.rate
        self.settle = model.delay + SPELLING * block_seconds
        self._table = Slots(
            model.slots,
            block_seconds=block_seconds,
            delay=model.delay,
            queue_blocks=max(2, round(self._rules.queue_seconds / block_seconds)),
            wake=self._wake.set,
            hurry=self._hurry.set,
            keep_seconds=self._rules.replay_seconds,
            flush=self._rules.flush,
            counters=self.counters,
        )
        self._task = asyncio.create_task(self._run(self._table), name=f"engine {self.name}")

    async def close(self) -> None:
        """Stop stepping and free every slot."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for lease in self._table.leases if self._table is not None else ():
            lease.evict()
        await self._drop()

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> SlotLease:
        """A fresh slot. Raises `Busy`."""
        if self._model is None or self._table is None:
            raise Busy("not ready", "the engine is not ready")
        if self.budget.spent(time.monotonic()):
            assert self.budget.limit is not None
            raise Busy(
                "overload",
                f"steps of the engine take longer than {self.budget.limit * 1000:.0f} ms: "
                "there is no time left for another leg",
            )
        return self._table.lease(heard, done)

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self, table: Slots) -> None:
        while True:
            await self._wake.wait()
            try:
                await self._gather(table)
                await self._turn(table)
            except Exception:
                self.counters["loop_errors"] += 1
                log.exception("the engine's loop failed, the engine is made anew")
                table.abandon(Plan())
                await self._reload()

    async def _gather(self, table: Slots) -> None:
        """Wait for blocks of more legs, if there is time and nobody in a hurry."""
        left = self._began + self._rules.coalesce - time.monotonic()
        self._hurry.clear()
        if left > 0 and not table.hurried:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._hurry.wait()

    async def _turn(self, table: Slots) -> None:
        plan = table.schedule()
        if not plan:
            self._wake.clear()
            return
        results: Mapping[int, Heard] = {}
        if plan.rows:
            stepped = await self._step(plan)
            if stepped is None:
                table.abandon(plan)
                await self._reload()
                return
            results = stepped
        table.commit(plan, results)

    async def _step(self, plan: Plan) -> Mapping[int, Heard] | None:
        assert self._model is not None
        model, began = self._model, time.perf_counter()

        def step() -> Mapping[int, Heard]:
            _fill(model, plan)
            return model.step()

        self._began = time.monotonic()
        self.budget.begin(self._began)
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, step)
        except Exception as e:
            self.counters["step_errors"] += 1
            log.error("the engine's step failed, the engine is made anew: %r", e)
            return None
        seconds = time.perf_counter() - began
        self.budget.add(seconds, time.monotonic())
        self.on_step(seconds, len(plan.rows))
        return results

    async def _load(self) -> BatchModel:
        await self._drop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"engine-{self.name}")
        loop = asyncio.get_running_loop()
        self._model = await loop.run_in_executor(self._thread, self._make)
        if self._closed:
            raise EngineUnavailable(f"the engine {self.name!r} was closed while it was loaded")
        return self._model

    async def _reload(self) -> None:
        """Until it works: at once, but not ready and slower when it keeps failing."""
        while True:
            self._failures.append(time.monotonic())
            await self._drop()
            if len(self._failures) == MAX_FAILURES and self._failures[-1] - self._failures[0] < 60:
                await asyncio.sleep(RETRY)
            try:
                model = await self._load()
                if model.slots < self.slots:
                    raise EngineUnavailable(
                        f"it has {model.slots} slots now and had {self.slots} before"
                    )
            except Exception as e:
                await self._drop()
                self.counters["load_errors"] += 1
                log.error("the engine cannot be made anew: %r", e)
            else:
                self.counters["restarts"] += 1
                return

    async def _drop(self) -> None:
        """Let go of the model, and wait until its memory is free for the next one."""
        model, self._model = self._model, None
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None
        if model is not None:
            # Not the model's own thread, in which a step may be under way.
            closer = ThreadPoolExecutor(1, thread_name_prefix=f"close-{self.name}")
            try:
                await asyncio.get_running_loop().run_in_executor(closer, model.close)
            except Exception:
                log.exception("the engine could not be closed")
            finally:
                closer.shutdown(wait=False)


def _fill(model: BatchModel, plan: Plan) -> None:
    batch = model.batch
    batch.active[:] = False
    batch.fresh[:] = False
    batch.ending[:] = False
    for row in plan.rows:
        slot = row.lease.slot
        batch.active[slot] = True
        batch.pcm[slot] = 0.0 if row.block is None else row.block
        if row.fresh:
            batch.fresh[slot] = True
        if row.ending:
            batch.ending[slot] = True
