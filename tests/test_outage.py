"""An endpoint is down while 250 events a second come, then it is up again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from bridge.egress import retry
from bridge.egress.outbox import Outbox
from bridge.egress.shelf import Shelves
from bridge.egress.store_types import StoreLimits
from bridge.errors import DeliveryError
from bridge.types import CallEvent, CallInfo, Ended, Final, Started
from tests.waiting import until

RATE = 250  # events a second
CALLS = 100  # at once
LENGTH = 40  # events of a call
WINDOW = 100  # rows in memory


class Endpoint:
    def __init__(self, name: str) -> None:
        self.name = name
        self.up = True
        self.taken: Counter[str] = Counter()
        self.last: dict[str, int] = {}
        self.waits: list[float] = []
        self.wrong: list[str] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def deliver(self, event: CallEvent) -> None:
        await asyncio.sleep(0)
        if not self.up:
            raise DeliveryError("example.net answered 503")
        call = event.call.id
        if event.seq != self.last.get(call, -1) + 1 or event.gap_before:
            self.wrong.append(f"{call}: {event.seq} after {self.last.get(call)}")
        self.last[call] = event.seq
        self.taken[call] += 1
        self.waits.append(time.time() - event.at)


class Calls:
    """A hundred at once, each saying its next in turn."""

    def __init__(self) -> None:
        self.made = 0

    def next(self) -> CallEvent:
        generation, place = divmod(self.made, CALLS)
        turn, seq = divmod(generation, LENGTH)
        self.made += 1
        body = Started() if seq == 0 else Final(seq, "so and so", ())
        last = Ended("hangup", 1.0, {}) if seq == LENGTH - 1 else body
        return CallEvent(CallInfo(f"{turn}-{place}"), seq, time.time(), "caller", last)


async def outage(path: Path, seconds: float) -> None:
    shelves = Shelves(path, StoreLimits())
    down, well = Endpoint("down"), Endpoint("well")
    boxes = [Outbox(s, limit=WINDOW, shelf=shelves.shelf(s.name)) for s in (down, well)]
    await shelves.start()
    for box in boxes:
        await box.start()
    calls, most, began = Calls(), 0, time.monotonic()
    down.up = False
    while calls.made < RATE * seconds:
        while calls.made < RATE * (time.monotonic() - began):
            event = calls.next()
            shelves.publish(event, lambda event: [box.put(event) for box in boxes])
        most = max(most, len(boxes[0]._queue._pending))
        await asyncio.sleep(0.01)
    down.up = True
    waiting, up = boxes[0].queued, time.monotonic()
    assert waiting == calls.made and most <= WINDOW
    await until(lambda: down.taken, 60.0)
    first = time.monotonic()
    await until(lambda: not boxes[0].queued and not boxes[1].queued, 600.0)
    spent = time.monotonic() - first
    well.waits.sort()
    late = well.waits[round(len(well.waits) * 0.99) - 1]
    print(f"{waiting} rows waited, at most {most} of them in memory")
    print(f"asked after {first - up:.1f} s, drained at {waiting / spent:.0f} events/s")
    print(f"the other endpoint: p99 {late * 1e3:.1f} ms")
    for box in boxes:
        assert await box.close(1.0) == 0
    await shelves.close(5.0)
    for endpoint in (down, well):
        assert endpoint.wrong == [] and endpoint.taken.total() == calls.made


async def test_an_outage_loses_nothing_and_harms_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PROBE", 0.1)
    async with asyncio.timeout(60):
        await outage(tmp_path / "outbox.db", 2.0)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_an_outage_of_ten_minutes(tmp_path: Path) -> None:
    await outage(tmp_path / "outbox.db", 600.0)
