"""What peers say on a WebSocket, parsed once; and how a protocol is broken. Pure.

All of it is to be had from bridge/ingress/media_socket.py, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from bridge.errors import ProtocolError
from bridge.types import LegName

DIGITS = frozenset("0123456789*#ABCD")
MAX_TEXT = 200  # characters of a name or number that a peer says

POLICY, INVALID, WRONG_KIND, TOO_LARGE, BUSY, NORMAL, AWAY = (
    1008,
    1007,
    1003,
    1009,
    1013,
    1000,
    1001,
)
"""Close codes (RFC 6455 §7.4.1; 1013 by IANA: try again later)."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SocketError(ProtocolError):
    """The peer broke its protocol: the connection is closed with `code` and this sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def parse(message: bytes) -> dict[str, Any]:
    """A JSON object. Raises `SocketError`."""
    try:
        found = orjson.loads(message)
    except orjson.JSONDecodeError as e:
        raise SocketError(INVALID, f"the message is no JSON: {e}"[:120]) from None
    if not isinstance(found, dict):
        raise SocketError(INVALID, "the message is JSON, but no object")
    return found


def table(message: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside a message. Raises `SocketError`."""
    found = message.get(name)
    if not isinstance(found, dict):
        raise SocketError(POLICY, f"{name}: expected an object")
    return found


def words(message: Mapping[str, Any], name: str) -> str:
    """A string of a message, "" where there is none, printable and at most 200 characters."""
    found = message.get(name)
    return clean(found) if isinstance(found, str | int | float) else ""


def clean(value: object, limit: int = MAX_TEXT) -> str:
    """What a peer calls itself, fit for a log line, a label or a header: printable and short."""
    text = str(value)[:limit]
    return "".join(c if c.isprintable() else " " for c in text)


def identifier(value: object, name: str) -> str:
    """An id that may become a call's id and part of a URL. Raises `SocketError`."""
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise SocketError(POLICY, f"{name}: expected up to 64 letters, digits and . _ : @ -")


def leg_name(values: Mapping[str, object], default: LegName = "caller") -> LegName:
    """The parameter ``leg``. Raises `SocketError`."""
    match values.get("leg", default):
        case "caller":
            return "caller"
        case "callee":
            return "callee"
    raise SocketError(POLICY, "leg: expected caller or callee")


def extras(values: object, known: Collection[str] = (), limit: int = 32) -> dict[str, str]:
    """Custom parameters of a peer for `CallInfo.extra`: at most `limit`, names and values short."""
    if not isinstance(values, dict):
        return {}
    found: dict[str, str] = {}
    for name, value in list(values.items())[: limit + len(known)]:
        if isinstance(value, str | int | float) and name not in known and len(found) < limit:
            found[clean(name)[:64]] = clean(value)
    return found


def is_uuid(text: str) -> bool:
    """36 characters, lower case."""
    return _UUID.fullmatch(text) is not None
