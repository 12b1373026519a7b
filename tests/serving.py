"""`callscribe serve` as a process of its own, callers that speak tones, and what its log says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.engine.tones import encode, text_of

ROOT = Path(__file__).parents[1]
GOODBYE = b"\x00\x00\x00"
PATIENCE = 30.0  # s; nothing here takes long, but machines stall
MARK = "CALLSCRIBE_TEST_MARK"  # in the environment of every process of one bridge
_FINAL = re.compile(r'call=(\S+) .*type=transcript\.final .*text="([^"]*)"')

TOKEN = "a secret word"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def frames(words: Iterable[int]) -> bytes:
    """Words of the tones engine as AudioSocket messages of 20 ms."""
    audio = encode(words).astype("<i2").tobytes()
    audio += bytes(-len(audio) % 320)
    return b"".join(b"\x10\x01\x40" + audio[i : i + 320] for i in range(0, len(audio), 320))


def said(words: Iterable[int]) -> str:
    return " ".join(map(text_of, words))


class Peer:
    """One leg, as Asterisk would open it. Closed by the end of `with`."""

    def __init__(self, port: int) -> None:
        self.id = str(uuid.uuid4())
        self._port = port
        self._sock = socket.socket()
        self._sock.setblocking(False)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Peer:
        await self._loop.sock_connect(self._sock, ("127.0.0.1", self._port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sock.close()

    async def hello(self) -> None:
        await self._send(b"\x01\x00\x10" + uuid.UUID(self.id).bytes)

    async def speak(self, words: Iterable[int]) -> None:
        await self._send(frames(words))

    async def be_quiet(self) -> None:
        """A second of silence."""
        await self._send((b"\x10\x01\x40" + bytes(320)) * 50)

    async def _send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(self._sock, data)

    async def to_eof(self) -> bytes:
        """All that comes until the other side closes or resets."""
        data = b""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                while more := await self._loop.sock_recv(self._sock, 65536):
                    data += more
        return data

    async def goodbye(self) -> bytes:
        """Read what should be a hang-up, then close our side as Asterisk does; to its EOF."""
        async with asyncio.timeout(PATIENCE):
            data = await self._loop.sock_recv(self._sock, 3)
        self.hang_up()
        return data + await self.to_eof()

    def hang_up(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)


async def refused(port: int) -> bytes:
    """What a caller who should be refused is told."""
    async with Peer(port) as peer:
        await peer.hello()
        await peer.speak([1])
        return await peer.goodbye()


async def http(port: int, path: str, method: str = "GET", **body: str) -> tuple[int, str]:
    """Status and body of a request."""
    data = json.dumps(body).encode() if body else b""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                + data
            )
            head, _, text = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
    return int(head.split()[1]), text.decode()


def marked(mark: str) -> set[int]:
    """Processes, zombies left out, that were started with this mark in their environment."""
    pids = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                pids.add(int(entry.name))
    return pids


def children_of(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


class Bridge:
    """A running command. Its log is read all the while; `lines` and `finals` are what it said."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self.process = process
        self.mark = mark
        self.audiosocket = self.http = 0
        self.lines: list[str] = []
        self.finals: defaultdict[str, list[str]] = defaultdict(list)  # by call, in order
        self._news = asyncio.Condition()
        self._over = False  # the last process that had the log open is gone
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            async with self._news:
                self.lines.append(line.rstrip("\n"))
                if found := _FINAL.search(line):
                    self.finals[found[1]].append(found[2])
                self._news.notify_all()
        async with self._news:
            self._over = True
            self._news.notify_all()

    async def when(self, condition: Callable[[], object]) -> None:
        """Until the log has made it true. It fails when the last process has closed the log."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE), self._news:
                await self._news.wait_for(lambda: condition() or self._over)
        assert condition(), "\n".join(self.lines)

    async def logged(self, text: str, times: int = 1) -> None:
        """Until this has been logged so often."""
        await self.when(lambda: self.count(text) >= times)

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    async def heard(self, peer: Peer, words: Iterable[int]) -> None:
        """Until the finals of a call are exactly these words; at its end, if they are not."""
        ended = f"call={peer.id} .*type=call.ended"
        wanted = said(words)
        await self.when(
            lambda: (
                " ".join(self.finals[peer.id]) == wanted
                or any(re.search(ended, line) for line in self.lines)
            )
        )
        assert " ".join(self.finals[peer.id]) == wanted, "\n".join(self.lines)

    async def exited(self) -> int:
        """Exit status, once every process that has the log open is gone; none may be left."""
        async with asyncio.timeout(PATIENCE):
            status = await self.process.wait()
            await self._reader
        assert marked(self.mark) == set()
        return status

    def workers(self) -> set[int]:
        """Process ids of the parent's children."""
        return children_of(self.process.pid)

    def worker(self) -> int:
        (pid,) = self.workers()
        return pid

    async def ready(self, path: str = "/readyz") -> tuple[int, str]:
        return await http(self.http, path)

    async def end(self) -> None:
        """Whatever is left of it, now."""
        for _ in range(20):  # who is killed may just have started another
            pids = marked(self.mark)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                break
            await asyncio.sleep(0)
        await self.process.wait()
        await self._reader


@asynccontextmanager
async def command(*args: str, **environment: str) -> AsyncIterator[Bridge]:
    """Any command of ours; everything it started is ended in the end."""
    mark = uuid.uuid4().hex
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", *args),
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error", **environment, MARK: mark},
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    bridge = Bridge(process, mark)
    try:
        yield bridge
    finally:
        await bridge.end()


def write_config(path: Path, sections: Mapping[str, Mapping[str, object]]) -> None:
    """A TOML file of plain values."""
    path.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
            for section, keys in sections.items()
        )
    )


@asynccontextmanager
async def serving(folder: Path, **changes: Mapping[str, object]) -> AsyncIterator[Bridge]:
    """`callscribe serve` with tones, once it is ready. `changes`: keys of sections.

    The folder is where Python finds engines that a test has written there.
    """
    ports = free_port(), free_port()
    sections: dict[str, dict[str, object]] = {
        "engine": {"kind": "tones", "slots": 16},
        "audiosocket": {"listen": f"127.0.0.1:{ports[0]}", "keepalive": "off"},
        "http": {"listen": f"127.0.0.1:{ports[1]}", "token": TOKEN},
        "log": {"transcripts": True},
        "service": {"drain_timeout": 20.0},
    }
    for section, keys in changes.items():
        sections.setdefault(section, {}).update(keys)
    write_config(folder / "bridge.toml", sections)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    async with command(
        "serve", "-c", str(folder / "bridge.toml"), PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1"
    ) as bridge:
        bridge.audiosocket, bridge.http = ports
        await bridge.logged(": ready:")
        yield bridge
