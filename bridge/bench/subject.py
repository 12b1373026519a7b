"""The process that is measured: our server, or the fifty lines somebody would write by hand.

Both get the same legs from the same generator. A leg's audio is a constant, its number + 1, so
that a block tells whose it is; the time at which each block is ready goes into shared memory.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bridge.audio.resample import make_resampler
from bridge.bench.stamps import Stamps
from bridge.config import from_dict
from bridge.interfaces import Upsampling
from bridge.server import Server
from bridge.transport import tcp
from bridge.types import Block, Heard
from bridge.worker import loop_factory


class NullLease:
    """Takes the time of each block. Whose they are, their samples say."""

    __slots__ = ("_done", "_leg", "_number", "_stamps", "dropped")

    def __init__(self, stamps: Stamps, done: Callable[[], None]) -> None:
        self.dropped = 0
        self._stamps = stamps
        self._done = done
        self._leg = -1
        self._number = 0

    def push(self, block: Block) -> None:
        if self._leg < 0:
            self._leg = round(float(block[-1]) / _gain() * 32768) - 1
        self._stamps.mark(self._leg, self._number)
        self._number += 1

    def flush(self) -> None:
        """Nothing is held back."""

    def finish(self) -> None:
        asyncio.get_running_loop().call_soon(self._done)

    def evict(self) -> None:
        pass


@lru_cache
def _gain() -> float:
    """The filter's gain for a constant: a thousandth off 1, which is a leg in a thousand."""
    resampler = make_resampler(8000, 24000, 1920)
    return float(resampler.feed(np.full(1280, 16384, np.int16))[-1][-1]) * 2


class NullRecogniser:
    """An engine that costs nothing and hears nothing."""

    name = "null"
    rate = 24000
    block = 1920
    upsampling: Upsampling = "filter"
    settle = 0.0
    slots = 1_000_000
    used = 0
    ready = True

    def __init__(self, stamps: Stamps) -> None:
        self._stamps = stamps
        self.counters: Counter[str] = Counter()
        self.on_step: Callable[[float, int], None] = lambda seconds, legs: None

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""

    def language(self, text: str) -> str:
        """Nothing is heard."""
        return ""

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> NullLease:
        """Always free."""
        return NullLease(self._stamps, done)


async def serve_ours(sock: socket.socket, stamps: Stamps, keepalive: str) -> None:
    """The bridge itself, without HTTP and sinks but the log's."""
    settings = from_dict(
        {
            "audiosocket": {"keepalive": keepalive, "max_connections": 100_000,
                            "max_connections_per_address": 100_000, "uuid_deadline": 60},
            "calls": {"max": 100_000},
            "log": {"level": "error"},
        }
    )  # fmt: skip
    server = Server(settings, NullRecogniser(stamps))
    await server.start({"audiosocket": sock})


async def serve_naive(sock: socket.socket, stamps: Stamps, keepalive: str) -> None:
    """What one writes by hand: a coroutine, a stream reader and a soxr stream per leg."""
    import soxr

    async def silence(writer: asyncio.StreamWriter) -> None:
        while keepalive == "continuous":
            writer.write(b"\x10\x01\x40" + bytes(320))
            await writer.drain()
            await asyncio.sleep(0.02)

    async def leg(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        resampler = soxr.ResampleStream(8000, 24000, 1, dtype="float32")
        talk = asyncio.create_task(silence(writer))
        buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        number, who = 0, -1
        try:
            while True:
                header = await reader.readexactly(3)
                payload = await reader.readexactly(int.from_bytes(header[1:], "big"))
                if header[0] != 0x10:
                    continue
                samples = np.frombuffer(payload, "<i2").astype(np.float32) / 32768
                who = int(np.frombuffer(payload, "<i2")[0]) - 1 if who < 0 else who
                buffer = np.concatenate([buffer, resampler.resample_chunk(samples)])
                while len(buffer) >= 1920:
                    buffer = buffer[1920:]
                    stamps.mark(who, number)
                    number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            talk.cancel()
            writer.close()

    await asyncio.start_server(leg, sock=sock, backlog=4096)


class Meter:
    """Event-loop lateness of a 5 ms timer, CPU time and memory, between two commands."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self._cpu = self._wall = self._user = 0.0
        self._next = 0.0

    def start(self) -> None:
        """Begin to sample lateness."""
        loop = asyncio.get_running_loop()
        self._next = loop.time() + 0.005
        loop.call_at(self._next, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self.late.append(max(0.0, loop.time() - self._next))
        self._next = max(self._next + 0.005, loop.time())
        loop.call_at(self._next, self._tick)

    def zero(self) -> None:
        """From here on."""
        self.late.clear()
        self._cpu, self._wall = time.process_time(), time.monotonic()
        self._user = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    def read(self) -> dict[str, float]:
        """Since `zero`."""
        late = np.array(self.late or [0.0])
        wall = time.monotonic() - self._wall
        return {
            "cpu": (time.process_time() - self._cpu) / wall,
            "user": (resource.getrusage(resource.RUSAGE_SELF).ru_utime - self._user) / wall,
            "late50": float(np.percentile(late, 50)),
            "late99": float(np.percentile(late, 99)),
            "rss": float(rss()),
        }


def rss() -> int:
    """Resident memory in bytes."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


Serve = Callable[[socket.socket, Stamps, str], Awaitable[None]]


async def _main(
    serve: Mapping[str, Serve], fd: int, name: str, legs: int, blocks: int, kind: str, how: str
) -> None:
    array: npt.NDArray[np.float64] = np.memmap(name, np.float64, "r+", shape=(legs, blocks))
    meter = Meter()
    sock = socket.socket(fileno=fd)
    await serve[kind](sock, Stamps(array), how)
    meter.start()
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(json.dumps({"rss": rss()}), flush=True)
    while line := await commands.readline():
        if line == b"zero\n":
            meter.zero()
        print(json.dumps(meter.read()), flush=True)


def main(serve: Mapping[str, Serve], arguments: Sequence[str]) -> None:
    """Be measured: descriptor, shared memory, legs, blocks, kind, keepalive, loop."""
    fd, name, legs, blocks, kind, how, loop = arguments
    tcp.FLOOD = 1_000_000
    factory = loop_factory() if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_main(serve, int(fd), name, int(legs), int(blocks), kind, how))


if __name__ == "__main__":
    main({"ours": serve_ours, "naive": serve_naive}, sys.argv[1:])
