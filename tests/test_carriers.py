"""Twilio's kin: messages as each vendor's documents show them, and bad ones.

The vectors are written after the message references of Telnyx ("Stream call media over WebSocket"),
Plivo ("Stream Event Protocol"), Exotel ("Working with the Stream and Voicebot Applet"), SignalWire
(cXML "Stream") and Vonage ("WebSockets in the Vonage Voice API").
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from bridge.audio.encoders import encoder
from bridge.ingress import exotel, plivo, signalwire, telnyx, vonage
from bridge.ingress.media_socket import (
    LegAudio,
    LegBegan,
    LegDigit,
    LegEnded,
    MediaSocket,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
)
from bridge.ingress.twilio import Twilio
from bridge.types import Samples, Warned
from tests import socket_fuzz
from tests.sockets import at_rate, bridge, pieces, said, speech

UUID = "ff55a038-6f5d-11ef-9692-02420aeffb1f"
Message = dict[str, Any]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- as documented -------------------------------------------------------------------------------


def telnyx_start(encoding: str = "PCMU", rate: int = 8000, **more: Any) -> Message:
    return {
        "event": "start",
        "sequence_number": "1",
        "stream_id": "32DE0DEA-53CB-4B21-89A4-9E1819C043BC",
        "start": {
            "user_id": "3E6F995F-85F7-4705-9741-53B116D28237",
            "call_control_id": "v2:T02llQxIyaRkhfRKxgAP8nY511EhFLizdvdUKJiSw8d6A9BborherQ",
            "call_session_id": UUID,
            "from": "+13122010094",
            "to": "+13122123456",
            "tags": ["TAG1"],
            "client_state": "aGF2ZSBhIG5pY2UgZGF5",
            "custom_parameters": {"customer_id": "c-123"},
            "media_format": {"encoding": encoding, "sample_rate": rate, "channels": 1},
            **more,
        },
    }


def telnyx_media(chunk: int, payload: bytes, track: str = "inbound") -> Message:
    return {
        "event": "media",
        "sequence_number": str(chunk + 1),
        "stream_id": "32DE0DEA-53CB-4B21-89A4-9E1819C043BC",
        "media": {
            "track": track,
            "chunk": str(chunk),
            "timestamp": str((chunk - 1) * 20),
            "payload": b64(payload),
        },
    }


def plivo_start(encoding: str = "audio/x-l16", rate: int = 8000, **more: Any) -> Message:
    return {
        "event": "start",
        "sequenceNumber": 1,
        "start": {
            "callId": UUID,
            "streamId": "87654321-4321-4321-4321-cba987654321",
            "accountId": "MAXXXXXXXXXXXXXXXXXX",
            "tracks": ["inbound", "outbound"],
            "mediaFormat": {"encoding": encoding, "sampleRate": rate},
            **more,
        },
        "extra_headers": "userId=12345;sessionId=abc-xyz",
    }


def plivo_media(chunk: int, payload: bytes, track: str = "inbound") -> Message:
    return {
        "event": "media",
        "sequenceNumber": chunk + 1,
        "streamId": "87654321-4321-4321-4321-cba987654321",
        "media": {
            "track": track,
            "timestamp": str(1705312200000 + (chunk - 1) * 20),
            "chunk": chunk,
            "payload": b64(payload),
        },
        "extra_headers": "userId=12345;sessionId=abc-xyz",
    }


def exotel_start(rate: int | str = "8000", **more: Any) -> Message:
    return {
        "event": "start",
        "sequence_number": 1,
        "stream_sid": "s-1",
        "start": {
            "stream_sid": "s-1",
            "call_sid": "a1b2c3d4e5f6",
            "account_sid": "acme1",
            "from": "+919876543210",
            "to": "08047491899",
            "custom_parameters": {"lang": "hi"},
            "media_format": {"encoding": "base64", "sample_rate": rate, "bit_rate": "128kbps"},
            **more,
        },
    }


def exotel_media(chunk: int, payload: bytes, track: str = "") -> Message:
    return {
        "event": "media",
        "sequence_number": chunk + 1,
        "stream_sid": "s-1",
        "media": {"chunk": chunk, "timestamp": str((chunk - 1) * 20), "payload": b64(payload)},
    }


def signalwire_start(encoding: str = "audio/x-mulaw", rate: int = 8000, **more: Any) -> Message:
    return {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "streamSid": "sw-1",
            "accountSid": "0d5a2d0e",
            "callSid": UUID,
            "tracks": ["inbound", "outbound"],
            "customParameters": {"from": "+15550100"},
            "mediaFormat": {"encoding": encoding, "sampleRate": rate, "channels": 1},
            **more,
        },
        "streamSid": "sw-1",
    }


def signalwire_media(chunk: int, payload: bytes, track: str = "inbound") -> Message:
    number = {"chunk": str(chunk), "timestamp": str((chunk - 1) * 20)}
    media = {"track": f"{track}_track", "payload": b64(payload), **number}
    return {"event": "media", "sequenceNumber": str(chunk), "media": media, "streamSid": "sw-1"}


@dataclass(frozen=True)
class Vendor:
    path: str
    make: Callable[[Opening, SocketRules, float], MediaSocket]
    start: Callable[..., Message]
    media: Callable[..., Message]
    encodings: dict[tuple[str, int] | tuple[int], tuple[str, int]]
    """Arguments of its start → the codec that is then sent."""
    call: str = UUID


VENDORS = {
    "telnyx": Vendor(
        "/telnyx", telnyx.Telnyx, telnyx_start, telnyx_media,
        {
            ("PCMU", 8000): ("pcmu", 8000), ("PCMA", 8000): ("pcma", 8000),
            ("G722", 8000): ("g722", 16000), ("L16", 16000): ("l16", 16000),
            ("L16", 24000): ("l16le", 24000),
        },
    ),
    "plivo": Vendor(
        "/plivo", plivo.Plivo, plivo_start, plivo_media,
        {
            ("audio/x-l16", 8000): ("l16le", 8000),
            ("audio/x-l16;rate=16000", 16000): ("l16", 16000),
            ("audio/x-mulaw", 8000): ("pcmu", 8000),
        },
    ),
    "exotel": Vendor(
        "/exotel", exotel.Exotel, exotel_start, exotel_media,
        {(8000,): ("l16le", 8000), (16000,): ("l16le", 16000)}, "a1b2c3d4e5f6",
    ),
    "signalwire": Vendor(
        "/signalwire", signalwire.SignalWire, signalwire_start, signalwire_media,
        {
            ("audio/x-mulaw", 8000): ("pcmu", 8000), ("audio/x-L16", 16000): ("l16le", 16000),
            ("audio/l16", 24000): ("l16le", 24000),
        },
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", VENDORS)
CASES = [(name, args) for name, vendor in VENDORS.items() for args in vendor.encodings]


class Stream:
    """A protocol by hand."""

    def __init__(self, name: str, **query: str) -> None:
        self.vendor = VENDORS[name]
        self.it = self.vendor.make(Opening(self.vendor.path, query), SocketRules(), 0.0)

    def say(self, message: Message | bytes, now: float = 1.0) -> list[SocketEvent]:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        return list(self.it.text(data, now))

    def begin(self, *args: Any, **more: Any) -> list[SocketEvent]:
        return self.say(self.vendor.start(*args, **more))


def starts(events: Sequence[SocketEvent]) -> list[int]:
    return [event.frame.start for event in events if isinstance(event, LegAudio)]


def places(events: Sequence[SocketEvent]) -> list[int]:
    """Where each 20 ms of 8 kHz audio lie; those that follow each other come as one frame."""
    frames = [event.frame for event in events if isinstance(event, LegAudio)]
    return [at for f in frames for at in range(f.start, f.start + len(f.samples), 160)]


def of(events: Sequence[SocketEvent], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# -- all of them ---------------------------------------------------------------------------------


@EVERY
def test_the_start_says_who_and_the_audio_is_decoded(name: str) -> None:
    stream = Stream(name)
    vendor = stream.vendor
    for args, codec in vendor.encodings.items():
        stream = Stream(name)
        began = stream.begin(*args)
        rate = codec[1]
        payload = encoder(*codec).encode(
            at_rate(speech([7]), rate)[2 * rate // 50 : 3 * rate // 50]
        )
        events = [*began, *stream.say(vendor.media(1, payload))]
        first = of(events, LegBegan)[0]
        assert (first.leg, first.call) == ("caller", vendor.call)
        (audio,) = of(events, LegAudio)
        assert (audio.leg, audio.frame.rate, audio.frame.start) == ("caller", rate, 0)
        assert len(audio.frame.samples) == rate // 50
        assert first.info.caller in ("+13122010094", "+919876543210", "+15550100", "")


@EVERY
def test_digits_stops_and_what_is_of_no_interest(name: str) -> None:
    stream = Stream(name)
    if name != "plivo":
        assert stream.say({"event": "connected", "version": "1.0.0"}) == []
    stream.begin()
    stream.say(stream.vendor.media(1, bytes(320)))
    digit = {"event": "dtmf", "dtmf": {"digit": "7", "track": "inbound"}}
    assert stream.say(digit) == [LegDigit("caller", "7")]
    (bad,) = stream.say({"event": "dtmf", "dtmf": {"digit": "77"}})
    assert isinstance(bad, Warned) and bad.kind == "bad_digit"
    (error,) = stream.say({"event": "error", "payload": {"code": 100003, "title": "malformed\n"}})
    assert isinstance(error, Warned) and error.text.endswith("100003 malformed ")
    assert LegEnded("caller") in stream.say({"event": "stop", "stop": {}})
    (late,) = stream.say(stream.vendor.media(2, bytes(320)))
    assert isinstance(late, Warned) and late.kind == "early_media"


@EVERY
def test_a_party_that_was_called_is_the_callee(name: str) -> None:
    stream = Stream(name)
    start = stream.vendor.start()
    where = "custom_parameters" if name in ("telnyx", "exotel") else "customParameters"
    if name == "plivo":
        start["extra_headers"] = "leg=callee"
    else:
        start["start"][where] = {"leg": "callee"}
    events = [*stream.say(start), *stream.say(stream.vendor.media(1, bytes(320)))]
    assert of(events, LegAudio)[0].leg == "callee"


@EVERY
@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"{", "no JSON"),
        (b"[]", "no object"),
        (b'{"event":"start"}', "start: expected an object"),
        (b'{"event":"media"}', "media: expected an object"),
        (b'{"event":"start","start":{}}', "expected up to 64 letters"),
    ],
)
def test_what_is_no_stream_costs_the_connection(name: str, message: bytes, sentence: str) -> None:
    with pytest.raises(SocketError, match=sentence):
        Stream(name).say(message)


@EVERY
def test_bad_audio_two_starts_and_binary_cost_the_connection(name: str) -> None:
    for key, value in [("payload", "not base64!"), ("chunk", "x"), ("timestamp", [])]:
        stream = Stream(name)
        stream.begin()
        bad = stream.vendor.media(1, b"")
        bad["media"][key] = value
        with pytest.raises(SocketError, match="payload in base64, chunk and timestamp"):
            stream.say(bad)
        with pytest.raises(SocketError, match="a second start"):
            stream.begin()
        with pytest.raises(SocketError, match="no binary messages"):
            stream.it.binary(b"", 0.0)


@EVERY
@pytest.mark.parametrize("rate", [11025, -1, "fast", None])
def test_rates_that_nobody_hears_cost_the_connection(name: str, rate: Any) -> None:
    stream = Stream(name)
    encoding = {"telnyx": ["L16"], "plivo": ["audio/x-l16"], "exotel": []}.get(name, ["audio/l16"])
    with pytest.raises(SocketError, match=r"has a rate of|expected a number of Hz"):
        stream.begin(*encoding, rate)


@EVERY
@given(st.data())
def test_anything_is_events_or_an_error(name: str, data: st.DataObject) -> None:
    vendor = VENDORS[name]
    valid = [
        vendor.start(), vendor.media(1, bytes(320)), vendor.media(3, bytes(320)),
        vendor.media(2, bytes(320), "outbound"), {"event": "stop"},
        {"event": "dtmf", "dtmf": {"digit": "1", "track": "inbound"}},
    ]  # fmt: skip
    talk = data.draw(socket_fuzz.talks([json.dumps(message) for message in valid]))
    socket_fuzz.run(lambda: vendor.make(Opening(vendor.path), SocketRules(), 0.0), talk)


def messages(vendor: Vendor, codec: tuple[str, int], samples: Samples, track: str) -> list[str]:
    coded = encoder(*codec)
    data = coded.encode(at_rate(samples, coded.rate))
    size = len(coded.encode(at_rate(samples, coded.rate)[: coded.rate // 50]))
    return [json.dumps(vendor.media(i + 1, p, track)) for i, p in enumerate(pieces(data, size))]


@pytest.mark.parametrize(("name", "args"), CASES)
async def test_a_call_through_a_bridge(name: str, args: tuple[Any, ...]) -> None:
    vendor, codec = VENDORS[name], VENDORS[name].encodings[args]
    ours, theirs = [7, 77, 177], [5, 55]
    both = name != "exotel"
    async with bridge() as b:
        async with connect(b.url + vendor.path, compression=None) as ws:
            await ws.send(json.dumps(vendor.start(*args)))
            inbound = messages(vendor, codec, speech(ours), "inbound")
            outbound = messages(vendor, codec, speech(theirs), "outbound") if both else []
            for i, message in enumerate(inbound):
                await ws.send(message)
                if i < len(outbound):
                    await ws.send(outbound[i])
            await ws.send(json.dumps({"event": "stop"}))
            await b.over()
        assert b.sink.words("caller") == said(ours)
        assert b.sink.words("callee") == (said(theirs) if both else "")
        last = b.sink.events[-1].call
        assert (last.id, last.ingress) == (vendor.call, name)
        assert b.server.recogniser.used == 0


# -- each one's own ------------------------------------------------------------------------------


def test_telnyx_chunks_are_put_in_order() -> None:
    stream = Stream("telnyx")
    stream.begin()

    def take(chunk: int, now: float = 1.0) -> list[int]:
        return places(stream.say(telnyx_media(chunk, bytes(160)), now))

    assert take(1) == [0]
    assert take(3) == []
    assert take(4) == []
    assert take(2) == [160, 320, 480]
    (late,) = stream.say(telnyx_media(2, bytes(160)))
    assert isinstance(late, Warned) and late.kind == "duplicate"
    # 5 is lost: what comes after it waits for 200 ms, or for eleven others.
    assert take(6, 2.0) == [] and take(7, 2.1) == []
    assert places(stream.it.expire(2.19)) == []
    assert stream.it.next_at == pytest.approx(2.2)
    assert places(stream.it.expire(2.2)) == [800, 960]
    assert [take(chunk, 3.0) for chunk in range(9, 19)] == [[]] * 10
    assert take(19, 3.0) == [160 * (chunk - 1) for chunk in range(9, 20)]
    assert take(21, 4.0) == []
    held, ended = stream.say({"event": "stop"})
    assert places([held]) == [3200] and ended == LegEnded("caller")


def test_telnyx_legs_begin_with_their_audio() -> None:
    """It does not say which tracks come."""
    stream = Stream("telnyx")
    assert stream.begin() == []
    caller, audio = stream.say(telnyx_media(1, bytes(160)))
    assert isinstance(caller, LegBegan) and isinstance(audio, LegAudio)
    assert caller.info.extra["customer_id"] == "c-123"
    assert (caller.info.callee, caller.info.extra["call_control_id"][:3]) == ("+13122123456", "v2:")
    late = telnyx_media(1, bytes(160), "outbound")
    late["media"]["timestamp"] = "5000"  # the leg begins there, and its clock with it
    callee, audio = stream.say(late)
    assert isinstance(callee, LegBegan) and callee.leg == "callee" and starts([audio]) == [0]
    with pytest.raises(SocketError, match="'OPUS' is not one of PCMU"):
        Stream("telnyx").begin("OPUS")


def test_telnyx_without_a_session_is_known_by_its_control_id() -> None:
    stream = Stream("telnyx")
    stream.begin(call_session_id=None)
    (caller, _) = stream.say(telnyx_media(1, bytes(160)))
    assert isinstance(caller, LegBegan) and caller.call.startswith("v2:")


def test_plivo_times_are_of_the_clock_on_the_wall() -> None:
    stream = Stream("plivo")
    caller, callee = stream.begin()
    assert isinstance(caller, LegBegan) and isinstance(callee, LegBegan)
    assert caller.info.extra["userId"] == "12345"
    assert starts(stream.say(plivo_media(1, bytes(320)))) == [0]
    assert starts(stream.say(plivo_media(4, bytes(320)))) == [480]
    assert starts(stream.say(plivo_media(3, bytes(320), "outbound"))) == [320]
    assert stream.say({"event": "playedStream", "name": "x"}) == []


def test_exotel_takes_the_rate_of_the_url_where_the_start_says_none() -> None:
    stream = Stream("exotel", **{"sample-rate": "16000"})
    stream.begin(media_format={})
    (audio,) = of(stream.say(exotel_media(1, bytes(640))), LegAudio)
    assert (audio.frame.rate, len(audio.frame.samples)) == (16000, 320)


def test_signalwire_is_twilio_with_linear_audio() -> None:
    assert issubclass(signalwire.SignalWire, Twilio)
    with pytest.raises(SocketError, match=r"expected audio/x-mulaw or audio/x-l16"):
        Stream("signalwire").begin("opus")


# -- Vonage --------------------------------------------------------------------------------------


def connected(rate: int = 16000, **headers: Any) -> str:
    content = f"audio/l16;rate={rate}"
    return json.dumps({"event": "websocket:connected", "content-type": content, **headers})


def vonage_leg() -> vonage.Vonage:
    return vonage.Vonage(Opening("/vonage"), SocketRules(), 0.0)


def test_vonage_says_its_format_and_the_headers_of_the_ncco() -> None:
    leg = vonage_leg()
    (early,) = leg.binary(bytes(640), 0.0)
    assert isinstance(early, Warned) and early.kind == "early_media"
    headers = {"conversation_uuid": "CON-1", "from": "447700900000", "prop1": "value1"}
    (began,) = leg.text(connected(**headers).encode(), 0.1)
    assert isinstance(began, LegBegan)
    assert (began.call, began.leg, began.info.caller) == ("CON-1", "caller", "447700900000")
    assert began.info.extra["prop1"] == "value1"
    (audio,) = leg.binary(bytes(640), 0.12)
    assert isinstance(audio, LegAudio)
    assert (audio.frame.rate, len(audio.frame.samples)) == (16000, 320)
    assert leg.text(b'{"event":"websocket:dtmf","digit":"5","duration":260}', 0.2) == (
        LegDigit("caller", "5"),
    )
    assert leg.text(b'{"event":"websocket:cleared"}', 0.2) == ()
    assert starts(leg.expire(5.0)) != []
    with pytest.raises(SocketError, match="a second websocket:connected"):
        leg.text(connected().encode(), 0.2)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (connected().replace("l16", "opus"), "expected audio/l16;rate=16000"),
        (connected(11025), "has a rate of"),
        (connected(leg="x"), "leg: expected"),
        (connected(call="../x"), "call: expected"),
        ("hello", "no JSON"),
    ],
)
def test_vonage_with_another_format_costs_the_connection(message: str, sentence: str) -> None:
    with pytest.raises(SocketError, match=sentence):
        vonage_leg().text(message.encode(), 0.0)


@given(
    socket_fuzz.talks(
        [
            connected(),
            connected(8000, call="c"),
            '{"event":"websocket:dtmf","digit":"1"}',
            bytes(640),
        ]
    )
)
def test_vonage_anything_is_events_or_an_error(talk: list[str | bytes]) -> None:
    socket_fuzz.run(vonage_leg, talk)


async def test_vonage_through_a_bridge() -> None:
    async with bridge() as b:
        async with connect(f"{b.url}/vonage/office") as ws:
            await ws.send(connected(8000, leg="callee", call="c-1"))
            for piece in pieces(speech([7, 77]).astype("<i2").tobytes(), 320):
                await ws.send(piece)
            await ws.send('{"event":"websocket:dtmf","digit":"5","duration":260}')
        await b.over()
        assert b.sink.words("callee") == said([7, 77])
        assert (b.sink.events[-1].call.id, b.sink.events[-1].call.ingress) == ("c-1", "vonage")
