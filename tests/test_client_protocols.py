"""What holds for every protocol of a client: nothing a client does keeps a slot."""

from __future__ import annotations

import asyncio
import base64
import json

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame
from websockets.uri import parse_uri

from bridge.ingress.media_socket import Opening, SocketRules
from bridge.ingress.plain import Plain
from bridge.socket_kinds import PROTOCOLS, kind_of
from bridge.transport.websocket import Knocked, WebSocket
from tests.clients import float32, pcm16
from tests.sockets import PATIENCE, bridge
from tests.waiting import until


def sixteen(rate: int = 24000) -> bytes:
    return pcm16([1, 2, 3], rate)


APPEND = json.dumps(
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(sixteen()).decode()}
)
PCM = msgpack.packb({"type": "Audio", "pcm": [0.25] * 24000}, use_single_float=True)
# Path → what begins a leg there.
BEGIN: dict[str, list[str | bytes]] = {
    "/": [sixteen()],
    "/ws?rate=8000": [sixteen(8000)],
    "/v1/realtime": [APPEND],
    "/v1/listen?encoding=linear16&sample_rate=24000": [sixteen()],
    "/v1/listen?encoding=mulaw&channels=2&multichannel=true": [bytes(16000)],
    "/api/asr-streaming": [PCM],
    "/v1/stream": [float32([1, 2, 3])],
    "/ws/stt": ['{"type":"start_session","session_id":"s"}', sixteen(16000)],
}


def test_every_protocol_of_a_client_is_here() -> None:
    kinds = {kind.name for kind in PROTOCOLS.values() if kind.paced}
    assert {kind.name for p in BEGIN if (kind := kind_of(p.partition("?")[0]))} == kinds


def test_an_answer_waits_for_nothing() -> None:
    """It is sent when its question has been read, not when something else happens."""
    client = ClientProtocol(parse_uri("ws://127.0.0.1/"))
    client.send_request(client.connect())
    ws = WebSocket(1000, 0.0)
    (knocked,) = ws.receive(b"".join(client.data_to_send()), 0.0)
    assert isinstance(knocked, Knocked)
    plain = Plain(Opening(), SocketRules(), 0.0)
    ws.accept(plain, 0.0)
    ws.expire(0.0)  # its leg begins
    client.receive_data(b"".join(ws.data_to_send()))
    assert ws.next_at > 0
    client.send_text(b"{")
    ws.receive(b"".join(client.data_to_send()), 0.1)
    assert ws.next_at == 0
    client.receive_data(b"".join(ws.data_to_send()))
    frame = client.events_received()[-1]
    assert isinstance(frame, Frame) and b'"error"' in bytes(frame.data)


async def begin(ws: ClientConnection, path: str) -> None:
    for message in BEGIN[path]:
        await ws.send(message)


@pytest.mark.parametrize("path", BEGIN)
async def test_a_message_that_is_too_long(path: str) -> None:
    small = {"listen": "127.0.0.1:0", "max_message": 300_000}
    async with bridge(websocket=small) as b, connect(b.url + path) as ws:
        await begin(ws, path)
        await until(lambda: b.server.recogniser.used)
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(PATIENCE):
                await ws.send(bytes(300_001))
                while True:
                    await ws.recv()
        assert ws.close_code == 1009
        await b.over()
        await until(lambda: b.server.recogniser.used == 0)


@pytest.mark.parametrize("path", BEGIN)
async def test_a_client_that_vanishes(path: str) -> None:
    async with bridge() as b:
        async with connect(b.url + path, close_timeout=0) as ws:
            await begin(ws, path)
            await until(lambda: b.server.recogniser.used)
            ws.transport.abort()
        await b.over()
        await until(lambda: b.server.recogniser.used == 0)
        assert not b.server.switchboard.calls and not b.server.switchboard.lines


@pytest.mark.parametrize("path", BEGIN)
async def test_a_call_that_is_ended_from_our_side(path: str) -> None:
    async with bridge() as b, connect(b.url + path) as ws:
        await begin(ws, path)
        await until(lambda: b.server.switchboard.calls)
        b.server.switchboard.hang_up(next(iter(b.server.switchboard.calls)))
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(PATIENCE):
                while True:
                    await ws.recv()
        await until(lambda: b.server.recogniser.used == 0)
