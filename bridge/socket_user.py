"""WebSocket connections ↔ lines of the switchboard, and who may open one."""

from __future__ import annotations

import importlib
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
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
    SocketError,
    SocketRules,
)
from bridge.metrics import Metrics
from bridge.socket_session import Session, SocketLeg
from bridge.switchboard import Switchboard
from bridge.transport.connection import Connection, StreamIngress
from bridge.transport.tls import Tls
from bridge.transport.websocket import Knocked, WebSocket, WebSocketEvent
from bridge.types import Announcement, Closed, LegName, Warned

log = logging.getLogger(__name__)

Make: TypeAlias = Callable[[Opening, SocketRules, float], MediaSocket]


@dataclass(frozen=True, slots=True)
class Kind:
    """A protocol: its name in events and metrics, what speaks it, its subprotocols."""

    name: str
    make: str  # "module:class", called with (Opening, SocketRules, now)
    subprotocols: tuple[str, ...] = ()
    paced: bool = False
    """Its clients may send faster than real time, a file say, and are made to wait."""

    def load(self) -> Make:
        """The class."""
        module, _, name = self.make.partition(":")
        made: Make = getattr(importlib.import_module(module), name)
        return made


PROTOCOLS: dict[str, Kind] = {
    # path → protocol; a path that ends in / has others below it
    "/twilio": Kind("twilio", "bridge.ingress.twilio:Twilio"),
    "/": Kind("pcm", "bridge.ingress.plain:Plain", paced=True),
    "/ws": Kind("pcm", "bridge.ingress.plain:Plain", paced=True),
    "/v1/realtime": Kind("realtime", "bridge.ingress.realtime:Realtime", ("realtime",), paced=True),
    "/api/asr-streaming": Kind("moshi", "bridge.ingress.moshi:Moshi", paced=True),
    "/v1/stream": Kind("stream", "bridge.ingress.float_stream:FloatStream", paced=True),
    "/ws/stt": Kind("stt", "bridge.ingress.sessions:Sessions", paced=True),
    "/v1/listen": Kind("deepgram", "bridge.ingress.deepgram:Deepgram", ("token",), paced=True),
}


def kind_of(path: str) -> Kind | None:
    """The protocol that is spoken at a path."""
    found = PROTOCOLS.get(path) or PROTOCOLS.get(path.rstrip("/") or "/")
    if found is not None:
        return found
    return next(
        (
            kind
            for at, kind in PROTOCOLS.items()
            if at != "/" and at[-1] == "/" and path[: len(at)] == at
        ),
        None,
    )


class SocketUser:
    """Implements `bridge.transport.connection.User`."""

    def __init__(
        self,
        settings: WebSocketSettings,
        switchboard: Switchboard,
        metrics: Metrics,
        bank: Bank,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._rules = SocketRules(
            settings.start_deadline, settings.patience, clock, lambda: metrics.last_step
        )
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
            path,
            dict(parse_qsl(parts.query)),
            knock.headers,
            "loopback",
            [o for o in offered if o],
            str(uuid4()),
            time.time(),
        )
        try:
            media = kind.load()(opening, self._rules, now)
        except SocketError as e:
            stream.page(400, f"{e}\n")
            return connection.hang_up()
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
                if leg is not None:
                    leg.then(event)
                else:
                    session.media.finalised(name)
                    session.flush()
            case LegEnded(name, reason):
                self._ended(session, name, reason)

    def _began(self, session: Session, event: LegBegan, now: float) -> None:
        """A line, if it may be. Announced by ourselves: who it is was settled at the door."""
        uuid = str(uuid4())
        leg = SocketLeg(session, event.leg, now, self._close_line, self._frames_lost)
        try:
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
        session.media.taken(event.leg)
        session.flush()

    def _hung_up(self, session: Session, leg: SocketLeg) -> None:
        """Call control, or the engine, has ended a leg; the switchboard closes its line.

        One that is not a leg yet is refused, and `_began` says so.
        """
        if not session.over and leg.line is not None:
            over = leg.line.leg is not None and leg.line.leg.ended  # not for want of audio
            session.media.hung_up("engine" if over else "bridge")
            self._end(session, "bridge")

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
        for name in list(session.legs):
            self._ended(session, name, reason)
        session.connection.hang_up()


def _stream(connection: Connection[WebSocketEvent]) -> WebSocket:
    ingress = connection.ingress
    inner = ingress.inner if isinstance(ingress, Tls) else ingress
    assert isinstance(inner, WebSocket)
    return inner
