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

from bridge.bench.media import allow_files
from bridge.bench.rtp import HEADER, udp_socket
from bridge.bench.stamps import Stamps
from bridge.bench.subject import NullRecogniser, rss
from bridge.config import Address, from_dict
from bridge.listeners import listen
from bridge.media import MediaRequest
from bridge.server import Server
from bridge.types import Announcement

AT_ONCE = 50
RESTING = 15_000  # sockets of calls that are over, at the most
FRAMES = b"".join(b"\x10\x01\x40" + bytes([i, 1] * 160) for i in range(8))


def run(calls: int, ingress: str = "audiosocket") -> int:
    """Print what was left of `calls` calls; 1 when memory grew by more than 5 MB per 10,000."""
    return asyncio.run(_run(calls, ingress))


async def _run(calls: int, ingress: str) -> int:
    sock = listen(Address("127.0.0.1", 0), "bench")
    settings = {
        "audiosocket": {},
        "rtp": {"ports": "1024-65535"},
        "calls": {"keep_ended": 10},
        "log": {"level": "error"},
    }
    server = Server(from_dict(settings), NullRecogniser(Stamps(np.zeros((1, 1)))))
    await server.start({"audiosocket": sock})

    async def some(n: int) -> None:
        await (_rtp_calls(server, n) if ingress == "rtp" else _calls(server, sock, n))

    if ingress == "rtp":
        allow_files(RESTING + 1000)
    await some(AT_ONCE * 4)  # whatever is made once
    await _rested(server, 0)
    gc.collect()
    before = _inventory()
    points: list[tuple[int, int]] = []
    done = 0
    began = time.monotonic()
    while done < calls:
        await some(AT_ONCE)
        await _rested(server, RESTING)
        done += AT_ONCE
        if done % (AT_ONCE * 20) == 0:
            await _rested(server, 0)  # so that like is compared with like
            gc.collect()
            points.append((done, rss()))
    await _rested(server, 0)
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


async def _rtp_calls(server: Server, n: int) -> None:
    """Announced, eight packets, BYE."""
    ended = server.switchboard.total_ended + n
    bye = b"\x80\xc9\x00\x01\x00\x00\x00\x07\x81\xcb\x00\x01\x00\x00\x00\x07"
    for _ in range(n):
        with udp_socket() as peer:
            source = peer.getsockname()
            media = server.open_media(
                Announcement(str(uuid.uuid4())), MediaRequest(source=(source[0], source[1]))
            )
            for frame in range(8):
                head = HEADER.pack(0x80, 0, frame, frame * 160) + b"\x00\x00\x00\x07"
                peer.sendto(head + bytes([frame]) * 160, (media.address, media.port))
            peer.sendto(bye, (media.address, media.port))
    while server.switchboard.total_ended < ended:  # noqa: ASYNC110 - no event for a bench only
        await asyncio.sleep(0.001)


async def _rested(server: Server, most: int) -> None:
    """Until no more ports than that rest."""
    assert server.rtp is not None
    while server.rtp.sockets.resting > most:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.01)


def _inventory() -> dict[str, int]:
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }
