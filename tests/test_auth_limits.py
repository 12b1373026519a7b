"""Limits hold, tables have bounds, and a clock that steps locks nobody out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import auth_limits
from bridge.addresses import is_loopback, neighbourhood
from bridge.auth_limits import Buckets, Connections, Failures
from bridge.auth_types import Denied, Identity

ALICE, BOB = Identity("alice", "key"), Identity("bob", "key")


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    buckets = Buckets()
    for _ in range(3):
        assert buckets.wait("a", 2.0, 3.0, 100.0) == 0
        buckets.take("a", 2.0, 3.0, 100.0)
    assert buckets.wait("a", 2.0, 3.0, 100.0) == 0.5
    assert buckets.wait("a", 2.0, 3.0, 100.25) == 0.25
    assert buckets.wait("b", 2.0, 3.0, 100.0) == 0
    assert buckets.wait("a", 2.0, 3.0, 100.5) == 0


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=200))
def test_no_more_than_the_burst_and_the_rate_whatever_the_clock_does(steps: list[float]) -> None:
    buckets, now, taken, forward = Buckets(), 1000.0, 0, 0.0
    for step in steps:
        now += step
        forward += max(0.0, step)
        if buckets.wait("a", 1.0, 2.0, now) == 0:
            buckets.take("a", 1.0, 2.0, now)
            taken += 1
        assert buckets.wait("a", 1.0, 2.0, now) <= 1.0
    assert taken <= 2 + forward + 1e-6


def test_a_clock_that_was_put_back_takes_no_tokens_away() -> None:
    buckets = Buckets()
    for now in (100.0, 50.0):
        buckets.take("a", 1.0, 3.0, now)
    assert buckets.wait("a", 1.0, 3.0, 50.0) == 0


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_limits, "REMEMBERED", 3)
    buckets = Buckets()
    for i in range(10):
        buckets.take(str(i), 1.0, 1.0, 0.0)
    assert len(buckets) == 3
    assert buckets.wait("9", 1.0, 1.0, 0.0) == 1.0


def test_connections_of_a_key_and_of_an_address() -> None:
    connections = Connections(per_address=2)
    for _ in range(2):
        connections.check(ALICE, "192.0.2.1", 2)
        connections.opened(ALICE, "192.0.2.1")
    with pytest.raises(Denied, match="^alice has its 2 connections; close one, or raise") as e:
        connections.check(ALICE, "192.0.2.2", 2)
    assert (e.value.status, e.value.reason) == (429, "key_connections")
    with pytest.raises(Denied, match="^there are 2 connections from your address; close") as e:
        connections.check(BOB, "192.0.2.1", 2)
    assert (e.value.status, e.value.reason) == (429, "address_connections")
    connections.closed(ALICE, "192.0.2.1")
    connections.check(BOB, "192.0.2.1", 2)
    connections.check(ALICE, "192.0.2.2", 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([ALICE, BOB]), st.sampled_from("xy"))))
def test_connections_come_back_to_nothing(
    steps: list[tuple[bool, Identity, str]],
) -> None:
    connections, opened = Connections(10**6), []
    for opening, identity, host in steps:
        if opening:
            connections.opened(identity, host)
            opened.append((identity, host))
        elif opened:
            connections.closed(*opened.pop())
        assert len(connections) == len(opened)
    for identity, host in opened:
        connections.closed(identity, host)
    connections.closed(ALICE, "x")  # once too often
    assert len(connections) == 0
    assert not connections._identities and not connections._addresses


def test_an_address_waits_after_too_many_failures() -> None:
    failures = Failures(most=3, block=60.0)
    assert [failures.failed("a", 100.0) for _ in range(4)] == [False, False, False, True]
    assert failures.wait("a", 100.0) == 60.0
    assert failures.wait("a", 159.0) == 1.0
    assert failures.wait("b", 100.0) == 0
    assert failures.wait("a", 160.0) == 0
    assert len(failures) == 0


def test_failures_fade() -> None:
    """Three a minute may go on for ever."""
    failures = Failures(most=3, block=60.0)
    assert not any(failures.failed("a", 20.0 * i) for i in range(100))


def test_a_clock_that_was_put_back_ends_the_wait() -> None:
    failures = Failures(most=1, block=60.0)
    failures.failed("a", 10_000.0)
    assert failures.failed("a", 10_000.0)
    assert failures.wait("a", 100.0) == 0


def test_failures_may_be_any_number() -> None:
    failures = Failures(most=0, block=60.0)
    assert not any(failures.failed("a", 0.0) for _ in range(100))
    assert len(failures) == 0


def test_failures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_limits, "REMEMBERED", 5)
    failures = Failures(most=1, block=60.0)
    for i in range(100):
        failures.failed(f"host {i}", 0.0)
    assert len(failures) == 5


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not an address", "not an address"),
    ],
)
def test_whom_failures_are_held_against(address: str, name: str) -> None:
    assert neighbourhood(address) == name
    assert not is_loopback(address)


def test_idle_time_is_no_credit() -> None:
    buckets = Buckets()
    buckets.take("k", 1.0, 2.0, 0.0)
    n = 0
    while buckets.wait("k", 1.0, 2.0, 3600.0) == 0.0 and n < 10:
        buckets.take("k", 1.0, 2.0, 3600.0)
        n += 1
    assert n == 2
