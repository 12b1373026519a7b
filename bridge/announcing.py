"""A bridge's HTTP side, as a switch uses it: announce a leg, ask what was heard, hang up.

A few requests a call: the standard library's blocking client in a thread is enough, and another
machine's tests need nothing installed for it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

from bridge.config import Address
from bridge.errors import BridgeError

TIMEOUT = 10.0  # s
MAX_ANSWER = 4 * 1024 * 1024  # bytes; the longest call's text is smaller
TOKEN = "BRIDGE_HTTP__TOKEN"  # as the bridge's own configuration is spelt in the environment


class BridgeApi:
    """One bridge at ``http://host:port``. Every method raises `BridgeError` with a sentence."""

    def __init__(self, url: str, token: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BridgeError(f"to: expected http://host:port, not {url!r}")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._host, self._port = parts.hostname, port
        self._secure = parts.scheme == "https"
        self._base = parts.path.rstrip("/")
        given = token if token is not None else os.environ.get(TOKEN, "")
        if not given.isascii() or not given.isprintable():
            raise BridgeError("token: has characters that no HTTP header takes")
        self._local = ""
        self._headers = {"Authorization": f"Bearer {given}"} if given else {}

    async def local(self) -> str:
        """The IP address that this machine speaks to the bridge from."""
        if not self._local:
            self._local = await asyncio.to_thread(self._connect)
        return self._local

    def _connect(self) -> str:
        with self._connection() as connection:
            return str(connection.sock.getsockname()[0])

    async def announce(
        self, about: Mapping[str, object], media: Mapping[str, object], source: tuple[str, int]
    ) -> Address:
        """POST /calls: where to send a leg, which will come from `source`."""
        host = f"[{source[0]}]" if ":" in source[0] else source[0]
        body = {**about, "media": {"type": "rtp", **media, "from": f"{host}:{source[1]}"}}
        status, text = await asyncio.to_thread(self._ask, "POST", "/calls", body)
        answer = self._object(status, text)
        try:
            port = _object(answer["media"])
            return Address(_text(port["address"]), _port(port["port"]))
        except (ValueError, KeyError):
            raise BridgeError(f"{self.url} answers as no bridge does that takes RTP") from None

    async def call(self, id: str) -> Mapping[str, object] | None:
        """GET /calls/{id}; None when there is none."""
        status, text = await asyncio.to_thread(self._ask, "GET", f"/calls/{quote(id, '')}")
        return None if status == 404 else self._object(status, text)

    async def text(self, id: str) -> str:
        """GET /calls/{id}/text, without anything that a terminal would obey."""
        path = f"/calls/{quote(id, '')}/text"
        status, text = await asyncio.to_thread(self._ask, "GET", path)
        if status != 200:
            raise self._refused(status, text)
        lines = text.decode("utf-8", "replace").splitlines()
        return "\n".join(printable(line) for line in lines)

    async def hang_up(self, id: str) -> None:
        """DELETE /calls/{id}: the call, or the ports that nobody has come to."""
        await asyncio.to_thread(self._ask, "DELETE", f"/calls/{quote(id, '')}")

    def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> tuple[int, bytes]:
        """Status and body."""
        data = json.dumps(body) if body is not None else None
        with self._connection() as connection:
            connection.request(method, self._base + path, data, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_ANSWER)

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """One, made. What goes wrong on it becomes a sentence."""
        connection = (
            http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT, context=ssl.create_default_context()
            )
            if self._secure
            else http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)
        )
        try:
            connection.connect()
            yield connection
        except (OSError, http.client.HTTPException) as e:
            reason = (e.strerror if isinstance(e, OSError) else "") or str(e) or type(e).__name__
            raise BridgeError(
                f"cannot ask {self.url}: {printable(reason)}; is the bridge's [http] there?"
            ) from None
        finally:
            connection.close()

    def _object(self, status: int, text: bytes) -> Mapping[str, object]:
        if status not in (200, 201):
            raise self._refused(status, text)
        found = _json(text)
        if not isinstance(found, dict):
            raise BridgeError(f"{self.url} answers as no bridge does")
        return found

    def _refused(self, status: int, text: bytes) -> BridgeError:
        found = _json(text)
        error = found.get("error") if isinstance(found, dict) else None
        sentence = printable(error) if isinstance(error, str) else "it says no more"
        hint = f"; give --token, or {TOKEN} in the environment" if status in (401, 403) else ""
        return BridgeError(f"{self.url} refused ({status}): {sentence}{hint}")


def printable(text: str) -> str:
    """A peer's text for a terminal: no escape sequences, no line ends."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _json(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _port(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError
    return value
