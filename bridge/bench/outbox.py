"""`callscribe bench outbox`: what it costs to have every event on the disk before it is told.

By itself, and as a part of the whole bridge, which hears as many legs meanwhile (`words_subject`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from bridge.bench import media
from bridge.config import WebhookSettings
from bridge.egress.outbox import Outbox
from bridge.egress.shelf import Shelves
from bridge.egress.store import Store
from bridge.egress.store_types import Done, Keep, Note, Op, StoreLimits
from bridge.egress.webhook import Webhook
from bridge.types import CallEvent, CallInfo, Final, Word
from bridge.worker import loop_factory

WORDS = 2.5  # a second and leg
RATE = 2500.0  # events a second that a core should carry beside its legs
T = TypeVar("T")

SECRET = "whsec_" + "AAAA" * 8
ROUND = 0.01  # s between two looks at who has something to say


def run(args: argparse.Namespace) -> int:
    """Print the tables of BENCHMARKS.md."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        _commits(Path(folder), args.commits)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_words(Path(folder), args.legs, args.seconds, args.burst))
            for legs, words in ((args.legs, WORDS), (args.beside, RATE / args.beside)):
                runner.run(_beside(Path(folder), legs, words, args.seconds))
    return 0


def _event(call: int, seq: int) -> CallEvent:
    at = repr(time.monotonic())
    words = (Word("hello", seq, seq + 0.4, 0.9),)
    info = CallInfo(f"5282687d-08f5-4e0e-9e83-{call:012d}", channel=f"PJSIP/trunk-{call:08x}")
    return CallEvent(info, seq, time.time(), "caller", Final(seq, at, words))


# -- the file alone ------------------------------------------------------------------------------


def _commits(folder: Path, times: int) -> None:
    print("events a commit | events/s | a commit: p50, p99 ms | events/s of a core's time")
    for many in (1, 10, 100):
        store = Store(folder / f"commits-{many}.db", StoreLimits())
        store.open()
        spent, cpu = [], 0.0
        for n in range(times):
            events = [_event(call, n) for call in range(many)]
            ops: list[Op] = [op for e in events for op in (Note(e), Keep("hook", e, 2, False))]
            ops += [Done("hook", e.call.id, n - 1) for e in events]  # what was taken meanwhile
            began, used = time.perf_counter(), time.process_time()
            store.apply(ops)
            spent.append(time.perf_counter() - began)
            cpu += time.process_time() - used
        store.close()
        p50, p99 = np.percentile(spent, (50, 99)) * 1e3
        rate, alone = many * times / sum(spent), many * times / cpu
        print(f"{many:>15} | {rate:>8.0f} | {p50:.2f}, {p99:.2f} | {alone:.0f}", flush=True)


# -- words to a webhook --------------------------------------------------------------------------


class _Peer:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out, self._pid = process.stdin, process.stdout, process.pid

    async def line(self) -> str:
        async with asyncio.timeout(60):
            return (await self._out.readline()).decode()

    def stay_away(self) -> None:
        """Leave the first core to the process that is measured."""
        if cores := sorted(os.sched_getaffinity(0))[1:]:
            os.sched_setaffinity(self._pid, cores)

    async def report(self) -> dict[str, float]:
        self._in.write(b"\n")
        return dict(json.loads(await self.line()))


@asynccontextmanager
async def _peer() -> AsyncIterator[tuple[_Peer, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.bench.outbox_peer"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        peer = _Peer(process)
        yield peer, f"http://127.0.0.1:{int(await peer.line())}/hook"
    finally:
        process.kill()
        await process.wait()


class _Line:
    """An outbox in front of the receiver; `path` None: in memory."""

    def __init__(self, url: str, path: Path | None, *, batch: bool) -> None:
        self.shelves = None if path is None else Shelves(path, StoreLimits())
        hook = Webhook(WebhookSettings(url=url, secret=SECRET, batch=batch))
        shelf = None if self.shelves is None else self.shelves.shelf("hook")
        self.box = Outbox(hook, limit=100_000, shelf=shelf)

    async def start(self) -> None:
        if self.shelves is not None:
            await self.shelves.start()
        await self.box.start()

    def put(self, event: CallEvent) -> None:
        if self.shelves is not None:
            self.shelves.publish(event, self.box.put)
        else:
            self.box.put(event)

    async def close(self) -> None:
        await self.box.close(5.0)
        if self.shelves is not None:
            await self.shelves.close(5.0)


async def _words(folder: Path, legs: int, seconds: float, burst: int) -> None:
    print(f"\n{legs} legs, {WORDS} words a second each, a final per word; then {burst} at once")
    print(
        "outbox | POST carries | word → receiver: p50, p99 ms | CPU | burst: events/s, CPU",
        flush=True,
    )
    for place in ("memory", "file"):
        for batch in (False, True):
            async with _peer() as (peer, url):
                path = folder / f"words-{batch}.db" if place == "file" else None
                line = _Line(url, path, batch=batch)
                await line.start()
                cpu = await _steady(line, legs, seconds)
                steady = await peer.report()
                rate, busy = await _burst(line, legs, burst)
                assert (await peer.report())["events"] == burst
                await line.close()
            carries = "a run" if batch else "one event"
            print(
                f"{place:>6} | {carries:>12} | {steady['p50'] * 1e3:.1f}, "
                f"{steady['p99'] * 1e3:.1f} | {cpu:.0%} | {rate:.0f}, {busy:.0%}",
                flush=True,
            )


async def _steady(line: _Line, legs: int, seconds: float) -> float:
    """Words as they come; the share of a core that it took."""
    began, cpu, made = time.monotonic(), time.process_time(), 0
    while (now := time.monotonic() - began) < seconds:
        while made < now * legs * WORDS:  # each leg in turn: evenly spread, as callers are
            line.put(_event(made % legs, made // legs))
            made += 1
        await asyncio.sleep(ROUND)
    spent = (time.process_time() - cpu) / (time.monotonic() - began)
    await _empty(line)
    return spent


async def _burst(line: _Line, legs: int, events: int) -> tuple[float, float]:
    """All at once: events a second until the last was taken, and the share of a core."""
    began, cpu = time.monotonic(), time.process_time()
    for n in range(events):
        line.put(_event(legs + n % legs, n // legs))
        if n % 500 == 499:
            await asyncio.sleep(0)
    await _empty(line)
    spent = time.monotonic() - began
    return events / spent, (time.process_time() - cpu) / spent


async def _empty(line: _Line) -> None:
    async with asyncio.timeout(60):
        while line.box.queued:  # noqa: ASYNC110 - no event for a bench only
            await asyncio.sleep(0.001)


def _from_a_thread(ask: Callable[[], Coroutine[object, object, T]]) -> Callable[[], T]:
    loop = asyncio.get_running_loop()
    return lambda: asyncio.run_coroutine_threadsafe(ask(), loop).result()


# -- beside everything else --------------------------------------------------------------------


async def _beside(folder: Path, legs: int, words: float, seconds: float) -> None:
    """The whole bridge on one core: without events, and with them in each way."""
    every = max(1, round(12.5 / words))
    rate = legs * 12.5 / every
    print(f"\n{legs} AudioSocket legs in the same process, {rate:.0f} events a second")
    print(
        "outbox | POST carries | word → receiver: p50, p99 ms | events/s | CPU | loop late p99 ms"
    )
    for place, batch in (("", False), ("memory", False), ("file", False), ("file", True)):
        async with _peer() as (peer, url):
            peer.stay_away()
            path = str(folder / f"beside-{legs}-{batch}.db") if place == "file" else ""
            how = {"url": url, "secret": SECRET, "batch": batch, "path": path}
            how["every"] = every if place else 0
            rung = await asyncio.to_thread(
                media.measure,
                *(legs, seconds, "ours"),
                keepalive=json.dumps(how),
                loop="uvloop",
                module="bridge.bench.words_subject",
                begun=_from_a_thread(peer.report),
            )
            told = await peer.report()
        carries = ("a run" if batch else "one event") if place else ""
        print(
            f"{place or 'none':>6} | {carries:>12} | {told['p50'] * 1e3:.1f}, "
            f"{told['p99'] * 1e3:.1f} | {told['events'] / seconds:.0f} | {rung.cpu:.0%} | "
            f"{rung.late99 * 1e3:.1f}",
            flush=True,
        )
