"""[[rule]] and [rules]: what is taken, and the sentence for what is not."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bridge.config import Settings, from_dict, rule_from_dict
from bridge.errors import ConfigError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXTENSIONS = (ROOT / "asterisk" / "extensions.conf").read_text("utf-8")
AMI = {"username": "callscribe", "secret": "s3cret"}
SET = {"do": "setvar", "variable": "CALLSCRIBE_WANTS"}
MOVE = {"do": "redirect", "context": "callscribe-operator"}
HOOK = {"url": "http://127.0.0.1:9000/", "secret": "whsec_" + "BQ" * 21 + "A=", "name": "crm"}


def settings(*actions: dict[str, object], **sections: Any) -> Settings:
    rule = {"name": "r", "words": ["help"], "actions": list(actions)}
    return from_dict({"ami": AMI, "rule": [rule], **sections})


def problem(*actions: dict[str, object], **sections: Any) -> str:
    with pytest.raises(ConfigError) as e:
        settings(*actions, **sections)
    return str(e.value)


def test_what_tells_is_allowed_and_what_moves_is_not() -> None:
    settings(SET, {"do": "userevent"})
    assert problem(MOVE) == (
        "configuration: rule 'r': may not redirect; add it to rules.allow_actions if rules are to "
        "do that"
    )
    for do in ("hangup", "record", "stop_record"):
        assert f"may not {do}" in problem({"do": do})


def test_a_context_must_be_on_the_list() -> None:
    rules = {"allow_actions": ["redirect"]}
    assert problem(MOVE, rules=rules) == (
        "configuration: rule 'r': may not redirect to callscribe-operator; add the context to "
        "rules.allow_contexts if what callers say may lead there"
    )
    settings(MOVE, rules={**rules, "allow_contexts": ["callscribe-operator"]})
    assert "may not" in problem(MOVE, rules={**rules, "allow_contexts": ["callscribe"]})
    assert "allow_contexts.0: " in problem(MOVE, rules={**rules, "allow_contexts": ["*"]})


@pytest.mark.parametrize("variable", ["SHELL(rm)", "a,b", "x y", "", "1A", "CHANNEL(language)"])
def test_a_variable_is_a_name(variable: str) -> None:
    assert "string should match pattern" in problem({"do": "setvar", "variable": variable})


def test_variables_are_on_a_list_and_not_ours() -> None:
    assert problem({"do": "setvar", "variable": "MIXMONITOR_EXEC"}) == (
        "configuration: rule 'r': may not set MIXMONITOR_EXEC; rename it, as "
        "CALLSCRIBE_MIXMONITOR_EXEC, or add it to rules.allow_variables"
    )
    settings({"do": "setvar", "variable": "VIP"}, rules={"allow_variables": ["V?P"]})
    assert problem({"do": "setvar", "variable": "CALLSCRIBE_ID"}) == (
        "rule.0.actions.0.setvar.variable: the name CALLSCRIBE_ID has a meaning already; expected "
        "one of your own"
    )


@pytest.mark.parametrize(
    "value", ["$(x)", "${A}", "a;b", "a|b", "x\nAction: y", '"', "`id`", "é" * 201]
)
def test_a_fixed_value_has_nothing_that_is_evaluated(value: str) -> None:
    assert "expected at most 200 letters, digits" in problem({**SET, "value": value})
    settings({**SET, "value": "PJSIP/é-1, queue 7"})


@pytest.mark.parametrize(
    "change",
    [{"exten": "s,1"}, {"exten": "a b"}, {"exten": "$s"}, {"priority": "0"}, {"priority": 0},
     {"priority": "n+1"}, {"context": "a,b"}],
)  # fmt: skip
def test_a_place_in_the_dialplan_is_nothing_but_names(change: dict[str, object]) -> None:
    assert "should match pattern" in problem({**MOVE, **change})


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("x.wav", 'expected "{call_id}"'),
        ("{call_id}/../x.wav", 'expected "{call_id}"'),
        ("../{call_id}.wav", 'expected "{call_id}"'),
        ("{call_id},b.wav", 'expected "{call_id}"'),
        ("{call_id}{call_id}.wav", 'expected "{call_id}"'),
        ("{call_id}.sh", "expected one of .wav, .WAV"),
        ("{call_id}", 'expected "{call_id}"'),
    ],
)
def test_a_recordings_name_is_a_template(file: str, sentence: str) -> None:
    rules = {"allow_actions": ["record"], "recordings": "/var/spool/asterisk/monitor"}
    assert sentence in problem({"do": "record", "file": file}, rules=rules)
    settings({"do": "record", "file": "a_{call_id}-b.wav"}, rules=rules)


@pytest.mark.parametrize("folder", ["rel", "/a/../b", "/a,b", "/a b", "/$(x)", "/a;b"])
def test_recordings_lie_in_a_plain_directory(folder: str) -> None:
    assert "rules.recordings: expected an absolute path" in problem(
        SET, rules={"recordings": folder}
    )


def test_what_an_action_needs() -> None:
    allowed = {"allow_actions": ["record", "hangup", "setvar", "webhook"]}
    assert "record needs rules.recordings" in problem({"do": "record"}, rules=allowed)
    assert problem(SET, ami=None) == (
        "configuration: rule 'r': setvar needs an [ami] section, or [esl] for FreeSWITCH"
    )
    settings(SET, ami=None, esl={"password": "ClueCon"})
    recorded = {**allowed, "recordings": "/rec"}
    settings({"do": "record"}, ami=None, esl={"password": "ClueCon"}, rules=recorded)
    assert problem({"do": "record"}, ami=None, rules=recorded).endswith(
        "record needs an [ami] section, or [esl] for FreeSWITCH"
    )
    settings({"do": "hangup", "target": "bridge"}, ami=None, rules=allowed)
    assert problem({"do": "webhook", "webhook": "erp"}, webhook=[HOOK]) == (
        "configuration: rule 'r': there is no webhook 'erp' ([[webhook]] with name = …: crm)"
    )
    settings({"do": "webhook", "webhook": "crm"}, webhook=[HOOK], ami=None)


@pytest.mark.parametrize("event", ["Transcript", "callscribeLEG", "CallscribeTap"])
def test_a_rules_event_is_none_of_ours(event: str) -> None:
    assert "has a meaning already" in problem({"do": "userevent", "event": event})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"words": None}, 'expected either words = ["…"] or regex = "…"'),
        ({"regex": "x"}, 'expected either words = ["…"] or regex = "…"'),
        ({"words": []}, 'expected either words = ["…"] or regex = "…"'),
        ({"words": ["?!"]}, "'?!' has neither letters nor digits, so it is never said"),
        ({"words": ["a " * 17]}, "has more than 16 words"),
        ({"words": None, "regex": "("}, "regex: missing ): ("),
        ({"words": None, "regex": "x?"}, "regex: it matches where nothing is said"),
        ({"leg": "both"}, "leg: input should be 'caller', 'callee' or 'any'"),
        ({"actions": []}, "actions: list should have at least 1 item"),
        ({"actions": [{"do": "fly"}]}, 'actions.0: expected { do = "…", … } with one of setvar'),
        ({"actions": ["hangup"]}, "actions.0: expected { do"),
        ({"name": "two words"}, "name: string should match pattern"),
        ({"when": {"trunk": "x"}}, "when.trunk: is not a setting"),
        ({"word": ["x"]}, "word: is not a setting"),
        ({"min_confidence": 2}, "min_confidence: input should be less than or equal to 1"),
    ],
)
def test_a_rule_that_makes_no_sense(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as e:
        rule_from_dict({"name": "r", "words": ["x"], "actions": [SET], **change})
    assert sentence in str(e.value)


def test_the_readmes_rules_and_the_samples_are_rules() -> None:
    (readme,) = re.findall(r"```toml\n(\[rules\].*?)```", README, re.DOTALL)
    sample = re.search(r"(;   \[rules\]\n(?:;   .*\n)+)", EXTENSIONS)
    assert sample is not None
    commented = re.sub(r"^;   ", "", sample[1], flags=re.M)
    for text in (readme, commented):
        settings = from_dict({"ami": AMI, **tomllib.loads(text)})
        assert [action.do for action in settings.rule[0].actions] == ["setvar", "redirect"]
    assert "[callscribe-operator]\n" in EXTENSIONS


def test_two_rules_of_one_name() -> None:
    rule = {"name": "r", "words": ["help"], "actions": [SET]}
    with pytest.raises(ConfigError, match="^configuration: rule: two are called 'r'"):
        from_dict({"ami": AMI, "rule": [rule, rule]})


def test_a_pattern_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    rule_from_dict({"name": "r", "words": ["x"], "actions": [SET]})
    with pytest.raises(ConfigError, match=r"needs google-re2: pip install 'callscribe\[rules\]'"):
        rule_from_dict({"name": "r", "regex": "x", "actions": [SET]})


@pytest.mark.parametrize(
    "name", ["__CALLSCRIBE_STATUS", "CALLSCRIBE_CONFIDENCE", "_CALLSCRIBE_CONSENT"]
)
def test_a_variable_with_a_meaning_is_not_a_rules(name: str) -> None:
    assert "has a meaning already" in problem(
        {**SET, "variable": name}, rules={"allow_variables": ["*"]}
    )


def test_to_end_a_recording_needs_a_switch_too() -> None:
    rules = {"allow_actions": ["stop_record"]}
    assert "stop_record needs an [ami] section" in problem(
        {"do": "stop_record"}, ami=None, rules=rules
    )
