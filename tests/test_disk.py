"""An outbox with a file behind it, on a clock that stands still. The file is real."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.egress import disk, store_letters
from bridge.egress.disk import PAGE
from bridge.egress.retry import PROBE
from bridge.egress.store_types import Load, Loaded, Renewed, StoreLimits, Tidy
from bridge.errors import DeliveryError
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EventBody,
    Final,
    LegName,
    Partial,
    Pressed,
    Started,
)
from tests.shelves import Inline
from tests.test_outbox import ANSWERS, END, Held, Line, Sink, down, final, partial, settle

WALL = 1_700_000_000.0


class Kept(Line):
    """A `Line` whose outbox has a shelf."""

    def __init__(self, sink: Sink, path: Path, **options: Any) -> None:
        self.set_back = 0.0  # seconds that the clock on the wall was set back by
        limits = options.pop("limits", None)
        self.writer = Inline(path, lambda: WALL + self.time.now - self.set_back, limits)
        super().__init__(sink, shelf=self.writer.shelf, **options)

    def put(self, *bodies: EventBody, call: str = "a", leg: LegName | None = "caller") -> None:
        for body in bodies:
            event = CallEvent(CallInfo(call), self.next[call], WALL + self.time.now, leg, body)
            self.next[call] += 1
            self.outbox.put(event)

    async def commit(self) -> None:
        """Until the disk has nothing to do and the sink has what it takes at once."""
        await settle()
        while self.writer.ops:
            self.writer.commit()
            await settle()

    async def wait(self, seconds: float, step: float = 1.0) -> None:
        await self.commit()
        while seconds > 0:
            await self.time.advance(min(step, seconds))
            await self.commit()
            seconds -= step

    async def restart(self, sink: Sink, path: Path, **options: Any) -> Kept:
        """Kill it, and start another on the same file; calls go on counting."""
        self.writer.crash()
        now = self.time.now
        fresh = Kept(sink, path, **options)
        fresh.time.now = now
        fresh.next, fresh.set_back = self.next, self.set_back
        await fresh.outbox.start()
        fresh.writer.adopt()
        await fresh.commit()
        return fresh

    async def end(self) -> None:
        await self.outbox.close(0.0)
        self.writer.store.close()
        assert self.sink.broken == []


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "outbox.db"


async def started(sink: Sink, path: Path, **options: Any) -> Kept:
    line = Kept(sink, path, **options)
    await line.outbox.start()
    return line


async def test_nothing_is_given_to_the_sink_before_it_is_on_disk(path: Path) -> None:
    line = await started(Sink(), path)
    line.put(Started(), final())
    await settle()
    assert line.sink.asked == [] and line.outbox.queued == 2
    await line.commit()
    assert line.sink.seqs == [0, 1] and line.outbox.queued == 0
    assert line.writer.store.rows == 0
    await line.end()


async def test_a_partial_waits_for_its_number_and_is_not_kept(path: Path) -> None:
    line = await started(Sink(), path)
    line.put(partial())
    await settle()
    assert line.sink.asked == []
    line.writer.commit()
    assert line.writer.store.rows == 0
    await line.commit()
    assert line.sink.seqs == [0]
    await line.end()


async def test_after_a_crash_what_was_kept_is_delivered_in_order(path: Path) -> None:
    line = await started(Sink(down), path)
    line.put(Started(), final(), partial(1), final(1), END)
    line.put(Started(), final(), call="b")
    await line.commit()
    fresh = await line.restart(Sink(), path)
    await fresh.wait(2.0)  # the back-off goes on where it was
    found = [(e.call.id, e.seq, e.gap_before) for e in fresh.sink.taken]
    assert [f for f in found if f[0] == "a"] == [("a", 0, 0), ("a", 1, 0), ("a", 3, 1), ("a", 4, 0)]
    assert [f for f in found if f[0] == "b"] == [("b", 0, 0), ("b", 1, 0)]
    assert fresh.sink.broken == []
    assert fresh.outbox.calls == 1 and fresh.writer.store.rows == 0  # b may go on
    fresh.put(END, call="b")
    await fresh.commit()
    assert fresh.sink.taken[-1].gap_before == 0 and fresh.outbox.calls == 0
    await fresh.end()


async def test_what_was_taken_and_not_yet_noted_comes_twice_with_its_number(path: Path) -> None:
    line = await started(Sink(), path)
    line.put(Started(), final())
    line.writer.commit()
    await settle()  # the sink has both; that it has is not on disk
    assert line.sink.seqs == [0, 1]
    fresh = await line.restart(Sink(), path)
    assert fresh.sink.seqs == [0, 1] and fresh.sink.taken == line.sink.taken
    await fresh.end()


async def test_attempts_and_their_time_outlive_the_process(path: Path) -> None:
    line = await started(Sink(down), path)
    line.put(final())
    await line.wait(10.0)
    assert line.sink.times == [0, 0, 1, 6]
    fresh = await line.restart(Sink(down), path)
    await fresh.wait(200.0)
    assert fresh.sink.times == [36, 156]  # as if nothing had been
    await fresh.end()


async def test_a_clock_that_was_set_back_makes_nobody_wait_longer_than_the_schedule(
    path: Path,
) -> None:
    line = await started(Sink(down), path)
    line.put(final())
    await line.wait(10.0)
    line.set_back = 3600.0
    fresh = await line.restart(Sink(), path)
    await fresh.wait(30 * 1.25 + 1)  # of the fourth attempt, with all its jitter
    assert fresh.sink.seqs == [0]
    await fresh.end()


async def test_an_hour_of_outage_costs_disk_not_memory(path: Path) -> None:
    line = await started(Sink(down), path, limit=50)
    for _ in range(30):
        for call in map(str, range(10)):
            line.put(final(), Pressed("1", 0), call=call)
        await line.commit()
    assert line.outbox.queued == 600
    assert len(line.outbox._queue._pending) <= 50 + 32 * PAGE
    line.sink.answer = lambda event: None
    await line.wait(PROBE + 5, step=0.5)
    assert len(line.sink.taken) == 600 and line.outbox.queued == 0
    assert line.writer.store.rows == 0
    assert all(event.gap_before == 0 for event in line.sink.taken)
    await line.end()


async def test_a_call_with_much_to_say_has_a_page_in_memory(path: Path) -> None:
    line = await started(Held(), path)
    line.put(*[final()] * (3 * PAGE))
    await line.commit()
    assert len(line.outbox._queue._pending) == PAGE and line.outbox.queued == 3 * PAGE
    line.put(partial())
    assert line.counters == {"dropped_partial": 1}  # it would have waited for all of that
    for _ in range(3 * PAGE):
        await line.sink.say("a")
        await line.commit()
        assert len(line.outbox._queue._pending) <= PAGE + 16
    line.put(END)
    await line.commit()
    await line.sink.say("a")
    assert [e.gap_before for e in line.sink.taken[-2:]] == [0, 1]
    assert line.outbox.calls == 0
    await line.commit()
    await line.end()


async def test_an_event_that_is_given_up_is_a_dead_letter(path: Path) -> None:
    def answer(event: CallEvent) -> Exception | None:
        return DeliveryError("example.net answered 422", permanent=True) if event.seq == 1 else None

    line = await started(Sink(answer), path)
    line.put(Started(), final(), END)
    await line.commit()
    assert line.sink.seqs == [0, 2] and line.outbox.calls == 0
    assert (line.writer.store.rows, line.writer.store.dead) == (1, 1)
    await line.end()


async def test_what_is_left_for_a_sink_that_is_gone_is_a_dead_letter(path: Path) -> None:
    line = await started(Sink(lambda event: DeliveryError("410", gone=True)), path, limit=5)
    line.put(*[final()] * 20)
    await line.commit()
    assert line.counters == {"disabled": 20} and line.outbox.queued == 0
    assert line.writer.store.dead == 20
    line.put(final())
    assert line.counters == {"disabled": 21}
    await line.end()


async def test_partials_are_shed_when_the_file_is_nearly_full(path: Path) -> None:
    line = await started(Sink(down), path, limits=StoreLimits(rows=10))
    line.put(*[final()] * 8)
    await line.commit()
    line.put(partial(1))
    assert line.counters["dropped_partial"] == 1
    await line.end()


async def test_what_was_shed_on_disk_is_shed_in_memory_and_counted(path: Path) -> None:
    line = await started(Held(), path, limits=StoreLimits(rows=10))
    line.put(Started(), Pressed("1", 0), Pressed("2", 0), *[final()] * 6, END)
    await line.commit()
    line.writer.put(Tidy())
    await line.commit()
    assert line.counters == {"dropped_full": 3}
    await line.sink.say("a")  # it was flying
    for _ in range(7):
        await line.commit()
        await line.sink.say("a")
    assert [(e.seq, e.gap_before) for e in line.sink.taken][:2] == [(0, 0), (3, 2)]
    assert line.outbox.calls == 0
    await line.commit()
    await line.end()


async def test_while_the_file_cannot_be_written_events_go_out_from_memory(path: Path) -> None:
    line = await started(Held(), path, limit=4)
    line.writer.trouble = "the disk is full"
    line.put(Started(), partial(1), final())
    await settle()
    for _ in range(3):
        await line.sink.say("a")
    assert line.sink.seqs == [0, 1, 2]
    line.writer.trouble = ""
    line.put(END)
    await line.commit()
    await line.sink.say("a")
    await line.commit()
    assert line.writer.store.rows == 0 and line.outbox.calls == 0
    await line.end()


async def test_with_no_room_on_disk_nor_in_memory_it_is_counted(path: Path) -> None:
    line = await started(Held(), path, limit=2)
    line.writer.full = True
    line.put(Started(), final(), final())
    assert line.counters == {"dropped_full": 1}  # what matters least: the call's start
    line.writer.full = False
    line.put(END)  # on disk only, and not before those in memory
    await settle()
    for _ in range(3):
        await line.commit()
        if "a" in line.sink.held:
            await line.sink.say("a")
    await line.commit()
    await line.sink.say("a") if "a" in line.sink.held else None
    assert [(e.seq, e.gap_before) for e in line.sink.taken] == [(1, 1), (2, 0), (3, 0)]
    await line.commit()
    await line.end()


async def test_a_new_file_is_given_what_is_in_memory(path: Path) -> None:
    line = await started(Sink(down), path, limit=3)
    line.put(*[final()] * 5)
    await line.commit()
    assert line.writer.store.rows == 5
    line.writer.store.abandon()
    os.unlink(path)
    line.writer._tell(Renewed("outbox.db.broken"))
    await line.commit()
    assert line.counters["lost_disk"] == 2 and line.outbox.queued == 3
    assert line.writer.store.rows == 3
    line.sink.answer = lambda event: None
    await line.wait(PROBE)
    assert line.sink.seqs == [0, 1, 2]
    await line.end()


async def test_a_dead_letter_that_is_tried_again_comes_late_and_is_no_gap(path: Path) -> None:
    dead = {1}

    def answer(event: CallEvent) -> Exception | None:
        return DeliveryError("400", permanent=True) if event.seq in dead else None

    line = await started(Sink(answer), path)
    line.put(Started(), final(), final())
    await line.commit()
    assert line.sink.seqs == [0, 2]
    with store_letters.opened(path) as letters:
        assert letters.retry() == 1
    dead.clear()
    line.sink.again = True
    line.writer.adopt()
    await line.commit()
    assert [(e.seq, e.gap_before) for e in line.sink.taken] == [(0, 0), (2, 1), (1, 0)]
    await line.end()


async def test_close_leaves_what_is_kept_for_the_next_start(path: Path) -> None:
    line = await started(Sink(down), path)
    line.put(Started(), final(), partial(1))
    await line.commit()
    assert await line.outbox.close(0.0) == 1  # the partial
    line.writer.commit()
    line.writer.store.close()
    fresh = await line.restart(Sink(), path)
    await fresh.wait(2.0)
    assert fresh.sink.seqs == [0, 1]
    await fresh.end()


# -- any interleaving, crashes included -----------------------------------------------------------

BODIES = st.one_of(
    st.just(Started()), st.integers(0, 1).map(partial), st.integers(0, 1).map(final),
    st.just(Pressed("1", 0.0)),
)  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abc"), BODIES),
    st.tuples(st.just("answer"), st.sampled_from("abc"), ANSWERS),
    st.tuples(st.just("commit")),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.5, 3.0, 60.0])),
    st.tuples(st.just("crash")),
)


class Ledger:
    """What all sinks of one run were given, crashes or not."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, int], CallEvent] = {}
        self.order: dict[str, list[int]] = {}

    def add(self, sink: Sink) -> None:
        for event in sink.taken:
            place = event.call.id, event.seq
            known = self.taken.setdefault(place, event)
            assert known.body == event.body  # the same number is the same event
            self.order.setdefault(event.call.id, []).append(event.seq)


async def _any_interleaving(steps: list[Any], limit: int, folder: Path) -> None:
    path, ledger, firm, refused = folder / "outbox.db", Ledger(), set(), 0
    line = await started(Held(), path, limit=limit, concurrency=2)
    for step in [*steps, ("crash",)]:
        match step:
            case "put", call, body:
                if not isinstance(body, Partial):
                    firm.add((call, line.next[call]))
                line.put(body, call=call)
            case "answer", call, answer if call in line.sink.held:
                await line.sink.say(call, answer)
            case ("commit",):
                await line.commit()
            case "pass", seconds:
                await line.time.advance(seconds)
            case ("crash",):
                ops = line.writer.ops  # what is not on disk is in nobody's hands either
                firm -= {(op.event.call.id, op.event.seq) for op in ops if hasattr(op, "rank")}
                refused += line.outbox.counters["failed_permanent"]
                ledger.add(line.sink)
                for future in line.sink.held.values():
                    future.cancel()
                await settle()
                fresh = Held()
                fresh.last, fresh.again = line.sink.last, True
                old, line = line, await line.restart(fresh, path, limit=limit, concurrency=2)
                assert old.sink.broken == []
                await old.outbox.close(0.0)
    for call in line.next:
        line.put(END, call=call)
    for _ in range(200):
        await line.wait(3600, step=3600)
        for call in list(line.sink.held):
            await line.sink.say(call)
        if not line.outbox.queued:
            break
    await line.commit()
    ledger.add(line.sink)
    refused += line.outbox.counters["failed_permanent"]
    assert line.outbox.queued == line.outbox.calls == 0
    assert len(firm - set(ledger.taken)) <= refused
    assert line.writer.store.rows == line.writer.store.dead <= refused
    await line.end()


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from([2, 1000]))
def test_nothing_on_disk_is_lost_in_any_interleaving_with_crashes(
    steps: list[Any], limit: int
) -> None:
    """Sinks check order and gaps; here, that what was on disk came, the same under one number."""
    folder = Path(tempfile.mkdtemp())
    try:
        asyncio.run(_any_interleaving(steps, limit, folder))
    finally:
        shutil.rmtree(folder)


# -- what would wait for ever ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 64])
async def test_many_calls_that_wait_on_the_disk_cost_no_more_memory_than_the_limit(
    path: Path, size: int
) -> None:
    """Each is loaded a page at a time, and where there is no room for a page, a row."""
    from tests.test_runs import Runs  # which needs this file

    line = await started(Sink(down) if size == 1 else Runs(down, size), path, limit=100)
    for _ in range(30):
        for n in range(100):
            line.put(final(), call=str(n))
    await line.commit()
    line.sink.answer = lambda event: None
    most, loaded = 0, line.outbox._queue._disk.loaded

    def watched(told: Loaded) -> None:
        nonlocal most
        loaded(told)
        most = max(most, len(line.outbox._queue._pending))

    line.outbox._queue._disk.loaded = watched
    await line.wait(PROBE + 5, step=0.5)
    assert len(line.sink.taken) == 3000 and line.outbox.queued == 0
    assert most <= 100 + 32 * 64  # those that were asked for while there was room
    await line.end()


async def test_a_page_that_cannot_be_asked_for_is_asked_for_later(path: Path) -> None:
    line = await started(Sink(down), path, limit=2)
    line.put(*[final()] * 5)
    await line.commit()
    line.sink.answer = lambda event: None
    line.writer.full, line.writer.refuses = True, (Load,)
    await line.wait(PROBE + 5)
    assert line.sink.seqs == [0, 1] and line.outbox._queue._disk.loading == 0
    line.writer.full = False
    await line.wait(3)
    assert line.sink.seqs == [0, 1, 2, 3, 4]
    await line.end()


async def test_while_pages_are_loaded_the_queue_rests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PAGE", 1)
    monkeypatch.setattr(disk, "FEW", 1)
    line = await started(Sink(down), path, limit=2, concurrency=4)
    for n in range(20):
        line.put(*[final()] * 4, call=str(n))
    await line.commit()
    line.sink.answer = lambda event: None
    turns, launch = 0, line.outbox._launch

    def counted(now: float) -> None:
        nonlocal turns
        turns += 1
        launch(now)

    line.outbox._launch = counted
    await line.time.advance(PROBE + 5)  # what is in memory goes
    turns = 0
    await line.time.advance(10.0)  # nobody commits: pages do not come
    assert line.outbox._queue._disk.loading == 4 and turns < 20
    await line.wait(20)
    assert len(line.sink.taken) == 80
    await line.end()


async def retried(path: Path) -> Kept:
    """A call that is up, whose event 1 was refused, and is to be tried again."""
    refused = {1}
    line = await started(
        Sink(lambda e: DeliveryError("400", permanent=True) if e.seq in refused else None), path
    )
    line.put(Started(), final())
    await line.commit()
    with store_letters.opened(path) as letters:
        assert letters.retry() == 1
    refused.clear()
    return line


async def test_a_dead_letter_of_a_call_that_is_up_is_delivered_after_all(path: Path) -> None:
    line = await retried(path)
    line.put(final())  # before anybody has taken it over
    await line.commit()
    line.sink.again = True
    line.writer.adopt()
    await line.commit()
    line.put(final(), END)
    await line.commit()
    assert [(e.seq, e.gap_before) for e in line.sink.taken] == [
        (0, 0), (2, 1), (1, 0), (3, 0), (4, 0),
    ]  # fmt: skip
    line.sink.broken.clear()  # that event 1 came late
    assert line.writer.store.rows == 0 and line.outbox.calls == 0
    await line.end()


async def test_a_letter_that_is_tried_again_when_its_call_ends_waits_for_the_next_process(
    path: Path,
) -> None:
    line = await retried(path)
    line.put(END)  # and this process never looks again
    await line.commit()
    line.sink.again = True
    fresh = await line.restart(Sink(), path)
    await fresh.wait(2)
    assert fresh.sink.seqs == [1] and fresh.writer.store.rows == 0
    fresh.sink.broken.clear()  # that event 0 did not come again
    await fresh.end()


async def test_what_is_on_no_disk_is_counted_as_lost_at_the_end(path: Path) -> None:
    line = await started(Sink(down), path)
    line.put(final())
    await line.commit()
    line.writer.full = True
    line.put(final(), END)
    await settle()
    assert await line.outbox.close(0.0) == 2
    assert line.counters["dropped_shutdown"] == 2
    await line.end()


async def test_without_room_anywhere_what_matters_least_goes(path: Path) -> None:
    line = await started(Held(), path, limit=3)
    line.writer.full = True
    line.put(Started(), Pressed("1", 0), Pressed("2", 0), final(), END)
    await settle()
    for _ in range(3):
        await line.sink.say("a")
    assert [type(e.body) for e in line.sink.taken] == [Pressed, Final, Ended]
    await line.end()
