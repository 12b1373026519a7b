"""Deepgram's live API: by its own SDK, and message by message."""

from __future__ import annotations

import asyncio
import hashlib
import io
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest
import websockets.exceptions
from hypothesis import given

from bridge.audio.g711 import encode_alaw, encode_ulaw
from bridge.ingress.deepgram import Deepgram
from bridge.ingress.media_socket import LegAsked, LegAudio, LegBegan, LegEnded, SocketError
from bridge.ingress.wav_stream import WavHeader
from bridge.types import EndOfTurn, Final, Partial, Word
from tests.clients import ByHand, mutated, pcm16, said_at_random, survives
from tests.sockets import PATIENCE, Bridge, bridge, pieces, said, speech

SIXTEEN = {"encoding": "linear16", "sample_rate": 16000}


# -- by the official SDK -------------------------------------------------------------------------


@contextmanager
def their_imports() -> Iterator[Any]:
    """The SDK's own imports warn of themselves, and warnings are errors here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepgram
        from deepgram.environment import DeepgramClientEnvironment

        yield deepgram.AsyncDeepgramClient, DeepgramClientEnvironment


@asynccontextmanager
async def client(b: Bridge, **query: Any) -> AsyncIterator[Any]:
    with their_imports() as (make, environment):
        where = environment(base=b.url, production=b.url, agent=b.url, agent_rest=b.url)
        deepgram = make(api_key="key", environment=where)
        async with deepgram.listen.v1.connect(model="nova-3", **query) as connection:
            yield connection


async def all_of(connection: Any) -> list[Any]:
    """Every message, to the end."""
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        try:
            while True:
                found.append(await connection.recv())
        except websockets.exceptions.ConnectionClosedOK:
            return found


def finals(messages: list[Any], channel: int = 0) -> list[str]:
    return [
        m.channel.alternatives[0].transcript
        for m in messages
        if m.type == "Results" and m.is_final and m.channel_index[0] == channel
    ]


async def test_a_stream_by_the_official_sdk() -> None:
    words = [11, 111, 211]
    data = pcm16(words, 16000)
    options = {"interim_results": "true", "utterance_end_ms": "800", "vad_events": "true"}
    async with bridge() as b, client(b, **SIXTEEN, **options) as connection:
        for piece in pieces(data, 3200):
            await connection.send_media(piece)
        await connection.send_keep_alive()
        await connection.send_close_stream()
        messages = await all_of(connection)
    assert finals(messages) == [said(words)]
    kinds = [m.type for m in messages]
    assert (kinds.index("SpeechStarted"), kinds[-1]) == (0, "Metadata")
    interim = [m for m in messages if m.type == "Results" and not m.is_final]
    assert interim and interim[0].channel_index == [0, 1]
    (end,) = [m for m in messages if m.type == "UtteranceEnd"]
    final = next(m for m in messages if m.type == "Results" and m.is_final)
    spoken = final.channel.alternatives[0].words
    assert end.last_word_end == spoken[-1].end
    assert final.speech_final and final.start == 0 and final.duration == spoken[-1].end
    metadata = messages[-1]
    assert metadata.sha256 == hashlib.sha256(data).hexdigest()
    assert metadata.duration == len(data) / 32000 and metadata.channels == 1
    assert metadata.request_id == final.metadata.request_id


@pytest.mark.parametrize(("law", "encode"), [("mulaw", encode_ulaw), ("alaw", encode_alaw)])
async def test_two_channels_are_two_legs(law: str, encode: Any) -> None:
    ours, theirs = speech([1, 2]), speech([8, 9])
    both = encode(np.stack([ours, theirs], axis=1).reshape(-1))
    options = {"encoding": law, "sample_rate": 8000, "channels": 2, "multichannel": "true"}
    async with bridge() as b, client(b, **options) as connection:
        for piece in pieces(both, 333):
            await connection.send_media(piece)
        await connection.send_close_stream()
        messages = await all_of(connection)
        await b.over()
        assert b.sink.words("caller") == said([1, 2]) and b.sink.words("callee") == said([8, 9])
        assert len({event.call.id for event in b.sink.events}) == 1
    assert (finals(messages, 0), finals(messages, 1)) == ([said([1, 2])], [said([8, 9])])
    assert [m.type for m in messages].count("Metadata") == 1


async def test_finalize() -> None:
    async with bridge() as b, client(b, **SIXTEEN) as connection:
        await connection.send_media(pcm16([7], 16000)[:-32000])
        await connection.send_finalize()
        answer = await connection.recv()
        assert (answer.channel.alternatives[0].transcript, answer.from_finalize) == (
            said([7]),
            True,
        )
        await connection.send_finalize()
        empty = await connection.recv()
        assert (empty.channel.alternatives[0].transcript, empty.from_finalize) == ("", True)
        await connection.send_close_stream()
        assert [m.type for m in await all_of(connection)] == ["Metadata"]


async def test_a_wav_file_needs_no_encoding() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(pcm16([5, 6], 16000))
    async with bridge() as b, client(b) as connection:
        data = file.getvalue()  # its header comes in pieces
        for piece in [*pieces(data[:120], 30), data[120:]]:
            await connection.send_media(piece)
        await connection.send_close_stream()
        assert finals(await all_of(connection)) == [said([5, 6])]


# -- message by message ------------------------------------------------------------------------


def stream(**query: str) -> ByHand:
    hand = ByHand(Deepgram, **({"encoding": "linear16", "sample_rate": "16000"} | query))
    hand.wait(0)
    hand.binary(bytes(32000))
    return hand


def test_a_final_that_no_pause_made_is_not_the_speech_s() -> None:
    hand = stream(punctuate="true")
    words = (Word("Hello,", 0.2, 0.5, 0.9), Word("World!", 0.5, 0.9, 0.7))
    hand.hear(at=1.0)
    hand.tell(Final(0, "Hello, World!", words))
    (cut,) = hand.said()
    assert (cut["is_final"], cut["speech_final"], cut["duration"]) == (True, False, 0.9)
    alternative = cut["channel"]["alternatives"][0]
    assert (alternative["transcript"], alternative["confidence"]) == ("Hello, World!", 0.8)
    assert [w["word"] for w in alternative["words"]] == ["hello", "world"]
    hand.hear(at=2.0, pause=0.9)
    hand.tell(Final(0, "x", (Word("x", 1.0, 1.5, 0.9),)))
    (paused,) = hand.said()
    assert (paused["speech_final"], paused["start"], paused["duration"]) == (True, 0.9, 0.6)


def test_bare_words_and_no_interims_unless_they_are_asked_for() -> None:
    hand = stream()
    words = (Word("Hello,", 0.2, 0.5, 0.9), Word("?", 0.5, 0.9, 0.7))
    hand.tell(Partial(0, "Hello, ?", words))
    hand.tell(Final(0, "Hello, ?", words))
    assert [m["channel"]["alternatives"][0]["transcript"] for m in hand.said()] == ["hello ?"]


def test_speech_starts_once_a_turn() -> None:
    hand = stream(vad_events="true", interim_results="true", utterance_end_ms="1000")
    hand.hear("one", at=1.0)
    hand.hear("two", at=1.5)
    hand.tell(EndOfTurn(0, "one two", 0.5, 1.5, "pause"))
    hand.hear(at=2.4)
    hand.hear(at=2.5)
    hand.hear(at=9.0)
    hand.hear("three", at=9.5)
    kinds = [m["type"] for m in hand.said()]
    assert kinds == ["SpeechStarted", "UtteranceEnd", "SpeechStarted"]


def test_who_is_silent_is_sent_away_and_a_keep_alive_is_not_silence() -> None:
    hand = stream()
    assert hand.wait(1) == [LegAsked("caller")]  # the last words do not wait for it
    hand.it.finalised("caller")
    hand.wait(8)
    hand.text({"type": "KeepAlive"})
    assert hand.wait(9) == []
    assert hand.wait(1) == [LegEnded("caller", "timeout")]
    hand.over()
    assert hand.it.goodbye is not None and hand.it.goodbye[0] == 1011
    assert [m["type"] for m in hand.said()] == ["Metadata"]
    wav = ByHand(Deepgram)
    wav.wait(10)
    assert wav.it.goodbye is not None


def test_two_channels_that_are_not_told_apart_are_mixed() -> None:
    hand = ByHand(Deepgram, encoding="linear16", sample_rate="8000", channels="2")
    samples = np.array([100, 300, -32768, -32768], "<i2")
    began, audio = hand.binary(samples.tobytes())
    assert isinstance(began, LegBegan) and isinstance(audio, LegAudio)
    assert audio.frame.samples.tolist() == [200, -32768]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"encoding": "opus"}, "encoding: expected"),
        ({"encoding": "linear16"}, "the sample rate is one of"),
        ({"encoding": "mulaw", "channels": "3"}, "channels: expected"),
        ({"encoding": "mulaw", "channels": "0"}, "channels: expected 1 or 2"),
        ({"encoding": "mulaw", "utterance_end_ms": "x"}, "utterance_end_ms: expected"),
    ],
)
def test_requests_that_cannot_be(query: dict[str, str], sentence: str) -> None:
    with pytest.raises(SocketError, match=sentence):
        ByHand(Deepgram, **query)


def test_messages_that_are_wrong_cost_themselves() -> None:
    hand = stream()
    for message in (b"{", b"[]", b'{"type":"Nonsense"}', b'{"type":5}', b"{}"):
        assert hand.text(message) == []
        (error,) = hand.said()
        assert (error["type"], error["variant"]) == ("Error", "SchemaError")
    hand.text({"type": "Configure", "keyterms": []})
    assert hand.said()[0]["type"] == "ConfigureFailure"
    for _ in range(20):
        hand.text({"type": "Finalize"})
    assert sum(isinstance(event, LegAsked) for event in hand.events) == 8


def test_what_is_no_wav_file_costs_the_connection() -> None:
    with pytest.raises(SocketError, match="this is neither"):
        ByHand(Deepgram).binary(b"RIxx")
    with pytest.raises(SocketError, match="no samples in the first"):
        WavHeader().feed(b"RIFF" + bytes(70000))
    eight_bits = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0"
    with pytest.raises(SocketError, match="expected 16-bit PCM"):
        WavHeader().feed(eight_bits)


MESSAGES = [{"type": kind} for kind in ("KeepAlive", "Finalize", "CloseStream", "Configure")]


@given(said_at_random(mutated(MESSAGES)))
def test_nothing_a_client_sends_breaks_it(messages: Any) -> None:
    survives(ByHand(Deepgram), messages)
    survives(
        ByHand(Deepgram, encoding="alaw", channels="2", multichannel="true", vad_events="true"),
        messages,
    )
