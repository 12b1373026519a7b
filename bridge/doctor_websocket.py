"""Doctor and [websocket]: who may connect, the certificate, the identity provider's keys."""

from __future__ import annotations

import time

from bridge.auth import Auth
from bridge.auth_keys import make_keys
from bridge.config import Settings, WebSocketSettings
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.errors import ConfigError
from bridge.tls import SOON, Certificate, day

SUBJECT = "websocket"


async def check(settings: Settings) -> list[Finding]:
    """Nothing without the section."""
    if settings.websocket is None:
        return []
    listener = settings.websocket
    return [*await _who(listener, settings), *_certificate(listener)]


async def _who(settings: WebSocketSettings, whole: Settings) -> list[Finding]:
    try:
        auth = Auth(settings, pages=[whole.http.listen])
    except ConfigError as e:
        return [failed(SUBJECT, problem) for problem in e.problems]
    if not settings.authenticates:
        found = "no key is configured: this machine is served, and nobody else"
        return [ok(SUBJECT, found)]
    names = [key.name for key in settings.key]
    who = [f"keys: {', '.join(names)}"] if names else []
    who += [f"tokens of {settings.jwt.issuer}"] if settings.jwt else []
    who += [f"Twilio's signature of {settings.public_url}"] if settings.twilio else []
    return [ok(SUBJECT, "; ".join(who)), *await _keys(auth, settings), *_clear(settings)]


async def _keys(auth: Auth, settings: WebSocketSettings) -> list[Finding]:
    """What the provider answers, asked once."""
    keys = make_keys(auth, settings.jwt)
    if keys is None or auth.jwt is None or auth.jwt.ring is None:
        return []
    try:
        await keys.refresh()
        if keys.problem:
            return [failed("jwks_url", keys.problem, "without its keys no token can be judged")]
        if not keys.counters["fetched"]:
            return [failed("jwks_url", "has not answered yet", "is a firewall in between?")]
        return [ok("jwks_url", f"has {len(auth.jwt.ring)} keys for us")]
    finally:
        await keys.close()


def _clear(settings: WebSocketSettings) -> list[Finding]:
    if settings.tls_cert is not None or settings.listen.loopback:
        return []
    return [
        warning(
            SUBJECT,
            f"keys and voices come to {settings.listen} in the clear",
            "fine behind a proxy with TLS or in a private network; else set tls_cert and tls_key",
        )
    ]


def _certificate(settings: WebSocketSettings) -> list[Finding]:
    if settings.tls_cert is None or settings.tls_key is None:
        return []
    now = time.time()
    try:
        certificate = Certificate(settings.tls_cert, settings.tls_key, now)
    except ConfigError as e:
        return [failed("certificate", problem) for problem in e.problems]
    found = f"{settings.tls_cert} is good until {day(certificate.expires)}"
    if certificate.expires - now < SOON:
        return [warning("certificate", found, "renew it")]
    return [ok("certificate", found)]
