"""The samples of asterisk/, loaded as they are by a real Asterisk, without the bridge."""

from __future__ import annotations

import lab_ami
import lab_sink
import pytest
from lab import Lab
from lab_ami import Ami
from lab_audio import likeness, read_wav
from lab_sink import HANGUP, Sink

CALLER, CALLEE = "demo-congrats", "demo-echotest"


def test_samples_load_without_a_warning(lab: Lab) -> None:
    boot = lab.log()
    bad = [line for line in boot if "WARNING" in line or "ERROR" in line]
    about_config = [line for line in bad if ".conf" in line or "loader.c" in line]
    assert about_config == []


def test_samples_are_what_runs(lab: Lab) -> None:
    assert "Dial(AudioSocket/" in lab.cli("dialplan show s@callscribe")
    assert "ChanSpy(" in lab.cli("dialplan show s@callscribe-spy")
    assert f"127.0.0.1:{lab.sip}" in lab.cli("pjsip show transports")
    assert "callscribe-phone" in lab.cli("pjsip show endpoint anonymous")


@pytest.mark.parametrize("exten", ["caller", "app"])
async def test_caller_only(lab: Lab, ami: Ami, sink: Sink, exten: str) -> None:
    await ami.originate(exten, CALLER)
    heard = await sink.call(seconds=3.0)
    assert set(heard.kinds) == {0x10}
    assert set(heard.sizes) == {320}
    assert likeness(heard.samples, read_wav(lab.prompt(CALLER))) > 0.95
    joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID", Value=heard.uuid)
    assert joined["Channel"].startswith(f"Local/{exten}@lab-")

    heard.writer.write(HANGUP)
    after = await ami.event(Event="UserEvent", UserEvent="LabAfter", Id=heard.uuid)
    assert after["Status"] == ""  # for the bridge to set
    assert after["Channel"] == joined["Channel"]


async def test_caller_hangs_up(ami: Ami, sink: Sink) -> None:
    await ami.originate("caller", CALLER)
    heard = await sink.call(seconds=0.5)
    await ami.action("Hangup", ("Channel", "/^Local/caller@lab-.*;1$/"))
    await sink.until(lambda: heard.over, "the end of the connection")


async def test_digits(ami: Ami, sink: Sink) -> None:
    answer = await ami.action(
        "Originate",
        ("Channel", "Local/caller@lab/n"),
        ("Application", "SendDTMF"),
        ("Data", "15#A"),
        ("Async", "true"),
    )
    assert answer["Response"] == "Success"
    heard = await sink.call()
    await sink.until(lambda: heard.over, "the end of the connection")
    assert heard.digits == "15#A"


@pytest.mark.parametrize("exten", ["caller", "app"])
async def test_a_refusal_lets_the_call_go_on(lab: Lab, ami: Ami, exten: str) -> None:
    async with lab_sink.listen(refuse=True) as busy:
        lab.call_bridge_at(busy.port)
        await ami.originate(exten, CALLER)
        after = await ami.event(Event="UserEvent", UserEvent="LabAfter")
        assert after["Status"] == ""  # "refused:busy" from the bridge; a sink says nothing
        await busy.until(lambda: busy.refused == 1, "refused")


async def test_a_closed_port_lets_the_call_go_on(lab: Lab, ami: Ami) -> None:
    """Once only, and without other calls: a refused connection harms Asterisk (see
    the head of extensions.conf)."""
    lab.call_bridge_at(lab.closed)
    await ami.originate("caller", CALLER)
    after = await ami.event(Event="UserEvent", UserEvent="LabAfter")
    assert (after["Status"], after["Dial"]) == ("unreachable", "CHANUNAVAIL")


async def test_both_legs_are_told_apart(lab: Lab, ami: Ami, sink: Sink) -> None:
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", CALLEE)
    await ami.originate("both", CALLER)
    for number in (1, 2):
        await sink.call(number, seconds=3.0)
    said = {e["Leg"]: e for e in ami.find(Event="UserEvent", UserEvent="CallscribeLeg")}
    assert set(said) == {"caller", "callee"}
    assert said["caller"]["Call"] == said["callee"]["Call"] != ""
    assert said["caller"]["Channel"].startswith("Local/both@lab-")
    assert said["callee"]["Channel"].startswith("Local/callee@lab-")
    prompts = {"caller": read_wav(lab.prompt(CALLER)), "callee": read_wav(lab.prompt(CALLEE))}
    for leg, event in said.items():
        heard = sink.heard[event["Id"]]
        assert set(heard.kinds) == {0x10}
        for whose, prompt in prompts.items():
            found = likeness(heard.samples, prompt)
            assert found > 0.9 if whose == leg else found < 0.3, (leg, whose, found)


async def test_a_tap_that_ends_leaves_the_call_alone(lab: Lab, ami: Ami, sink: Sink) -> None:
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", CALLEE)
    await ami.originate("both", CALLER)
    first, second = await sink.call(1, 0.5), await sink.call(2, 0.5)
    first.writer.write(HANGUP)
    await sink.until(lambda: first.over, "the tap's end")
    before = len(second.audio)
    await sink.until(lambda: len(second.audio) > before + 16000, "a second more")
    assert not ami.find(Event="UserEvent", UserEvent="LabAfter")
    await ami.hang_up_all()
    await sink.until(lambda: second.over, "the other tap's end")


async def test_a_refusal_leaves_a_call_of_two_alone(lab: Lab, ami: Ami) -> None:
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", CALLEE)
    async with lab_sink.listen(refuse=True) as busy:
        lab.call_bridge_at(busy.port)
        await ami.originate("both", CALLER)
        await busy.until(lambda: busy.refused == 2, "both legs refused")
        await ami.until(
            lambda: any("both@lab" in e["Channel"] for e in ami.find(Event="BridgeEnter")),
            "the two bridged all the same",
        )
        assert not ami.find(Event="UserEvent", UserEvent="LabAfter")


# -- manager.conf -------------------------------------------------------------------------------


async def test_permissions_are_enough(lab: Lab, ami: Ami, sink: Sink) -> None:
    """The account of the sample sees what joins a UUID to its channel, and may tell words."""
    async with lab_ami.connect(lab.ami, "callscribe", lab.secret) as bridge:
        await ami.originate("caller", CALLER)
        heard = await sink.call()
        joined = await bridge.event(Event="VarSet", Variable="CALLSCRIBE_ID", Value=heard.uuid)
        answer = await bridge.action(
            "Setvar",
            ("Channel", joined["Channel"]),
            ("Variable", "CALLSCRIBE_TEXT"),
            ("Value", "good morning"),
        )
        assert answer["Response"] == "Success", answer
        answer = await bridge.action("UserEvent", ("UserEvent", "Transcript"), ("Text", "día"))
        assert answer["Response"] == "Success", answer
        assert (await bridge.action("Ping"))["Ping"] == "Pong"
        assert (await ami.event(Event="UserEvent", UserEvent="Transcript"))["Text"] == "día"
        heard.writer.write(HANGUP)
        after = await ami.event(Event="UserEvent", UserEvent="LabAfter")
        assert after["Text"] == "good morning"


async def test_permissions_are_not_more_than_enough(lab: Lab, ami: Ami, sink: Sink) -> None:
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", CALLEE)
    async with lab_ami.connect(lab.ami, "callscribe", lab.secret) as bridge:
        for action in (("Originate", "Channel"), ("Command", "Command"), ("Filter", "Operation")):
            answer = await bridge.action(action[0], (action[1], "x"))
            assert (answer["Response"], answer["Message"]) == ("Error", "Permission denied"), answer
        await ami.originate("both", CALLER)
        await sink.call(2, seconds=0.2)
        await ami.hang_up_all()
        await bridge.until(lambda: len(bridge.events) >= 2, "two events")
        kinds = {(e["Event"], e.get("UserEvent", e.get("Variable", ""))) for e in bridge.events}
        assert kinds == {("UserEvent", "CallscribeLeg")}, kinds


def test_the_sample_account_is_closed_until_it_gets_a_secret(lab: Lab) -> None:
    """A secret in a sample would be everybody's; an account without one cannot log in."""
    sample = (lab.outside / "sample-manager.conf").read_text()
    assert "[callscribe]" in sample
    assert not [line for line in sample.splitlines() if line.strip().startswith("secret")]
