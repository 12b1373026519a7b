"""The TCP transport on real sockets: who is served, refused, ended and noticed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from bridge.config import Address
from bridge.ingress.audiosocket import SILENCE_MESSAGE, AudioSocket, Rules
from bridge.listeners import listen
from bridge.transport import connection as connection_module
from bridge.transport.connection import Connection
from bridge.transport.tcp import Limits, TcpPort
from bridge.types import Audio, Closed, Digit, IngressEvent, Opened
from tests.waiting import until

HELLO = b"\x01\x00\x10" + uuid.UUID(int=0x5EED0000000040008000000000000001).bytes
FRAME = b"\x10\x01\x40" + b"\x11\x01" * 160
GOODBYE = b"\x00\x00\x00"


class Recorder:
    """A `User` that remembers."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.events: list[IngressEvent] = []
        self.connections: list[Connection] = []
        self.turns = 0
        self.on_event: Callable[[Connection, IngressEvent], None] = lambda c, e: None

    def ingress(self, now: float) -> AudioSocket:
        return AudioSocket(self.rules, now)

    def event(self, connection: Connection, event: IngressEvent, now: float) -> None:
        self.events.append(event)
        if connection not in self.connections:
            self.connections.append(connection)
        self.on_event(connection, event)

    def turn_over(self) -> None:
        self.turns += 1

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def samples(self) -> int:
        return sum(len(e.frame.samples) for e in self.events if isinstance(e, Audio))


Start = Callable[..., Awaitable[tuple[TcpPort, Recorder]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    ports: list[TcpPort] = []

    async def begin(
        limits: Limits | None = None, rules: Rules | None = None
    ) -> tuple[TcpPort, Recorder]:
        user = Recorder(rules or Rules())
        port = TcpPort(listen(Address("127.0.0.1", 0), "test"), user, limits or Limits())
        ports.append(port)
        port.start()
        return port, user

    yield begin
    for port in ports:
        port.close()
        port.sock.close()


class Peer:
    """A client socket, closed by `peers`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, n: int) -> bytes:
        data = b""
        async with asyncio.timeout(10):
            while len(data) < n:
                more = await asyncio.get_running_loop().sock_recv(self.sock, n - len(data))
                if not more:
                    break
                data += more
        return data

    async def to_eof(self) -> bytes:
        return await self.receive(1 << 30)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Connect = Callable[[TcpPort], Awaitable[Peer]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    peers: list[Peer] = []

    async def begin(port: TcpPort) -> Peer:
        sock = socket.socket()
        sock.setblocking(False)
        peers.append(Peer(sock))
        await asyncio.get_running_loop().sock_connect(sock, port.sock.getsockname())
        return peers[-1]

    yield begin
    for peer in peers:
        peer.sock.close()


async def test_a_call_from_its_uuid_to_its_end(start: Start, connect: Connect) -> None:
    port, user = await start()
    peer = await connect(port)
    await peer.send(HELLO)
    assert await peer.receive(3 * 323) == SILENCE_MESSAGE * 3  # M13, and it goes on
    await peer.send(FRAME * 10)
    await until(lambda: user.samples() == 1600)
    peer.sock.close()
    await until(lambda: port.connections == 0)
    assert user.kinds()[0] == "Opened"
    assert [e.reason for e in user.events if isinstance(e, Closed)][0] in ("eof", "reset")
    assert user.kinds().count("Closed") == 1


async def test_the_tail_below_the_low_water_mark_arrives(start: Start, connect: Connect) -> None:
    """SO_RCVLOWAT waits for 80 ms of audio; a digit and single frames must not wait."""
    port, user = await start()
    peer = await connect(port)
    await peer.send(HELLO + FRAME * 4)
    await until(lambda: user.samples() == 640)
    await peer.send(FRAME)
    await until(lambda: user.samples() == 800)
    await peer.send(b"\x03\x00\x015")
    await until(lambda: Digit("5") in user.events)
    await peer.send(FRAME)
    peer.sock.shutdown(socket.SHUT_WR)
    await until(lambda: user.kinds()[-1] == "Closed")
    assert user.samples() == 960


async def test_we_hang_up_with_zeros_then_read_to_eof(start: Start, connect: Connect) -> None:
    port, user = await start(rules=Rules(keepalive="1s"))
    peer = await connect(port)
    await peer.send(HELLO + FRAME)
    await until(lambda: user.samples() == 160)
    user.connections[0].hang_up()
    user.connections[0].hang_up()
    assert (await peer.receive(323 + 3)).replace(SILENCE_MESSAGE, b"") == GOODBYE
    await peer.send(FRAME * 50)  # what was under way is read, or the close would be a reset
    assert port.connections == 1
    peer.sock.shutdown(socket.SHUT_WR)
    assert await peer.to_eof() == b""
    await until(lambda: port.connections == 0)
    assert user.samples() == 160


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"GET / HTTP/1.1\r\n\r\n", "not kind 0x47"), (HELLO + b"\x10\xff\xff", "over max_frame")],
)
async def test_garbage_costs_only_itself(
    start: Start, connect: Connect, caplog: pytest.LogCaptureFixture, data: bytes, complaint: str
) -> None:
    port, user = await start(rules=Rules(keepalive="off"))
    good, bad = await connect(port), await connect(port)
    await good.send(HELLO)
    await bad.send(data)
    assert await bad.receive(3) == GOODBYE
    assert complaint in caplog.text
    bad.sock.close()
    await good.send(FRAME)
    await until(lambda: user.samples() == 160)
    await until(lambda: port.connections == 1)
    assert port.counters["protocol_errors"] == 1


async def test_a_slow_loris_has_a_deadline(start: Start, connect: Connect) -> None:
    port, user = await start(rules=Rules(uuid_deadline=0.05))
    user.on_event = lambda c, e: c.hang_up() if isinstance(e, Closed) else None
    peer = await connect(port)
    await peer.send(HELLO[:5])
    assert await peer.receive(3) == GOODBYE
    assert user.events == [Closed("timeout")]


async def test_who_does_not_close_after_our_goodbye_is_closed(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "LINGER", 0.05)
    port, user = await start()
    peer = await connect(port)
    await peer.send(HELLO)
    await until(lambda: user.connections)
    user.connections[0].hang_up()
    await until(lambda: port.connections == 0)
    assert port.counters["linger_timeouts"] == 1


async def test_full_and_draining_are_answered_with_zeros(start: Start, connect: Connect) -> None:
    port, _ = await start(Limits(connections=1), Rules(keepalive="off"))
    first = await connect(port)
    await first.send(HELLO)
    second = await connect(port)
    assert await second.receive(3) == GOODBYE
    await second.send(HELLO + FRAME * 3)
    second.sock.shutdown(socket.SHUT_WR)
    assert await second.to_eof() == b""
    assert port.counters["refused_limit"] == 1
    port.refuse = "draining"
    third = await connect(port)
    assert await third.receive(3) == GOODBYE


async def test_limits_of_an_address_and_networks(start: Start, connect: Connect) -> None:
    port, _ = await start(Limits(per_address=1), Rules(keepalive="off"))
    await connect(port)
    second = await connect(port)
    assert await second.receive(3) == GOODBYE
    closed, _ = await start(Limits(allow=("10.0.0.0/8",)))
    stranger = await connect(closed)
    assert await stranger.receive(3) == GOODBYE
    assert closed.counters["refused_address"] == 1


async def test_connections_wait_while_nobody_accepts(start: Start, connect: Connect) -> None:
    """What is sent meanwhile is in the kernel and is heard afterwards."""
    port, user = await start(rules=Rules(keepalive="off"))
    port.listen(False)
    peer = await connect(port)
    await peer.send(HELLO + FRAME * 100)
    assert user.events == []
    port.listen(True)
    await until(lambda: user.samples() == 16000)


async def test_a_reset_is_a_hang_up(start: Start, connect: Connect) -> None:
    port, user = await start()
    peer = await connect(port)
    await peer.send(HELLO)
    await until(lambda: user.connections)
    peer.reset()
    await until(lambda: port.connections == 0)
    assert user.events[-1] == Closed("reset")


async def test_a_peer_that_does_not_read_loses_only_silence(start: Start, connect: Connect) -> None:
    port, user = await start()
    peer = await connect(port)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await peer.send(HELLO)
    await until(lambda: user.connections)
    connection = user.connections[0]
    ingress = connection.ingress
    assert isinstance(ingress, AudioSocket)
    for _ in range(5000):  # minutes of silence that nobody reads
        ingress._out.append(SILENCE_MESSAGE)
        connection.flush()
    assert connection.dropped > 1000
    await peer.send(FRAME)
    await until(lambda: user.samples() == 160)


async def test_a_peer_can_be_made_to_wait(start: Start, connect: Connect) -> None:
    """By TCP: what it sends stays with it, until it is read again or the time is over."""
    port, user = await start(rules=Rules(keepalive="off"))
    peer = await connect(port)
    await peer.send(HELLO)
    await until(lambda: user.connections)
    (connection,) = user.connections
    connection.hold(port.now() + 60)
    connection.hold(port.now())  # the first word counts
    await peer.send(FRAME * 10)
    turns = user.turns
    await until(lambda: user.turns > turns + 50)
    assert user.samples() == 0
    connection.release()
    await until(lambda: user.samples() == 1600)
    connection.hold(port.now() + 0.05)
    await peer.send(FRAME)
    await until(lambda: user.samples() == 1760)
    connection.hold(port.now() + 60)
    connection.hang_up()
    peer.sock.close()
    await until(lambda: port.connections == 0)


async def test_a_peer_that_waits_and_is_gone_is_noticed(start: Start, connect: Connect) -> None:
    port, user = await start()
    peer = await connect(port)
    await peer.send(HELLO)
    await until(lambda: user.connections)
    user.connections[0].hold(port.now() + 60)
    peer.reset()
    await until(lambda: port.connections == 0)


async def test_an_error_of_ours_costs_one_connection(
    start: Start, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    port, user = await start(rules=Rules(keepalive="off"))

    def fail(connection: Connection, event: IngressEvent) -> None:
        if isinstance(event, Digit):
            raise RuntimeError("boom")

    user.on_event = fail
    bad, good = await connect(port), await connect(port)
    await bad.send(HELLO + b"\x03\x00\x011")
    await good.send(HELLO)
    assert await bad.receive(3) == GOODBYE
    await good.send(FRAME)
    await until(lambda: user.samples() == 160)
    assert "internal error" in caplog.text
    assert port.counters["internal_errors"] == 1
    assert user.kinds().count("Closed") == 1


async def test_a_thousand_calls_leave_nothing_behind(start: Start, connect: Connect) -> None:
    port, user = await start(rules=Rules(keepalive="off"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        peers = [await connect(port) for _ in range(10)]
        for peer in peers:
            await peer.send(HELLO + FRAME)
            peer.sock.close()
    await until(lambda: user.kinds().count("Closed") == 1000)
    await until(lambda: port.connections == 0)
    assert user.kinds().count("Opened") == 1000
    assert user.samples() == 160_000
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any(port._spokes) and not port._hosts


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="needs root and iproute2 for a network namespace of its own",
)
async def test_a_peer_that_vanishes_is_noticed(start: Start) -> None:
    """Half-open TCP. The peer lives in a namespace whose link goes down without a FIN."""
    name, subnet = f"cs{os.getpid() % 100000}", "10.203.77"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b",
        f"ip link set {name}b netns {name}",
        f"ip addr add {subnet}.1/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add {subnet}.2/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
    ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        user = Recorder(Rules())
        port = TcpPort(listen(Address(f"{subnet}.1", 0), "test"), user, Limits(peer_timeout=1.0))
        port.start()
        script = (
            "import socket,sys,time\n"
            f"s=socket.create_connection(('{subnet}.1',{port.sock.getsockname()[1]}))\n"
            "s.sendall(b'\\x01\\x00\\x10'+bytes(16))\n"
            "while s.recv(65536): pass\n"
        )
        peer = subprocess.Popen(["ip", "netns", "exec", name, "python3", "-c", script])
        try:
            await until(lambda: user.events)
            assert isinstance(user.events[0], Opened)
            subprocess.run(["ip", "-n", name, "link", "set", f"{name}b", "down"], check=True)
            await until(lambda: user.kinds()[-1] == "Closed")
            assert port.connections == 0
            assert user.kinds().count("Closed") == 1
        finally:
            peer.kill()
            peer.wait()
            port.close()
            port.sock.close()
    finally:
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_closing_with_something_unread_is_half_a_close_first() -> None:
    """A whole one would be a reset, which can overtake the goodbye."""

    class Port:
        dropped = False

        def drop(self, connection: object) -> None:
            self.dropped = True

    class Parted:
        def parting(self, data: bytes) -> bool:
            return True

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(bytes(5000))
        port = Port()
        connection: Any = Connection(port, ours, "h", Parted(), 0.0)  # type: ignore[arg-type]
        connection.ingress = None
        connection._part(b"")
        assert not port.dropped and theirs.recv(1) == b""  # they see our end
        connection.readable(1.0)
        assert not port.dropped
        theirs.shutdown(socket.SHUT_WR)
        for _ in range(2):
            connection.readable(1.0)
        assert port.dropped
