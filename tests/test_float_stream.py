"""The token stream: float32 in, pieces of text out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from bridge.ingress.float_stream import FloatStream
from bridge.ingress.media_socket import LegAsked, LegAudio, LegEnded
from tests.clients import ByHand, float32, said_at_random, survives
from tests.sockets import PATIENCE, bridge, pieces, said
from tests.waiting import until


async def test_parallel_streams() -> None:
    """As its latency tool does it: each stream has its own words, in frames of about 80 ms."""

    async def one(url: str, words: list[int]) -> tuple[str, int]:
        text, ends = "", 0
        async with connect(f"{url}/v1/stream") as ws, asyncio.timeout(PATIENCE):
            for piece in pieces(float32(words), 7683):  # a sample is cut in two now and then
                await ws.send(piece)
            async for message in ws:
                said = json.loads(message)
                text += said.get("text", "")
                ends += said["type"] == "vad_end"
                if ends:
                    return text, ends
        return text, ends

    streams = [[n, n + 50, n + 100] for n in range(6)]
    async with bridge() as b:
        found = await asyncio.gather(*(one(b.url, words) for words in streams))
        await b.over(len(streams))
    assert found == [(" " + said(words), 1) for words in streams]


async def test_a_connection_without_audio_is_closed() -> None:
    listener = {"listen": "127.0.0.1:0", "patience": 0.5}
    async with bridge(websocket=listener) as b, connect(f"{b.url}/v1/stream") as ws:
        await ws.send(float32([9])[: 4 * 24000 // 4])
        messages = [json.loads(message) async for message in ws]
        assert ws.close_code == 1000
        assert [m["type"] for m in messages if m["type"] != "ping"] == ["error", "token", "vad_end"]
        await until(lambda: b.server.recogniser.used == 0)


def test_samples_that_are_no_numbers() -> None:
    hand = ByHand(FloatStream)
    hand.wait(0)
    values = np.array([np.nan, np.inf, -np.inf, 0.25], "<f4").tobytes()
    (first,) = hand.binary(values[:9])
    (rest,) = hand.binary(values[9:])
    assert isinstance(first, LegAudio) and isinstance(rest, LegAudio)
    assert [*first.frame.samples, *rest.frame.samples] == [0, 32767, -32767, 8192]
    assert rest.frame.start == 2


def test_pings_and_patience() -> None:
    hand = ByHand(FloatStream)
    hand.wait(0)
    hand.binary(bytes(400))
    assert hand.wait(1.0) == [LegAsked("caller")]
    hand.wait(4.0)
    assert hand.said() == [{"type": "ping"}]
    assert hand.wait(4.9) == []
    assert hand.wait(0.1) == [LegEnded("caller", "timeout")]
    assert [m["type"] for m in hand.said()] == ["ping", "error"]
    hand.over()
    assert hand.it.goodbye == (1000, "no audio")


def test_refused_and_hung_up() -> None:
    hand = ByHand(FloatStream)
    hand.it.hung_up("engine")
    hand.it.refused("caller", "overload")
    assert hand.said()[1] == {"type": "error", "message": "not taken: overload"}
    assert hand.it.goodbye == (1013, "not taken: overload")


@given(said_at_random(st.binary(max_size=9)))
def test_nothing_a_client_sends_breaks_it(messages: Any) -> None:
    survives(ByHand(FloatStream), messages)
