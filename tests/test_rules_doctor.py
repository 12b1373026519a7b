"""Doctor looks whether rules could be done, and does nothing."""

from __future__ import annotations

from typing import Any

from fake_ami import FakeAmi
from fake_esl import FakeEsl

from bridge import doctor_rules
from bridge.config import from_dict
from bridge.doctor_report import Finding

SET = {"do": "setvar", "variable": "CALLSCRIBE_WANTS"}
MOVE = {"do": "redirect", "context": "callscribe-operator", "exten": "100"}
ESL = {"username": "callscribe@pbx", "password": "pw", "timeout": 0.5}
PLACE = "DIALPLAN_EXISTS(callscribe-operator,100,1)"


async def examine(
    fake: FakeAmi | FakeEsl, *actions: dict[str, object], **rule: Any
) -> list[Finding]:
    account = {"port": fake.port, "username": "callscribe", "secret": "s3cret", "timeout": 0.5}
    given = {"name": "r", "words": ["help"], "actions": list(actions), **rule}
    allowed = {
        "allow_actions": ["setvar", "redirect", "record", "stop_record", "hangup"],
        "allow_contexts": ["callscribe-operator"],
        "recordings": "/rec",
    }
    sections = {"ami": account} if isinstance(fake, FakeAmi) else {"esl": ESL | {"port": fake.port}}
    rules = [given] if actions else []
    return await doctor_rules.check(from_dict({**sections, "rules": allowed, "rule": rules}))


def found(findings: list[Finding], state: str) -> list[str]:
    return [finding.found for finding in findings if finding.status == state]


async def test_no_rules_no_findings() -> None:
    async with FakeAmi() as fake:
        assert await examine(fake) == []
        assert fake.connections == 0


async def test_all_is_there() -> None:
    async with FakeAmi() as fake:
        fake.variables["", PLACE] = "1"
        findings = await examine(fake, SET, MOVE)
        assert found(findings, "ok") == [
            "1 rule", "may Setvar, Redirect", "the dialplan has callscribe-operator,100,1",
        ]  # fmt: skip
        assert not fake.named("Redirect") and not fake.named("Setvar")


async def test_a_right_is_missing_and_a_place() -> None:
    async with FakeAmi() as fake:
        fake.variables["", PLACE] = "0"
        findings = await examine(fake, MOVE, {"do": "record"}, dry_run=True)
        assert found(findings, "ok") == ["1 rule, all of them dry runs"]
        assert found(findings, "failed") == [
            "may not MixMonitor, which a rule needs",
            "the dialplan has no callscribe-operator,100,1, where a rule sends calls",
        ]
        assert "add system to the line write = …" in findings[1].advice


async def test_what_cannot_be_known() -> None:
    async with FakeAmi() as fake:
        assert found(await examine(fake, MOVE), "warning") == [
            "whether the dialplan has callscribe-operator,100,1 cannot be seen"
        ]
        fake.silent = {"ListCommands"}
        assert found(await examine(fake, MOVE), "warning") == [
            "could not be tested at Asterisk, see AMI above"
        ]
    assert found(await examine(fake, MOVE), "warning") == [
        "could not be tested at Asterisk, see AMI above"
    ]


async def test_what_is_not_asterisks_is_not_asked_there() -> None:
    async with FakeAmi() as fake:
        findings = await examine(fake, {"do": "hangup", "target": "bridge"})
        assert found(findings, "ok") == ["1 rule"] and fake.connections == 0


async def test_a_freeswitch_users_rights() -> None:
    async with FakeEsl() as fake:
        fake.users = {"callscribe@pbx": ("pw", {"uuid_setvar", "uuid_kill"})}
        findings = await examine(fake, SET, MOVE, {"do": "hangup"})
        assert found(findings, "ok") == ["1 rule", "may uuid_kill"]
        assert found(findings, "failed") == ["may not uuid_transfer, which a rule needs"]
        assert findings[1].advice == "add uuid_transfer to esl-allowed-api of the user"
        fake.users = {"callscribe@pbx": ("pw", {"uuid_record"})}
        findings = await examine(fake, {"do": "record"}, {"do": "stop_record"})
        assert found(findings, "ok") == ["1 rule", "may uuid_record"]
    assert found(await examine(fake, MOVE), "warning") == [
        "could not be tested at FreeSWITCH, see ESL above"
    ]
