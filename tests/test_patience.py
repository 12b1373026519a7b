"""How long a missing packet is waited for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.patience import FORGET, LOST_COST, Patience


def test_at_first_a_guess_that_the_bounds_may_overrule() -> None:
    assert Patience(0.02, 0.2).wait == pytest.approx(0.1)
    assert Patience(0.15, 0.2).wait == pytest.approx(0.15)
    assert Patience(0.0, 0.06).wait == pytest.approx(0.06)
    assert Patience(0.0, 0.0).wait == 0.0


def test_where_nothing_comes_some_twenty_holes_bring_it_to_the_floor() -> None:
    patience = Patience(0.02, 0.2)
    holes = 0
    while patience.wait > 0.02:
        patience.lost()
        holes += 1
    assert 10 < holes < 30


def test_where_packets_come_late_it_grows_to_just_beyond_them() -> None:
    patience = Patience(0.02, 0.2)
    for _ in range(300):
        patience.lost()
    assert patience.wait == pytest.approx(0.02)
    for _ in range(20):
        patience.came(0.143)
    assert patience.wait == pytest.approx(0.15)


def test_who_comes_after_the_cap_is_not_waited_for() -> None:
    patience = Patience(0.02, 0.2)
    for _ in range(300):
        patience.came(0.5)
    assert patience.wait == pytest.approx(0.02)


def test_what_was_long_ago_is_forgotten() -> None:
    """Also after the weights have been made small again, once in two thousand observations."""
    patience = Patience(0.02, 0.2)
    for _ in range(5000):
        patience.came(0.19)
    assert patience.wait == pytest.approx(0.2)
    for _ in range(1000):
        patience.lost()
    assert patience.wait == pytest.approx(0.02)


@settings(max_examples=200)
@given(
    st.lists(st.none() | st.integers(-5, 400), max_size=300),
    st.integers(0, 10),
    st.integers(10, 40),
)
def test_it_is_the_cheapest_there_is(seen: list[int | None], floor: int, cap: int) -> None:
    """Against every wait in steps of 10 ms; packets come in the middle of a millisecond."""
    patience = Patience(floor / 100, cap / 100)
    observed = [(0.0999, 1.0)]  # the guess
    total = 1.0
    for i, milliseconds in enumerate(seen):
        weight = FORGET**-i
        total += weight
        if milliseconds is None:
            patience.lost()
        else:
            patience.came((milliseconds + 0.5) / 1000)
            observed.append(((milliseconds + 0.5) / 1000, weight))

    def cost(wait: float) -> float:
        later = sum(weight for after, weight in observed if wait < after < cap / 100)
        return wait * total + LOST_COST * later

    assert floor / 100 <= patience.wait <= cap / 100
    best = min(cost(wait / 100) for wait in range(floor, cap + 1))
    assert cost(patience.wait) == pytest.approx(best)
