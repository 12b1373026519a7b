"""Schedule, step on the model's thread, commit; and what a failing or slow model costs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bridge.engine import batcher as module
from bridge.engine.batcher import MAX_FAILURES, Batcher, BatchRules
from bridge.engine.slots import MAX_TRIES, Plan, Slots
from bridge.engine.tones import TonesModel, encode, text_of
from bridge.errors import Busy, EngineUnavailable
from bridge.interfaces import Batch, BatchModel
from bridge.types import Block, Heard, Word
from tests.waiting import until

RATE, BLOCK = 8000, 640
PATIENCE = 30.0  # seconds, on a machine that does much else


class Tones(TonesModel):
    """The tones model; `fail` and `gate` are what happens to the next steps."""

    def __init__(self, slots: int, gate: threading.Event | None = None) -> None:
        super().__init__(slots, rate=RATE, block=BLOCK, delay_blocks=2)
        self.thread = threading.current_thread()
        self.gate = gate
        self.fail = 0
        self.batches: list[Batch] = []
        self.closed = False

    def step(self) -> dict[int, Heard]:
        assert threading.current_thread() is self.thread, "called on another thread"
        assert not self.closed
        b = self.batch
        self.batches.append(Batch(b.pcm.copy(), b.active.copy(), b.fresh.copy(), b.ending.copy()))
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.fail:
            self.fail -= 1
            raise RuntimeError("CUDA error: unspecified launch failure")
        return super().step()

    def close(self) -> None:
        self.closed = True


class Factory:
    """Makes models, and remembers them."""

    def __init__(self, slots: int = 4, gate: threading.Event | None = None) -> None:
        self.slots = slots
        self.gate = gate
        self.made: list[Tones] = []
        self.failures = 0  # of the next makings

    def __call__(self) -> BatchModel:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no memory for the model")
        self.made.append(Tones(self.slots, self.gate))
        return self.made[-1]


Start = Callable[..., Awaitable[Batcher]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    engines: list[Batcher] = []

    async def begin(
        factory: Callable[[], BatchModel],
        on_step: Callable[[float, int], None] = lambda seconds, rows: None,
        **rules: Any,
    ) -> Batcher:
        made = Batcher(
            "tones", factory, rate=RATE, block=BLOCK, rules=BatchRules(**rules), on_step=on_step
        )
        engines.append(made)
        await made.start()
        return made

    yield begin
    for engine in engines:
        await engine.close()
        assert (engine.used, engine.ready) == (0, False)


class Leg:
    """A lease, and what it was told."""

    def __init__(self, engine: Batcher) -> None:
        self.heards: list[Heard] = []
        self.done = asyncio.Event()
        self.inside = False
        self.lease = engine.lease(self.heard, self.over)

    def heard(self, heard: Heard) -> None:
        assert not self.inside, "called from inside lease, push or finish"
        assert not self.done.is_set()
        self.heards.append(heard)

    def over(self) -> None:
        assert not self.inside, "called from inside lease, push or finish"
        assert not self.done.is_set()
        self.done.set()

    def push(self, *words: int) -> None:
        self.push_blocks(blocks(*words))

    def push_blocks(self, many: Sequence[Block]) -> None:
        self.inside = True
        for block in many:
            self.lease.push(block)
        self.inside = False

    async def end(self) -> list[str]:
        self.inside = True
        self.lease.finish()
        self.inside = False
        await asyncio.wait_for(self.done.wait(), PATIENCE)
        return self.said

    @property
    def said(self) -> list[str]:
        return [word.text for heard in self.heards for word in heard.words]


def blocks(*words: int) -> list[Block]:
    samples = encode(words, RATE).astype(np.float32) / 32768
    return list(samples.reshape(-1, BLOCK))


def spelt(*words: int) -> list[str]:
    return [text_of(word) for word in words]


# -- working ----------------------------------------------------------------------------------


async def test_words_are_exact_and_nobody_elses(start: Start) -> None:
    engine = await start(Factory())
    legs = [Leg(engine) for _ in range(4)]
    for i, leg in enumerate(legs):
        leg.push(*range(10 * i, 10 * i + 5))
    said = await asyncio.gather(*(leg.end() for leg in legs))
    assert said == [spelt(*range(10 * i, 10 * i + 5)) for i in range(4)]
    assert engine.used == 0
    starts = [word.start for heard in legs[3].heards for word in heard.words]
    assert starts == pytest.approx([0.4 * i for i in range(5)])


async def test_slots_are_used_again_without_leakage(start: Start) -> None:
    engine = await start(Factory(1))
    for i in range(5):
        leg = Leg(engine)
        leg.push(i, i + 1)
        leg.push_blocks(blocks(i + 2)[:2])  # hangs up in the middle of a word
        assert (await leg.end())[:2] == spelt(i, i + 1)
    assert engine.used == 0


async def test_one_too_many_is_busy(start: Start) -> None:
    engine = await start(Factory(2))
    Leg(engine), Leg(engine)
    with pytest.raises(Busy, match="^all 2 slots of the engine are taken$") as e:
        Leg(engine)
    assert e.value.reason == "busy"


async def test_a_leg_without_a_block_costs_no_step(start: Start) -> None:
    factory = Factory()
    seen: list[tuple[float, int]] = []
    engine = await start(factory, on_step=lambda seconds, rows: seen.append((seconds, rows)))
    idle, busy = Leg(engine), Leg(engine)
    busy.push(1)
    await until(lambda: len(busy.heards) == 5, PATIENCE)
    assert idle.heards == []
    batches = factory.made[0].batches
    assert [batch.active.tolist() for batch in batches] == [[False, True, False, False]] * 5
    assert [batch.fresh.any() for batch in batches] == [True, False, False, False, False]
    assert [rows for _, rows in seen] == [1] * 5
    assert await idle.end() == []


async def test_the_queues_bound_is_a_time(start: Start) -> None:
    gate = threading.Event()
    engine = await start(Factory(4, gate), queue_seconds=0.8)
    leg = Leg(engine)
    leg.push_blocks(blocks(1, 2, 3, 4))  # 20 blocks, all at once
    assert leg.lease.dropped == 10
    gate.set()
    await leg.end()


# -- slow (E4) ----------------------------------------------------------------------------------


async def test_a_slow_step_costs_the_oldest_audio_and_is_caught_up(start: Start) -> None:
    """The loop is not held up, memory is bounded, each loss is counted, and times stay true."""
    gate = threading.Event()
    factory = Factory(4, gate)
    engine = await start(factory, queue_seconds=1.2)  # 15 blocks
    greedy, modest = Leg(engine), Leg(engine)
    greedy.push(1)
    modest.push(7)
    await until(lambda: factory.made and factory.made[0].batches, PATIENCE)
    greedy.push(*range(10, 30))  # 8 s, while a step hangs
    assert len(greedy.lease.queue) == 15
    assert greedy.lease.dropped == 1 * 5 - 1 + 20 * 5 - 15
    modest.push(8)
    gate.set()
    assert await modest.end() == spelt(7, 8)
    said = await greedy.end()
    assert said[-3:] == spelt(27, 28, 29)
    last = greedy.heards[-1]
    words = [word for heard in greedy.heards for word in heard.words]
    assert [w.start for w in words[-3:]] == pytest.approx([0.4 * i for i in (18, 19, 20)])
    assert last.at == pytest.approx(0.4 * 21), "the silence of draining is not the leg's"
    assert modest.lease.dropped == 0


# -- failing (E7) -------------------------------------------------------------------------------


async def test_a_step_that_raises_costs_the_model_and_calls_go_on(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    factory = Factory()
    engine = await start(factory)
    one, two = Leg(engine), Leg(engine)
    one.push(1), two.push(2)
    await until(lambda: len(one.heards) == len(two.heards) == 5, PATIENCE)
    factory.made[0].fail = 1
    one.push(3), two.push(4)
    assert await asyncio.gather(one.end(), two.end()) == [spelt(1, 3), spelt(2, 4)]
    assert len(factory.made) == 2
    assert factory.made[0].closed, "before the next one was made"
    assert engine.counters == {"step_errors": 1, "restarts": 1, "blocks_replayed": 12}
    assert (one.lease.dropped, two.lease.dropped) == (0, 0)
    starts = [w.start for heard in one.heards for w in heard.words]
    assert starts == pytest.approx([0.0, 0.4])
    assert "made anew" in caplog.text


async def test_three_failures_in_a_minute_make_it_not_ready(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 3600.0)
    slept: list[float] = []
    sleep = asyncio.sleep

    async def remember(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", remember)
    factory = Factory()
    engine = await start(factory)
    assert engine.ready
    leg = Leg(engine)
    factory.made[0].fail = 1
    factory.failures = MAX_FAILURES - 1
    leg.push(1)
    await until(lambda: 3600.0 in slept, PATIENCE)
    assert engine.counters["load_errors"] == MAX_FAILURES - 1
    assert not engine.ready
    with pytest.raises(Busy, match="^the engine is not ready$") as e:
        Leg(engine)
    assert e.value.reason == "not ready"
    assert engine.used == 1, "who is there stays"


async def test_it_is_tried_again_and_calls_that_waited_are_heard(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.0)
    factory = Factory()
    engine = await start(factory)
    leg = Leg(engine)
    factory.made[0].fail = 1
    factory.failures = 5
    leg.push(1, 2)
    assert await leg.end() == spelt(1, 2)
    assert engine.ready
    assert engine.counters["load_errors"] == 5


async def test_audio_that_no_model_takes_costs_its_leg_that_audio_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one leg's block, put back for ever, would cost everybody the engine."""
    monkeypatch.setattr(module, "RETRY", 0.0)
    engine = await start(Factory())
    bad, good = Leg(engine), Leg(engine)
    bad.push_blocks([np.zeros(BLOCK + 1, np.float32)])
    bad.push(1)
    assert await bad.end() == spelt(1)
    good.push(2)
    assert await good.end() == spelt(2)
    assert (bad.lease.dropped, good.lease.dropped) == (1, 0)
    assert engine.counters["step_errors"] == MAX_TRIES


@pytest.mark.parametrize("when", ["heard", "done"])
async def test_a_leg_that_fails_costs_itself_and_not_the_engine(
    when: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start(Factory())

    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    bad = engine.lease(fail if when == "heard" else lambda heard: None, fail)
    bad.push(blocks(1)[0])
    bad.finish()
    good = Leg(engine)
    good.push(2)
    assert await good.end() == spelt(2)
    await until(lambda: engine.used == 0, PATIENCE)
    assert engine.counters == {}
    assert "a leg failed over" in caplog.text


async def test_failures_that_are_not_in_a_row_cost_no_audio(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.0)
    factory = Factory()
    engine = await start(factory)
    leg = Leg(engine)
    for i in range(2 * MAX_TRIES):
        factory.made[-1].fail = 1
        leg.push(i)
        await until(lambda i=i: leg.said == spelt(*range(i + 1)), PATIENCE)
        assert len(factory.made) == i + 2
    assert await leg.end() == spelt(*range(2 * MAX_TRIES))
    assert leg.lease.dropped == 0


# -- word times around what is lost -----------------------------------------------------------


@pytest.mark.parametrize("before", [3, 35, 41, 47, 82])
def test_a_word_at_the_edge_of_a_hole_is_on_its_own_side(before: int) -> None:
    """Times are sums of blocks, and 35 x 0.08 is not 2.8 to the last bit."""
    table = Slots(1, block_seconds=0.08, delay=0.16, queue_blocks=2)
    told: list[Heard] = []
    lease = table.lease(told.append, lambda: None)
    silence = np.zeros(BLOCK, np.float32)

    def step(plan: Plan, heard: Heard) -> None:
        assert len(plan.rows) == 1
        table.commit(plan, {0: heard})

    for _ in range(before):
        lease.push(silence)
        step(table.schedule(), Heard())
    for _ in range(12):
        lease.push(silence)
    assert lease.dropped == 10
    edge = before * 640 / 8000
    words = (Word("last", edge - 0.2, edge, 1.0), Word("next", edge, edge + 0.08, 1.0))
    step(table.schedule(), Heard(words, at=edge + 0.08))
    last, following = told[-1].words
    assert (last.start, last.end) == pytest.approx((edge - 0.2, edge))
    assert (following.start, following.end) == pytest.approx((edge + 0.8, edge + 0.88))
    assert told[-1].at == pytest.approx(edge + 0.88)


# -- starting and closing -------------------------------------------------------------------------


async def test_a_model_that_cannot_be_loaded_is_a_sentence() -> None:
    factory = Factory()
    factory.failures = 1
    engine = Batcher("tones", factory, rate=RATE, block=BLOCK, rules=BatchRules())
    with pytest.raises(EngineUnavailable) as e:
        await engine.start()
    assert str(e.value) == "the engine 'tones' cannot be loaded: no memory for the model"
    assert not engine.ready
    with pytest.raises(Busy, match="not ready"):
        engine.lease(lambda heard: None, lambda: None)
    await engine.close()


async def test_close_evicts_everybody_in_mid_step_and_tells_nobody(start: Start) -> None:
    gate = threading.Event()
    factory = Factory(4, gate)
    engine = await start(factory)
    legs = [Leg(engine) for _ in range(3)]
    for leg in legs:
        leg.push(1)
    await until(lambda: factory.made[0].batches, PATIENCE)
    await engine.close()
    gate.set()
    await until(lambda: not factory.made[0].thread.is_alive(), PATIENCE)
    assert engine.used == 0
    assert all(leg.heards == [] and not leg.done.is_set() for leg in legs)
    legs[0].push(2)
    legs[0].lease.finish()
    await engine.close()
    with pytest.raises(Busy):
        Leg(engine)


async def test_a_result_that_comes_after_evict_is_nobodys(start: Start) -> None:
    """The step is under way when its leg goes and another takes the slot."""
    gate = threading.Event()
    factory = Factory(1, gate)
    engine = await start(factory)
    old = Leg(engine)
    old.push(1)
    await until(lambda: factory.made[0].batches, PATIENCE)
    old.lease.evict()
    new = Leg(engine)
    new.push(2)
    gate.set()
    assert await new.end() == spelt(2)
    assert old.heards == []
    assert new.heards[0].at == pytest.approx(0.08)


async def test_evict_from_inside_heard(start: Start) -> None:
    engine = await start(Factory())
    told: list[Heard] = []

    def heard(heard: Heard) -> None:
        told.append(heard)
        lease.evict()

    lease = engine.lease(heard, lambda: pytest.fail("done after evict"))
    for block in blocks(1, 2):
        lease.push(block)
    lease.finish()
    other = Leg(engine)
    other.push(3)
    assert await other.end() == spelt(3)
    assert len(told) == 1


# -- hearing again, flushing, refusing -------------------------------------------------------------


async def test_words_in_the_lost_models_delay_are_heard_all_the_same(start: Start) -> None:
    factory = Factory()
    engine = await start(factory)
    leg = Leg(engine)
    leg.push(1, 2)
    leg.push_blocks(blocks(3)[:4])  # the word 3 is over, and the model holds it back
    await until(lambda: len(leg.heards) == 14, PATIENCE)
    assert leg.said == spelt(1, 2)
    factory.made[0].fail = 1
    leg.push_blocks(blocks(3)[4:])
    assert await leg.end() == spelt(1, 2, 3)
    starts = [word.start for heard in leg.heards for word in heard.words]
    assert starts == pytest.approx([0.0, 0.4, 0.8])


async def test_a_flush_brings_the_word_that_is_held_back(start: Start) -> None:
    engine = await start(Factory())
    leg = Leg(engine)
    leg.push(1)
    leg.push_blocks(blocks(2)[:4])
    await until(lambda: len(leg.heards) == 9, PATIENCE)
    assert leg.said == spelt(1)
    leg.lease.flush()
    await until(lambda: leg.said == spelt(1, 2), PATIENCE)
    leg.push_blocks(blocks(2)[4:])
    leg.push(3)
    assert await leg.end() == spelt(1, 2, 3)
    starts = [word.start for heard in leg.heards for word in heard.words]
    assert starts == pytest.approx([0.0, 0.4, 0.8])
    assert engine.counters == {"flushes": 1}


async def test_without_time_left_a_leg_is_refused_and_later_taken(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the clock in our hands."""
    now = 100.0
    engine = await start(Factory(), step_budget=0.04)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    for _ in range(3):
        now += 0.09
        engine.budget.add(0.09, now)
    with pytest.raises(Busy) as e:
        Leg(engine)
    assert e.value.reason == "overload"
    assert str(e.value) == (
        "steps of the engine take longer than 40 ms: there is no time left for another leg"
    )
    assert engine.ready, "who is there goes on"
    now += 5.0
    leg = Leg(engine)
    leg.push(1)
    assert await leg.end() == spelt(1)


async def test_a_model_with_fewer_slots_than_before_is_not_taken(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.0)
    factory = Factory(4)
    engine = await start(factory)
    leg = Leg(engine)
    factory.slots = 2
    factory.made[0].fail = 1
    leg.push(1)
    await until(lambda: engine.counters["load_errors"] >= 2, PATIENCE)
    factory.slots = 4
    assert await leg.end() == spelt(1)
    assert all(model.closed for model in factory.made[:-1])


# -- waiting for company --------------------------------------------------------------------------

WINDOW = 0.4  # s


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_window_takes_more_legs_into_a_step(start: Start) -> None:
    steps: list[int] = []
    engine = await start(
        Factory(), on_step=lambda seconds, rows: steps.append(rows), coalesce=WINDOW
    )
    legs = [Leg(engine) for _ in range(4)]
    legs[0].push_blocks(blocks(1)[:1])
    await until(lambda: steps == [1], PATIENCE)
    for leg in legs[:3]:
        leg.push_blocks(blocks(1)[:1])
        await settle()
    assert steps == [1], "the step waits for the fourth"
    await until(lambda: len(steps) == 2, PATIENCE)
    assert steps == [1, 3]


async def test_a_window_keeps_nobody_waiting_who_is_in_a_hurry(start: Start) -> None:
    steps: list[int] = []
    engine = await start(
        Factory(), on_step=lambda seconds, rows: steps.append(rows), coalesce=3600.0
    )
    legs = [Leg(engine) for _ in range(2)]
    legs[0].push(1, 2)  # ten blocks: steps follow each other as long as it is behind
    await until(lambda: len(steps) == 9, PATIENCE)
    await settle()
    assert len(steps) == 9
    legs[0].lease.flush()  # silence first, then what had to wait
    assert engine._table is not None
    await until(lambda: len(legs[0].heards) == 9 + engine._table.drain, PATIENCE)
    assert await legs[0].end() == spelt(1, 2)
    legs[1].push_blocks(blocks(1)[:1])  # with all legs in a step there is nobody to wait for
    await until(lambda: len(legs[1].heards) == 1, PATIENCE)
