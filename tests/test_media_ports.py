"""Which port a call gets, who else could get it, and what becomes of it afterwards."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from bridge.config import PortRange
from bridge.errors import BridgeError, Busy
from bridge.media_ports import REST, MediaPorts

HOST = "127.0.0.1"
Make = Callable[..., MediaPorts]


@pytest.fixture
def span() -> PortRange:
    """Ten ports, five of them even, that nobody has at the moment.

    Below the ports the kernel hands out, and begun anywhere: tests run beside one another.
    """
    for first in random.sample(range(22000, 32000, 10), 1000):
        try:
            for port in range(first, first + 10):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.bind((HOST, port))
        except OSError:
            continue
        return PortRange(first, first + 9)
    raise AssertionError("no ten free ports in a row")


@pytest.fixture
def taken() -> Iterator[list[socket.socket]]:
    """Sockets to be closed."""
    socks: list[socket.socket] = []
    yield socks
    for sock in socks:
        sock.close()


@pytest.fixture
def make(span: PortRange) -> Iterator[Make]:
    made: list[MediaPorts] = []

    def begin(host: str = HOST, ports: PortRange = span) -> MediaPorts:
        made.append(MediaPorts(host, ports))
        return made[-1]

    yield begin
    for ports in made:
        ports.close()


def number(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_every_even_port_is_handed_out_once(
    make: Make, span: PortRange, taken: list[socket.socket]
) -> None:
    ports = make()
    assert (ports.free, ports.used, ports.resting) == (5, 0, 0)
    taken += [ports.take(0.0) for _ in range(5)]
    assert sorted(map(number, taken)) == list(range(span.first, span.last, 2))
    assert (ports.free, ports.used) == (0, 5)
    with pytest.raises(Busy) as e:
        ports.take(0.0)
    assert str(e.value) == f"no port of rtp.ports = {span} is free; make the range larger"
    assert e.value.reason == "limit"


def test_which_one_is_not_to_be_guessed(make: Make) -> None:
    orders = set()
    for _ in range(30):
        ports = make()
        socks = [ports.take(0.0) for _ in range(5)]
        orders.add(tuple(map(number, socks)))
        for sock in socks:
            sock.close()
    assert len(orders) > 10  # of 120; the chance of fewer is nil


def test_a_used_port_rests_before_the_next_call_gets_it(
    make: Make, span: PortRange, taken: list[socket.socket]
) -> None:
    ports = make(ports=PortRange(span.first, span.first + 1))
    sock = ports.take(100.0)
    ports.give_back(sock, 100.0)
    assert (ports.free, ports.used, ports.resting) == (0, 0, 1)
    with pytest.raises(Busy):
        ports.take(100.0 + REST - 0.01)
    taken.append(ports.take(100.0 + REST))
    assert number(taken[0]) == span.first
    assert (ports.free, ports.used, ports.resting) == (0, 1, 0)


def test_late_packets_reach_nobody_and_are_not_told_so(make: Make) -> None:
    ports = make()
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as peer:
        sock = ports.take(0.0)
        sock.setblocking(False)
        peer.connect(sock.getsockname())
        peer.setblocking(False)
        ports.give_back(sock, 0.0)
        for _ in range(3):
            peer.send(b"late")  # a closed port would be told with ECONNREFUSED by the next call
        with pytest.raises(BlockingIOError):
            peer.recv(10)
        with pytest.raises(BlockingIOError):
            sock.recv(10)
        # And nobody else can have the port meanwhile.
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
            with pytest.raises(OSError) as e:
                other.bind(peer.getpeername())
            assert e.value.errno == errno.EADDRINUSE
        ports.expire(REST)
        peer.send(b"later")
        with pytest.raises(ConnectionRefusedError):
            peer.recv(10)


def test_two_processes_with_one_range_never_get_the_same_port(
    make: Make, taken: list[socket.socket]
) -> None:
    """A fresh worker shares nothing with the one before; bind decides."""
    old, fresh = make(), make()
    taken += [old.take(0.0) for _ in range(3)]
    taken += [fresh.take(0.0) for _ in range(2)]
    assert len(set(map(number, taken))) == 5
    for ports in (old, fresh):
        with pytest.raises(Busy):
            ports.take(0.0)
    # What the old one closes, the fresh one finds after a while.
    ended = taken.pop(0)
    port = number(ended)
    old.give_back(ended, 10.0)
    old.expire(10.0 + REST)
    taken.append(fresh.take(10.0 + REST))
    assert number(taken[-1]) == port


def test_a_port_that_nobody_was_told_of_is_free_at_once(
    make: Make, taken: list[socket.socket]
) -> None:
    ports = make()
    ports.unused(ports.take(0.0))
    assert (ports.free, ports.used, ports.resting) == (5, 0, 0)
    taken += [ports.take(0.0) for _ in range(5)]


def test_an_address_that_is_not_ours_is_said_at_the_start(make: Make) -> None:
    make().check()
    ports = make("192.0.2.77")
    sentence = (
        "rtp.listen = 192.0.2.77: Cannot assign requested address; "
        "expected an address of this machine"
    )
    for ask in (ports.check, lambda: ports.take(0.0)):
        with pytest.raises(BridgeError) as e:
            ask()
        assert str(e.value) == sentence
    assert ports.free == 5


def test_too_many_open_files_refuse_a_call_and_cost_no_port(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = make()

    def full(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr("bridge.media_ports.socket.socket", full)
        with pytest.raises(Busy, match="^no more sockets: Too many open files$"):
            ports.take(0.0)
    assert ports.free == 5
    ports.unused(ports.take(0.0))


def test_ipv6(make: Make) -> None:
    ports = make("::1")
    sock = ports.take(0.0)
    assert sock.family == socket.AF_INET6 and sock.getsockname()[0] == "::1"
    ports.give_back(sock, 0.0)


def test_closing_lets_go_of_what_rests(make: Make) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ports = make()
    for sock in [ports.take(0.0) for _ in range(5)]:
        ports.give_back(sock, 0.0)
    assert len(os.listdir("/proc/self/fd")) == before + 5
    ports.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert ports.free == 5
