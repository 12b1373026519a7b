import pytest

from bridge.egress.retry import PROBE, SCHEDULE, TRIP, Breaker, backoff


def test_the_schedule_ends_in_its_last_delay() -> None:
    waits = [backoff(SCHEDULE, attempts, 0.5) for attempts in range(1, 18)]
    hours = [1, 2, 5, 10, 14, 20, 22, 22, 22]
    assert waits == [0, 1, 5, 30, 120, 300, 900, 1800, *(hour * 3600 for hour in hours)]


def test_jitter_is_a_quarter_either_way() -> None:
    assert backoff((8.0,), 1, 0.0) == 6.0
    assert backoff((8.0,), 1, 1.0) == 10.0


def test_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(TRIP - 1):
        breaker.failed(0.0, 0.0)
    assert not breaker.taken()
    for _ in range(TRIP - 1):
        breaker.failed(0.0, 0.0)
    assert not breaker.open and breaker.ask_at == 0.0
    breaker.failed(100.0, 0.0)
    assert breaker.open and breaker.ask_at == 100.0 + PROBE


@pytest.mark.parametrize(("wish", "later"), [(0.0, PROBE), (3.0, PROBE), (60.0, 60.0)])
def test_one_probe_at_a_time(wish: float, later: float) -> None:
    breaker = Breaker()
    for _ in range(TRIP):
        breaker.failed(0.0, 0.0)
    breaker.asked(PROBE)
    assert breaker.ask_at == 2 * PROBE
    breaker.failed(12.0, wish)
    assert breaker.ask_at == 12.0 + later
    assert breaker.taken()
    assert not breaker.open and breaker.ask_at == 0.0
