"""RTP, one leg's datagrams from one peer, without I/O (RFC 3550, 3551, 4733).

Theory of operation. `rtp_source` has decided that the datagrams are the peer's. `srtp` opens them,
`rtp_packet` parses them, `rtp_sequence` says which are the stream's and where they belong, and by
its payload type a packet is audio, comfort noise, an event (a digit), or unknown. `rtp_playout`
says what is heard and when: mostly at once, and behind a hole after a deadline. The payload type
and the SSRC may change in mid-call; the leg's clock goes on.

Nothing that a peer sends raises. Every datagram is counted once (`RtpCounts`). Nothing is sent but
reports to a peer that reports itself, and these in SRTCP if the peer uses SRTP and was told a key
of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from bridge.audio.codecs import codec
from bridge.ingress import rtcp
from bridge.ingress.rtp_bye import Departure
from bridge.ingress.rtp_dtmf import Digits
from bridge.ingress.rtp_packet import HEADER, MAX_PACKET, PLAIN, SIZE, is_rtcp, parse
from bridge.ingress.rtp_playout import Playout
from bridge.ingress.rtp_sequence import Placed, Sequencer
from bridge.ingress.rtp_types import AudioType, RtpCounts, RtpRules
from bridge.ingress.srtp import Opener, Sealer
from bridge.types import Closed, Digit, IngressEvent, Warned

__all__ = ["Rtp", "RtpCounts", "RtpRules"]

NO_TYPE: Final = -1  # second byte of no packet
MANY_FAILED: Final = 50  # packets that do not open, and none that does: the key is wrong


class Rtp:
    """One peer's stream. Implements `bridge.interfaces.Ingress`.

    `next_at` is the deadline as a plain attribute; it may be earlier than there is need.
    """

    __slots__ = (
        "_bye", "_closed", "_digits", "_faults", "_heard_at", "_kind", "_out", "_playout",
        "_reported_at", "_reporter", "_rtcp", "_said", "_sealer", "_second", "_sequencer", "_srtp",
        "_superseded", "_unknown", "next_at", "rules",
    )  # fmt: skip

    def __init__(self, rules: RtpRules, now: float) -> None:
        self.rules = rules
        self.next_at = now + rules.timeout
        self._closed = False
        self._heard_at = self._reported_at = now
        self._bye = Departure(rules.bye_wait)
        self._srtp = Opener(rules.srtp) if rules.srtp is not None else None
        self._sealer = Sealer(rules.answer) if rules.answer is not None else None
        self._sequencer = Sequencer()
        self._playout = Playout(rules, now)
        self._kind: AudioType | None = None  # what it plays
        self._second = NO_TYPE  # second byte of a packet with audio as it is now
        self._digits = Digits()
        self._reporter = rtcp.Reporter(rules.ssrc)
        self._out: list[bytes] = []
        self._said: set[str] = set()
        self._faults: Counter[str] = Counter()
        self._rtcp = self._unknown = 0
        self._superseded = 0  # packets of the codec before, after a change

    # -- in ------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> Sequence[IngressEvent]:
        """One datagram of the peer's. Never raises."""
        return self.receive_many(((data, now),))

    def receive_many(self, datagrams: Sequence[tuple[bytes, float]]) -> Sequence[IngressEvent]:
        """Datagrams of the peer's and their times of arrival, in order. Never raises."""
        if self._closed or not datagrams:
            return ()
        events: list[IngressEvent] = []
        sequencer, playout = self._sequencer, self._playout
        for data, now in datagrams:
            # The next packet of what comes all the time. Whatever is special goes the other way.
            if SIZE < len(data) <= MAX_PACKET and self._srtp is None:
                first, second, sequence, timestamp, ssrc = HEADER.unpack_from(data)
                if (
                    sequence == sequencer.next
                    and second == self._second
                    and first == PLAIN
                    and ssrc == sequencer.ssrc
                    and playout.buffer is not None
                ):
                    timestamp = sequencer.step(timestamp, now)
                    playout.buffer.put(sequencer.highest, timestamp, data[SIZE:], now)
                    self._heard_at = now
                    continue
            self._receive_any(data, now, events)
            if self._closed:
                return events
        due = playout.pull(now, events)
        if due < self.next_at:
            self.next_at = due
        return events

    def _receive_any(self, data: bytes, now: float, events: list[IngressEvent]) -> None:
        rtcp_came = is_rtcp(data)
        if self._srtp is not None:
            opened = self._srtp.rtcp(data) if rtcp_came else self._srtp.rtp(data)
            if opened is None:
                self._refused(events)
                return
            data = opened
        if rtcp_came:
            self._reported(data, now, events)
            return
        packet = parse(data)
        if isinstance(packet, str):
            self._faults[packet] += 1
            return
        for placed in self._sequencer.take(packet, now):
            self._heard_at = now
            if placed.fresh:
                self._restart(now, events)
            self._place(placed, events)
        self._arm()

    def _refused(self, events: list[IngressEvent]) -> None:
        """One packet may be the network's fault, or an attacker's; all of them are a wrong key."""
        assert self._srtp is not None
        if self._srtp.failed == MANY_FAILED and self._sequencer.ssrc is None:
            text = (
                f"{MANY_FAILED} packets and none opens: is the srtp key that was announced theirs?"
            )
            self._warn("srtp_failed", text, events)

    def _restart(self, now: float, events: list[IngressEvent]) -> None:
        """Another SSRC, or another numbering."""
        for digit in self._digits.close():
            self._playout.press(digit, now, events)
        self._digits = Digits()
        self._playout.restart(now, events)

    def _place(self, placed: Placed, events: list[IngressEvent]) -> None:
        """A packet of the stream, by what it holds."""
        packet, at = placed.packet, placed.at
        kind = self.rules.payload_types.get(packet.payload_type)
        if isinstance(kind, AudioType) and packet.payload:
            self._place_audio(kind, placed, events)
            return
        buffer = self._playout.buffer
        if buffer is not None:
            if kind == "cn":
                buffer.comfort(placed.sequence, placed.timestamp, at)
            else:  # an audio type without audio keeps a NAT's hole open (RFC 6263)
                buffer.skip(placed.sequence, placed.timestamp, at)
        if kind == "telephone-event":
            for digit in self._digits.hear(packet.payload, placed.timestamp, at):
                self._playout.press(digit, at, events)
        elif kind is None:
            text = f"payload type {packet.payload_type} was not announced: silence instead"
            self._unheard(text, events)

    def _unheard(self, text: str, events: list[IngressEvent]) -> None:
        self._unknown += 1
        self._warn("unknown_type", text, events)

    def _place_audio(self, kind: AudioType, placed: Placed, events: list[IngressEvent]) -> None:
        playout, packet, at = self._playout, placed.packet, placed.at
        if kind != self._kind:
            if not placed.newest:
                self._superseded += 1
                return
            try:
                decoder = codec(kind.name, kind.rate)
            except ValueError as e:  # G.722 without its library
                self._unheard(str(e), events)
                return
            playout.change(decoder)
            self._sequencer.retime(decoder.clock)
            self._kind = kind
        if placed.newest:
            self._second = packet.payload_type
        self._sequencer.time(placed.timestamp, at)
        assert playout.buffer is not None
        playout.buffer.put(
            placed.sequence, placed.timestamp, packet.payload, at, marker=packet.marker
        )

    def _warn(self, kind: str, text: str, events: list[IngressEvent]) -> None:
        if kind not in self._said:  # once per call
            self._said.add(kind)
            events.append(Warned(kind, text))

    # -- RTCP ----------------------------------------------------------------------------------

    def _reported(self, data: bytes, now: float, events: list[IngressEvent]) -> None:
        reports = rtcp.parse(data)
        if isinstance(reports, str):
            self._faults[f"rtcp_{reports}"] += 1
            return
        self._rtcp += 1
        self._reported_at = now
        ssrc = self._sequencer.ssrc
        for report in reports:
            match report:
                case rtcp.SenderReport() if report.ssrc == ssrc:
                    self._reporter.hear(report, now)
                    self.next_at = min(self.next_at, self._reporter.due)
                case rtcp.Bye() if ssrc in report.ssrcs:
                    self._bye.said(now)
                    if self._bye.over(self._heard_at, now):
                        events.extend(self.eof("hangup", now))
                        return
                    self._arm()

    def _report(self, now: float, *, bye: bool = False) -> None:
        """One report waits to be sent at the most: the newest."""
        block = self._sequencer.report()
        blocks = [self._reporter.timed(block, now)] if block is not None else []
        data = rtcp.build(self.rules.ssrc, self.rules.cname, blocks, bye=bye)
        if self._sealer is not None:
            self._out = [self._sealer.rtcp(data)]
        elif self._srtp is None:
            self._out = [data]
        self._reporter.sent(now)

    # -- time ----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `expire` wants to be called."""
        return None if self._closed else self.next_at

    def expire(self, now: float) -> Sequence[IngressEvent]:
        """Let time pass: playout, a digit without an end, a report, a peer that is gone."""
        if self._closed:
            return ()
        events: list[IngressEvent] = []
        for digit in self._digits.expire(now):
            self._playout.press(digit, now, events)
        self._playout.pull(now, events)
        if now >= self._reporter.due:
            self._report(now)
        if self._bye.over(self._heard_at, now):
            events.extend(self.eof("hangup", now))
        if now >= self._gone_at:
            events.extend(self.eof("timeout", now))
        self._arm()
        return events

    @property
    def _gone_at(self) -> float:
        """When the peer is taken for gone if nothing comes."""
        return max(self._heard_at, self._reported_at) + self.rules.timeout

    def _arm(self) -> None:
        self.next_at = min(
            self._gone_at,
            self._bye.due,
            self._playout.due,
            self._digits.deadline,
            self._reporter.due,
        )

    # -- the end, and out ----------------------------------------------------------------------

    def eof(self, reason: str, now: float) -> Sequence[IngressEvent]:
        """The stream is over: what waits is heard, then `Closed`."""
        if self._closed:
            return ()
        self._closed = True
        events: list[IngressEvent] = []
        self._playout.flush(now, events)
        events.extend(Digit(digit) for digit in self._digits.close())
        events.append(Closed(reason))
        return events

    def hang_up(self, now: float) -> None:
        """End it from our side, with a BYE where RTCP is spoken. What still comes is ignored."""
        self._closed = True
        if self._reporter.wanted:
            self._report(now, bye=True)

    def data_to_send(self) -> Sequence[bytes]:
        """RTCP datagrams, for the address that sends us its own."""
        if not self._out:
            return ()
        out, self._out = self._out, []
        return out

    # -- what it came to -----------------------------------------------------------------------

    @property
    def origin(self) -> float:
        """Arrival time of the leg's sample 0, were the network always at its fastest."""
        return self._playout.origin

    @property
    def seconds(self) -> float:
        """How far the leg's clock has run."""
        return self._playout.seconds

    def counts(self) -> RtpCounts:
        """What the stream has come to so far."""
        sequencer, srtp = self._sequencer, self._srtp
        return RtpCounts(
            received=sequencer.received,
            lost=sequencer.lost,
            late=self._playout.late + self._superseded,
            duplicate=sequencer.duplicates,
            reordered=sequencer.reordered,
            stray=sequencer.strays + sequencer.waiting,
            restarts=sequencer.restarts,
            invalid=self._faults.total(),
            unknown_type=self._unknown,
            srtp_failed=srtp.failed if srtp is not None else 0,
            srtp_replayed=srtp.replayed if srtp is not None else 0,
            rtcp=self._rtcp,
            jitter=sequencer.jitter / sequencer.clock,
            concealed=self._playout.concealed,
            faults=dict(self._faults),
        )
