"""The process that is measured with RTP: our server, or what somebody would write by hand.

First a line of JSON comes in: the ports that the legs come from. Then each leg's own port is said,
and commands are answered as by bridge/bench/subject.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import numpy.typing as npt

from bridge.audio.g711 import decode_ulaw
from bridge.bench.rtp import code_of
from bridge.bench.stamps import Stamps
from bridge.bench.subject import Meter, NullLease, NullRecogniser, rss
from bridge.config import from_dict
from bridge.media import MediaRequest
from bridge.server import Server
from bridge.transport import udp_filter
from bridge.transport.udp_port import UdpPort
from bridge.types import Announcement, Block, Heard
from bridge.worker import loop_factory

Counts = Callable[[], dict[str, float]]
FIRST_UUID = 4 << 76


class _Lease(NullLease):
    """A lease of a leg that is known by number. Its first block tells whether it is that leg's."""

    __slots__ = ("_counters", "_level")

    def __init__(
        self, stamps: Stamps, done: Callable[[], None], leg: int, counters: Counter[str]
    ) -> None:
        super().__init__(stamps, done)
        self._leg = leg
        self._counters = counters
        self._level = int(decode_ulaw(bytes([code_of(leg)]))[0])

    def push(self, block: Block) -> None:
        # The filter's gain for a constant is 0.1 % off; neighbouring levels differ by 3 %.
        level = float(block[-1]) * 32768
        if abs(level - self._level) > 0.01 * abs(self._level):
            self._counters["wrong"] += 1
        super().push(block)


class _Recogniser(NullRecogniser):
    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        self.coming = -1  # the leg whose lease is taken next

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> _Lease:
        return _Lease(self._stamps, done, self.coming, self.counters)


async def serve_ours(sources: Sequence[int], stamps: Stamps) -> tuple[list[int], Counts]:
    """The bridge itself, without HTTP and sinks but the log's."""
    settings = from_dict(
        {
            "rtp": {"ports": "1024-65535"},
            "calls": {"max": 100_000, "announce_ttl": 3600},
            "log": {"level": "error"},
        }
    )
    recogniser = _Recogniser(stamps)
    server = Server(settings, recogniser)
    await server.start({})
    rtp = server.rtp
    assert rtp is not None
    opened = rtp.opened

    def opened_by(port: UdpPort, now: float) -> None:
        recogniser.coming = uuid.UUID(port.label.partition(",")[0]).int - FIRST_UUID
        opened(port, now)

    rtp.opened = opened_by  # type: ignore[method-assign]
    ports = []
    for i, source in enumerate(sources):
        request = MediaRequest(source=("127.0.0.1", source) if source else None)
        announcement = Announcement(str(uuid.UUID(int=FIRST_UUID + i)))
        ports.append(server.open_media(announcement, request).port)
    return ports, lambda: {"strangers": rtp.ports.strangers, "wrong": recogniser.counters["wrong"]}


async def serve_naive(sources: Sequence[int], stamps: Stamps) -> tuple[list[int], Counts]:
    """What one writes by hand: a datagram endpoint and a soxr stream per leg, no jitter buffer."""
    import soxr

    class Leg(asyncio.DatagramProtocol):
        def __init__(self, number: int) -> None:
            self.number = number
            self.sequence = -1
            self.blocks = 0
            self.resampler = soxr.ResampleStream(8000, 24000, 1, dtype="float32")
            self.buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if len(data) < 12 or data[1] & 0x7F != 0 or addr[1] != sources[self.number]:
                return
            sequence = int.from_bytes(data[2:4], "big")
            if sequence == self.sequence:
                return
            self.sequence = sequence
            samples = decode_ulaw(data[12:]).astype(np.float32) / 32768
            resampled = self.resampler.resample_chunk(samples)
            self.buffer = np.concatenate([self.buffer, resampled])
            while len(self.buffer) >= 1920:
                self.buffer = self.buffer[1920:]
                stamps.mark(self.number, self.blocks)
                self.blocks += 1

    loop = asyncio.get_running_loop()
    ports = []
    for i in range(len(sources)):
        transport, _ = await loop.create_datagram_endpoint(
            lambda number=i: Leg(number),  # type: ignore[misc]
            ("127.0.0.1", 0),
        )
        ports.append(transport.get_extra_info("sockname")[1])
    return ports, lambda: {}


SERVE: dict[str, Callable[[Sequence[int], Stamps], Awaitable[tuple[list[int], Counts]]]] = {
    "ours": serve_ours,
    "naive": serve_naive,
}


async def _main(name: str, legs: int, blocks: int, kind: str) -> None:
    array: npt.NDArray[np.float64] = np.memmap(name, np.float64, "r+", shape=(legs, blocks))
    meter = Meter()
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(json.dumps({"rss": rss()}), flush=True)
    ports, counts = await SERVE[kind](json.loads(await commands.readline()), Stamps(array))
    print(json.dumps(ports), flush=True)
    meter.start()
    while line := await commands.readline():
        if line == b"zero\n":
            meter.zero()
        print(json.dumps(meter.read() | counts()), flush=True)


if __name__ == "__main__":
    name_, legs_, blocks_, kind_, loop_, *options_ = sys.argv[1:]
    if "plain" in options_:
        udp_filter.SO_ATTACH_FILTER = 9999  # a kernel without such programs
    factory = loop_factory() if loop_ == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_main(name_, int(legs_), int(blocks_), kind_))
