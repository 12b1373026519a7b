"""Twilio Media Streams: messages in, legs out; and a stream through a whole bridge."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect

from bridge.audio.g711 import encode_ulaw
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
from bridge.ingress.twilio import Twilio, twiml
from bridge.types import Pressed, Samples, Warned
from tests.sockets import bridge, pieces, said, speech

SID, CALL = "MZ" + "0" * 32, "CA" + "1" * 32


def start(tracks: Sequence[str] = ("inbound", "outbound"), **more: Any) -> dict[str, Any]:
    """As Twilio's documentation has it."""
    return {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": "AC" + "2" * 32,
            "streamSid": SID,
            "callSid": CALL,
            "tracks": list(tracks),
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"FirstName": "Jane", "from": "+15550100"},
            **more,
        },
        "streamSid": SID,
    }


def media(
    chunk: int, payload: bytes, track: str = "inbound", at: int | None = None
) -> dict[str, Any]:
    """20 ms."""
    return {
        "event": "media",
        "sequenceNumber": str(chunk + 1),
        "media": {
            "track": track,
            "chunk": str(chunk),
            "timestamp": str((chunk - 1) * 20 if at is None else at),
            "payload": base64.b64encode(payload).decode(),
        },
        "streamSid": SID,
    }


class Stream:
    """A protocol by hand."""

    def __init__(self) -> None:
        self.it = Twilio(Opening("/twilio"), SocketRules(), 0.0)

    def say(self, message: dict[str, Any]) -> list[SocketEvent]:
        return list(self.it.text(json.dumps(message).encode(), 1.0))


def test_what_came_before_nonsense_is_heard() -> None:
    stream = Stream()
    told = [json.dumps(one).encode() for one in (start(["inbound"]), media(1, b"\xff" * 160))]
    with pytest.raises(SocketError) as e:
        stream.it.texts([*told, b"nonsense", told[1]], 1.0)
    assert [type(event) for event in e.value.before] == [LegBegan, LegAudio]


def test_both_tracks_are_the_two_legs_of_one_call() -> None:
    stream = Stream()
    assert stream.say({"event": "connected", "protocol": "Call", "version": "1.0.0"}) == []
    caller, callee = stream.say(start())
    assert isinstance(caller, LegBegan) and isinstance(callee, LegBegan)
    assert (caller.leg, callee.leg, caller.call, callee.call) == ("caller", "callee", CALL, CALL)
    assert caller.info.caller == "+15550100"
    assert caller.info.extra["FirstName"] == "Jane"
    (audio,) = stream.say(media(1, b"\xff" * 160, "outbound"))
    assert isinstance(audio, LegAudio)
    assert (audio.leg, audio.frame.rate, len(audio.frame.samples)) == ("callee", 8000, 160)
    assert stream.say({"event": "stop", "stop": {}}) == [LegEnded("caller"), LegEnded("callee")]


def test_a_party_that_we_called_is_the_callee() -> None:
    (leg,) = Stream().say(start(["inbound"], customParameters={"leg": "callee"}))
    assert isinstance(leg, LegBegan) and leg.leg == "callee"


def test_gaps_are_found_by_timestamp_and_doubles_by_chunk() -> None:
    stream = Stream()
    stream.say(start(["inbound"]))

    def begin(message: dict[str, Any]) -> int:
        (audio,) = stream.say(message)
        assert isinstance(audio, LegAudio)
        return audio.frame.start

    assert begin(media(1, bytes(160))) == 0
    assert begin(media(2, bytes(160), at=23)) == 160  # a little late is no gap
    (doubled,) = stream.say(media(2, bytes(160)))
    assert isinstance(doubled, Warned) and doubled.kind == "duplicate"
    assert begin(media(4, bytes(160), at=60)) == 480
    assert begin(media(5, bytes(160), at=10**12)) == 640  # nonsense is passed over


def test_digits() -> None:
    stream = Stream()
    stream.say(start(["inbound"]))
    digit = {"event": "dtmf", "dtmf": {"track": "inbound_track", "digit": "5"}}
    assert stream.say(digit) == [LegDigit("caller", "5")]
    (bad,) = stream.say({"event": "dtmf", "dtmf": {"track": "inbound_track", "digit": "55"}})
    assert isinstance(bad, Warned)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"{", "no JSON"),
        (b"[1]", "no object"),
        (b"\xff\xfe", "no JSON"),
        (b'{"event":"start"}', "start: expected an object"),
        (b'{"event":"start","start":{"callSid":"../x"}}', "callSid: expected"),
        (json.dumps(start(mediaFormat={"encoding": "opus"})).encode(), "expected audio/x-mulaw"),
        (json.dumps(start([])).encode(), "tracks: expected"),
    ],
)
def test_what_is_no_stream_costs_the_connection(message: bytes, sentence: str) -> None:
    with pytest.raises(SocketError, match=sentence):
        Stream().it.text(message, 0.0)


def test_two_starts_and_bad_base64_cost_the_connection() -> None:
    stream = Stream()
    stream.say(start())
    with pytest.raises(SocketError, match="a second start"):
        stream.say(start())
    bad = media(1, b"")
    bad["media"]["payload"] = "not base64!"
    with pytest.raises(SocketError, match="payload in base64"):
        stream.say(bad)
    with pytest.raises(SocketError, match="no binary messages"):
        stream.it.binary(b"", 0.0)


def test_audio_before_the_start_is_passed_over() -> None:
    stream = Stream()
    (warned,) = stream.say(media(1, bytes(160)))
    assert isinstance(warned, Warned) and warned.kind == "early_media"
    assert stream.say(media(2, bytes(160))) == []


def test_who_does_not_start_is_sent_away() -> None:
    stream = Stream()
    assert stream.it.expire(4.9) == ()
    with pytest.raises(SocketError, match="nothing has started within 5 seconds"):
        stream.it.expire(5.0)


def test_twiml_names_the_url_and_nothing_gets_out_of_it() -> None:
    assert '<Stream url="wss://a.example/twilio" track="both_tracks"/>' in twiml(
        "wss://a.example/twilio"
    )
    assert "<x>" not in twiml('"><x>')


def messages(samples: Samples, track: str = "inbound") -> list[str]:
    ulaw = encode_ulaw(samples)
    return [json.dumps(media(i + 1, p, track)) for i, p in enumerate(pieces(ulaw, 160))]


async def test_a_call_of_two_parties() -> None:
    """By a client of the library's own, and not in real time."""
    ours, theirs = [7, 77, 177], [5, 55]
    async with bridge() as b:
        async with connect(f"{b.url}/twilio", compression=None) as ws:
            await ws.send(json.dumps({"event": "connected", "protocol": "Call"}))
            await ws.send(json.dumps(start()))
            inbound, outbound = messages(speech(ours)), messages(speech(theirs), "outbound")
            for i, message in enumerate(inbound):
                await ws.send(message)
                if i < len(outbound):
                    await ws.send(outbound[i])
            await ws.send(json.dumps({"event": "dtmf", "dtmf": {"track": "inbound", "digit": "1"}}))
            await ws.send(json.dumps({"event": "stop", "stop": {"callSid": CALL}}))
            await b.over()
        assert (b.sink.words("caller"), b.sink.words("callee")) == (said(ours), said(theirs))
        assert [press.digit for press in b.sink.bodies(Pressed)] == ["1"]
        assert {event.call.id for event in b.sink.events} == {CALL}
        assert b.server.recogniser.used == 0


async def test_two_streams_with_one_call_sid_are_one_call() -> None:
    async with bridge() as b:
        async with (
            connect(f"{b.url}/twilio") as one,
            connect(f"{b.url}/twilio") as two,
        ):
            await one.send(json.dumps(start(["inbound"])))
            await two.send(json.dumps(start(["outbound"])))
            for message in messages(speech([9])):
                await one.send(message)
            for message in messages(speech([99]), "outbound"):
                await two.send(message)
            await one.send(json.dumps({"event": "stop"}))
            await two.send(json.dumps({"event": "stop"}))
            await b.over()
        assert (b.sink.words("caller"), b.sink.words("callee")) == (said([9]), said([99]))


def test_encoded_speech_survives_mu_law() -> None:
    """What the tests above rely on."""
    samples = speech([1])
    assert np.abs(samples.astype(int)).max() > 1000


def test_a_timestamp_ahead_of_time_itself_makes_no_silence() -> None:
    """Or each message could cost an hour of it."""
    it = Twilio(Opening(), SocketRules(), 0.0)
    it.text(json.dumps(start(["inbound"])).encode(), 1.0)
    starts = []
    for number, at in enumerate((0, 30_000, 3_500_000)):
        media = {"track": "inbound", "chunk": str(number + 1), "timestamp": str(at)}
        said = {"event": "media", "media": {**media, "payload": "/////w=="}}
        (audio,) = it.text(json.dumps(said).encode(), 2.0)
        assert isinstance(audio, LegAudio)
        starts.append(audio.frame.start)
    assert starts == [0, 240_000, 240_004]
