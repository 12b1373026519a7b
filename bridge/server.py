"""The process behind the listeners: build, warm up, listen, admit, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from bridge import taps
from bridge.admission import Admission, Limit
from bridge.ami_user import AmiUser
from bridge.audio.resample import Bank
from bridge.audiosocket_user import AudioSocketUser
from bridge.config import AudioSocketSettings, Settings
from bridge.desk import Desk
from bridge.egress.esl import EslEgress
from bridge.engine.choice import build, choose, objection
from bridge.errors import Busy
from bridge.http.app import HttpServer, make_app
from bridge.ingress.rtp_types import BadMedia
from bridge.interfaces import Egress, Recogniser
from bridge.media import MediaAddress, MediaRequest
from bridge.metrics import Metrics
from bridge.pbx.ami import AmiLink
from bridge.pbx.ami_tap import TapAsked
from bridge.pbx.ari import AriLink
from bridge.pbx.esl import EslLink
from bridge.redact.kinds import Kind
from bridge.rtp_user import RtpUser
from bridge.rules_desk import Rules
from bridge.sinks import Sinks
from bridge.socket_user import SocketUser
from bridge.switchboard import Switchboard
from bridge.transport.connection import E, User
from bridge.transport.tcp import Limits, TcpPort
from bridge.transport.websocket import WebSocketEvent
from bridge.turns import TurnRules
from bridge.types import Announcement, CallEvent, IngressEvent, LeftCall
from bridge.unicast import Unicasts
from bridge.watched import watch

log = logging.getLogger(__name__)

BANK_ROWS = 64  # legs resampled in one product; more gain nothing
EXPIRE_EVERY = 0.05  # s between looks at waits that are over
ENGINE_WAIT = 5.0  # s that connections wait in the kernel for the engine before they are refused
GOODBYE_WAIT = 1.0  # s at the end for peers to close; Asterisk takes 0.4 ms
HURRIED_WAIT = 0.1  # s, after a second SIGTERM


class Server:
    """Everything of one worker process."""

    def __init__(
        self,
        settings: Settings,
        recogniser: Recogniser | None = None,
        sinks: Sequence[Egress] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.metrics = Metrics()
        self.began = time.monotonic()
        self.loaded = False
        self.draining = False
        self._closed = False
        self._hurry = asyncio.Event()
        self._expirer: asyncio.Task[None] | None = None
        self._left: list[tuple[Sequence[LeftCall], Sequence[str]]] = []
        self._ami = AmiUser(
            settings.ami,
            lambda: self.switchboard,
            clock,
            on_tap=self._tap_for_ami if settings.ari is not None else None,
        )
        self.link: AmiLink | None = self._ami.link
        self.esl = EslLink(settings.esl) if settings.esl is not None else None
        self.sinks = self._make_sinks(sinks)
        self.choice = None if recogniser else choose(settings.engine)
        self.recogniser = recogniser or build(settings.engine, self.choice)
        self.recogniser.on_step = self.metrics.step
        bank = Bank(BANK_ROWS)
        self.switchboard: Switchboard = self._make_switchboard(bank)
        audiosocket = settings.audiosocket or AudioSocketSettings()
        self._user = AudioSocketUser(audiosocket, self.switchboard, self.metrics, bank)
        self.port: TcpPort[IngressEvent] | None = None
        self.socket_user: SocketUser | None = None
        self.sockets: TcpPort[WebSocketEvent] | None = None
        if settings.websocket is not None:
            self.socket_user = SocketUser(
                settings.websocket,
                self.switchboard,
                self.metrics,
                bank,
                clock=clock,
                pages=settings.http.listen,
            )
        self.rtp: RtpUser | None = None
        self._unicasts: Unicasts | None = None
        if settings.rtp is not None:
            self.rtp = RtpUser(settings.rtp, self.switchboard, self.metrics, bank, clock)
            if self.esl is not None:
                self._unicasts = Unicasts(self.esl, self.rtp.source)
        self.ari: AriLink | None = taps.make(settings, self.switchboard, self.metrics, self.rtp)
        self.http: HttpServer | None = None
        self.rules = Rules(settings, self.switchboard, self.metrics, self.link, self.esl)

    def _make_sinks(self, given: Sequence[Egress]) -> Sinks:
        ami, esl = self.settings.ami, self.settings.esl
        links: list[tuple[Egress, Sequence[Kind]]] = []
        if self._ami.egress is not None and ami is not None:
            links.append((self._ami.egress, ami.redact))
        if self.esl is not None and esl is not None:
            links.append((EslEgress(self.esl, esl), esl.redact))
        sinks = Sinks(
            self.settings,
            given,
            links,
            find=lambda call_id: self.switchboard.find(call_id),
            delivered=lambda seconds: self.metrics.word_latency("deliver", seconds),
            clock=self.clock,
        )
        if sinks.shelves is not None:
            sinks.shelves.on_calls = self._left_by_another
        return sinks

    def _make_switchboard(self, bank: Bank) -> Switchboard:
        settings, recorder = self.settings, self.sinks.recorder
        audiosocket = settings.audiosocket or AudioSocketSettings()
        someone_joins = settings.ami is not None or audiosocket.admission == "announced"
        return Switchboard(
            self.recogniser,
            Admission(
                mode=audiosocket.admission,
                join_wait=audiosocket.join_wait if someone_joins else 0.0,
                max_calls=settings.calls.max,
                max_seconds=settings.calls.max_seconds,
                announce_ttl=settings.calls.announce_ttl,
                keep_ended=settings.calls.keep_ended,
                pause_digits=settings.calls.pause_digits,
                limits=tuple(Limit(**limit.model_dump()) for limit in settings.limit),
            ),
            TurnRules(**settings.turns.model_dump()),
            publish=self.publish,
            count=self.metrics,
            clock=self.clock,
            wall=time.time,
            bank=bank,
            part=self._ami.farewells.part,
            objection=self._objection,
            room=lambda: self.sinks.room,
            **({"on_leg": recorder.leg} if recorder else {}),
        )

    # -- life ----------------------------------------------------------------------------------

    async def start(self, listeners: Mapping[str, socket.socket]) -> None:
        """Listen, and load the engine. `listeners`: by name, ``audiosocket`` and ``http``.

        Raises `EngineUnavailable`, and `BridgeError` if rtp.listen is no address of ours.
        """
        if self.rtp is not None:
            self.rtp.sockets.check()
        if "http" in listeners:
            token = self.settings.http.token
            app = make_app(
                Desk(self),
                token=token.get_secret_value() if token else None,
                hosts=self.settings.http.hosts,
                hub=self.sinks.hub,
            )
            self.http = HttpServer(app, listeners["http"])
            await self.http.start()
        await self.sinks.start()
        if self.link is not None:
            await self.link.start()
        if self.esl is not None:
            await self.esl.start()
        if "audiosocket" in listeners:
            self.port = self._port(listeners["audiosocket"], self._user, self._user.limits)
        if "websocket" in listeners and self.socket_user is not None:
            self.sockets = self._port(
                listeners["websocket"], self.socket_user, self.socket_user.limits
            )
            if self.socket_user.keys is not None:
                self.socket_user.keys.start()
        watch(self)
        self._expirer = asyncio.create_task(self._expire(), name="expire")
        loop = asyncio.get_running_loop()
        # Connections wait in the kernel while the engine loads, and are told no if that is long.
        late = loop.call_later(ENGINE_WAIT, self._open, "not ready")
        try:
            await self.recogniser.start()
        finally:
            late.cancel()
        self.loaded = True
        for calls, over in self._left:
            self._left_by_another(calls, over)
        self._open("")
        if self.ari is not None:
            await self.ari.start()  # only now: a tap is a call, and would be refused
        log.info(
            "ready: %s, %d slots (%s)",
            self.recogniser.name,
            self.recogniser.slots,
            self.choice.why if self.choice else "given",
        )

    def _port(self, sock: socket.socket, user: User[E], limits: Limits) -> TcpPort[E]:
        port = TcpPort(sock, user, limits, clock=self.clock, lateness=self.metrics.lateness)
        port.start()
        port.listen(False)  # until `_open`
        return port

    @property
    def _ports(self) -> list[TcpPort[IngressEvent] | TcpPort[WebSocketEvent]]:
        return [port for port in (self.port, self.sockets) if port is not None]

    def _open(self, refuse: str) -> None:
        for port in self._ports:
            if not self.draining:
                port.refuse = refuse
                port.listen(True)

    async def run_until(self, stop: asyncio.Event, retire: asyncio.Event) -> None:
        """Serve until one of them is set, then drain and close."""
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(retire.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await self.drain(handover=retire.is_set())
        await self.close()

    def hurry(self) -> None:
        """Stop waiting for calls to end (a second SIGTERM)."""
        self._hurry.set()

    async def drain(self, *, handover: bool = False) -> None:
        """No new calls; let calls end within the limit, then end them.

        `handover`: a fresh worker accepts on the same sockets, so we leave those alone.
        """
        self.draining = True
        # Whom we accepted a moment ago has not said its UUID, and the fresh worker never saw it.
        self.switchboard.draining = not handover
        log.info("draining: %d calls", len(self.switchboard.calls))
        for port in self._ports:
            port.refuse = "draining"
            if handover:
                port.listen(False)
        if handover and self.ari is not None:
            await self.ari.close(leave=True)  # the fresh worker's link takes its place
        if handover and self.http is not None:
            await self.http.close()
            self.http = None
        await self._calls_gone(self.settings.service.drain_timeout)
        for call_id in list(self.switchboard.calls):
            self.switchboard.hang_up(call_id)
        if not self._hurry.is_set():
            await self._calls_gone(self.settings.service.flush_timeout)

    async def _calls_gone(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while self._anybody() and not self._hurry.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), min(0.05, left))

    def _anybody(self) -> bool:
        """Is a call up, or may a connection still become one?"""
        if self.switchboard.calls:
            return True
        if self.switchboard.draining:
            return False
        connections = sum(port.connections for port in self._ports)
        return connections > 0 or (self.rtp is not None and self.rtp.ports.waiting > 0)

    async def close(self) -> None:
        """Flush the sinks within the limit and let go of everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for call in list(self.switchboard.calls.values()):
            self.switchboard.hang_up(call.id)
            call.end()
        if self._expirer is not None:
            self._expirer.cancel()
        timeout = 0.0 if self._hurry.is_set() else self.settings.service.flush_timeout
        await self.sinks.flush(timeout)
        await self.rules.close()
        self._ami.farewells.close()
        await self.sinks.close(timeout)
        if self.link is not None:
            await self.link.close()
        if self.esl is not None:
            await self.esl.close()
        if self.ari is not None:
            await self.ari.close()
        if self.rtp is not None:
            self.rtp.close()
        for port in self._ports:
            await self._peers_gone(port)
            port.close()
        if self.socket_user is not None and self.socket_user.keys is not None:
            await self.socket_user.keys.close()
        if self.http is not None:
            await self.http.close()
        await self.recogniser.close()

    async def _peers_gone(self, port: TcpPort[IngressEvent] | TcpPort[WebSocketEvent]) -> None:
        """Those we hung up on read that and close; before that, closing could be a reset."""
        port.listen(False)
        port.hang_up()  # of whoever is left without a call: it would see a connection break
        deadline = time.monotonic() + (HURRIED_WAIT if self._hurry.is_set() else GOODBYE_WAIT)
        while port.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY)
            try:
                self.switchboard.expire(self.clock())
                self.sinks.expire(self.clock())
                self.rules.expire()
                if self.rtp is not None:
                    self.rtp.sockets.expire(self.clock())
            except Exception:
                log.exception("letting time pass failed")

    # -- events --------------------------------------------------------------------------------

    def _tap_for_ami(self, asked: TapAsked) -> object:
        tap = taps.asked_by_ami(self.ari)
        return tap(asked) if tap is not None else None

    def publish(self, event: CallEvent) -> None:
        """To every sink, redacted where its settings say so; then to the rules, unredacted."""
        self.sinks.publish(event)
        self.rules.take(event)

    def _objection(self) -> Busy | None:
        """What is against a new call: the engine's pace, or a disk that is full."""
        if not self.sinks.room:
            return Busy("outbox", "the outbox's file is full")
        return objection(self.recogniser)

    def _left_by_another(self, calls: Sequence[LeftCall], over: Sequence[str]) -> None:
        """Calls may come back from when we answer on, not while the engine loads."""
        if not self.loaded:
            self._left.append((calls, over))
        else:
            self.switchboard.left(calls, over, self.clock() + self.settings.outbox.resume)

    def announce(self, announcement: Announcement) -> float:
        """What a UUID belongs to, with a slot reserved for it (`Switchboard.announce`)."""
        return self.switchboard.announce(announcement, self.clock(), reserve=True)

    def open_media(self, announcement: Announcement, request: MediaRequest) -> MediaAddress:
        """A UDP port for this leg's RTP. Raises `BadMedia`, `Busy`, ValueError (`RtpUser.open`)."""
        if self.rtp is None:
            raise BadMedia("this bridge takes no RTP; its configuration needs an [rtp] section")
        if not self.loaded:
            raise Busy("not ready", "the engine is loading")
        opened = self.rtp.open(announcement, request, self.clock())
        if self._unicasts is not None:
            self._unicasts.opened(announcement, request, opened)
        return opened
