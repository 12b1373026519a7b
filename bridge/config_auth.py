"""Settings of who may open a WebSocket: keys, tokens, Twilio's signature, origins.

Every secret may stand in the file itself, or as ``file:PATH`` or ``env:NAME``.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from bridge.config_fields import Address, Section

LONGEST_FILE = 65536  # bytes
SHORTEST_KEY = 16  # characters of an API key: it is stored as a plain hash
SHORTEST_HMAC = 32  # bytes of an HS256 secret (RFC 7518 §3.2)
KEY_NAME, KEY_ID = "[A-Za-z0-9._-]{1,64}", "[A-Za-z0-9._@-]{1,128}"
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def resolved(value: object) -> object:
    """What ``file:PATH`` and ``env:NAME`` stand for, without the last line's end.

    In PATH ``$CREDENTIALS_DIRECTORY`` is where systemd puts a service's secrets.
    """
    if not isinstance(value, str):
        return value
    kind, _, name = value.partition(":")
    if kind == "env":
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]
    if kind != "file":
        return value
    try:
        with Path(os.path.expandvars(name)).open("rb") as file:
            data = file.read(LONGEST_FILE + 1)
        text = data.decode("utf-8").rstrip("\r\n")
    except OSError as e:
        raise ValueError(f"{name}: cannot be read: {e.strerror}") from None
    except ValueError:
        raise ValueError(f"{name}: is not UTF-8 text") from None
    if not text or len(data) > LONGEST_FILE:
        raise ValueError(f"{name}: expected 1 to {LONGEST_FILE} bytes of text")
    return text


def checked_origin(value: str) -> str:
    """``https://host`` in lower case, without the port where it is the scheme's own."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = re.fullmatch(r"[a-z]+://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?", value.lower())
    if parts.scheme not in ("http", "https") or plain is None:
        raise ValueError(f'expected origins such as "https://example.org", not {value[:100]!r}')
    suffix = "" if port is None or port == _PORTS[parts.scheme] else f":{port}"
    return f"{parts.scheme}://{plain[1]}{suffix}"


def checked_public_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        host = parts.hostname if parts.port != 0 else None  # a port that is none raises
    except ValueError:
        host = None
    wrong = host is None or parts.scheme != "wss" or parts.query or parts.fragment
    if wrong or parts.username is not None:
        # Not shown: a password may be in it.
        raise ValueError('expected "wss://" and the name that the world calls us by')
    return value.rstrip("/")


def checked_sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("expected 64 hexadecimal digits; make them with: callscribe key hash")
    return value.lower()


def check_path(values: list[str]) -> list[str]:
    for value in values:
        if not value.startswith("/"):
            raise ValueError(f'expected paths such as "/v1/listen" or "/v1/*", not {value!r}')
    return values


Text = Annotated[str, Field(min_length=1, max_length=512)]
Hidden = Annotated[SecretStr, BeforeValidator(resolved), Field(min_length=1)]


class Limits(Section):
    """What each key, subject or signer may do."""

    max_connections: int = Field(default=4096, ge=1)  # at once
    rate: float = Field(default=0.0, ge=0, le=100_000)  # new connections a second; 0: any number
    paths: Annotated[list[str], AfterValidator(check_path)] = Field(default_factory=list)


class KeySettings(Limits):
    """[[websocket.key]]"""

    name: str = Field(pattern=f"^{KEY_NAME}$")  # in logs; as the user of Basic
    # Of a key of two parts; None: one part, or `name` where a client sends two
    id: Annotated[str, Field(pattern=f"^{KEY_ID}$")] | None = None
    sha256: Annotated[str, AfterValidator(checked_sha256)] | None = None
    secret: Hidden | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        if self.secret is not None:
            return hashlib.sha256(self.secret.get_secret_value().encode()).digest()
        return bytes.fromhex(self.sha256 or "")

    @model_validator(mode="after")
    def _checks(self) -> KeySettings:
        if (self.sha256 is None) == (self.secret is None):
            raise ValueError(f"{self.name}: expected one of sha256 and secret")
        if self.secret is not None and len(self.secret.get_secret_value()) < SHORTEST_KEY:
            raise ValueError(
                f"{self.name}: secret: expected at least {SHORTEST_KEY} characters; make a key "
                f"with: callscribe key new {self.name}"
            )
        return self


Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "HS256", "HS384", "HS512",
]  # fmt: skip


class JwtSettings(Limits):
    """[websocket.jwt]: absent section, no tokens."""

    algorithms: list[Algorithm] = Field(default=["RS256"], min_length=1)
    audience: Text
    issuer: Text
    # One of these three:
    jwks_url: Text | None = None
    public_key: Annotated[str, BeforeValidator(resolved)] | None = None  # PEM
    secret: Hidden | None = None  # of HS256
    max_lifetime: float = Field(default=300.0, gt=0, le=86400)  # s that exp may be ahead
    leeway: float = Field(default=10.0, ge=0, le=300)  # s between the clocks
    one_time: bool = False  # jti is required, and works once
    name_claim: Text = "sub"  # who it is, in logs and for limits
    jwks_refresh: float = Field(default=300.0, ge=10, le=86400)  # s

    @model_validator(mode="after")
    def _checks(self) -> JwtSettings:
        if sum(x is not None for x in (self.jwks_url, self.public_key, self.secret)) != 1:
            raise ValueError("expected one of jwks_url, public_key and secret")
        symmetric = [name.startswith("HS") for name in self.algorithms]
        if any(symmetric) != (self.secret is not None) or any(symmetric) != all(symmetric):
            raise ValueError(
                "algorithms: HS256, HS384 and HS512 go with secret, and only these; the others go "
                "with jwks_url and public_key"
            )
        if self.secret is not None:
            text = self.secret.get_secret_value()
            if len(text.encode()) < SHORTEST_HMAC or text.lstrip().startswith("-----BEGIN"):
                raise ValueError(f"secret: expected at least {SHORTEST_HMAC} bytes, and no PEM")
        if self.jwks_url is not None:
            _check_jwks_url(self.jwks_url)
        return self


def _check_jwks_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https") or parts.username is not None:
        raise ValueError("jwks_url: expected https://host/path, with a host, without a user name")
    if parts.scheme == "http" and not Address(host, 0).loopback:
        raise ValueError("jwks_url: keys must come by https:// from anything but loopback")


class TwilioSettings(Limits):
    """[websocket.twilio]: absent section, no signatures of Twilio's."""

    auth_token: Hidden
    previous_auth_token: Hidden | None = None  # also taken, while Twilio changes over
    shared_key: Hidden | None = None  # of a webhook rule: HMAC-SHA256
    previous_shared_key: Hidden | None = None

    def tokens(self) -> list[str]:
        """Those of the account."""
        return _shown(self.auth_token, self.previous_auth_token)

    def shared_keys(self) -> list[str]:
        """Those of webhook rules."""
        return _shown(self.shared_key, self.previous_shared_key)


def _shown(*secrets: SecretStr | None) -> list[str]:
    return [secret.get_secret_value() for secret in secrets if secret is not None]


class AuthSettings(Section):
    """The part of a listener's settings that says who may come in."""

    public_url: Annotated[str, AfterValidator(checked_public_url)] | None = None
    allow_origins: list[Annotated[str, AfterValidator(checked_origin)]] = Field(
        default_factory=list
    )
    max_connections_per_address: int = Field(default=4096, ge=1)
    max_failures: int = Field(default=20, ge=0, le=10_000)  # a minute, per address; 0: any number
    failure_wait: float = Field(default=60.0, gt=0, le=3600)  # s
    key: list[KeySettings] = Field(default_factory=list)
    jwt: JwtSettings | None = None
    twilio: TwilioSettings | None = None

    @property
    def authenticates(self) -> bool:
        """Whether anybody has to show anything; if not, only this machine is served."""
        return bool(self.key or self.jwt or self.twilio)

    @model_validator(mode="after")
    def _keys_differ(self) -> Any:
        names = [key.name for key in self.key]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"key: two are called {name!r}; give each a name of its own")
        secrets = [(key.id, key.digest) for key in self.key]
        for key, secret in zip(self.key, secrets, strict=True):
            if secrets.count(secret) > 1:
                raise ValueError(f"key: {key.name!r} is the same key as another one")
        if self.twilio is not None and self.public_url is None:
            raise ValueError(
                "twilio: needs public_url, the wss:// address in your TwiML without its path: "
                "Twilio signs it"
            )
        return self
