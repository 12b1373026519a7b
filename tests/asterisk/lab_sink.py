"""The server's side of AudioSocket, bare: what Asterisk sends is kept, per UUID."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from lab_wait import Watched

SILENCE = b"\x10\x01\x40" + bytes(320)
HANGUP = b"\x00\x00\x00"


@dataclass
class Heard:
    """One connection."""

    uuid: str
    writer: asyncio.StreamWriter
    kinds: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    digits: str = ""
    audio: bytearray = field(default_factory=bytearray)
    over: bool = False

    @property
    def samples(self) -> npt.NDArray[np.int16]:
        return np.frombuffer(bytes(self.audio), "<i2")


class Sink(Watched):
    """Listens on `port`. `refuse`: answer each connection with a hang-up, as a busy bridge does."""

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self.refuse = False
        self.heard: dict[str, Heard] = {}
        self.refused = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # also when it never ran

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await (self._refuse(reader, writer) if self.refuse else self._hear(reader, writer))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HANGUP)
        while await reader.read(65536):
            pass
        await self.change(lambda: setattr(self, "refused", self.refused + 1))

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(19)
        assert head[:3] == b"\x01\x00\x10", head
        heard = Heard(str(uuid.UUID(bytes=head[3:])), writer)
        await self.change(lambda: self.heard.setdefault(heard.uuid, heard))
        try:
            while True:
                kind, high, low = await reader.readexactly(3)
                data = await reader.readexactly(high * 256 + low)
                if kind == 0x03:
                    heard.digits += data.decode()
                    continue
                heard.kinds.append(kind)
                heard.sizes.append(len(data))
                heard.audio += data
                if not writer.is_closing():
                    writer.write(SILENCE)  # as the bridge does: Asterisk goes without for 2 s only
                await self.change()
        finally:
            await self.change(lambda: setattr(heard, "over", True))

    def seen(self) -> str:
        return str({h.uuid: (len(h.audio), h.over) for h in self.heard.values()})

    async def call(self, number: int = 1, seconds: float = 0.0) -> Heard:
        """The call that came as the `number`th, once it has sent that much audio."""
        await self.until(
            lambda: (
                len(self.heard) >= number
                and len(list(self.heard.values())[number - 1].audio) >= seconds * 16000
            ),
            f"{seconds} s of call {number}",
        )
        return list(self.heard.values())[number - 1]

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def listen(*, refuse: bool = False) -> AsyncIterator[Sink]:
    """A sink on a free loopback port."""
    sink = Sink()
    sink.refuse = refuse
    server = await asyncio.start_server(sink.take, "127.0.0.1", 0)
    sink.port = server.sockets[0].getsockname()[1]
    try:
        yield sink
    finally:
        server.close()
        await sink.close()
        await server.wait_closed()
