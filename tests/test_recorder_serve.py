"""Consent from AMI and HTTP, and recordings fetched and deleted, with a whole bridge."""

from __future__ import annotations

import contextlib
import io
import json
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from fake_ami import FakeAmi

from bridge.config import Address, from_dict
from bridge.engine.tones import encode
from bridge.listeners import open_all
from bridge.pbx.ami_consent import MAX_CHANNELS, Consents
from bridge.server import Server
from bridge.types import Announcement, CallInfo
from tests.serving import TOKEN, Peer
from tests.waiting import until

UUID = "40325ec2-5efd-4bd3-805f-53576e581d13"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Up:
    """A bridge that records, and somebody who asks it over HTTP."""

    def __init__(self, server: Server, session: aiohttp.ClientSession, audiosocket: int) -> None:
        self.server, self.session, self.audiosocket = server, session, audiosocket

    async def ask(
        self, path: str, method: str = "GET", token: bool = True, **body: object
    ) -> tuple[int, bytes]:
        headers = BEARER if token else {}
        async with self.session.request(method, path, json=body or None, headers=headers) as answer:
            return answer.status, await answer.read()

    async def called(self, **announced: object) -> str:
        """A call of three words from its announcement to its end; its id."""
        async with Peer(self.audiosocket) as peer:
            if announced:
                status, _ = await self.ask("/calls", "POST", uuid=peer.id, **announced)
                assert status == 201
            await peer.hello()
            await peer.speak([1, 2, 3])
            peer.hang_up()
            await until(lambda: peer.id in self.server.switchboard.ended)
        return peer.id

    @property
    def counters(self) -> dict[str, int]:
        assert self.server.sinks.recorder is not None
        return dict(self.server.sinks.recorder.counters)


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    async with contextlib.AsyncExitStack() as stack:
        yield await begin(stack, tmp_path)


async def begin(stack: contextlib.AsyncExitStack, folder: Path, **sections: object) -> Up:
    local = Address("127.0.0.1", 0)
    sockets = open_all({"audiosocket": local, "http": local})
    for sock in sockets.values():
        stack.callback(sock.close)
    given = {
        "engine": {"kind": "tones", "slots": 8},
        "audiosocket": {"keepalive": "off"},
        "http": {"token": TOKEN},
        "recording": {"enabled": True, "directory": str(folder / "r"), "transcript": True},
    }
    server = Server(from_dict({**given, **sections}))
    stack.push_async_callback(server.close)
    await server.start(sockets)
    ports = [sock.getsockname()[1] for sock in sockets.values()]
    session = aiohttp.ClientSession(f"http://127.0.0.1:{ports[1]}")
    await stack.enter_async_context(session)
    return Up(server, session, ports[0])


async def test_a_call_with_consent_is_recorded_fetched_and_deleted(up: Up, tmp_path: Path) -> None:
    call = await up.called(recording_consent=True)
    status, data = await up.ask(f"/calls/{call}/recording/caller")
    assert status == 200
    with wave.open(io.BytesIO(data)) as file:
        assert file.getparams()[:4] == (1, 2, 8000, len(encode([1, 2, 3])))
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert np.array_equal(heard, encode([1, 2, 3]))
    about = json.loads((tmp_path / "r" / call / "call.json").read_text())
    assert [final["text"] for final in about["finals"]] == ["w001 w002 w003"]
    assert (await up.ask(f"/calls/{call}/recording/callee"))[0] == 404
    assert (await up.ask(f"/calls/{call}/recording", "DELETE"))[0] == 204
    assert (await up.ask(f"/calls/{call}/recording", "DELETE"))[0] == 404
    assert (await up.ask(f"/calls/{call}/recording/caller"))[0] == 404
    assert list((tmp_path / "r").iterdir()) == []
    _, metrics = await up.ask("/metrics")
    assert b'callscribe_recording_total{what="deleted"} 1.0' in metrics


async def test_without_consent_there_is_nothing(up: Up, tmp_path: Path) -> None:
    for announced in ({"recording_consent": False}, {"caller": "alice"}, {}):
        call = await up.called(**announced)
        assert (await up.ask(f"/calls/{call}/recording/caller"))[0] == 404
    assert list((tmp_path / "r").iterdir()) == []
    assert up.counters == {"no_consent": 3}


async def test_only_the_token_opens_recordings(up: Up) -> None:
    call = await up.called(recording_consent=True)
    for method, path in (("GET", "recording/caller"), ("DELETE", "recording")):
        status, body = await up.ask(f"/calls/{call}/{path}", method, token=False)
        assert status == 401 and b"RIFF" not in body
    assert (await up.ask(f"/calls/{call}/recording/caller"))[0] == 200


@pytest.mark.parametrize("consent", ["yes", 1, None, "true"])
async def test_consent_is_true_and_nothing_else(up: Up, consent: object) -> None:
    status, body = await up.ask("/calls", "POST", recording_consent=consent)
    assert (status, json.loads(body)) == (
        400,
        {"error": "recording_consent: expected true or false"},
    )


@pytest.mark.parametrize("path", ["%2e%2e%2f%2e%2e%2fetc/recording/passwd", "x/recording/..%2fx"])
async def test_no_path_leads_out(up: Up, path: str) -> None:
    assert (await up.ask(f"/calls/{path}"))[0] == 404


async def test_without_recording_the_routes_find_nothing(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        up = await begin(stack, tmp_path, recording={"directory": str(tmp_path / "r")})
        call = await up.called(recording_consent=True)
        assert (await up.ask(f"/calls/{call}/recording/caller"))[0] == 404
        assert (await up.ask(f"/calls/{call}/recording", "DELETE"))[0] == 404
        assert not (tmp_path / "r").exists()


async def test_a_disk_that_does_not_answer_is_said(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.recorder.recorder.ANSWER", 0.0)
    for method, path in (("GET", "recording/caller"), ("DELETE", "recording")):
        status, body = await up.ask(f"/calls/{UUID}/{path}", method)
        assert (status, json.loads(body)) == (
            503,
            {"error": "the disk of the recordings does not answer"},
        )


async def test_either_party_says_so_for_the_call(up: Up) -> None:
    """Two legs; the callee's announcement has the consent, which is of all who speak."""
    async with Peer(up.audiosocket) as one, Peer(up.audiosocket) as two:
        await up.ask("/calls", "POST", uuid=one.id, call="both")
        await up.ask(
            "/calls", "POST", uuid=two.id, call="both", leg="callee", recording_consent=True
        )
        await one.hello()
        await until(lambda: "both" in up.server.switchboard.calls)
        await two.hello()
        await until(lambda: len(up.server.switchboard.calls["both"].legs) == 2)
        for peer in (one, two):
            await peer.speak([7])
            peer.hang_up()
        await until(lambda: "both" in up.server.switchboard.ended)
    for leg in ("caller", "callee"):
        assert (await up.ask(f"/calls/both/recording/{leg}"))[0] == 200


# -- the dialplan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["consent", "id"])
@pytest.mark.parametrize("value", ["1", "0"])
async def test_the_dialplan_consents(tmp_path: Path, first: str, value: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ami = await stack.enter_async_context(FakeAmi())
        account = {"port": ami.port, "username": "callscribe", "secret": "s3cret"}
        up = await begin(stack, tmp_path, ami=account)
        await until(lambda: up.server.link is not None and up.server.link.state == "up")

        def variable(name: str, text: str, channel: str = "17.1") -> None:
            ami.emit(("Event", "VarSet"), ("Channel", "PJSIP/a-1"), ("Uniqueid", channel),
                     ("Variable", name), ("Value", text))  # fmt: skip

        async with Peer(up.audiosocket) as peer:
            told = [("CALLSCRIBE_CONSENT", value), ("CALLSCRIBE_ID", peer.id)]
            variable("CALLSCRIBE_CONSENT", "1", "17.2")  # another's
            for name, text in told if first == "consent" else reversed(told):
                variable(name, text)
            await until(lambda: up.server.link and up.server.link.counters["events"] == 3)
            await peer.hello()
            await peer.speak([1, 2, 3])
            peer.hang_up()
            await until(lambda: peer.id in up.server.switchboard.ended)
        status, _ = await up.ask(f"/calls/{peer.id}/recording/caller")
        assert status == (200 if value == "1" else 404)


def varset(channel: str, variable: str = "CALLSCRIBE_CONSENT", value: str = "1") -> dict[str, str]:
    return {"event": "VarSet", "uniqueid": channel, "variable": variable, "value": value}


def test_other_variables_and_channels_say_nothing() -> None:
    consents = Consents()
    leg = Announcement(UUID, info=CallInfo("", uniqueid="1.1"))
    assert consents.announced(leg) == leg
    for event in (
        varset("1.2"),
        varset("1.1", value="0"),
        varset("1.1", value=""),
        varset("1.1", "__CALLSCRIBE_CONSENT"),
        varset(""),
        varset("1.1") | {"event": "UserEvent"},
    ):
        assert consents.heard(event) is None
    again = consents.heard(varset("1.1"))
    assert again is not None and again.uuid == UUID and again.info.recording_consent
    assert consents.heard(varset("1.1")) is None  # said already
    assert consents.announced(leg).info.recording_consent


def test_channels_are_forgotten() -> None:
    consents = Consents()
    for i in range(2 * MAX_CHANNELS):
        consents.heard(varset(f"c.{i}"))
        consents.announced(Announcement(UUID, info=CallInfo("", uniqueid=f"l.{i}")))
    assert len(consents._given) == len(consents._legs) == MAX_CHANNELS
