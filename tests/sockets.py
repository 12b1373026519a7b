"""A bridge that listens for WebSockets, with the tones engine, in the test's own process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bridge.audio.resample import make_resampler
from bridge.config import Address, from_dict
from bridge.engine.tones import encode, text_of
from bridge.listeners import listen
from bridge.server import Server
from bridge.types import CallEvent, Ended, Final, Refused, Samples
from tests.waiting import until

PATIENCE = 30.0  # s, on a machine that does much else


class Sink:
    """An `Egress` that remembers."""

    name = "test"

    def __init__(self) -> None:
        self.events: list[CallEvent] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def deliver(self, event: CallEvent) -> None:
        self.events.append(event)

    def bodies(self, kind: type) -> list[Any]:
        """Of one kind, in order."""
        return [event.body for event in self.events if isinstance(event.body, kind)]

    def words(self, leg: str = "caller") -> str:
        """What all finals of a leg say."""
        finals = [e.body for e in self.events if isinstance(e.body, Final) and e.leg == leg]
        return " ".join(body.text for body in finals)

    def over(self, calls: int = 1) -> bool:
        return sum(isinstance(e.body, Ended | Refused) for e in self.events) >= calls


class Bridge:
    """A server on free ports. `url` has no path; `page` is where HTTP is, if it is."""

    def __init__(
        self, server: Server, sink: Sink, socks: dict[str, socket.socket], scheme: str
    ) -> None:
        self.server = server
        self.sink = sink
        self.port: int = socks["websocket"].getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.page = f"http://127.0.0.1:{socks['http'].getsockname()[1]}" if "http" in socks else ""

    async def over(self, calls: int = 1) -> None:
        """Wait for the ends of that many calls."""
        await until(lambda: self.sink.over(calls), PATIENCE)


@asynccontextmanager
async def bridge(*, slots: int = 8, scheme: str = "ws", **settings: Any) -> AsyncIterator[Bridge]:
    """Runs while the block does. `settings`: sections of the configuration."""
    defaults: dict[str, Any] = {
        "engine": {"kind": "tones", "slots": slots},
        "websocket": {"listen": "127.0.0.1:0"},
        "service": {"drain_timeout": 0, "flush_timeout": 10},
    }
    sink = Sink()
    socks = {"websocket": listen(Address("127.0.0.1", 0), "test")}
    if "http" in settings:  # a page's Origin is checked by its port
        socks["http"] = listen(Address("127.0.0.1", 0), "test")
        port = socks["http"].getsockname()[1]
        settings["http"] = {"listen": f"127.0.0.1:{port}", **settings["http"]}
    server = Server(from_dict(defaults | settings), sinks=[sink])
    try:
        await server.start(socks)
        yield Bridge(server, sink, socks, scheme)
    finally:
        await server.close()
        socks["websocket"].close()


def speech(words: Iterable[int]) -> Samples:
    """Words of the tones engine at 8 kHz, with the silence after them that ends a turn."""
    import numpy as np

    return np.concatenate([encode(list(words)), np.zeros(8000, np.int16)])


def said(words: Iterable[int]) -> str:
    """How the tones engine spells them."""
    return " ".join(text_of(word) for word in words)


def at_rate(samples: Samples, rate: int) -> Samples:
    """8 kHz audio at another rate."""
    import numpy as np

    if rate == 8000:
        return samples
    resampler = make_resampler(8000, rate, rate // 100)
    blocks = [*resampler.feed(samples), *resampler.flush()]
    return np.asarray(np.concatenate(blocks) * 32767, np.int16)


def pieces(data: bytes, size: int) -> Sequence[bytes]:
    """Cut for messages; the last one may be shorter."""
    return [data[i : i + size] for i in range(0, len(data), size)]


async def settle() -> None:
    """Let the loop run what is ready."""
    for _ in range(3):
        await asyncio.sleep(0)
