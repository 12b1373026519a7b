"""Who may ask what: bearer token, loopback peers, and the names that we answer to."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable, Collection

from aiohttp import web

from bridge.addresses import FORWARDING, is_loopback
from bridge.errors import ConfigError

__all__ = ["Access", "Check", "Refusal", "is_loopback"]

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class Refusal(Exception):
    """An answer other than the one asked for. `sentence` says what to do about it."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Access:
    """The rules of one application. `token` None: nobody may change anything."""

    def __init__(self, token: str | None, hosts: Collection[str]) -> None:
        if token is not None and not token.strip():
            raise ConfigError(["http.token: is empty; set a long random text, or leave it out"])
        # A file's last line end is none of it; what is sent comes without such, too.
        self._token = token.strip().encode() if token is not None else None
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    def check_host(self, request: web.Request) -> None:
        """Refuse foreign names on a loopback connection.

        A web page can point its own name at 127.0.0.1 once it is loaded (DNS rebinding): the
        visitor's browser then reads our answers for it, as its own origin and from a loopback
        address. What the page cannot change is the Host header, which still carries its name.
        """
        given = request.headers.getall("Host", [])
        if not is_loopback(_local_address(request)) or not given:
            return  # no Host is HTTP/1.0: a load balancer's probe, never a browser
        if len(given) > 1 or not self._knows(given[0]):
            raise Refusal(403, "on loopback, ask for localhost, 127.0.0.1 or [::1], not this Host")

    def _knows(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        known = name == "localhost" or name.endswith(".localhost") or name in self._hosts
        return known or is_loopback(name)

    def check_writing(self, request: web.Request) -> None:
        """Only with the token. Without a configured one, nobody: also not from loopback, where
        every user of the machine and every page in a browser is."""
        if self._token is None:
            raise Refusal(
                403,
                "no token is configured: set http.token (or BRIDGE_HTTP__TOKEN) and send it as "
                "Authorization: Bearer",
            )
        self._check_token(request, self._token)

    def check_reading(self, request: web.Request) -> None:
        """What was said: with the token where there is one, else from this machine only."""
        if self._token is not None:
            self._check_token(request, self._token)
        elif not is_loopback(request.remote) or any(h in request.headers for h in FORWARDING):
            raise Refusal(
                403,
                "calls are shown to this machine only, unless http.token (or BRIDGE_HTTP__TOKEN) "
                "is set and sent as Authorization: Bearer",
            )

    @staticmethod
    def _check_token(request: web.Request, token: bytes) -> None:
        given = request.headers.getall("Authorization", [])
        scheme, _, value = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        # Header bytes that are not UTF-8 come as lone surrogates; they compare, and are wrong.
        value_bytes = value.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "basic":  # all that CURL() of every Asterisk can send
            value_bytes = _password(value_bytes)
        right = hmac.compare_digest(value_bytes, token)  # as long for a near miss as for any
        if scheme.lower() not in ("bearer", "basic") or not right:
            raise Refusal(
                401,
                "send the configured token as Authorization: Bearer",
                WWW_Authenticate='Bearer realm="callscribe"',
            )


def _password(credentials: bytes) -> bytes:
    """Of Basic authentication (RFC 7617), whatever the user is called; empty if it is none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _local_address(request: web.Request) -> str | None:
    """Our end of the connection: also on 0.0.0.0, a loopback one is from this machine."""
    transport = request.transport
    name = transport.get_extra_info("sockname") if transport is not None else None
    return name[0] if isinstance(name, tuple) else None


Check = Callable[[web.Request], None]
