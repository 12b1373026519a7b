"""Genesys AudioHook: both sides' messages after the protocol reference, and bad ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bridge.audio.g711 import encode_ulaw
from bridge.ingress.audiohook import CLOSE_WITHIN, LAST_WORDS, NOBODY, AudioHook
from bridge.ingress.media_socket import (
    LegAsked,
    LegAudio,
    LegBegan,
    LegDigit,
    LegEnded,
    Opening,
    SocketEvent,
    SocketRules,
)
from bridge.types import CallEvent, CallInfo, Ended, Pressed, Samples, Warned
from tests import socket_fuzz
from tests.sockets import PATIENCE, bridge, pieces, said, speech
from tests.waiting import until

SESSION = "e160e428-53e2-487c-977d-96989bf5c99d"
CALL = "090eaa2f-72fa-480a-83e0-8667ff89c0ec"


def medium(*channels: str, form: str = "PCMU", rate: int = 8000) -> dict[str, Any]:
    return {"type": "audio", "format": form, "channels": list(channels), "rate": rate}


OFFERED = [medium("external", "internal"), medium("external"), medium("internal")]


def open_parameters(**more: Any) -> dict[str, Any]:
    return {
        "organizationId": "d7934305-0972-4844-938e-9060eef73d05",
        "conversationId": CALL,
        "participant": {
            "id": "883efee8-3d6c-4537-b500-6d7ca4b92fa0",
            "ani": "+1-555-555-1234",
            "aniName": "John Doe",
            "dnis": "+1-800-555-6789",
        },
        "media": OFFERED,
        "language": "en-US",
        "customConfig": {"queue": "sales"},
        **more,
    }


class Session:
    """A client by hand."""

    def __init__(self) -> None:
        self.it = AudioHook(Opening("/audiohook"), SocketRules(), 0.0)
        self.seq = self.serverseq = 0
        self.answers: list[dict[str, Any]] = []

    def say(self, kind: str, now: float = 1.0, /, **parameters: Any) -> list[SocketEvent]:
        return self.raw(kind, now, parameters=parameters)

    def raw(self, kind: str, now: float = 1.0, /, **fields: Any) -> list[SocketEvent]:
        self.seq += 1
        message = {
            "version": "2",
            "id": SESSION,
            "type": kind,
            "seq": self.seq,
            "serverseq": self.serverseq,
            "position": "PT1.5S",
            "parameters": {},
        }
        return self.send(json.dumps(message | fields).encode(), now)

    def send(self, message: bytes, now: float = 1.0) -> list[SocketEvent]:
        events = list(self.it.text(message, now))
        self.hear()
        return events

    def hear(self) -> None:
        for message in self.it.messages():
            answer = json.loads(message)
            assert (answer["version"], answer["seq"]) == ("2", self.serverseq + 1)
            self.serverseq += 1
            self.answers.append(answer)

    def opened(self, take: bool = True, **more: Any) -> list[SocketEvent]:
        events = self.say("open", **open_parameters(**more))
        for event in events:
            if take and isinstance(event, LegBegan):
                self.it.taken(event.leg)
        self.hear()
        return events

    def last(self) -> tuple[str, dict[str, Any]]:
        return self.answers[-1]["type"], self.answers[-1]["parameters"]


def audio(events: Sequence[SocketEvent]) -> list[tuple[str, int, int]]:
    """(leg, start, samples)."""
    return [(e.leg, e.frame.start, len(e.frame.samples)) for e in events if isinstance(e, LegAudio)]


def ended() -> CallEvent:
    return CallEvent(CallInfo(CALL), 9, 0.0, None, Ended("hangup", 1.0, {}))


def test_an_open_is_answered_with_the_best_medium() -> None:
    session = Session()
    caller, callee = session.opened()
    assert isinstance(caller, LegBegan) and isinstance(callee, LegBegan)
    assert [(e.leg, e.call) for e in (caller, callee)] == [("caller", CALL), ("callee", CALL)]
    assert session.last() == ("opened", {"startPaused": False, "media": [OFFERED[0]]})
    assert (session.answers[0]["id"], session.answers[0]["clientseq"]) == (SESSION, 1)
    info = caller.info
    assert (info.caller, info.callee) == ("+1-555-555-1234", "+1-800-555-6789")
    assert (info.extra["queue"], info.extra["caller_name"]) == ("sales", "John Doe")
    (data,) = audio(session.it.binary(bytes(3), 1.0)[:1])
    assert data == ("caller", 0, 1)
    assert audio(session.it.binary(bytes(1601), 1.0)) == [("caller", 1, 801), ("callee", 1, 801)]


def test_one_channel_is_one_leg() -> None:
    session = Session()
    (callee,) = session.opened(media=[medium("internal"), medium("external", form="L16")])
    assert isinstance(callee, LegBegan) and callee.leg == "callee"
    assert audio(session.it.binary(bytes(800), 1.0)) == [("callee", 0, 800)]


def test_a_probe_is_answered_and_takes_no_slot() -> None:
    session = Session()
    assert session.opened(conversationId=NOBODY) == []
    assert session.last()[0] == "opened"
    assert session.it.binary(bytes(800), 1.0) == ()
    assert session.say("close", reason="end") == []
    assert session.last() == ("closed", {})


def test_pings_are_answered_whatever_the_state() -> None:
    session = Session()
    session.say("ping", rtt="PT0.05S")
    assert session.last() == ("pong", {})
    session.opened()
    session.say("ping")
    assert [answer["clientseq"] for answer in session.answers] == [1, 2, 3]


def test_what_was_discarded_moves_the_clock() -> None:
    session = Session()
    session.opened()
    session.it.binary(bytes(1600), 1.0)
    assert session.say("discarded", start="PT0.1S", discarded="PT1.5S") == []
    assert audio(session.it.binary(bytes(2), 1.0))[0] == ("caller", 800 + 12000, 1)
    asked = session.say("paused")
    assert asked == [LegAsked("caller"), LegAsked("callee")]
    assert session.say("resumed", start="PT2S", discarded="PT2S") == []
    assert audio(session.it.binary(bytes(2), 1.0))[0] == ("caller", 801 + 12000 + 16000, 1)


def test_digits_updates_errors_and_news() -> None:
    session = Session()
    session.opened()
    assert session.say("dtmf", digit="5") == [LegDigit("caller", "5")]
    assert session.say("update", language="de-DE") == []
    (error,) = session.say("error", code=429, message="slow\ndown")
    assert isinstance(error, Warned) and error.text == "Genesys reports: 429 slow down"
    (odd,) = session.say("sing")
    assert isinstance(odd, Warned) and odd.kind == "unknown_event"


def test_a_close_is_answered_when_the_last_words_have_been_told() -> None:
    session = Session()
    session.opened()
    assert session.say("close", reason="end") == [LegEnded("caller"), LegEnded("callee")]
    session.hear()
    assert session.last()[0] == "opened"
    session.it.told("caller", ended())
    session.it.told("callee", ended())
    session.hear()
    assert [answer["type"] for answer in session.answers] == ["opened", "closed"]


def test_a_close_is_answered_in_time_whatever_the_engine_does() -> None:
    session = Session()
    session.opened()
    session.say("close", 10.0, reason="end")
    assert session.it.expire(10.0 + LAST_WORDS) == ()
    session.hear()
    assert session.last() == ("closed", {})
    session.it.expire(10.0 + LAST_WORDS + CLOSE_WITHIN)
    assert session.it.goodbye == (1000, "")


@pytest.mark.parametrize(
    ("message", "info"),
    [
        (b"{", "no JSON"),
        (b"[]", "no object"),
        (b'{"version":"1"}', 'version: expected "2"'),
        (b'{"version":"2","seq":7}', "seq: expected 2"),
        (b'{"version":"2","seq":2,"serverseq":9}', "serverseq: expected at most 1"),
        (b'{"version":"2","seq":2,"serverseq":"x"}', "serverseq: expected"),
        (b'{"version":"2","seq":2,"id":"other"}', "id: expected that of the session"),
        (b'{"version":"2","seq":2,"id":"%s"}' % SESSION.encode(), "parameters: expected an object"),
    ],
)
def test_a_client_that_breaks_the_protocol_is_told_so_and_closes(message: bytes, info: str) -> None:
    session = Session()
    session.opened()
    assert session.send(message) == [
        LegEnded("caller", "protocol"), LegEnded("callee", "protocol"),
    ]  # fmt: skip
    kind, parameters = session.last()
    assert (kind, parameters["reason"]) == ("disconnect", "error")
    assert info in parameters["info"]
    assert session.it.binary(bytes(2), 1.0) == ()
    assert session.send(b"{") == []
    assert session.say("close", reason="error") == []
    assert session.last() == ("closed", {})


@pytest.mark.parametrize(
    ("more", "info"),
    [
        ({"media": [medium("external", form="opus")]}, "media: expected PCMU at 8000 Hz"),
        ({"media": [medium("external", rate=16000)]}, "media: expected PCMU"),
        ({"media": "all"}, "media: expected PCMU"),
        ({"conversationId": "../x"}, "conversationId: expected"),
    ],
)
def test_an_open_that_cannot_be_heard_is_told_why(more: dict[str, Any], info: str) -> None:
    session = Session()
    assert session.opened(**more) == []
    kind, parameters = session.last()
    assert kind == "disconnect" and info in parameters["info"]
    session.it.expire(1.0 + CLOSE_WITHIN)
    assert session.it.goodbye == (1008, "no close came")


def test_audio_first_two_opens_and_bad_durations_are_errors() -> None:
    session = Session()
    assert session.it.binary(bytes(2), 1.0) == []
    session.hear()
    assert session.last()[1]["info"] == "audio before the open"
    session = Session()
    session.opened()
    session.opened(take=False)
    assert session.last()[1]["info"] == "a second open; a session has one"
    session = Session()
    session.opened()
    session.say("discarded", discarded="1.5")
    assert session.last()[1]["info"] == "discarded: expected a duration such as PT1.5S"


def test_our_end_is_a_wish_and_a_refusal_an_error() -> None:
    session = Session()
    session.opened()
    assert session.it.lingers
    session.it.hung_up("bridge")
    session.hear()
    assert session.last() == ("disconnect", {"reason": "completed"})
    assert session.it.expire(2.0) == [LegEnded("caller", "bridge"), LegEnded("callee", "bridge")]
    session.it.expire(2.0 + CLOSE_WITHIN)
    assert session.it.goodbye is not None
    session = Session()
    session.opened(take=False)
    session.it.refused("caller", "busy")
    session.it.refused("callee", "busy")
    session.hear()
    assert session.last() == (
        "disconnect", {"reason": "error", "info": "the call was not taken: busy"},
    )  # fmt: skip


def valid() -> list[str | bytes]:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("open", open_parameters()), ("ping", {}), ("close", {"reason": "end"}), ("paused", {}),
        ("discarded", {"start": "PT1S", "discarded": "PT2S"}), ("dtmf", {"digit": "1"}),
    ]  # fmt: skip
    return [
        json.dumps(
            {"version": "2", "id": SESSION, "type": kind, "seq": seq, "serverseq": 0,
             "position": "PT0S", "parameters": parameters}
        )
        for seq, (kind, parameters) in enumerate(kinds * 2, 1)
    ]  # fmt: skip


@given(socket_fuzz.talks([*valid(), bytes(1601)]))
def test_anything_is_events_or_an_error(talk: list[str | bytes]) -> None:
    socket_fuzz.run(lambda: AudioHook(Opening(), SocketRules(), 0.0), talk)


@given(socket_fuzz.talks([*valid()[1:], bytes(1601)]))
def test_anything_after_an_open_is_events_or_an_error(talk: list[str | bytes]) -> None:
    socket_fuzz.run(lambda: AudioHook(Opening(), SocketRules(), 0.0), [valid()[0], *talk])


# -- through a bridge ----------------------------------------------------------------------------


class Client:
    """Genesys' side."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.seq = self.serverseq = 0
        self.answers: list[dict[str, Any]] = []

    async def say(self, kind: str, **parameters: Any) -> None:
        self.seq += 1
        message = {
            "version": "2", "id": SESSION, "type": kind, "seq": self.seq,
            "serverseq": self.serverseq, "position": "PT0S", "parameters": parameters,
        }  # fmt: skip
        await self.ws.send(json.dumps(message))

    async def answer(self) -> str:
        found = json.loads(await asyncio.wait_for(self.ws.recv(), PATIENCE))
        assert found["clientseq"] <= self.seq
        self.serverseq = found["seq"]
        self.answers.append(found)
        return str(found["type"])


def interleaved(left: Samples, right: Samples) -> bytes:
    both = np.zeros(2 * max(len(left), len(right)), np.int16)
    both[: 2 * len(left) : 2] = left
    both[1 : 2 * len(right) : 2] = right
    return encode_ulaw(both)


async def test_a_conversation() -> None:
    ours, theirs = [7, 77, 177], [5, 55]
    async with bridge() as b:
        async with connect(f"{b.url}/audiohook/monitor") as ws:
            client = Client(ws)
            await client.say("open", **open_parameters())
            assert await client.answer() == "opened"
            for piece in pieces(interleaved(speech(ours), speech(theirs)), 3201):
                await ws.send(piece)
            await client.say("dtmf", digit="1")
            await client.say("close", reason="end")
            assert await client.answer() == "closed"
            assert (b.sink.words("caller"), b.sink.words("callee")) == (said(ours), said(theirs))
        await b.over()
        assert [press.digit for press in b.sink.bodies(Pressed)] == ["1"]
        last = b.sink.events[-1]
        assert (last.call.id, last.call.ingress, last.body.reason) == (CALL, "audiohook", "hangup")  # type: ignore[union-attr]
        assert b.server.recogniser.used == 0


async def test_a_call_that_is_hung_up_here_is_closed_by_the_client() -> None:
    async with bridge() as b, connect(f"{b.url}/audiohook") as ws:
        client = Client(ws)
        await client.say("open", **open_parameters())
        assert await client.answer() == "opened"
        await ws.send(interleaved(speech([1]), speech([2])))
        await until(lambda: b.sink.events, PATIENCE)
        assert b.server.switchboard.hang_up(CALL)
        assert await client.answer() == "disconnect"
        await client.say("close", reason="disconnect")
        assert await client.answer() == "closed"
        await b.over()
        assert b.server.recogniser.used == 0


async def test_a_conversation_without_room_is_told_so() -> None:
    async with bridge(slots=1) as b, connect(f"{b.url}/audiohook") as ws:
        client = Client(ws)
        await client.say("open", **open_parameters())
        assert await client.answer() == "disconnect"
        assert client.answers[-1]["parameters"]["info"] == "the call was not taken: busy"
        await until(lambda: b.server.recogniser.used == 0, PATIENCE)
        await ws.close()


async def test_who_does_not_open_is_sent_away() -> None:
    async with (
        bridge(websocket={"listen": "127.0.0.1:0", "start_deadline": 0.05}) as b,
        connect(f"{b.url}/audiohook") as ws,
    ):
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(ws.recv(), PATIENCE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
