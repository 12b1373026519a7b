"""Announced legs ↔ UDP ports ↔ lines of the switchboard: what the bridge does about RTP.

And about samples by UDP without any header, which FreeSWITCH can send: the same, with less to know.

A leg is announced (`RtpUser.open`); a port is opened for it, and call control is told which. So far
it costs a socket. It becomes a line, and takes a slot, when the first packet of its peer comes; if
none does within `announce_ttl`, the port closes. A leg ends when its peer says BYE, when nothing
has come for `timeout`, or when call control says so (DELETE /calls/{id}).

The same UUID announced again, with nothing else about the stream but its source, is a re-INVITE:
the port listens to the new source from then on.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from bridge.audio.codecs import codec
from bridge.audio.resample import Bank
from bridge.config import RtpSettings, port_range
from bridge.ingress.raw_udp import RawSource, RawUdp
from bridge.ingress.rtp import Rtp
from bridge.ingress.rtp_source import Network, Source, allowed
from bridge.ingress.rtp_types import AudioType, BadMedia, Keys, RtpRules, payload_types
from bridge.ingress.srtp import inline, keys, own_keys
from bridge.media import MediaAddress, MediaRequest, SrtpKey
from bridge.media_ports import MediaPorts
from bridge.metrics import Metrics
from bridge.rtp_stream import COUNTED, Stream, add, stream_of
from bridge.switchboard import Switchboard
from bridge.transport.udp import UdpPorts
from bridge.transport.udp_port import UdpPort
from bridge.types import Announcement, Audio, Closed, Digit, IngressEvent, LegCounts, Warned

log = logging.getLogger(__name__)

RAW_CODEC = "l16le/8000"  # FreeSWITCH on a machine as they nearly all are


class RtpUser:
    """All ports of one bridge. Implements `bridge.transport.udp_port.User`."""

    def __init__(
        self,
        settings: RtpSettings,
        switchboard: Switchboard,
        metrics: Metrics,
        bank: Bank,
        clock: Callable[[], float],
    ) -> None:
        self.sockets = MediaPorts(settings.listen, port_range(settings.ports))
        self.ports = UdpPorts(self, clock=clock, lateness=metrics.lateness)
        self.turn_over = bank.run
        self.on_closed: Callable[[str], None] = lambda uuid: None
        """Told the UUID of each port that has closed."""
        self._settings = settings
        self._switchboard = switchboard
        self._metrics = metrics
        self._clock = clock
        self._allow = _networks(settings.allow)
        self._learn = _networks(settings.learn)
        self._open: dict[str, UdpPort] = {}  # by UUID
        self._totals: Counter[str] = Counter()  # of streams that are over

    def close(self) -> None:
        """Close every port."""
        self.ports.close()
        self.sockets.close()

    # -- call control --------------------------------------------------------------------------

    def open(self, announcement: Announcement, request: MediaRequest, now: float) -> MediaAddress:
        """A port for this leg. Raises `BadMedia`, `Busy`, or ValueError if the UUID is taken."""
        uuid = announcement.uuid
        if uuid in self._open:
            return self._again(self._open[uuid], announcement, request, now)
        if self._switchboard.taken(uuid):
            raise ValueError("this UUID's call is up already, and it is not by RTP")
        stream = self._stream(announcement, request, now)
        source = self._source(request, stream.types)
        sock = self.sockets.take(now)
        try:
            ttl = self._switchboard.announce(announcement, now, reserve=True)
        except Exception:
            self.sockets.unused(sock)
            raise
        assert stream.rtp is not None
        port = self.ports.open(sock, stream.rtp, source, now + ttl)
        port.label = f"{uuid}, {port.label}"
        port.context = stream
        self._open[uuid] = port
        return self._address(port, ttl)

    def _again(
        self, port: UdpPort, announcement: Announcement, request: MediaRequest, now: float
    ) -> MediaAddress:
        """The source has changed, or call control knows more about the call."""
        stream = stream_of(port)
        if replace(request, source=stream.request.source) != stream.request:
            raise ValueError(
                "this UUID has been announced with another stream; only its source may change"
            )
        source = self._source(request, stream.types)
        ttl = self._switchboard.announce(announcement, now)
        stream.request = request
        port.listen_to(source)
        if not port.open:
            port.expires = port.due = now + ttl
        return self._address(port, ttl)

    def withdraw(self, call_id: str) -> bool:
        """Close the ports of a call that nobody has come to."""
        ports = [port for port in self._open.values() if not port.open]
        mine = [port for port in ports if stream_of(port).call == call_id]
        for port in mine:
            self._switchboard.announced.forget(stream_of(port).uuid)
            port.close()
        return bool(mine)

    def source(self, uuid: str) -> tuple[str, int | None] | None:
        """Where the leg's audio is announced to come from; None also where there is no port."""
        port = self._open.get(uuid)
        return stream_of(port).request.source if port is not None else None

    def listen_to(self, uuid: str, source: tuple[str, int]) -> None:
        """Who sends to this leg's port is known now. Raises `BadMedia`."""
        port = self._open.get(uuid)
        if port is None:
            raise BadMedia("the port has been closed meanwhile")
        stream = stream_of(port)
        request = replace(stream.request, source=source, held=False)
        gate = self._source(request, stream.types)
        stream.request = request
        port.listen_to(gate)

    def end(self, uuid: str) -> None:
        """Its sender has ended: what has come is heard, and the leg is over. Idempotent."""
        port = self._open.get(uuid)
        if port is None:
            return
        if port.open:
            port.end("hangup")
        else:
            self._switchboard.announced.forget(uuid)
            port.close()

    def _address(self, port: UdpPort, ttl: float) -> MediaAddress:
        stream = stream_of(port)
        codec = stream.request.codec or self._default(stream.request)
        number = port.sock.getsockname()[1]
        address = self._settings.address
        return MediaAddress(address, number, ttl, codec, stream.types, stream.answer)

    def _default(self, request: MediaRequest) -> str:
        return self._settings.codec if request.kind == "rtp" else RAW_CODEC

    def _stream(self, announcement: Announcement, request: MediaRequest, now: float) -> Stream:
        """What hears the stream. Raises `BadMedia`."""
        uuid, call = announcement.uuid, announcement.call or announcement.uuid
        if request.srtp is None and self._settings.require_srtp:
            raise BadMedia("srtp: this bridge takes no audio without it (rtp.require_srtp)")
        if request.kind == "rtp":
            theirs = keys(request.srtp.suite, request.srtp.key) if request.srtp else None
            ours = own_keys(theirs.suite, secrets.token_bytes) if theirs else None
            rules = self._rules(request, theirs, ours)
            types = {number: str(kind) for number, kind in sorted(rules.payload_types.items())}
            answer = SrtpKey(ours.suite, inline(ours)) if ours else None
            return Stream(uuid, call, request, types, Rtp(rules, now), answer)
        if request.srtp is not None or request.payload_types:
            raise BadMedia("srtp and payload_types are RTP's; samples without a header have none")
        kind = payload_types(given={"96": request.codec or RAW_CODEC})[96]
        if not isinstance(kind, AudioType):
            raise BadMedia(f"codec {kind} is no audio")
        timeout = request.timeout or self._settings.timeout
        raw = RawUdp(codec(kind.name, kind.rate), timeout, now)
        return Stream(uuid, call, request, {}, raw)

    def _rules(self, request: MediaRequest, theirs: Keys | None, ours: Keys | None) -> RtpRules:
        settings = self._settings
        types = payload_types(
            request.codec or settings.codec,
            {**settings.payload_types, **request.payload_types},
            events=settings.dtmf_type,
        )
        return RtpRules(
            payload_types=types,
            timeout=request.timeout or settings.timeout,
            bye_wait=settings.bye_wait,
            jitter_floor=settings.jitter_floor,
            jitter_cap=settings.jitter_cap,
            conceal=settings.conceal,
            srtp=theirs,
            answer=ours,
            ssrc=secrets.randbits(32),
        )

    def _source(self, request: MediaRequest, types: Collection[int]) -> Source | RawSource:
        """Raises `BadMedia` where nobody could ever be heard."""
        if request.held:
            return Source(None, (), types)
        if request.source is None:
            if request.kind != "rtp":
                raise BadMedia("from: needed, because samples without a header prove nothing")
            if not self._learn:
                raise BadMedia(
                    "from: needed, because rtp.allow names no network to look for the peer in"
                )
            return Source(None, self._learn, types)
        host = request.source[0]
        if self._allow and not allowed(host, self._allow):
            raise BadMedia(f"from: {host} is in none of the networks of rtp.allow")
        if (":" in host) != (":" in self._settings.listen):
            raise BadMedia(
                f"from: {host} cannot send to rtp.listen = {self._settings.listen}; "
                "one is IPv4 and the other IPv6"
            )
        if request.kind != "rtp":
            return RawSource(request.source)
        return Source(request.source, (), types)

    # -- ports ---------------------------------------------------------------------------------

    def opened(self, port: UdpPort, now: float) -> None:
        """The first packet: a line, if it may be."""
        stream = stream_of(port)
        rtp = stream.rtp
        assert rtp is not None

        def hang_up() -> None:
            stream.line = None
            port.hang_up()

        def counted(counts: LegCounts) -> LegCounts:
            if stream.rtp is not None:
                stream.strangers = port.strangers
            return stream.counted(counts)

        line = self._switchboard.opened(
            stream.uuid, stream.request.kind, hang_up, lambda: rtp.origin, now, counted
        )
        if not line.closed:
            stream.line = line

    def event(self, port: UdpPort, event: IngressEvent, now: float) -> None:
        """Something was said on a port."""
        stream = stream_of(port)
        line = stream.line
        if line is None:
            return  # it has been hung up
        if type(event) is Audio:
            lost = line.audio(event.frame)
            if lost:
                self._metrics.dropped("frames", "waiting", lost)
            return
        match event:
            case Digit(digit):
                line.digit(digit)
            case Warned(kind, text):
                self._metrics.warned(kind)
                log.warning("%s: %s", port.label, text)
            case Closed(reason):
                stream.line = None
                port.close()
                self._switchboard.closed(line, reason)

    def closed(self, port: UdpPort) -> None:
        """The port is served no more: count, let it rest, and say so."""
        stream = stream_of(port)
        del self._open[stream.uuid]
        self.sockets.give_back(port.sock, self._clock())
        if stream.rtp is not None:
            stream.counts, stream.rtp = stream.rtp.counts(), None
            stream.strangers = port.strangers
        if port.open:
            add(self._totals, stream.counts)
            self._metrics.jitter(stream.counts.jitter)
        line, stream.line = stream.line, None
        if line is not None:  # an error of ours; whoever ends it otherwise has taken the line
            self._switchboard.closed(line, "internal")
        self.on_closed(stream.uuid)

    # -- what it all came to -------------------------------------------------------------------

    def totals(self) -> dict[str, float]:
        """`COUNTED`, of all streams that there are and were."""
        totals = self._totals.copy()
        for port in self._open.values():
            stream = stream_of(port)
            if stream.rtp is not None:
                add(totals, stream.rtp.counts())
        return {name: totals[name] for name in COUNTED}


def _networks(texts: Sequence[str]) -> list[Network]:
    return [ipaddress.ip_network(text, strict=False) for text in texts]
