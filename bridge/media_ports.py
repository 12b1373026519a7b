"""The UDP ports of [rtp]: handed out at random, and left alone for a while after use.

A port that nobody can guess is harder to find (RTPBleed). A port that was just used may still get
the last call's packets: its socket stays ours for `REST` seconds, with a filter that lets nothing
in, so that neither our next call nor another process is given it, and the peer is not told that
the port is closed. Nobody keeps a list of what is free besides us and the kernel: two processes
with the same range never get the same port, because only one can bind it.
"""

from __future__ import annotations

import errno
import secrets
import socket
from collections import deque

from bridge.config import PortRange
from bridge.errors import BridgeError, Busy
from bridge.transport import udp_filter

REST = 2.0  # s
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class MediaPorts:
    """Bound sockets on the even ports of a range (RFC 3550 §11: an odd one is its RTCP's)."""

    def __init__(self, host: str, ports: PortRange) -> None:
        self._host = host
        self._range = ports
        self._free = [port for port in range(ports.first, ports.last + 1) if port % 2 == 0]
        self._resting: deque[tuple[float, int, socket.socket | None]] = deque()
        self._used = 0

    @property
    def free(self) -> int:
        """Ports that nobody of this process has or has just had."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Sockets handed out."""
        return self._used

    @property
    def resting(self) -> int:
        """Ports left alone for a while."""
        return len(self._resting)

    def take(self, now: float) -> socket.socket:
        """A socket on a random free port. Raises `Busy` when there is none."""
        self.expire(now)
        while self._free:
            at = secrets.randbelow(len(self._free))
            port, self._free[at] = self._free[at], self._free[-1]
            self._free.pop()
            try:
                sock = self._bound(port)
            except BridgeError:
                self._free.append(port)
                raise
            if sock is not None:
                self._used += 1
                return sock
            self._resting.append((now + REST, port, None))  # somebody else's, at the moment
        raise Busy("limit", f"no port of rtp.ports = {self._range} is free; make the range larger")

    def _bound(self, port: int) -> socket.socket | None:
        """None when another process has this port. Raises `Busy`, `BridgeError`."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:  # IPv4 has an address, and a filter, of its own
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((self._host, port))
            return sock
        except OSError as e:
            if sock is not None:
                sock.close()
            if e.errno == errno.EADDRINUSE:
                return None
            if e.errno in NO_ROOM:
                raise Busy("limit", f"no more sockets: {e.strerror}") from None
            raise BridgeError(
                f"rtp.listen = {self._host}: {e.strerror}; expected an address of this machine"
            ) from None

    def give_back(self, sock: socket.socket, now: float) -> None:
        """A socket that a call has used. It hears nothing more, and closes in a while."""
        udp_filter.attach(sock, ())
        self._used -= 1
        self._resting.append((now + REST, sock.getsockname()[1], sock))

    def unused(self, sock: socket.socket) -> None:
        """A socket that nobody was told of: free at once."""
        self._used -= 1
        self._free.append(sock.getsockname()[1])
        sock.close()

    def expire(self, now: float) -> None:
        """Let time pass: ports that have rested are free again."""
        while self._resting and self._resting[0][0] <= now:
            self._rested(*self._resting.popleft()[1:])

    def close(self) -> None:
        """Close what rests. Sockets that were handed out are their users'."""
        while self._resting:
            self._rested(*self._resting.popleft()[1:])

    def _rested(self, port: int, sock: socket.socket | None) -> None:
        if sock is not None:
            sock.close()
        self._free.append(port)

    def check(self) -> None:
        """Is the address ours to bind? Raises `BridgeError` with what to do."""
        sock = self._bound(0)
        if sock is not None:
            sock.close()
