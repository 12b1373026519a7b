"""What people and tools ask over HTTP, and what nobody gets to do with it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
import uvloop
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDictProxy
from prometheus_client.parser import text_string_to_metric_families

from bridge.errors import Busy, ConfigError, DeliveryError
from bridge.http.access import Access, Refusal, is_loopback
from bridge.http.announce import BadAnnouncement, Wanted, parse_announcement
from bridge.http.app import Health, HttpServer, Limits, make_app
from bridge.http.listener import Connection
from bridge.media import MediaAddress, MediaRequest, SrtpKey
from bridge.metrics import Metrics
from bridge.types import Announcement, CallInfo, LegName

UUID = "40325ec2-5efd-4bd3-805f-53576e581d13"
TOKEN = "correct horse battery staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
GOOD = Health(True, True, True, (), {"engine": "ok", "ami": "ok"}, 2, 8, 3, 2000)
SHORT = 0.02  # seconds, where a deadline is to pass


class FakeService:
    """A server with one call."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.state = GOOD
        self.announced: list[Announcement] = []
        self.requested: list[MediaRequest] = []
        self.hung_up: list[str] = []
        self.paused: list[tuple[str, str | None, bool]] = []
        self.tapped: list[tuple[str, str, str | None, bool]] = []
        self.error: Exception | None = None
        self.answer: SrtpKey | None = None  # of our own
        self.words = "caller: hello <script>alert(1)</script>\n"

    def info(self) -> dict[str, object]:
        return {"name": "callscribe", "version": "1.2.3", "engine": "tones", "slots": 8}

    def health(self) -> Health:
        return self.state

    def calls(self) -> list[dict[str, object]]:
        if self.error is not None:
            raise self.error
        return [{"id": UUID}]

    def call(self, id: str) -> dict[str, object] | None:
        return {"id": id, "legs": {}} if id in (UUID, "a/b") else None

    def text(self, id: str) -> str | None:
        return self.words if id == UUID else None

    def announce(self, announcement: Announcement) -> float:
        if self.error is not None:
            raise self.error
        self.announced.append(announcement)
        return 30.0

    def open_media(self, announcement: Announcement, request: MediaRequest) -> MediaAddress:
        if self.error is not None:
            raise self.error
        self.announced.append(announcement)
        self.requested.append(request)
        types = {0: "pcmu/8000", 101: "telephone-event"}
        return MediaAddress("192.0.2.10", 20742, 30.0, request.codec or "pcmu", types, self.answer)

    def tap(self, channel: str, call: str, leg: str | None, *, consents: bool) -> str:
        if self.error is not None:
            raise self.error
        self.tapped.append((channel, call, leg, consents))
        return call or "made-up"

    def pause(self, id: str, leg: LegName | None, *, resume: bool) -> dict[str, bool] | None:
        self.paused.append((id, leg, resume))
        return {"caller": not resume} if id == UUID else None

    def listened(self, id: str, *, plain: bool) -> dict[str, object] | None:
        text = "a b" if plain else "a, b"
        found = {"status": "heard", "confidence": 0.93, "language": "en", "text": text}
        return dict(found) if id == UUID else None

    def rules(self, id: str) -> dict[str, object]:
        return {"rules": [], "spent": []}

    def hang_up(self, id: str) -> bool:
        self.hung_up.append(id)
        return id == UUID

    def counted(self, sample: str, **labels: str) -> float:
        body, _ = self.metrics.exposition()
        return sum(
            s.value
            for family in text_string_to_metric_families(body.decode())
            for s in family.samples
            if s.name == f"callscribe_{sample}" and s.labels == labels
        )


def announced(body: bytes) -> Announcement:
    wanted = parse_announcement(body, lambda: UUID)
    assert isinstance(wanted, Wanted)
    return wanted.announcement


class Client:
    """A session against one server, and its address for raw connections."""

    def __init__(self, session: aiohttp.ClientSession, port: int, server: HttpServer) -> None:
        self.session, self.port, self.server = session, port, server

    async def ask(
        self, method: str, path: str, **options: Any
    ) -> tuple[int, Any, CIMultiDictProxy[str]]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, **options) as response:
            body = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, json.loads(body) if body and is_json else body, response.headers

    async def raw(self, data: bytes) -> bytes:
        """Send `data`, and read until the server closes."""
        reader, writer = await self.open()
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
        return answer

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def serving(
    service: FakeService, *, token: str | None = None, **options: Any
) -> AsyncIterator[Client]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(make_app(service, token=token, **options), sock)
    port = sock.getsockname()[1]
    await server.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:
            yield Client(session, port, server)
    finally:
        await server.close()


# -- health -------------------------------------------------------------------------------------

DRAINING = replace(GOOD, ready=False, reasons=("draining",))
STARTING = replace(GOOD, ready=False, started=False, reasons=("the engine is loading",))
NO_DISK = replace(GOOD, checks={"outbox": "failing: the disk is full"})
DEAD = replace(GOOD, ready=False, live=False, reasons=("the loop hangs",))


@pytest.mark.parametrize(
    ("path", "state", "expected", "body"),
    [
        ("/healthz", GOOD, 200, {"live": True}),
        ("/healthz", DRAINING, 200, {"live": True}),
        ("/healthz", DEAD, 503, {"live": False}),
        ("/health/live", DEAD, 503, {"live": False}),
        ("/readyz", GOOD, 200, {"ready": True, "reasons": []}),
        ("/readyz", DRAINING, 503, {"ready": False, "reasons": ["draining"]}),
        (
            "/readyz",
            NO_DISK,
            200,
            {
                "ready": True,
                "reasons": [],
                "warnings": ["outbox: failing: the disk is full"],
            },
        ),
        ("/health/ready", DRAINING, 503, {"ready": False, "reasons": ["draining"]}),
        ("/health/startup", STARTING, 503, {"started": False}),
        ("/health/startup", DRAINING, 200, {"started": True}),
    ],
)
async def test_probes(path: str, state: Health, expected: int, body: dict[str, object]) -> None:
    service = FakeService()
    service.state = state
    async with serving(service) as client:
        assert (await client.ask("GET", path))[:2] == (expected, body)


@pytest.mark.parametrize(
    ("state", "expected", "word"),
    [
        (GOOD, 200, "healthy"),
        (DRAINING, 200, "not ready"),
        (STARTING, 200, "starting"),
        (DEAD, 503, "unhealthy"),
    ],
)
async def test_health_in_the_form_of_plain_websocket_clients(
    state: Health, expected: int, word: str
) -> None:
    service = FakeService()
    service.state = replace(state, checks={"websocket": "ok"})
    async with serving(service) as client:
        status, body, _ = await client.ask("GET", "/health")
    assert (status, body["status"], body["websocket_available"]) == (expected, word, True)
    assert body["service"] == "callscribe"
    assert type(body["timestamp"]) is int


async def test_status_in_the_form_of_session_clients() -> None:
    service = FakeService()
    model = {"model_size": "tones", "device": "cpu", "compute_type": "default"}
    service.state = replace(GOOD, waiting=1, model=model)
    service.metrics.call_started("stt")
    service.metrics.call_refused("busy")
    for stage, seconds in (("partial", 0.4), ("final", 0.9), ("final", 1.0)):
        service.metrics.word_latency(stage, seconds)
    async with serving(service) as client:
        status, body, _ = await client.ask("GET", "/health/status")
    assert status == 200
    assert body == {
        "status": "ready",
        "accepting_requests": True,
        "reasons": [],
        "checks": {"engine": "ok", "ami": "ok"},
        "model": {
            "name": "tones",
            "model_size": "tones",
            "device": "cpu",
            "compute_type": "default",
            "ready": True,
        },
        "queue": {
            "depth": 1,
            "avg_partial_ms": 400.0,
            "avg_final_ms": 905.0,
            "estimated_server_total_ms": 905.0,
            "accepting_requests": True,
            "total_requests": 2,
            "rejected_requests": 1,
        },
        "sessions": {"active": 3, "max": 2000},
        "capacity": {"estimated_max_concurrent": 8, "current_load_percent": 25.0},
    }


async def test_status_without_slots_divides_by_nothing() -> None:
    service = FakeService()
    service.state = replace(GOOD, slots=0, used=0)
    async with serving(service) as client:
        _, body, _ = await client.ask("GET", "/health/status")
    assert body["capacity"]["current_load_percent"] == 0


@pytest.mark.parametrize("path", ["/", "/info"])
async def test_info(path: str) -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        assert (await client.ask("GET", path))[:2] == (200, service.info())


async def test_metrics_are_what_prometheus_reads() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        await client.ask("GET", "/readyz")
        status, body, headers = await client.ask("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"] == service.metrics.exposition()[1]
    assert "callscribe_calls_started" in {f.name for f in text_string_to_metric_families(body)}
    assert service.counted("http_responses_total", status="200") == 2


# -- reading calls ------------------------------------------------------------------------------


async def test_calls_are_shown_to_this_machine() -> None:
    async with serving(FakeService()) as client:
        assert (await client.ask("GET", "/calls"))[:2] == (200, {"calls": [{"id": UUID}]})
        assert (await client.ask("GET", f"/calls/{UUID}"))[1] == {"id": UUID, "legs": {}}
        assert (await client.ask("GET", "/calls/a%2Fb"))[0] == 200


async def test_a_calls_text_is_never_markup() -> None:
    async with serving(FakeService()) as client:
        status, body, headers = await client.ask("GET", f"/calls/{UUID}/text")
    assert (status, body) == (200, "caller: hello <script>alert(1)</script>\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/calls/nobody", "/calls/nobody/text"])
async def test_an_unknown_call(path: str) -> None:
    async with serving(FakeService()) as client:
        status, body, _ = await client.ask("GET", path)
    sentence = "no call has this id, or it ended too long ago; GET /calls lists them"
    assert (status, body) == (404, {"error": sentence})


READING = [
    ("GET", "/calls"),
    ("GET", f"/calls/{UUID}"),
    ("GET", f"/calls/{UUID}/text"),
    ("GET", f"/calls/{UUID}/rules"),
]
WRITING = [
    ("POST", "/calls"),
    ("DELETE", f"/calls/{UUID}"),
    ("POST", f"/calls/{UUID}/rules"),
    ("DELETE", f"/calls/{UUID}/rules/r"),
]


WRONG: list[Any] = [
    {},
    {"Authorization": TOKEN},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": f"Bearer {TOKEN}x"},
    [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer wrong")],
]


@pytest.mark.parametrize(("method", "path"), READING + WRITING)
async def test_without_the_token_calls_are_out_of_reach(method: str, path: str) -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        for given_headers in WRONG:
            status, body, headers = await client.ask(method, path, headers=given_headers)
            assert status == 401, given_headers
            assert body == {"error": "send the configured token as Authorization: Bearer"}
            assert headers["WWW-Authenticate"] == 'Bearer realm="callscribe"'
    assert (service.announced, service.hung_up) == ([], [])
    assert service.counted("http_responses_total", status="401") == len(WRONG)


async def test_a_token_in_bytes_that_are_not_utf8_is_just_wrong() -> None:
    async with serving(FakeService(), token=TOKEN) as client:
        answer = await client.raw(
            b"GET /calls HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Authorization: Bearer \xff\xfe\r\n\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(("method", "path"), READING)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_with_the_token_calls_are_shown(method: str, path: str, scheme: str) -> None:
    async with serving(FakeService(), token=TOKEN) as client:
        header = {"Authorization": f"{scheme} {TOKEN}"}
        assert (await client.ask(method, path, headers=header))[0] == 200


@pytest.mark.parametrize(("method", "path"), WRITING)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, BEARER])
async def test_without_a_configured_token_nobody_changes_anything(
    method: str, path: str, headers: dict[str, str]
) -> None:
    service = FakeService()
    async with serving(service) as client:
        status, body, _ = await client.ask(method, path, headers=headers)
    assert status == 403
    assert body["error"].startswith("no token is configured: set http.token")
    assert (service.announced, service.hung_up) == ([], [])


async def test_a_tokens_line_end_is_none_of_it() -> None:
    async with serving(FakeService(), token=f"{TOKEN}\n") as client:
        assert (await client.ask("GET", "/calls", headers=BEARER))[0] == 200


@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match=r"^http.token: is empty"):
        make_app(FakeService(), token=token)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
async def test_a_proxy_on_this_machine_does_not_make_its_peers_local(header: str) -> None:
    async with serving(FakeService()) as client:
        status, body, _ = await client.ask("GET", "/calls", headers={header: "127.0.0.1"})
    assert status == 403
    assert body["error"].startswith("calls are shown to this machine only")


@pytest.mark.parametrize("remote", ["192.0.2.7", "2001:db8::1", "", None, "::ffff:192.0.2.7"])
def test_another_machine_needs_a_token(remote: str | None) -> None:
    request = make_mocked_request("GET", "/calls").clone(remote=remote or "")
    with pytest.raises(Refusal, match="this machine only"):
        Access(None, ()).check_reading(request)
    with pytest.raises(Refusal, match="configured token"):
        Access(TOKEN, ()).check_reading(request)
    Access(TOKEN, ()).check_reading(make_mocked_request("GET", "/calls", BEARER))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_loopback(address: str) -> None:
    assert is_loopback(address)
    assert not is_loopback(address.replace("127", "128").replace("::1", "::2"))


# -- announcing and hanging up --------------------------------------------------------------------


async def test_announce() -> None:
    service = FakeService()
    body = {
        "uuid": UUID.upper(),
        "call": "asterisk-1700000000.12",
        "leg": "callee",
        "channel": "PJSIP/bob-00000002",
        "uniqueid": "1700000000.13",
        "linkedid": "1700000000.12",
        "caller": "Zoë <100>",
        "callee": "200",
        "extra": {"campaign": "spring"},
    }
    async with serving(service, token=TOKEN) as client:
        status, answer, _ = await client.ask("POST", "/calls", json=body, headers=BEARER)
    call = "asterisk-1700000000.12"
    expected = {"uuid": UUID, "call": call, "leg": "callee", "reserved": True, "expires_in": 30.0}
    assert (status, answer) == (201, expected)
    info = CallInfo(
        id="",
        channel="PJSIP/bob-00000002",
        uniqueid="1700000000.13",
        linkedid="1700000000.12",
        caller="Zoë <100>",
        callee="200",
        extra={"campaign": "spring"},
    )
    assert service.announced == [Announcement(UUID, "asterisk-1700000000.12", "callee", info)]


async def test_announce_makes_a_uuid_that_nobody_can_guess() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        answers = [
            (await client.ask("POST", "/calls", data=b"{}", headers=BEARER))[1] for _ in range(2)
        ]
    made = [uuid.UUID(answer["uuid"]) for answer in answers]
    assert made[0] != made[1]
    assert all(each.version == 4 for each in made)
    assert [a.uuid for a in service.announced] == [str(each) for each in made]
    assert answers[0] == {
        "uuid": str(made[0]),
        "call": str(made[0]),
        "leg": "caller",
        "reserved": True,
        "expires_in": 30.0,
    }


KEYS = (
    "uuid, call, leg, channel, uniqueid, linkedid, caller, callee, extra, recording_consent, "
    "listen, media, tap"
)
BAD: list[tuple[bytes, str]] = [
    (b"", 'the body is not JSON, for example {"leg": "caller"}'),
    (b"leg=caller", 'the body is not JSON, for example {"leg": "caller"}'),
    (b'{"leg": "caller"', 'the body is not JSON, for example {"leg": "caller"}'),
    (b'{"caller": "\xff"}', 'the body is not JSON, for example {"leg": "caller"}'),
    (b"[" * 16_000, 'the body is not JSON, for example {"leg": "caller"}'),
    (b'["leg"]', 'the body is not a JSON object, for example {"leg": "caller"}'),
    (b'{"leg": "caller", "leg": "callee"}', "the body has the same key twice in one object"),
    (b'{"Leg": "caller"}', f'"Leg" is not a key; the keys are {KEYS}'),
    (b'{"<b>\\n": 1}', f'"<b>\\n" is not a key; the keys are {KEYS}'),
    (
        json.dumps({"k" * 99: 1}).encode(),
        f'"{"k" * 40}\\u2026" is not a key; the keys are {KEYS}',
    ),
    (b'{"leg": "both"}', 'leg: expected "caller" or "callee"'),
    (b'{"leg": null}', 'leg: expected "caller" or "callee"'),
    (b'{"leg": ["caller"]}', 'leg: expected "caller" or "callee"'),
    (b'{"uuid": "1234"}', "uuid: expected 36 characters, 8-4-4-4-12 hexadecimal digits"),
    (
        json.dumps({"uuid": UUID.replace("-", "")}).encode(),
        "uuid: expected 36 characters, 8-4-4-4-12 hexadecimal digits",
    ),
    (b'{"uuid": null}', "uuid: expected a string; leave the key out when unknown"),
    (b'{"call": 12}', "call: expected a string; leave the key out when unknown"),
    (b'{"channel": true}', "channel: expected a string; leave the key out when unknown"),
    (json.dumps({"callee": "5" * 257}).encode(), "callee: longer than 256 characters"),
    (
        json.dumps({"caller": "x\r\nAction: Originate"}).encode(),
        "caller: has control characters, line ends or lone surrogates",
    ),
    (
        json.dumps({"call": "x\u2028y"}).encode(),
        "call: has control characters, line ends or lone surrogates",
    ),
    (
        b'{"linkedid": "\\ud800"}',
        "linkedid: has control characters, line ends or lone surrogates",
    ),
    (b'{"extra": []}', "extra: expected an object of strings"),
    (b'{"extra": {"": "x"}}', "extra: a key is empty"),
    (b'{"extra": {"n": 1}}', 'extra."n": expected a string; leave the key out when unknown'),
    (
        json.dumps({"extra": {"n\n": "1"}}).encode(),
        "a key of extra: has control characters, line ends or lone surrogates",
    ),
    (
        json.dumps({"extra": {"n" * 257: "1"}}).encode(),
        "a key of extra: longer than 256 characters",
    ),
    (json.dumps({"extra": {"n": "1" * 257}}).encode(), 'extra."n": longer than 256 characters'),
    (
        json.dumps({"extra": {str(i): "" for i in range(17)}}).encode(),
        "extra: more than 16 entries",
    ),
    (b"{" + b" " * 16_384 + b"}", "the body is longer than 16384 bytes"),
]


@pytest.mark.parametrize(("body", "sentence"), BAD, ids=[sentence[:30] for _, sentence in BAD])
async def test_a_wrong_announcement_says_what_is_wrong(body: bytes, sentence: str) -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        status, answer, _ = await client.ask("POST", "/calls", data=body, headers=BEARER)
    assert (status, answer) == (400, {"error": sentence})
    assert service.announced == []


def test_the_longest_announcement_is_taken() -> None:
    body = {key: "é" * 256 for key in ("call", "channel", "uniqueid", "linkedid", "caller")}
    whole = json.dumps({**body, "extra": {f"{i:0256}": "x" * 256 for i in range(16)}}).encode()
    announcement = announced(whole.ljust(16_384))
    assert announcement.info.channel == "é" * 256
    assert len(announcement.info.extra) == 16


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
KEY = st.sampled_from(KEYS.split(", ")) | st.text(max_size=9)


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=60)
    | st.dictionaries(KEY, JSON, max_size=5).map(lambda d: json.dumps(d).encode())
)
def test_any_body_is_an_announcement_or_a_sentence(body: bytes) -> None:
    try:
        announcement = announced(body)
    except BadAnnouncement as e:
        str(e).encode("utf-8")  # a lone surrogate could not be answered
        assert 5 < len(str(e)) < 600
        return
    info = announcement.info
    texts = [announcement.call, info.channel, info.uniqueid, info.linkedid, info.caller]
    texts += [info.callee, *info.extra, *info.extra.values()]
    assert all(len(text) <= 256 and not re.search(r"[\x00-\x1f\x7f]", text) for text in texts)
    assert announcement.leg in ("caller", "callee")
    assert str(uuid.UUID(announcement.uuid)) == announcement.uuid


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (Busy("busy", "no free slot"), 503, "no free slot"),
        (ValueError("this uuid is already announced"), 409, "this uuid is already announced"),
    ],
)
async def test_an_announcement_that_cannot_be_taken(
    error: Exception, status: int, sentence: str
) -> None:
    service = FakeService()
    service.error = error
    async with serving(service, token=TOKEN) as client:
        got, body, headers = await client.ask("POST", "/calls", json={}, headers=BEARER)
    why = {"reason": error.reason} if isinstance(error, Busy) else {}
    assert (got, body) == (status, {"error": sentence, **why})
    assert headers.get("Retry-After") == ("5" if status == 503 else None)


@pytest.mark.parametrize("compressed", [b"\x1f\x8b\x08\x00" + bytes(20)])
async def test_a_compressed_body_is_not_unpacked(compressed: bytes) -> None:
    async with serving(FakeService(), token=TOKEN) as client:
        headers = {**BEARER, "Content-Encoding": "gzip"}
        status, _, _ = await client.ask("POST", "/calls", data=compressed, headers=headers)
    assert status == 400


async def test_hang_up() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        status, body, _ = await client.ask("DELETE", f"/calls/{UUID}", headers=BEARER)
        assert (status, body) == (204, "")
        status, body, _ = await client.ask("DELETE", "/calls/nobody", headers=BEARER)
    sentence = "no running call has this id; GET /calls lists the calls"
    assert (status, body) == (404, {"error": sentence})
    assert service.hung_up == [UUID, "nobody"]


# -- errors and headers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing/<b>", 404, None),
        ("GET", "/calls/", 404, None),
        ("PUT", "/calls", 405, "GET,HEAD,POST"),
        ("POST", "/metrics", 405, "GET,HEAD"),
        ("OPTIONS", "/", 405, "GET,HEAD"),
    ],
)
async def test_errors_are_json(method: str, path: str, status: int, allow: str | None) -> None:
    async with serving(FakeService(), token=TOKEN) as client:
        got, body, headers = await client.ask(method, path)
    assert got == status
    assert list(body) == ["error"]
    assert "<b>" not in body["error"]
    assert headers.get("Allow") == allow


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/calls", f"/calls/{UUID}/text", "/nothing", "/readyz"]
)
async def test_every_answer_keeps_browsers_and_caches_out(path: str) -> None:
    async with serving(FakeService()) as client:
        for method in ("GET", "HEAD", "PATCH"):
            _, _, headers = await client.ask(method, path)
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert headers["Server"] == "callscribe", "nobody needs to know the versions"
            assert "Access-Control-Allow-Origin" not in headers


async def test_our_own_fault_says_nothing_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    service = FakeService()
    service.error = RuntimeError("my card number is 4111")
    async with serving(service, token=TOKEN) as client:
        with caplog.at_level(logging.DEBUG):
            status, body, _ = await client.ask("GET", "/calls?secret", headers=BEARER)
    assert (status, body) == (500, {"error": "the bridge failed at this; its log says where"})
    assert "GET /calls: RuntimeError" in caplog.text
    assert "in calls" in caplog.text, "the stack is there"
    for secret in ("4111", TOKEN, "secret"):
        assert secret not in caplog.text


# -- names: DNS rebinding -------------------------------------------------------------------------


async def ask_host(client: Client, *hosts: str) -> bytes:
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    answer = await client.raw(f"GET /calls HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
    return answer.split(b" ")[1]


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:8001", "localhost.", "127.0.0.1:8001", "127.8.8.8",
        "[::1]:8001", "bridge.localhost", "pbx.example", "PBX.example:80",
    ],
)  # fmt: skip
async def test_known_names_are_answered(host: str) -> None:
    async with serving(FakeService(), hosts=["pbx.example"]) as client:
        assert await ask_host(client, host) == b"200"


FOREIGN = (
    "evil.example", "evil.example:8001", "localhost.evil.example", "127.0.0.1.evil.example",
    "192.0.2.1", "evil.example@127.0.0.1", "[::2]", "::1", "127.0.0.1:x", "", "127.1",
    "2130706433", "notlocalhost", "x.pbx.example",
)  # fmt: skip


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_foreign_name_on_loopback_is_refused(token: str | None) -> None:
    async with serving(FakeService(), token=token, hosts=["pbx.example"]) as client:
        for host in FOREIGN:
            assert await ask_host(client, host) == b"403", host


async def test_two_names_are_refused() -> None:
    async with serving(FakeService()) as client:
        status = await ask_host(client, "localhost", "evil.example")
    assert status in (b"403", b"400")  # 400: aiohttp has refused it before us


async def test_a_probe_without_a_name_is_answered() -> None:
    async with serving(FakeService()) as client:
        assert (await client.raw(b"GET /readyz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 OK")


def test_on_other_addresses_any_name_is_answered() -> None:
    transport = Mock(**{"get_extra_info.return_value": ("192.0.2.1", 8001)})
    request = make_mocked_request("GET", "/", {"Host": "pod-7.example"}, transport=transport)
    Access(None, ()).check_host(request)


# -- peers that cost too much ---------------------------------------------------------------------


async def test_what_is_not_http_is_refused_and_not_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        with caplog.at_level(logging.DEBUG):
            answer = await client.raw(b"GET / HTTP/1.1\r\nAuthorization Bearer hunter2\r\n\r\n")
            await client.raw(b"\x10\x01\x40hunter2\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"400"
    assert json.loads(body) == {"error": "this is not an HTTP request"}
    assert b"hunter2" not in answer
    assert "hunter2" not in caplog.text
    assert service.counted("connections_refused_total", reason="protocol") == 2


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
async def test_a_peer_that_never_asks_is_cut(sent: bytes) -> None:
    service = FakeService()
    async with serving(service, limits=Limits(first=SHORT)) as client:
        reader, writer = await client.open()
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    assert service.counted("connections_refused_total", reason="deadline") == 1


async def test_an_idle_connection_is_closed_and_blamed_on_nobody() -> None:
    service = FakeService()
    async with serving(service, limits=Limits(idle=SHORT)) as client:
        answer = await client.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert service.counted("connections_refused_total", reason="deadline") == 0


async def test_a_slow_body_is_not_waited_for() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN, limits=Limits(body=SHORT)) as client:
        reader, writer = await client.open()
        writer.write(
            b"POST /calls HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
            + b'{"leg": '
        )
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in answer
    assert service.announced == []


POST = f"POST /calls HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


async def test_a_broken_body_is_its_senders_fault(caplog: pytest.LogCaptureFixture) -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        answer = await client.raw(POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
    assert answer.split(b" ")[1] == b"400"
    assert (service.announced, caplog.text) == ([], "")


async def test_a_peer_that_leaves_while_it_asks_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = asyncio.Event()
    connection_lost = Connection.connection_lost

    def seen(connection: Connection, exc: BaseException | None) -> None:
        connection_lost(connection, exc)
        lost.set()

    monkeypatch.setattr(Connection, "connection_lost", seen)
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        reader, writer = await client.open()
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), 5)
        writer.write(b'{"leg')
        writer.transport.abort()
        await asyncio.wait_for(lost.wait(), 5)
        for _ in range(5):
            await asyncio.sleep(0)  # the handler's turn
    assert (service.announced, caplog.text) == ([], "")


async def test_a_peer_that_does_not_read_its_answer_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aborted = asyncio.Event()
    abort = Connection.abort

    def seen(connection: Connection) -> None:
        abort(connection)
        aborted.set()

    monkeypatch.setattr(Connection, "abort", seen)
    service = FakeService()
    service.words = "word " * 4_000_000  # more than both sockets' buffers hold
    async with serving(service, limits=Limits(idle=0.3)) as client:
        reader, writer = await client.open()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"GET /calls/{UUID}/text HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await asyncio.wait_for(aborted.wait(), 5)
        writer.transport.abort()
        assert not client.server._connections


async def test_connections_are_bounded() -> None:
    service = FakeService()
    async with serving(service, limits=Limits(connections=2)) as client:
        held = [await client.open() for _ in range(2)]
        for _, writer in held:  # accepted only once it is answered
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for reader, _ in held:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        refused = await client.raw(b"")
        head, _, body = refused.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in head
        assert json.loads(body) == {"error": "too many connections; ask again in a second"}
        assert service.counted("connections_refused_total", reason="limit") == 1
        reader, writer = held[0]
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await asyncio.wait_for(reader.read(), 5)
        assert (await client.ask("GET", "/healthz"))[0] == 200, "its place is free again"
        for _, writer in held:
            writer.close()


async def test_close_lets_go_of_everything() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    server = HttpServer(make_app(FakeService(), token=None), sock)
    await server.start()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"}"), 5)
    await server.close()
    await server.close()
    assert await asyncio.wait_for(reader.read(), 5) == b"", "idle connections are closed"
    assert sock.fileno() == -1
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    writer.close()


async def test_close_before_start() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    await HttpServer(make_app(FakeService(), token=None), sock).close()
    assert sock.fileno() == -1


def test_it_runs_on_uvloop() -> None:
    async def run() -> None:
        async with serving(FakeService(), limits=Limits(connections=1)) as client:
            assert (await client.ask("GET", "/readyz"))[0] == 200
            assert (await client.raw(b"")).startswith(b"HTTP/1.1 503 ")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# -- taps ----------------------------------------------------------------------------------------


async def test_a_channel_is_tapped() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        for body, tapped in (
            ({"channel": "PJSIP/alice-00000001"}, ("PJSIP/alice-00000001", "", None, False)),
            ({"channel": "1.2", "call": "c-1", "leg": "callee"}, ("1.2", "c-1", "callee", False)),
            ({"channel": "1.2", "recording_consent": True}, ("1.2", "", None, True)),
        ):
            status, answer, _ = await client.ask(
                "POST", "/calls", json={"tap": True, **body}, headers=BEARER
            )
            call = tapped[1] or "made-up"
            assert (status, answer) == (201, {"call": call, "channel": tapped[0]})
            assert service.tapped.pop() == tapped


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LookupError("there is no channel PJSIP/x"), 404),
        (DeliveryError("ARI is connecting"), 503),
        (BadAnnouncement("tap: this bridge has no ARI"), 400),
    ],
)
async def test_a_tap_that_cannot_be_says_why(error: Exception, status: int) -> None:
    service = FakeService()
    service.error = error
    async with serving(service, token=TOKEN) as client:
        found, answer, _ = await client.ask(
            "POST", "/calls", json={"tap": True, "channel": "PJSIP/x"}, headers=BEARER
        )
        assert (found, answer["error"]) == (status, str(error))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"tap": 1, "channel": "x"}, "tap: expected true or false"),
        (
            {"tap": True, "channel": "x", "recording_consent": "no"},
            "recording_consent: expected true or false",
        ),
        ({"tap": True}, "channel: tap needs the name or the unique id of a channel"),
        (
            {"tap": True, "channel": "x", "media": {"type": "rtp"}},
            "media: does not go with tap; only tap, channel, call, leg, recording_consent do",
        ),
        ({"tap": True, "channel": "x", "leg": "third"}, 'leg: expected "caller" or "callee"'),
        (
            {"tap": True, "channel": "x\r\ny"},
            "channel: has control characters, line ends or lone surrogates",
        ),
    ],
)
def test_a_tap_that_makes_no_sense_is_refused(body: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadAnnouncement) as e:
        parse_announcement(json.dumps(body).encode(), lambda: UUID)
    assert str(e.value) == sentence


def test_no_tap_is_an_announcement() -> None:
    assert announced(b'{"tap": false, "channel": "x"}').info.channel == "x"
