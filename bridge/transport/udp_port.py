"""One UDP socket, the gate that says who may speak on it, and the ingress that hears them."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from bridge.transport import udp_filter
from bridge.types import Audio, Frame, IngressEvent

log = logging.getLogger(__name__)

READ = 8193  # bytes; a datagram of so many is longer than any that carries a call
TICK = 0.02  # s from one tick of a port to the next
BLOCK = 0.08  # s of audio that is worth a hand-over
EARLY = 0.005  # s; what comes a tick before its time completes the block too
LATEST = 0.1  # s that a packet is kept; a digit may be 0.1 s late
BUDGET = 128  # datagrams of one port a tick of 20 ms, 32 times what a call has
WAITING_BUFFER = 32 * 1024  # bytes of socket buffer while nobody is known: strangers fill it
# Of a call: 50 s of PCMU that come at once after a freeze; 10 s where net.core.rmem_max is 212992,
# as it mostly is.
BUFFER = 1024 * 1024

Address: TypeAlias = tuple[str, int]
Packets: TypeAlias = list[tuple[bytes, float]]


class DatagramIngress(Protocol):
    """An `Ingress` on datagrams of one peer."""

    def receive_many(self, packets: Packets) -> Sequence[IngressEvent]:
        """Datagrams as they came, and when. Never raises `ProtocolError`."""

    def deadline(self) -> float | None:
        """See `bridge.interfaces.Ingress`."""

    def expire(self, now: float) -> Sequence[IngressEvent]:
        """See `bridge.interfaces.Ingress`."""

    def data_to_send(self) -> Sequence[bytes]:
        """See `bridge.interfaces.Ingress`."""

    def eof(self, reason: str, now: float) -> Sequence[IngressEvent]:
        """The stream is over: what waits is heard, then `Closed`."""

    def hang_up(self, now: float) -> None:
        """Say goodbye, where the protocol has one."""


class Gate(Protocol):
    """Who may speak on a port (bridge/ingress/rtp_source.py)."""

    locked: Address | None
    strangers: int

    def take(self, data: bytes, address: Address, now: float) -> Packets:
        """The datagrams that may be heard, now that this one has come."""

    def close(self) -> None:
        """It will not be asked any more: count what is still open."""

    def senders(self) -> Sequence[udp_filter.Rule]:
        """Whose datagrams may be heard at all."""


class User(Protocol):
    """Who the ports are for."""

    def opened(self, port: UdpPort, now: float) -> None:
        """Somebody is heard for the first time; `now` is when the first datagram came."""

    def event(self, port: UdpPort, event: IngressEvent, now: float) -> None:
        """Something was said on a port."""

    def closed(self, port: UdpPort) -> None:
        """The port is no longer served; its socket is the user's to close."""

    def turn_over(self) -> None:
        """All events of this turn of the loop have been told."""


class Ports(Protocol):
    """What a port needs of those that it is among."""

    user: User
    counters: Counter[str]

    def now(self) -> float:
        """The clock that ingresses are given."""

    def drop(self, port: UdpPort) -> None:
        """Serve it no more."""

    def pause(self, port: UdpPort) -> None:
        """Leave its datagrams in the kernel until its next tick."""


class UdpPort:
    """One socket. `context` is the user's own.

    A datagram is kept until those that complete a block have come: all in all a packet costs 8 µs
    that way and 16 if each is handed over by itself (1,000 legs, CPU time). Each keeps its own time
    of arrival. What is kept is handed over when its block is complete, and `LATEST` after the last
    hand-over at the latest.
    """

    __slots__ = (
        "_budget_until", "_by", "_kept", "_plain", "_ports", "_reads", "_recv", "_settled",
        "_strangers", "_want", "context", "due", "expires", "fd", "gate", "ingress", "label",
        "open", "paused", "sock", "spoke",
    )  # fmt: skip

    def __init__(
        self,
        ports: Ports,
        sock: socket.socket,
        ingress: DatagramIngress,
        gate: Gate,
        expires: float,
    ) -> None:
        self.sock = sock
        self.ingress: DatagramIngress | None = ingress  # None: closed
        self.gate = gate
        self.expires = expires  # when nobody has been heard by then
        self.context: object = None
        self.label = f"port {sock.getsockname()[1]}"  # for the log
        self.open = False  # somebody has been heard
        self.paused = False
        self.spoke = 0
        self.due = expires
        self.fd = sock.fileno()
        self._ports = ports
        self._recv = sock.recv
        self._settled = False  # the peer of this gate is known
        self._plain = False  # the kernel lets nobody pass but the peer
        self._kept: Packets = []
        self._want = 1  # datagrams that complete the block
        self._by = 0.0  # when it should be complete
        self._reads = 0  # datagrams of the present budget
        self._budget_until = 0.0
        self._strangers = 0  # of gates before this one, or of a closed port
        _buffer(sock, WAITING_BUFFER)
        if not self._admit():
            ports.counters["unfiltered"] += 1

    def __repr__(self) -> str:
        return f"<UdpPort {self.label}>"

    @property
    def strangers(self) -> int:
        """Datagrams of others: that we saw, and that the kernel dropped (or had no room for)."""
        if self.ingress is None:
            return self._strangers
        return self._strangers + self.gate.strangers + udp_filter.dropped(self.sock)

    # -- in ------------------------------------------------------------------------------------

    def readable(self, now: float) -> None:
        """There is at least one datagram: read one."""
        if not self._plain:
            self._sift(now)
            return
        try:
            data = self._recv(READ)
        except BlockingIOError:
            return
        except OSError:
            self._ports.counters["receive_errors"] += 1
            return
        kept = self._kept
        kept.append((data, now))
        if len(kept) >= self._want or now >= self._by:
            self._hand_over(now)

    def _sift(self, now: float) -> None:
        """Read one datagram of anybody's."""
        try:
            data, address = self.sock.recvfrom(READ)
        except BlockingIOError:
            return
        except OSError:
            self._ports.counters["receive_errors"] += 1
            return
        self._count(1, now)
        packets = self.gate.take(data, address[:2], now)
        if not packets:
            return
        if not self.open and now >= self.expires:
            self._expire()  # the announcement is gone too, or will be in a moment
            return
        if not self._settled:
            self._settle(packets, now)
        self._kept += packets
        if len(self._kept) >= self._want or now >= self._by:
            self._hand_over(now)

    def _settle(self, packets: Packets, now: float) -> None:
        """The peer is known: from here on the kernel keeps others out, where it can."""
        self._settled = True
        self._plain = self._admit()
        while self._plain:  # what came before that is of anybody
            try:
                data, address = self.sock.recvfrom(READ)
            except OSError:
                break
            packets += self.gate.take(data, address[:2], now)
        if not self.open:
            self.open = True
            _buffer(self.sock, BUFFER)
            self._ports.user.opened(self, packets[0][1])

    def _admit(self) -> bool:
        """Tell the kernel whom to let pass. False: it takes no such programs."""
        return udp_filter.attach(self.sock, self.gate.senders())

    def listen_to(self, gate: Gate) -> None:
        """A new announcement: from now on this gate decides."""
        self.gate.close()
        self._strangers += self.gate.strangers
        self.gate = gate
        self._settled = self._plain = False
        self._admit()

    def _count(self, n: int, now: float) -> None:
        if now >= self._budget_until:
            self._budget_until = now + TICK
            self._reads = 0
        self._reads += n
        if self._reads > BUDGET and not self.paused:
            self.paused = True
            self._ports.counters["paused"] += 1
            self._ports.pause(self)

    # -- on ------------------------------------------------------------------------------------

    def _hand_over(self, now: float) -> None:
        """What was kept goes to the ingress."""
        ingress = self.ingress
        if ingress is None:
            return
        kept, self._kept = self._kept, []
        if self._plain:
            self._count(len(kept), now)
        self._tell(ingress.receive_many(kept), now)

    def _tell(self, events: Sequence[IngressEvent], now: float) -> None:
        tell = self._ports.user.event
        frame: Frame | None = None
        for event in events:
            if type(event) is Audio:
                frame = event.frame
            tell(self, event, now)
        ingress = self.ingress
        if ingress is None:  # it was the last
            return
        left = BLOCK
        if frame is not None and (n := len(frame.samples)):
            # A block ends where the leg's clock is a multiple of its length: in ints, because
            # 0.24 % 0.08 is not 0.
            block = frame.rate * 2 // 25
            missing = block - (frame.start + n) % block
            left = missing / frame.rate
            self._want = max(1, -(-missing * frame.packets // n))
        self._by = now + left - EARLY
        deadline = ingress.deadline()
        self.due = now + LATEST if deadline is None else min(deadline, now + LATEST)
        self.flush()

    def flush(self) -> None:
        """Send what the ingress wants sent, to the peer and nobody else."""
        if self.ingress is None or self.gate.locked is None:
            return
        for message in self.ingress.data_to_send():
            try:
                self.sock.sendto(message, self.gate.locked)
            except OSError:
                self._ports.counters["send_errors"] += 1

    # -- time ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """About every 20 ms, when it is `due`."""
        ingress = self.ingress
        if ingress is None:
            return
        if not self.open:
            if now >= self.expires:
                self._expire()
            else:
                self.due = self.expires
            return
        deadline = ingress.deadline()
        overdue = deadline is not None and now >= deadline
        if overdue:
            self._drain()  # what is late may have come while we were
        if self._kept:
            self._hand_over(now)
        elif overdue:
            self._tell(ingress.expire(now), now)
        else:
            self.due = math.inf if deadline is None else deadline
            if now < self._by:
                self.due = min(self.due, self._by)

    def _expire(self) -> None:
        self._ports.counters["expired"] += 1
        self.close()

    def _drain(self) -> None:
        try:
            while self._plain and len(self._kept) < BUDGET:
                self._kept.append((self._recv(READ), self._ports.now()))
        except OSError:
            pass

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Serve it no more; the user gets the socket. Idempotent."""
        if self.ingress is None:
            return
        self.gate.close()
        self._strangers = self.strangers
        self.ingress = None
        self._kept = []
        self.due = math.inf
        self._ports.drop(self)
        self._ports.user.closed(self)

    def end(self, reason: str) -> None:
        """The peer is known to have ended: what has come is heard, then `Closed` is told."""
        now = self._ports.now()
        self._drain()
        self._hand_over(now)
        if self.ingress is not None:
            self._tell(self.ingress.eof(reason, now), now)
        self.close()  # if nobody has done so at `Closed`

    def hang_up(self) -> None:
        """Say goodbye and close. Idempotent; no more events."""
        if self.ingress is not None:
            self.ingress.hang_up(self._ports.now())
            self.flush()
            self.close()


def _buffer(sock: socket.socket, size: int) -> None:
    """The kernel takes no more than net.core.rmem_max, and says nothing."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
