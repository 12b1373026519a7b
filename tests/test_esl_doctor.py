"""What doctor says of FreeSWITCH's event socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_esl import FakeEsl

from bridge import doctor_esl
from bridge.config import EslSettings
from bridge.doctor_report import Finding

USER = {"username": "callscribe@pbx", "password": "pw"}


async def examine(
    prepare: Callable[[FakeEsl], None] = lambda fake: None, **changes: Any
) -> tuple[list[Finding], FakeEsl]:
    async with FakeEsl() as fake:
        prepare(fake)
        values = {"port": fake.port, "password": "s3cret", "timeout": 5, **changes}
        findings = await doctor_esl.check(EslSettings(**values))
        await fake.until(lambda: not fake._writers)  # it has let go
    return findings, fake


def shown(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.status, finding.subject) for finding in findings]


async def test_all_is_well() -> None:
    findings, fake = await examine()
    assert shown(findings) == [("ok", "ESL"), ("ok", "ESL events"), ("ok", "ESL variables")]
    assert findings[0].found == f"logged in at 127.0.0.1:{fake.port}"
    assert findings[1].found == "events are taken, and arrive"
    assert not fake.variables and len(fake.fired) == 1


async def test_a_user_with_no_more_than_it_needs_is_well_too() -> None:
    findings, _ = await examine(
        lambda fake: fake.replies.update(event="-ERR permission denied"), **USER
    )
    assert shown(findings) == [("ok", "ESL"), ("ok", "ESL events"), ("ok", "ESL variables")]
    assert findings[0].found.endswith(" as callscribe@pbx")
    assert "may not see whether they arrive" in findings[1].found


async def test_the_password_that_everybody_knows_is_named() -> None:
    findings, _ = await examine(
        lambda fake: setattr(fake, "password", "ClueCon"), password="ClueCon"
    )
    assert shown(findings)[1] == ("warning", "ESL")
    assert "every FreeSWITCH is delivered with" in findings[1].found


async def test_a_user_who_may_not_set_variables() -> None:
    def prepare(fake: FakeEsl) -> None:
        fake.users = {"callscribe@pbx": ("pw", set())}

    findings, _ = await examine(prepare, **USER)
    assert findings[-1].status == "failed"
    assert findings[-1].found.startswith("may not set variables: CALLSCRIBE_TEXT")
    assert "add uuid_setvar to esl-allowed-api" in findings[-1].advice
    findings, _ = await examine(prepare, **USER, set_variables=False)
    assert findings[-1].status == "ok" and "esl.set_variables is false" in findings[-1].found


async def test_a_freeswitch_without_its_commands() -> None:
    reply = "-ERR uuid_setvar Command not found!"
    findings, _ = await examine(lambda fake: fake.replies.update(uuid_setvar=reply))
    assert findings[-1].status == "failed" and "load mod_commands" in findings[-1].advice


async def test_an_event_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_esl, "ECHO", 0.05)
    findings, _ = await examine(lambda fake: fake.replies.update(sendevent="+OK x"))
    assert shown(findings)[1] == ("failed", "ESL events")
    assert "is taken, and does not arrive" in findings[1].found


async def test_a_wrong_password_and_nobody_there() -> None:
    (finding,), fake = await examine(password="wrong")
    assert finding.status == "failed" and "correct esl.password" in finding.found
    (finding,) = await doctor_esl.check(EslSettings(port=fake.port, password="x"))  # it is closed
    assert finding.status == "failed" and "is FreeSWITCH running there" in finding.found


async def test_a_server_that_says_nothing() -> None:
    (finding,), _ = await examine(lambda fake: setattr(fake, "greeting", b""), timeout=0.05)
    assert "did not answer within 0.05 s" in finding.found
    assert finding.advice == "check esl.host and esl.port, and firewalls in between"


async def test_a_connection_that_is_lost_on_the_way() -> None:
    findings, _ = await examine(lambda fake: fake.drop_on.add("uuid_setvar"))
    assert shown(findings)[-1] == ("failed", "ESL")
    assert findings[-1].advice == "see FreeSWITCH's log, and run doctor again"
