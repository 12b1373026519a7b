"""One WebSocket that is open, and its legs: what is heard goes back to its protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bridge.auth import Identity
from bridge.ingress.media_socket import LegAsked, LegEnded, MediaSocket
from bridge.line import Line
from bridge.socket_kinds import Kind
from bridge.transport.connection import Connection
from bridge.transport.websocket import WebSocketEvent
from bridge.types import CallEvent, Frame, Heard, LegName

BEHIND, AGAIN = 3.0, 2.0  # s of audio unheard at which a client waits, and goes on
PIECE = 1.0  # s of audio given at once
KEPT = 300.0  # s of audio kept for a leg, which is what one message may hold; more goes on at once
HOLD = 5.0  # s; then the client is read again, whatever the engine does


class SocketLeg:
    """One leg of a session. Implements `bridge.line.Listener`.

    A client that is `paced` may send a file at once: the leg gets it as fast as the recogniser
    listens, and what comes behind the audio, in its turn.
    """

    __slots__ = (
        "_ahead", "_end", "_kept", "_listened", "_lost", "_session", "line", "name", "origin",
    )  # fmt: skip

    def __init__(
        self,
        session: Session,
        name: LegName,
        now: float,
        end: Callable[[SocketLeg, str], None],
        lost: Callable[[int], None],
    ) -> None:
        self._session = session
        self.name: LegName = name
        self.line: Line | None = None
        self.origin = now  # when its first sample came
        self._end = end
        self._lost = lost
        self._kept: deque[Frame | LegAsked | LegEnded] = deque()
        self._ahead = 0.0  # s of audio that the leg was given
        self._listened = 0.0  # s of it that the recogniser has heard

    # -- down ------------------------------------------------------------------------------------

    def audio(self, frame: Frame, now: float) -> None:
        """To the leg, or kept for it."""
        came = (frame.start + len(frame.samples)) / frame.rate
        self.origin = min(self.origin, now - came)
        if not self._session.kind.paced:
            self._give(frame)
            return
        size = round(PIECE * frame.rate)
        samples = frame.samples
        for i in range(0, len(samples), size):
            self._kept.append(Frame(samples[i : i + size], frame.rate, frame.start + i))
        self._pump()
        while self._kept and came - self._ahead > KEPT:  # its queue loses its oldest, and counts
            self._next()
        if self.behind:
            self._session.connection.hold(now + HOLD)

    def then(self, event: LegAsked | LegEnded) -> None:
        """Behind the audio that came before it."""
        self._kept.append(event)
        self._pump()

    @property
    def behind(self) -> bool:
        """Does its client wait?"""
        return bool(self._kept) or self._ahead - self._listened > BEHIND

    def _pump(self) -> None:
        while self._kept:
            if type(self._kept[0]) is Frame and self._ahead - self._listened > BEHIND:
                return
            self._next()

    def _next(self) -> None:
        match self._kept.popleft():
            case Frame() as frame:
                self._give(frame)
            case LegAsked():
                if self.line is not None:
                    self.line.finalise(self.finalised)
            case LegEnded(reason=reason):
                self._end(self, reason)

    def _give(self, frame: Frame) -> None:
        self._ahead = (frame.start + len(frame.samples)) / frame.rate
        if self.line is not None and (lost := self.line.audio(frame)):
            self._lost(lost)

    # -- up --------------------------------------------------------------------------------------

    def told(self, event: CallEvent) -> None:
        if not self._session.over:
            self._session.media.told(self.name, event)
            self._session.flush()

    def heard(self, heard: Heard) -> None:
        session = self._session
        leg = self.line.leg if self.line is not None else None
        self._listened = heard.at - (leg.offset if leg is not None else 0.0)
        if not session.over:
            session.media.heard(self.name, heard)
            session.flush()
        self._pump()
        if not self._kept and self._ahead - self._listened < AGAIN:
            if not any(leg.behind for leg in session.legs.values()):
                session.connection.release()

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
