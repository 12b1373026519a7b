"""A relay that loses datagrams, in this process and not in the kernel.

It stands for `tc qdisc … netem loss`, which not every kernel has: each datagram is lost by itself,
as there, but none is held up or put out of order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

Address = tuple[str, int]


@dataclass
class Relay(asyncio.DatagramProtocol):
    """Passes on what comes from one sender. `came`: whether each datagram, in order, was."""

    share: float  # lost
    to: Address | None = None
    came: list[bool] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    address: Address = ("", 0)  # where to send to, and where it sends from

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.address = transport.get_extra_info("sockname")

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.came.append(self.chance.random() >= self.share)
        if self.came[-1] and self.to is not None:
            self._transport.sendto(data, self.to)

    def error_received(self, exc: Exception) -> None:
        """Whoever it sends to has gone."""

    @property
    def lost(self) -> int:
        """Datagrams that were lost between others that were not: these can be noticed."""
        first = self.came.index(True)
        last = len(self.came) - self.came[::-1].index(True)
        return self.came[first:last].count(False)


@asynccontextmanager
async def relay(share: float) -> AsyncIterator[Relay]:
    """A relay on a free loopback port."""
    loop = asyncio.get_running_loop()
    made = Relay(share)
    transport, _ = await loop.create_datagram_endpoint(lambda: made, ("127.0.0.1", 0))
    try:
        yield made
    finally:
        transport.close()
