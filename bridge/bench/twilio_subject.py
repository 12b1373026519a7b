"""The process that is measured with Twilio's streams: our server, or fifty lines by hand."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys

import numpy as np
import numpy.typing as npt

from bridge.audio.g711 import decode_ulaw
from bridge.bench.stamps import Stamps
from bridge.bench.subject import NullLease, NullRecogniser, main
from bridge.bench.twilio import number_of
from bridge.config import from_dict
from bridge.server import Server
from bridge.switchboard import Switchboard
from bridge.types import Announcement

_KEEP: list[object] = []  # what runs until the process ends


class _Recogniser(NullRecogniser):
    """Knows whose lease is taken next: mu-law has too few levels to tell by the samples."""

    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        self.coming = -1

    def lease(self, heard, done):  # type: ignore[no-untyped-def]
        lease = NullLease(self._stamps, done)
        lease._leg = self.coming
        return lease


async def serve_ours(sock: socket.socket, stamps: Stamps, how: str) -> None:
    """The bridge itself, without HTTP and sinks but the log's."""
    settings = from_dict(
        {
            "websocket": {
                "max_connections": 100_000,
                "max_connections_per_address": 100_000,
                "start_deadline": 60,
            },
            "calls": {"max": 100_000},
            "log": {"level": "error"},
        }
    )
    recogniser = _Recogniser(stamps)
    server = Server(settings, recogniser)
    announce = Switchboard.announce

    def announced(board: Switchboard, announcement: Announcement, now: float) -> float:
        recogniser.coming = number_of(announcement.call)
        return announce(board, announcement, now)

    server.switchboard.announce = announced.__get__(server.switchboard)  # type: ignore[method-assign]
    await server.start({"websocket": sock})
    _KEEP.append(server)


async def serve_naive(sock: socket.socket, stamps: Stamps, how: str) -> None:
    """What one writes by hand: a handler, json and a soxr stream per leg."""
    import soxr
    from websockets.asyncio.server import ServerConnection, serve

    async def leg(ws: ServerConnection) -> None:
        resampler = soxr.ResampleStream(8000, 24000, 1, dtype="float32")
        buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        number, who = 0, -1
        async for message in ws:
            said = json.loads(message)
            if said["event"] == "start":
                who = number_of(said["start"]["callSid"])
            elif said["event"] == "media":
                ulaw = base64.b64decode(said["media"]["payload"])
                samples = decode_ulaw(ulaw).astype(np.float32) / 32768
                buffer = np.concatenate([buffer, resampler.resample_chunk(samples)])
                while len(buffer) >= 1920:
                    buffer = buffer[1920:]
                    stamps.mark(who, number)
                    number += 1

    server = await serve(leg, sock=sock, compression=None, ping_interval=None)
    _KEEP.append(server)
    await asyncio.sleep(0)


if __name__ == "__main__":
    main({"ours": serve_ours, "naive": serve_naive}, sys.argv[1:])
