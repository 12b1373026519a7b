"""What a batch step costs, and how many calls one machine takes.

The whole way of the product is measured: blocks in the queues of leases, the batch's schedule, the
process that has the model, words of tokens, what legs are told. Once in each step moshi's own
part, with the same number of rows and nothing around it, is measured in the same process. Legs
begin one after another, and their rings are filled first (`--fill`). Then two phases per number of
slots:

* *work*: every row has blocks waiting, steps follow each other as fast as they go;
* *live*: every row gets a block each 80 ms, at moments spread over the 80 ms, as calls do.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.config import EngineSettings
from bridge.engine.batcher import Batcher
from bridge.engine.slots import SlotLease
from bridge.errors import BridgeError
from bridge.types import Block, Heard

BLOCK = 0.08  # s
BUDGETS = (0.04, 0.08)  # s
FLUSHES = 5
PATIENCE = 1800.0  # s
MOST_STEPS = 1000  # that the queues hold
STAGGER = 16  # steps over which legs begin
DEFAULT_SLOTS = {"cuda": (1, 8, 64, 128, 256, 400, 600, 800, 1000, 1100), "cpu": (1, 2, 4, 8)}
TARGET = "bridge.engine.kyutai_measure:make"
RAW = np.float32(0.5)  # bridge.engine.kyutai_measure.RAW; that module imports torch


@dataclass
class Rung:
    """One number of slots. Seconds and bytes."""

    slots: int
    raw: list[float] = field(default_factory=list)  # moshi's own step
    rows: list[float] = field(default_factory=list)  # ours in the model's process
    steps: list[float] = field(default_factory=list)  # as the batcher sees them
    cycle: float = 0.0  # schedule, step, commit, without moshi's own
    waits: list[float] = field(default_factory=list)  # live: from a block to what it told
    live: tuple[float, float] = (0.0, 0.0)  # steps a second, and cores that the bridge takes
    flushes: list[float] = field(default_factory=list)  # from flush() to all that was held back
    machine: dict[str, Any] = field(default_factory=dict)
    slot_bytes: int = 0

    @property
    def step(self) -> float:
        return float(np.median(self.steps))

    @property
    def p99(self) -> float:
        return float(np.percentile(self.steps, 99))

    @property
    def host(self) -> float:
        """Seconds of a cycle that are not the model's."""
        return max(0.0, self.cycle - float(np.mean(self.rows)))

    @property
    def overhead(self) -> float:
        """Our whole cycle over moshi's own step, both as means of the same steps."""
        return self.cycle / float(np.mean(self.raw)) - 1

    @property
    def floor(self) -> float:
        """Seconds in which the memory that a step must read can be read once."""
        read: float = self.machine["weights"] + self.slots * self.slot_bytes
        return read / float(self.machine["bandwidth"])


def run(args: argparse.Namespace) -> int:
    """Climb the rungs and print the table."""
    from bridge.engine import device

    if importlib.util.find_spec("moshi") is None:
        raise BridgeError("bench engine needs moshi: pip install 'callscribe[kyutai]'")
    kind = device.resolve(args.device)
    slots = args.slots or DEFAULT_SLOTS["cpu" if kind == "cpu" else "cuda"]
    fill = args.fill if args.fill is not None else (0 if kind == "cpu" else 760)
    rungs = asyncio.run(_climb(args, kind, slots, fill))
    if not rungs:
        return 1
    _print_sums(rungs)
    if args.plot:
        _plot(rungs, args.plot, args.model or args.random_weights)
    return 0


async def _climb(
    args: argparse.Namespace, kind: str, slots: Sequence[int], fill: int
) -> list[Rung]:
    rungs: list[Rung] = []
    for count in slots:
        try:
            rungs.append(await _rung(args, kind, count, fill))
        except BridgeError as e:
            print(f"{count} slots: {e}", file=sys.stderr)
            break
        if len(rungs) == 1:
            _print_machine(rungs[0], args)
        _print_rung(rungs[-1], rungs[0])
    return rungs


async def _rung(args: argparse.Namespace, kind: str, slots: int, fill: int) -> Rung:
    from bridge.engine import kyutai_engine

    rung = Rung(slots)
    settings = EngineSettings(
        kind="kyutai", device=kind, dtype=args.dtype, slots=slots, threads=args.threads,
        queue_seconds=120, replay_seconds=0, watchdog=0, step_timeout=600, speedups=args.speedups,
        coalesce=args.coalesce,
        **({"model": args.model} if args.model else {}),
    )  # fmt: skip
    options = kyutai_engine.options(settings)
    if not args.model:
        options["random"] = args.random_weights

    def progress(line: str) -> None:
        if line.startswith("{"):
            rung.machine = json.loads(line)

    engine = kyutai_engine.engine(options, settings, budget=None, target=TARGET, progress=progress)
    await engine.start()
    try:
        model = engine.model
        assert isinstance(model, kyutai_engine.KyutaiModel)
        rung.slot_bytes = model.facts.slot_bytes
        legs = _Legs(engine)
        await _fill(legs, fill)
        await _work(engine, legs, model.batch.pcm, rung, min(args.steps, MOST_STEPS))
        if rung.p99 < BLOCK:
            await _live(engine, legs, rung, args.live)
        legs.leave()
        await _flush(engine, rung)
    finally:
        await engine.close()
    return rung


class _Legs:
    """Leases on every slot. `told` gets (leg, heard)."""

    def __init__(self, engine: Batcher) -> None:
        self.told: Callable[[int, Heard], None] = lambda leg, heard: None
        self.pushed = [0] * engine.slots  # blocks
        self._engine = engine
        self._leases: list[SlotLease] = [
            engine.lease(lambda heard, leg=leg: self.told(leg, heard), lambda: None)  # type: ignore[misc]
            for leg in range(engine.slots)
        ]

    def push(self, leg: int, block: Block) -> None:
        self.pushed[leg] += 1
        self._leases[leg].push(block)

    async def hear(self, block: Block, wanted: Sequence[int]) -> None:
        """`wanted[leg]` blocks for each, and return when they have been heard."""
        done, most = asyncio.Event(), max(wanted)
        count = 0

        def on_step(seconds: float, rows: int) -> None:
            nonlocal count
            count += 1
            if count == most:
                done.set()

        self._engine.on_step = on_step
        for leg, blocks in enumerate(wanted):
            for _ in range(blocks):
                self.push(leg, block)
        async with asyncio.timeout(PATIENCE):
            await done.wait()

    def leave(self) -> None:
        for lease in self._leases:
            lease.evict()


def _noise(rng: np.random.Generator, *, raw: bool) -> Block:
    """Loud enough to be speech. `raw`: moshi's own step is asked for as well."""
    block: Block = (rng.standard_normal(1920) * 0.1).astype(np.float32)
    block[0] = RAW if raw else 0.0
    return block


async def _fill(legs: _Legs, blocks: int) -> None:
    """The legs begin one after another, so that no two are at the same place of their rings."""
    quiet, count = _noise(np.random.default_rng(3), raw=False), len(legs.pushed)
    for wave in range(STAGGER):
        await legs.hear(quiet, [int(leg % STAGGER <= wave) for leg in range(count)])
    if blocks:
        await legs.hear(quiet, [blocks] * count)


async def _work(engine: Batcher, legs: _Legs, pcm: Block, rung: Rung, steps: int) -> None:
    """`steps` steps of all rows, one behind the other, and a few before to warm up."""
    warm, rng, done = 3, np.random.default_rng(0), asyncio.Event()
    began, aside = 0.0, [0.0]

    def on_step(seconds: float, rows: int) -> None:
        nonlocal began
        raw, ours, before = (float(value) for value in pcm[0, :3])
        rung.raw.append(raw)
        rung.rows.append(ours)
        rung.steps.append(seconds - before)
        aside.append(before)
        if len(rung.steps) == warm:
            began = time.perf_counter()
        if len(rung.steps) == warm + steps:
            done.set()

    engine.on_step = on_step
    block = _noise(rng, raw=True)
    for leg in range(len(legs.pushed)):
        for _ in range(warm + steps + 1):
            legs.push(leg, block)
    async with asyncio.timeout(PATIENCE):
        await done.wait()
    elapsed = time.perf_counter() - began
    engine.on_step = lambda seconds, rows: None
    for times in (rung.raw, rung.rows, rung.steps):
        del times[:warm], times[steps:]
    rung.cycle = elapsed / steps - float(np.mean(aside[warm + 1 : warm + 1 + steps]))


async def _live(engine: Batcher, legs: _Legs, rung: Rung, seconds: float) -> None:
    """Blocks at moments spread over 80 ms; how long each waits for its step."""
    rng, count = np.random.default_rng(1), len(legs.pushed)
    before = list(legs.pushed)
    at: list[list[float]] = [[] for _ in range(count)]

    def told(leg: int, heard: Heard) -> None:
        block = round(heard.at / BLOCK) - 1 - before[leg]
        if 0 <= block < len(at[leg]):
            rung.waits.append(time.perf_counter() - at[leg][block])

    steps = 0

    def on_step(seconds: float, rows: int) -> None:
        nonlocal steps
        steps += 1

    engine.on_step, legs.told = on_step, told
    cpu = time.process_time()
    moments = np.sort(rng.uniform(0, BLOCK, count))
    block = _noise(rng, raw=False)
    began = time.perf_counter() + 0.05
    for turn in range(round(seconds / BLOCK)):
        for leg, moment in enumerate(moments):
            due = began + turn * BLOCK + moment
            late = due - time.perf_counter()
            if late > 0:
                await asyncio.sleep(late)
            at[leg].append(time.perf_counter())
            legs.push(leg, block)
    elapsed = time.perf_counter() - began
    rung.live = steps / elapsed, (time.process_time() - cpu) / elapsed
    await asyncio.sleep(2 * BLOCK)
    engine.on_step = lambda seconds, rows: None


async def _flush(engine: Batcher, rung: Rung) -> None:
    """What a pause costs: one leg after another says more than is held back, and is flushed."""
    for _ in range(FLUSHES):
        rung.flushes.append(await _one_flush(engine))


async def _one_flush(engine: Batcher) -> float:
    blocks, block = 8, _noise(np.random.default_rng(2), raw=False)
    wanted, began = blocks * BLOCK - 1e-6, 0.0
    taken: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def told(heard: Heard) -> None:
        nonlocal began
        if not began and heard.at >= wanted:
            began = time.perf_counter()
            lease.flush()
        elif began and heard.settled >= wanted and not taken.done():
            taken.set_result(time.perf_counter() - began)

    lease = engine.lease(told, lambda: None)
    for _ in range(blocks):
        lease.push(block)
    async with asyncio.timeout(PATIENCE):
        seconds = await taken
    lease.evict()
    return seconds


# -- telling -------------------------------------------------------------------------------------


def _print_machine(rung: Rung, args: argparse.Namespace) -> None:
    machine = rung.machine
    print(
        f"{args.model or args.random_weights + ' (random weights)'} on {machine['device']}: "
        f"weights {machine['weights'] / 1e9:.2f} GB, {rung.slot_bytes / 1e6:.1f} MB a slot, "
        f"memory bandwidth {machine['bandwidth'] / 1e9:.1f} GB/s (copying)"
    )
    print(
        "slots  step p50      p99   moshi's  overhead  host µs  floor  of floor  × real time"
        "  reference loops  memory     flush  live: waits p50/p99, steps, the bridge's own CPU"
    )


def _print_rung(rung: Rung, first: Rung) -> None:
    loops = float(np.mean(first.raw)) * rung.slots / rung.cycle if first.slots == 1 else math.nan
    waits = (
        f"{np.median(rung.waits) * 1e3:.1f}/{np.percentile(rung.waits, 99) * 1e3:.1f} ms, "
        f"{rung.live[0]:.0f} steps/s, {rung.live[1]:.0%} of a core"
        if rung.waits
        else "not live"
    )
    print(
        f"{rung.slots:5d}  {rung.step * 1e3:7.2f} ms  {rung.p99 * 1e3:7.2f}"
        f"  {np.mean(rung.raw) * 1e3:8.2f}  {rung.overhead:8.1%}  {rung.host * 1e6:7.0f}"
        f"  {rung.floor * 1e3:5.2f}  {rung.floor / rung.step:8.0%}"
        f"  {BLOCK / rung.step:11.2f}  {loops:14.1f}×"
        f"  {rung.machine['used'] / 1e9:4.1f} GB  {np.median(rung.flushes) * 1e3:5.0f} ms  {waits}",
        flush=True,
    )


def _print_sums(rungs: Sequence[Rung]) -> None:
    for budget in BUDGETS:
        fits = [rung.slots for rung in rungs if rung.p99 <= budget]
        most = f"{max(fits)} slots" if fits else "none"
        print(f"most slots measured with step p99 ≤ {budget * 1e3:.0f} ms: {most}")
    print(
        "overhead: our whole cycle over moshi's own mimi.encode and lm_gen.step; "
        "reference loops: that many loops of one call each, over our cycle"
    )


def _plot(rungs: Sequence[Rung], path: Path, name: str) -> None:
    try:
        import matplotlib
    except ImportError:
        raise BridgeError("--plot needs matplotlib: pip install 'callscribe[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    slots = [rung.slots for rung in rungs]
    for label, style, values in (
        ("step p99", "o-", [rung.p99 for rung in rungs]),
        ("step p50", "o-", [rung.step for rung in rungs]),
        ("moshi's own step", "s--", [float(np.mean(rung.raw)) for rung in rungs]),
        ("floor (memory)", ":", [rung.floor for rung in rungs]),
    ):
        axes.plot(slots, [value * 1e3 for value in values], style, label=label)
    for budget in BUDGETS:
        axes.axhline(budget * 1e3, color="grey", linewidth=0.7)
    axes.set(xlabel="slots", ylabel="ms", yscale="log", xscale="log",
             title=f"{name} on {rungs[0].machine['device']}")  # fmt: skip
    axes.set_xticks(slots, [str(n) for n in slots])
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
