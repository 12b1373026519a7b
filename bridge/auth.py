"""Who may open a WebSocket: asked before the upgrade is answered. Pure.

Theory of operation. A page in a browser is known by its Origin and has to be one of ours, whatever
it shows. An address that keeps being wrong has to wait. Then the first credential that is right
decides: an API key, a token, Twilio's signature; its limits are looked at, and only then is a
one-time token used up. Where nothing at all is configured, this machine is served and nobody else,
and a proxy on this machine is somebody else: it has to be told apart by the headers it adds, so
that whoever has a proxy configures a key.

Keys are compared as SHA-256 digests, each with all of them, in constant time. A token's signature
takes as long for a near miss as for any. `now` is Unix time throughout, because tokens are about
that; a step of the clock makes limits tighter or wider for a moment.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.addresses import is_loopback, neighbourhood
from bridge.auth_credentials import looks_like_jwt
from bridge.auth_limits import Buckets, Connections, Failures
from bridge.auth_origin import Origins, check_loopback
from bridge.auth_twilio import TwilioSignatures
from bridge.auth_types import (
    Credential,
    Denied,
    Identity,
    KeysWanted,
    Knock,
    Pair,
    Secret,
    Signature,
)
from bridge.config import Address
from bridge.config_auth import AuthSettings, JwtSettings, KeySettings, Limits

if TYPE_CHECKING:
    from bridge.auth_jwt import Claims, JwtVerifier

__all__ = [
    "Auth", "Credential", "Denied", "Identity", "KeysWanted", "Knock", "Pair", "Secret",
    "Signature",
]  # fmt: skip

log = logging.getLogger(__name__)

TRIED = 8  # credentials of one request
LOOPBACK = Identity("loopback", "loopback")
TWILIO = Identity("twilio", "signature")


@dataclass(frozen=True, slots=True)
class _Right:
    """A credential that is right, and what goes with it."""

    identity: Identity
    limits: Limits
    claims: Claims | None = None


class Auth:
    """The rules of one listener. `pages`: where our own pages are served (http.listen).

    Raises `ConfigError` on a key that is none.
    """

    def __init__(self, settings: AuthSettings, *, pages: Collection[Address] = ()) -> None:
        self.counters: Counter[str] = Counter()  # accepted_KIND, denied_REASON
        self._settings = settings
        self._limits = {key.name: key for key in settings.key}
        self._keys = [(key, key.digest, _digest(key.id or key.name)) for key in settings.key]
        self._origins = Origins(settings.allow_origins, pages)
        self._connections = Connections(settings.max_connections_per_address)
        self._buckets = Buckets()
        self._failures = Failures(settings.max_failures, settings.failure_wait)
        self._twilio: TwilioSignatures | None = None
        self.jwt: JwtVerifier | None = None
        if settings.twilio is not None and settings.public_url is not None:
            twilio = settings.twilio
            self._twilio = TwilioSignatures(
                settings.public_url, twilio.tokens(), twilio.shared_keys()
            )
        if settings.jwt is not None:
            from bridge.auth_jwt import JwtVerifier  # with cryptography: 0.1 s to load

            self.jwt = JwtVerifier(settings.jwt)

    def __len__(self) -> int:
        """Live connections."""
        return len(self._connections)

    def check(self, knock: Knock, credentials: Sequence[Credential], now: float) -> Identity:
        """Who it is. `now`: Unix time.

        Raises `Denied`, and `KeysWanted` (one too) if the provider's keys should be fetched and
        the question asked once more.
        """
        try:
            identity = self._check(knock, credentials, now)
        except KeysWanted:
            self.counters["keys_wanted"] += 1
            raise
        except Denied as denied:
            self.counters[f"denied_{denied.reason}"] += 1
            raise
        self.counters[f"accepted_{identity.kind}"] += 1
        return identity

    def opened(self, identity: Identity, host: str) -> None:
        """A connection begins. Raises `Denied` if there are too many."""
        try:
            self._connections.check(identity, host, self._most(identity))
        except Denied as denied:
            self.counters[f"denied_{denied.reason}"] += 1
            raise
        self._connections.opened(identity, host)

    def closed(self, identity: Identity, host: str) -> None:
        """A connection that was opened has ended."""
        self._connections.closed(identity, host)

    # -- the order of things -------------------------------------------------------------------

    def _check(self, knock: Knock, credentials: Sequence[Credential], now: float) -> Identity:
        self._origins.check(knock)
        if not self._settings.authenticates:
            check_loopback(knock)
            return LOOPBACK
        neighbours = "" if is_loopback(knock.host) else neighbourhood(knock.host)
        wait = self._failures.wait(neighbours, now)
        if wait:
            raise Denied(
                429, "too many wrong keys from your address", reason="failures", retry_after=wait
            )
        try:
            right = self._first_right(knock, credentials[:TRIED], now)
            self._check_limits(right, knock, now)
        except Denied as denied:
            # A proxy on this machine would be shut out for one of its clients.
            if denied.wrong and neighbours and self._failures.failed(neighbours, now):
                log.warning("%s: too many wrong keys; it has to wait", neighbours)
            raise
        return right.identity

    def _first_right(self, knock: Knock, credentials: Sequence[Credential], now: float) -> _Right:
        """Raises the `Denied` that leaves most hope, if none is right."""
        denials = []
        for credential in credentials:
            try:
                return self._recognise(knock, credential, now)
            except Denied as denied:
                denials.append(denied)
        if not denials:
            raise Denied(401, "send a key (README: Who may open a WebSocket)", reason="missing")
        hope = max(denials, key=lambda denied: (isinstance(denied, KeysWanted), denied.status))
        hope.wrong = any(denied.wrong for denied in denials)  # no guess hides behind another
        raise hope

    def _recognise(self, knock: Knock, credential: Credential, now: float) -> _Right:
        match credential:
            case Secret(value, source):
                key = self._find(value, None)
                if key is None and self.jwt is not None and looks_like_jwt(value):
                    return self._token(self.jwt, value, now)
            case Pair(key_id, value, source):
                key = self._find(value, key_id)
            case Signature():
                return self._signed(knock, credential)
        if key is None:
            raise Denied(401, f"the key in {source} is wrong", reason="key", wrong=True)
        return _Right(Identity(key.name, "key"), key)

    def _find(self, value: str, key_id: str | None) -> KeySettings | None:
        given, given_id = _digest(value), _digest(key_id or "")
        found = None
        for key, digest, its_id in self._keys:
            right = hmac.compare_digest(digest, given)
            right_id = hmac.compare_digest(its_id, given_id) if key_id else key.id is None
            if right and right_id:
                found = key
        return found

    def _token(self, verifier: JwtVerifier, value: str, now: float) -> _Right:
        assert self._settings.jwt is not None
        claims = verifier.verify(value, now)
        return _Right(Identity(claims.name, "jwt"), self._settings.jwt, claims)

    def _signed(self, knock: Knock, signature: Signature) -> _Right:
        if self._twilio is None or self._settings.twilio is None:
            raise Denied(
                403, "Twilio's signature is not configured here: [websocket.twilio]",
                reason="no_twilio",
            )  # fmt: skip
        if not self._twilio.right(knock, signature):
            raise Denied(
                403,
                f"the signature in {signature.source} is wrong: is websocket.public_url the "
                "address in your TwiML, and auth_token that account's?",
                reason="signature",
                wrong=True,
            )
        return _Right(TWILIO, self._settings.twilio)

    def _check_limits(self, right: _Right, knock: Knock, now: float) -> None:
        identity, limits = right.identity, right.limits
        if limits.paths and not any(_leads(pattern, knock.path) for pattern in limits.paths):
            raise Denied(403, f"{identity.name} may not use this path", reason="path")
        self._connections.check(identity, knock.host, limits.max_connections)
        bucket, burst = f"{identity.kind} {identity.name}", max(1.0, limits.rate)
        if limits.rate:
            wait = self._buckets.wait(bucket, limits.rate, burst, now)
            if wait:
                raise Denied(
                    429,
                    f"{identity.name} may open {limits.rate:g} connections a second",
                    reason="rate",
                    retry_after=wait,
                )
        if right.claims is not None and self.jwt is not None:
            self.jwt.use(right.claims, now)
        if limits.rate:
            self._buckets.take(bucket, limits.rate, burst, now)

    def _most(self, identity: Identity) -> int:
        limits: Limits | JwtSettings | None
        match identity.kind:
            case "key":
                limits = self._limits.get(identity.name)
            case "jwt":
                limits = self._settings.jwt
            case "signature":
                limits = self._settings.twilio
            case "loopback":
                limits = None
        return sys.maxsize if limits is None else limits.max_connections


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _leads(pattern: str, path: str) -> bool:
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern
