"""Taps put together: what the switchboard knows of a leg, and what Prometheus reads."""

from __future__ import annotations

import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge import taps
from bridge.config import Settings, from_dict
from bridge.line import Line
from bridge.metrics import Metrics
from bridge.switchboard import Admission, Switchboard
from bridge.turns import TurnRules
from bridge.types import Announcement
from tests.fakes import Counts, Events, FakeRecogniser

U = [f"00000000-0000-4000-8000-{i:012d}" for i in range(4)]
ARI = {"username": "callscribe", "password": "s3cret"}


def settings(**ari: Any) -> Settings:
    return from_dict({"audiosocket": {"listen": "127.0.0.1:9092"}, "ari": ARI | ari})


def switchboard(slots: int = 4) -> Switchboard:
    return Switchboard(
        FakeRecogniser(slots),
        Admission(mode="announced", join_wait=2.0),
        TurnRules(),
        publish=Events(),
        count=Counts(),
        clock=time.monotonic,
        wall=time.time,
    )


def open_line(board: Switchboard, uuid: str) -> Line:
    return board.opened(uuid, "audiosocket", lambda: None, lambda: 0.0, 0.0)


def test_without_a_section_there_are_no_taps() -> None:
    assert taps.make(from_dict({}), switchboard(), Metrics()) is None


def test_what_came_of_a_leg() -> None:
    board = switchboard(slots=2)
    for n, leg in ((0, "caller"), (1, "callee"), (2, "caller")):
        call = "c1" if n < 2 else "c2"
        board.announce(Announcement(U[n], call, leg), 0.0)  # type: ignore[arg-type]
    assert taps.outcome(board, U[0], "c1", "caller") == "pending"
    line = open_line(board, U[0])
    assert taps.outcome(board, U[0], "c1", "caller") == "heard"
    open_line(board, U[1])
    open_line(board, U[2])  # there is no third slot
    assert taps.outcome(board, U[2], "c2", "caller") == "refused"
    board.closed(line, "eof")
    assert taps.outcome(board, U[0], "c1", "caller") == "heard"
    board.hang_up("c1")
    assert taps.outcome(board, U[1], "c1", "callee") == "ended"


def test_a_leg_whose_calls_id_was_taken_is_found_under_its_uuid() -> None:
    board = switchboard()
    for n in (0, 1):
        board.announce(Announcement(U[n], "c1", "caller"), 0.0)
        open_line(board, U[n])
    assert board.find(U[1]) is not None
    board.hang_up(U[1])
    assert taps.outcome(board, U[0], "c1", "caller") == "heard"
    assert taps.outcome(board, U[1], U[1], "caller") == "ended"


def test_an_announcement_reaches_the_switchboard() -> None:
    board = switchboard()
    link = taps.make(settings(), board, Metrics())
    assert link is not None
    link.taps._calls._announce(Announcement(U[0], "c1"))
    assert U[0] in board.announced


@pytest.mark.parametrize(
    ("ari", "listen", "expected"),
    [
        ({}, "127.0.0.1:9092", "127.0.0.1:9092"),
        ({"audiosocket": "[2001:db8::1]:9092"}, "127.0.0.1:9092", "[2001:db8::1]:9092"),
    ],
)
def test_where_asterisk_sends_the_audio(ari: dict[str, Any], listen: str, expected: str) -> None:
    chosen = settings(**ari)
    assert chosen.ari is not None
    assert taps.address(chosen.ari, chosen.audiosocket) == expected


def test_prometheus_sees_taps_before_there_are_any() -> None:
    metrics = Metrics()
    link = taps.make(settings(), switchboard(), metrics)
    assert link is not None
    link.counters["untapped_refused"] += 3
    text = metrics.exposition()[0].decode()
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["callscribe_ari_up",] == 0
    assert values["callscribe_ari_channels",] == 0
    assert values["callscribe_taps", "up"] == values["callscribe_taps", "waiting"] == 0
    assert values["callscribe_ari_total", "untapped_refused"] == 3
