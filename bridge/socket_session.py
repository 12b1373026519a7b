"""One WebSocket that is open, and its legs: what is heard goes back to its protocol."""

from __future__ import annotations

from collections.abc import Callable

from bridge.auth import Identity
from bridge.ingress.media_socket import MediaSocket
from bridge.line import Line
from bridge.socket_kinds import Kind
from bridge.transport.connection import Connection
from bridge.transport.websocket import WebSocketEvent
from bridge.types import CallEvent, Heard, LegName

BEHIND, AGAIN = 3.0, 1.5  # s of audio unheard at which a client waits, and goes on
HOLD = 5.0  # s; then it goes on whatever the engine does, and the leg's queue drops its oldest


class SocketLeg:
    """One leg of a session. Implements `bridge.line.Listener`."""

    __slots__ = ("_listened", "_session", "behind", "line", "name", "origin", "sent")

    def __init__(self, session: Session, name: LegName, now: float) -> None:
        self._session = session
        self.name: LegName = name
        self.line: Line | None = None
        self.origin = now  # when its first sample came
        self.sent = 0.0  # s of audio
        self._listened = 0.0  # s of it that the recogniser has heard
        self.behind = False  # its client waits

    def told(self, event: CallEvent) -> None:
        if not self._session.over:
            self._session.media.told(self.name, event)
            self._session.flush()

    def heard(self, heard: Heard) -> None:
        if self._session.over:
            return
        if self.behind and self.sent - self._at(heard) < AGAIN:
            self.behind = False
            if not any(leg.behind for leg in self._session.legs.values()):
                self._session.connection.release()
        self._listened = self._at(heard)
        self._session.media.heard(self.name, heard)
        self._session.flush()

    def _at(self, heard: Heard) -> float:
        """How far the recogniser has listened, on the leg's own clock."""
        leg = self.line.leg if self.line is not None else None
        return heard.at - (leg.offset if leg is not None else 0.0)

    def came(self, sent: float) -> bool:
        """So many seconds of audio have come: is that too far ahead of the recogniser?"""
        self.sent = sent
        self.behind = sent - self._listened > BEHIND
        return self.behind

    def finalised(self) -> None:
        """All that was said before `LegAsked` has been told."""
        if not self._session.over:
            self._session.media.finalised(self.name)
            self._session.flush()


class Session:
    """One WebSocket that is open: its protocol, and its legs while they are up."""

    __slots__ = ("_end", "connection", "identity", "kind", "legs", "media", "over")

    def __init__(
        self,
        connection: Connection[WebSocketEvent],
        kind: Kind,
        identity: Identity,
        media: MediaSocket,
        end: Callable[[Session, str], None],
    ) -> None:
        self.connection = connection
        self.kind = kind
        self.identity = identity
        self.media = media
        self.legs: dict[LegName, SocketLeg] = {}
        self.over = False
        self._end = end

    def flush(self) -> None:
        """Send what the protocol wants to say, and hang up where it wants that."""
        if self.over:
            return
        if self.media.goodbye is not None:
            self._end(self, "bridge")
        else:
            self.connection.flush()
