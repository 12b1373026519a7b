"""WebSocket connections ↔ lines of the switchboard, and who may open one."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

from bridge.audio.resample import Bank
from bridge.config import WebSocketSettings
from bridge.errors import Busy
from bridge.http.access import is_loopback
from bridge.ingress import twilio
from bridge.ingress.media_socket import (
    LegAsked,
    LegAudio,
    LegBegan,
    LegDigit,
    LegEnded,
    MediaSocket,
    Opening,
    SocketRules,
)
from bridge.line import Line
from bridge.metrics import Metrics
from bridge.socket_protocols import Kind, kind_of
from bridge.switchboard import Switchboard
from bridge.transport.connection import Connection, StreamIngress
from bridge.transport.tls import Tls
from bridge.transport.websocket import Knocked, WebSocket, WebSocketEvent
from bridge.types import Announcement, CallEvent, Closed, Heard, LegName, Warned

log = logging.getLogger(__name__)


class SocketLeg:
    """One leg of a session. Implements `bridge.line.Listener`."""

    __slots__ = ("_session", "line", "name", "origin")

    def __init__(self, session: Session, name: LegName, now: float) -> None:
        self._session = session
        self.name: LegName = name
        self.line: Line | None = None
        self.origin = now  # when its first sample came

    def told(self, event: CallEvent) -> None:
        if not self._session.over:
            self._session.media.told(self.name, event)
            self._session.flush()

    def heard(self, heard: Heard) -> None:
        if not self._session.over:
            self._session.media.heard(self.name, heard)
            self._session.flush()

    def finalised(self) -> None:
        """All that was said before `LegAsked` has been told."""
        if not self._session.over:
            self._session.media.finalised(self.name)
            self._session.flush()


class Session:
    """One WebSocket that is open: its protocol, and its legs while they are up."""

    __slots__ = ("_end", "connection", "kind", "legs", "media", "over")

    def __init__(
        self,
        connection: Connection[WebSocketEvent],
        kind: Kind,
        media: MediaSocket,
        end: Callable[[Session, str], None],
    ) -> None:
        self.connection = connection
        self.kind = kind
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


class SocketUser:
    """Implements `bridge.transport.connection.User`."""

    def __init__(
        self,
        settings: WebSocketSettings,
        switchboard: Switchboard,
        metrics: Metrics,
        bank: Bank,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._rules = SocketRules(settings.start_deadline, settings.patience)
        self._switchboard = switchboard
        self._metrics = metrics
        self._tls = tls
        self.turn_over = bank.run

    def ingress(self, now: float) -> StreamIngress[WebSocketEvent]:
        """A new connection."""
        stream = WebSocket(self._settings.max_message, now)
        return stream if self._tls is None else Tls(self._tls, stream, now)

    def event(
        self, connection: Connection[WebSocketEvent], event: WebSocketEvent, now: float
    ) -> None:
        """Something was said on a connection."""
        session = connection.context
        if isinstance(session, Session) and session.over:
            return
        if type(event) is LegAudio and isinstance(session, Session):  # 50 a second and leg: first
            leg = session.legs.get(event.leg)
            if leg is not None and leg.line is not None:
                frame = event.frame
                began = now - (frame.start + len(frame.samples)) / frame.rate
                if began < leg.origin:
                    leg.origin = began
                lost = leg.line.audio(frame)
                if lost:
                    self._metrics.dropped("frames", "waiting", lost)
            return
        match event:
            case Knocked():
                self._knocked(connection, event, now)
            case Warned(kind, text):
                self._metrics.warned(kind)
                log.warning("%s: %s", connection.label, text)
            case Closed(reason):
                self._closed(connection, session, reason)
            case _ if isinstance(session, Session):
                self._of_leg(session, event, now)

    # -- who may -------------------------------------------------------------------------------

    def _knocked(self, connection: Connection[WebSocketEvent], knock: Knocked, now: float) -> None:
        stream = _stream(connection)
        parts = urlsplit(knock.raw_path)
        path = unquote(parts.path)
        if not knock.upgrade:
            return self._page(connection, stream, path)
        kind = kind_of(path)
        if kind is None:
            stream.page(404, "no protocol is spoken here; the README lists the paths\n")
            return connection.hang_up()
        if not is_loopback(connection.host):
            self._metrics.connection_refused("address")
            stream.page(403, "this listener serves loopback only, until keys are configured\n")
            return connection.hang_up()
        offered = [o.strip() for o in knock.headers.get("sec-websocket-protocol", "").split(",")]
        opening = Opening(
            path, dict(parse_qsl(parts.query)), knock.headers, "loopback", [o for o in offered if o]
        )
        media = kind.load()(opening, self._rules, now)
        connection.label = f"{kind.name} {connection.host}"
        session = Session(connection, kind, media, self._end)
        connection.context = session
        subprotocol = next((o for o in offered if o in kind.subprotocols), None)
        for event in stream.accept(media, now, subprotocol):
            self.event(connection, event, now)

    def _page(self, connection: Connection[WebSocketEvent], stream: WebSocket, path: str) -> None:
        """Somebody who wants no WebSocket."""
        if path == "/twilio/twiml" and self._settings.public_url:
            url = self._settings.public_url.rstrip("/") + "/twilio"
            stream.page(200, twilio.twiml(url), {"Content-Type": "text/xml; charset=utf-8"})
        else:
            stream.page(426, "this is for WebSockets\n", {"Upgrade": "websocket"})
        connection.hang_up()

    # -- legs ----------------------------------------------------------------------------------

    def _of_leg(self, session: Session, event: WebSocketEvent, now: float) -> None:
        match event:
            case LegBegan():
                self._began(session, event, now)
            case LegDigit(name, digit):
                if (leg := session.legs.get(name)) is not None and leg.line is not None:
                    leg.line.digit(digit)
            case LegAsked(name):
                leg = session.legs.get(name)
                if leg is not None and leg.line is not None:
                    leg.line.finalise(leg.finalised)
                else:
                    session.media.finalised(name)
                    session.flush()
            case LegEnded(name, reason):
                self._ended(session, name, reason)

    def _began(self, session: Session, event: LegBegan, now: float) -> None:
        """A line, if it may be. Announced by ourselves: who it is was settled at the door.

        What call control has said of its UUID stays, where it said more.
        """
        uuid = event.uuid or str(uuid4())
        leg = SocketLeg(session, event.leg, now)
        try:
            if not self._switchboard.taken(uuid):  # or it would be told of somebody else's call
                announcement = Announcement(uuid, event.call, event.leg, event.info)
                self._switchboard.announce(announcement, now)
        except Busy as e:
            self._metrics.call_refused(e.reason)
            session.media.refused(event.leg, e.reason)
            return session.flush()
        line = self._switchboard.opened(
            uuid,
            session.kind.name,
            lambda: self._hung_up(session, leg),
            lambda: leg.origin,
            now,
            listener=leg,
        )
        if line.closed:
            session.media.refused(event.leg, line.closed)
            return session.flush()
        leg.line = line
        session.legs[event.leg] = leg

    def _hung_up(self, session: Session, leg: SocketLeg) -> None:
        """Call control, or the engine, has ended a leg; the switchboard closes its line."""
        if leg.line is None or session.over:
            return  # it was refused, and its protocol will say how
        if session.media.hung_up():
            return self._end(session, "bridge")
        for name in list(session.legs):
            self._ended(session, name, "bridge")
        session.flush()

    def _ended(self, session: Session, name: LegName, reason: str) -> None:
        leg = session.legs.pop(name, None)
        if leg is not None and leg.line is not None:
            self._switchboard.closed(leg.line, reason)

    # -- ends ----------------------------------------------------------------------------------

    def _closed(self, connection: Connection[WebSocketEvent], session: object, reason: str) -> None:
        if isinstance(session, Session):
            self._end(session, reason)
        else:
            self._metrics.connection_refused("deadline" if reason == "timeout" else "protocol")
            connection.hang_up()

    def _end(self, session: Session, reason: str) -> None:
        """The connection is over, whoever wanted that. Idempotent."""
        if session.over:
            return
        session.over = True
        for name in list(session.legs):
            self._ended(session, name, reason)
        session.connection.hang_up()


def _stream(connection: Connection[WebSocketEvent]) -> WebSocket:
    ingress = connection.ingress
    inner = ingress.inner if isinstance(ingress, Tls) else ingress
    assert isinstance(inner, WebSocket)
    return inner
