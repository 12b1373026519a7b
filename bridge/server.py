"""The process behind the listeners: build, warm up, listen, admit, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from bridge import outbox_file, taps
from bridge.audio.resample import Bank
from bridge.audiosocket_user import AudioSocketUser
from bridge.config import Address, AudioSocketSettings, Settings
from bridge.desk import Desk, watch
from bridge.egress.ami import AmiEgress
from bridge.egress.esl import EslEgress, channel_of
from bridge.egress.log import LogEgress
from bridge.egress.outbox import Outbox
from bridge.egress.webhook import Webhook
from bridge.engine.choice import build, choose
from bridge.errors import Busy, DeliveryError
from bridge.http.app import HttpServer, make_app
from bridge.ingress.rtp_types import BadMedia
from bridge.interfaces import Egress, Recogniser
from bridge.media import MediaAddress, MediaRequest
from bridge.metrics import Metrics
from bridge.pbx.ami import AmiLink
from bridge.pbx.ari import AriLink
from bridge.pbx.esl import EslLink
from bridge.rtp_user import RtpUser
from bridge.switchboard import Admission, Switchboard
from bridge.transport.tcp import Limits, TcpPort
from bridge.turns import TurnRules
from bridge.types import Announcement, CallEvent, LeftCall

log = logging.getLogger(__name__)

BANK_ROWS = 64  # legs resampled in one product; more gain nothing
EXPIRE_EVERY = 0.05  # s between looks at waits that are over
ENGINE_WAIT = 5.0  # s that connections wait in the kernel for the engine before they are refused
STORE_WAIT = 5.0  # s at the end for the outbox's file
GOODBYE_WAIT = 1.0  # s at the end for peers to close; Asterisk takes 0.4 ms (ASTERISK §1.3)
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
        self.choice = None if recogniser else choose(settings.engine)
        self.recogniser = recogniser or build(settings.engine, self.choice)
        self.recogniser.on_step = self.metrics.step
        self.began = time.monotonic()
        self.loaded = False
        self.draining = False
        self._closed = False
        self.outboxes: list[Outbox] = []
        self.shelves = outbox_file.make(settings.outbox)
        self.link: AmiLink | None = None
        self.esl: EslLink | None = None
        self.ari: AriLink | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self.port: TcpPort | None = None
        self.rtp: RtpUser | None = None
        self.http: HttpServer | None = None
        self._expirer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        audiosocket = settings.audiosocket or AudioSocketSettings()
        someone_joins = settings.ami is not None or audiosocket.admission == "announced"
        bank = Bank(BANK_ROWS)
        self.switchboard = Switchboard(
            self.recogniser,
            Admission(
                mode=audiosocket.admission,
                join_wait=audiosocket.join_wait if someone_joins else 0.0,
                max_calls=settings.calls.max,
                max_seconds=settings.calls.max_seconds,
                announce_ttl=settings.calls.announce_ttl,
                keep_ended=settings.calls.keep_ended,
            ),
            TurnRules(**settings.turns.model_dump()),
            publish=self.publish,
            count=self.metrics,
            clock=clock,
            wall=time.time,
            bank=bank,
            room=lambda: self.shelves is None or self.shelves.room,
        )
        self._left: list[tuple[Sequence[LeftCall], Sequence[str]]] = []
        if self.shelves is not None:
            self.shelves.on_calls = self._left_by_another
        self._user = AudioSocketUser(audiosocket, self.switchboard, self.metrics, bank)
        if settings.rtp is not None:
            self.rtp = RtpUser(settings.rtp, self.switchboard, self.metrics, bank, clock)
        self.ari = taps.make(settings, self.switchboard, self.metrics)
        self._make_sinks(sinks)

    def _make_sinks(self, more: Sequence[Egress]) -> None:
        settings = self.settings

        def add(sink: Egress, limit: int = 10_000, *, kept: bool = True) -> None:
            shelf = self.shelves.shelf(sink.name) if self.shelves is not None and kept else None
            outbox = Outbox(sink, limit=limit, delivered=self._delivered, shelf=shelf)
            self.outboxes.append(outbox)

        for sink in more:
            add(sink)
        add(LogEgress(transcripts=settings.log.transcripts), kept=False)  # it never fails
        if settings.ami is not None:
            self.link = AmiLink(settings.ami, self._announced_by_ami)
            add(AmiEgress(self.link, settings.ami))
        if settings.esl is not None:
            self.esl = EslLink(settings.esl)
            add(EslEgress(self.esl, settings.esl))
        for hook in settings.webhook:
            add(Webhook(hook), hook.queue)

    def _delivered(self, seconds: float) -> None:
        self.metrics.word_latency("deliver", seconds)

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
            )
            self.http = HttpServer(app, listeners["http"])
            await self.http.start()
        if self.shelves is not None:
            await self.shelves.start()
        for outbox in self.outboxes:
            await outbox.start()
        if self.link is not None:
            await self.link.start()
        if self.esl is not None:
            await self.esl.start()
        if "audiosocket" in listeners:
            self._make_port(listeners["audiosocket"])
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

    def _make_port(self, sock: socket.socket) -> None:
        settings = self.settings.audiosocket or AudioSocketSettings()
        self.port = TcpPort(
            sock,
            self._user,
            Limits(
                connections=settings.max_connections,
                per_address=settings.max_connections_per_address,
                allow=tuple(settings.allow),
                peer_timeout=settings.peer_timeout,
            ),
            clock=self.clock,
            lateness=self.metrics.lateness,
        )
        self.port.start()
        self.port.listen(False)  # until `_open`

    def _open(self, refuse: str) -> None:
        if self.port is not None and not self.draining:
            self.port.refuse = refuse
            self.port.listen(True)

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
        if self.port is not None:
            self.port.refuse = "draining"
            if handover:
                self.port.listen(False)
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
        connections = self.port.connections if self.port is not None else 0
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
        left = await asyncio.gather(*(outbox.close(timeout) for outbox in self.outboxes))
        for outbox, n in zip(self.outboxes, left, strict=True):
            if n:
                log.error("%s: %d events were not delivered", outbox.name, n)
        if self.shelves is not None:
            await self.shelves.close(STORE_WAIT)
        if self.link is not None:
            await self.link.close()
        if self.esl is not None:
            await self.esl.close()
        if self.ari is not None:
            await self.ari.close()
        if self.rtp is not None:
            self.rtp.close()
        if self.port is not None:
            await self._peers_gone(self.port)
            self.port.close()
        if self.http is not None:
            await self.http.close()
        await self.recogniser.close()

    async def _peers_gone(self, port: TcpPort) -> None:
        """Those we hung up on read that and close; before that, closing could be a reset."""
        port.listen(False)
        deadline = time.monotonic() + (HURRIED_WAIT if self._hurry.is_set() else GOODBYE_WAIT)
        while port.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY)
            try:
                self.switchboard.expire(self.clock())
                if self.rtp is not None:
                    self.rtp.sockets.expire(self.clock())
            except Exception:
                log.exception("letting time pass failed")

    # -- events --------------------------------------------------------------------------------

    def publish(self, event: CallEvent) -> None:
        """To every sink's queue."""
        if self.shelves is not None:
            self.shelves.publish(event, self._put)
        else:
            self._put(event)

    def _put(self, event: CallEvent) -> None:
        for outbox in self.outboxes:
            outbox.put(event)

    def _left_by_another(self, calls: Sequence[LeftCall], over: Sequence[str]) -> None:
        """Calls may come back from when we answer on, not while the engine loads."""
        if not self.loaded:
            self._left.append((calls, over))
        else:
            self.switchboard.left(calls, over, self.clock() + self.settings.outbox.resume)

    def announce(self, announcement: Announcement) -> float:
        """What a UUID belongs to (`Switchboard.announce`)."""
        return self.switchboard.announce(announcement, self.clock())

    def open_media(self, announcement: Announcement, request: MediaRequest) -> MediaAddress:
        """A UDP port for this leg's RTP. Raises `BadMedia`, `Busy`, ValueError (`RtpUser.open`)."""
        if self.rtp is None:
            raise BadMedia("this bridge takes no RTP; its configuration needs an [rtp] section")
        if not self.loaded:
            raise Busy("not ready", "the engine is loading")
        opened = self.rtp.open(announcement, request, self.clock())
        channel = channel_of(announcement.info)
        if request.kind == "l16" and request.source is not None and self.esl and channel:
            local = Address(request.source[0], request.source[1] or 0)
            remote = Address(opened.address, opened.port)
            native = not opened.codec.startswith("l16")
            task = asyncio.create_task(self._unicast(channel, local, remote, native))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        return opened

    async def _unicast(self, channel: str, local: Address, remote: Address, native: bool) -> None:
        """Ask FreeSWITCH for a channel's audio. Where it does not send any, the port expires."""
        assert self.esl is not None
        try:
            await self.esl.unicast(channel, local, remote, native=native)
        except DeliveryError as e:
            log.warning("channel %s will not be heard: %s", channel, e)

    def _announced_by_ami(self, announcement: Announcement) -> None:
        with contextlib.suppress(ValueError):  # draining, or no UUID: nobody waits for an answer
            self.switchboard.announce(announcement, self.clock())
