"""What a caller says moves his call, at a real Asterisk."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import lab_bridge
import numpy as np
import pytest
from lab import Lab
from lab_ami import Ami
from lab_audio import to_wav
from lab_bridge import Hook, speech, texts

from bridge import doctor_rules
from bridge.config import from_dict

SAYS, LONG = [7, 77, 177, 7], list(range(100, 130))
PHRASE = " ".join(texts([77, 177]))

ASKS = np.concatenate([speech(SAYS), np.zeros(8000, np.int16), speech(LONG)])

NO_RIGHT = (
    "Asterisk refused MixMonitor: Permission denied; in manager.conf, MixMonitor needs "
    "write = system"
)
RULES = """
[rules]
allow_actions = ["setvar", "redirect", "hangup", "record", "stop_record", "userevent"]
allow_contexts = ["callscribe-operator"]
recordings = "{folder}"
[[rule]]
name = "operator"
words = ["{phrase}"]
actions = [
  {{ do = "setvar", variable = "CALLSCRIBE_WANTS" }},
  {{ do = "redirect", context = "callscribe-operator" }},
]
[[rule]]
name = "on-record"
words = ["{first}"]
on = "partial"
when = {{ context = "callscribe*" }}
actions = [{{ do = "record", file = "{{call_id}}-asked.wav" }}]
"""


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with lab_bridge.receive() as receiver:
        yield receiver


def outcomes(hook: Hook, call: str) -> list[tuple[str, str, str]]:
    fired = [e["data"] for e in hook.of(call) if e["type"] == "rule.fired"]
    return [(f["action"], f["outcome"], f["reason"]) for f in fired]


async def test_a_caller_is_sent_where_he_asks_to_be(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    """A variable is set, the channel redirected; the call lives on without the bridge."""
    lab.set_global("CALLSCRIBE_OPERATOR", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", lab.sound("operator", to_wav(speech(LONG))))
    more = RULES.format(folder=lab.inside, phrase=PHRASE, first=texts(SAYS)[0])
    async with lab_bridge.serve(lab, hook, tmp_path, more=more):
        await ami.originate("caller", lab.sound("asks", to_wav(ASKS)))
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
        call, channel = joined["Value"], joined["Channel"]
        moved = await ami.event(Event="UserEvent", UserEvent="CallscribeOperator")
        assert (moved["Channel"], moved["Wants"]) == (channel, PHRASE)
        await hook.until(lambda: call in hook.ended(), "the end of the bridge's call")
        assert outcomes(hook, call) == [
            ("record", "failed", NO_RIGHT),
            ("setvar", "done", ""),
            ("redirect", "done", ""),
        ]
        await ami.event(Event="UserEvent", UserEvent="Transcript", Type="rule", Rule="operator")
        where = {"Channel": channel, "Context": "callscribe-operator"}
        await ami.event(Event="DialEnd", DialStatus="ANSWER", **where)
        assert channel in lab.cli("core show channels concise")  # he talks to the operator now


async def test_a_rule_of_one_call_hangs_up_what_another_recorded(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    more = RULES.format(folder=lab.inside, phrase="nobody says this", first=texts(SAYS)[0])
    async with lab_bridge.serve(lab, hook, tmp_path, more=more, user="lab") as bridge:
        await ami.originate("caller", lab.sound("asks", to_wav(ASKS)))
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
        call, channel = joined["Value"], joined["Channel"]
        await hook.until(lambda: bool(hook.of(call)), "the call")
        end = {"do": "hangup", "cause": 17}
        rule = {"name": "end", "regex": "w17[0-9] w007$", "actions": [{"do": "stop_record"}, end]}
        assert await bridge.add_rule(call, rule, "wrong") == 401
        assert await bridge.add_rule(call, rule) == 201
        gone = await ami.event(Event="Hangup", Channel=channel)
        assert gone["Cause"] == "17"
        await hook.until(lambda: call in hook.ended(), "the end of the bridge's call")
        assert outcomes(hook, call) == [
            ("record", "done", ""),
            ("stop_record", "done", ""),
            ("hangup", "done", ""),
        ]
    assert (lab.outside / f"{call}-asked.wav").stat().st_size > 1000


async def test_doctor_finds_the_right_and_the_place_that_are_missing(lab: Lab) -> None:
    """Asterisk itself says which actions the samples' user may run, and what its dialplan has."""
    rules = RULES.format(folder=lab.inside, phrase=PHRASE, first="x")
    account = {"port": lab.ami, "username": "callscribe", "secret": lab.secret}
    settings = from_dict({"ami": account, **tomllib.loads(rules)})
    findings = await doctor_rules.check(settings)
    assert [(finding.status, finding.found) for finding in findings] == [
        ("ok", "2 rules"),
        ("failed", "may not MixMonitor, which a rule needs"),
        ("ok", "the dialplan has callscribe-operator,s,1"),
    ]
    nowhere = tomllib.loads(rules.replace("callscribe-operator", "nowhere"))
    findings = await doctor_rules.check(from_dict({"ami": account, **nowhere}))
    assert findings[-1].status == "failed" and "has no nowhere,s,1" in findings[-1].found
