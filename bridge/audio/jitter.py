"""Packets as they come → frames in order, on the sender's clock. Pure: time is an argument.

Theory of operation. A loudspeaker must be fed at a steady pace, so a classic jitter buffer delays
every packet by what the slow ones need. Ours feeds a recogniser, which takes audio at any pace.
So a packet with nothing missing before it is given out at once, however late it is: jitter that
keeps the order costs nothing, and after a freeze the whole burst is played at once. Only a *hole*
in the numbers makes the packets behind it wait, until the missing one comes or the deadline
passes, `Patience.wait` after the first packet behind it; then the hole is concealed and all that
waited goes out together. A classic buffer of the same depth loses as many packets or more: its
delay counts from when the packet should have come, and no successor comes before that. With 60 ms
of jitter and 3 % loss a packet waits for 5 ms on average; a classic buffer of 100 ms holds it for
70. And a packet that is lost is made up for with audio from both its sides.

The leg's clock. A sample's place is its timestamp, whatever its arrival: the sender's drift is the
clock's. Timestamps that go on without lost packets are a pause (the sender sends no silence), a
jump of `Frame.start`. But a packet cannot come before it was sent: if its place is more than
`RESYNC` ahead of the arrival clock (`_low`: when sample 0 came, at the earliest), the timestamps
have jumped, and so they have when they go back. Then the stream is placed anew, right behind what
was played, or where the arrival clock is if that is further on. What overlaps by less is put right
behind as well, and the next pause makes up for it: nothing received is cut.

Sequence numbers. Old ones are late packets, whose place was concealed, or duplicates. But a number
from elsewhere with a timestamp that is still to come, twice in a row, is a sender that started
anew, and so are `REWOUND` old ones in a row at the pace of speech with nothing new between them.

Bounds. `MAX_HELD` packets wait behind holes; when there are more, the hole is given up early and
nothing is lost. `MAX_READY` packets wait for `pull`; when there are more, they are dropped and
counted, and the clock runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

from bridge.audio.codecs import Codec
from bridge.audio.patience import Patience
from bridge.audio.playout import MAX_READY, Playout
from bridge.types import Frame

RESYNC = 0.1  # s that a timestamp may be wrong before it is a jump
MAX_DROPOUT = 3000  # RFC 3550 A.1: numbers further ahead are another stream's
MAX_HELD = 256  # packets, 5 s of 20 ms
MAX_GIVEN_UP = 1024  # numbers of lost packets remembered, to tell late ones from duplicates
REWOUND = 5  # packets
WINDOW = 10.0  # s over which the earliest arrival is looked for, so that it follows a drift
SMOOTH = 1 / 16  # RFC 3550 A.8


@dataclass(slots=True)
class JitterStats:
    """What one leg's stream came to. Packets, but where it says otherwise."""

    received: int = 0
    """All that came, of every kind, duplicates and late ones too."""
    lost: int = 0
    """Given up, and have not come since."""
    late: int = 0
    """Came after they were given up, or are older than the first one that came."""
    duplicate: int = 0
    dropped: int = 0
    """Thrown away: nobody fetched them in time, or the number is from elsewhere."""
    concealed: int = 0
    """Samples that stand for lost and late packets."""
    resyncs: int = 0
    """Times that the stream was placed anew on the clock."""
    jitter: float = 0.0
    """Seconds, RFC 3550 A.8, in the order of the numbers."""
    depth: float = 0.0
    """Seconds that a packet had to wait behind a hole, at most."""


@dataclass(slots=True)
class _Packet:
    """One that is not simply the next."""

    kind: Literal["audio", "comfort", "skip"]
    timestamp: int
    payload: bytes
    arrived: float
    marker: bool = False


_Misfit: TypeAlias = Literal["late", "duplicate", "dropped"]


class JitterBuffer:
    """One leg's stream. `floor` and `cap`, in seconds, bound the wait for a missing packet.

    Numbers and timestamps are those of RTP made ever-growing (`bridge/ingress/rtp_sequence.py`).
    Without `conceal` a hole is only a jump of `Frame.start`. Call `pull` after packets have been
    put, and at `deadline`.
    """

    __slots__ = (
        "_base", "_begun", "_conceal", "_due", "_end", "_expected", "_first", "_given_up", "_held",
        "_low", "_low_before", "_missing", "_next", "_patience", "_period", "_playout", "_run",
        "_size", "_step", "_strays", "_strays_at", "_ticks", "_transit", "_turn_at", "stats",
    )  # fmt: skip

    def __init__(
        self, codec: Codec, *, floor: float = 0.02, cap: float = 0.2, conceal: bool = True
    ) -> None:
        if not 0.0 <= floor <= cap:
            raise ValueError(f"a jitter buffer's floor is in 0 … {cap} s (its cap), not {floor}")
        self.stats = JitterStats()
        self._conceal = conceal
        self._patience = Patience(floor, cap)
        self._playout = Playout(codec)
        self._run = self._playout.run
        self._period = 1.0 / codec.rate
        # Where the stream is.
        self._begun = False
        self._next = self._first = 0  # numbers, once begun
        self._size: int | None = None  # bytes of the last audio payload
        self._step = self._ticks = 0  # its samples and ticks
        self._expected = 0  # timestamp of the next sample
        self._base: int | None = None  # samples; the place of timestamp 0; None: of a new stream
        self._end = 0  # samples; the next one's place
        # When it came: the arrival of sample 0, as each packet shows it.
        self._transit = self._low = self._low_before = inf
        self._turn_at = -inf
        # What waits behind a hole, by number, in the order of arrival.
        self._held: dict[int, _Packet] = {}
        self._due = inf
        self._missing = 0  # packets given up since the last audio
        self._given_up: dict[int, float] = {}  # number → arrival of the first packet behind it
        self._strays: list[tuple[int, _Packet, _Misfit]] = []  # misfits with numbers in a row
        self._strays_at = 0  # `_next` when they came

    # -- in ------------------------------------------------------------------------------------

    def put(
        self, seq: int, timestamp: int, payload: bytes, now: float, *, marker: bool = False
    ) -> None:
        """A packet with audio. `marker`: its sender says that something begins with it."""
        if (
            seq == self._next
            and timestamp == self._expected
            and len(payload) == self._size
            and not self._held
            and not self._missing
            and len(self._run) < MAX_READY
        ):  # as nearly always; the same as the way below without its detours
            stats = self.stats
            stats.received += 1
            self._next = seq + 1
            self._expected = timestamp + self._ticks
            self._run.append(payload)
            transit = now - self._end * self._period
            self._end += self._step
            stats.jitter += (abs(transit - self._transit) - stats.jitter) * SMOOTH
            self._transit = transit
            if transit < self._low:
                self._low = transit
            if now > self._turn_at:
                self._turn(now)
            return
        self._put(seq, _Packet("audio", timestamp, payload, now, marker))

    def comfort(self, seq: int, timestamp: int, now: float) -> None:
        """A packet of comfort noise: nobody speaks from `timestamp` on."""
        self._put(seq, _Packet("comfort", timestamp, b"", now))

    def skip(self, seq: int, timestamp: int, now: float) -> None:
        """A packet of the stream without audio (telephone-event); its timestamp says nothing."""
        self._put(seq, _Packet("skip", timestamp, b"", now))

    def restart(self, codec: Codec | None = None) -> None:
        """Another stream begins: another SSRC, numbers from elsewhere, or another `codec`.

        What was held is given out. What follows is put right behind it, or further on if more
        than `RESYNC` has passed. The clock goes on, at the new codec's rate.
        """
        self._empty()
        rate = self._playout.codec.rate
        self._playout.change(codec)
        if codec is not None:
            self._end = round(self._end * codec.rate / rate)
            self._period = 1.0 / codec.rate
        self._begun = False
        self._size = self._base = None
        self._missing = 0
        self._given_up.clear()
        self._strays.clear()

    def _put(self, seq: int, packet: _Packet) -> None:
        self.stats.received += 1
        self.stats.dropped += self._playout.bound()
        if not self._begun:
            self._begun = True
            self._next = self._first = seq
        ahead = seq - self._next
        if not 0 <= ahead <= MAX_DROPOUT:
            self._misfit(seq, packet)
            return
        self._strays.clear()
        if seq in self._held:
            self.stats.duplicate += 1
            return
        self._learn(seq, packet.arrived)
        if ahead:
            self._held[seq] = packet
            if len(self._held) > MAX_HELD:
                self._give_up(packet.arrived)
        else:
            self._next += 1
            self._take(packet)
            self._release(packet.arrived)
        self._wait()

    # -- numbers from elsewhere ----------------------------------------------------------------

    def _misfit(self, seq: int, packet: _Packet) -> None:
        """An old number, or one from far ahead: late, a duplicate, or a new stream's."""
        stats = self.stats
        noticed = self._given_up.pop(seq, None)
        if noticed is not None:
            stats.lost -= 1
            stats.late += 1
            self._patience.came(packet.arrived - noticed)
            self._wait()
            return
        misfit: _Misfit
        if seq > self._next or packet.kind == "audio" and packet.timestamp >= self._expected:
            misfit = "dropped"
        else:
            misfit = "late" if seq < self._first else "duplicate"
        self._count(misfit, 1)
        if packet.kind != "audio":
            return
        strays = self._strays
        if strays and (strays[-1][0] + 1 != seq or self._strays_at != self._next):
            strays.clear()
        strays.append((seq, packet, misfit))
        self._strays_at = self._next
        if (misfit == "dropped" and packet.marker) or self._is_a_stream():
            for _, _, counted in strays:
                self._count(counted, -1)
            stats.received -= len(strays)
            found = strays[:]
            self.restart()
            for number, stray, _ in found:
                self._put(number, stray)

    def _count(self, misfit: _Misfit, packets: int) -> None:
        match misfit:
            case "late":
                self.stats.late += packets
            case "duplicate":
                self.stats.duplicate += packets
            case "dropped":
                self.stats.dropped += packets

    def _is_a_stream(self) -> bool:
        """Do the strays look like a sender that started anew?"""
        strays = self._strays
        if all(misfit == "dropped" for _, _, misfit in strays):
            return len(strays) > 1
        _, first, _ = strays[0]
        _, last, _ = strays[-1]
        spoken = (last.timestamp - first.timestamp) / self._playout.codec.clock
        return len(strays) >= REWOUND and 0.0 < spoken <= 2 * (last.arrived - first.arrived)

    # -- holes ---------------------------------------------------------------------------------

    def _learn(self, seq: int, arrived: float) -> None:
        """A packet came that had been missing, if one of its successors has come before it."""
        for other, successor in self._held.items():
            if other > seq:  # the first in the order of arrival
                self._patience.came(arrived - successor.arrived)
                return

    def _wait(self) -> None:
        """The lowest hole's deadline counts from the first packet that came from behind it."""
        self._due = inf
        for packet in self._held.values():
            self._due = packet.arrived + self._patience.wait
            break

    def _release(self, now: float) -> None:
        """Take what is held, up to the next hole."""
        held = self._held
        while held and (packet := held.pop(self._next, None)) is not None:
            self.stats.depth = max(self.stats.depth, now - packet.arrived)
            self._next += 1
            self._take(packet)

    def _give_up(self, now: float) -> None:
        """The packets of the lowest hole are lost."""
        lowest = min(self._held)
        noticed = next(iter(self._held.values())).arrived
        given_up = self._given_up
        for seq in range(max(self._next, lowest - MAX_GIVEN_UP), lowest):
            given_up[seq] = noticed
        while len(given_up) > MAX_GIVEN_UP:
            del given_up[next(iter(given_up))]
        self.stats.lost += lowest - self._next
        self._missing += lowest - self._next
        self._patience.lost()
        self._next = lowest
        self._release(now)

    def _empty(self) -> None:
        """Take all that is held."""
        while self._held:
            self._give_up(next(reversed(self._held.values())).arrived)
        self._due = inf

    # -- the clock -----------------------------------------------------------------------------

    def _take(self, packet: _Packet) -> None:
        """The next packet in order, or the next there is."""
        codec = self._playout.codec
        payload = packet.payload[: len(packet.payload) // codec.width * codec.width]
        count = codec.samples(len(payload))
        if not count and packet.kind != "comfort":
            return
        gap = self._gap(packet)
        missing, self._missing = self._missing, 0
        lost = min(gap, missing * max(self._step, count))
        if lost and self._conceal:
            self._playout.lose(lost)
            self.stats.concealed += lost
        silent = gap - lost if self._conceal else gap
        if silent or packet.kind == "comfort":
            self._playout.pause(silent, told=packet.kind == "comfort")
        self._end += gap
        self._timed(packet.arrived)
        self._expected = packet.timestamp
        if count:
            self._run.append(payload)
            self._size, self._step = len(payload), count
            self._ticks = count * codec.clock // codec.rate
            self._expected += self._ticks
            self._end += count

    def _gap(self, packet: _Packet) -> int:
        """Samples between what was taken and this packet's place, which may be set anew."""
        codec = self._playout.codec
        place = packet.timestamp * (codec.rate // codec.clock)
        lag = packet.arrived - min(self._low, self._low_before) - self._end * self._period
        if self._base is not None:
            gap = self._base + place - self._end
            if -RESYNC <= gap * self._period <= max(lag, 0.0) + RESYNC:
                return max(gap, 0)
        if self._end:
            self.stats.resyncs += 1
        gap = round(lag * codec.rate) if lag > RESYNC else 0
        self._base = self._end + gap - place
        return gap

    def _timed(self, arrived: float) -> None:
        """The packet whose place is `_end` came."""
        transit = arrived - self._end * self._period
        if self._transit < inf:
            self.stats.jitter += (abs(transit - self._transit) - self.stats.jitter) * SMOOTH
        self._transit = transit
        self._low = min(self._low, transit)
        if arrived > self._turn_at:
            self._turn(arrived)

    def _turn(self, now: float) -> None:
        self._low_before, self._low, self._turn_at = self._low, self._transit, now + WINDOW

    # -- out -----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When to call `pull` if nothing comes: a hole waits until then. None: none does."""
        return self._due if self._held else None

    def pull(self, now: float) -> list[Frame]:
        """What can be played, in order."""
        while self._due <= now:
            self._give_up(now)
            self._wait()
        return self._playout.frames()

    def flush(self) -> list[Frame]:
        """All there is: the stream is over."""
        self._empty()
        return self._playout.frames()
