"""A row's time and its leg's."""

from __future__ import annotations

import math

import pytest

from bridge.engine.clock import MAX_PIECES, RowClock
from bridge.types import Heard, Word


def heard(start: float, end: float, at: float | None = None) -> Heard:
    return Heard((Word("x", start, end, 0.5),), at=at if at is not None else end, settled=end)


def spans(clock: RowClock, *times: tuple[float, float]) -> list[tuple[float, float]]:
    return [
        (round(w.start, 6), round(w.end, 6))
        for start, end in times
        for w in clock.on_leg(heard(start, end)).words
    ]


def test_a_row_that_hears_everything_has_the_legs_time() -> None:
    clock = RowClock(0.08)
    for index in range(5):
        clock.block(index)
    said = heard(0.1, 0.3)
    assert clock.on_leg(said) is said


def test_lost_blocks_move_what_follows() -> None:
    clock = RowClock(0.08)
    for index in (0, 1, 2, 13, 14):
        clock.block(index)
    assert spans(clock, (0.08, 0.24), (0.24, 0.32)) == [(0.08, 0.24), (1.04, 1.12)]


def test_silence_of_a_flush_takes_no_time_on_the_leg() -> None:
    clock = RowClock(0.08)
    for index in range(3):
        clock.block(index)
    for _ in range(4):
        clock.silence()
    assert clock.on_leg(heard(0.16, 0.5)).at == pytest.approx(0.24)
    clock.block(3)
    clock.block(4)
    assert spans(clock, (0.56, 0.72)) == [(0.24, 0.4)]
    assert spans(clock, (0.16, 0.24)) == [(0.16, 0.24)]


def test_a_word_that_ends_in_inserted_silence_ends_where_it_began() -> None:
    clock = RowClock(0.08)
    clock.block(0)
    clock.block(1)
    clock.silence()
    clock.silence()
    assert spans(clock, (0.1, 0.3)) == [(0.1, 0.16)]


def test_a_fresh_start_further_back() -> None:
    clock = RowClock(0.08)
    for index in range(50):
        clock.block(index)
    clock.restart()
    for index in range(25, 30):
        clock.block(index)
    assert spans(clock, (0.08, 0.16)) == [(2.08, 2.16)]


def test_what_is_settled_for_ever_stays_so() -> None:
    clock = RowClock(0.08)
    clock.block(7)
    clock.silence()
    assert clock.on_leg(Heard(at=0.16)).settled == math.inf


def test_memory_is_bounded_and_the_newest_pieces_are_kept() -> None:
    clock = RowClock(0.08)
    for index in range(0, 1000, 2):  # every second block is lost
        clock.block(index)
    assert len(clock._pieces) == MAX_PIECES
    assert spans(clock, (499 * 0.08, 500 * 0.08)) == [(79.84, 79.92)]
