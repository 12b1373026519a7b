"""moshi-server's protocol: the conversation of Kyutai's example clients, and message by message."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect

from bridge.ingress.media_socket import LegAsked, LegAudio, LegBegan, SocketError
from bridge.ingress.moshi import Moshi, credentials
from tests.clients import JSON, ByHand, float32, survives
from tests.sockets import PATIENCE, bridge, said
from tests.waiting import until

FRAME = 1920
SILENCE = [0.0] * 24000
PATH = "/api/asr-streaming"


def packed(kind: str, **more: Any) -> bytes:
    """As the example clients pack it."""
    data: bytes = msgpack.packb({"type": kind, **more}, use_bin_type=True, use_single_float=True)
    return data


def audio(words: list[int]) -> list[float]:
    values: list[float] = np.frombuffer(float32(words), "<f4").tolist()
    return values


async def heard(ws: ClientConnection, until: str = "Marker") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        async for message in ws:
            found.append(msgpack.unpackb(message, raw=False))
            if found[-1]["type"] == until:
                break
    return found


def spoken(messages: list[dict[str, Any]]) -> str:
    return " ".join(m["text"] for m in messages if m["type"] == "Word")


async def test_the_conversation_of_the_file_client() -> None:
    """A second of silence, frames of 80 ms, silence, the marker, more silence; and a transcript.

    As delayed-streams-modeling's scripts/stt_from_file_rust_server.py, but not in real time.
    """
    words = [10, 20, 30]
    headers = {"kyutai-api-key": "public_token"}
    async with (
        bridge() as b,
        connect(b.url + PATH, additional_headers=headers, max_queue=None) as ws,
    ):

        async def send() -> None:
            await ws.send(packed("Audio", pcm=SILENCE))
            samples = audio(words)
            for i in range(0, len(samples), FRAME):
                await ws.send(packed("Audio", pcm=samples[i : i + FRAME]))
            for _ in range(3):  # there five
                await ws.send(packed("Audio", pcm=SILENCE))
            await ws.send(packed("Marker", id=0))
            for _ in range(4):  # there 35
                await ws.send(packed("Audio", pcm=SILENCE))

        sending = asyncio.create_task(send())
        messages = await heard(ws)
        await sending
    assert messages[0] == {"type": "Ready"}
    assert messages[-1] == {"type": "Marker", "id": 0}
    assert spoken(messages) == said(words)
    times = [(m["type"], m.get("start_time", m.get("stop_time"))) for m in messages]
    (first, start), (end, stop) = [t for t in times if t[0] in ("Word", "EndWord")][:2]
    assert (first, end) == ("Word", "EndWord")
    assert 1.0 <= start < stop < 1.5


async def test_a_marker_comes_back_to_who_sends_nothing_behind_it() -> None:
    """Nor silence before it: the last word is there all the same, and the next audio is heard."""
    async with bridge() as b, connect(b.url + PATH) as ws:
        for id, word in ((7, 70), (8, 80)):
            await ws.send(packed("Audio", pcm=audio([word])[: 24000 // 4]))
            await ws.send(packed("Marker", id=id))
            messages = await heard(ws)
            assert (spoken(messages), messages[-1]["id"]) == (said([word]), id)


async def test_the_microphone_client_hears_pauses() -> None:
    """It asks prs[2] > 0.5, once words have come."""
    async with bridge() as b, connect(b.url + PATH, max_queue=None) as ws:
        samples = audio([1, 2])
        for i in range(0, len(samples), FRAME):
            await ws.send(packed("Audio", pcm=samples[i : i + FRAME]))
        began = False
        async with asyncio.timeout(PATIENCE):
            async for message in ws:
                m = msgpack.unpackb(message, raw=False)
                began = began or m["type"] == "Word"
                if began and m["type"] == "Step" and m["prs"][2] > 0.5:
                    break
        assert len(m["prs"]) == 4 and m["step_idx"] > 10 and m["buffered_pcm"] >= 0


async def test_ogg_opus() -> None:
    sphn = pytest.importorskip("sphn")
    writer = sphn.OpusStreamWriter(24000)
    samples = np.array(audio([40, 50]), np.float32)
    frames = [samples[i : i + FRAME] for i in range(0, len(samples) - FRAME, FRAME)]
    async with bridge() as b, connect(b.url + PATH) as ws:
        for frame in frames:
            await ws.send(packed("OggOpus", data=writer.append_pcm(frame)))
        await ws.send(packed("Marker", id=1))
        assert spoken(await heard(ws)) == said([40, 50])


async def test_no_free_channels() -> None:
    async with bridge(slots=1) as b, connect(b.url + PATH):
        await until(lambda: b.server.recogniser.used == 1)
        async with connect(b.url + PATH) as late:
            assert await heard(late, "Error") == [{"type": "Error", "message": "no free channels"}]


# -- message by message --------------------------------------------------------------------------


def test_messages() -> None:
    hand = ByHand(Moshi)
    assert [type(e) for e in hand.binary(packed("Init"))] == [LegBegan]
    (sound,) = hand.binary(packed("Audio", pcm=[0.5, float("nan"), 9]))
    assert isinstance(sound, LegAudio)
    assert sound.frame.samples.tolist() == [16384, 0, 32767]
    assert hand.binary(packed("Marker", id=-5)) == [LegAsked("caller")]
    hand.binary(packed("Marker", id=6))
    hand.binary(packed("Audio", pcm=[0.0]))
    assert hand.wait(1.0) == [LegAsked("caller")]  # who stops sending; told to nobody
    for _ in range(3):
        hand.it.finalised("caller")
    assert [msgpack.unpackb(m)["id"] for m in hand.it.messages()] == [-5, 6]
    assert credentials({"kyutai-api-key": "a"}, {"auth_id": "b"}) == ["a", "b"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"", "no MessagePack map"),
        (b"\xc1", "no MessagePack map"),
        (b"\x91" * 5000, "no MessagePack map"),
        (b"\x81\x90\x90", "no MessagePack map"),
        (packed("Audio")[:-1], "no MessagePack map"),
        (msgpack.packb([1]), "no MessagePack map"),
        (packed("Audio"), "expected a list of numbers"),
        (packed("Audio", pcm=["x"]), "expected a list of numbers"),
        (packed("Audio", pcm=[[1.0]]), "expected a list of numbers"),
        (packed("Audio", pcm=[[1.0], 2]), "expected a list of numbers"),
        (packed("Marker", id="1"), "expected a whole number"),
        (packed("Marker", id=True), "expected a whole number"),
        (packed("OggOpus", data="text"), "expected bytes"),
        (packed("OggOpus", data=b"no ogg at all, no ogg at all"), "OggOpus: "),
        (packed("Nonsense"), "expected a message of type"),
    ],
)
def test_what_is_none_of_their_messages_ends_the_stream(message: bytes, sentence: str) -> None:
    hand = ByHand(Moshi)
    hand.binary(packed("Init"))
    with pytest.raises(SocketError, match=sentence):
        hand.binary(message)
    (error,) = [msgpack.unpackb(m) for m in hand.it.messages()]
    assert error["type"] == "Error" and sentence in error["message"]


def test_opus_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sphn", None)
    with pytest.raises(SocketError, match="pip install sphn; send Audio"):
        ByHand(Moshi).binary(packed("OggOpus", data=b""))


def test_more_markers_than_can_be_acknowledged() -> None:
    hand = ByHand(Moshi)
    with pytest.raises(SocketError, match="16 markers wait"):
        for id in range(17):
            hand.binary(packed("Marker", id=id))


MAPS = st.fixed_dictionaries(
    {"type": st.sampled_from(["Init", "Audio", "OggOpus", "Marker", "x"])},
    optional={
        "pcm": JSON | st.lists(st.floats(), max_size=4),
        "id": JSON | st.integers(-9, 9),
        "data": st.binary(max_size=20),
    },
)


def bits(value: Any) -> bytes:
    """Packed, where MessagePack can: its whole numbers have 64 bits."""
    try:
        data: bytes = msgpack.packb(value)
    except (OverflowError, ValueError):
        return b"\x80"
    return data


@given(
    st.lists(
        st.tuples(st.just("binary"), MAPS.map(bits) | JSON.map(bits) | st.binary(max_size=20))
        | st.tuples(st.sampled_from(["wait", "text"]), st.binary(max_size=30)),
        max_size=10,
    )
)
def test_nothing_a_client_sends_breaks_it(messages: Any) -> None:
    survives(ByHand(Moshi), messages)
