import asyncio
import json
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bridge import __version__
from bridge.config import WebhookSettings
from bridge.contract import body, to_json
from bridge.egress import webhook as module
from bridge.egress.outbox import Outbox
from bridge.egress.webhook import ANSWER_LIMIT, TRIES, Webhook, message_id, retry_after
from bridge.errors import DeliveryError
from bridge.types import CallEvent, CallInfo, Ended, EventBody, Final, Partial, Started

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8
NOW = 1700000000.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LONG = 30.0  # seconds; nothing here takes them


def event(seq: int = 0, body: EventBody | None = None, call: str = "c-1") -> CallEvent:
    return CallEvent(CallInfo(id=call), seq, NOW, "caller", body or Final(0, "één", ()))


class Endpoint:
    """A web server on a free port that remembers what it was told."""

    def __init__(self, answer: Handler) -> None:
        self.answer = answer
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.BaseRequest)
        self.requests.append(request)  # type: ignore[arg-type]
        self.bodies.append(await request.read())
        return await self.answer(request)  # type: ignore[arg-type]

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]


@asynccontextmanager
async def endpoint(
    answer: Handler | int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Endpoint]:
    async def status(_: web.Request) -> web.Response:
        assert isinstance(answer, int)
        return web.Response(status=answer)

    found = Endpoint(status if isinstance(answer, int) else answer)
    runner = web.ServerRunner(web.Server(found.handle), shutdown_timeout=0.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        found.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook-path?key=query-value"
        yield found
    finally:
        await runner.cleanup()


@asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[Webhook]:
    settings = WebhookSettings(**{"url": url, "secret": SECRET, "timeout": LONG} | options)
    hook = Webhook(settings, wall=lambda: NOW)
    await hook.start()
    try:
        yield hook
    finally:
        await hook.close()


async def failure(hook: Webhook, seq: int = 0) -> DeliveryError:
    """What delivering raises: never with path, query or secret in it."""
    with pytest.raises(DeliveryError) as raised:
        await hook.deliver(event(seq))
    text = str(raised.value)
    for hidden in ("hook-path", "query-value", SECRET.removeprefix("whsec_"), "één"):
        assert hidden not in text
    assert raised.value.__cause__ is None
    return raised.value


def answering(status: int, **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, headers=names)

    return answer


# -- what is sent -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_a_post_with_the_event_and_its_headers(status: int) -> None:
    async with endpoint(status) as server, started(server.url) as hook:
        await hook.deliver(event(3))
        (request,) = server.requests
        assert (request.method, request.path_qs) == ("POST", "/hook-path?key=query-value")
        assert request.headers["content-type"] == "application/json"
        assert request.headers["user-agent"] == f"callscribe/{__version__}"
        assert request.headers["webhook-id"] == "c-1:webhook:127_0_0_1:3"
        assert request.headers["webhook-timestamp"] == "1700000000"
        assert server.bodies == [body(event(3))]
        assert json.loads(server.bodies[0]) == to_json(event(3))


@pytest.mark.parametrize("receiver", [SECRET, OLD_SECRET])
async def test_the_oracle_verifies_with_either_secret(
    receiver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):  # the oracle compares with today
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls.fromtimestamp(NOW, tz)

    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", Clock)
    async with endpoint(200) as server:
        async with started(server.url, previous_secret=OLD_SECRET) as hook:
            await hook.deliver(event())
        headers = dict(server.requests[0].headers)
    oracle = standardwebhooks.Webhook(receiver)
    assert oracle.verify(server.bodies[0], headers)["type"] == "transcript.final"
    for content, told in (
        (server.bodies[0].replace(b'"turn":0', b'"turn":1'), headers),
        (server.bodies[0], headers | {"webhook-id": "c-1:webhook:127_0_0_1:00"}),
        (server.bodies[0], headers | {"webhook-timestamp": str(int(NOW) + 1)}),
    ):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            oracle.verify(content, told)


async def test_another_secret_does_not_verify() -> None:
    async with endpoint(200) as server, started(server.url) as hook:
        await hook.deliver(event())
        (signature,) = server.requests[0].headers["webhook-signature"].split(" ")
        assert signature.startswith("v1,")
        other = standardwebhooks.Webhook(OLD_SECRET)
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            other.verify(server.bodies[0], dict(server.requests[0].headers))


@given(st.text(), st.text(), st.integers(0, 9))
def test_ids_are_plain(call: str, name: str, seq: int) -> None:
    found = message_id(call, name, seq)
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_-")
    assert found.endswith(f":{seq}")


def test_names_and_wishes() -> None:
    url = "https://Example.net:8443/x"
    plain = Webhook(WebhookSettings(url=url, secret=SECRET))
    assert plain.name == "webhook:example.net"
    partial = event(0, Partial(0, "", ()))
    assert plain.wants(partial)
    picky = Webhook(
        WebhookSettings(url=url, secret=SECRET, name="crm", events=["transcript.f", "call."])
    )
    assert picky.name == "crm" and not picky.wants(partial)
    assert picky.wants(event()) and picky.wants(event(0, Ended("hangup", 0, {})))


async def test_no_proxy_and_no_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with endpoint(answering(200, set_cookie="a=b; Path=/")) as server:
        async with started(server.url) as hook:
            await hook.deliver(event(0))
            await hook.deliver(event(1))
        assert len(server.requests) == 2
        assert "cookie" not in server.requests[1].headers


async def test_a_connection_is_used_again() -> None:
    async with endpoint(200) as server, started(server.url) as hook:
        peers = set()
        for seq in range(3):
            await hook.deliver(event(seq))
            transport = server.requests[-1].transport
            assert transport is not None
            peers.add(transport.get_extra_info("peername"))
        assert len(peers) == 1


async def test_before_the_start_is_a_failure() -> None:
    hook = Webhook(WebhookSettings(url="http://127.0.0.1:9/", secret=SECRET))
    assert str(await failure(hook)) == "127.0.0.1:9: the webhook is not started"
    await hook.close()


# -- statuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 408, 425, 599])
async def test_trouble_of_the_moment_is_tried_again_for_ever(status: int) -> None:
    async with endpoint(status) as server, started(server.url) as hook:
        for _ in range(TRIES + 1):
            error = await failure(hook)
            assert (error.permanent, error.gone, error.retry_after) == (False, False, None)
        assert str(error) == f"{server.url.split('/')[2]} answered {status}"
        assert len(set(server.ids)) == 1


@pytest.mark.parametrize(
    ("status", "value", "expected"),
    [
        (429, "7", 7.0),
        (503, "0", 0.0),
        (502, "Tue, 14 Nov 2023 22:15:20 GMT", 120.0),
        (504, "99999", 3600.0),
        (429, "soon", None),
        (500, "7", None),
        (404, "7", None),
    ],
)
async def test_retry_after(status: int, value: str, expected: float | None) -> None:
    async with endpoint(answering(status, retry_after=value)) as server:
        async with started(server.url) as hook:
            assert (await failure(hook)).retry_after == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        (" 12 ", 12.0),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 5000, None),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0.0),
        ("Tue, 14 Nov 2023 22:13:30 -0000", 10.0),
        ("Tue, 99 Nov 2023 22:13:30 GMT", None),
    ],
)
def test_reading_retry_after(value: str | None, expected: float | None) -> None:
    assert retry_after(value, NOW) == expected


def test_a_date_without_a_zone_is_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    try:
        assert retry_after("Tue, 14 Nov 2023 22:13:30 -0000", NOW) == 10.0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text())
def test_no_retry_after_breaks_anything(value: str) -> None:
    found = retry_after(value, NOW)
    assert found is None or 0 <= found <= 3600


async def test_a_refused_event_is_given_up_after_three_tries() -> None:
    async with endpoint(400) as server, started(server.url) as hook:
        for seq in (0, 1):
            found = [(await failure(hook, seq)).permanent for _ in range(TRIES)]
            assert found == [False, False, True]
        assert [server.ids.count(name) for name in set(server.ids)] == [3, 3]
        assert hook._tries == {}


async def test_the_memory_for_tries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES_REMEMBERED", 2)
    async with endpoint(422) as server, started(server.url) as hook:
        for seq in range(5):
            await failure(hook, seq)
        assert list(hook._tries) == server.ids[-2:]


async def test_gone_is_gone() -> None:
    async with endpoint(410) as server, started(server.url) as hook:
        error = await failure(hook)
        assert error.gone and str(error).endswith("answered 410: it wants no more events")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with endpoint(200) as elsewhere:
        async with endpoint(answering(status, location=elsewhere.url)) as server:
            async with started(server.url) as hook:
                error = await failure(hook)
        assert elsewhere.requests == [] and not error.permanent
    assert str(error) == (
        f"{server.url.split('/')[2]} answered {status}, and redirects are not followed; "
        "put the endpoint's own address into the webhook's url"
    )


# -- answers that are not ------------------------------------------------------------------------


async def test_no_answer_in_time() -> None:
    over = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    async with endpoint(hang) as server:
        async with started(server.url, timeout=0.05) as hook:
            error = await failure(hook)
        over.set()
    assert str(error) == f"{server.url.split('/')[2]} did not answer within 0.05 s"


async def test_a_reset_instead_of_an_answer() -> None:
    async def reset(request: web.Request) -> web.Response:
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
        return web.Response()

    async with endpoint(reset) as server, started(server.url) as hook:
        error = await failure(hook)
        host = server.url.split("/")[2]
        assert str(error) == f"{host} closed the connection before it answered"


async def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        async with started(f"http://{host}/hook-path") as hook:
            error = await failure(hook)
    assert str(error).startswith(f"{host} cannot be reached: ")


@asynccontextmanager
async def saying(answer: bytes, *, keep: bool = False) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A raw server: its host:port, and an event that is set when its peer has hung up."""
    over = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        try:
            await writer.drain()
            while keep and await reader.read(65536):
                pass
        except ConnectionError:
            pass
        finally:
            writer.close()
            over.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", over
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70000 + b"\r\n\r\n"],
)
async def test_something_else_than_http(answer: bytes) -> None:
    async with saying(answer) as (host, _), started(f"http://{host}/hook-path") as hook:
        error = await failure(hook)
        assert str(error).startswith(f"{host} ") and not error.permanent


@pytest.mark.parametrize("status", [200, 500])
async def test_a_slow_body_costs_its_connection_only(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_TIME", 0.02)
    answer = f"HTTP/1.1 {status} X\r\ncontent-length: 100\r\n\r\nsome".encode()
    async with saying(answer, keep=True) as (host, over):
        async with started(f"http://{host}/hook-path") as hook:
            if status == 200:
                await hook.deliver(event())
            else:
                await failure(hook)
            await asyncio.wait_for(over.wait(), LONG)


async def test_a_cut_off_body_changes_nothing() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome"
    async with saying(answer) as (host, _), started(f"http://{host}/hook-path") as hook:
        await hook.deliver(event())


async def test_a_huge_body_is_not_read() -> None:
    sent = 0
    stopped = asyncio.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(2000):
                await response.write(bytes(65536))
                sent += 65536
        finally:
            stopped.set()
        return response

    async with endpoint(flood) as server, started(server.url) as hook:
        await hook.deliver(event())
        await asyncio.wait_for(stopped.wait(), LONG)
    assert sent < 2000 * 65536  # what socket buffers took, of 131 MB


async def test_a_body_below_the_limit_keeps_the_connection_and_a_long_one_does_not() -> None:
    size = ANSWER_LIMIT - 1
    peers = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.Response(body=bytes(size))

    async with endpoint(answer) as server, started(server.url) as hook:
        for seq in range(2):
            await hook.deliver(event(seq))
        size = 16 * ANSWER_LIMIT
        for seq in range(2):
            await hook.deliver(event(seq))
    assert peers[0] == peers[1] == peers[2] != peers[3]


# -- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A certificate that nobody has reason to trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl")
    folder: Path = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


async def test_a_certificate_that_is_not_trusted(self_signed: ssl.SSLContext) -> None:
    async with endpoint(200, self_signed) as server, started(server.url) as hook:
        error = await failure(hook)
        host = server.url.split("/")[2]
        assert str(error) == f"{host}: the TLS certificate is not trusted: self-signed certificate"
        assert server.requests == [] and not error.permanent


async def test_no_tls_at_all() -> None:
    async with endpoint(200) as server:
        async with started(server.url.replace("http:", "https:")) as hook:
            error = await failure(hook)
    host = server.url.split("/")[2]
    assert str(error) == f"{host}: no TLS there, or none that we can speak"


# -- behind an outbox ---------------------------------------------------------------------------


async def test_a_flaky_endpoint_hears_everything_in_order() -> None:
    answers = [500, 429, 200, 302, 200, 400, 400, 400, 200]
    done = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        status = answers.pop(0)
        if not answers:
            done.set()
        return web.Response(status=status, headers={"retry-after": "0"})

    async with endpoint(answer) as server:
        settings = WebhookSettings(url=server.url, secret=SECRET, timeout=LONG)
        outbox = Outbox(Webhook(settings), schedule=[0.0])
        await outbox.start()
        bodies: list[EventBody] = [Started(), *(Final(turn, "", ()) for turn in range(2))]
        for seq, part in enumerate([*bodies, Ended("hangup", 0, {})]):
            outbox.put(event(seq, part))
        await asyncio.wait_for(done.wait(), LONG)
        assert await outbox.close(LONG) == 0
    seqs = [json.loads(content)["data"]["seq"] for content in server.bodies]
    assert seqs == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert json.loads(server.bodies[-1])["data"]["gap_before"] == 1
    assert outbox.counters["delivered"] == 3 and outbox.counters["failed_permanent"] == 1
