"""The clock of streams without time stamps. What it does with gaps and bursts is seen in
test_audiosocket.py, too, where it comes from."""

from __future__ import annotations

import pytest

from bridge.ingress.arrival import GAP, JITTER, QUIET, Arrival, until_block


def test_a_change_of_rate_keeps_the_time() -> None:
    clock = Arrival(0.0)
    assert clock.place(800, 8000, 0.1) == 0
    assert clock.place(1600, 16000, 0.2) == 1600
    assert clock.seconds == pytest.approx(0.2)


def test_a_hole_is_skipped_and_late_audio_is_not_a_hole() -> None:
    clock = Arrival(0.0)
    clock.place(160, 8000, 0.02)
    assert clock.place(160, 8000, 0.04 + GAP / 2) == 160
    after = clock.place(160, 8000, 2.0) / 8000
    assert after == pytest.approx(2.0 - 0.02 - JITTER, abs=0.01)


def test_silence_is_filled_in_once_it_is_quiet() -> None:
    clock = Arrival(10.0)
    assert not clock.fill(10.0 + QUIET)
    assert clock.fill(10.5)
    assert clock.seconds == pytest.approx(0.5 - GAP, abs=0.001)
    clock.restart(20.0)
    assert clock.origin == 20.0


@pytest.mark.parametrize(
    ("clock", "rate", "message", "streams", "expected"),
    [
        (0, 8000, 160, 1, 4),
        (160, 8000, 160, 1, 3),
        (480, 8000, 160, 2, 2),
        (600, 8000, 160, 1, 1),  # less than a message is missing
        (0, 16000, 320, 1, 4),
        (0, 8000, 800, 1, 1),  # each is more than a block
        (0, 8000, 0, 1, 1),
    ],
)
def test_messages_until_a_block_is_complete(
    clock: int, rate: int, message: int, streams: int, expected: int
) -> None:
    assert until_block(clock, rate, message, streams) == expected
