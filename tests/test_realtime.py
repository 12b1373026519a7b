"""OpenAI's Realtime transcription: by its own client, and event by event."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.asyncio.client import connect

from bridge.audio.g711 import encode_alaw, encode_ulaw
from bridge.ingress.media_socket import LegAsked, LegAudio, LegBegan
from bridge.ingress.realtime import Realtime
from bridge.types import EndOfTurn, Pressed
from tests.clients import ByHand, mutated, pcm16, said_at_random, survives
from tests.sockets import PATIENCE, Bridge, bridge, pieces, said, speech

P = "conversation.item.input_audio_transcription."


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- by the official client --------------------------------------------------------------------


@asynccontextmanager
async def client(b: Bridge) -> AsyncIterator[AsyncRealtimeConnection]:
    base = f"http://127.0.0.1:{b.port}/v1"
    async with (
        AsyncOpenAI(api_key="sk-test", base_url=base) as openai,
        openai.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        yield connection


async def until_event(connection: AsyncRealtimeConnection, last: str) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        async for event in connection:
            found.append(event)
            if event.type == last:
                break
    return found


def audio(form: dict[str, Any], **more: Any) -> Any:
    return {"type": "transcription", "audio": {"input": {"format": form, **more}}}


async def test_a_session_with_turn_detection() -> None:
    words = [4, 44, 144]
    async with bridge() as b, client(b) as connection:
        (created,) = await until_event(connection, "session.created")
        assert created.session.type == "transcription"
        form = audio({"type": "audio/pcm", "rate": 24000}, transcription={"model": "whisper-1"})
        await connection.session.update(session=form)
        (updated,) = await until_event(connection, "session.updated")
        assert updated.session.audio.input.transcription.model == "whisper-1"
        for piece in pieces(pcm16(words), 4800):
            await connection.input_audio_buffer.append(audio=b64(piece))
        events = await until_event(connection, P + "completed")
    kinds = [event.type for event in events if event.type != P + "delta"]
    assert kinds == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        P + "completed",
    ]
    assert events[-1].transcript == said(words)
    assert "".join(event.delta for event in events if event.type == P + "delta") == said(words)
    assert len({e.item_id for e in events if hasattr(e, "item_id")}) == 1
    assert events[0].audio_start_ms < 300
    assert 1200 < next(e for e in events if e.type.endswith("speech_stopped")).audio_end_ms < 2600
    assert 1 < events[-1].usage.seconds < 2.6


@pytest.mark.parametrize(
    ("form", "encode"), [("audio/pcmu", encode_ulaw), ("audio/pcma", encode_alaw)]
)
async def test_a_client_that_commits(form: str, encode: Any) -> None:
    """Telephone audio, and a push-to-talk button instead of turn detection."""
    async with bridge() as b, client(b) as connection:
        await connection.session.update(session=audio({"type": form}, turn_detection=None))
        await until_event(connection, "session.updated")
        previous = None
        for words in ([5], [6, 66]):
            data = encode(speech(words)[:-8000])  # no silence: a commit is all there is
            await connection.input_audio_buffer.append(audio=b64(data))
            await connection.input_audio_buffer.commit()
            events = await until_event(connection, P + "completed")
            (committed,) = [e for e in events if e.type == "input_audio_buffer.committed"]
            assert (events[-1].transcript, events[-1].item_id) == (said(words), committed.item_id)
            assert committed.previous_item_id == previous
            assert events[-1].usage.seconds == len(data) / 8000
            previous = committed.item_id


async def test_what_was_cleared_is_in_no_item() -> None:
    async with bridge() as b, client(b) as connection:
        form = audio({"type": "audio/pcm", "rate": 24000}, turn_detection=None)
        await connection.session.update(session=form)
        await connection.input_audio_buffer.append(audio=b64(pcm16([1, 2, 3])))
        await connection.input_audio_buffer.clear()
        await connection.input_audio_buffer.append(audio=b64(pcm16([9])))
        await connection.input_audio_buffer.commit()
        events = await until_event(connection, P + "completed")
        assert events[-1].transcript == said([9])
        assert "input_audio_buffer.cleared" in [event.type for event in events]


async def test_errors_in_their_form() -> None:
    async with bridge() as b, client(b) as connection:
        await until_event(connection, "session.created")
        await connection.send({"type": "nonsense", "event_id": "mine"})  # type: ignore[misc,typeddict-item]
        (error,) = await until_event(connection, "error")
        assert (error.error.type, error.error.code, error.error.event_id) == (
            "invalid_request_error",
            "unknown_event",
            "mine",
        )
        await connection.input_audio_buffer.commit()
        (error,) = await until_event(connection, "error")
        assert error.error.code == "input_audio_buffer_commit_empty"
        await connection.session.update(session=audio({"type": "audio/pcm", "rate": 16000}))
        (error,) = await until_event(connection, "error")
        assert error.error.param == "session.audio.input.format"


async def test_no_slot() -> None:
    async with bridge(slots=1) as b, client(b) as first:
        await first.input_audio_buffer.append(audio=b64(pcm16([1])))
        await until_event(first, P + "completed")
        async with client(b) as second:
            await second.input_audio_buffer.append(audio=b64(pcm16([1])))
            error = (await until_event(second, "error"))[-1].error
            assert (error.type, error.code) == ("server_error", "rate_limit_exceeded")


async def test_a_browser_offers_subprotocols() -> None:
    from websockets.typing import Subprotocol

    offered = [Subprotocol("realtime"), Subprotocol("openai-insecure-api-key.sk-1")]
    async with bridge() as b, connect(f"{b.url}/v1/realtime", subprotocols=offered) as ws:
        assert ws.subprotocol == "realtime"


# -- event by event ----------------------------------------------------------------------------


def session(**wanted: Any) -> ByHand:
    hand = ByHand(Realtime)
    hand.text({"type": "session.update", "session": audio({"type": "audio/pcm"}, **wanted)})
    hand.text({"type": "input_audio_buffer.append", "audio": b64(bytes(48000))})
    hand.said()
    return hand


def kinds(hand: ByHand) -> list[str]:
    return [message["type"].rpartition(".")[2] for message in hand.said()]


def test_a_turn_that_goes_on_is_one_item() -> None:
    """With two seconds of silence asked for, where the bridge's turns end after less."""
    vad = {"type": "server_vad", "silence_duration_ms": 2000, "prefix_padding_ms": 100}
    hand = session(turn_detection=vad)
    hand.hear("one", at=1.0)
    assert hand.said()[0]["audio_start_ms"] == 400
    hand.tell(EndOfTurn(0, "one", 0.5, 1.0, "pause"))
    hand.hear(at=2.9)
    assert hand.said() == []
    hand.hear("two", at=3.5)
    hand.hear(at=4.2)
    assert [m.get("delta") for m in hand.said()] == [" two"]
    hand.tell(EndOfTurn(1, "two", 3.0, 3.5, "pause"))
    hand.hear(at=5.6)
    messages = hand.said()
    assert messages[0]["audio_end_ms"] == 5600
    assert messages[-1]["transcript"] == "one two"


def test_who_stops_sending_has_finished() -> None:
    hand = session()
    hand.hear("one", at=1.0)
    assert hand.wait(1.0) == [LegAsked("caller")]
    hand.tell(EndOfTurn(0, "one", 0.5, 1.0, "asked"))
    hand.it.finalised("caller")
    assert kinds(hand)[-1] == "completed"


def test_a_commit_while_the_last_words_are_asked_for() -> None:
    """Answers come in the order of the questions."""
    hand = session()
    hand.hear("one", at=0.6)
    hand.wait(1.0)
    assert hand.text({"type": "input_audio_buffer.commit"}) == [LegAsked("caller")]
    hand.said()
    hand.it.finalised("caller")
    assert kinds(hand) == []
    hand.hear("two", at=1.0)
    hand.tell(EndOfTurn(0, "one two", 0.1, 1.0, "asked"))
    hand.it.finalised("caller")
    assert [m.get("transcript") for m in hand.said()] == [None, "one two"]


def test_the_beta_has_other_names() -> None:
    hand = ByHand(Realtime)
    hand.text(
        {
            "type": "transcription_session.update",
            "session": {"input_audio_format": "g711_ulaw", "turn_detection": None},
        }
    )
    created, updated = hand.said()
    assert created["type"] == "session.created"
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_format"] == "g711_ulaw"
    began, audio = hand.text({"type": "input_audio_buffer.append", "audio": b64(bytes(1600))})
    assert isinstance(began, LegBegan) and isinstance(audio, LegAudio)
    assert (audio.frame.rate, len(audio.frame.samples)) == (8000, 1600)
    hand.text({"type": "input_audio_buffer.commit"})
    assert kinds(hand) == ["committed", "created"]


def test_logprobs_where_they_are_asked_for() -> None:
    hand = session()
    include = ["item.input_audio_transcription.logprobs"]
    hand.text({"type": "session.update", "session": {"type": "transcription", "include": include}})
    hand.hear("one", at=1.0)
    hand.tell(EndOfTurn(0, "one", 0.5, 1.0, "hangup"))
    (logprob,) = hand.said()[-1]["logprobs"]
    assert logprob == {"token": "one", "bytes": [111, 110, 101], "logprob": -0.1054}


def test_items_of_a_call_that_is_ended_have_failed() -> None:
    hand = session()
    hand.hear("one", at=1.0)
    hand.it.hung_up("bridge")
    assert kinds(hand)[-1] == "failed"
    hand.tell(Pressed("5", 1.0))
    assert hand.said()[0]["event"] == "5"


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({"type": "session.update"}, "session"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
        ({"type": "session.update", "session": audio({}, turn_detection=3)},
         "session.audio.input.format"),
        ({"type": "session.update", "session": audio({"type": "audio/pcm"}, turn_detection=3)},
         "session.audio.input.turn_detection"),
        ({"type": "session.update", "session": audio({"type": "audio/pcm"},
          turn_detection={"type": "server_vad", "silence_duration_ms": -1})},
         "session.audio.input.turn_detection.silence_duration_ms"),
        ({"type": "input_audio_buffer.append", "audio": "no base64!"}, "audio"),
        ({"type": "input_audio_buffer.append"}, "audio"),
        (b"{", None),
        (b"\xff", None),
    ],
)  # fmt: skip
def test_what_is_wrong_costs_the_event(event: Any, param: str | None) -> None:
    hand = ByHand(Realtime)
    hand.said()
    assert hand.text(event) == []
    (error,) = hand.said()
    assert (error["type"], error["error"]["param"]) == ("error", param)
    assert hand.binary(b"xx") == [] and hand.said()[0]["type"] == "error"


def test_a_session_without_audio_takes_no_slot_and_ends_after_half_an_hour() -> None:
    hand = ByHand(Realtime)
    hand.wait(1799)
    assert hand.events == [] and hand.it.goodbye is None
    hand.wait(1)
    assert hand.it.goodbye == (1000, "no audio came")


def test_a_client_that_commits_more_than_can_be_answered() -> None:
    hand = session(turn_detection=None)
    for _ in range(65):
        hand.text({"type": "input_audio_buffer.append", "audio": b64(bytes(4800))})
        hand.text({"type": "input_audio_buffer.commit"})
    assert hand.said()[-1]["error"]["code"] == "rate_limit_exceeded"


MESSAGES = [
    {"type": "input_audio_buffer.append", "audio": b64(bytes(9600))},
    {"type": "input_audio_buffer.commit", "event_id": "x"},
    {"type": "input_audio_buffer.clear"},
    {"type": "session.update", "session": audio({"type": "audio/pcma"}, turn_detection=None)},
    {"type": "transcription_session.update", "session": {"input_audio_format": "pcm16"}},
]


@given(said_at_random(mutated(MESSAGES)))
def test_nothing_a_client_sends_breaks_it(messages: Any) -> None:
    survives(ByHand(Realtime), messages)
