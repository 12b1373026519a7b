"""FreeSWITCH's whole line: a channel announced over HTTP, its samples in by unicast, words out."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from typing import Any

import aiohttp
import numpy as np
from fake_esl import FakeEsl

from bridge.config import from_dict
from bridge.engine.tones import encode
from bridge.server import Server
from tests.test_line import PATIENCE, Sink, assert_a_call, assert_said
from tests.waiting import until

CHANNEL = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
TOKEN = "correct horse battery staple"


class Clock:
    """Time that only the test moves: a busy machine would be a pause in what is said."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def announced(http: socket.socket, uuid: str = "", **media: Any) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{http.getsockname()[1]}/calls"
    body = {"call": CHANNEL, "channel": CHANNEL, "media": media} | ({"uuid": uuid} if uuid else {})
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession(headers=bearer) as session,
        session.post(url, json=body) as answer,
    ):
        return answer.status, await answer.json()


async def read(server: Server) -> None:
    """What was sent to the only port has been read by the bridge."""
    assert server.rtp is not None
    (port,) = server.rtp._open.values()
    await until(lambda: not select.select([port.sock], [], [], 0)[0], PATIENCE)


async def test_a_parked_channel_is_asked_for_and_heard_and_its_words_come_back() -> None:
    said, clock, sink = [3, 1, 4, 1, 5], Clock(), Sink()
    async with FakeEsl() as fake:
        fake.channels = {CHANNEL}
        settings = from_dict(
            {
                "engine": {"kind": "tones", "slots": 2},
                "turns": {"partials": False},
                "http": {"token": TOKEN},
                "rtp": {"ports": "34000-34999"},
                "esl": {"port": fake.port, "password": "s3cret"},
                "service": {"drain_timeout": 0, "flush_timeout": 10},
            }
        )
        server = Server(settings, sinks=[sink], clock=clock)
        http = socket.create_server(("127.0.0.1", 0))
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind(("127.0.0.1", 0))
        await server.start({"http": http})
        try:
            assert server.esl is not None
            await asyncio.wait_for(server.esl.up(), 10)
            status, error = await announced(http, type="l16", codec="opus", **{"from": "127.0.0.1"})
            assert status == 400 and "codec" in error["error"]
            status, error = await announced(http, type="l16")
            assert status == 400 and error["error"].startswith("media: from: needed")
            status, answer = await announced(
                http, type="l16", codec="l16le/16000", **{"from": "127.0.0.1"}
            )
            assert status == 201 and answer["media"]["type"] == "l16"
            await fake.until(lambda: fake.named("sendmsg"))
            asked = fake.named("sendmsg")[0]
            assert asked.line == f"sendmsg {CHANNEL}" and asked.get("local-port") == "0"
            assert asked.get("remote-port") == str(answer["media"]["port"])
            status, again = await announced(  # once more, by somebody who is not sure
                http, type="l16", codec="l16le/16000", uuid=answer["uuid"], **{"from": "127.0.0.1"}
            )
            assert (status, again["media"]) == (201, answer["media"])
            samples = encode(said, 16000)
            samples = np.concatenate([samples, np.zeros(-len(samples) % 320, np.int16)])
            for at in range(0, len(samples), 320):
                data = samples[at : at + 320].astype("<i2").tobytes()
                peer.sendto(data, ("127.0.0.1", answer["media"]["port"]))
                await read(server)  # the clock of such a leg is the time of arrival
                clock.now += 0.02
            clock.now += 0.1  # what a port keeps is handed over
            await until(
                lambda: (
                    (found := server.switchboard.find(CHANNEL)) is not None
                    and found.legs["caller"].frames == len(samples) // 320
                ),
                PATIENCE,
            )
            server.switchboard.hang_up(CHANNEL)
            await until(lambda: CHANNEL in sink.ended, PATIENCE)
            assert_a_call(sink.of(CHANNEL))
            assert_said(sink.words(CHANNEL), said)
            await fake.until(lambda: fake.variables.get((CHANNEL, "CALLSCRIBE_STATUS")) == "ended")
            text = sink.words(CHANNEL)
            assert fake.variables[CHANNEL, "CALLSCRIBE_TEXT"] == " ".join(w.text for w in text)
            await fake.until(lambda: len(fake.fired) == len(sink.of(CHANNEL)))
            assert len(fake.named("sendmsg")) == 1
            types = [json.loads(body)["type"] for _, body in fake.fired]
            assert types[0] == "call.started" and types[-1] == "call.ended"
            assert all(("Channel-UUID", CHANNEL) in headers for headers, _ in fake.fired)
        finally:
            await server.close()
            peer.close()
    assert server.esl.state == "down"
