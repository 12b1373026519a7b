"""POST /calls with media: what is asked for, what is answered, and every wrong way to ask."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import Busy
from bridge.http.announce import BadAnnouncement, Wanted, parse_announcement
from bridge.media import MediaAddress, MediaRequest, SrtpKey
from tests.test_http import BEARER, TOKEN, UUID, FakeService, serving

KEY = "inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz"


def media_of(body: bytes) -> MediaRequest | None:
    wanted = parse_announcement(body, lambda: UUID)
    assert isinstance(wanted, Wanted)
    return wanted.media


def parsed(**media: object) -> MediaRequest:
    body = json.dumps({"media": {"type": "rtp", **media}}).encode()
    request = media_of(body)
    assert request is not None
    return request


def sentence(media: object) -> str:
    with pytest.raises(BadAnnouncement) as e:
        parse_announcement(json.dumps({"media": media}).encode(), lambda: UUID)
    return str(e.value)


async def test_a_port_is_asked_for_and_told() -> None:
    service = FakeService()
    asked = {
        "uuid": UUID,
        "call": "c-1",
        "leg": "callee",
        "media": {"type": "rtp", "codec": "pcma", "from": "192.0.2.1:4000", "ptime": 20},
    }
    async with serving(service, token=TOKEN) as client:
        status, answer, _ = await client.ask("POST", "/calls", json=asked, headers=BEARER)
    assert (status, answer) == (
        201,
        {
            "uuid": UUID,
            "call": "c-1",
            "leg": "callee",
            "reserved": True,
            "expires_in": 30.0,
            "media": {
                "type": "rtp",
                "address": "192.0.2.10",
                "port": 20742,
                "codec": "pcma",
                "payload_types": {"0": "pcmu/8000", "101": "telephone-event"},
            },
        },
    )
    assert service.requested == [MediaRequest("rtp", "pcma", ("192.0.2.1", 4000), {}, 0.02)]
    assert service.announced[0].leg == "callee"


async def test_the_key_of_our_reports_is_told_and_not_logged() -> None:
    service = FakeService()
    ours = SrtpKey("AES_CM_128_HMAC_SHA1_80", KEY)
    service.answer = ours
    media = {"type": "rtp", "srtp": {"suite": ours.suite, "key": KEY}}
    async with serving(service, token=TOKEN) as client:
        status, answer, _ = await client.ask(
            "POST", "/calls", json={"media": media}, headers=BEARER
        )
    assert status == 201
    assert answer["media"]["srtp"] == {"suite": ours.suite, "key": KEY}
    assert KEY not in repr(MediaAddress("192.0.2.1", 4000, 0.0, "pcmu", {}, ours))


async def test_without_media_nothing_is_different() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        status, answer, _ = await client.ask("POST", "/calls", json={"uuid": UUID}, headers=BEARER)
    assert (status, answer) == (
        201, {"uuid": UUID, "call": UUID, "leg": "caller", "reserved": True, "expires_in": 30.0},
    )  # fmt: skip
    assert service.requested == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadAnnouncement("media: codec 'opus' is not known"), 400),
        (Busy("limit", "no port of rtp.ports = 20000-20999 is free; make the range larger"), 503),
        (ValueError("this UUID's call is up already, and it is not by RTP"), 409),
    ],
)
async def test_a_port_that_cannot_be_had_is_said_why(error: Exception, status: int) -> None:
    service = FakeService()
    service.error = error
    async with serving(service, token=TOKEN) as client:
        found, answer, _ = await client.ask(
            "POST", "/calls", json={"media": {"type": "rtp"}}, headers=BEARER
        )
    why = {"reason": error.reason} if isinstance(error, Busy) else {}
    assert (found, answer) == (status, {"error": str(error), **why})


async def test_nobody_opens_a_port_without_the_token() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        status, _, _ = await client.ask("POST", "/calls", json={"media": {"type": "rtp"}})
    assert (status, service.requested) == (401, [])


def test_the_least_and_the_most_that_can_be_said() -> None:
    assert parsed() == MediaRequest()
    assert parsed(type="l16") == MediaRequest("l16")
    assert parsed(
        **{"codec": "l16/16000", "from": "[2001:DB8::1]:4000", "ptime": 12.5,
           "payload_types": {"96": "l16/16000", "101": "telephone-event"},
           "srtp": {"suite": "AES_CM_128_HMAC_SHA1_80", "key": KEY}}
    ) == MediaRequest(
        "rtp", "l16/16000", ("2001:db8::1", 4000),
        {"96": "l16/16000", "101": "telephone-event"}, 0.0125,
        SrtpKey("AES_CM_128_HMAC_SHA1_80", KEY),
    )  # fmt: skip


def test_a_key_is_never_shown() -> None:
    request = parsed(srtp={"suite": "AES_CM_128_HMAC_SHA1_80", "key": KEY})
    assert KEY not in repr(request) and KEY[7:] not in repr(request)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("192.0.2.1:4000", ("192.0.2.1", 4000)),
        ("192.0.2.1", ("192.0.2.1", None)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
        ("::ffff:192.0.2.1", ("192.0.2.1", None)),
        ("::1", ("::1", None)),
    ],
)
def test_addresses(text: str, source: tuple[str, int | None]) -> None:
    assert parsed(**{"from": text}).source == source


TYPE = 'media.type: expected "rtp", or "l16" for samples without a header'
FROM = 'media.from: expected an IP address and a port, as "192.0.2.1:4000", or the address'
KEYS = "type, codec, from, ptime, payload_types, srtp"


@pytest.mark.parametrize(
    "text",
    ["", "pbx:4000", "192.0.2.1:", "192.0.2.1:x", "192.0.2:4000", "[::1", "[::1]4000", "[::1]:",
     "192.0.2.1:+5", "192.0.2.1:٣", "fe80::1%eth0", ":4000", "1.2.3.4:5:6", "[1.2.3.4", "::1]:7",
     "[[::1]]:7"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert sentence({"type": "rtp", "from": text}) == FROM


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (None, f"media: expected an object with the keys {KEYS}"),
        ("rtp", f"media: expected an object with the keys {KEYS}"),
        ({}, TYPE),
        ({"type": "audiosocket"}, TYPE),
        ({"type": "rtp", "port": 1}, f'media."port" is not a key; the keys are {KEYS}'),
        ({"type": "rtp", "codec": 0},
         "media.codec: expected a string; leave the key out when unknown"),
        ({"type": "rtp", "codec": "x" * 257}, "media.codec: longer than 256 characters"),
        ({"type": "rtp", "from": "192.0.2.1:0"}, "media.from: a port is 1 to 65535"),
        ({"type": "rtp", "from": "192.0.2.1:65536"}, "media.from: a port is 1 to 65535"),
        ({"type": "rtp", "from": ["192.0.2.1", 1]},
         "media.from: expected a string; leave the key out when unknown"),
        ({"type": "rtp", "ptime": "20"}, "media.ptime: expected milliseconds, as 20"),
        ({"type": "rtp", "ptime": True}, "media.ptime: expected milliseconds, as 20"),
        ({"type": "rtp", "ptime": 0.02}, "media.ptime: expected 10 to 60 milliseconds"),
        ({"type": "rtp", "ptime": 61}, "media.ptime: expected 10 to 60 milliseconds"),
        ({"type": "rtp", "payload_types": ["0"]},
         'media.payload_types: expected an object, as {"96": "l16/16000"}'),
        ({"type": "rtp", "payload_types": {str(i): "pcmu" for i in range(33)}},
         "media.payload_types: more than 32 entries"),
        ({"type": "rtp", "payload_types": {"0": 1}},
         'media.payload_types."0": expected a string; leave the key out when unknown'),
        ({"type": "rtp", "srtp": KEY}, "media.srtp: expected an object with the keys suite, key"),
        ({"type": "rtp", "srtp": {"key": KEY}}, "media.srtp.suite: is missing"),
        ({"type": "rtp", "srtp": {"suite": "x"}}, "media.srtp.key: is missing"),
        ({"type": "rtp", "srtp": {"suite": "x", "key": KEY, "mki": "1"}},
         'media.srtp."mki" is not a key; the keys are suite, key'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_key(media: object, expected: str) -> None:
    assert sentence(media) == expected


def test_not_a_number_is_no_ptime() -> None:
    with pytest.raises(BadAnnouncement, match=r"^media\.ptime: expected 10 to 60 milliseconds$"):
        parse_announcement(b'{"media": {"type": "rtp", "ptime": NaN}}', lambda: UUID)


LEAF = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9)
NESTED = LEAF | st.dictionaries(st.text(max_size=9), LEAF, max_size=3) | st.lists(LEAF, max_size=3)
JSON = NESTED | st.lists(NESTED, max_size=2)
MEDIA = st.dictionaries(st.sampled_from(KEYS.split(", ")[1:]), JSON, max_size=4).map(
    lambda given: {**given, "type": "rtp"}
)


@settings(max_examples=200, deadline=None)
@given(MEDIA)
def test_any_media_is_a_request_or_a_sentence(media: Mapping[str, object]) -> None:
    try:
        request = media_of(json.dumps({"media": media}).encode())
    except BadAnnouncement as e:
        assert str(e).startswith("media") or "media" in str(e) or "same key twice" in str(e)
        assert len(str(e)) < 600
        return
    assert request is not None
    texts = [request.codec, *request.payload_types, *request.payload_types.values()]
    assert all(len(text) <= 256 and not re.search(r"[\x00-\x1f\x7f]", text) for text in texts)
    assert request.ptime is None or 0.01 <= request.ptime <= 0.06
