import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract import body
from bridge.egress.packed import _KINDS, pack, pack_info, unpack, unpack_info
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegCounts,
    Listened,
    Partial,
    Paused,
    Pressed,
    Refused,
    Resumed,
    RuleFired,
    Started,
    Word,
)

TEXT = st.text(st.characters(), max_size=8) | st.just("\ud800 lone")
NUMBER = st.floats(allow_nan=False)
WORDS = st.lists(st.builds(Word, TEXT, NUMBER, NUMBER, NUMBER), max_size=3).map(tuple)
COUNTS = st.builds(LegCounts, seconds=NUMBER, words=st.integers(), jitter=NUMBER)
BODIES: st.SearchStrategy[EventBody] = st.one_of(
    st.builds(Started),
    st.builds(Partial, st.integers(), TEXT, WORDS),
    st.builds(Final, st.integers(), TEXT, WORDS, TEXT),
    st.builds(EndOfTurn, st.integers(), TEXT, NUMBER, NUMBER, TEXT),
    st.builds(Pressed, TEXT, NUMBER),
    st.builds(Ended, TEXT, NUMBER, st.dictionaries(st.sampled_from(["caller", "callee"]), COUNTS)),
    st.builds(Refused, TEXT),
    st.builds(Paused, NUMBER, TEXT),
    st.builds(Resumed, NUMBER, TEXT),
    st.builds(Listened, TEXT, TEXT, st.none() | NUMBER, TEXT),
    st.builds(
        RuleFired, TEXT, TEXT, st.sampled_from(["done", "failed", "dry_run"]), TEXT,
        st.integers(), st.integers(), TEXT, TEXT, WORDS, TEXT,
    ),
)  # fmt: skip
INFOS = st.builds(CallInfo, TEXT, TEXT, TEXT, caller=TEXT, extra=st.dictionaries(TEXT, TEXT))
EVENTS = st.builds(
    CallEvent, INFOS, st.integers(0), st.floats(0, 4e9), st.sampled_from(["caller", None]), BODIES
)


@given(EVENTS)
def test_an_event_comes_back_and_says_the_same_to_the_byte(event: CallEvent) -> None:
    data = pack(event)
    assert unpack(data) == event
    assert data.decode() and body(unpack(data)) == body(event)


def test_every_kind_of_event_can_be_kept() -> None:
    assert set(_KINDS.values()) == set(get_args(EventBody))


@given(INFOS)
def test_who_is_calling_comes_back(info: CallInfo) -> None:
    assert unpack_info(pack_info(info)) == info


def test_what_an_engine_says_that_is_no_number() -> None:
    event = CallEvent(CallInfo("c"), 0, 0.0, None, Pressed("1", math.nan))
    assert body(unpack(pack(event))) == body(event)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.__setitem__(0, 2),
        lambda row: row.__setitem__(3, "somebody"),
        lambda row: row.__setitem__(4, "said"),
        lambda row: row.__setitem__(5, {"no": 1}),
        lambda row: row.__setitem__(5, None),
        lambda row: row.__setitem__(6, {}),
        lambda row: row.pop(),
    ],
)
def test_what_is_no_event_of_ours(change) -> None:
    row = json.loads(pack(CallEvent(CallInfo("c"), 0, 0.0, "caller", Refused("busy"))))
    change(row)
    with pytest.raises(ValueError):
        unpack(json.dumps(row).encode())


def test_what_is_no_json() -> None:
    for data in (b"", b"\xff", b"{}", b"[]", b"null"):
        with pytest.raises(ValueError):
            unpack(data)


def test_counts_and_callers_of_a_version_to_come_are_read_without_what_is_new() -> None:
    ended = Ended("eof", 1.0, {"caller": LegCounts(words=3)})
    row = json.loads(pack(CallEvent(CallInfo("c"), 0, 0.0, None, ended)))
    row[5]["legs"]["caller"]["echoes"] = 7
    row[6]["favourite_colour"] = "blue"
    assert unpack(json.dumps(row).encode()).body == ended
