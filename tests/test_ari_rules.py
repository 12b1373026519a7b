"""Which channels a rule names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.pbx.ari_events import Channel
from bridge.pbx.ari_rules import Rule, endpoint, extension


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PJSIP/trunk-0000002a", "PJSIP/trunk"),
        ("PJSIP/my-trunk-0000002a", "PJSIP/my-trunk"),
        ("Local/200@queue-0000002a;2", "Local/200@queue"),
        ("DAHDI/i1/5551234-1", "DAHDI/i1/5551234-1"),
        ("PJSIP/trunk", "PJSIP/trunk"),
    ],
)
def test_an_endpoint_is_a_name_without_what_makes_it_unique(name: str, expected: str) -> None:
    assert endpoint(name) == expected


@pytest.mark.parametrize(
    ("pattern", "takes", "refuses"),
    [
        ("100", ["100"], ["1000", "10", "", "_100"]),
        ("_2XX", ["200", "299"], ["20", "2000", "2XX", "300"]),
        ("_nZx", ["219"], ["119", "209"]),
        ("_X.", ["12", "1abc"], ["1", "a1"]),
        ("_X!", ["1", "12"], ["a"]),
        ("_[1-3a]5", ["15", "35", "a5"], ["45", "-5", "b5"]),
        ("_0049[17]X.", ["00491712", "0049-71x"], ["00492712"]),
        ("_+49X.", ["+4930"], ["4930"]),
        ("_1-2", ["12", "1-2"], ["1x2"]),
        ("_[]1", [], ["1", "11"]),
        ("_[^1]", ["^", "1"], ["2"]),
        ("_[9-0]1", [], ["91", "-1", "01"]),
        ("_[12", ["[12"], ["1"]),
        ("_", [""], ["1"]),
        ("s", ["s"], ["S", "t"]),
    ],
)
def test_an_extension_is_as_in_the_dialplan(
    pattern: str, takes: list[str], refuses: list[str]
) -> None:
    assert [exten for exten in takes if not extension(pattern, exten)] == []
    assert [exten for exten in refuses if extension(pattern, exten)] == []


@given(st.text(st.sampled_from("_XZN.![]-^\\*+?(){}|$0a9"), max_size=8), st.text(max_size=4))
def test_no_pattern_breaks_it(pattern: str, exten: str) -> None:
    assert extension("_" + pattern, exten) in (True, False)


def test_all_that_a_rule_names_must_be_so() -> None:
    channel = Channel(
        "1.1", "PJSIP/trunk-00000001", "Up", context="from-trunk", exten="200", caller="0123"
    )
    assert Rule().matches(channel)
    assert Rule(endpoint="PJSIP/*").matches(channel)
    assert Rule("from-*", "_2XX", "PJSIP/trunk").matches(channel)
    assert not Rule("from-*", "_3XX", "PJSIP/trunk").matches(channel)
    assert not Rule("from", "_2XX", "PJSIP/trunk").matches(channel)
    assert not Rule("from-*", "_2XX", "pjsip/trunk").matches(channel)


def test_a_rule_of_place_is_one_that_names_a_place() -> None:
    assert not Rule(endpoint="*").of_place
    assert Rule(context="x").of_place and Rule(exten="1").of_place
