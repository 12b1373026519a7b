"""A scripted Asterisk Manager on a free loopback port, as strict and as gullible as the real one.

It reads as main/manager.c does: a line feed ends a line whatever precedes it, NUL cuts a value, an
empty line executes what came before it, a line may have 1022 bytes and a message 128 of them.
Whatever is smuggled in is therefore executed here too, and shows in `actions`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Pairs = list[tuple[str, str]]
TOO_LONG = "Failed to parse message: line too long"
TOO_MANY = "Too many lines in message or allocation failure"


@dataclass
class Received:
    """One message as Asterisk understood it. `error` is what it would answer, if anything."""

    headers: Pairs
    error: str = ""

    def get(self, key: str) -> str:
        found = (value for name, value in self.headers if name.lower() == key.lower())
        return next(found, "")


@dataclass
class Reader:
    """Bytes → what Asterisk would execute."""

    rest: bytes = b""
    headers: Pairs = field(default_factory=list)
    error: str = ""

    def feed(self, data: bytes) -> list[Received]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        received = []
        for line in lines:
            text = line.removesuffix(b"\r").split(b"\0")[0]
            if text:
                self._header(text)
            elif self.headers or self.error:
                received.append(Received(self.headers, self.error))
                self.headers, self.error = [], ""
        return received

    def _header(self, line: bytes) -> None:
        if len(line) > 1022:
            self.error = TOO_LONG
        elif len(self.headers) >= 128:
            self.error = TOO_MANY
        key, _, value = line.decode(errors="replace").partition(":")
        self.headers.append((key, value.removeprefix(" ")))


class FakeAmi:
    """``async with FakeAmi() as fake``: then connect to `fake.port` as callscribe / s3cret."""

    def __init__(self) -> None:
        self.port = 0
        self.banner = b"Asterisk Call Manager/11.0.0\r\n"
        self.login_error = ""  # instead of looking at the secret
        self.silent: set[str] = set()  # actions that get no answer
        self.drop_on: set[str] = set()  # actions that end the connection, once
        self.errors: dict[str, str] = {}  # action → its Response: Error
        self.channels: set[str] = set()
        self.variables: dict[tuple[str, str], str] = {}
        self.actions: list[Received] = []
        self.connections = 0
        self._open: dict[asyncio.StreamWriter, str] = {}  # → its challenge, "" when logged in
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered: list[tuple[asyncio.StreamWriter, Received]] = []
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeAmi:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As `core stop now`: all connections end, the port is closed."""
        if self._server:
            self._server.close()
            await self._server.wait_closed()
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    @property
    def sessions(self) -> int:
        return len(self._open)

    def named(self, name: str) -> list[Received]:
        return [action for action in self.actions if action.get("Action") == name]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that happened here makes the condition true."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def emit(self, *headers: tuple[str, str]) -> None:
        self.emit_raw("".join(f"{k}: {v}\r\n" for k, v in headers).encode() + b"\r\n")

    def emit_raw(self, data: bytes) -> None:
        for writer, challenge in self._open.items():
            if not challenge:
                writer.write(data)

    def answer_all(self) -> None:
        """Answer what was received in silence, and be silent no more."""
        self.silent.clear()
        waiting, self._unanswered = self._unanswered, []
        for writer, action in waiting:
            self._answer(writer, action)

    # -- one connection -------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._open[writer] = str(10_000 + self.connections)
        self._changed.set()
        try:
            writer.write(self.banner)
            parser = Reader()
            while data := await reader.read(4096):
                for action in parser.feed(data):
                    self._execute(writer, action)
        except ConnectionError:
            pass
        finally:
            del self._open[writer]
            writer.transport.abort()
            self._tasks.discard(task)
            self._changed.set()

    def _execute(self, writer: asyncio.StreamWriter, action: Received) -> None:
        self.actions.append(action)
        self._changed.set()
        name = action.get("Action")
        if name in self.drop_on:
            self.drop_on.discard(name)
            writer.transport.abort()
        elif name in self.silent:
            self._unanswered.append((writer, action))
        else:
            self._answer(writer, action)

    def _answer(self, writer: asyncio.StreamWriter, action: Received) -> None:
        name = action.get("Action")
        error = action.error or self.errors.get(name, "")
        answer = getattr(self, f"_do_{name.lower()}", None)
        if error:
            self._reply(writer, action, [("Response", "Error"), ("Message", error)])
        elif self._open.get(writer) and name not in ("Login", "Challenge", "Logoff"):
            self._reply(writer, action, [("Response", "Error"), ("Message", "Permission denied")])
        elif answer is None:
            self._reply(writer, action, [("Response", "Error"), ("Message", "Invalid command")])
        else:
            self._reply(writer, action, answer(writer, action))

    def _reply(
        self, writer: asyncio.StreamWriter, action: Received, lines: Sequence[tuple[str, str]]
    ) -> None:
        first, *more = lines
        headers = [first, ("ActionID", action.get("ActionID")), *more]
        writer.write("".join(f"{k}: {v}\r\n" for k, v in headers).encode() + b"\r\n")

    def _do_challenge(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        return [("Response", "Success"), ("Challenge", self._open[writer])]

    def _do_login(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        key = hashlib.md5(f"{self._open[writer]}s3cret".encode()).hexdigest()
        good = action.get("Secret") == "s3cret" or (
            action.get("AuthType") == "MD5" and action.get("Key") == key
        )
        if self.login_error or not good or action.get("Username") != "callscribe":
            return [("Response", "Error"), ("Message", self.login_error or "Authentication failed")]
        self._open[writer] = ""
        return [("Response", "Success"), ("Message", "Authentication accepted")]

    def _do_ping(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        return [("Response", "Success"), ("Ping", "Pong")]

    def _do_logoff(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        return [("Response", "Goodbye"), ("Message", "Thanks for all the fish.")]

    def _do_corestatus(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        return [("Response", "Success")]

    def _do_userevent(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        """The event comes before the response, and carries the sender's ActionID."""
        copied = [h for h in action.headers if h[0].lower() not in ("action", "userevent")]
        self.emit(("Event", "UserEvent"), ("UserEvent", action.get("UserEvent")), *copied)
        return [("Response", "Success"), ("Message", "Event Sent")]

    def _on_channel(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        if action.get("Channel") not in self.channels:
            return [("Response", "Error"), ("Message", "No such channel")]
        return [("Response", "Success")]

    _do_redirect = _do_hangup = _do_mixmonitor = _do_stopmixmonitor = _on_channel

    def _do_listcommands(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        names = ("Redirect", "Hangup", "Setvar", "UserEvent", "StopMixMonitor")  # not MixMonitor
        return [("Response", "Success"), *((name, "… (Priv: all)") for name in names)]

    def _do_getvar(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        value = self.variables.get(("", action.get("Variable")), "")
        return [("Response", "Success"), ("Value", value)]

    def _do_setvar(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        channel = action.get("Channel")
        if channel not in self.channels:
            return [("Response", "Error"), ("Message", "No such channel")]
        self.variables[channel, action.get("Variable")] = action.get("Value")
        return [("Response", "Success"), ("Message", "Variable Set")]
