"""L1: calls opened and closed on real sockets; memory, descriptors and tasks must not grow."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
import uuid

import numpy as np

from bridge.bench.stamps import Stamps
from bridge.bench.subject import NullRecogniser, rss
from bridge.config import Address, from_dict
from bridge.listeners import listen
from bridge.server import Server

AT_ONCE = 50
FRAMES = b"".join(b"\x10\x01\x40" + bytes([i, 1] * 160) for i in range(8))


def run(calls: int) -> int:
    """Print what was left of `calls` calls; 1 when memory grew by more than 5 MB per 10,000."""
    return asyncio.run(_run(calls))


async def _run(calls: int) -> int:
    sock = listen(Address("127.0.0.1", 0), "bench")
    server = Server(
        from_dict({"audiosocket": {}, "calls": {"keep_ended": 10}, "log": {"level": "error"}}),
        NullRecogniser(Stamps(np.zeros((1, 1)))),
    )
    await server.start({"audiosocket": sock})
    await _calls(server, sock, AT_ONCE * 4)  # whatever is made once
    before = _inventory()
    points: list[tuple[int, int]] = []
    done = 0
    began = time.monotonic()
    while done < calls:
        await _calls(server, sock, AT_ONCE)
        done += AT_ONCE
        if done % (AT_ONCE * 10) == 0:
            gc.collect()
            points.append((done, rss()))
    gc.collect()
    after = _inventory()
    late = points[len(points) // 5 :]  # the last 80 %
    slope = float(np.polyfit([n for n, _ in late], [m for _, m in late], 1)[0]) * 10_000 / 1e6
    print(f"{done} calls in {time.monotonic() - began:.1f} s")
    print(f"memory: slope {slope:+.2f} MB per 10,000 calls over the last 80 % (limit 5)")
    for name in before:
        print(f"{name}: {before[name]} before, {after[name]} after")
    await server.drain()
    await server.close()
    sock.close()
    return int(slope > 5)


async def _calls(server: Server, sock: socket.socket, n: int) -> None:
    loop = asyncio.get_running_loop()
    ended = server.switchboard.total_ended + n
    for _ in range(n):
        peer = socket.socket()
        peer.setblocking(False)
        await loop.sock_connect(peer, sock.getsockname())
        await loop.sock_sendall(peer, b"\x01\x00\x10" + uuid.uuid4().bytes + FRAMES)
        peer.shutdown(socket.SHUT_WR)
        peer.close()
    while server.switchboard.total_ended < ended:  # noqa: ASYNC110 - no event for a bench only
        await asyncio.sleep(0.001)


def _inventory() -> dict[str, int]:
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }
