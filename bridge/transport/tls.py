"""TLS around any stream's ingress, without I/O: `ssl`'s memory BIOs between the socket and it."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Generic

from bridge.errors import ProtocolError
from bridge.transport.connection import Said, StreamIngress

HANDSHAKE = 5.0  # s
PIECE = 65536  # bytes


class Tls(Generic[Said]):
    """The server's side of TLS, and inside it `inner`. Implements `StreamIngress`."""

    keeps = True
    low_water = 1  # records do not show where messages end

    def __init__(self, context: ssl.SSLContext, inner: StreamIngress[Said], now: float) -> None:
        self.inner = inner
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._shaken = False
        self._over = False
        self._leaving = False
        self._deadline = now + HANDSHAKE

    @property
    def next_at(self) -> float:
        """At once while something waits to be sent."""
        if self._out.pending:
            return 0.0
        return self.inner.next_at if self._shaken else self._deadline

    def receive(self, data: bytes, now: float) -> Sequence[Said]:
        """Bytes as they came. Raises `ProtocolError`."""
        plain = self._decrypt(data)
        events = list(self.inner.receive(plain, now)) if plain else []
        return [*events, *self.inner.eof("eof")] if self._over else events

    def _decrypt(self, data: bytes) -> bytes:
        self._in.write(data)
        pieces = []
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            while piece := self._tls.read(PIECE):
                pieces.append(piece)
            self._over = True  # close_notify
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as e:
            raise ProtocolError(f"TLS failed: {e.reason or type(e).__name__}") from None
        return b"".join(pieces)

    def expire(self, now: float) -> Sequence[Said]:
        """Let time pass."""
        if not self._shaken:
            return self.inner.eof("timeout") if now >= self._deadline else ()
        return self.inner.expire(now)

    def data_to_send(self) -> Sequence[bytes]:
        """Records to write."""
        if self._shaken:
            for message in self.inner.data_to_send():
                self._tls.write(message)
            if self._leaving:  # with close_notify, or it could be somebody who cuts us off
                self._leaving = False
                with suppress(ssl.SSLError):  # the peer's own is still to come
                    self._tls.unwrap()
        return (self._out.read(),) if self._out.pending else ()

    def eof(self, reason: str) -> Sequence[Said]:
        """The stream is over."""
        return self.inner.eof(reason)

    def hang_up(self) -> None:
        """Say goodbye inside; whoever is not that far gets none."""
        self.inner.hang_up()
        self._leaving = True

    def parting(self, data: bytes) -> bool:
        """What came after our goodbye."""
        if not self._shaken:
            return True
        try:
            plain = self._decrypt(data) if data else b""
        except ProtocolError:
            return True
        return self._over or self.inner.parting(plain)
