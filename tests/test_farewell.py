"""Lines end after Asterisk has what it was told, or when it takes too long."""

from __future__ import annotations

import asyncio

import pytest

from bridge import farewell
from bridge.farewell import Farewells
from bridge.types import CallEvent, CallInfo, Ended, EventBody, Final, Listened, Refused, Started
from tests.waiting import until

CALL = CallInfo("c-1", channel="C/1")
LISTENS = CallInfo("c-1", channel="C/1", listening=True)


def event(body: EventBody, call: CallInfo = CALL) -> CallEvent:
    return CallEvent(call, 3, 0.0, None, body)


class Lines:
    def __init__(self) -> None:
        self.gone: list[str] = []
        self.farewells = Farewells(lambda call: bool(call.channel))

    def part(self, name: str, call: CallInfo = CALL) -> None:
        self.farewells.part(call, lambda: self.gone.append(name))


@pytest.mark.parametrize("last", [Ended("bridge", 1.0, {}), Refused("busy"), Listened("heard")])
async def test_the_last_word_ends_every_line_of_the_call(last: EventBody) -> None:
    lines = Lines()
    lines.part("a"), lines.part("b"), lines.part("other", CallInfo("c-2", channel="C/2"))
    for body in (Started(), Final(0, "hi", ())):
        lines.farewells.told(event(body))
    assert lines.gone == []
    lines.farewells.told(event(last))
    assert lines.gone == ["a", "b"]
    lines.farewells.told(event(last))
    lines.farewells.close()
    assert lines.gone == ["a", "b", "other"]


async def test_a_call_that_nobody_can_be_told_of_ends_at_once() -> None:
    lines = Lines()
    lines.part("a", CallInfo("c-1"))
    assert lines.gone == ["a"]


@pytest.mark.parametrize(("call", "name"), [(CALL, "PATIENCE"), (LISTENS, "LISTENING")])
async def test_patience_has_an_end(
    monkeypatch: pytest.MonkeyPatch, call: CallInfo, name: str
) -> None:
    monkeypatch.setattr(farewell, name, 0.01)
    lines = Lines()
    lines.part("a", call)
    await until(lambda: lines.gone)
    lines.farewells.told(event(Ended("bridge", 1.0, {}), call))
    assert lines.gone == ["a"]


async def test_the_same_line_waits_once() -> None:
    gone: list[str] = []
    farewells = Farewells(lambda call: True)

    def hang_up() -> None:
        gone.append("a")

    farewells.part(CALL, hang_up)
    farewells.part(CALL, hang_up)
    farewells.close()
    await asyncio.sleep(0)
    assert gone == ["a"]


async def test_a_result_that_comes_too_late_is_not_set() -> None:
    """It would meet the next time that this dialplan listens."""
    lines = Lines()
    result = event(Listened("heard", "yes"), LISTENS)
    assert not lines.farewells.wanted(result)
    lines.part("a", LISTENS)
    assert lines.farewells.wanted(result)
    lines.farewells.told(result)
    assert not lines.farewells.wanted(result)
    assert lines.farewells.wanted(event(Final(0, "hi", ())))


@pytest.mark.parametrize(("listening", "waits"), [(True, "LISTENING"), (False, "PATIENCE")])
async def test_whoever_listens_is_waited_for_longer(
    monkeypatch: pytest.MonkeyPatch, listening: bool, waits: str
) -> None:
    for name in ("LISTENING", "PATIENCE"):
        monkeypatch.setattr(farewell, name, 30.0 if name == waits else 0.01)
    gone: list[int] = []
    farewells = Farewells(lambda call: True)
    farewells.part(CallInfo("c", listening=listening), lambda: gone.append(1))
    await asyncio.sleep(0.05)
    assert gone == []
    farewells.close()
    assert gone == [1]


async def test_a_line_is_hung_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewell, "PATIENCE", 0.02)
    gone: list[int] = []

    def hang_up() -> None:
        gone.append(1)

    farewells = Farewells(lambda call: True)
    for _ in range(2):
        farewells.part(CallInfo("c"), hang_up)
    farewells.close()
    await asyncio.sleep(0.06)
    assert gone == [1] and not farewells._waiting
