"""The kernel's own verdict on every sender: real sockets, and an interpreter for what is far off.

Loopback has 127.0.0.0/8 for IPv4, but only ::1 for IPv6: programs for other addresses are run by
a few lines of Python on packets as the kernel would show them.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.transport.udp_filter import EVERYTHING, MAX_RULES, NET, Rule, attach, dropped, program


def rule(text: str, port: int | None = None) -> Rule:
    return ipaddress.ip_network(text), port


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def send(to: socket.socket, data: bytes, host: str = "127.0.0.1", port: int = 0) -> int:
    """Its port. Loopback delivers before this returns."""
    with socket.socket(to.family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        sock.sendto(data, to.getsockname())
        return int(sock.getsockname()[1])


def received(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(100))
        except BlockingIOError:
            return found


def test_only_the_named_address_and_port_pass(receiver: socket.socket) -> None:
    port = send(receiver, b"before")
    assert attach(receiver, [rule("127.0.0.1/32", port)])
    send(receiver, b"peer", port=port)
    send(receiver, b"neighbour", port=port ^ 1)
    send(receiver, b"stranger", "127.0.0.2", port)
    assert received(receiver) == [b"before", b"peer"]
    assert dropped(receiver) == 2


def test_any_port_of_a_host(receiver: socket.socket) -> None:
    assert attach(receiver, [rule("127.0.0.3/32")])
    send(receiver, b"one", "127.0.0.3")
    send(receiver, b"two", "127.0.0.3")
    send(receiver, b"three", "127.0.0.2")
    assert received(receiver) == [b"one", b"two"]


def test_networks(receiver: socket.socket) -> None:
    assert attach(receiver, [rule("127.0.64.0/18"), rule("10.0.0.0/8"), rule("127.9.0.0/31")])
    for host in ("127.0.64.0", "127.0.63.255", "127.0.127.255", "127.0.128.0", "127.9.0.1"):
        send(receiver, host.encode(), host)
    assert received(receiver) == [b"127.0.64.0", b"127.0.127.255", b"127.9.0.1"]


def test_without_rules_nothing_passes_and_a_new_program_replaces_the_old(
    receiver: socket.socket,
) -> None:
    assert attach(receiver, [])
    send(receiver, b"no")
    assert attach(receiver, [rule("0.0.0.0/0")])
    send(receiver, b"yes")
    assert (received(receiver), dropped(receiver)) == ([b"yes"], 1)


def test_as_many_rules_as_there_may_be(receiver: socket.socket) -> None:
    many = [rule(f"2001:db8::{i:x}/128", 1) for i in range(MAX_RULES)]
    assert len(program(many)) <= 4096
    assert attach(receiver, [*many[:-1], rule("127.0.0.1/32")])
    send(receiver, b"last")
    assert received(receiver) == [b"last"]


def test_what_does_not_fit_into_the_queue_is_counted(receiver: socket.socket) -> None:
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(100):
            sock.sendto(bytes(1000), receiver.getsockname())
    assert dropped(receiver) == 100 - len(received(receiver)) > 0


def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        sock.setblocking(False)
        port = send(sock, b"first", "::1")
        assert attach(sock, [rule("::1/128", port)])
        send(sock, b"peer", "::1", port)
        send(sock, b"neighbour", "::1", port ^ 1)
        assert attach(sock, [rule("::2/128"), rule("fd00::/8"), rule("0.0.0.0/0")])
        send(sock, b"stranger", "::1", port)
        assert (received(sock), dropped(sock)) == ([b"first", b"peer"], 2)


def test_a_kernel_that_takes_no_programs_is_no_error() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.close()
    assert not attach(sock, [])
    assert dropped(sock) == 0


# -- interpreted -------------------------------------------------------------------------------


def passes(rules: Sequence[Rule], host: str, port: int) -> bool:
    """Run the program on a packet of this sender (linux/filter.h)."""
    address = ipaddress.ip_address(host)
    if address.version == 4:
        header = b"\x45" + bytes(11) + address.packed + bytes(4)
    else:
        header = b"\x60" + bytes(7) + address.packed + bytes(16)
    udp = struct.pack(">HHHH", port, 20000, 8, 0)
    code, at, a = program(rules), 0, 0
    while True:
        operation, true, false, k = code[at]
        at += 1
        source, offset = (header, k - NET) if k >= NET else (udp, k)
        match operation:
            case 0x20:
                (a,) = struct.unpack_from(">I", source, offset)
            case 0x28:
                (a,) = struct.unpack_from(">H", source, offset)
            case 0x30:
                a = source[offset]
            case 0x54:
                a &= k
            case 0x15:
                at += true if a == k else false
            case 0x06:
                return k == EVERYTHING


hosts = st.ip_addresses().map(str) | st.sampled_from(["10.1.2.3", "10.1.2.4", "fd00::1", "::1"])
networks = (
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32))
    | st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
    | st.tuples(hosts.map(ipaddress.ip_address), st.sampled_from([8, 16, 32]))
).map(lambda pair: ipaddress.ip_network(pair, strict=False))


@given(
    st.lists(st.tuples(networks, st.none() | st.integers(1, 65535)), max_size=5),
    hosts,
    st.integers(1, 65535),
)
def test_the_program_agrees_with_the_rules(rules: list[Rule], host: str, port: int) -> None:
    address = ipaddress.ip_address(host)
    for at in (port, *(p for _, p in rules if p)):
        expected = any(address in network and p in (None, at) for network, p in rules)
        assert passes(rules, host, at) == expected
    for network, p in rules:
        assert passes(rules, str(network[-1]), p or port)
