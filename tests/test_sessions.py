"""The session protocol: start, flush, end, cancel; transcripts with times and timing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from websockets.asyncio.client import ClientConnection, connect

from bridge.ingress.media_socket import LegAsked, LegBegan, LegEnded, SocketError
from bridge.ingress.session_timing import Timing
from bridge.ingress.sessions import Sessions
from bridge.types import Ended, Final, Partial, Word
from tests.clients import ByHand, mutated, pcm16, said_at_random, survives
from tests.sockets import PATIENCE, bridge, pieces, said

CONFIG = {
    "lang_code": "pt",
    "sample_rate": 16000,
    "vad_enabled": True,
    "vad_threshold": 0.5,
    "partial_results": True,
    "word_timestamps": True,
}
TIMING = {"preprocess_ms", "queue_wait_ms", "inference_ms", "postprocess_ms", "server_total_ms"}


def start(id: str = "s-1", **config: Any) -> dict[str, Any]:
    return {"type": "start_session", "session_id": id, "config": CONFIG | config}


async def say(ws: ClientConnection, *messages: dict[str, Any] | str) -> None:
    for message in messages:
        await ws.send(json.dumps({"type": message} if isinstance(message, str) else message))


async def heard(ws: ClientConnection, until: str = "session_ended") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        async for message in ws:
            found.append(json.loads(message))
            if found[-1]["type"] == until:
                break
    return found


def of(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == kind]


async def test_a_session() -> None:
    words = [12, 112, 212]
    data = pcm16(words, 16000)
    async with bridge() as b, connect(f"{b.url}/ws/stt") as ws:
        await say(ws, start())
        for piece in pieces(data, 1280):
            await ws.send(piece)
        await say(ws, "end_session")
        messages = await heard(ws)
        await b.over()
        (call,) = {event.call.id for event in b.sink.events}
        assert (call, b.sink.events[0].call.extra["language"]) == ("s-1", "pt")
    assert messages[0] == {"type": "session_started", "session_id": "s-1"}
    (final,) = of(messages, "final_transcript")
    assert set(final) == {
        "type", "session_id", "segment_id", "text", "confidence", "is_final", "words",
        "audio_duration_ms", "timing",
    }  # fmt: skip
    assert (final["text"], final["is_final"], final["segment_id"]) == (said(words), True, "seg-1")
    assert [set(word) for word in final["words"]] == [{"word", "start", "end", "probability"}] * 3
    span = final["words"][-1]["end"] - final["words"][0]["start"]
    assert final["audio_duration_ms"] == pytest.approx(1000 * span, abs=1.1)
    assert set(final["timing"]) == TIMING
    assert final["timing"]["server_total_ms"] > 0 and final["timing"]["inference_ms"] > 0
    partials = of(messages, "partial_transcript")
    assert partials and {p["segment_id"] for p in partials} == {"seg-1"}
    assert not partials[0]["is_final"] and set(partials[0]["timing"]) == TIMING
    vad = of(messages, "vad_event")
    assert [event["state"] for event in vad] == ["speech_start", "speech_end"]
    assert vad[0]["t_ms"] < vad[1]["t_ms"] == pytest.approx(1000 * final["words"][-1]["end"], abs=1)
    assert messages[-1] == {
        "type": "session_ended",
        "session_id": "s-1",
        "reason": "completed",
        "total_audio_ms": round(1000 * len(data) / 32000, 2),
        "total_segments": 1,
    }


async def test_flush_and_another_session_on_the_same_connection() -> None:
    async with bridge() as b, connect(f"{b.url}/ws/stt") as ws:
        quiet = {"partial_results": False, "word_timestamps": False, "vad_enabled": False}
        await say(ws, start("one", sample_rate=8000, **quiet))
        await ws.send(pcm16([7], 8000)[:-16000])
        await say(ws, "flush")
        started, final = await heard(ws, "final_transcript")
        assert (final["text"], final["words"]) == (said([7]), [])
        await say(ws, "end_session")
        assert (await heard(ws))[-1]["total_segments"] == 1
        await say(ws, start("two"))
        await ws.send(pcm16([8], 16000))
        await say(ws, "end_session")
        (final,) = of(await heard(ws), "final_transcript")
        assert (final["session_id"], final["text"]) == ("two", said([8]))


async def test_cancel_says_nothing_more() -> None:
    async with bridge() as b, connect(f"{b.url}/ws/stt") as ws:
        await say(ws, start())
        await ws.send(pcm16([1, 2, 3], 16000))
        await say(ws, "cancel")
        messages = await heard(ws)
        assert messages[-1]["reason"] == "cancelled" and not of(messages, "final_transcript")
        await b.over()
        assert b.server.recogniser.used == 0


async def test_sessions_at_once_have_their_own_words() -> None:
    audio = [pieces(pcm16([n, n + 100], 16000), 6400) for n in range(20)]

    async def one(url: str, n: int) -> str:
        async with connect(f"{url}/ws/stt") as ws:
            await say(ws, start(f"s-{n}"))
            for piece in audio[n]:
                await ws.send(piece)
            await say(ws, "end_session")
            return " ".join(m["text"] for m in of(await heard(ws), "final_transcript"))

    async with bridge(slots=20) as b:
        found = await asyncio.gather(*(one(b.url, n) for n in range(20)))
    assert found == [said([n, n + 100]) for n in range(20)]


async def test_no_slot_and_too_many_sessions() -> None:
    async with bridge(slots=1) as b, connect(f"{b.url}/ws/stt") as ws:
        await say(ws, start())
        await heard(ws, "session_started")
        async with connect(f"{b.url}/ws/stt") as late:
            for _ in range(2):  # it may ask again
                await say(late, start("s-2"))
                (error,) = await heard(late, "error")
                assert (error["code"], error["session_id"]) == ("QUEUE_FULL", "s-2")
                assert error["message"].startswith("Queue full")
    async with bridge(calls={"max": 1}) as b, connect(f"{b.url}/ws/stt") as ws:
        await say(ws, start())
        await heard(ws, "session_started")
        async with connect(f"{b.url}/ws/stt") as late:
            await say(late, start("s-2"))
            assert (await heard(late, "error"))[0]["code"] == "MAX_SESSIONS_REACHED"


# -- message by message --------------------------------------------------------------------------


def begun(**config: Any) -> ByHand:
    hand = ByHand(Sessions)
    (began,) = hand.text(start(**config))
    assert isinstance(began, LegBegan)
    hand.it.taken("caller")
    hand.said()
    return hand


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"{", "no JSON"),
        ({"type": "nonsense"}, "type: expected start_session"),
        ({"type": "flush"}, "flush: there is no session"),
        (start("../x"), "session_id: expected"),
        (start(sample_rate=7), "the sample rate is one of"),
        (start(vad_threshold=2), "vad_threshold: expected"),
        (start(vad_threshold=True), "vad_threshold: expected"),
        (start(partial_results="no"), "partial_results: expected true or false"),
        ({"type": "start_session", "config": [1]}, "config: expected an object"),
    ],
)
def test_wrong_messages_cost_themselves(message: Any, sentence: str) -> None:
    hand = ByHand(Sessions)
    assert list(hand.text(message)) == []
    (error,) = hand.said()
    assert error["code"] == "INVALID_MESSAGE" and sentence in error["message"]


def test_codes() -> None:
    hand = ByHand(Sessions)
    hand.binary(bytes(2))
    assert hand.said()[0]["message"] == "audio comes after start_session"
    hand = begun()
    hand.text(start("s-2"))
    assert hand.said()[0]["code"] == "SESSION_EXISTS"
    hand.it.hung_up("engine")
    assert [m.get("code", m.get("reason")) for m in hand.said()] == ["INFERENCE_ERROR", "error"]
    for reason, code in (("overload", "QUEUE_CONGESTION"), ("draining", "INTERNAL_ERROR")):
        hand = ByHand(Sessions)
        hand.text(start())
        hand.it.refused("caller", reason)
        assert hand.said()[0]["code"] == code
        assert hand.it.eof("eof") == [] and hand.it.goodbye is None


def test_the_threshold_decides_when_speech_has_ended() -> None:
    for threshold, states in ((0.9, ["speech_start", "speech_end"]), (0.2, ["speech_start"])):
        hand = begun(vad_threshold=threshold)
        hand.hear("one", at=1.0)
        hand.hear(at=1.5, pause=0.3)
        assert [m["state"] for m in hand.said()] == states


def test_a_session_that_sends_nothing_ends_by_itself() -> None:
    hand = begun()
    assert hand.wait(119) == []
    assert hand.wait(1) == [LegEnded("caller", "timeout")]
    hand.over()
    assert hand.said()[-1]["reason"] == "timeout"
    hand.wait(120)
    assert hand.it.goodbye is not None
    with pytest.raises(SocketError, match="nothing has started"):
        ByHand(Sessions).wait(5)


def test_partials_and_finals_share_a_segment() -> None:
    hand = begun()
    word = (Word("one", 0.0, 0.4, 0.9),)
    hand.tell(Partial(0, "one", word))
    hand.tell(Final(0, "one", word))
    hand.tell(Partial(0, "one", word))
    assert [m["segment_id"] for m in hand.said()] == ["seg-1", "seg-1", "seg-2"]
    assert hand.text({"type": "flush"}) == [LegAsked("caller")]
    hand.tell(Ended("engine", 1.0, {}))
    assert hand.said()[-1]["reason"] == "error"


def test_timing_is_what_was_measured() -> None:
    timing = Timing()
    timing.came(0.5, 10.0)
    timing.came(1.0, 10.5)
    timing.stepped(1.0, 10.75, words=True)
    assert timing.told(0.4, 11.0, 0.05) == {
        "preprocess_ms": 0.0,
        "queue_wait_ms": 200.0,
        "inference_ms": 50.0,
        "postprocess_ms": 250.0,
        "server_total_ms": 1000.0,
    }
    assert Timing().told(1.0, 5.0, 0.0)["server_total_ms"] == 0


MESSAGES = [start(), *({"type": kind} for kind in ("flush", "end_session", "cancel"))]


@given(said_at_random(mutated(MESSAGES)))
def test_nothing_a_client_sends_breaks_it(messages: Any) -> None:
    survives(ByHand(Sessions), [("text", json.dumps(start()).encode()), *messages])
