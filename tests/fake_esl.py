"""A scripted FreeSWITCH event socket on a free loopback port, as gullible as the real one.

It reads as mod_event_socket.c does (v1.10, read_packet and parse_command): line feeds before a
command are skipped, two of them end it, NUL cuts, a carriage return hides what follows, and a block
with "unload" and "mod_event_socket" anywhere in it unloads the module. Whatever is smuggled in is
therefore executed here too, and shows in `commands`. Arguments of API commands are split and
unquoted as switch_utils.c does it, and events written as switch_event.c writes them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

Pairs = list[tuple[str, str]]
GREETING = b"Content-Type: auth/request\n\n"
GOODBYE = "Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
SAFE = "!$'()*,-./_~"  # what switch_url_encode leaves as it is, besides letters and digits


@dataclass
class Received:
    """One command as FreeSWITCH understood it. `block`: all of its lines."""

    line: str
    headers: Pairs
    body: bytes
    block: bytes

    @property
    def name(self) -> str:
        """``sendevent``, ``uuid_setvar`` …: of an API command, that one's."""
        words = [*self.line.split(" "), "", ""]
        return words[1] if words[0] == "api" else words[0]

    def get(self, key: str) -> str:
        found = (value for name, value in self.headers if name.lower() == key.lower())
        return next(found, "")


def stripped(text: bytes) -> bytes:
    """strip_cr: up to the first carriage return, or, where there is none, the first line feed."""
    return text.split(b"\r")[0] if b"\r" in text else text.split(b"\n")[0]


@dataclass
class Reader:
    """Bytes → what FreeSWITCH would execute."""

    rest: bytes = b""
    received: list[Received] = field(default_factory=list)

    def feed(self, data: bytes) -> list[Received]:
        self.rest += data
        while self._one():
            pass
        received, self.received = self.received, []
        return received

    def _one(self) -> bool:
        self.rest = self.rest.lstrip(b"\r\n")
        end = re.search(rb"\n\r*\n", self.rest)
        if end is None:
            return False
        block = self.rest[: end.end()]
        headers, at, body = [], end.end(), b""
        for key, value in self._lines(block.split(b"\0")[0]):
            headers.append((key.decode(errors="replace"), value.decode(errors="replace")))
            if key.lower() == b"content-length":
                length = int(re.match(rb"\d*", value)[0] or 0)  # type: ignore[index]
                if len(self.rest) < at + length:
                    return False
                body, at = self.rest[at : at + length], at + length
        self.rest = self.rest[at:]
        line = stripped(block.split(b"\0")[0]).decode(errors="replace")
        self.received.append(Received(line, headers, body, block))
        return True

    def _lines(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The headers, with the way to find the next line that the original has."""
        pairs, current, first = [], block, True
        while current:
            rest = b""
            if (cut := current.find(b"\r")) >= 0 or (cut := current.find(b"\n")) >= 0:
                rest = current[cut:].lstrip(b"\r\n")
            key, colon, value = stripped(current).partition(b":")
            if not first and key and colon:
                pairs.append((key, value.lstrip(b" ")))
            current, first = rest, False
        return pairs


def arguments(text: str, most: int = 3) -> list[str]:
    """switch_separate_string with blanks; the last of `most` has all of the rest."""
    parts: list[str] = []
    at = 0
    while at < len(text) and len(parts) < most:
        start, quotes = at, False
        while at < len(text) and text[at] == " ":
            at += 1
        if len(parts) == most - 1:
            at = len(text)
        while at < len(text) and (quotes or text[at] != " "):
            quotes ^= text[at] == "'"
            at += 2 if text[at] == "\\" else 1
        parts.append(_unquoted(text[start:at]))
        while at < len(text) and text[at] == " ":
            at += 1
    return parts


def _unquoted(text: str) -> str:
    text, out, at, quotes, end = text.lstrip(" "), "", 0, False, 0
    while at < len(text):
        c, following = text[at], text[at + 1 : at + 2]
        if c == "\\" and following and following in "'\"\\nrts":
            out += {"n": "\n", "r": "\r", "t": "\t", "s": " "}.get(following, following)
            end, at = len(out), at + 1
        elif c == "'" and (quotes or "'" in text[at + 1 :]):
            quotes = not quotes
        else:
            out += c
            end = len(out) if c != " " or quotes else end
        at += 1
    return out[:end]


def serialized(headers: Pairs, body: bytes) -> bytes:
    """An event as `event plain` has it."""
    lines = [f"{key}: {quote(value, safe=SAFE) or '_undef_'}" for key, value in headers]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\n".join([*lines, "", ""]).encode() + body


class FakeEsl:
    """``async with FakeEsl() as fake``: then connect to `fake.port` with the password s3cret."""

    def __init__(self) -> None:
        self.port = 0
        self.greeting = GREETING
        self.password = "s3cret"
        self.users = {"callscribe@pbx": ("pw", {"uuid_setvar"})}  # password, esl-allowed-api
        self.silent: set[str] = set()  # commands that are not answered, nor what comes after them
        self.drop_on: set[str] = set()  # commands that end the connection, once
        self.replies: dict[str, str] = {}  # command → what is answered to it
        self.channels: set[str] = set()
        self.variables: dict[tuple[str, str], str] = {}
        self.commands: list[Received] = []
        self.fired: list[tuple[Pairs, bytes]] = []
        self.queued: list[str] = []  # channels that were given an event
        self.unloaded = False
        self.connections = 0
        self._open: dict[asyncio.StreamWriter, set[str] | None] = {}  # → API commands; None: all
        self._writers: set[asyncio.StreamWriter] = set()  # logged in or not
        self._listening: dict[asyncio.StreamWriter, set[str]] = {}
        self._stalled: dict[asyncio.StreamWriter, list[Received]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeEsl:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server:
            self._server.close()
            await self._server.wait_closed()
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    @property
    def sessions(self) -> int:
        """Connections that are logged in."""
        return len(self._open)

    def named(self, name: str) -> list[Received]:
        return [command for command in self.commands if command.name == name]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that happened here makes the condition true."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def emit_raw(self, data: bytes) -> None:
        for writer in self._open:
            writer.write(data)

    def answer_all(self) -> None:
        """Go on with what was left lying, and be silent no more."""
        self.silent.clear()
        stalled, self._stalled = self._stalled, {}
        for writer, commands in stalled.items():
            for command in commands:
                self._execute(writer, command)

    # -- one connection --------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self._changed.set()
        try:
            writer.write(self.greeting)
            parser = Reader()
            while data := await reader.read(4096):
                for command in parser.feed(data):
                    self.commands.append(command)
                    self._execute(writer, command)
        except ConnectionError:
            pass
        finally:
            self._open.pop(writer, None)
            self._listening.pop(writer, None)
            self._stalled.pop(writer, None)
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)
            self._changed.set()

    def _execute(self, writer: asyncio.StreamWriter, command: Received) -> None:
        self._changed.set()
        name, lower = command.name, command.block.split(b"\0")[0].lower()
        if b"mod_event_socket" in lower and (b"unload" in lower or b"reload" in lower):
            self.unloaded = True
        if writer in self._stalled:
            self._stalled[writer].append(command)
        elif name in self.drop_on:
            self.drop_on.discard(name)
            writer.transport.abort()
        elif name in self.silent:
            self._stalled[writer] = [command]
        elif name in self.replies:
            self._reply(writer, self.replies[name])
        elif writer not in self._open:
            self._log_in(writer, command)
        elif command.line.startswith("api "):
            self._api(writer, command)
        else:
            answer = getattr(self, f"_do_{name}", None)
            text = answer(writer, command) if answer else "-ERR command not found"
            self._reply(writer, text)

    def _reply(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(f"Content-Type: command/reply\nReply-Text: {text}\n\n".encode())

    def _log_in(self, writer: asyncio.StreamWriter, command: Received) -> None:
        how, _, given = command.line.partition(" ")
        if how == "auth" and given == self.password:
            self._open[writer] = None
        elif how == "userauth":
            user, _, password = given.partition(":")
            expected, allowed = self.users.get(user, ("", set()))
            if password and password == expected:
                self._open[writer] = allowed
        elif how != "auth":
            return self._reply(writer, "-ERR command not found")
        if writer in self._open:
            return self._reply(writer, "+OK accepted")
        self._reply(writer, "-ERR invalid")
        notice = f"Content-Type: text/disconnect-notice\nContent-Length: {len(GOODBYE)}\n\n"
        writer.write((notice + GOODBYE).encode())
        writer.close()

    def _api(self, writer: asyncio.StreamWriter, command: Received) -> None:
        name, _, rest = command.line.removeprefix("api ").partition(" ")
        allowed = self._open[writer]
        if allowed is not None and name not in allowed:
            return self._reply(writer, "-ERR permission denied")
        known = {
            "uuid_setvar": self._setvar,
            "uuid_transfer": self._channel_command,
            "uuid_kill": self._channel_command,
            "uuid_record": self._channel_command,
        }
        body = known[name](rest) if name in known else f"-ERR {name} Command not found!\n"
        data = body.encode()
        writer.write(f"Content-Type: api/response\nContent-Length: {len(data)}\n\n".encode() + data)

    def _channel_command(self, rest: str) -> str:
        return "+OK\n" if rest.split(" ")[0] in self.channels else "-ERR No such channel!\n"

    def _setvar(self, rest: str) -> str:
        found = arguments(rest)
        if len(found) < 2:
            return "-USAGE: <uuid> <var> [value]\n"
        if found[0] not in self.channels:
            return "-ERR No such channel!\n"
        self.variables[found[0], found[1]] = found[2] if len(found) > 2 else ""
        return "+OK\n"

    def _do_nolog(self, writer: asyncio.StreamWriter, command: Received) -> str:
        return "-ERR not loging"

    def _do_event(self, writer: asyncio.StreamWriter, command: Received) -> str:
        _, form, *names = command.line.split(" ")
        assert form == "plain" and names[0] == "CUSTOM"
        self._listening.setdefault(writer, set()).update(names[1:])
        return "+OK event listener enabled plain"

    def _do_sendevent(self, writer: asyncio.StreamWriter, command: Received) -> str:
        unique = command.get("Unique-ID")
        if unique in self.channels:
            self.queued.append(unique)  # whoever listens does not hear of it
            return "+OK 7f4de4bc-17d7-11dd-b7a0-db4edd065621"
        headers = [("Command", command.line), *command.headers, ("Event-Name", "CUSTOM")]
        self.fired.append((headers, command.body))
        data = serialized(headers, command.body)
        outer = f"Content-Length: {len(data)}\nContent-Type: text/event-plain\n\n".encode()
        for listener, subclasses in self._listening.items():
            if command.get("Event-Subclass") in subclasses:
                listener.write(outer + data)
        return "+OK 7f4de4bc-17d7-11dd-b7a0-db4edd065621"

    def _do_sendmsg(self, writer: asyncio.StreamWriter, command: Received) -> str:
        channel = command.line.partition(" ")[2]
        return "+OK" if channel in self.channels else f"-ERR invalid session id [{channel}]"
