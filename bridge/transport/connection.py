"""One accepted socket and the ingress that speaks on it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from bridge.errors import ProtocolError

log = logging.getLogger(__name__)

TICK = 0.02  # s from one tick of a connection to the next
RECV = 4096  # bytes; 80 ms are 1292
QUIET = 0.085  # s without being woken after which a socket is read all the same
LINGER = 5.0  # s for a peer to close after our hang-up


E = TypeVar("E")  # the events of a listener's protocol
Said = TypeVar("Said", covariant=True)


class StreamIngress(Protocol[Said]):
    """An `Ingress` on a byte stream."""

    keeps: bool
    """What the peer does not read in time is kept, within a bound of the ingress's own; or lost."""

    @property
    def next_at(self) -> float:
        """The deadline."""

    @property
    def low_water(self) -> int:
        """Bytes worth a wake-up; 1: any."""

    def receive(self, data: bytes, now: float) -> Sequence[Said]:
        """See `bridge.interfaces.Ingress`."""

    def expire(self, now: float) -> Sequence[Said]:
        """See `bridge.interfaces.Ingress`."""

    def data_to_send(self) -> Sequence[bytes]:
        """See `bridge.interfaces.Ingress`."""

    def eof(self, reason: str) -> Sequence[Said]:
        """The stream is over."""

    def hang_up(self) -> None:
        """Say goodbye."""

    def parting(self, data: bytes) -> bool:
        """What came after our goodbye. True: close now, the peer waits for us to."""


class User(Protocol[E]):
    """Who a listener's connections are for."""

    def ingress(self, now: float) -> StreamIngress[E]:
        """The protocol of a new connection."""

    def event(self, connection: Connection[E], event: E, now: float) -> None:
        """Something was said on a connection."""

    def turn_over(self) -> None:
        """All events of this turn of the loop have been told."""


class Port(Protocol[E]):
    """What a connection needs of its listener."""

    user: User[E]
    counters: Counter[str]

    def now(self) -> float:
        """The clock that ingresses are given."""

    def drop(self, connection: Connection[E]) -> None:
        """Close the socket and forget it."""

    def watch(self, connection: Connection[E], on: bool) -> None:
        """Read it when it is ready, or not."""


class Connection(Generic[E]):
    """One accepted socket. `context` is the user's own."""

    __slots__ = (
        "_half", "_held", "_low_water", "_parted", "_port", "_read_at", "_unsent", "close_by",
        "context", "dropped", "due", "fd", "host", "ingress", "label", "sock", "spoke",
    )  # fmt: skip

    def __init__(
        self, port: Port[E], sock: socket.socket, host: str, ingress: StreamIngress[E], now: float
    ) -> None:
        self.sock = sock
        self.host = host
        self.ingress: StreamIngress[E] | None = ingress  # None: said goodbye, waiting for EOF
        self._parted = ingress
        self.context: object = None
        self.label = host  # for the log
        self.close_by = float("inf")
        self.dropped = 0  # messages that the peer did not read in time
        self.spoke = 0
        self._port = port
        self.fd = sock.fileno()
        self._low_water = 1
        self._read_at = now
        self._unsent = b""
        self._half = False  # we write nothing more
        self._held = 0.0  # until when nothing is read; 0: it is
        self.due = now + QUIET  # nothing happens before

    # -- in ------------------------------------------------------------------------------------

    def readable(self, now: float) -> None:
        """There may be bytes."""
        try:
            data = self.sock.recv(RECV)
        except BlockingIOError:
            return
        except OSError as e:
            # EOF, reset and a time-out of the kernel's mean the same: the peer is gone.
            self._port.counters["resets"] += 1
            self._over("timeout" if isinstance(e, TimeoutError) else "reset", now)
            return
        if not data:
            self._over("eof", now)
            return
        self._read_at = now
        ingress = self.ingress
        if ingress is None:
            self._part(data)
            return
        try:
            events = ingress.receive(data, now)
        except ProtocolError as e:
            self._port.counters["protocol_errors"] += 1
            log.warning("%s: %s; hanging up", self.label, e)
            self._tell(e.before, now)
            self._tell(ingress.eof("protocol"), now)
            self.hang_up()
            return
        tell = self._port.user.event
        for event in events:
            tell(self, event, now)
        if self.ingress is not None:
            low_water = ingress.low_water
            if low_water != self._low_water:
                self._set_low_water(low_water)
            if ingress.next_at < self.due:  # the UUID has come: there is something to send
                self.due = ingress.next_at
                self.flush()

    def hold(self, until: float) -> None:
        """Read nothing until then, or until `release`: TCP makes the peer wait."""
        if self.ingress is not None and not self._held:
            self._held = until
            self._port.watch(self, False)
            self.due = min(self.due, until)

    def release(self) -> None:
        """Read again."""
        if self._held:
            self._held = 0.0
            self._port.watch(self, True)

    def _tell(self, events: Sequence[E], now: float) -> None:
        for event in events:
            self._port.user.event(self, event, now)

    def _set_low_water(self, n: int) -> None:
        self._low_water = n
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n)

    def _over(self, reason: str, now: float) -> None:
        ingress, self.ingress = self.ingress, None
        self._port.drop(self)
        if ingress is not None:
            self._tell(ingress.eof(reason), now)

    # -- time ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """About every `TICK` seconds, when something is `due`."""
        ingress = self.ingress
        if ingress is None:
            if now >= self.close_by:
                self._port.counters["linger_timeouts"] += 1
                self._port.drop(self)
            elif self._unsent:
                self.flush()
                self._part(b"")
            return
        if now + TICK / 2 >= ingress.next_at:  # or every second tick would just miss it
            events = ingress.expire(now)
            self.flush()
            if events:
                self._tell(events, now)
        elif self._unsent:
            self.flush()
        if self._held and now >= self._held:
            self.release()
        # What is below the low-water mark wakes nobody: a digit, the last frames of a pause.
        quiet = now - self._read_at > QUIET and self._low_water > 1
        if quiet and self.ingress is not None and not self._held:
            self.readable(now)
        self.due = min(ingress.next_at - TICK / 2, max(now, self._read_at + QUIET))
        if self._unsent:
            self.due = 0.0

    # -- out -----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what the ingress wants sent, each message in one write."""
        ingress = self.ingress
        try:
            if self._unsent:
                self._unsent = self._unsent[self._send(self._unsent) :]
            if ingress is None or (self._unsent and ingress.keeps):
                return
            for message in ingress.data_to_send():
                sent = 0 if self._unsent else self._send(message)
                if not sent and not ingress.keeps:
                    self.dropped += 1  # the peer does not read; what is old helps nobody
                elif sent < len(message):
                    self._unsent += message[sent:]
        except OSError:
            pass  # the reader sees it too, after what is still to be read
        finally:
            if self._unsent:
                self.due = 0.0  # every tick

    def _send(self, data: bytes) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def hang_up(self) -> None:
        """Say goodbye, read to EOF, close. Idempotent; no more events."""
        ingress, self.ingress = self.ingress, None
        if ingress is None:
            return
        self.release()
        ingress.hang_up()
        self.close_by = self._port.now() + LINGER
        self.due = 0.0  # every tick, from now on
        self._set_low_water(1)
        self._unsent += b"".join(ingress.data_to_send())
        self.flush()
        self._part(b"")

    def _part(self, data: bytes) -> None:
        """After our goodbye: what comes is read and forgotten, until the peer closes, or we may."""
        if self._parted.parting(data) and not self._unsent and not self._half:
            self._close()

    def _close(self) -> None:
        """Where something is unread that would be a reset, which may overtake our goodbye: then
        only our half, and the rest when the peer has read it."""
        try:
            unread = self.sock.recv(1, socket.MSG_PEEK)
            if unread:
                self.sock.shutdown(socket.SHUT_WR)
                self._half = True
                return
        except OSError:  # nothing is unread, or the peer is gone
            pass
        self._port.drop(self)
