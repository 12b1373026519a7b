"""Calls by Asterisk's own WebSocket channel: the samples, every format, each one's hanging up."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import lab_bridge
import pytest
from lab import Lab, free_port
from lab_ami import Ami
from lab_audio import to_wav
from lab_bridge import speech, texts

from bridge.types import CallEvent, CallInfo, Ended, Final, Partial, Pressed
from tests import sockets
from tests.sockets import Bridge
from tests.waiting import until

WORDS = [7, 77, 177, 7, 255, 0]
OTHERS = [12, 13, 200, 12, 99]
FORMATS = {
    "ulaw-plain": "c(ulaw)",
    "alaw-json": "c(alaw)f(json)",
    "slin-plain": "c(slin)d(in)",
    "slin16-json": "c(slin16)f(json)d(in)",
    "slin24-json": "c(slin24)f(json)",
    "slin48-plain": "c(slin48)",
    "g722-plain": "c(g722)",
}
WAIT = 30.0  # s


@pytest.fixture
async def bridge(lab: Lab) -> AsyncIterator[Bridge]:
    """One in this process, where [callscribe] of websocket_client.conf points."""
    async with sockets.bridge(slots=16) as running:
        lab.connect_websockets_to(running.port)
        yield running
        lab.cli("channel request hangup all", check=False)


def sound(lab: Lab, name: str, words: list[int]) -> str:
    return lab.sound(name, to_wav(speech(words)))


def of(bridge: Bridge, call: str) -> list[CallEvent]:
    return [event for event in bridge.sink.events if event.call.id == call]


def words(bridge: Bridge, call: str, leg: str = "caller") -> list[str]:
    finals = [e.body for e in of(bridge, call) if isinstance(e.body, Final) and e.leg == leg]
    return [word.text for final in finals for word in final.words]


def end(bridge: Bridge, call: str) -> tuple[CallInfo, str] | None:
    """What was known of a call at its end, and why it ended."""
    last = of(bridge, call)[-1:]
    return next(((e.call, e.body.reason) for e in last if isinstance(e.body, Ended)), None)


async def test_the_sample_with_ami(lab: Lab, ami: Ami, tmp_path: Path) -> None:
    """The bridge as its users run it: words by AMI, on the channel that speaks."""
    port = free_port()
    more = f'[websocket]\nlisten = "127.0.0.1:{port}"\n'
    lab.connect_websockets_to(port)
    async with lab_bridge.receive() as hook, lab_bridge.serve(lab, hook, tmp_path, more=more) as b:
        await ami.originate("ws", sound(lab, "words", WORDS))
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
        call = joined["Value"]
        await hook.until(lambda: call in hook.ended(), "the call's end")
        assert hook.words(call) == texts(WORDS)
        said = hook.of(call)[0]["data"]
        assert (said["channel"], said["uniqueid"]) == (joined["Channel"], joined["Uniqueid"])
        assert said["extra"]["media_channel"].startswith("WebSocket/callscribe/")
        told = await ami.event(UserEvent="Transcript", CallID=call, Type="ended")
        assert told["Channel"] == joined["Channel"]
        assert "Traceback" not in b.log(), b.log()


async def test_every_format_and_both_ways_of_control(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    says = sound(lab, "words", WORDS)
    for name, options in FORMATS.items():
        await ami.originate("wsraw", says, f"LAB_WS={options}", f"LAB_CALL={name}")
    await until(lambda: all(end(bridge, name) for name in FORMATS), WAIT)
    for name in FORMATS:
        assert words(bridge, name) == texts(WORDS), name
        found = end(bridge, name)
        assert found is not None and found[1] == "hangup"
        assert found[0].channel.startswith("WebSocket/callscribe/")


@pytest.mark.parametrize("right", [True, False])
async def test_by_tls_with_a_key(lab: Lab, ami: Ami, tmp_path: Path, right: bool) -> None:
    cert, key = tls_pair(tmp_path)
    known = hashlib.sha256(lab.secret.encode()).hexdigest() if right else "0" * 64
    websocket = {
        "listen": "127.0.0.1:0",
        "tls_cert": str(cert),
        "tls_key": str(key),
        "key": [{"name": "asterisk", "sha256": known, "paths": ["/asterisk"]}],
    }
    async with sockets.bridge(websocket=websocket) as b:
        lab.connect_websockets_to(b.port, cert)
        await ami.originate("ws", sound(lab, "words", WORDS))
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
        if right:
            await b.over()
            assert words(b, joined["Value"]) == texts(WORDS)
            assert b.sink.events[-1].call.channel == joined["Channel"]
        else:
            after = await ami.event(Event="UserEvent", UserEvent="LabAfter", Id=joined["Value"])
            assert (after["Dial"], after["Status"]) == ("CHANUNAVAIL", "unreachable")
            assert b.sink.events == []


async def test_by_tls_with_a_certificate_of_nobodys(lab: Lab, ami: Ami, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cert, key = tls_pair(tmp_path)
    other, _ = tls_pair(tmp_path / "other")
    websocket = {"listen": "127.0.0.1:0", "tls_cert": str(cert), "tls_key": str(key)}
    async with sockets.bridge(websocket=websocket) as b:
        lab.connect_websockets_to(b.port, other)
        await ami.originate("ws", sound(lab, "words", WORDS))
        after = await ami.event(Event="UserEvent", UserEvent="LabAfter")
        assert after["Dial"] == "CHANUNAVAIL"
        assert b.sink.events == []


def tls_pair(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, by itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, *name, *files], check=True, capture_output=True
    )
    return cert, key


async def test_our_hanging_up_lets_the_dialplan_go_on(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    await ami.originate("ws", sound(lab, "long", list(range(30))))
    call = (await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID"))["Value"]
    await until(lambda: bridge.sink.bodies(Partial), WAIT)
    assert bridge.server.switchboard.hang_up(call)
    after = await ami.event(Event="UserEvent", UserEvent="LabAfter", Id=call)
    assert after["Dial"] == "ANSWER"
    await bridge.over()
    found = end(bridge, call)
    assert found is not None and found[1] == "bridge"


async def test_digits_by_the_sample(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    answer = await ami.action(
        "Originate",
        ("Channel", "Local/ws@lab/n"),
        ("Application", "SendDTMF"),
        ("Data", "15#A"),
        ("Async", "true"),
    )
    assert answer["Response"] == "Success"
    await bridge.over()
    assert [pressed.digit for pressed in bridge.sink.bodies(Pressed)] == list("15#A")


async def test_a_refusal_lets_the_dialplan_go_on(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    bridge.server.switchboard.draining = True
    await ami.originate("ws", sound(lab, "words", WORDS))
    after = await ami.event(Event="UserEvent", UserEvent="LabAfter")
    assert after["Dial"] == "ANSWER"  # it was taken, and hung up; AMI says why
    bridge.server.switchboard.draining = False


async def test_a_bridge_that_is_down_lets_the_dialplan_go_on(lab: Lab, ami: Ami) -> None:
    lab.connect_websockets_to(lab.closed)
    await ami.originate("ws", sound(lab, "words", WORDS))
    after = await ami.event(Event="UserEvent", UserEvent="LabAfter")
    assert (after["Status"], after["Dial"]) == ("unreachable", "CHANUNAVAIL")


async def test_both_parties_are_told_apart(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", sound(lab, "callee", OTHERS))
    await ami.originate("wsboth", sound(lab, "caller", WORDS))
    await bridge.over()
    call = bridge.sink.events[-1].call.id
    assert words(bridge, call, "caller") == texts(WORDS)
    assert words(bridge, call, "callee") == texts(OTHERS)
    info = bridge.sink.events[-1].call
    assert info.channel.startswith("Local/wsboth@lab-")
    assert info.extra["callee_channel"].startswith("Local/callee@lab-")
