"""What holds for every protocol of a carrier or a switch: nothing a peer does keeps a slot."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bridge.socket_kinds import PROTOCOLS, kind_of
from bridge.types import Ended
from tests import test_audiohook, test_carriers, test_chan_websocket, test_twilio
from tests.sockets import PATIENCE, bridge
from tests.waiting import until

OPEN = {
    "version": "2", "id": test_audiohook.SESSION, "type": "open", "seq": 1, "serverseq": 0,
    "position": "PT0S", "parameters": test_audiohook.open_parameters(),
}  # fmt: skip
# Path → what begins a call there, and the legs that it has.
BEGIN: dict[str, tuple[list[object], int]] = {
    "/twilio": ([test_twilio.start()], 2),
    "/asterisk/a?leg=callee": ([test_chan_websocket.PLAIN.decode(), bytes(160)], 1),
    "/freeswitch/x?mix=stereo": ([bytes(640)], 2),
    "/vonage": ([test_carriers.connected(), bytes(640)], 1),
    "/audiohook": ([OPEN], 2),
    **{
        vendor.path: ([vendor.start(), vendor.media(1, bytes(320))], n)
        for name, n in (("telnyx", 1), ("plivo", 2), ("exotel", 1), ("signalwire", 2))
        for vendor in (test_carriers.VENDORS[name],)
    },
}
EVERY = pytest.mark.parametrize("path", BEGIN)


def test_every_protocol_of_a_telephone_is_here() -> None:
    kinds = {kind.name for kind in PROTOCOLS.values() if not kind.paced}
    assert {kind.name for p in BEGIN if (kind := kind_of(p.partition("?")[0]))} == kinds


async def begin(ws: ClientConnection, path: str) -> None:
    for message in BEGIN[path][0]:
        await ws.send(json.dumps(message) if isinstance(message, dict) else message)  # type: ignore[arg-type]


async def gone(ws: ClientConnection) -> ConnectionClosed:
    """Read until the bridge has closed."""
    with pytest.raises(ConnectionClosed) as closed:
        async with asyncio.timeout(PATIENCE):
            while True:
                await ws.recv()
    return closed.value


@EVERY
async def test_a_peer_that_vanishes(path: str) -> None:
    async with bridge() as b, connect(b.url + path) as ws:
        await begin(ws, path)
        await until(lambda: b.server.recogniser.used == BEGIN[path][1], PATIENCE)
        ws.transport.abort()
        await b.over()
        await until(lambda: b.server.recogniser.used == 0, PATIENCE)


@EVERY
async def test_a_message_that_is_too_long(path: str) -> None:
    small = {"listen": "127.0.0.1:0", "max_message": 70_000}
    async with bridge(websocket=small) as b, connect(b.url + path) as ws:
        await begin(ws, path)
        await until(lambda: b.server.recogniser.used == BEGIN[path][1], PATIENCE)
        await ws.send(bytes(70_001))
        closed = await gone(ws)
        assert closed.rcvd is not None and closed.rcvd.code == 1009
        await b.over()
        assert b.server.recogniser.used == 0


@EVERY
async def test_a_bridge_that_is_full(path: str) -> None:
    """The peer is told, and of two legs none stays."""
    async with bridge(slots=1) as b, connect(f"{b.url}/vonage") as first:
        await begin(first, "/vonage")
        await until(lambda: b.server.recogniser.used == 1, PATIENCE)
        async with connect(b.url + path) as ws:
            await begin(ws, path)
            if path == "/audiohook":  # it is the client that closes
                told = json.loads(await asyncio.wait_for(ws.recv(), PATIENCE))
                assert "busy" in told["parameters"]["info"]
            else:
                closed = await gone(ws)
                assert closed.rcvd is not None and closed.rcvd.code == 1013
        assert b.server.recogniser.used == 1
        await first.close()
        await until(lambda: b.sink.bodies(Ended), PATIENCE)


@EVERY
async def test_a_call_that_is_hung_up_here(path: str) -> None:
    async with bridge() as b, connect(b.url + path) as ws:
        await begin(ws, path)
        await until(lambda: b.server.recogniser.used == BEGIN[path][1], PATIENCE)
        (call,) = b.server.switchboard.calls
        assert b.server.switchboard.hang_up(call)
        await b.over()
        assert b.server.recogniser.used == 0
        assert b.sink.bodies(Ended)[0].reason == "bridge"
        if path != "/audiohook":
            closed = await gone(ws)
            assert closed.rcvd is not None and closed.rcvd.code == 1000
