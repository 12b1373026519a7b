"""[websocket]: wrong keys are one line each, and a secret may be elsewhere."""

from __future__ import annotations

import hashlib
import os
import traceback
from pathlib import Path
from typing import Any

import pytest

from bridge.config import WebSocketSettings, from_dict
from bridge.config_auth import checked_origin
from bridge.errors import ConfigError
from tests.knocks import CANARY, ISSUER

HASH = hashlib.sha256(b"x").hexdigest()
KEY = {"name": "dialer", "sha256": HASH}
SECRET = CANARY * 2
JWT = {"audience": "a", "issuer": ISSUER}
HS = {**JWT, "secret": SECRET, "algorithms": ["HS256"]}
OPEN = {"listen": "0.0.0.0:8080"}
TLS = {"tls_cert": "/etc/c.pem", "tls_key": "/etc/c.key"}
ADD = (
    "add [[websocket.key]] (callscribe key new NAME makes one), [websocket.jwt] or "
    "[websocket.twilio]"
)
FAMILIES = (
    "websocket.jwt: algorithms: HS256, HS384 and HS512 go with secret, and only these; the others "
    "go with jwks_url and public_key"
)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        monkeypatch.delenv(name)


def websocket(**more: Any) -> WebSocketSettings:
    settings = from_dict({"websocket": more}).websocket
    assert settings is not None
    return settings


def problems(**more: Any) -> list[str]:
    with pytest.raises(ConfigError) as e:
        websocket(**more)
    assert CANARY not in "".join(traceback.format_exception(e.value))
    return e.value.problems


def test_defaults() -> None:
    settings = websocket()
    assert str(settings.listen) == "127.0.0.1:8080"
    assert not settings.authenticates
    assert from_dict({}).websocket is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (OPEN, "websocket: listen = '0.0.0.0:8080' is not loopback; set tls_cert and tls_key, or "
         "allow_insecure = true if the network in between is trusted"),
        ({**OPEN, "allow_insecure": True}, "websocket: listen = '0.0.0.0:8080' is not loopback "
         f"and nobody has to show a key; {ADD}"),
        ({**OPEN, **TLS}, "websocket: listen = '0.0.0.0:8080' is not loopback "
         f"and nobody has to show a key; {ADD}"),
        ({"public_url": "wss://x"}, "websocket: public_url is set and nobody has to show a key; "
         f"{ADD}"),
        ({"tls_cert": "/etc/c.pem"}, "websocket: expected tls_cert and tls_key, or neither"),
        ({"key": [{"name": "dialer"}]},
         "websocket.key.0: dialer: expected one of sha256 and secret"),
        ({"key": [{**KEY, "secret": SECRET}]},
         "websocket.key.0: dialer: expected one of sha256 and secret"),
        ({"key": [{**KEY, "sha256": CANARY}]},
         "websocket.key.0.sha256: expected 64 hexadecimal digits; make them with: callscribe key "
         "hash"),
        ({"key": [{"name": "dialer", "secret": "hunter2-canary"}]},
         "websocket.key.0: dialer: secret: expected at least 16 characters; make a key with: "
         "callscribe key new dialer"),
        ({"key": [{**KEY, "paths": ["v1"]}]},
         "websocket.key.0.paths: expected paths such as \"/v1/listen\" or \"/v1/*\", not 'v1'"),
        ({"key": [KEY, {**KEY, "sha256": "0" * 64}]},
         "websocket: key: two are called 'dialer'; give each a name of its own"),
        ({"key": [KEY, {**KEY, "name": "b"}]},
         "websocket: key: 'dialer' is the same key as another one"),
        ({"jwt": JWT}, "websocket.jwt: expected one of jwks_url, public_key and secret"),
        ({"jwt": {**HS, "jwks_url": "https://x/"}},
         "websocket.jwt: expected one of jwks_url, public_key and secret"),
        ({"jwt": {**HS, "algorithms": ["RS256"]}}, FAMILIES),
        ({"jwt": {**HS, "algorithms": ["HS256", "RS256"]}}, FAMILIES),
        ({"jwt": {**JWT, "public_key": "x", "algorithms": ["HS256"]}}, FAMILIES),
        ({"jwt": {**JWT, "public_key": "x", "algorithms": ["RS256", "HS256"]}}, FAMILIES),
        ({"jwt": {**HS, "secret": CANARY}},
         "websocket.jwt: secret: expected at least 32 bytes, and no PEM"),
        ({"jwt": {**HS, "secret": f"-----BEGIN PUBLIC KEY-----{SECRET}"}},
         "websocket.jwt: secret: expected at least 32 bytes, and no PEM"),
        ({"jwt": {**JWT, "jwks_url": "http://sso.example.org/"}},
         "websocket.jwt: jwks_url: keys must come by https:// from anything but loopback"),
        ({"jwt": {**JWT, "jwks_url": f"https://me:{CANARY}@x/"}},
         "websocket.jwt: jwks_url: expected https://host/path, with a host, without a user name"),
        ({"twilio": {"auth_token": CANARY}},
         "websocket: twilio: needs public_url, the wss:// address in your TwiML without its path: "
         "Twilio signs it"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_one_line(given: dict[str, Any], problem: str) -> None:
    assert problems(**given) == [problem]


@pytest.mark.parametrize("name", ["none", "NONE", "RS1", ""])
def test_there_are_no_other_algorithms(name: str) -> None:
    [problem] = problems(jwt={**JWT, "public_key": "x", "algorithms": [name]})
    assert problem.startswith("websocket.jwt.algorithms.0: input should be 'RS256'")


@pytest.mark.parametrize(
    "url",
    ["https://x", "ws://x", "wss://", "x", "wss://x?y", "wss://x#y", f"wss://me:{CANARY}@x",
     "wss://x:0", "wss://x:port", "wss://["],
)  # fmt: skip
def test_an_address_that_is_not_public(url: str) -> None:
    assert problems(public_url=url, key=[KEY]) == [
        'websocket.public_url: expected "wss://" and the name that the world calls us by'
    ]


@pytest.mark.parametrize(
    "given",
    [
        {**OPEN, **TLS, "key": [KEY]},
        {**OPEN, "allow_insecure": True, "jwt": HS},
        {**OPEN, **TLS, "twilio": {"auth_token": SECRET}, "public_url": "wss://x:8443/calls/"},
        {"key": [KEY, {"name": "b", "secret": SECRET}, {**KEY, "name": "c", "id": "wk-1"}]},
        {"jwt": {**JWT, "jwks_url": "http://127.0.0.1:8080/certs"}},
        {"allow_origins": ["https://x", "http://[::1]:80"], **TLS},
    ],
)
def test_what_is_right_is_taken(given: dict[str, Any]) -> None:
    settings = websocket(**given)
    assert CANARY not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("origin", "plain"),
    [
        ("HTTPS://Example.ORG", "https://example.org"), ("https://x:443", "https://x"),
        ("http://x:443", "http://x:443"), ("http://x:80", "http://x"),
        ("http://[::1]:8001", "http://[::1]:8001"), ("https://x:0443", "https://x"),
    ],
)  # fmt: skip
def test_origins_are_compared_in_one_spelling(origin: str, plain: str) -> None:
    assert checked_origin(origin) == plain


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "x", "https://", "https://x/", "https://x/y", "https://me@x", "wss://x",
     "https://x y", "https://x:port", "https://x:99999", "https://[", "https://x,https://y"],
)  # fmt: skip
def test_what_is_no_origin(origin: str) -> None:
    [problem] = problems(allow_origins=[origin])
    assert problem == (
        f'websocket.allow_origins.0: expected origins such as "https://example.org", not {origin!r}'
    )


# -- secrets elsewhere ------------------------------------------------------------------------


def test_a_secret_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    inside = websocket(key=[{"name": "a", "secret": f"file:{path}"}]).key[0]
    assert inside.digest == hashlib.sha256(SECRET.encode()).digest()
    pem = websocket(jwt={**JWT, "public_key": f"file:{path}"}).jwt
    assert pem is not None and pem.public_key == SECRET


def test_systemds_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "dialer").write_text(SECRET)
    there = "$CREDENTIALS_DIRECTORY"
    settings = websocket(
        tls_cert=f"{there}/c.pem", tls_key=f"{there}/c.key",
        key=[{"name": "a", "secret": f"file:{there}/dialer"}],
    )  # fmt: skip
    assert (settings.tls_cert, settings.tls_key) == (f"{tmp_path}/c.pem", f"{tmp_path}/c.key")
    assert settings.key[0].digest == hashlib.sha256(SECRET.encode()).digest()


def test_a_secret_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", SECRET)
    twilio = websocket(twilio={"auth_token": "env:TWILIO_AUTH_TOKEN"}, public_url="wss://x").twilio
    assert twilio is not None and twilio.tokens() == [SECRET]
    assert twilio.shared_keys() == []


def test_the_whole_section_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_WEBSOCKET__LISTEN", "127.0.0.1:9000")
    monkeypatch.setenv("BRIDGE_WEBSOCKET__KEY", f'[{{"name": "a", "sha256": "{HASH.upper()}"}}]')
    monkeypatch.setenv("BRIDGE_WEBSOCKET__JWT__AUDIENCE", "a")
    monkeypatch.setenv("BRIDGE_WEBSOCKET__JWT__ISSUER", "i")
    monkeypatch.setenv("BRIDGE_WEBSOCKET__JWT__SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_WEBSOCKET__JWT__ALGORITHMS", '["HS256"]')
    settings = from_dict({}).websocket
    assert settings is not None and settings.listen.port == 9000
    assert settings.key[0].digest == hashlib.sha256(b"x").digest()
    assert settings.jwt is not None and settings.jwt.audience == "a"


def test_secrets_that_are_not_where_they_should_be(tmp_path: Path) -> None:
    def of(secret: str) -> list[str]:
        return problems(key=[{"name": "a", "secret": secret}])

    assert of("env:NOBODY_SETS_THIS") == [
        "websocket.key.0.secret: the environment variable NOBODY_SETS_THIS is not set"
    ]
    assert of(f"file:{tmp_path}/no") == [
        f"websocket.key.0.secret: {tmp_path}/no: cannot be read: No such file or directory"
    ]
    path = tmp_path / "secret"
    for content in (b"", b"\n", b"x" * 65537):
        path.write_bytes(content)
        assert of(f"file:{path}") == [
            f"websocket.key.0.secret: {path}: expected 1 to 65536 bytes of text"
        ]
    path.write_bytes(b"\xff" * 40)
    assert of(f"file:{path}") == [f"websocket.key.0.secret: {path}: is not UTF-8 text"]
