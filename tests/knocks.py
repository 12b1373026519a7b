"""Upgrade requests, and an identity provider's keys and tokens, for tests of authentication."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.auth_types import Knock

NOW = 1_800_000_000.0
ISSUER = "https://sso.example.org/realms/calls"
CANARY = "hunter2-canary-hunter2"  # no secret is ever shown


def knock(
    path: str = "/v1/listen", *, host: str = "192.0.2.7", query: dict[str, str] | None = None,
    raw_path: str = "", **headers: str,
) -> Knock:  # fmt: skip
    """Underscores in names of headers are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Knock(path, query or {}, named, host, raw_path)


def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    return _rsa_key(number, bits)


@cache
def _rsa_key(number: int, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> str:
    """The public half."""
    form = PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(Encoding.PEM, form).decode())


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public half as an identity provider shows it."""
    algorithm = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    [to_jwk] = [a.to_jwk for kind, a in algorithm.items() if isinstance(key, kind)]
    shown = json.loads(to_jwk(key.public_key()))
    shown.pop("key_ops", None)
    return {**shown, "kid": kid, "use": "sig", **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**more: Any) -> dict[str, Any]:
    """Right ones; None takes one away."""
    right = {"sub": "alice", "aud": "callscribe", "iss": ISSUER, "exp": NOW + 60, **more}
    return {name: value for name, value in right.items() if value is not None}


def token(
    key: Any = None, *, algorithm: str = "RS256", kid: str | None = None,
    header: dict[str, Any] | None = None, **more: Any,
) -> str:  # fmt: skip
    headers = {**({"kid": kid} if kid is not None else {}), **(header or {})}
    return jwt.encode(claims(**more), key or rsa_key(), algorithm, headers)


def raw_token(header: object, payload: object, signature: bytes = b"") -> str:
    """What no library would make."""
    parts = [json.dumps(part).encode() for part in (header, payload)] + [signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
