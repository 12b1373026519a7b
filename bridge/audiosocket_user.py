"""AudioSocket connections ↔ lines of the switchboard."""

from __future__ import annotations

import logging

from bridge.audio.resample import Bank
from bridge.config import AudioSocketSettings
from bridge.ingress.audiosocket import AudioSocket, Rules
from bridge.line import Line
from bridge.metrics import Metrics
from bridge.switchboard import Switchboard
from bridge.transport.connection import Connection
from bridge.transport.tcp import Limits
from bridge.types import Audio, Closed, Digit, IngressEvent, Opened, Warned

log = logging.getLogger(__name__)


class AudioSocketUser:
    """Implements `bridge.transport.connection.User`. `limits`: of its listener."""

    def __init__(
        self,
        settings: AudioSocketSettings,
        switchboard: Switchboard,
        metrics: Metrics,
        bank: Bank,
    ) -> None:
        self._rules = Rules(
            rate=settings.rate,
            keepalive=settings.keepalive,
            uuid_deadline=settings.uuid_deadline,
            max_frame=settings.max_frame,
        )
        self.limits = Limits(
            connections=settings.max_connections,
            per_address=settings.max_connections_per_address,
            allow=tuple(settings.allow),
            peer_timeout=settings.peer_timeout,
        )
        self._switchboard = switchboard
        self._metrics = metrics
        self.turn_over = bank.run

    def ingress(self, now: float) -> AudioSocket:
        """The protocol of a new connection."""
        return AudioSocket(self._rules, now)

    def event(self, connection: Connection[IngressEvent], event: IngressEvent, now: float) -> None:
        """Something was said on a connection."""
        line = connection.context
        if isinstance(event, Audio) and isinstance(line, Line):  # 12 a second and leg: first
            lost = line.audio(event.frame)
            if lost:
                self._metrics.dropped("frames", "waiting", lost)
            return
        match event:
            case Opened(uuid):
                self._opened(connection, uuid, now)
            case Digit(digit) if isinstance(line, Line):
                line.digit(digit)
            case Warned(kind, text):
                self._metrics.warned(kind)
                log.warning("%s: %s", connection.label, text)
            case Closed(reason):
                if isinstance(line, Line):
                    connection.context = None
                    self._switchboard.closed(line, reason)
                else:
                    # A health check, an unanswered channel: quietly.
                    log.debug("%s: closed before its UUID: %s", connection.label, reason)
                    self._metrics.connection_refused(
                        "deadline" if reason == "timeout" else "no_uuid"
                    )
                if reason == "timeout":
                    connection.hang_up()

    def _opened(self, connection: Connection[IngressEvent], uuid: str, now: float) -> None:
        ingress = connection.ingress
        assert isinstance(ingress, AudioSocket)
        connection.label = uuid
        connection.context = self._switchboard.opened(
            uuid, "audiosocket", connection.hang_up, lambda: ingress.origin, now
        )
