"""The receiver of `callscribe bench outbox`: a web server of a few lines, in a process of its own.

Prints its port, then, for every line that it reads, what it has got since the line before: how many
events, and percentiles of the seconds from an event to its arrival. An event's text is the moment
of its making on CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import numpy as np

from bridge.worker import loop_factory

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiver(asyncio.Protocol):
    """Just enough HTTP for one sender: requests one after the other, with a Content-Length."""

    waits: list[float] = []  # noqa: RUF012 - of all connections

    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        while found:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(rest) < length:
                return
            now = time.monotonic()
            told = json.loads(rest[:length])
            for event in told if isinstance(told, list) else [told]:
                self.waits.append(now - float(event["data"]["text"]))
            assert self._transport is not None
            self._transport.write(ANSWER)
            self._data = rest[length:]
            head, found, rest = self._data.partition(b"\r\n\r\n")


def _report(waits: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(waits, (50, 99)) if waits else (0.0, 0.0)
    return {"events": len(waits), "p50": float(p50), "p99": float(p99)}


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Receiver, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(_report(Receiver.waits)), flush=True)
        Receiver.waits.clear()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_main())
