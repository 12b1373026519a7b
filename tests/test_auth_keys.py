"""A real provider of keys on loopback: right, new, down, slow, huge, and lying."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bridge import auth_keys
from bridge.auth import Auth, Credential, Denied, Secret
from bridge.auth_keys import LONGEST, ProviderKeys, admit, make_keys
from bridge.auth_ring import ASK_AGAIN
from bridge.config_auth import AuthSettings
from tests.certificates import write_good
from tests.knocks import ISSUER, NOW, jwk, jwks, knock, rsa_key, token
from tests.waiting import until


class Provider:
    """Answers with `answer`, or as `lie` says."""

    def __init__(self) -> None:
        self.answer = jwks(jwk(rsa_key(0), "a"))
        self.lie: Any = None
        self.asked = 0
        self.let_go = asyncio.Event()
        self.runner: web.AppRunner | None = None
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/certs"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.lie is not None:
            return await self.lie(request)  # type: ignore[no-any-return]
        return web.Response(body=self.answer, content_type="application/json")

    async def up(self, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_get("/{tail:.*}", self.handle)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        self.scheme = "https" if tls else "http"
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=tls)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def down(self) -> None:
        self.let_go.set()
        if self.runner is not None:
            await self.runner.cleanup()


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    served = Provider()
    await served.up()
    yield served
    await served.down()


class Door:
    """An `Auth`, and what fetches its keys."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        jwt = {"audience": "callscribe", "issuer": ISSUER, "jwks_url": url}
        settings = AuthSettings.model_validate({"jwt": jwt, "max_failures": 0})
        self.clock = Clock()
        self.auth = Auth(settings)
        assert settings.jwt is not None and self.auth.jwt is not None
        assert self.auth.jwt.ring is not None
        self.ring = self.auth.jwt.ring
        self.keys = ProviderKeys(settings.jwt, self.ring, clock=self.clock, tls=tls)

    async def admit(self, text: str) -> str:
        credentials: list[Credential] = [Secret(text, "")]
        who = await admit(self.auth, self.keys, knock(), credentials, self.clock)
        return who.name

    async def denied(self, text: str) -> tuple[int, str]:
        with pytest.raises(Denied) as e:
            await self.admit(text)
        return e.value.status, e.value.reason


@contextlib.asynccontextmanager
async def door(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Door]:
    opened = Door(url, tls)
    try:
        yield opened
    finally:
        await opened.keys.close()


async def test_the_first_token_fetches_the_keys(provider: Provider) -> None:
    async with door(provider.url) as d:
        assert await d.admit(token(kid="a")) == "alice"
        assert await d.admit(token(kid="a")) == "alice"
        assert provider.asked == 1
        assert d.keys.counters == {"fetched": 1}


async def test_keys_are_there_before_the_first_token(provider: Provider) -> None:
    async with door(provider.url) as d:
        d.keys.start()
        await until(lambda: len(d.ring))
        assert await d.admit(token(kid="a")) == "alice"
        assert d.auth.counters == {"accepted_jwt": 1}


async def test_a_new_key_is_fetched_when_a_token_names_it(provider: Provider) -> None:
    async with door(provider.url) as d:
        await d.admit(token(kid="a"))
        provider.answer = jwks(jwk(rsa_key(1), "b"))
        assert await d.denied(token(rsa_key(1), kid="b")) == (401, "jwt_key")  # just been asked
        d.clock.now += ASK_AGAIN
        assert await d.admit(token(rsa_key(1), kid="b")) == "alice"
        assert await d.denied(token(kid="a")) == (401, "jwt_key")
        assert provider.asked == 2


async def test_many_strange_tokens_ask_once(provider: Provider) -> None:
    async with door(provider.url) as d:
        denials = await asyncio.gather(*(d.denied(token(kid=f"x{i}")) for i in range(50)))
        assert set(denials) == {(401, "jwt_key")}
        for i in range(50):
            assert await d.denied(token(kid=f"y{i}")) == (401, "jwt_key")
        assert provider.asked == 1


async def test_a_provider_that_is_down(provider: Provider) -> None:
    """The last keys stay, and new ones are found when it is back."""
    async with door(provider.url) as d:
        await d.admit(token(kid="a"))
        await provider.down()
        d.clock.now += ASK_AGAIN
        assert await d.denied(token(rsa_key(1), kid="b")) == (503, "jwt_keys_away")
        assert await d.admit(token(kid="a")) == "alice"
        assert d.keys.counters == {"fetched": 1, "failed": 1}
        provider.answer = jwks(jwk(rsa_key(1), "b"))
        await provider.up()
        d.clock.now += ASK_AGAIN
        assert await d.admit(token(rsa_key(1), kid="b")) == "alice"


async def test_a_provider_that_was_never_there(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    await provider.down()
    async with door(provider.url) as d:
        assert await d.denied(token(kid="a")) == (503, "jwt_keys_away")
    assert caplog.messages == [
        f"websocket.jwt.jwks_url: 127.0.0.1:{provider.port} cannot be connected to; 0 keys of "
        "before go on being used"
    ]


async def test_a_slow_provider_keeps_nobody_waiting(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_keys, "PATIENCE", 0.05)

    async def slow(request: web.Request) -> web.StreamResponse:
        await provider.let_go.wait()
        return web.Response(body=provider.answer)

    provider.lie = slow
    async with door(provider.url) as d:
        denials = await asyncio.gather(*(d.denied(token(kid="a")) for _ in range(20)))
        assert set(denials) == {(503, "jwt_key_unknown")}
        assert provider.asked == 1
        provider.let_go.set()
        await until(lambda: len(d.ring))  # the request went on
        assert await d.admit(token(kid="a")) == "alice"


async def test_a_provider_that_never_answers(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auth_keys, "TIMEOUT", 0.05)

    async def never(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"keys": [')
        await provider.let_go.wait()
        return response

    provider.lie = never
    async with door(provider.url) as d:
        assert await d.denied(token(kid="a")) == (503, "jwt_keys_away")
    assert " did not answer within 0.05 s; " in caplog.text


async def test_a_huge_answer_is_not_read_to_its_end(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0

    async def huge(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while sent < 100 * LONGEST:
                await response.write(b" " * 65536)
                sent += 65536
        return response

    provider.lie = huge
    async with door(provider.url) as d:
        assert await d.denied(token(kid="a")) == (503, "jwt_keys_away")
    await provider.down()
    assert sent < 90 * LONGEST
    assert f" answers with more than {LONGEST} bytes; " in caplog.text


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (500, b"", "answered 500"),
        (404, jwks(jwk(rsa_key(0), "a")), "answered 404"),
        (204, b"", "answered 204"),
        (200, b"<html>hunter2</html>", "is not a JSON Web Key Set"),
        (200, b'{"keys": []}', "has no key for RS256: correct websocket.jwt.algorithms, or "
         "jwks_url"),
    ],
)  # fmt: skip
async def test_an_answer_of_no_use(
    status: int, body: bytes, sentence: str, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    provider.lie = answer
    async with door(provider.url) as d:
        assert await d.denied(token(kid="a")) == (503, "jwt_keys_away")
    assert f"127.0.0.1:{provider.port} {sentence}; 0 keys" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_redirect_is_not_followed(provider: Provider) -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        assert request.path == "/certs"
        raise web.HTTPFound("/metadata")

    provider.lie = elsewhere
    async with door(provider.url) as d:
        assert await d.denied(token(kid="a")) == (503, "jwt_keys_away")
        assert provider.asked == 1


async def test_it_is_asked_again_and_again(provider: Provider) -> None:
    async with door(provider.url) as d:
        d.keys._period = 0.01
        d.keys.start()
        await until(lambda: provider.asked >= 3)
        await provider.down()
        await until(lambda: d.keys.counters["failed"] >= 2)
        await provider.up()
        asked = provider.asked
        await until(lambda: provider.asked > asked)
        assert await d.admit(token(kid="a")) == "alice"


async def test_closing_in_the_middle_leaves_nobody_waiting(provider: Provider) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await provider.let_go.wait()
        return web.Response()

    provider.lie = slow
    async with door(provider.url) as d:
        d.keys.start()
        waiting = asyncio.create_task(d.denied(token(kid="a")))
        await until(lambda: provider.asked)
        await d.keys.close()
        assert await waiting == (503, "jwt_keys_away")


async def test_tls_of_the_provider_is_checked(tmp_path: Path) -> None:
    cert, key = write_good(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    provider = Provider()
    await provider.up(server)
    try:
        async with door(provider.url) as d:
            assert await d.denied(token(kid="a")) == (503, "jwt_keys_away")
        async with door(provider.url, ssl.create_default_context(cafile=cert)) as d:
            assert await d.admit(token(kid="a")) == "alice"
    finally:
        await provider.down()


async def test_who_needs_no_keys_fetches_none() -> None:
    settings = AuthSettings.model_validate({"key": [{"name": "dialer", "secret": "s" * 32}]})
    auth = Auth(settings)
    assert make_keys(auth, settings.jwt) is None
    who = await admit(auth, None, knock(), [Secret("s" * 32, "")])
    assert who.name == "dialer"


async def test_the_clock_of_tokens_is_the_calendar(provider: Provider) -> None:
    settings = AuthSettings.model_validate(
        {"jwt": {"audience": "callscribe", "issuer": ISSUER, "jwks_url": provider.url}}
    )
    auth = Auth(settings)
    keys = make_keys(auth, settings.jwt)
    assert keys is not None
    try:
        text = token(kid="a", exp=time.time() + 60)
        assert (await admit(auth, keys, knock(), [Secret(text, "")])).name == "alice"
    finally:
        await keys.close()
