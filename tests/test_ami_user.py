"""A bridge, a scripted Asterisk, and lines that end only when Asterisk knows why."""

from __future__ import annotations

import asyncio
import socket

import pytest
from fake_ami import FakeAmi

from tests.serving import GOODBYE, PATIENCE, Peer
from tests.test_line import Bridge, Start, start
from tests.waiting import until

__all__ = ["start"]

CHANNEL = "PJSIP/acme-00000001"


async def bridge_at(start: Start, ami: FakeAmi, **more: object) -> Bridge:
    section = {"port": ami.port, "username": "callscribe", "secret": "s3cret"}
    keys = {"keepalive": "off", "join_wait": 2.0, "listen": "127.0.0.1:0"}
    service = {"drain_timeout": 0, "flush_timeout": 0}  # Asterisk goes first
    bridge = await start(ami=section, audiosocket=keys, service=service, **more)
    link = bridge.server.link
    assert link is not None
    await until(lambda: link.state == "up", PATIENCE)
    ami.channels.add(CHANNEL)
    return bridge


def announce(ami: FakeAmi, id: str, **more: str) -> None:
    ami.emit(
        ("Event", "UserEvent"), ("Channel", CHANNEL), ("Uniqueid", "1.1"),
        ("UserEvent", "CallscribeLeg"), ("Id", id), *more.items(),
    )  # fmt: skip


class Caller(Peer):
    """Somebody who reads what the bridge sends only when asked to."""

    def ended(self) -> bool:
        """Has the bridge's hang-up come?"""
        try:
            return self._sock.recv(3, socket.MSG_PEEK) == GOODBYE
        except BlockingIOError:
            return False

    async def silence(self, seconds: float) -> None:
        await self._send((b"\x10\x01\x40" + bytes(320)) * round(seconds / 0.02))


async def test_a_turn_is_in_the_variables_before_the_line_ends(start: Start) -> None:
    async with FakeAmi() as ami:
        bridge = await bridge_at(start, ami)
        async with Caller(bridge.port) as caller:
            announce(ami, caller.id, Listen="20", Begin="5")
            await caller.hello()
            await caller.speak([1, 2])
            ami.silent = {"Setvar"}
            await caller.silence(2.0)
            await ami.until(lambda: len(ami.named("Setvar")) == 4)
            for _ in range(20):  # turns of the loop, in which a hang-up would have been sent
                await asyncio.sleep(0)
            assert not caller.ended()
            ami.answer_all()
            await until(caller.ended, PATIENCE)
            assert ami.variables == {
                (CHANNEL, "CALLSCRIBE_TEXT"): "w001 w002",
                (CHANNEL, "CALLSCRIBE_CONFIDENCE"): "1.00",
                (CHANNEL, "CALLSCRIBE_LANGUAGE"): "",
                (CHANNEL, "CALLSCRIBE_STATUS"): "heard",
            }
            assert await caller.goodbye() == GOODBYE
        await bridge.over(caller.id)
        assert len(ami.named("Setvar")) == 4  # nothing that is late sets anything


async def test_a_call_that_is_ended_has_its_last_words_and_its_status(start: Start) -> None:
    async with FakeAmi() as ami:
        bridge = await bridge_at(start, ami)
        async with Caller(bridge.port) as caller:
            announce(ami, caller.id)
            await caller.hello()
            await caller.speak([7])
            await until(lambda: caller.id in bridge.server.switchboard.calls, PATIENCE)
            leg = bridge.server.switchboard.calls[caller.id].legs["caller"]
            await until(lambda: leg.counts().seconds >= 0.36, PATIENCE)
            assert bridge.server.switchboard.hang_up(caller.id)
            assert await caller.goodbye() == GOODBYE
            found = {name: value for (_, name), value in ami.variables.items()}
            assert found == {"CALLSCRIBE_TEXT": "w007", "CALLSCRIBE_STATUS": "ended"}


async def test_a_refused_call_knows_why_before_its_line_ends(start: Start) -> None:
    limit = [{"name": "acme", "trunk": "PJSIP/acme", "max": 0}]
    async with FakeAmi() as ami:
        bridge = await bridge_at(start, ami, limit=limit)
        async with Caller(bridge.port) as caller:
            announce(ami, caller.id)
            await caller.hello()
            assert await caller.goodbye() == GOODBYE
            assert ami.variables[CHANNEL, "CALLSCRIBE_STATUS"] == "refused:limit:acme"


async def test_an_asterisk_that_does_not_answer_is_waited_for_for_a_while(
    start: Start,
) -> None:
    async with FakeAmi() as ami:
        bridge = await bridge_at(start, ami, engine={"kind": "tones", "slots": 1})
        async with Caller(bridge.port) as caller, Caller(bridge.port) as other:
            await bridge_takes(bridge, ami, caller)
            ami.silent = {"Setvar"}
            announce(ami, other.id)
            await other.hello()
            assert await other.goodbye() == GOODBYE
            assert (CHANNEL, "CALLSCRIBE_STATUS") not in ami.variables
        ami.answer_all()


async def bridge_takes(bridge: Bridge, ami: FakeAmi, caller: Caller) -> None:
    """A call is up, and its status has been told."""
    board = bridge.server.switchboard
    announce(ami, caller.id)
    await caller.hello()
    await until(lambda: caller.id in board.calls, PATIENCE)
    await ami.until(lambda: ami.variables.pop((CHANNEL, "CALLSCRIBE_STATUS"), ""))


@pytest.mark.parametrize("by", ["channel", "uniqueid", "call"])
async def test_ami_pauses_a_call(start: Start, by: str) -> None:
    async with FakeAmi() as ami:
        bridge = await bridge_at(start, ami)
        async with Caller(bridge.port) as caller:
            await bridge_takes(bridge, ami, caller)
            names = {"channel": CHANNEL, "uniqueid": "1.1", "call": caller.id}
            header = ("CallID" if by == "call" else "Channel", names[by])
            leg = bridge.server.switchboard.calls[caller.id].legs["caller"]
            for event, paused in (("CallscribePause", True), ("CallscribeResume", False)):
                ami.emit(("Event", "UserEvent"), ("UserEvent", event), header)
                await until(lambda: leg.paused is paused, PATIENCE)  # noqa: B023
            ami.emit(("Event", "UserEvent"), ("UserEvent", "CallscribePause"), ("Channel", "x"))
            ami.emit(("Event", "UserEvent"), ("UserEvent", "CallscribePause"), ("CallID", "x"))
            link = bridge.server.link
            assert link is not None
            await until(lambda: link.counters["pauses"] == 4, PATIENCE)
            assert not leg.paused
            await ami.until(
                lambda: {"paused", "resumed"} <= {e.get("Type") for e in ami.named("UserEvent")}
            )
