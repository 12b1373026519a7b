"""Runs an application on a listening socket, with a bound on connections and on their time.

aiohttp bounds the size of a request's head and body. How many peers there are, how long they take
to ask, and whether they ever read the answer is bounded here.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, cast

from aiohttp import web

from bridge.http.service import LIMITS, SERVICE, Limits
from bridge.metrics import Metrics

_FULL = json.dumps({"error": "too many connections; ask again in a second"}).encode()
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Cache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_FULL), _FULL)


class Connection(web.RequestHandler):
    """One peer's connection: aiohttp's, with one deadline that covers whatever it waits for."""

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        metrics: Metrics,
        open_connections: set[Connection],
    ) -> None:
        options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # nothing we take is compressed; small bodies stay small
            "keepalive_timeout": limits.idle,
            "lingering_time": limits.body,  # for the rest of a body that nobody wants
        }
        super().__init__(server, loop=loop, **options)
        self._clock, self._limits, self._metrics = loop, limits, metrics
        self._open_connections = open_connections
        self._deadline: asyncio.TimerHandle | None = None
        self._peer: asyncio.Transport | None = None
        self._answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._peer = cast(asyncio.Transport, transport)  # uvloop's are of no common class
        self._open_connections.add(self)
        self._set_deadline(self._limits.first)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._open_connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def answering(self) -> None:
        """A response begins: time to take it and to ask again."""
        self._answers += 1
        self._set_deadline(self._limits.idle)

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._clock.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if not self._answers:  # later on, an idle connection is nobody's fault
            self._metrics.connection_refused("deadline")
        self.abort()

    def abort(self) -> None:
        """Drop the connection with whatever its peer has not read."""
        if self._peer is not None:
            self._peer.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP. aiohttp's own would log, and send back, the bytes it choked on,
        which can be a token."""
        self._metrics.connection_refused("protocol")
        sentence = "this is not an HTTP request" if status < 500 else "the bridge failed at this"
        response = web.json_response({"error": sentence}, status=status)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Server"] = "callscribe"
        response.force_close()
        return response


class _Refused(asyncio.Protocol):
    """A connection beyond the bound: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = cast(asyncio.Transport, transport)
        peer.write(_REFUSAL)
        peer.close()


class HttpServer:
    """Runs an application on a listening socket, which it closes in the end."""

    def __init__(self, app: web.Application, sock: socket.socket) -> None:
        self._sock = sock
        self._limits = app[LIMITS]
        self._metrics = app[SERVICE].metrics
        self._runner = web.AppRunner(app, shutdown_timeout=self._limits.shutdown)
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    async def start(self) -> None:
        """Accept. Raises OSError if the socket is not a stream socket that can listen."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, sock=self._sock)

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(self._connections) >= self._limits.connections:
            self._metrics.connection_refused("limit")
            return _Refused()
        loop = asyncio.get_running_loop()
        return Connection(server, loop, self._limits, self._metrics, self._connections)

    async def close(self) -> None:
        """Stop accepting, let requests in progress end, drop the rest. Idempotent."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        for connection in list(self._connections):
            connection.abort()  # its peer has stopped reading: a plain close would wait for it
        if self._server is not None:
            await self._server.wait_closed()
        else:
            self._sock.close()  # a server closes its socket, and uvloop minds help with it
