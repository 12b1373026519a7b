"""How a connection to a switchboard ends, whichever protocol is spoken on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar, cast

from bridge.errors import BridgeError, DeliveryError

GOODBYE = 1.0  # seconds that the peer has to close


class Ending:
    """The part of an `asyncio.Protocol` that has to do with the end, and with a peer that is slow.

    `peer` is who is at the other end. Whoever waits for an answer (`_waits`) is told.
    """

    peer: ClassVar[str]
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.greeted = asyncio.Event()  # the peer has said who it is, or never will
        self.lost = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._failure: Exception | None = None
        self._connected = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are of no common class
        self._connected = True

    def _waits(self) -> Iterable[asyncio.Future[Any]]:
        raise NotImplementedError

    async def writable(self) -> None:
        """Wait until the peer takes more. Raises `DeliveryError` if the line is lost."""
        await self._writable.wait()
        if self.lost.is_set():
            raise self.error()

    async def ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.lost.wait()
        return self.lost.is_set()

    def fail(self, error: Exception) -> None:
        """End it now, for this reason."""
        self._failure = error
        self.transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._failure = self._failure or exc
        self.lost.set()
        self.greeted.set()
        self._writable.set()
        for waits in self._waits():
            if not waits.done():
                waits.set_exception(self.error())

    def error(self) -> BridgeError:
        """Why the connection ended, as nobody's fault but the peer's."""
        if isinstance(self._failure, BridgeError):
            return self._failure
        return DeliveryError(
            f"{self.peer} closed the connection"
            if self._failure is None
            else f"the connection broke: {self._failure}"
        )

    async def shut(self) -> None:
        """Close, and wait until it is closed; what the peer does not take in time is dropped."""
        if not self._connected:
            return
        self.transport.close()
        if not await self.ends_within(GOODBYE):
            self.transport.abort()
            await self.lost.wait()
