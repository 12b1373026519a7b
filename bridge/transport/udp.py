"""UDP for thousands of legs on one event loop. Knows sockets, knows no carrier.

Theory of operation. Every leg has a port of its own. As for TCP (bridge/transport/tcp.py), all
sockets hang on one epoll of ours, asked every 5 ms while there are ports; time passes for them in
a wheel of `SPOKES` parts. What reading costs, in µs a packet of 172 bytes, one at each of 1,000
sockets (CPU time with system calls, best of 5, Linux 6.18, CPython 3.11):

    epoll, recv                       1.05     epoll, recv_into and a copy      1.14
    epoll, recvfrom                   1.40     epoll, recvmsg with time stamps  1.82
    no epoll, recv until it fails     1.95     the same, 4 waiting at each      1.13
    recvmmsg by ctypes, time stamps   2.80     the same, 4 waiting at each      1.48

So a packet is read when it is there, by `recv`: recvmmsg would have to find four for what four
reads cost, and would make them wait for each other. What does pay is to *handle* four together,
so a port keeps them until a block is complete (bridge/transport/udp_port.py).

`recv` does not say who sent: the kernel lets nobody pass but the peer once that is known
(bridge/transport/udp_filter.py). Before, and on a kernel without such programs, senders are
looked at, and a port's budget for a tick bounds what a flood can cost.

Times of arrival are those of the read, up to 5 ms late, and more after a stall. The kernel could
stamp each packet for 0.8 µs more; that is not worth it, because the stream's own clock is the
sender's timestamps: arrival only says how long to wait for a hole, and there 5 ms in 20 and more
are nothing. A packet every 20 ms meets the tick at the same phase each time, so the measured
jitter does not show it. After a stall everything that waits is read before any deadline counts.

Nothing is listened to on a port's odd neighbour: RTCP comes to the same port (RFC 5761), and the
switches whose audio is taken here send none, or can do without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections import Counter
from collections.abc import Callable

from bridge.transport.udp_port import TICK, DatagramIngress, Gate, UdpPort, User

log = logging.getLogger(__name__)

SPOKES = 4
TURN = 256  # datagrams read in one turn of the loop


class UdpPorts:
    """All open ports, each with a socket that is handed in bound and handed back when it closes."""

    def __init__(
        self,
        user: User,
        *,
        clock: Callable[[], float] = time.monotonic,
        lateness: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.user = user
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._lateness = lateness
        self._epoll = select.epoll()
        self._ports: dict[int, UdpPort] = {}
        self._spokes: list[set[UdpPort]] = [set() for _ in range(SPOKES)]
        self._paused: set[UdpPort] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._next_tick = 0.0
        self._turn = 0
        self._gone = 0  # strangers at ports that are closed

    def __len__(self) -> int:
        return len(self._ports)

    def now(self) -> float:
        """The clock that ingresses are given."""
        return self._clock()

    @property
    def waiting(self) -> int:
        """Ports where nobody has been heard yet."""
        return sum(not port.open for port in self._ports.values())

    @property
    def strangers(self) -> int:
        """Datagrams that were not the peer's, at all ports that there ever were."""
        return self._gone + sum(port.strangers for port in self._ports.values())

    def open(
        self, sock: socket.socket, ingress: DatagramIngress, gate: Gate, expires: float
    ) -> UdpPort:
        """Serve this socket, on the running loop. It closes at `expires` if nobody is heard."""
        sock.setblocking(False)
        port = UdpPort(self, sock, ingress, gate, expires)
        port.spoke = min(range(SPOKES), key=lambda i: len(self._spokes[i]))
        self._epoll.register(port.fd, select.EPOLLIN)
        self._spokes[port.spoke].add(port)
        self._ports[port.fd] = port
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._next_tick = loop.time()
            self._timer = loop.call_soon(self._tick)  # type: ignore[assignment]
        return port

    def close(self) -> None:
        """Close all ports and stop serving."""
        for port in list(self._ports.values()):
            port.close()
        for handle in (self._timer, self._again):
            if handle is not None:
                handle.cancel()
        self._epoll.close()

    # -- the loop's side -----------------------------------------------------------------------

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._lateness(max(0.0, loop.time() - self._next_tick))
        if self._again is not None:  # there was no end to it: what is complete goes on all the same
            self._turn_over()
        self._serve()
        now = self._clock()
        spoke = self._spokes[self._turn]
        for port in [port for port in spoke if port.due <= now]:
            self._guard(port.tick, port, now)
        for port in self._paused & spoke:
            self._paused.discard(port)
            port.paused = False
            self._epoll.modify(port.fd, select.EPOLLIN)
        self._turn = (self._turn + 1) % SPOKES
        if self._again is None:  # or when all has been read
            self._turn_over()
        if not self._ports:
            self._timer = None
            return
        self._next_tick = max(self._next_tick + TICK / SPOKES, loop.time() - TICK)
        self._timer = loop.call_at(self._next_tick, self._tick)

    def _serve(self) -> None:
        """Whoever is ready, `TURN` at a time: others on this loop get their turn in between.

        The turn is over when nobody is: products of a few legs cost as much as of many
        (bridge/audio/resample.py), and packets trickle in while others are being read.
        """
        if self._again is not None:
            self._again.cancel()
            self._again = None
        now = self._clock()
        ports = self._ports
        ready = self._epoll.poll(0, TURN)
        for fd, _ in ready:
            port = ports.get(fd)
            if port is not None:
                try:  # as `_guard`, without two calls for every packet
                    port.readable(now)
                except Exception:
                    self._failed(port)
        if ready:  # each was read once, and may have more
            self._again = asyncio.get_running_loop().call_soon(self._serve)
        else:
            self._turn_over()

    def _turn_over(self) -> None:
        try:
            self.user.turn_over()
        except Exception:  # the next turn is another one
            self.counters["internal_errors"] += 1
            log.exception("internal error at the end of a turn")

    def _guard(self, serve: Callable[[float], None], port: UdpPort, now: float) -> None:
        try:
            serve(now)
        except Exception:
            self._failed(port)

    def _failed(self, port: UdpPort) -> None:
        """An error of ours: it costs this port, not the loop."""
        self.counters["internal_errors"] += 1
        log.exception("%s: internal error; closing it", port.label)
        with contextlib.suppress(Exception):  # the same error again, most likely
            port.close()

    # -- the ports' side -----------------------------------------------------------------------

    def pause(self, port: UdpPort) -> None:
        """Leave its datagrams in the kernel until its next tick."""
        self._paused.add(port)
        self._epoll.modify(port.fd, 0)

    def drop(self, port: UdpPort) -> None:
        """Serve it no more."""
        if self._ports.pop(port.fd, None) is None:
            return
        self._gone += port.strangers
        self._spokes[port.spoke].discard(port)
        self._paused.discard(port)
        with contextlib.suppress(OSError):
            self._epoll.unregister(port.fd)
