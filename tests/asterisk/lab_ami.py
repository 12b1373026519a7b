"""A small AMI client of the tests' own: the bridge's is what is tested."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lab_wait import WAIT, Watched

Message = dict[str, str]


class Ami(Watched):
    """One logged-in session, with every event since then in `events`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader, self._writer = reader, writer
        self._responses: dict[str, asyncio.Future[Message]] = {}
        self._next = 0
        self.events: list[Message] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._reader.readline()  # the banner
            message: Message = {}
            while line := await self._reader.readline():
                key, colon, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
                if colon or line.strip():
                    message[key] = value
                elif message:
                    await self._take(message)
                    message = {}
        for future in self._responses.values():
            if not future.done():
                future.set_exception(ConnectionError("AMI is gone"))

    async def _take(self, message: Message) -> None:
        if "Response" in message:
            future = self._responses.pop(message.get("ActionID", ""), None)
            if future is not None and not future.done():
                future.set_result(message)
            return
        await self.change(lambda: self.events.append(message))

    async def action(self, name: str, *headers: tuple[str, str]) -> Message:
        """Send an action and wait for its response."""
        self._next += 1
        ident = f"lab-{self._next}"
        lines = [("Action", name), ("ActionID", ident), *headers]
        future = self._responses[ident] = asyncio.get_running_loop().create_future()
        self._writer.write("".join(f"{k}: {v}\r\n" for k, v in lines).encode() + b"\r\n")
        await self._writer.drain()
        return await asyncio.wait_for(future, WAIT)

    def seen(self) -> str:
        return "\n".join(str(e) for e in self.events if e["Event"] == "UserEvent")

    async def event(self, **headers: str) -> Message:
        """The first event with these headers, come or to come."""
        await self.until(lambda: bool(self.find(**headers)), str(headers))
        return self.find(**headers)[0]

    def find(self, **headers: str) -> list[Message]:
        """Events so far with these headers."""
        wanted = headers.items()
        return [e for e in self.events if all(e.get(k) == v for k, v in wanted)]

    async def originate(self, exten: str, says: str, *variables: str, context: str = "lab") -> None:
        """A call without a phone: one end of a Local channel says a prompt, the other dials."""
        answer = await self.action(
            "Originate",
            ("Channel", f"Local/{exten}@{context}/n"),
            ("Application", "Playback"),
            ("Data", says),
            ("Async", "true"),
            *(("Variable", v) for v in variables),
        )
        assert answer["Response"] == "Success", answer

    async def hang_up_all(self) -> None:
        """End every call."""
        await self.action("Hangup", ("Channel", "/.*/"))

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await self._task


@asynccontextmanager
async def connect(port: int, user: str, secret: str) -> AsyncIterator[Ami]:
    """Log in; on the way out, hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    ami = Ami(reader, writer)
    try:
        answer = await ami.action("Login", ("Username", user), ("Secret", secret))
        assert answer["Response"] == "Success", answer
        yield ami
    finally:
        await ami.close()
