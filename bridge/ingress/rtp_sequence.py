"""Which packets are the stream's, and where they belong in it (RFC 3550 A.1, A.3, A.8). Pure.

Theory of operation. A stream is one SSRC with one numbering. Its sequence numbers (16 bits) and
timestamps (32 bits) are unwrapped to ints that go on growing. Of a packet there are three kinds:

- it follows: its number is ahead by less than `MAX_DROPOUT`. The numbers it jumped over are
  `lost` until they come. `step` is this for the next number exactly, nearly every packet;
- it is late: its number is behind by no more than `MAX_MISORDER` and its timestamp fits. If it
  was lost it is `reordered`, else a `duplicate`, and not the stream's again;
- it is in doubt: another SSRC, or a number or a timestamp that fits nowhere. It is held, with
  those like it, until they make a numbering of their own that the stream has to follow.

How much they must show. Where there is no stream yet, and for a jump within the SSRC, it is
`MIN_SEQUENTIAL` packets in sequence (A.1). For another SSRC, which anybody may invent, it is
`SSRC_SEQUENTIAL` over at least `SSRC_SPAN` seconds, and the stream itself silent: it may move on by
one packet meanwhile, because the network may have changed the order. Then what was held is heard,
so that a change costs no audio. A sender that starts again a little further back, number and
timestamp, sends what looks like duplicates: when as many as of another SSRC come and nothing else,
it is believed too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bridge.ingress.rtcp import ReportBlock
from bridge.ingress.rtp_packet import Packet

MIN_SEQUENTIAL: Final = 2
MAX_DROPOUT: Final = 3000
MAX_MISORDER: Final = 100
SSRC_SEQUENTIAL: Final = 4  # as Asterisk's strictrtp
SSRC_SPAN: Final = 0.022  # s
MAX_LATE: Final = 6.0  # s by timestamp: MAX_MISORDER packets of 60 ms
HELD: Final = 50  # packets in doubt that are kept; the oldest goes first
HALF: Final = 1 << 31
WRAP: Final = 1 << 32  # of timestamps


class Placed(NamedTuple):
    """A packet of the stream. `fresh`: another numbering begins with it.

    `sequence` and `timestamp` are unwrapped; `newest`: no packet of the stream is ahead of it.
    """

    sequence: int
    timestamp: int
    packet: Packet
    at: float  # arrival
    newest: bool = True
    fresh: bool = False


class _Doubt:
    """Packets that may be the beginning of another numbering."""

    __slots__ = ("count", "held", "highest", "next", "since", "ssrc")

    def __init__(self, ssrc: int, highest: int) -> None:
        self.ssrc = ssrc
        self.highest = highest  # the stream's, when the doubt began
        self.next = -1  # a sequence number, once there is a packet
        self.count = 0  # packets in sequence
        self.since = 0.0  # arrival of the first of these
        self.held: list[tuple[Packet, float]] = []

    def fits(self, packet: Packet, highest: int) -> bool:
        """Can it be of the same numbering, and is there still room for doubt?"""
        near = (packet.sequence - self.next + MAX_MISORDER) & 0xFFFF
        return packet.ssrc == self.ssrc and near <= 2 * MAX_MISORDER and highest - self.highest <= 1

    def add(self, packet: Packet, now: float) -> None:
        if packet.sequence == self.next:
            self.count += 1
        else:
            self.count, self.since = 1, now
        self.next = (packet.sequence + 1) & 0xFFFF
        self.held.append((packet, now))


class Sequencer:
    """One stream: its place in the sequence for every packet, and what there is to count."""

    __slots__ = (
        "_base", "_doubt", "_echoes", "_echo_highest", "_echo_next", "_echo_since", "_missing",
        "_reported", "_transit", "_unreported", "clock", "duplicates", "highest", "jitter", "lost",
        "next", "received", "reordered", "restarts", "ssrc", "strays", "timestamp",
    )  # fmt: skip

    def __init__(self, clock: int = 8000) -> None:
        self.ssrc: int | None = None  # None: no stream yet
        self.clock = clock  # Hz of timestamps
        self.next = 0  # the sequence number that follows, 16 bits
        self.highest = 0  # unwrapped sequence number and timestamp of the newest packet
        self.timestamp = 0
        self.received = 0  # packets of the stream
        self.lost = 0  # numbers that never came
        self.duplicates = 0
        self.reordered = 0  # came after a higher number
        self.strays = 0  # in doubt, and never believed
        self.restarts = 0  # numberings after the first
        self.jitter = 0.0  # timestamp units (A.8)
        self._transit: float | None = None  # of the last packet with audio, timestamp units
        self._missing: set[int] = set()  # among the last MAX_MISORDER numbers
        self._doubt: _Doubt | None = None
        self._echoes = 0  # duplicates in sequence, with nothing between them
        self._echo_next, self._echo_highest, self._echo_since = -1, 0, 0.0
        self._base = 0  # this numbering's first number, and the counts when it began
        self._unreported = 0
        self._reported = (0, 0)  # expected and received at the last report

    # -- the next packet -----------------------------------------------------------------------

    def step(self, timestamp: int, now: float) -> int:
        """Take the packet numbered `next`, of this `ssrc`, with audio. Its timestamp, unwrapped."""
        self.next = (self.next + 1) & 0xFFFF
        self.highest += 1
        self.received += 1
        ahead = (timestamp - self.timestamp) & 0xFFFFFFFF
        self.timestamp = timestamp = self.timestamp + (ahead if ahead < HALF else ahead - WRAP)
        # As `time`, without the call.
        transit = now * self.clock - timestamp
        if self._transit is not None:
            self.jitter += (abs(transit - self._transit) - self.jitter) / 16
        self._transit = transit
        return timestamp

    # -- any packet ----------------------------------------------------------------------------

    def take(self, packet: Packet, now: float) -> list[Placed]:
        """The stream's packets, now that this one has come: none, it, or several in order."""
        if packet.ssrc == self.ssrc:
            ahead = (packet.sequence - self.highest) & 0xFFFF
            if 0 < ahead < MAX_DROPOUT:
                return [self._follows(packet, ahead, now)]
            behind = -ahead & 0xFFFF
            if behind <= MAX_MISORDER and self._may_be_late(packet, behind):
                return self._late(packet, behind, now)
        return self._doubted(packet, now)

    def time(self, timestamp: int, now: float) -> None:
        """A.8, for a packet with audio that did not come by `step`: an event's stand still."""
        transit = now * self.clock - timestamp
        if self._transit is not None:
            self.jitter += (abs(transit - self._transit) - self.jitter) / 16
        self._transit = transit

    def retime(self, clock: int) -> None:
        """Timestamps count at another clock from here on."""
        self.clock = clock
        self.jitter = 0.0
        self._transit = None

    def _unwrapped(self, packet: Packet) -> int:
        ahead = (packet.timestamp - self.timestamp) & 0xFFFFFFFF
        return self.timestamp + (ahead if ahead < HALF else ahead - WRAP)

    def _follows(self, packet: Packet, ahead: int, now: float) -> Placed:
        if ahead > 1:
            self.lost += ahead - 1
            first = max(self.highest + 1, self.highest + ahead - MAX_MISORDER)
            self._missing.update(range(first, self.highest + ahead))
        self.highest += ahead
        self.next = (packet.sequence + 1) & 0xFFFF
        self.received += 1
        if len(self._missing) > 2 * MAX_MISORDER:
            oldest = self.highest - MAX_MISORDER
            self._missing = {number for number in self._missing if number >= oldest}
        self.timestamp = self._unwrapped(packet)
        return Placed(self.highest, self.timestamp, packet, now)

    def _may_be_late(self, packet: Packet, behind: int) -> bool:
        since = self._unwrapped(packet) - self.timestamp
        if abs(since) > MAX_LATE * self.clock:
            return False
        # An event's timestamp stands still, so audio sent before one of its packets may be ahead.
        return since <= 0 or self.highest - behind in self._missing

    def _late(self, packet: Packet, behind: int, now: float) -> list[Placed]:
        number = self.highest - behind
        if number in self._missing:
            self._missing.remove(number)
            self.lost -= 1
            self.received += 1
            self.reordered += 1
            return [Placed(number, self._unwrapped(packet), packet, now, newest=False)]
        if number < self._base:  # sent before the first that came
            self.received += 1
            self.reordered += 1
            self.lost += self._base - number - 1
            self._missing.update(range(number + 1, self._base))
            self._base = number
            return [Placed(number, self._unwrapped(packet), packet, now, newest=False)]
        return self._echo(packet, now)

    def _echo(self, packet: Packet, now: float) -> list[Placed]:
        """A duplicate, or one of a sender that has gone back."""
        if packet.sequence == self._echo_next and self.highest == self._echo_highest:
            self._echoes += 1
        else:
            self._echoes, self._echo_since, self._echo_highest = 1, now, self.highest
        self._echo_next = (packet.sequence + 1) & 0xFFFF
        if self._echoes >= SSRC_SEQUENTIAL and now - self._echo_since >= SSRC_SPAN:
            return self._begin([(packet, now)])
        self.duplicates += 1
        return []

    # -- doubt ---------------------------------------------------------------------------------

    def _doubted(self, packet: Packet, now: float) -> list[Placed]:
        doubt = self._doubt
        if doubt is None or not doubt.fits(packet, self.highest):
            if doubt is not None:
                self.strays += len(doubt.held)
            doubt = self._doubt = _Doubt(packet.ssrc, self.highest)
        doubt.add(packet, now)
        if len(doubt.held) > HELD:
            del doubt.held[0]
            self.strays += 1
        if self.ssrc is None or packet.ssrc == self.ssrc:
            believed = doubt.count >= MIN_SEQUENTIAL
        else:
            believed = doubt.count >= SSRC_SEQUENTIAL and now - doubt.since >= SSRC_SPAN
        if not believed:
            return []
        self._doubt = None
        return self._begin(doubt.held)

    def _begin(self, held: list[tuple[Packet, float]]) -> list[Placed]:
        """Another numbering, of these packets. Both numbers go on growing."""
        near = held[0][0].sequence - (1 << 15)
        held = sorted(held, key=lambda item: (item[0].sequence - near) & 0xFFFF)
        first, at = held[0]
        if self.ssrc is None:
            # Beyond the first wrap, so that what was sent before it is not negative.
            self.highest, self.timestamp = first.sequence + 0x10000, first.timestamp + WRAP
        else:
            self.restarts += 1
            self.highest += 1 + ((first.sequence - self.highest - 1) & 0xFFFF)
            self.timestamp += (first.timestamp - self.timestamp) & 0xFFFFFFFF
        self.ssrc = first.ssrc
        self.next = (first.sequence + 1) & 0xFFFF
        self._base = self.highest
        self._unreported = self.received + self.duplicates
        self._reported = (0, 0)
        self._missing.clear()
        self._transit = None
        self.received += 1
        placed = [Placed(self.highest, self.timestamp, first, at, fresh=True)]
        for packet, at in held[1:]:
            placed += self.take(packet, at)
        return placed

    # -- reports -------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Packets in doubt."""
        return len(self._doubt.held) if self._doubt is not None else 0

    def report(self) -> ReportBlock | None:
        """The report block of now, which begins the next interval (A.3); None without a stream."""
        if self.ssrc is None:
            return None
        expected = self.highest - self._base + 1
        received = self.received + self.duplicates - self._unreported  # A.3 counts both
        before, received_before = self._reported
        self._reported = (expected, received)
        interval = expected - before
        lost = interval - (received - received_before)
        return ReportBlock(
            self.ssrc,
            min(255, (lost << 8) // interval) if interval > 0 and lost > 0 else 0,
            max(-0x800000, min(0x7FFFFF, expected - received)),
            (self.highest - (self._base & ~0xFFFF)) & 0xFFFFFFFF,  # cycles count from the base
            min(0xFFFFFFFF, int(self.jitter)),
        )
