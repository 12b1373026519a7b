"""Doctor's part about ARI: what is wrong is named in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from fake_ami import FakeAmi
from fake_ari import FakeAri

from bridge import config, doctor_ari
from bridge.doctor_report import Finding
from bridge.pbx.ari_http import AriHttp, make_tls

GLOBAL = {"CALLSCRIBE": "127.0.0.1:9092"}


class Ami(FakeAmi):
    """A manager whose Getvar says this of any context."""

    said = "1"

    def _do_getvar(self, writer: Any, action: Any) -> list[tuple[str, str]]:
        self.asked = action.get("Variable")
        return [("Response", "Success"), ("Value", self.said)]


async def look(fake: FakeAri, ami: int = 0, **ari: Any) -> list[Finding]:
    """The findings about a bridge with these settings in [ari]."""
    values = {"url": fake.url, "username": "callscribe", "password": "s3cret", **ari}
    data: dict[str, Any] = {"audiosocket": {"listen": "127.0.0.1:9092"}, "rtp": {}, "ari": values}
    if ami:
        data["ami"] = {"port": ami, "username": "callscribe", "secret": "s3cret"}
    return await doctor_ari.check(config.from_dict(data))


def bad(findings: list[Finding]) -> Finding:
    """The only one that is not well."""
    (found,) = [finding for finding in findings if finding.status != "ok"]
    return found


async def test_without_a_section_there_is_nothing_to_look_at() -> None:
    (finding,) = await doctor_ari.check(config.from_dict({}))
    assert finding.status == "ok" and "there is no [ari] section" in finding.found


async def test_taps_by_rtp_need_its_module_and_come_to_its_ports() -> None:
    rtp = {"form": "external_media", "encapsulation": "rtp"}
    async with FakeAri() as fake:
        fake.world.missing = {"chan_audiosocket.so"}
        findings = await look(fake, **rtp)
        assert {finding.status for finding in findings} == {"ok"}
        found = "Asterisk is told to send what it hears to 127.0.0.1, ports 20000-20999"
        assert found in [finding.found for finding in findings]
        fake.world.missing = {"chan_rtp.so"}
        without = 'chan_rtp is not loaded: ari.encapsulation = "rtp" does not work'
        assert bad(await look(fake, **rtp)).found == without


@pytest.mark.parametrize("form", ["dialplan", "external_media"])
async def test_all_is_well(form: str) -> None:
    async with FakeAri() as fake, Ami() as ami:
        fake.world.variables = GLOBAL
        findings = await look(fake, ami.port, form=form)
        assert {finding.status for finding in findings} == {"ok"}
        text = "\n".join(finding.found for finding in findings)
        assert "Asterisk 22.10.1; its events can be had" in text
        assert "the application 'callscribe' is free" in text
        assert ("the context [callscribe-snoop] takes UUIDs" in text) == (form == "dialplan")
        if form == "dialplan":
            assert ami.asked.startswith("DIALPLAN_EXISTS(callscribe-snoop,")


async def test_a_bridge_that_runs_keeps_its_name() -> None:
    async with FakeAri() as fake, Ami() as ami:
        fake.world.variables = GLOBAL
        settings = config.AriSettings(url=fake.url, username="callscribe", password="s3cret")
        async with AriHttp(settings, make_tls(settings)) as http:
            events = await http.listen("callscribe")
            findings = await look(fake, ami.port)
            assert {finding.status for finding in findings} == {"ok"}
            assert "is connected: a callscribe that runs" in str(findings)
            fake.send("still here")
            assert await events.next() == "still here"
            await events.close()


async def test_nobody_there() -> None:
    async with FakeAri() as fake:
        await fake.stop()
        (finding,) = await look(fake)
        assert finding.status == "failed"
        assert finding.found.startswith(f"cannot connect to 127.0.0.1:{fake.port}: ")
        assert "enabled = yes and a bindaddr in http.conf?" in finding.found


@pytest.mark.parametrize(
    ("status", "found", "advice"),
    [
        (401, "refused the ARI user 'callscribe': correct ari.username and ari.password", ""),
        (404, "is enabled = yes in ari.conf, is res_ari_events.so loaded", ""),
        (500, "answered 500 where ARI's events should begin", "check ari.url, and firewalls"),
    ],
)
async def test_it_is_not_let_in(status: int, found: str, advice: str) -> None:
    async with FakeAri() as fake:
        fake.status = status
        (finding,) = await look(fake)
        assert finding.status == "failed"
        assert found in finding.found and finding.advice.startswith(advice)


async def test_an_asterisk_that_is_silent() -> None:
    async with FakeAri() as fake:
        fake.world.variables = GLOBAL
        fake.silent = {"/channels/"}
        finding = bad(await look(fake, timeout=0.1))
        assert (finding.status, finding.subject) == ("warning", "ARI rights")
        assert "did not answer within 0.1 s" in finding.found


async def test_a_user_that_may_only_read() -> None:
    async with FakeAri() as fake:
        fake.world.variables = GLOBAL
        fake.world.errors = {"/channels/": 403}
        finding = bad(await look(fake))
        assert (finding.status, finding.subject) == ("failed", "ARI rights")
        assert finding.advice.startswith("set read_only = no in [callscribe] in ari.conf")


@pytest.mark.parametrize(
    ("module", "form", "status", "found"),
    [
        ("res_stasis_snoop", "dialplan", "failed", "no channel can be listened to"),
        ("chan_audiosocket", "dialplan", "failed",
         "Dial(AudioSocket/…) of [callscribe-snoop] does not work"),
        ("chan_audiosocket", "external_media", "failed",
         'ari.form = "external_media" does not work'),
        ("app_userevent", "dialplan", "warning",
         "the dialplan cannot ask for a tap by UserEvent(CallscribeTap)"),
    ],
)  # fmt: skip
async def test_a_module_is_missing(module: str, form: str, status: str, found: str) -> None:
    async with FakeAri() as fake:
        fake.world.variables = GLOBAL
        fake.world.missing = {f"{module}.so"}
        finding = bad(await look(fake, form=form))
        assert (finding.status, finding.found) == (status, f"{module} is not loaded: {found}")
        assert f"load = {module}.so" in finding.advice


@pytest.mark.parametrize(
    ("told", "status", "found"),
    [
        ("", "failed", "the dialplan's global variable CALLSCRIBE is empty: no audio can come"),
        ("127.0.0.1:9999", "warning",
         "the dialplan's CALLSCRIBE is 127.0.0.1:9999, and the bridge listens on 127.0.0.1:9092"),
    ],
)  # fmt: skip
async def test_the_dialplan_sends_its_audio_elsewhere(told: str, status: str, found: str) -> None:
    async with FakeAri() as fake:
        fake.world.variables = {"CALLSCRIBE": told}
        finding = bad(await look(fake))
        assert (finding.status, finding.found) == (status, found)


async def test_the_context_is_missing() -> None:
    async with FakeAri() as fake, Ami() as ami:
        fake.world.variables = GLOBAL
        ami.said = "0"
        finding = bad(await look(fake, ami.port, context="nowhere"))
        assert finding.found == "there is no context [nowhere] that takes a UUID: no audio can come"
        assert "[callscribe-snoop] of asterisk/extensions.conf" in finding.advice


@pytest.mark.parametrize("reachable", [False, True])
async def test_without_ami_the_context_is_for_the_reader_to_look_at(reachable: bool) -> None:
    async with FakeAri() as fake, Ami() as ami:
        fake.world.variables = GLOBAL
        ami.errors = {"Getvar": "Permission denied"}
        findings = await look(fake, ami.port if reachable else 0)
        assert findings[-1].status == "ok"
        assert "asterisk -rx 'dialplan show callscribe-snoop'" in findings[-1].found


async def test_no_password_is_shown() -> None:
    async with FakeAri() as fake:
        fake.world.variables = GLOBAL
        assert "s3cret" not in str(await look(fake))
