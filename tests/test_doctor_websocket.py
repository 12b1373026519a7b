"""Doctor and [websocket]."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bridge.config import from_dict
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.doctor_websocket import check
from tests.certificates import DAY, write, write_good
from tests.knocks import CANARY, ISSUER, jwk, jwks, rsa_key

SECRET = CANARY * 2
KEYS = [{"name": "dialer", "secret": SECRET}, {"name": "ivr", "secret": SECRET + "2"}]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        monkeypatch.delenv(name)


async def findings(**more: Any) -> list[Finding]:
    found = await check(from_dict({"websocket": more}))
    assert CANARY not in repr(found)
    return found


async def test_without_the_section_there_is_nothing_to_say() -> None:
    assert await check(from_dict({})) == []


async def test_who_may_connect() -> None:
    assert await findings() == [
        ok("websocket", "no key is configured: this machine is served, and nobody else")
    ]
    jwt = {"audience": "a", "issuer": ISSUER, "secret": SECRET, "algorithms": ["HS256"]}
    everything = await findings(
        key=KEYS, jwt=jwt, twilio={"auth_token": SECRET}, public_url="wss://calls.example.org"
    )
    assert everything == [
        ok("websocket", f"keys: dialer, ivr; tokens of {ISSUER}; Twilio's signature of "
           "wss://calls.example.org")
    ]  # fmt: skip


async def test_keys_in_the_clear() -> None:
    found = await findings(listen="0.0.0.0:8080", allow_insecure=True, key=KEYS)
    assert found[1:] == [
        warning("websocket", "keys and voices come to 0.0.0.0:8080 in the clear",
                "fine behind a proxy with TLS or in a private network; else set tls_cert and "
                "tls_key")
    ]  # fmt: skip


async def test_a_public_key_that_is_none() -> None:
    jwt = {"audience": "a", "issuer": ISSUER, "public_key": "nonsense"}
    assert await findings(jwt=jwt) == [
        failed("websocket", "websocket.jwt.public_key: expected a public key in PEM")
    ]


async def test_a_certificate(tmp_path: Path) -> None:
    cert, key = write_good(tmp_path)
    found = await findings(tls_cert=cert, tls_key=key)
    until = (datetime.datetime.now(datetime.UTC) + 365 * DAY).strftime("%Y-%m-%d")
    assert found[1:] == [ok("certificate", f"{cert} is good until {until}")]
    now = datetime.datetime.now(datetime.UTC)
    write(tmp_path, "good", begins=now - DAY, ends=now + 3 * DAY)
    [_, soon] = await findings(tls_cert=cert, tls_key=key)
    assert (soon.status, soon.advice) == ("warning", "renew it")
    [_, none] = await findings(tls_cert=f"{cert}x", tls_key=key)
    assert none == failed(
        "certificate", f"websocket.tls_cert: {cert}x: cannot be read: No such file or directory"
    )


async def test_keys_of_a_provider() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=jwks(jwk(rsa_key(0), "a"), jwk(rsa_key(1), "b")))

    app = web.Application()
    app.router.add_get("/certs", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    where = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        jwt = {"audience": "a", "issuer": ISSUER, "jwks_url": f"http://{where}/certs"}
        assert (await findings(jwt=jwt))[1:] == [ok("jwks_url", "has 2 keys for us")]
        jwt["jwks_url"] += "x"
        advice = "without its keys no token can be judged"
        assert (await findings(jwt=jwt))[1:] == [
            failed("jwks_url", f"{where} answered 404", advice)
        ]
    finally:
        await runner.cleanup()
    assert (await findings(jwt=jwt))[1:] == [
        failed("jwks_url", f"{where} cannot be connected to", advice)
    ]
