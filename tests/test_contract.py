import json
import math
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.contract import EVENT_TYPES, body, event_type, to_json
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegCounts,
    LegName,
    Listened,
    Partial,
    Paused,
    Pressed,
    Refused,
    Resumed,
    RuleFired,
    Started,
    TranscriptEvent,
    Word,
)

CALL = CallInfo(
    id="11111111-2222-3333-4444-555555555555",
    ingress="audiosocket",
    channel="PJSIP/alice-00000001",
    uniqueid="1700000000.1",
    linkedid="1700000000.0",
    caller="+31201234567",
    callee="100",
    context="inbound",
    exten="100",
    extra={"queue": "sales"},
)
ABOUT = {
    "channel": "PJSIP/alice-00000001",
    "uniqueid": "1700000000.1",
    "linkedid": "1700000000.0",
    "caller": "+31201234567",
    "callee": "100",
    "extra": {"queue": "sales"},
}
WORDS = (Word("good", 0.1204, 0.4006, 0.91234), Word("morning", 0.5, 1.0005001, 0.5))


def event(
    body: EventBody, *, seq: int = 7, leg: LegName | None = "caller", gap: int = 0
) -> CallEvent:
    return CallEvent(CALL, seq, 1700000000.1239, leg, body, gap)


def data(body: EventBody, leg: LegName | None = "caller") -> dict[str, object]:
    """What the body adds to what every event says."""
    found = to_json(event(body, leg=leg))["data"]
    assert isinstance(found, dict)
    common = {"call_id": CALL.id, "seq": 7, "leg": leg} | ABOUT
    assert {key: found.pop(key) for key in common} == common
    return found


def test_pauses_and_what_a_dialplan_heard() -> None:
    assert data(Paused(1.23456, "dtmf")) == {"start": 1.235, "by": "dtmf"}
    assert data(Resumed(2.0, "http")) == {"start": 2.0, "by": "http"}
    assert data(Listened("heard", "a, b", 0.91234, "en")) == {
        "status": "heard", "text": "a, b", "confidence": 0.912, "language": "en",
    }  # fmt: skip
    assert data(Listened("silence"))["confidence"] is None


@pytest.mark.parametrize("kind", [Partial, Final])
def test_words_say_their_times_and_confidence(kind: type[Partial | Final]) -> None:
    language = {"language": ""} if kind is Final else {}
    assert data(kind(3, "good morning", WORDS)) == {
        "turn": 3,
        "text": "good morning",
        **language,
        "start": 0.12,
        "end": 1.001,
        "confidence": 0.706,
        "words": [
            {"word": "good", "start": 0.12, "end": 0.401, "confidence": 0.912},
            {"word": "morning", "start": 0.5, "end": 1.001, "confidence": 0.5},
        ],
    }


def test_a_final_says_its_language_where_it_can_be_told() -> None:
    assert data(Final(3, "good morning", WORDS, "en"))["language"] == "en"


def test_nothing_heard_has_no_times() -> None:
    found = data(Partial(0, "", ()))
    empty = {"turn": 0, "text": "", "start": None, "end": None, "confidence": None, "words": []}
    assert found == empty


def test_end_of_turn_digit_and_calls() -> None:
    turn = EndOfTurn(2, "good morning", 0.1, 1.23456, "pause")
    assert data(turn) == {
        "turn": 2,
        "text": "good morning",
        "start": 0.1,
        "end": 1.235,
        "reason": "pause",
    }
    assert data(Pressed("#", 4.56789)) == {"digit": "#", "start": 4.568}
    assert data(Started(), None) == {}
    assert data(Refused("busy"), None) == {"reason": "busy"}


def test_a_rule_says_what_was_heard_and_what_came_of_it() -> None:
    fired = RuleFired("operator", "webhook", "done", "", 2, 6, "morning", "morning", WORDS[1:], "x")
    assert data(fired) == {
        "rule": "operator",
        "action": "webhook",
        "outcome": "done",
        "reason": "",
        "cause": 6,
        "turn": 2,
        "matched": "morning",
        "text": "morning",
        "start": 0.5,
        "end": 1.001,
        "confidence": 0.5,
        "words": [{"word": "morning", "start": 0.5, "end": 1.001, "confidence": 0.5}],
    }


def test_an_end_counts_each_leg() -> None:
    counts = LegCounts(12.34567, 617, 20, 0.0201, 154, 1, 2, 3, 4, 5, 6, 0.00349, 0.0401, 1.25)
    assert data(Ended("hangup", 12.5, {"caller": counts, "callee": LegCounts()}), None) == {
        "reason": "hangup",
        "seconds": 12.5,
        "legs": {
            "caller": {
                "seconds": 12.346,
                "frames": 617,
                "words": 20,
                "silence_inserted": 0.02,
                "blocks": 154,
                "blocks_dropped": 1,
                "packets_lost": 2,
                "packets_late": 3,
                "packets_duplicate": 4,
                "packets_invalid": 5,
                "packets_foreign": 6,
                "jitter": 0.003,
                "concealed": 0.04,
                "paused": 1.25,
            },
            "callee": {
                "seconds": 0.0,
                "frames": 0,
                "words": 0,
                "silence_inserted": 0.0,
                "blocks": 0,
                "blocks_dropped": 0,
                "packets_lost": 0,
                "packets_late": 0,
                "packets_duplicate": 0,
                "packets_invalid": 0,
                "packets_foreign": 0,
                "jitter": 0.0,
                "concealed": 0.0,
                "paused": 0.0,
            },
        },
    }


def test_every_body_has_a_type() -> None:
    bodies = {kind for kind in get_args(EventBody) if isinstance(kind, type)}
    assert bodies | set(get_args(TranscriptEvent)) == set(EVENT_TYPES)
    assert len(set(EVENT_TYPES.values())) == len(EVENT_TYPES)
    assert event_type(event(Final(0, "", ()))) == "transcript.final"
    assert to_json(event(Started()))["type"] == "call.started"


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (1700000000.1239, "2023-11-14T22:13:20.124Z"),
        (1700000000, "2023-11-14T22:13:20.000Z"),
        (1699999999.99996, "2023-11-14T22:13:20.000Z"),
    ],
)
def test_the_time_is_utc_to_the_millisecond(at: float, text: str) -> None:
    assert to_json(CallEvent(CALL, 0, at, None, Started()))["timestamp"] == text


def test_a_gap_is_said_only_when_there_is_one() -> None:
    assert '"gap_before":2' in body(event(Started(), gap=2)).decode()
    assert "gap_before" not in body(event(Started())).decode()


def test_the_body_is_compact_utf8() -> None:
    content = body(event(Final(0, "één\n", (Word("één", 0, -0.0, 1),))))
    assert '"text":"één\\n"'.encode() in content
    assert b": " not in content and b":-0" not in content
    assert json.loads(content) == to_json(event(Final(0, "één\n", (Word("één", 0, 0, 1),))))


@example("\ud800", 0.5, "\udfff")  # a name in a broken encoding; st.text() leaves them out
@given(st.text(), st.floats(), st.text())
def test_no_text_or_number_costs_the_event(text: str, number: float, name: str) -> None:
    call = CallInfo(id=name, caller=text, extra={text: name})
    words = (Word(text, number, 1.0, number),)
    found = json.loads(body(CallEvent(call, 0, 0.0, "caller", Partial(1, text, words))))
    start = found["data"]["words"][0]["start"]
    assert start == pytest.approx(number, abs=0.0006) if math.isfinite(number) else start is None
    expected = text.encode("utf-8", "replace").decode()
    assert found["data"]["text"] == found["data"]["caller"] == expected
