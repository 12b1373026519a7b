"""The slot table: RELIABILITY E1–E3 without an engine."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.engine.slots import Plan, SlotLease, Slots, State
from bridge.errors import Busy
from bridge.types import Heard, Word

DELAY = 3  # blocks


def block(value: float) -> np.ndarray:
    return np.full(4, value, np.float32)


class Echo:
    """A delayed model: a row says, as a word, what it was given `DELAY` steps ago."""

    def __init__(self, slots: int) -> None:
        self.rows: list[list[float]] = [[] for _ in range(slots)]

    def step(self, plan: Plan) -> list[Heard]:
        out = [Heard()] * len(self.rows)
        for row in plan.rows:
            slot = row.lease.slot
            if row.fresh:
                self.rows[slot] = []
            said = self.rows[slot]
            said.append(0.0 if row.block is None else float(row.block[0]))
            n = len(said)
            words = ()
            if n > DELAY and said[-1 - DELAY]:
                start = (n - 1 - DELAY) * 0.08
                words = (Word(str(said[-1 - DELAY]), start, start + 0.08, 1.0),)
            out[slot] = Heard(words, at=n * 0.08)
        return out


class Caller:
    """One lease and what it was told."""

    def __init__(self, slots: Slots) -> None:
        self.words: list[Word] = []
        self.done = 0
        self.pushed: list[float] = []
        self.lease: SlotLease = slots.lease(self.heard, self.over)

    def heard(self, heard: Heard) -> None:
        assert not self.done
        self.words += heard.words

    def over(self) -> None:
        self.done += 1

    def push(self, value: float) -> None:
        self.pushed.append(value)
        self.lease.push(block(value))

    @property
    def said(self) -> list[str]:
        return [w.text for w in self.words]


def table(slots: int = 3, queue: int = 100) -> Slots:
    return Slots(slots, block_seconds=0.08, delay=DELAY * 0.08, queue_blocks=queue)


def run(slots: Slots, model: Echo) -> int:
    steps = 0
    while plan := slots.schedule():
        slots.commit(plan, model.step(plan))
        steps += 1
    return steps


def test_the_last_word_before_a_hang_up_is_heard() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 6):
        caller.push(value)
    caller.lease.finish()
    assert run(slots, model) == 5 + DELAY + 1
    assert caller.said == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    assert (caller.done, slots.used) == (1, 0)


def test_a_row_without_a_block_does_not_move() -> None:
    slots = table()
    a, b = Caller(slots), Caller(slots)
    a.push(1.0)
    plan = slots.schedule()
    assert [row.lease for row in plan.rows] == [a.lease]
    b.push(2.0)
    assert [row.lease for row in slots.schedule().rows] == [b.lease]


def test_a_call_without_audio_is_done_without_a_step() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    caller.lease.finish()
    caller.lease.finish()
    run(slots, model)
    assert (caller.done, caller.said) == (1, [])


def test_one_call_too_many_is_busy() -> None:
    slots = table(2)
    Caller(slots), Caller(slots)
    with pytest.raises(Busy) as e:
        Caller(slots)
    assert str(e.value) == "all 2 slots of the engine are taken"
    assert e.value.reason == "busy"


def test_a_late_result_never_reaches_the_next_caller() -> None:
    slots, model = table(1), Echo(1)
    first = Caller(slots)
    for value in range(1, 9):
        first.push(value)
    for _ in range(4):
        plan = slots.schedule()
        slots.commit(plan, model.step(plan))
    plan = slots.schedule()
    results = model.step(plan)
    said = list(first.said)
    first.lease.evict()  # while the step runs
    second = Caller(slots)
    slots.commit(plan, results)
    assert (first.said, second.said, first.done) == (said, [], 0)
    second.push(9.0)
    second.lease.finish()
    run(slots, model)
    assert second.said == ["9.0"]
    first.lease.evict()
    first.lease.push(block(1.0))
    first.lease.finish()
    assert (second.done, first.done, slots.used) == (1, 0, 0)


def test_a_full_queue_loses_its_oldest_and_word_times_stay_true() -> None:
    slots, model = table(queue=4), Echo(3)
    caller = Caller(slots)
    caller.push(1.0)
    run(slots, model)
    for value in range(2, 10):  # 2…5 are lost
        caller.push(value)
    caller.lease.finish()
    run(slots, model)
    assert caller.lease.dropped == 4
    assert caller.said == ["1.0", "6.0", "7.0", "8.0", "9.0"]
    assert [round(w.start / 0.08) for w in caller.words] == [0, 5, 6, 7, 8]


def test_a_failed_step_costs_the_model_and_no_block() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    caller.push(1.0)
    caller.push(2.0)
    slots.abandon(slots.schedule())
    caller.lease.finish()
    run(slots, Echo(3))
    assert caller.said == ["1.0", "2.0"]
    assert [round(w.start / 0.08) for w in caller.words] == [0, 1]
    del model


def test_a_model_made_anew_in_mid_call_keeps_the_legs_time() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 6):
        caller.push(value)
    run(slots, model)
    caller.push(6.0)
    slots.abandon(slots.schedule())
    model = Echo(3)
    for value in range(7, 12):
        caller.push(value)
    caller.lease.finish()
    run(slots, model)
    # 3, 4, 5 were in the lost model's delay
    assert caller.said == ["1.0", "2.0", "6.0", "7.0", "8.0", "9.0", "10.0", "11.0"]
    assert [round(w.start / 0.08) + 1 for w in caller.words] == [1, 2, 6, 7, 8, 9, 10, 11]


def test_a_leg_that_fails_over_a_word_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    slots, model = table(), Echo(3)
    good = Caller(slots)
    done: list[int] = []

    def fail(heard: Heard) -> None:
        raise RuntimeError("boom")

    bad = slots.lease(fail, lambda: done.append(1))
    bad.push(block(5.0))
    good.push(1.0)
    good.lease.finish()
    run(slots, model)
    assert (good.said, good.done, done, bad.state) == (["1.0"], 1, [1], State.FREE)
    assert "loses its slot" in caplog.text


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=150)
def test_every_caller_hears_exactly_its_own_words(seed: int, size: int) -> None:
    """E1, E2: random leases, evictions, hang-ups and steps in flight; nothing ever crosses."""
    rng = random.Random(seed)
    slots, model = table(size), Echo(size)
    alive: list[Caller] = []
    everyone: list[Caller] = []
    in_flight: tuple[Plan, list[Heard]] | None = None
    value = 0.0
    for _ in range(rng.randrange(20, 120)):
        match rng.randrange(6):
            case 0:
                try:
                    alive.append(Caller(slots))
                    everyone.append(alive[-1])
                except Busy:
                    assert slots.used == size
            case 1 | 2 if alive:
                value += 1
                rng.choice(alive).push(value)
            case 3 if alive:
                alive.pop(rng.randrange(len(alive))).lease.finish()
            case 4 if alive and rng.random() < 0.3:
                gone = alive.pop(rng.randrange(len(alive)))
                gone.lease.evict()
                gone.done = -100
            case _:
                if in_flight is not None:
                    slots.commit(*in_flight)
                    in_flight = None
                else:
                    plan = slots.schedule()
                    in_flight = (plan, model.step(plan))
    if in_flight is not None:
        slots.commit(*in_flight)
    for caller in alive:
        caller.lease.finish()
    run(slots, model)
    assert slots.used == 0
    for caller in everyone:
        expected = [str(float(v)) for v in caller.pushed]
        if caller.done == 1:
            assert caller.said == expected
            assert [round(w.start / 0.08) for w in caller.words] == list(range(len(expected)))
        else:  # evicted: a prefix, and nobody's words but its own
            assert caller.done == -100
            assert caller.said == expected[: len(caller.said)]
