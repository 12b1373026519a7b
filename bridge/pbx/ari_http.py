"""ARI over HTTP: requests, and a WebSocket of events. The only file here that knows aiohttp.

What goes wrong is a `DeliveryError` whose sentence names the host, never the password.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

import aiohttp

from bridge.config import Address, AriSettings
from bridge.errors import DeliveryError

CONNECTIONS = 8  # for requests; Asterisk has 100 for everybody (sessionlimit in http.conf)
KEEP_ALIVE = 10.0  # s; Asterisk closes an idle connection after 15 (session_keep_alive)
EVENT = 1024 * 1024  # bytes of an event
ANSWER = 32 * 1024 * 1024  # bytes of an answer; a channel in a listing takes 700
GOODBYE = 1.0  # s for the closing handshake


class AriRefused(DeliveryError):
    """Asterisk does not want this user: trying again would only fill its security log."""


def where(url: str) -> str:
    """host:port of the URL."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return str(Address(parts.hostname or "", port))


def make_tls(settings: AriSettings) -> ssl.SSLContext | bool:
    """To be made once: reading the system's certificates stops the event loop for 0.1 s."""
    return ssl.create_default_context() if settings.url.startswith("https:") else True


class Events:
    """The events' WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, http: AriHttp) -> None:
        self._socket, self._http = socket, http

    async def next(self) -> str:
        """The next event. Raises `DeliveryError` when there will be none."""
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                return str(message.data)
            if message.type is aiohttp.WSMsgType.ERROR:
                raise DeliveryError(f"{self._http.where}: the events' connection broke")
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise DeliveryError(f"{self._http.where} closed the events' connection")

    async def close(self) -> None:
        """Say goodbye."""
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            await asyncio.wait_for(self._socket.close(), GOODBYE)


class AriHttp:
    """A session that logs in as our user."""

    def __init__(self, settings: AriSettings, tls: ssl.SSLContext | bool) -> None:
        self.where = where(settings.url)
        self._settings = settings
        self._base = settings.url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=CONNECTIONS, keepalive_timeout=KEEP_ALIVE, ssl=tls
            ),
            auth=aiohttp.BasicAuth(
                settings.username, settings.password.get_secret_value(), "utf-8"
            ),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def __aenter__(self) -> AriHttp:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def listen(self, app: str) -> Events:
        """Connect as this Stasis application, subscribed to nothing yet.

        Raises `DeliveryError`, and `AriRefused` where Asterisk does not take our password.
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                socket = await self._session.ws_connect(
                    f"{self._base}/events",
                    params={"app": app},
                    heartbeat=self._settings.ping_interval,
                    max_msg_size=EVENT,
                )
        except aiohttp.WSServerHandshakeError as e:
            raise self._unwelcome(e.status) from None
        except (OSError, TimeoutError, aiohttp.ClientError) as e:
            raise DeliveryError(self._sentence(e)) from None
        return Events(socket, self)

    async def ask(
        self,
        method: str,
        path: str,
        params: dict[str, str] | None = None,
        body: object = None,
    ) -> tuple[int, str]:
        """One request to `path` (quoted, below ari.url): status and body, or 0 and why not."""
        try:
            async with self._session.request(
                method, self._base + path, params=params, json=body, allow_redirects=False
            ) as response:
                return response.status, (await _read(response)).decode("utf-8", "replace")
        except (OSError, TimeoutError, aiohttp.ClientError) as e:
            return 0, self._sentence(e)

    def _unwelcome(self, status: int) -> DeliveryError:
        if status == 401:
            return AriRefused(
                f"Asterisk at {self.where} refused the ARI user {self._settings.username!r}: "
                "correct ari.username and ari.password, or ari.conf, and restart",
                gone=True,
            )
        if status == 404:
            return DeliveryError(
                f"{self.where} has no ARI at the path of ari.url: is enabled = yes in ari.conf, is "
                "res_ari_events.so loaded, and is there a prefix in http.conf?"
            )
        return DeliveryError(f"{self.where} answered {status} where ARI's events should begin")

    def _sentence(self, error: Exception) -> str:
        """What went wrong, for somebody who can change it. Never the error's own text."""
        match error:
            case (
                aiohttp.ClientConnectorCertificateError()
                | aiohttp.ClientSSLError()
                | ssl.SSLError()
            ):
                return (
                    f"TLS with {self.where} failed: does this port speak TLS (tlsenable in "
                    "http.conf), with a certificate for that host that this machine trusts?"
                )
            case TimeoutError():
                return f"{self.where} did not answer within {self._settings.timeout:g} s"
            case aiohttp.ClientConnectorDNSError():
                return f"the host of {self.where} cannot be resolved: correct ari.url"
            case aiohttp.ClientConnectorError(os_error=reason):
                # asyncio's own text of a refused connection repeats the address
                why = os.strerror(reason.errno) if reason.errno else "no connection"
                return (
                    f"cannot connect to {self.where}: {why}; is Asterisk running there, with "
                    "enabled = yes and a bindaddr in http.conf?"
                )
            case aiohttp.ServerDisconnectedError() | OSError():
                return f"{self.where} closed the connection before it answered"
        return f"{self.where} did not answer in HTTP ({type(error).__name__})"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > ANSWER:
            raise aiohttp.ClientPayloadError("an answer that is too long")
    return bytes(data)
