"""Asterisk's chan_websocket: its messages, as 22.10 was seen to send them, and bad ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from bridge.audio.encoders import encoder
from bridge.ingress.arrival import GAP
from bridge.ingress.asterisk import FORMATS, Asterisk
from bridge.ingress.media_socket import (
    LegAudio,
    LegBegan,
    LegDigit,
    LegEnded,
    Opening,
    SocketError,
    SocketRules,
)
from bridge.types import Announcement, CallInfo, Warned
from tests import socket_fuzz
from tests.sockets import PATIENCE, at_rate, bridge, pieces, said, speech
from tests.waiting import until

UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"


def started(form: str = "ulaw", **more: Any) -> bytes:
    """As Asterisk 22.10 sends it."""
    event = {
        "event": "MEDIA_START",
        "connection_id": "callscribe",
        "channel": "WebSocket/callscribe/0x7fae0400a550",
        "channel_id": "1764543000.7",
        "format": form,
        "optimal_frame_size": 160,
        "ptime": 20,
        "channel_variables": {
            "MEDIA_WEBSOCKET_CONNECTION_ID": "callscribe",
            "MEDIA_WEBSOCKET_OPTIMAL_FRAME_SIZE": "160",
            "CUSTOMER": "17",
        },
        **more,
    }
    return json.dumps(event).encode()


PLAIN = (
    b"MEDIA_START connection_id:callscribe channel:WebSocket/callscribe/0x7fae0400a550 "
    b"channel_id:1764543000.7 format:ulaw optimal_frame_size:160 ptime:20"
)


def opened(query: Mapping[str, str] | None = None) -> Asterisk:
    return Asterisk(Opening("/asterisk", query or {}), SocketRules(), 0.0)


def frames(events: Any) -> list[tuple[int, int, int]]:
    """(start, samples, rate)."""
    return [
        (e.frame.start, len(e.frame.samples), e.frame.rate)
        for e in events
        if isinstance(e, LegAudio)
    ]


@pytest.mark.parametrize("message", [started(), PLAIN])
def test_the_start_says_who_and_what(message: bytes) -> None:
    (began,) = opened().text(message, 0.0)
    assert isinstance(began, LegBegan)
    assert (began.leg, began.call, began.uuid) == ("caller", "", "")
    assert began.info.channel == "WebSocket/callscribe/0x7fae0400a550"
    assert began.info.uniqueid == "1764543000.7"
    assert began.info.extra["connection"] == "callscribe"
    assert "MEDIA_WEBSOCKET_CONNECTION_ID" not in began.info.extra
    assert began.info.extra.get("CUSTOMER", "17") == "17"


def test_the_url_says_leg_call_and_who_speaks() -> None:
    query = {
        "leg": "callee", "call": "c-1", "channel": "PJSIP/bob-1", "uniqueid": "1.2",
        "linkedid": "1.1", "caller": "+1\n5", "uuid": UUID,
    }  # fmt: skip
    (began,) = opened(query).text(started(), 0.0)
    assert isinstance(began, LegBegan)
    assert (began.leg, began.call, began.uuid) == ("callee", "c-1", UUID)
    info = began.info
    assert (info.channel, info.uniqueid, info.linkedid) == ("PJSIP/bob-1", "1.2", "1.1")
    assert info.caller == "+1 5"
    assert info.extra["media_channel"].startswith("WebSocket/")


def test_who_is_known_by_a_uuid_is_not_named_after_the_websocket() -> None:
    (began,) = opened({"uuid": UUID}).text(started(), 0.0)
    assert isinstance(began, LegBegan) and began.info.channel == ""


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str) -> None:
    media = opened()
    media.text(started(form), 0.0)
    name, rate = FORMATS[form]
    payload = encoder(name, rate).encode(at_rate(speech([3]), rate)[: rate // 50])
    assert frames(media.binary(payload, 0.02)) == [(0, rate // 50, rate)]


def test_audio_before_the_start_is_kept_within_a_bound() -> None:
    media = opened()
    assert media.binary(b"\xff" * 160, 0.0) == ()
    (began, *audio) = media.text(started(), 0.02)
    assert isinstance(began, LegBegan) and frames(audio) == [(0, 160, 8000)]
    media = opened()
    lost = [event for i in range(12) for event in media.binary(bytes(8000), i / 50)]
    assert [e.kind for e in lost if isinstance(e, Warned)] == ["early_media"]
    _, *audio = media.text(started(), 1.0)
    assert frames(audio) == [(0, 64000, 8000)]


def test_nobody_gets_round_the_bound_with_large_messages_after_small_ones() -> None:
    media = opened()
    for message in [b"\xff"] * 60000 + [b""] * 1000 + [b"\xff" * 60000] * 9:
        media.binary(message, 0.0)
    _, *audio = media.text(started(), 1.0)
    assert frames(audio) == [(0, 60000, 8000)]


def test_samples_are_put_together_over_messages() -> None:
    media = opened()
    media.text(started("slin"), 0.0)
    data = np.arange(100, dtype="<i2").tobytes()
    got = [
        sample
        for event in [*media.binary(data[:31], 0.1), *media.binary(data[31:], 0.1)]
        if isinstance(event, LegAudio)
        for sample in event.frame.samples.tolist()
    ]
    assert got == list(range(100))
    assert media.binary(b"", 0.2) == []


def test_where_nothing_comes_the_clock_runs_on() -> None:
    media = opened()
    media.text(started(), 0.0)
    media.binary(b"\xff" * 160, 0.02)
    assert frames(media.expire(media.next_at)) == []
    ((start, n, _),) = frames(media.expire(3.0))
    assert n == 0 and start == pytest.approx((3.0 - GAP) * 8000, abs=2)
    ((after, n, _),) = frames(media.binary(b"\xff" * 160, 5.02))
    assert n == 160 and after / 8000 == pytest.approx(5.0, abs=0.05)


def test_digits_errors_and_what_is_of_no_interest() -> None:
    media = opened()
    (early,) = media.text(b"DTMF_END digit:5", 0.0)
    assert isinstance(early, Warned) and early.kind == "bad_digit"
    media.text(started(), 0.0)
    assert media.text(b'{"event":"DTMF_END","digit":"#"}', 0.1) == (LegDigit("caller", "#"),)
    assert media.text(b"DTMF_END digit:A channel_id:x", 0.1) == (LegDigit("caller", "A"),)
    assert media.text(b"MEDIA_XOFF channel_id:x", 0.1) == ()
    assert media.text(b'{"event":"STATUS","queue_length":1}', 0.1) == ()
    (odd,) = media.text(b"SOMETHING new", 0.1)
    assert isinstance(odd, Warned) and odd.kind == "unknown_event"
    assert media.text(b"", 0.1) == ()  # each kind once
    (error,) = media.text(b'{"event":"ERROR","error_text":"bad\\ncommand"}', 0.1)
    assert isinstance(error, Warned) and error.text == "Asterisk reports: bad command"


@pytest.mark.parametrize(
    ("query", "message", "sentence"),
    [
        ({}, started("opus"), "format 'opus' is not decoded here"),
        ({}, b"MEDIA_START connection_id:x", "format '' is not decoded here"),
        ({"leg": "x"}, started(), "leg: expected caller or callee"),
        ({"call": "../x"}, started(), "call: expected up to 64"),
        ({"uuid": "x"}, started(), "uuid: expected"),
        ({}, b'{"event"', "no JSON"),
    ],
)
def test_what_cannot_be_heard_costs_the_connection(
    query: Mapping[str, str], message: bytes, sentence: str
) -> None:
    with pytest.raises(SocketError, match=sentence):
        opened(query).text(message, 0.0)


def test_two_starts_cost_the_connection() -> None:
    media = opened()
    media.text(started(), 0.0)
    with pytest.raises(SocketError, match="a second MEDIA_START"):
        media.text(PLAIN, 0.0)
    assert media.eof("protocol") == [LegEnded("caller", "protocol")]


def test_the_only_thing_said_is_hangup_as_the_peer_speaks() -> None:
    media = opened()
    media.text(started(), 0.0)
    assert media.messages() == ()
    media.hung_up("bridge")
    assert media.messages() == ['{"command":"HANGUP"}']
    media = opened()
    media.text(PLAIN, 0.0)
    media.refused("caller", "busy")
    assert media.messages() == ["HANGUP"]
    assert media.goodbye == (1013, "the call was not taken: busy")


@given(
    socket_fuzz.talks(
        [started().decode(), PLAIN.decode(), "DTMF_END digit:1", bytes(160), b"\x01\x02\x03"]
    ),
    st.sampled_from([{}, {"call": "c"}, {"leg": "callee"}, {"uuid": UUID}]),
)
def test_anything_is_events_or_an_error(talk: list[str | bytes], query: dict[str, str]) -> None:
    socket_fuzz.run(lambda: opened(query), talk)


# -- through a bridge ----------------------------------------------------------------------------


async def test_two_channels_of_one_call() -> None:
    """One after the other's format; the subprotocol is the one that Asterisk asks for."""
    ours, theirs = [7, 77, 177], [5, 55]
    async with bridge() as b:
        url = f"{b.url}/asterisk/office?call=c-9&leg="
        async with (
            connect(url + "caller", subprotocols=["media"]) as one,  # type: ignore[list-item]
            connect(url + "callee&channel=PJSIP%2Fbob-1") as two,
        ):
            assert one.subprotocol == "media" and two.subprotocol is None
            await one.send(PLAIN.decode())
            await two.send(started("slin16").decode())
            for piece in pieces(encoder("pcmu", 8000).encode(speech(ours)), 160):
                await one.send(piece)
            wide = at_rate(speech(theirs), 16000)
            for piece in pieces(encoder("l16le", 16000).encode(wide), 640):
                await two.send(piece)
            await one.send("DTMF_END digit:1")
        await b.over()
        assert (b.sink.words("caller"), b.sink.words("callee")) == (said(ours), said(theirs))
        last = b.sink.events[-1].call
        assert (last.id, last.ingress, last.extra["callee_channel"]) == (
            "c-9", "asterisk", "PJSIP/bob-1",
        )  # fmt: skip
        assert b.server.recogniser.used == 0


async def test_a_uuid_that_was_announced_is_the_call_it_was_announced_for() -> None:
    async with bridge() as b:
        info = CallInfo(id="", channel="PJSIP/alice-1")
        b.server.switchboard.announce(Announcement(UUID, "c-1", "callee", info), b.server.clock())
        async with connect(f"{b.url}/asterisk?uuid={UUID}") as ws:
            await ws.send(PLAIN.decode())
            await ws.send(encoder("pcmu", 8000).encode(speech([9])))
        await b.over()
        assert b.sink.words("callee") == said([9])
        assert (b.sink.events[-1].call.id, b.sink.events[-1].call.channel) == (
            "c-1", "PJSIP/alice-1",
        )  # fmt: skip


async def test_a_uuid_that_is_taken_gets_nothing_of_the_call_that_has_it() -> None:
    async with bridge() as b, connect(f"{b.url}/asterisk?uuid={UUID}") as first:
        await first.send(PLAIN.decode())
        await first.send(bytes(160))
        async with connect(f"{b.url}/asterisk?uuid={UUID}&channel=evil") as second:
            await second.send(PLAIN.decode())
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await second.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
        await first.close()
        await b.over()
        assert {event.call.channel for event in b.sink.events} == {""}


async def test_a_call_that_is_hung_up_here_says_hangup() -> None:
    async with bridge() as b, connect(f"{b.url}/asterisk?call=c-1") as ws:
        await ws.send(started().decode())
        await ws.send(encoder("pcmu", 8000).encode(speech([1])))
        await until(lambda: b.sink.events, PATIENCE)
        assert b.server.switchboard.hang_up("c-1")
        assert await ws.recv() == '{"command":"HANGUP"}'
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
        await b.over()
    assert b.server.recogniser.used == 0
