import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.egress.log import LogEgress, line
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegCounts,
    Refused,
    RuleFired,
    Started,
    Word,
)

WORDS = (Word("my", 0, 1, 1), Word("pin", 1, 2, 1))


def event(body: EventBody, *, call: str = "c-1", gap: int = 0) -> CallEvent:
    return CallEvent(CallInfo(id=call), 3, 0.0, "caller", body, gap)


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (Started(), "type=call.started"),
        (Final(0, "my pin", WORDS), "type=transcript.final words=2"),
        (EndOfTurn(0, "my pin", 0, 2, "pause"), "type=turn.ended words=2 reason=pause"),
        (
            Ended("hangup", 2, {"caller": LegCounts(words=2), "callee": LegCounts(words=3)}),
            "type=call.ended words=5 reason=hangup",
        ),
        (Refused("not ready"), r"type=call.refused reason=not\x20ready"),
        (
            RuleFired("vip", "hangup", "failed", "gone", 0, 2, "my pin", "my pin", WORDS),
            "type=rule.fired rule=vip action=hangup outcome=failed words=2",
        ),
    ],
)
def test_one_line_without_what_was_said(body: EventBody, rest: str) -> None:
    assert line(event(body), transcripts=False) == "call=c-1 seq=3 leg=caller " + rest


def test_what_was_said_only_when_asked_for() -> None:
    said = event(Final(0, 'my "pin"\n\\', WORDS), gap=2)
    text = r' gap_before=2 text="my \"pin\"\n\\"'
    assert line(said, transcripts=True).endswith(text)
    assert "pin" not in line(said, transcripts=False)


@given(st.text(), st.text())
def test_nothing_of_a_call_ends_the_line_or_forges_a_field(name: str, text: str) -> None:
    found = line(event(Final(0, text, ()), call=name), transcripts=True)
    assert found.isprintable() and len(found.splitlines()) == 1
    assert found.split(" ")[1:5] == ["seq=3", "leg=caller", "type=transcript.final", "words=0"]


async def test_delivers_to_its_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "callscribe.events")
    egress = LogEgress()
    await egress.start()
    await egress.deliver(event(Started()))
    await egress.close()
    assert caplog.record_tuples == [
        ("callscribe.events", logging.INFO, "call=c-1 seq=3 leg=caller type=call.started")
    ]
