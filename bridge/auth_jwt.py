"""JSON Web Tokens (RFC 7519, with the advice of RFC 8725). Pure; the only file that knows PyJWT.

PyJWT checks the signature, against algorithms of our choice and a key of ours: what the token
says of algorithms and keys only ever selects among these. The claims are read here, because
PyJWT would look at the clock, and because it takes more for a time than we do.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from bridge.auth_ring import LONGEST_ID, KeyRing
from bridge.auth_types import Denied
from bridge.config_auth import JwtSettings
from bridge.errors import ConfigError

SHORTEST_RSA = 2048  # bits (RFC 7518 §3.3)
MOST_USED = 65536  # one-time tokens remembered: 8 MB
LONGEST_NAME = 128  # characters of a subject, and of a jti


@dataclass(frozen=True, slots=True)
class Claims:
    """What is used of a token that is right."""

    name: str
    expires: float
    once: bytes | None  # to be remembered, where tokens work once


class JwtVerifier:
    """Raises `ConfigError` on a key that is none. `ring`: the keys of a jwks_url, else None."""

    def __init__(self, settings: JwtSettings) -> None:
        self._settings = settings
        self._jws = jwt.PyJWS(options={"enforce_minimum_key_length": True})
        self._used = UsedTokens()
        self._key: Any = None
        self.ring: KeyRing | None = None
        if settings.secret is not None:
            self._key = settings.secret.get_secret_value()
        elif settings.public_key is not None:
            self._key = _public_key(settings.public_key, list(settings.algorithms))
        else:
            self.ring = KeyRing(list(settings.algorithms), _from_jwk)

    def verify(self, token: str, now: float) -> Claims:
        """`now`: Unix time. Raises `Denied`; `KeysWanted` if the key may be new."""
        payload = self._payload(token, now)
        try:
            claims = json.loads(payload)
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            _wrong("jwt_malformed", "the token has no claims")
        return self._checked(claims, now)

    def use(self, claims: Claims, now: float) -> None:
        """A token that works once is used up. Raises `Denied` the second time."""
        if claims.once is not None:
            self._used.use(claims.once, claims.expires + self._settings.leeway, now)

    def _payload(self, token: str, now: float) -> bytes:
        """Of a token whose signature is right."""
        try:
            header = self._jws.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            _wrong("jwt_malformed", "the token is malformed")
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self._settings.algorithms:
            names = ", ".join(self._settings.algorithms)
            _wrong("jwt_algorithm", f"tokens must be signed with {names}")
        if "crit" in header or "b64" in header:  # RFC 7515 §4.1.11: we understand none
            _wrong("jwt_malformed", "the token uses extensions that are not understood here")
        if key_id is not None and (not isinstance(key_id, str) or len(key_id) > LONGEST_ID):
            _wrong("jwt_malformed", "the token's kid is not a short text")
        key = self._key if self.ring is None else self.ring.find(key_id, algorithm, now).material
        try:
            payload = self._jws.decode(token, key, algorithms=[algorithm])
        except (jwt.PyJWTError, ValueError, TypeError):
            _wrong("jwt_signature", "the token's signature is wrong")
        assert isinstance(payload, bytes)
        return payload

    def _checked(self, claims: Mapping[str, Any], now: float) -> Claims:
        settings = self._settings
        expires = _time(claims, "exp")
        if expires is None:
            _wrong("jwt_lifetime", "the token must say when it expires (exp)")
        if now >= expires + settings.leeway:
            _wrong("jwt_expired", "the token has expired")
        if expires > now + settings.max_lifetime + settings.leeway:
            _wrong(
                "jwt_lifetime",
                f"the token must expire within {settings.max_lifetime:g} s "
                "(websocket.jwt.max_lifetime)",
            )
        for name in ("nbf", "iat"):
            begins = _time(claims, name)
            if begins is not None and begins > now + settings.leeway:
                _wrong("jwt_early", f"the token is not valid yet ({name})")
        if claims.get("iss") != settings.issuer:
            _wrong("jwt_issuer", "the token is of another issuer (iss)")
        audience = claims.get("aud")
        if settings.audience not in (audience if isinstance(audience, list) else [audience]):
            _wrong("jwt_audience", "the token is for somebody else (aud)")
        return Claims(self._name(claims), expires, self._once(claims))

    def _name(self, claims: Mapping[str, Any]) -> str:
        name = claims.get(self._settings.name_claim)
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            claim = self._settings.name_claim
            _wrong("jwt_subject", f"the token must say whose it is ({claim})")
        return name

    def _once(self, claims: Mapping[str, Any]) -> bytes | None:
        if not self._settings.one_time:
            return None
        jti = claims.get("jti")
        if not isinstance(jti, str) or not 0 < len(jti) <= LONGEST_NAME:
            _wrong("jwt_replay", "the token must have an id of its own (jti)")
        return hashlib.sha256(jti.encode("utf-8", "surrogatepass")).digest()


class UsedTokens:
    """Ids of one-time tokens until they expire; a restart forgets them."""

    def __init__(self, most: int = MOST_USED) -> None:
        self._most = most
        self._ids: set[bytes] = set()
        self._by_end: list[tuple[float, bytes]] = []  # a heap

    def __len__(self) -> int:
        return len(self._ids)

    def use(self, token: bytes, until: float, now: float) -> None:
        """Raises `Denied` if it is used already, or if no more can be remembered."""
        while self._by_end and self._by_end[0][0] <= now:
            self._ids.discard(heapq.heappop(self._by_end)[1])
        if token in self._ids:
            _wrong("jwt_replay", "the token works once, and has been used")
        if len(self._ids) >= self._most:
            raise Denied(
                503,
                "too many one-time tokens are in use; try again",
                reason="jwt_table_full",
                retry_after=max(1.0, self._by_end[0][0] - now),
            )
        self._ids.add(token)
        heapq.heappush(self._by_end, (until, token))


def _wrong(reason: str, sentence: str) -> NoReturn:
    raise Denied(401, sentence, reason=reason, wrong=True) from None


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate, None if absent. JSON's NaN and Infinity, true and text are none."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        _wrong("jwt_malformed", f"the token's {name} is no time")
    if not -1e12 < value < 1e12 or math.isnan(value):
        _wrong("jwt_malformed", f"the token's {name} is no time")
    return float(value)


def _public_key(pem: str, algorithms: list[str]) -> object:
    """Raises `ConfigError`: the key must go with every algorithm that is pinned."""
    where = "websocket.jwt.public_key"
    try:
        key = load_pem_public_key(pem.encode())
    except Exception:  # whatever cryptography makes of it: it is none
        raise ConfigError([f"{where}: expected a public key in PEM"]) from None
    for name in algorithms:
        try:
            prepared = jwt.PyJWS().get_algorithm_by_name(name).prepare_key(key)
            _check_length(prepared)
        except (jwt.PyJWTError, ValueError, TypeError) as e:
            why = str(e) if type(e) is ValueError else "is of another kind"
            raise ConfigError([f"{where}: {why}; it is to verify {name}"]) from None
    return key


def _from_jwk(jwk: Mapping[str, Any], algorithm: str) -> object:
    try:
        key = jwt.PyJWK(dict(jwk), algorithm).key
    except (jwt.PyJWTError, TypeError, KeyError, AttributeError):
        raise ValueError("is no key") from None
    _check_length(key)
    return key


def _check_length(key: object) -> None:
    if isinstance(key, RSAPublicKey) and key.key_size < SHORTEST_RSA:
        raise ValueError(f"has {key.key_size} bits, and {SHORTEST_RSA} is the least")
