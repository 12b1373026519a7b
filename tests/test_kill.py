"""kill -9 at any moment, between commit, POST and answer; nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bridge.types import Partial
from tests.outbox_child import LENGTH, body

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0  # seconds; machines stall


class Receiver:
    """Takes events; one time in three it answers 500, before or after it has taken one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.arrivals: list[tuple[str, list[dict[str, Any]]]] = []  # webhook-id, events

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            told = json.loads(await request.read())
        except ConnectionError:  # whoever sent it was killed
            return web.Response()
        whim = self.random.randrange(9)
        if whim != 0:
            events = told if isinstance(told, list) else [told]
            self.arrivals.append((request.headers["webhook-id"], events))
        if whim == 2:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=500 if whim < 2 else 200)

    def check(self, calls: set[str]) -> None:
        """Whole, in order, and the same under the same id."""
        first: dict[str, list[dict[str, Any]]] = {}
        under: dict[str, list[tuple[str, int]]] = {}
        known: dict[tuple[str, int], Any] = {}
        for name, events in self.arrivals:
            which = [(event["data"]["call_id"], event["data"]["seq"]) for event in events]
            assert under.setdefault(name, which) == which
            if len(which) == 1:
                assert name == f"{which[0][0]}:hook:{which[0][1]}"
            for each, event in zip(which, events, strict=True):
                data = {k: v for k, v in event["data"].items() if k != "gap_before"}
                said = (event["type"], event["timestamp"], data)
                if known.setdefault(each, said) is said:
                    first.setdefault(each[0], []).append(event["data"])
                else:
                    assert known[each] == said
        assert set(first) == calls
        for call, events in first.items():
            self._check_call(call, events)

    def _check_call(self, call: str, events: list[dict[str, Any]]) -> None:
        seqs = [event["seq"] for event in events]
        assert seqs == sorted(seqs), call
        firm = {seq for seq in range(LENGTH) if not isinstance(body(seq), Partial)}
        assert firm <= set(seqs), (call, sorted(firm - set(seqs)))
        before = -1
        for event in events:
            assert event["seq"] - event.get("gap_before", 0) - 1 <= before, (call, event["seq"])
            before = event["seq"]


@asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(receiver.handle), shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


async def lives(path: Path, url: str, way: str, kills: int, seed: int) -> None:
    """So many children, each killed after some time; the last one ends by itself."""
    whim = random.Random(seed)
    zygote = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.outbox_child", str(path), url, way),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # a sink that fails says so
    )
    assert zygote.stdin is not None and zygote.stdout is not None
    pid = 0
    try:
        for run in range(kills + 1):
            zygote.stdin.write(f"{run} {'last' if run == kills else 'more'}\n".encode())
            async with asyncio.timeout(PATIENCE):
                pid = int(await zygote.stdout.readline())
            if run < kills:
                await asyncio.sleep(whim.uniform(0.01, 0.25))  # the moment is what is tested
                os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE):
                status = int(await zygote.stdout.readline())
            assert status == (0 if run == kills else -signal.SIGKILL)
            pid = 0
        zygote.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await zygote.wait()
    finally:
        if zygote.returncode is None:
            if pid:
                os.kill(pid, signal.SIGKILL)
            zygote.kill()
            await zygote.wait()


async def killed(path: Path, way: str, kills: int, seed: int) -> None:
    receiver = Receiver(seed)
    async with receiving(receiver) as url:
        await lives(path, url, way, kills, seed)
    with sqlite3.connect(path) as db:
        calls = {row[0] for row in db.execute("SELECT id FROM call")}
        assert db.execute("SELECT count(*) FROM call WHERE over = 0").fetchone() == (0,)
        columns = "sink, call, seq, state, attempts, error"
        assert db.execute(f"SELECT {columns} FROM event").fetchall() == []
        assert db.execute("SELECT * FROM backlog").fetchall() == []
    db.close()
    receiver.check(calls)
    assert len(calls) > kills // 4
    if way == "batch":
        assert any(len({e["data"]["call_id"] for e in told}) > 1 for _, told in receiver.arrivals)
    events = [event["data"] for _, told in receiver.arrivals for event in told]
    said = [(data["call_id"], data["seq"]) for data in events]
    news = len(set(said))
    print(f"{way}, seed {seed}: {kills} kills, {len(calls)} calls, {news} events in "
          f"{len(receiver.arrivals)} POSTs, {len(said) - news} of them again")  # fmt: skip


@pytest.mark.parametrize("way", ["single", "batch"])
async def test_nothing_is_lost_however_often_it_is_killed(tmp_path: Path, way: str) -> None:
    await killed(tmp_path / "outbox.db", way, 20, random.randrange(1 << 32))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["single", "batch"])
async def test_two_hundred_kills(tmp_path: Path, way: str) -> None:
    await killed(tmp_path / "outbox.db", way, 200, random.randrange(1 << 32))
