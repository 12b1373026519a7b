"""WebSocket connections ↔ lines of the switchboard, and who may open one."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from uuid import uuid4

from bridge.audio.resample import Bank
from bridge.auth import Auth, Credential, Denied, Identity, KeysWanted, Knock
from bridge.auth_credentials import read_knock
from bridge.auth_keys import admit, make_keys
from bridge.config import Address, WebSocketSettings
from bridge.errors import Busy, ProtocolError
from bridge.ingress import twilio
from bridge.ingress.media_socket import (
    LegAsked,
    LegAudio,
    LegBegan,
    LegDigit,
    LegEnded,
    Opening,
    SocketError,
    SocketRules,
)
from bridge.metrics import Metrics
from bridge.socket_kinds import Kind, kind_of
from bridge.socket_session import Session, SocketLeg
from bridge.switchboard import Switchboard
from bridge.tls import Certificate
from bridge.transport.connection import Connection, StreamIngress
from bridge.transport.tcp import Limits
from bridge.transport.tls import Tls
from bridge.transport.websocket import Knocked, WebSocket, WebSocketEvent
from bridge.types import Announcement, Closed, LegName, Warned

log = logging.getLogger(__name__)


class SocketUser:
    """Implements `bridge.transport.connection.User`. `limits`: of its listener."""

    def __init__(
        self,
        settings: WebSocketSettings,
        switchboard: Switchboard,
        metrics: Metrics,
        bank: Bank,
        clock: Callable[[], float] = time.monotonic,
        pages: Address | None = None,
    ) -> None:
        self._settings = settings
        self.limits = Limits(
            connections=settings.max_connections,
            per_address=settings.max_connections_per_address,
        )
        self.auth = Auth(settings, pages=[pages] if pages is not None else [])
        self.keys = make_keys(self.auth, settings.jwt)
        self.certificate: Certificate | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self.certificate = Certificate(settings.tls_cert, settings.tls_key, time.time())
        self._asking: set[asyncio.Task[None]] = set()
        self._rules = SocketRules(
            settings.start_deadline, settings.patience, clock, lambda: metrics.last_step
        )
        self._switchboard = switchboard
        self._metrics = metrics
        self.turn_over = bank.run

    def ingress(self, now: float) -> StreamIngress[WebSocketEvent]:
        """A new connection."""
        stream = WebSocket(self._settings.max_message, now)
        if self.certificate is None:
            return stream
        return Tls(self.certificate.context, stream, now)

    def event(
        self, connection: Connection[WebSocketEvent], event: WebSocketEvent, now: float
    ) -> None:
        """Something was said on a connection."""
        session = connection.context
        if isinstance(session, Session) and session.over:
            return
        if type(event) is LegAudio and isinstance(session, Session):  # 50 a second and leg: first
            leg = session.legs.get(event.leg)
            if leg is not None:
                leg.audio(event.frame, now)
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
        try:
            asked = read_knock(knock.raw_path, knock.headers.items(), connection.host)
        except ProtocolError as e:
            return self._refuse(connection, 400, str(e))
        if not knock.upgrade:
            return self._page(connection, stream, asked.path)
        kind = kind_of(asked.path)
        if kind is None:
            sentence = "no protocol is spoken here; the README lists the paths"
            return self._refuse(connection, 404, sentence)
        try:
            identity = self.auth.check(asked, self._shown(kind, asked), time.time())
            self._admit(connection, kind, asked, identity, now)
        except KeysWanted:
            task = asyncio.create_task(self._after_keys(connection, kind, asked))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        except Denied as e:
            self._denied(connection, e)

    def _shown(self, kind: Kind, asked: Knock) -> list[Credential]:
        return kind.find(asked, self._settings.key_headers)

    async def _after_keys(
        self, connection: Connection[WebSocketEvent], kind: Kind, asked: Knock
    ) -> None:
        """The provider's keys are fetched first; the client waits for its answer meanwhile."""
        try:
            identity = await admit(self.auth, self.keys, asked, self._shown(kind, asked))
            if connection.ingress is not None:  # it is still there
                self._admit(connection, kind, asked, identity, self._rules.clock())
                connection.flush()
        except Denied as e:
            if connection.ingress is not None:
                self._denied(connection, e)
        except Exception:  # a fault of ours: the client should not wait for it to time out
            log.exception("%s: asking for keys failed", connection.label)
            if connection.ingress is not None:
                self._refuse(connection, 503, "keys could not be had; try again")

    def _denied(self, connection: Connection[WebSocketEvent], e: Denied) -> None:
        self._metrics.connection_refused("denied")
        headers = {"Retry-After": str(math.ceil(e.retry_after))} if e.retry_after else {}
        if e.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="callscribe"'
        self._refuse(connection, e.status, e.sentence, headers)

    def _refuse(
        self,
        connection: Connection[WebSocketEvent],
        status: int,
        sentence: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        _stream(connection).page(status, f"{sentence}\n", headers)
        connection.hang_up()

    def _admit(
        self,
        connection: Connection[WebSocketEvent],
        kind: Kind,
        asked: Knock,
        identity: Identity,
        now: float,
    ) -> None:
        """It may: its protocol begins. Raises `Denied` if there are too many."""
        stream = _stream(connection)
        offered = [o.strip() for o in asked.headers.get("sec-websocket-protocol", "").split(",")]
        opening = Opening(
            asked.path,
            asked.query,
            asked.headers,
            identity.name,
            [o for o in offered if o],
            str(uuid4()),
            time.time(),
        )
        try:
            media = kind.load()(opening, self._rules, now)
        except SocketError as e:
            return self._refuse(connection, 400, str(e))
        self.auth.opened(identity, connection.host)
        connection.label = f"{kind.name} {identity.name} {connection.host}"
        session = Session(connection, kind, identity, media, self._end)
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
                if leg is not None:
                    leg.then(event)
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
        leg = SocketLeg(session, event.leg, now, self._close_line, self._frames_lost)
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
            owner=session.identity if event.call else None,
        )
        if line.closed:
            session.media.refused(event.leg, line.closed)
            return session.flush()
        leg.line = line
        session.legs[event.leg] = leg
        session.media.taken(event.leg)
        session.flush()

    def _hung_up(self, session: Session, leg: SocketLeg) -> None:
        """Call control, or the engine, has ended a leg; the switchboard closes its line.

        One that is not a leg yet is refused, and `_began` says so.
        """
        if session.over or leg.line is None:
            return
        ended = leg.line.leg is not None and leg.line.leg.ended
        over = ended and leg.line.closed in ("", "engine")  # not for want of audio
        session.media.hung_up("engine" if over else "bridge")
        if not session.media.lingers:
            return self._end(session, "bridge")
        for name in list(session.legs):
            self._ended(session, name, "bridge")
        session.flush()

    def _ended(self, session: Session, name: LegName, reason: str) -> None:
        leg = session.legs.pop(name, None)
        if leg is not None:
            leg.then(LegEnded(name, reason))

    def _close_line(self, leg: SocketLeg, reason: str) -> None:
        if leg.line is not None:
            self._switchboard.closed(leg.line, reason)

    def _frames_lost(self, n: int) -> None:
        self._metrics.dropped("frames", "waiting", n)

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
        self.auth.closed(session.identity, session.connection.host)
        for name in list(session.legs):
            self._ended(session, name, reason)
        session.connection.hang_up()


def _stream(connection: Connection[WebSocketEvent]) -> WebSocket:
    ingress = connection.ingress
    inner = ingress.inner if isinstance(ingress, Tls) else ingress
    assert isinstance(inner, WebSocket)
    return inner
