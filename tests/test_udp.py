"""The UDP transport on real sockets: who is heard, when, in what company, and at what bound."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest

from bridge.ingress.rtp_source import Network, Source
from bridge.transport import udp_filter
from bridge.transport.udp import UdpPorts
from bridge.transport.udp_port import BUDGET, LATEST, READ, UdpPort
from bridge.types import Audio, Closed, Digit, Frame, IngressEvent
from tests.waiting import until

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
Packets = list[tuple[bytes, float]]


def rtp(seq: int, payload: bytes = bytes(160)) -> bytes:
    return struct.pack(">BBHII", 0x80, 0, seq & 0xFFFF, seq * 160, 7) + payload


class Recording:
    """A `DatagramIngress` that says one `Audio` for all that came, 20 ms a datagram."""

    def __init__(self) -> None:
        self.batches: list[Packets] = []
        self.heard = 0  # datagrams
        self.expired: list[float] = []
        self.out: list[bytes] = []
        self.at: float | None = None
        self.fails = False

    def receive_many(self, packets: Packets) -> Sequence[IngressEvent]:
        if self.fails:
            raise RuntimeError("of this test")
        self.batches.append(packets)
        start, self.heard = self.heard, self.heard + len(packets)
        samples = np.zeros(160 * len(packets), np.int16)
        return [Audio(Frame(samples, 8000, 160 * start, packets=len(packets)))]

    def deadline(self) -> float | None:
        return self.at

    def expire(self, now: float) -> Sequence[IngressEvent]:
        self.expired.append(now)
        self.at = None
        return [Digit("5")]

    def data_to_send(self) -> Sequence[bytes]:
        out, self.out = self.out, []
        return out

    def hang_up(self, now: float) -> None:
        self.out.append(b"bye")

    @property
    def data(self) -> list[bytes]:
        return [data for batch in self.batches for data, _ in batch]


class Recorder:
    """A `User` that remembers, and closes sockets."""

    def __init__(self) -> None:
        self.events: list[IngressEvent] = []
        self.opened_at: list[tuple[UdpPort, float]] = []
        self.closed_ports: list[UdpPort] = []
        self.turns = 0
        self.on_event: Callable[[UdpPort, IngressEvent], None] = lambda port, event: None
        self.on_opened: Callable[[UdpPort], None] = lambda port: None

    def opened(self, port: UdpPort, now: float) -> None:
        self.opened_at.append((port, now))
        self.on_opened(port)

    def event(self, port: UdpPort, event: IngressEvent, now: float) -> None:
        self.events.append(event)
        self.on_event(port, event)

    def closed(self, port: UdpPort) -> None:
        self.closed_ports.append(port)
        port.sock.close()

    def turn_over(self) -> None:
        self.turns += 1


class Clock:
    """Time that passes only when the test says so; the loop's ticks go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Ports of one user, their ingresses, and peers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.user = Recorder()
        self.ports = UdpPorts(self.user, clock=self.clock)
        self.socks: list[socket.socket] = []

    def open(
        self,
        expected: tuple[str, int | None] | None = None,
        allow: Sequence[Network] = tuple(LOOPBACK),
        host: str = "127.0.0.1",
    ) -> tuple[UdpPort, Recording]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        ingress = Recording()
        gate = Source(expected, allow)
        return self.ports.open(sock, ingress, gate, self.clock.now + 30.0), ingress

    def peer(self, host: str = "127.0.0.1") -> Peer:
        peer = Peer(host)
        self.socks.append(peer.sock)
        return peer

    def close(self) -> None:
        self.ports.close()
        for sock in self.socks:
            sock.close()


class Peer:
    """One address that sends."""

    def __init__(self, host: str) -> None:
        self.sock = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
        )
        self.sock.bind((host, 0))
        self.sock.setblocking(False)
        self.address: tuple[str, int] = self.sock.getsockname()[:2]

    def send(self, to: UdpPort, *datagrams: bytes) -> None:
        """Loopback: they are in the port's queue when this returns."""
        for data in datagrams:
            self.sock.sendto(data, to.sock.getsockname())

    def answers(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.sock.recv(2000))
            except BlockingIOError:
                return found


async def turns(bench: Bench, n: int = 10) -> None:
    """Every port has been ticked, some times over, and read until there was nothing left."""
    goal = bench.user.turns + n
    await until(lambda: bench.user.turns >= goal and bench.ports._again is None)


@pytest.fixture(params=["kernel", "no kernel"])
async def bench(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """With the kernel's filter, and on a kernel that has none."""
    if request.param == "no kernel":
        monkeypatch.setattr(udp_filter, "SO_ATTACH_FILTER", 9999)
    made = Bench()
    yield made
    made.close()
    assert len(made.ports) == 0


# -- who is heard ------------------------------------------------------------------------------


async def test_an_announced_peer_is_heard_from_its_first_packet(bench: Bench) -> None:
    peer, stranger = bench.peer(), bench.peer()
    port, ingress = bench.open(peer.address)
    stranger.send(port, *(rtp(i) for i in range(20)))
    peer.send(port, rtp(1))
    await until(lambda: ingress.heard)
    assert bench.user.opened_at == [(port, bench.clock.now)]
    assert ingress.batches == [[(rtp(1), bench.clock.now)]]
    stranger.send(port, *(rtp(i) for i in range(20, 30)))
    await turns(bench)
    assert ingress.heard == 1 and bench.ports.strangers == port.strangers == 30


async def test_a_learnt_peer_is_heard_from_its_first_packet_too(bench: Bench) -> None:
    peer, stranger = bench.peer(), bench.peer()
    port, ingress = bench.open()
    for i in range(4):
        bench.clock.now += 0.02
        stranger.send(port, rtp(7 * i))
        peer.send(port, rtp(i))
        await turns(bench, 3)
        assert bool(bench.user.opened_at) == (i == 3)
    assert ingress.data == [rtp(i) for i in range(4)]
    assert [at for batch in ingress.batches for _, at in batch] == pytest.approx(
        [1000.02, 1000.04, 1000.06, 1000.08]
    )
    ((opened, at),) = bench.user.opened_at
    assert opened is port and at == pytest.approx(1000.02)
    stranger.send(port, *(rtp(i) for i in range(4, 50)))
    await turns(bench)
    assert ingress.heard == 4 and port.strangers == 4 + 46


async def test_what_came_before_the_filter_is_sifted(bench: Bench) -> None:
    """Strangers' packets already in the queue when the peer becomes known."""
    peer, stranger = bench.peer(), bench.peer()
    port, ingress = bench.open(("127.0.0.1", None))
    for i in range(3):
        bench.clock.now += 0.02
        peer.send(port, rtp(i))
        await turns(bench, 3)
    bench.clock.now += 0.02
    for i in range(3, 9):  # while we do something else
        stranger.send(port, rtp(i, b"injected"))
        peer.send(port, rtp(i))
    await until(lambda: ingress.heard >= 7)
    await turns(bench)
    bench.clock.now += 1.0
    await turns(bench)
    assert ingress.data == [rtp(i) for i in range(9)]
    assert port.strangers == 6


async def test_nobody_else_is_heard_until_a_new_announcement(bench: Bench) -> None:
    peer, heir = bench.peer(), bench.peer()
    port, ingress = bench.open(peer.address)
    peer.send(port, rtp(1))
    await until(lambda: ingress.heard)
    bench.clock.now += 3600
    heir.send(port, *(rtp(i) for i in range(2, 12)))
    await turns(bench)
    assert ingress.heard == 1
    peer.send(port, rtp(99))  # in the queue when the announcement comes
    port.listen_to(Source(heir.address))
    heir.send(port, rtp(12))
    peer.send(port, rtp(13))
    await until(lambda: ingress.heard == 2)
    bench.clock.now += 1
    await turns(bench)
    assert ingress.data == [rtp(1), rtp(12)]
    assert port.strangers == 12
    assert len(bench.user.opened_at) == 1  # it is the same call


async def test_ipv6(bench: Bench) -> None:
    peer, stranger = bench.peer("::1"), bench.peer("::1")
    port, ingress = bench.open(peer.address, host="::1")
    stranger.send(port, rtp(1))
    peer.send(port, rtp(2))
    await until(lambda: ingress.heard)
    await turns(bench)
    assert ingress.data == [rtp(2)] and port.strangers == 1


# -- several together --------------------------------------------------------------------------


async def test_packets_are_handed_over_by_the_block_with_their_own_times(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    for i in range(13):
        peer.send(port, rtp(i))
        await turns(bench, 3)
        bench.clock.now += 0.02
    # The first opens the call; then what is left of the block; then whole blocks.
    assert [len(batch) for batch in ingress.batches] == [1, 3, 4, 4]
    assert [at for batch in ingress.batches for _, at in batch] == pytest.approx(
        [1000 + 0.02 * i for i in range(12)]
    )
    assert ingress.data == [rtp(i) for i in range(12)]


async def test_a_packet_is_not_kept_for_a_block_that_does_not_come(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    for i in range(2):
        peer.send(port, rtp(i))
        await turns(bench, 3)
    assert ingress.heard == 1
    bench.clock.now += LATEST
    await until(lambda: ingress.heard == 2)
    # After a pause there is nothing to wait for.
    bench.clock.now += 10
    await turns(bench)
    peer.send(port, rtp(2))
    await until(lambda: ingress.heard == 3)


async def test_a_loss_does_not_make_a_block_late(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    for i in range(9):
        if i != 5:
            peer.send(port, rtp(i))
        await turns(bench, 3)
        bench.clock.now += 0.02
    assert [data for data, _ in ingress.batches[2]] == [rtp(4), rtp(6), rtp(7)]


async def test_a_burst_is_read_to_its_end(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    peer.send(port, rtp(0))
    await until(lambda: ingress.heard)  # from now on its buffer is a call's
    peer.send(port, *(rtp(i) for i in range(1, 101)))
    await turns(bench)
    assert ingress.heard > 96
    bench.clock.now += LATEST
    await until(lambda: ingress.heard == 101)
    assert ingress.data == [rtp(i) for i in range(101)]


async def test_many_ports_at_once_hear_each_its_own(bench: Bench) -> None:
    pairs = []
    for n in range(60):
        peer = bench.peer()
        pairs.append((n, peer, *bench.open(peer.address)))
    for i in range(10):
        for n, peer, port, _ in pairs:
            peer.send(port, rtp(i, bytes([n]) * 160))
        bench.clock.now += 0.02
        await turns(bench, 2)
    bench.clock.now += LATEST
    await until(lambda: all(ingress.heard == 10 for *_, ingress in pairs))
    for n, _, _, ingress in pairs:
        assert ingress.data == [rtp(i, bytes([n]) * 160) for i in range(10)]


# -- time --------------------------------------------------------------------------------------


async def test_a_port_that_nobody_comes_to_closes(bench: Bench) -> None:
    stranger = bench.peer()
    port, ingress = bench.open(("127.0.0.1", 9))
    stranger.send(port, rtp(1), rtp(2))
    await turns(bench)
    bench.clock.now += 29.9
    await turns(bench)
    assert not bench.user.closed_ports and bench.ports.waiting == 1
    bench.clock.now += 0.2
    await until(lambda: bench.user.closed_ports)
    assert bench.user.closed_ports == [port] and len(bench.ports) == 0
    assert bench.ports.counters["expired"] == 1
    assert bench.ports.strangers == port.strangers == 2
    assert not bench.user.events and not ingress.batches


async def test_a_packet_after_the_time_opens_nothing(bench: Bench) -> None:
    peer = bench.peer()
    port, _ = bench.open(peer.address)
    bench.clock.now += 30.0
    peer.send(port, rtp(1))
    port.readable(bench.clock.now)
    assert bench.user.closed_ports == [port]
    assert (bench.user.opened_at, bench.ports.counters["expired"]) == ([], 1)


async def test_deadlines_are_kept_and_late_packets_come_first(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    peer.send(port, rtp(0))
    await until(lambda: ingress.heard)
    ingress.at = bench.clock.now + 0.06
    bench.clock.now += 0.03
    await turns(bench)
    assert not ingress.expired
    bench.clock.now += 0.5
    await until(lambda: ingress.expired)
    assert bench.user.events[-1] == Digit("5")


async def test_what_came_while_the_loop_stalled_is_heard_before_a_deadline_counts() -> None:
    bench = Bench()
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    peer.send(port, rtp(0))
    await until(lambda: ingress.heard)
    ingress.at = bench.clock.now + 0.1
    bench.clock.now += 0.5
    peer.send(port, rtp(1), rtp(2))
    port.tick(bench.clock.now)
    assert (ingress.heard, ingress.expired) == (3, [])
    port.tick(bench.clock.now)
    assert ingress.expired == [bench.clock.now]
    bench.close()


async def test_a_port_that_said_the_call_is_over_is_not_asked_again(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)

    def on_event(port: UdpPort, event: IngressEvent) -> None:
        port.close()

    bench.user.on_event = on_event
    peer.send(port, rtp(0), rtp(1), rtp(2))
    await until(lambda: bench.user.closed_ports)
    assert len(ingress.batches) == 1 and port.ingress is None
    port.close()
    port.hang_up()
    port.flush()
    port.tick(bench.clock.now)
    assert bench.user.closed_ports == [port]


async def test_a_call_that_is_refused_when_it_opens_is_not_heard(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    bench.user.on_opened = lambda port: port.hang_up()
    peer.send(port, rtp(0), rtp(1))
    await until(lambda: bench.user.closed_ports)
    assert not ingress.batches and not bench.user.events


async def test_ticks_stop_without_ports_and_begin_again(bench: Bench) -> None:
    for _ in range(2):
        peer = bench.peer()
        port, ingress = bench.open(peer.address)
        peer.send(port, rtp(0))
        await turns(bench)
        assert ingress.heard
        port.close()
        await until(lambda: bench.ports._timer is None)
        still = bench.user.turns
        for _ in range(100):
            await asyncio.sleep(0)
        assert bench.user.turns == still


# -- what is sent ------------------------------------------------------------------------------


async def test_answers_go_to_the_peer_only_and_never_to_strangers(bench: Bench) -> None:
    """RTPBleed: nothing that a stranger sends is ever answered."""
    peer, stranger = bench.peer(), bench.peer()
    port, ingress = bench.open()
    ingress.out = [b"early"]
    stranger.send(port, rtp(1), b"\x80\xc9\x00\x00", b"")
    await turns(bench)
    for i in range(4):
        bench.clock.now += 0.02
        peer.send(port, rtp(i))
        await turns(bench, 3)
    assert peer.answers() == [b"early"]
    ingress.out = [b"one", b"two"]
    stranger.send(port, rtp(5))
    bench.clock.now += 0.1
    peer.send(port, rtp(4))
    await until(lambda: ingress.heard == 5)
    port.hang_up()
    assert peer.answers() == [b"one", b"two", b"bye"]
    assert stranger.answers() == []


# -- bounds ------------------------------------------------------------------------------------


async def test_a_flood_costs_a_port_its_budget_and_others_nothing(bench: Bench) -> None:
    peer, flood = bench.peer(), bench.peer()
    live, heard = bench.open(peer.address)
    victim, ingress = bench.open(flood.address)
    flood.send(victim, rtp(0))
    peer.send(live, rtp(0))
    await until(lambda: ingress.heard and heard.heard)
    flood.send(victim, *(rtp(i) for i in range(1, 3 * BUDGET)))
    peer.send(live, rtp(1))
    bench.clock.now += 0.08
    await until(lambda: bench.ports.counters["paused"])
    assert heard.heard == 2
    assert ingress.heard <= BUDGET + 8
    while ingress.heard < 3 * BUDGET:  # the rest, a budget a tick
        bench.clock.now += 0.1
        await turns(bench)
    assert ingress.data == [rtp(i) for i in range(3 * BUDGET)]


async def test_strangers_while_a_port_learns_have_a_budget(bench: Bench) -> None:
    flood = bench.peer()
    port, _ = bench.open()
    flood.send(port, *(b"" for _ in range(30)))
    await turns(bench)
    assert port.strangers == 30
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        before = other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert port.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < before


async def test_the_largest_datagram_is_cut_where_the_ingress_can_see_it(bench: Bench) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    peer.send(port, rtp(0))
    await until(lambda: ingress.heard)
    bench.clock.now += 1
    peer.send(port, rtp(1, bytes(65507 - 12)))
    await until(lambda: ingress.heard == 2)
    assert len(ingress.data[1]) == READ


async def test_an_error_costs_its_port_only(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    peer, other = bench.peer(), bench.peer()
    port, ingress = bench.open(peer.address)
    healthy, heard = bench.open(other.address)
    ingress.fails = True
    peer.send(port, rtp(0))
    other.send(healthy, rtp(0))
    await until(lambda: heard.heard and bench.user.closed_ports)
    assert bench.user.closed_ports == [port]
    assert bench.ports.counters["internal_errors"] == 1
    assert f"{port.label}: internal error; closing it" in caplog.text


async def test_an_error_at_the_end_of_a_turn_is_survived(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = bench.peer()
    port, ingress = bench.open(peer.address)
    turn_over, bench.user.turn_over = bench.user.turn_over, lambda: 1 // 0  # type: ignore
    await until(lambda: bench.ports.counters["internal_errors"])
    bench.user.turn_over = turn_over  # type: ignore[method-assign]
    peer.send(port, rtp(0))
    await until(lambda: ingress.heard)


async def test_every_port_gives_its_descriptor_back(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        port, _ = bench.open(("127.0.0.1", 9))
        port.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(bench.user.closed_ports) == 50


async def test_lateness_is_told() -> None:
    late: list[float] = []
    user = Recorder()
    ports = UdpPorts(user, lateness=late.append)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    ports.open(sock, Recording(), Source(("127.0.0.1", 9)), 1e18)
    await until(lambda: len(late) > 5)
    assert all(seconds >= 0 for seconds in late)
    ports.close()


async def test_closing_all_closes_each(bench: Bench) -> None:
    opened = [bench.open(("127.0.0.1", 9))[0] for _ in range(5)]
    bench.ports.close()
    assert bench.user.closed_ports == opened
    assert {type(event) for event in bench.user.events} <= {Closed}
    bench.ports = UdpPorts(bench.user, clock=bench.clock)  # for the fixture to close
