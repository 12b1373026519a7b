"""mod_audio_stream and mod_audio_fork, by clients that behave as the modules' sources say."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from bridge.ingress.freeswitch import FreeSwitch
from bridge.ingress.media_socket import (
    LegAudio,
    LegBegan,
    LegDigit,
    LegEnded,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
)
from bridge.types import CallEvent, CallInfo, EndOfTurn, Final, Samples, Word
from tests import socket_fuzz
from tests.sockets import PATIENCE, at_rate, bridge, said, speech
from tests.waiting import until

UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
DRACHTIO = Subprotocol("audio.drachtio.org")
FOLDER = Path(__file__).parent.parent / "asterisk" / "freeswitch"


def opened(
    query: Mapping[str, str] | None = None, path: str = "/freeswitch", offered: Sequence[str] = ()
) -> FreeSwitch:
    return FreeSwitch(Opening(path, query or {}, offered=offered), SocketRules(), 0.0)


def legs(events: Sequence[SocketEvent]) -> list[tuple[str, str, str]]:
    return [(e.leg, e.call, e.info.channel) for e in events if isinstance(e, LegBegan)]


def audio(events: Sequence[SocketEvent]) -> list[tuple[str, int, list[int]]]:
    return [
        (e.leg, e.frame.rate, e.frame.samples.tolist()) for e in events if isinstance(e, LegAudio)
    ]


def test_the_url_alone_says_enough() -> None:
    media = opened({"rate": "16k"}, f"/freeswitch/{UUID}")
    events = media.binary(np.array([1, 2, 3], "<i2").tobytes(), 0.1)
    assert legs(events) == [("caller", UUID, UUID)]
    assert audio(events) == [("caller", 16000, [1, 2, 3])]


def test_stereo_is_two_legs_interleaved() -> None:
    media = opened({"mix": "stereo"})
    both = np.array([1, -1, 2, -2, 3, -3], "<i2").tobytes()
    events = [*media.binary(both[:7], 0.1), *media.binary(both[7:], 0.1)]
    assert legs(events) == [("caller", "", ""), ("callee", "", "")]
    assert audio(events) == [
        ("caller", 8000, [1]), ("callee", 8000, [-1]),
        ("caller", 8000, [2, 3]), ("callee", 8000, [-2, -3]),
    ]  # fmt: skip
    turned = opened({"mix": "stereo", "leg": "callee"})
    assert audio(turned.binary(both[:4], 0.1)) == [("callee", 8000, [1]), ("caller", 8000, [-1])]


def test_metadata_says_the_same_and_the_url_wins() -> None:
    metadata = {
        "rate": 48000, "mix": "mixed", "uuid": UUID, "call": "c-1", "leg": "callee",
        "caller": "+1555", "callee": "100", "queue": "sales", "nested": {"no": 1},
    }  # fmt: skip
    (began,) = opened({"rate": "24000"}).text(json.dumps(metadata).encode(), 0.1)
    assert isinstance(began, LegBegan)
    assert (began.leg, began.call, began.info.channel) == ("callee", "c-1", UUID)
    assert (began.info.caller, began.info.callee) == ("+1555", "100")
    assert began.info.extra == {"queue": "sales"}


@pytest.mark.parametrize("text", [b"sip:alice\n", b"\xff", b"[1]", b""])
def test_metadata_that_is_no_object_is_kept_as_it_is(text: bytes) -> None:
    media = opened()
    (began,) = media.text(text, 0.1)
    assert isinstance(began, LegBegan)
    assert set(began.info.extra) <= {"metadata"}
    assert audio(media.binary(b"\x01\x00", 0.2)) == [("caller", 8000, [1])]


def test_metadata_of_other_types_costs_the_connection() -> None:
    with pytest.raises(SocketError, match="mix: expected"):
        opened().text(b'{"mix": {}}', 0.1)
    with pytest.raises(SocketError, match="rate: expected"):
        opened().text(b'{"rate": [8000]}', 0.1)


def test_text_during_a_call_is_a_digit_or_somebody_elses() -> None:
    media = opened()
    media.text(b"{}", 0.1)
    assert media.text(b'{"event":"dtmf","dtmf":"5"}', 0.2) == (LegDigit("caller", "5"),)
    assert media.text(b'{"type":"dtmf","digit":"#"}', 0.2) == (LegDigit("caller", "#"),)
    assert media.text(b'{"type":"dtmf","digit":"55"}', 0.2) == ()
    assert media.text(b"bye", 0.2) == ()


def test_an_empty_message_ends_the_legs_once() -> None:
    media = opened({"mix": "stereo"})
    media.binary(bytes(4), 0.1)
    assert media.binary(b"", 0.2) == [LegEnded("caller"), LegEnded("callee")]
    assert media.binary(b"", 0.3) == ()
    assert media.binary(bytes(4), 0.4) == ()
    assert media.expire(9.0) == ()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"rate": "fast"}, "rate: expected"),
        ({"rate": "11025"}, "has a rate of"),
        ({"rate": "9" * 5000}, "rate: expected"),
        ({"mix": "quad"}, "mix: expected"),
        ({"leg": "x"}, "leg: expected"),
        ({"uuid": "../x"}, "uuid: expected"),
        ({"call": "a b"}, "call: expected"),
        ({"reply": "loud"}, "reply: expected"),
    ],
)
def test_what_the_url_says_wrong_costs_the_connection(
    query: Mapping[str, str], sentence: str
) -> None:
    with pytest.raises(SocketError, match=sentence):
        opened(query).binary(bytes(320), 0.1)


def final(text: str = "hello", leg: Any = "caller") -> CallEvent:
    return CallEvent(CallInfo("c"), 3, 0.0, leg, Final(0, text, (Word(text, 0.0, 0.5, 0.9),)))


def replies(media: FreeSwitch, *events: CallEvent) -> list[dict[str, Any]]:
    for event in events:
        media.told("caller", event)
    return [json.loads(message) for message in media.messages()]


def test_each_module_is_answered_in_its_own_form() -> None:
    (fork,) = replies(opened(offered=[DRACHTIO]), final())
    assert (fork["type"], fork["data"]["type"]) == ("transcription", "transcript.final")
    assert fork["data"]["data"]["text"] == "hello"
    (stream,) = replies(opened(), final())
    assert (stream["type"], stream["data"]["text"]) == ("transcript.final", "hello")
    assert replies(opened({"reply": "none"}), final()) == []
    turn = CallEvent(CallInfo("c"), 4, 0.0, "caller", EndOfTurn(0, "x", 0, 1, "pause"))
    (forced,) = replies(opened({"reply": "fork"}), turn)
    assert forced["type"] == "transcription"


@pytest.mark.parametrize(("reply", "kind"), [("fork", "error"), ("stream", "call.refused")])
def test_a_refusal_is_told_before_the_goodbye(reply: str, kind: str) -> None:
    media = opened({"reply": reply})
    media.binary(bytes(4), 0.1)
    media.refused("caller", "busy")
    (told,) = [json.loads(message) for message in media.messages()]
    assert told["type"] == kind and "busy" in str(told["data"])
    assert media.goodbye == (1013, "the call was not taken: busy")


def test_a_text_without_utf8_is_said_all_the_same() -> None:
    (said_,) = replies(opened({"reply": "fork"}), final("\ud800"))
    assert said_["data"]["data"]["text"] == "?"


@given(
    socket_fuzz.talks(['{"mix":"stereo","rate":16000}', '{"event":"dtmf","dtmf":"1"}', bytes(640)]),
    st.sampled_from([{}, {"mix": "stereo"}, {"rate": "x"}]),
)
def test_anything_is_events_or_an_error(talk: list[str | bytes], query: dict[str, str]) -> None:
    socket_fuzz.run(lambda: opened(query), talk)


# -- through a bridge ----------------------------------------------------------------------------


class Module:
    """What both modules do with a socket: metadata first, then samples in pieces of any size."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.events: list[dict[str, Any]] = []
        self.reader = asyncio.create_task(self.read())

    async def read(self) -> None:
        try:
            async for message in self.ws:
                self.events.append(json.loads(message))
        except ConnectionClosed:
            pass

    async def send(self, samples: Samples) -> None:
        """All that has gathered since the socket was last writable: mod_audio_fork's way."""
        data = samples.astype("<i2").tobytes()
        for i, size in enumerate([320, 1280, 646, 4, 10240] * (len(data) // 8000 + 1)):
            piece, data = data[:size], data[size:]
            if piece:
                await self.ws.send(piece)
            if i % 10 == 9:
                await asyncio.sleep(0)

    def texts(self, leg: str) -> str:
        finals = [e.get("data", {}) for e in self.events if e["type"] == "transcription"]
        finals = [e["data"] for e in finals if e["type"] == "transcript.final"]
        return " ".join(e["text"] for e in finals if e["leg"] == leg)


def stereo(left: Samples, right: Samples) -> Samples:
    both = np.zeros(2 * max(len(left), len(right)), np.int16)
    both[: 2 * len(left) : 2] = left
    both[1 : 2 * len(right) : 2] = right
    return both


async def test_mod_audio_fork_asks_for_the_last_words_and_is_let_go() -> None:
    ours, theirs = [7, 77, 177], [5, 55]
    async with bridge() as b:
        url = f"{b.url}/freeswitch/{UUID}?mix=stereo&rate=16000"
        async with connect(url, subprotocols=[DRACHTIO], compression=None) as ws:
            assert ws.subprotocol == DRACHTIO
            module = Module(ws)
            await ws.send('{"caller":"+15550100"}')
            await module.send(stereo(*(at_rate(speech(w), 16000) for w in (ours, theirs))))
            await ws.send(b"")
            await asyncio.wait_for(module.reader, PATIENCE)  # we close
            assert ws.close_code == 1000
        assert module.texts("caller") == said(ours)
        assert module.texts("callee") == said(theirs)
        kinds = [event["data"]["type"] for event in module.events if event["type"] == "json"]
        assert kinds[-1] == "call.ended"
        assert b.sink.events[-1].call.caller == "+15550100"
        assert b.server.recogniser.used == 0


async def test_mod_audio_stream_gets_plain_events_until_it_stops() -> None:
    """It offers permessage-deflate, which is never agreed to."""
    async with bridge() as b:
        async with connect(f"{b.url}/freeswitch/{UUID}", compression="deflate") as ws:
            assert ws.protocol.extensions == []
            module = Module(ws)
            await module.send(speech([7, 77]))
            await until(lambda: any(e["type"] == "turn.ended" for e in module.events), PATIENCE)
            await ws.send("stopped")  # uuid_audio_stream … stop stopped
        await b.over()
        assert b.sink.words() == said([7, 77])
        call = b.sink.events[-1].call
        assert (call.id, call.channel, call.ingress) == (UUID, UUID, "freeswitch")


# -- samples -------------------------------------------------------------------------------------


def test_the_urls_of_the_samples_are_heard() -> None:
    text = (FOLDER / "dialplan" / "callscribe_stream.xml").read_text("utf-8")
    commands = re.findall(r"(uuid_audio_(?:stream|fork) [^\"]+)\"", text)
    assert len(commands) == 2
    for command in commands:
        line = command.replace("&amp;", "&").replace("${uuid}", UUID)
        name, uuid, action, url, mix, rate, *_ = line.split(" ")
        assert (uuid, action) == (UUID, "start")
        path, _, query = url.partition("/freeswitch")[2].partition("?")
        pairs = dict(pair.split("=") for pair in query.split("&"))
        assert pairs["mix"] == mix
        media = opened(pairs, f"/freeswitch{path}")
        frames = audio(media.binary(bytes(8), 0.1))
        assert [(leg, hz) for leg, hz, _ in frames] == [
            (leg, int(rate.removesuffix("k")) * 1000) for leg in ("caller", "callee")
        ]
