"""The plain protocol: 16-bit samples in, words as JSON out; through a whole bridge."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from bridge.engine.tones import TonesModel
from bridge.ingress.media_socket import LegAsked, LegAudio, LegBegan, LegEnded
from bridge.ingress.pcm import Pcm, from_floats, from_list
from bridge.ingress.plain import Plain, credentials
from bridge.socket_session import SocketLeg
from bridge.types import Frame, Heard, Refused
from tests.clients import ByHand, float32, mutated, pcm16, said_at_random, survives
from tests.sockets import PATIENCE, bridge, pieces, said
from tests.waiting import until


async def until_ended(ws: ClientConnection, last: str = "ended") -> list[dict[str, Any]]:
    """All messages, up to one of this type."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        async for message in ws:
            found.append(json.loads(message))
            if found[-1]["type"] == last:
                break
    return found


def texts(messages: list[dict[str, Any]], kind: str) -> str:
    return " ".join(message["text"] for message in messages if message["type"] == kind)


@pytest.mark.parametrize("path", ["/", "/ws", "/ws?rate=16000"])
async def test_a_microphone(path: str) -> None:
    """4096 samples a message, as the clients of this protocol send it."""
    words = [1, 20, 255]
    async with bridge() as b, connect(b.url + path) as ws:
        for piece in pieces(pcm16(words, 16000 if "16000" in path else 24000), 8192):
            await ws.send(piece)
        await ws.send(json.dumps({"type": "end"}))
        heard = await until_ended(ws)
        await ws.wait_closed()
        assert ws.close_code == 1000
    assert texts(heard, "word") == texts(heard, "final") == said(words)
    (turn,) = [m for m in heard if m["type"] == "turn_ended"]
    assert (turn["text"], turn["reason"], turn["turn"]) == (said(words), "pause", 0)
    first = next(m for m in heard if m["type"] == "word")
    assert 0 <= first["start"] < first["end"] < 1 and 0 < first["confidence"] <= 1
    assert any(m["type"] == "partial" for m in heard)


async def test_messages_of_an_odd_length_lose_nothing() -> None:
    words = [3, 30]
    async with bridge() as b, connect(b.url) as ws:
        for piece in pieces(pcm16(words), 1001):
            await ws.send(piece)
        await ws.send('{"type":"end"}')
        assert texts(await until_ended(ws), "final") == said(words)


async def test_who_stops_sending_gets_the_last_words() -> None:
    """Without silence at the end, and without a word about it."""
    async with bridge() as b, connect(b.url) as ws:
        await ws.send(pcm16([7])[: 2 * 24000 // 4 + 3])
        heard = await until_ended(ws, "turn_ended")
        assert texts(heard, "final") == said([7])
        assert heard[-1]["reason"] in ("asked", "pause")  # whichever is noticed first
        await ws.send('{"type":"flush"}')  # nothing new: nothing is said
        await ws.send(b"")
        await ws.send('{"type":"end"}')
        assert [m["type"] for m in await until_ended(ws)] == ["ended"]


async def test_a_recording_faster_than_real_time_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve seconds at once, to an engine that has stopped until its client is made to wait."""
    step, waits = TonesModel.step, threading.Event()

    def slow(model: TonesModel) -> dict[int, Heard]:
        waits.wait(PATIENCE)  # on the engine's thread
        return step(model)

    kept: list[int] = []
    audio = SocketLeg.audio

    def watched(leg: SocketLeg, frame: Frame, now: float) -> None:
        audio(leg, frame, now)
        kept.append(len(leg._kept))
        if leg.behind:
            waits.set()

    monkeypatch.setattr(TonesModel, "step", slow)
    monkeypatch.setattr(SocketLeg, "audio", watched)
    words = [n % 256 for n in range(30)]
    engine = {"kind": "tones", "slots": 2, "queue_seconds": 4}
    async with bridge(engine=engine) as b, connect(b.url) as ws:
        listening = asyncio.create_task(until_ended(ws))
        for piece in pieces(pcm16(words), 65536):
            await ws.send(piece)
        await ws.send('{"type":"end"}')
        assert texts(await listening, "word") == said(words)
        await b.over()
        assert b.server.switchboard.totals["blocks_dropped"] == 0
    assert 0 < max(kept) <= 3  # seconds: a message or so, the others are still the client's


@pytest.mark.parametrize("end", ['{"type":"end"}', None])
async def test_a_recording_in_one_message_loses_nothing(end: str | None) -> None:
    """More than the leg's queue holds; also where the client is gone before it was heard."""
    words = list(range(40))
    engine = {"kind": "tones", "slots": 2, "queue_seconds": 4}
    async with bridge(engine=engine) as b:
        async with connect(b.url) as ws:
            await ws.send(pcm16(words)[:900_000])
            if end is not None:
                await ws.send(end)
                assert texts(await until_ended(ws), "final") == said(words)
        await b.over()
        assert b.sink.words() == said(words)
        assert b.server.switchboard.totals["blocks_dropped"] == 0


async def test_what_is_no_message_costs_itself() -> None:
    async with bridge() as b, connect(b.url) as ws:
        for text in ("{", "[]", '{"type":"start"}'):
            await ws.send(text)
            assert json.loads(await ws.recv())["type"] == "error"
        await ws.send('{"type":"end"}')
        assert (await until_ended(ws))[-1]["type"] == "ended"


async def test_no_slot_and_no_such_rate() -> None:
    async with bridge(slots=1) as b, connect(b.url) as ws:
        await ws.send(bytes(2))
        await until(lambda: b.server.recogniser.used == 1)
        async with connect(b.url) as late:
            answer = json.loads(await late.recv())
            assert answer == {"type": "error", "message": "not taken: busy"}
            await late.wait_closed()
            assert late.close_code == 1013
        assert [r.reason for r in b.sink.bodies(Refused)] == ["busy"]
        with pytest.raises(InvalidStatus) as e:
            await connect(f"{b.url}/?rate=1").__aenter__()
        assert e.value.response.status_code == 400
        assert b"one of 8000, 11025" in (e.value.response.body or b"")
        await ws.close()
        await b.over(2)
        assert b.server.recogniser.used == 0


async def test_a_client_that_is_hung_up_on_is_told() -> None:
    async with bridge() as b, connect(b.url) as ws:
        await ws.send(bytes(4800))
        await until(lambda: b.server.switchboard.calls)
        b.server.switchboard.hang_up(next(iter(b.server.switchboard.calls)))
        assert json.loads(await ws.recv())["message"] == "ended by the bridge"


def test_it_begins_at_once_and_waits_two_minutes() -> None:
    hand = ByHand(Plain)
    (began,) = hand.wait(0)
    assert isinstance(began, LegBegan)
    (audio,) = hand.binary(bytes(9))
    assert isinstance(audio, LegAudio) and len(audio.frame.samples) == 4
    assert hand.wait(1.0) == [LegAsked("caller")]
    assert hand.wait(1.0) == []
    assert hand.wait(118.0) == [LegEnded("caller", "timeout")]
    assert hand.binary(bytes(8)) == []
    hand.over()
    assert hand.it.goodbye == (1000, "nothing came for 120 seconds")


def test_a_client_that_we_keep_waiting_has_not_stopped() -> None:
    """Nothing is read from it meanwhile; a turn that ended there would cut a word in two."""
    hand = ByHand(Plain)
    hand.binary(bytes(480_000))  # ten seconds
    for _ in range(200):  # the engine is away
        assert hand.wait(1.0) == []
    hand.hear(at=9.9)
    assert hand.wait(0.9) == []
    hand.binary(bytes(48_000))
    hand.hear(at=10.8)
    assert hand.wait(0.9) == []
    assert hand.wait(0.1) == [LegAsked("caller")]


def test_a_leg_whose_last_words_never_come_is_not_waited_for() -> None:
    hand = ByHand(Plain)
    hand.text({"type": "end"})
    hand.wait(29)
    hand.hear(at=1.0)
    hand.wait(29)
    assert hand.it.goodbye is None
    hand.wait(1)
    assert hand.it.goodbye is not None


def test_floats_that_are_none() -> None:
    values = np.array([0.5, -1, 2, np.nan, np.inf, -np.inf, 1e38], np.float32)
    assert from_floats(values).tolist() == [16384, -32767, 32767, 0, 32767, -32767, 32767]
    assert from_list([0, 1, 1e300, float("nan")]).tolist() == [0, 32767, 32767, 0]


def test_streams_cut_anywhere_are_the_same() -> None:
    for encoding, data in (("linear16", pcm16([1])), ("float32", float32([1])), ("mulaw", b"\xff")):
        whole = Pcm(encoding).feed(data)[0]
        stream = Pcm(encoding)
        cut = np.concatenate([stream.feed(piece)[0] for piece in pieces(data, 4999)])
        assert np.array_equal(whole, cut)
    left, right = Pcm("linear16", 2).feed(np.arange(7, dtype="<i2").tobytes())
    assert (left.tolist(), right.tolist()) == ([0, 2, 4], [1, 3, 5])


def test_keys_that_clients_show() -> None:
    assert credentials({"authorization": "Bearer k"}, {"token": "t"}) == ["k", "t"]
    assert credentials({"authorization": "Basic k"}, {}) == []


@given(said_at_random(mutated([{"type": "flush"}, {"type": "end"}])))
def test_nothing_a_client_sends_breaks_it(messages: Any) -> None:
    survives(ByHand(Plain), messages)
