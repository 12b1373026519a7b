"""Admission by step time, in virtual time."""

from __future__ import annotations

import pytest

from bridge.engine.budget import StepBudget


def feed(budget: StepBudget, now: float, seconds: float, step: float) -> float:
    """Steps of `step` seconds, one after another, for `seconds`."""
    until = now + seconds
    while now < until:
        now += step
        budget.add(step, now)
    return now


def test_steps_within_it_leave_the_door_open() -> None:
    budget = StepBudget(0.04)
    now = feed(budget, 0.0, 60.0, 0.039)
    assert not budget.spent(now)


def test_slow_steps_close_it_within_a_second_and_it_opens_within_five() -> None:
    budget = StepBudget(0.04)
    now = feed(budget, 0.0, 10.0, 0.02)
    slow = now
    while not budget.spent(now):
        now = feed(budget, now, 0.01, 0.09)
    assert now - slow < 1.0
    well = now = feed(budget, now, 3.0, 0.09)
    while budget.spent(now):
        now = feed(budget, now, 0.01, 0.02)
    assert 0.5 < now - well < 5.0


def test_one_hiccup_closes_nothing() -> None:
    budget = StepBudget(0.04)
    now = feed(budget, 0.0, 1.0, 0.09 / 2)
    budget = StepBudget(0.04)
    budget.add(3.0, now)
    budget.add(3.0, now)
    assert not budget.spent(now)


def test_one_in_a_hundred_is_the_limit() -> None:
    budget = StepBudget(0.04)
    for i in range(2000):
        budget.add(0.05 if i % 100 == 50 else 0.0009, i * 0.0009)
    assert not budget.spent(1.8)
    budget.add(0.05, 1.8)
    assert budget.spent(1.8)


def test_an_idle_engine_opens_it() -> None:
    budget = StepBudget(0.04)
    now = feed(budget, 0.0, 1.0, 0.09)
    assert budget.spent(now)
    assert not budget.spent(now + 2.1)


@pytest.mark.parametrize("seconds", [0.01, 10.0])
def test_without_a_limit_nothing_is_counted(seconds: float) -> None:
    budget = StepBudget(None)
    now = feed(budget, 0.0, 20.0, seconds)
    assert not budget.spent(now)


@pytest.mark.parametrize("step", [0.05, 0.5, 1.1, 3.0, 9.0])
def test_the_slowest_steps_close_it_too(step: float) -> None:
    """Three of them do not fit into two seconds."""
    budget = StepBudget(0.04)
    now = feed(budget, 0.0, 10 * step, step)
    assert budget.spent(now)
    assert not budget.spent(now + 3 * step + 2.1)


def test_a_step_that_does_not_come_back_closes_it() -> None:
    budget = StepBudget(0.04)
    budget.begin(5.0)
    assert not budget.spent(5.3)
    assert budget.spent(5.5)
    budget.add(0.6, 5.6)
    assert not budget.spent(5.6), "one hiccup"
