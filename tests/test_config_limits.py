"""[[limit]] and calls.pause_digits."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.config import from_dict
from bridge.errors import ConfigError


def problems(**sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as e:
        from_dict(sections)
    return e.value.problems


def test_limits_as_they_are_written() -> None:
    found = from_dict(
        {
            "engine": {"slots": 8},
            "limit": [
                {"name": "acme", "trunk": "PJSIP/acme", "max": 3},
                {"name": "g", "reserve": 2},
            ],
        }
    ).limit
    assert [(x.name, x.trunk, x.max, x.reserve) for x in found] == [
        ("acme", "PJSIP/acme", 3, 0), ("g", "", None, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ([{"name": "a"}],
         "limit.0: expected max (calls at once), or reserve (slots kept for them)"),
        ([{"name": "a", "max": 1, "reserve": 2}], "limit.0: reserve = 2 is over max = 1"),
        ([{"max": 1}], "limit.0.name: is missing"),
        ([{"name": "a:b", "max": 1}],
         "limit.0.name: string should match pattern '^[A-Za-z0-9_-]{1,32}$'"),
        ([{"name": "a", "max": 1, "trunks": "x"}],
         "limit.0.trunks: is not a setting (deployment/bridge.toml shows them all)"),
        ([{"name": "a", "max": 1}, {"name": "a", "max": 2}],
         "configuration: limit: two are called 'a'; give each a name of its own"),
        ([{"name": "a", "reserve": 5}, {"name": "b", "reserve": 4}],
         "configuration: limit: 9 slots are reserved in all, and engine.slots = 8 are fewer"),
    ],
)  # fmt: skip
def test_a_wrong_limit_stops_the_start(limits: list[dict[str, Any]], sentence: str) -> None:
    assert problems(engine={"slots": 8}, limit=limits) == [sentence]


def test_where_slots_are_not_known_yet_any_number_may_be_kept() -> None:
    assert from_dict({"limit": [{"name": "a", "reserve": 5000}]}).limit[0].reserve == 5000


@pytest.mark.parametrize("digits", ["*7x", "7 ", "*********"])
def test_pause_digits_are_digits(digits: str) -> None:
    (problem,) = problems(calls={"pause_digits": digits})
    assert problem.startswith("calls.pause_digits: string should match pattern")
