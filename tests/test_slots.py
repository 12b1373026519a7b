"""The slot table, without an engine."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.engine.slots import MAX_TRIES, Plan, SlotLease, Slots, State
from bridge.errors import Busy
from bridge.types import Heard, Word

DELAY = 3  # blocks


def block(value: float) -> np.ndarray:
    return np.full(4, value, np.float32)


class Echo:
    """A delayed model: a row says, as a word, what it was given `DELAY` steps ago.

    `stuck`: slots that say so in their next step.
    """

    def __init__(self, slots: int) -> None:
        self.rows: list[list[float]] = [[] for _ in range(slots)]
        self.stuck: set[int] = set()

    def step(self, plan: Plan) -> dict[int, Heard]:
        out = {}
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
            stuck = slot in self.stuck
            self.stuck.discard(slot)
            out[slot] = Heard(words, at=n * 0.08, settled=(n - DELAY) * 0.08, stuck=stuck)
        return out


class Caller:
    """One lease and what it was told."""

    def __init__(self, slots: Slots) -> None:
        self.words: list[Word] = []
        self.heards: list[Heard] = []
        self.done = 0
        self.pushed: list[float] = []
        self.lease: SlotLease = slots.lease(self.heard, self.over)

    def heard(self, heard: Heard) -> None:
        assert not self.done
        self.words += heard.words
        self.heards.append(heard)

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
    assert run(slots, model) == 5 + DELAY + 1 + 1  # the last only finds it drained
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


def test_a_model_made_anew_in_mid_call_hears_again_what_the_lost_one_had_not_said() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 6):
        caller.push(value)
    run(slots, model)
    assert caller.said == ["1.0", "2.0"], "3, 4, 5 are in its delay"
    caller.push(6.0)
    slots.abandon(slots.schedule())
    model = Echo(3)
    for value in range(7, 12):
        caller.push(value)
    caller.lease.finish()
    run(slots, model)
    assert caller.said == [f"{value}.0" for value in range(1, 12)]
    assert [round(w.start / 0.08) + 1 for w in caller.words] == list(range(1, 12))
    assert slots.counters["blocks_replayed"] == 6


def test_a_row_starts_again_three_seconds_before_its_last_word() -> None:
    slots, model = table(queue=1000), Echo(3)
    caller = Caller(slots)
    for value in range(1, 101):
        caller.push(value)
    run(slots, model)
    slots.abandon(Plan())
    first = slots.schedule().rows[0]
    assert first.fresh and first.block is not None
    # Word 97 began with block 96 (7.68 s), and the first block from 4.68 s on is number 59.
    assert first.block[0] == 60.0


def test_only_so_much_audio_is_kept() -> None:
    slots = Slots(1, block_seconds=0.08, delay=0.24, queue_blocks=1000, keep_seconds=0.8)
    caller = Caller(slots)
    for _ in range(100):
        caller.push(0.5)
        slots.schedule()
    slots.abandon(Plan())
    assert slots.counters["blocks_replayed"] == 10


def test_a_stuck_row_hears_the_last_seconds_again_and_says_nothing_twice() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 9):
        caller.push(value)
    run(slots, model)
    caller.push(9.0)
    model.stuck.add(caller.lease.slot)
    run(slots, model)
    caller.push(10.0)
    caller.lease.finish()
    run(slots, model)
    assert caller.said == [f"{value}.0" for value in range(1, 11)]
    assert slots.counters["watchdog_resets"] == 1


def test_a_row_that_stays_stuck_is_left_alone_for_twice_as_long_each_time() -> None:
    """Music on hold must not be heard twice for ever."""
    slots, model = table(queue=10_000), Echo(3)
    caller = Caller(slots)
    resets = []
    for i in range(round(700 / 0.08)):
        caller.push(0.0)
        model.stuck.add(caller.lease.slot)
        before = slots.counters["watchdog_resets"]
        run(slots, model)
        if slots.counters["watchdog_resets"] > before:
            resets.append(round(i * 0.08))
    assert resets == [0, 6, 18, 42, 90, 186, 378, 678]


def test_a_flush_says_what_is_held_back_and_loses_no_audio() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 9):
        caller.push(value)
    run(slots, model)
    assert caller.said[-1] == "5.0"
    caller.lease.flush()
    caller.push(9.0)  # while the row is fed silence
    caller.push(10.0)
    assert run(slots, model) == DELAY + 1 + 2
    assert caller.said[-1] == "8.0"
    flushed = caller.heards[8 + DELAY]
    assert (flushed.at, flushed.settled) == pytest.approx((0.64, 0.64)), "the leg's time stood"
    assert caller.heards[-1].at == pytest.approx(0.8)
    caller.lease.finish()
    run(slots, model)
    assert [round(w.start / 0.08) + 1 for w in caller.words] == list(range(1, 11))
    assert caller.said == [f"{value}.0" for value in range(1, 11)]


def test_a_flush_again_at_once_costs_nothing() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 9):
        caller.push(value)
    run(slots, model)
    for _ in range(3):
        caller.lease.flush()
    run(slots, model)
    caller.push(9.0)
    caller.lease.flush()
    assert run(slots, model) == 1
    assert slots.counters["flushes"] == 1


def test_a_row_that_is_behind_hears_its_own_audio_before_a_flush() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 9):
        caller.push(value)
    run(slots, model)
    for value in (9.0, 10.0, 11.0):
        caller.push(value)
    caller.lease.flush()
    assert run(slots, model) == 3
    caller.lease.flush()
    assert run(slots, model) == DELAY + 1


@pytest.mark.parametrize("later", [0, 1, 5])
def test_audio_that_breaks_the_model_some_steps_later_is_given_up(later: int) -> None:
    """Or one leg would cost everybody the engine for ever."""
    slots, model = table(), Echo(3)
    bad, good = Caller(slots), Caller(slots)
    for value in range(1, 41):
        bad.push(value)
        good.push(100 + value)
    bad.lease.finish(), good.lease.finish()
    failures = steps = 0
    heard = -1  # steps since the row heard block 20
    while plan := slots.schedule():
        for row in plan.rows:
            if row.lease is bad.lease:
                twenty = row.block is not None and row.block[0] == 20.0
                heard = 0 if twenty else -1 if row.fresh else heard + (heard >= 0)
        if heard == later:
            failures += 1
            slots.abandon(plan)
            model, heard = Echo(3), -1
            continue
        slots.commit(plan, model.step(plan))
        steps += 1
        assert steps < 2000
    assert failures <= 6
    assert (bad.done, good.done, slots.used) == (1, 1, 0)
    assert good.lease.dropped <= bad.lease.dropped + 1


def test_a_model_that_is_lost_in_a_drain_again_and_again_costs_that_leg_only() -> None:
    slots = table(1)
    caller = Caller(slots)
    caller.push(1.0)
    caller.lease.finish()
    failures = 0
    while plan := slots.schedule():
        if plan.rows and plan.rows[0].block is None:
            failures += 1
            slots.abandon(plan)
        else:
            slots.commit(plan, {})
    assert (failures, caller.done, slots.used) == (MAX_TRIES, 1, 0)


def test_a_lease_that_is_over_holds_no_audio() -> None:
    slots, model = table(), Echo(3)
    caller = Caller(slots)
    for value in range(1, 9):
        caller.push(value)
    run(slots, model)
    caller.lease.evict()
    assert not (caller.lease.queue or caller.lease._kept or caller.lease._again)


def test_without_the_setting_nothing_is_flushed() -> None:
    slots = Slots(1, block_seconds=0.08, delay=0.24, queue_blocks=100, flush=False)
    caller = Caller(slots)
    for value in range(1, 9):
        caller.push(value)
    run(slots, model := Echo(1))
    caller.lease.flush()
    assert run(slots, model) == 0


def test_a_word_that_is_being_spelt_is_waited_for_and_not_for_ever() -> None:
    slots = table(1)
    caller = Caller(slots)
    caller.push(1.0)
    caller.lease.finish()
    steps, endings = 0, []
    while plan := slots.schedule():
        open_word = Heard(tentative=(Word("hal", 0.0, 0.1, 1.0),))
        slots.commit(plan, {0: open_word})
        steps += 1
        endings += [row.ending for row in plan.rows]
    assert steps == 1 + (DELAY + 1) + 12 + 1
    assert endings == [False] * (1 + DELAY + 1 + 11) + [True], "the last step closes it"
    assert caller.done == 1


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
@settings(max_examples=300)
def test_every_caller_hears_exactly_its_own_words(seed: int, size: int) -> None:
    """Random leases, evictions, hang-ups, steps in flight; nothing ever crosses.

    And nothing is lost or said twice when rows are flushed or stuck or the model is lost.
    """
    rng = random.Random(seed)
    slots, model = table(size), Echo(size)
    alive: list[Caller] = []
    everyone: list[Caller] = []
    in_flight: tuple[Plan, dict[int, Heard]] | None = None
    value, lost = 0.0, 0
    for _ in range(rng.randrange(20, 120)):
        match rng.randrange(9):
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
            case 5 if alive:
                rng.choice(alive).lease.flush()
            case 6 if alive and rng.random() < 0.3:
                model.stuck.add(rng.choice(alive).lease.slot)
            case 7 if lost < MAX_TRIES - 1 and rng.random() < 0.3:
                lost += 1
                if in_flight is None:
                    in_flight = (slots.schedule(), {})
                slots.abandon(in_flight[0])
                in_flight, model = None, Echo(size)
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
