"""TCP for thousands of legs on one event loop. Knows sockets, knows no carrier.

Theory of operation. All sockets hang on one epoll of our own, which is asked every 5 ms while
there are connections: what came meanwhile is read in one go, without a handle, a task or a
transport object per packet, and many legs' audio is there to be resampled in one product. It costs
the same under asyncio and uvloop, and 5 ms of latency at most. `SO_RCVLOWAT` makes a socket ready
once per 80 ms instead of once per packet; whoever is quiet is read without being ready (`QUIET`),
so hang-ups and digits are never late. Time passes for connections in a wheel of `SPOKES` parts,
one per 5 ms, so that no turn of the loop is long. Without connections the event loop watches the
epoll's descriptor and we sleep.

Reading never waits for anything: what is received goes to the ingress at once, whatever the
engine does, because Asterisk takes a full socket for a dead peer.

A connection that we end is sent the ingress's hang-up, read to EOF and closed then: closing with
unread data would reset it, and a reset ends the call in Asterisk.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from bridge.transport.connection import TICK, Connection, E, User

log = logging.getLogger(__name__)

TURN = 64  # sockets served in one turn of the loop
ACCEPTS = 32  # connections accepted in one turn
SPOKES = 4
FLOOD = 1024  # connections over the limit that still get a goodbye
SEND_BUFFER = 16384  # bytes; a second of silence, more would only be late


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one listener. `allow`: networks, none: all."""

    connections: int = 4096
    per_address: int = 4096
    allow: tuple[str, ...] = ()
    peer_timeout: float = 5.0  # s that a peer may acknowledge nothing


class TcpPort(Generic[E]):
    """One listener and its connections.

    The socket is handed in listening, and is left open by `close`: it may belong to a parent or
    to systemd, who keep it open while we restart.
    """

    def __init__(
        self,
        sock: socket.socket,
        user: User[E],
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        lateness: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.sock = sock
        self.user = user
        self.counters: Counter[str] = Counter()
        self.refuse: str = ""  # a reason: accept and say goodbye
        self._limits = limits
        self._networks = tuple(ipaddress.ip_network(n, strict=False) for n in limits.allow)
        self._clock = clock
        self._lateness = lateness
        self._epoll = select.epoll()
        self._connections: dict[int, Connection[E]] = {}
        self._spokes: list[set[Connection[E]]] = [set() for _ in range(SPOKES)]
        self._hosts: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._next_tick = 0.0
        self._turn = 0
        self._accepting = False

    def now(self) -> float:
        """The clock that ingresses are given."""
        return self._clock()

    @property
    def connections(self) -> int:
        """Open sockets, those that were told goodbye included."""
        return len(self._connections)

    def start(self) -> None:
        """Accept and serve, on the running loop."""
        self.sock.setblocking(False)
        self._sleep()
        self.listen(True)

    def listen(self, on: bool) -> None:
        """Accept, or leave connections in the kernel's queue (a fresh worker takes them)."""
        if on == self._accepting:
            return
        self._accepting = on
        if on:
            self._epoll.register(self.sock.fileno(), select.EPOLLIN)
        else:
            self._epoll.unregister(self.sock.fileno())

    def hang_up(self) -> None:
        """Say goodbye to everybody."""
        for connection in list(self._connections.values()):
            connection.hang_up()

    def close(self) -> None:
        """Stop serving; every connection is closed at once."""
        self.listen(False)
        for connection in list(self._connections.values()):
            self.drop(connection)
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        for handle in (self._timer, self._again):
            if handle is not None:
                handle.cancel()
        self._epoll.close()

    # -- the loop's side -----------------------------------------------------------------------

    def _sleep(self) -> None:
        """Nobody is there: the first connection wakes us."""
        self._timer = None
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._wake)

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._epoll.fileno())
        self._next_tick = loop.time()
        self._tick()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._lateness(max(0.0, loop.time() - self._next_tick))
        now = self._clock()
        for connection in [c for c in self._spokes[self._turn] if c.due <= now]:
            self._guard(connection.tick, connection, now)
        self._turn = (self._turn + 1) % SPOKES
        self._serve()
        if not self._connections:
            self._sleep()
            return
        self._next_tick = max(self._next_tick + TICK / SPOKES, loop.time() - TICK)
        self._timer = loop.call_at(self._next_tick, self._tick)

    def _serve(self) -> None:
        """Whoever is ready, `TURN` at a time: others on this loop get their turn in between."""
        now = self._clock()
        ready = self._epoll.poll(0, TURN)
        for fd, _ in ready:
            connection = self._connections.get(fd)
            if connection is not None:
                self._guard(connection.readable, connection, now)
            elif fd == self.sock.fileno():
                self._accept(now)
        self._turn_over()
        full = len(ready) == TURN
        self._again = asyncio.get_running_loop().call_soon(self._serve) if full else None

    def _turn_over(self) -> None:
        try:
            self.user.turn_over()
        except Exception:  # the next turn is another one
            self.counters["internal_errors"] += 1
            log.exception("internal error at the end of a turn")

    def _guard(self, serve: Callable[[float], None], connection: Connection[E], now: float) -> None:
        try:
            serve(now)
        except Exception:  # costs this connection, not the loop
            self.counters["internal_errors"] += 1
            log.exception("%s: internal error; hanging up", connection.label)
            events = connection.ingress.eof("internal") if connection.ingress is not None else ()
            connection.hang_up()
            with contextlib.suppress(Exception):  # the same error again, most likely
                for event in events:
                    self.user.event(connection, event, now)

    # -- accepting -----------------------------------------------------------------------------

    def _accept(self, now: float) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as e:  # ECONNABORTED, or EMFILE: the queue keeps them meanwhile
                self.counters["accept_errors"] += 1
                log.error("accepting a connection failed: %s", e.strerror)
                return
            self._take(sock, str(address[0]) if address else "", now)

    def _take(self, sock: socket.socket, host: str, now: float) -> None:
        if len(self._connections) >= self._limits.connections + FLOOD:
            self.counters["refused_flood"] += 1
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(self, sock, host, self.user.ingress(now), now)
        with contextlib.suppress(OSError):
            _options(sock, self._limits.peer_timeout)
        connection.spoke = min(range(SPOKES), key=lambda i: len(self._spokes[i]))
        self._spokes[connection.spoke].add(connection)
        self._connections[sock.fileno()] = connection
        self._hosts[host] += 1
        self.counters["accepted"] += 1
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        reason = self._objection(host)
        if reason:
            self.counters[f"refused_{reason}"] += 1
            log.info("%s: connection refused: %s", host, reason)
            connection.hang_up()

    def _objection(self, host: str) -> str:
        if self.refuse:
            return self.refuse
        if self._networks and not self._allowed(host):
            return "address"
        if len(self._connections) > self._limits.connections:
            return "limit"
        if self._hosts[host] > self._limits.per_address:
            return "address_limit"
        return ""

    def _allowed(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)

    def watch(self, connection: Connection[E], on: bool) -> None:
        """Read it when it is ready, or not; a reset is noticed all the same."""
        if self._connections.get(connection.fd) is connection:
            self._epoll.modify(connection.fd, select.EPOLLIN if on else 0)

    def drop(self, connection: Connection[E]) -> None:
        """Close the socket and forget it."""
        if self._connections.pop(connection.fd, None) is None:
            return
        self._spokes[connection.spoke].discard(connection)
        self._hosts[connection.host] -= 1
        if self._hosts[connection.host] <= 0:
            del self._hosts[connection.host]
        with contextlib.suppress(OSError):
            self._epoll.unregister(connection.fd)
        connection.sock.close()


def _options(sock: socket.socket, peer_timeout: float) -> None:
    """A peer that vanished is noticed by what it does not acknowledge, not by its silence."""
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, int(peer_timeout * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, max(1, int(peer_timeout / 2)))
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(tcp, socket.TCP_KEEPCNT, max(2, int(peer_timeout / 2)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
