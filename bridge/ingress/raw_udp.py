"""Audio by UDP without any header, without I/O: FreeSWITCH's `unicast` (switch_ivr.c).

Theory of operation. A datagram is nothing but the samples of one packet: L16 in the byte order of
the sender's machine, or, with the flag `native`, the bytes of the channel's codec. There is no
number, no time stamp, no SSRC and no goodbye. So what comes is heard in the order in which it
comes, at once; a lost datagram cannot be told from a pause, and two that changed places are heard
so. Loopback or one switched network is the place for it; `bridge.ingress.rtp` for any other.

The leg's clock follows arrival, as AudioSocket's does (bridge/ingress/arrival.py).

Who is heard: one address (`RawSource`). Without sequence numbers a stranger's stream looks like the
peer's, so the peer's host has to be announced; its port may be learnt from it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

import numpy as np

from bridge.audio.codecs import Codec
from bridge.ingress.arrival import QUIET, Arrival
from bridge.ingress.rtp_source import Address, Network
from bridge.ingress.rtp_types import RtpCounts
from bridge.types import Audio, Closed, Frame, IngressEvent, Samples, Warned

MAX_DATAGRAM: Final = 8192  # bytes; FreeSWITCH's largest frame
NO_SAMPLES: Samples = np.zeros(0, np.int16)

SEQUENTIAL: Final = 4  # datagrams of one size that make a port the peer's, as for RTP …
SPAN: Final = 0.022  # … and the s that they take at least
CANDIDATES: Final = 8  # ports of the announced host that may become it
HELD: Final = 64  # datagrams of each that are kept meanwhile

Packets = list[tuple[bytes, float]]


class RawUdp:
    """One peer's datagrams. Implements `bridge.interfaces.Ingress`, and what a `UdpPort` needs.

    `codec` decodes a datagram and knows its rate. `timeout`: s without any datagram after which
    the peer is gone. `next_at` is the deadline as a plain attribute.
    """

    __slots__ = (
        "_arrival", "_closed", "_codec", "_heard_at", "_invalid", "_received", "_timeout",
        "next_at",
    )  # fmt: skip

    def __init__(self, codec: Codec, timeout: float, now: float) -> None:
        self.next_at = now + timeout
        self._codec = codec
        self._timeout = timeout
        self._closed = False
        self._arrival = Arrival(now, codec.rate)
        self._heard_at = now
        self._received = self._invalid = 0

    # -- in ------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> Sequence[IngressEvent]:
        """One datagram of the peer's. Never raises."""
        return self.receive_many([(data, now)])

    def receive_many(self, datagrams: Packets) -> Sequence[IngressEvent]:
        """Datagrams and their times of arrival, in order. Those without a gap are one frame."""
        events: list[IngressEvent] = []
        parts: list[Samples] = []
        start = 0
        for data, now in datagrams:
            if self._closed:
                break
            self._heard_at = now
            samples = self._decode(data, events)
            if samples is None:
                continue
            at = self._arrival.place(len(samples), self._codec.rate, now)
            if parts and at != start + sum(map(len, parts)):
                events.append(self._frame(parts, start))
                parts = []
            if not parts:
                start = at
            parts.append(samples)
        if parts:
            events.append(self._frame(parts, start))
        self._arm()
        return events

    def _decode(self, data: bytes, events: list[IngressEvent]) -> Samples | None:
        """None for what cannot be audio: empty, too long, or half a sample."""
        if not 0 < len(data) <= MAX_DATAGRAM or len(data) % self._codec.width:
            self._invalid += 1
            if self._invalid == 1:
                text = f"a datagram of {len(data)} bytes is no {self._codec.name} audio"
                events.append(Warned("bad_datagram", text))
            return None
        if not self._received:
            self._arrival.restart(self._heard_at)
        self._received += 1
        return self._codec.decode(data)

    def _frame(self, parts: list[Samples], start: int) -> Audio:
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return Audio(Frame(samples, self._codec.rate, start, False, len(parts)))

    # -- time ----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `expire` wants to be called."""
        return None if self._closed else self.next_at

    def expire(self, now: float) -> Sequence[IngressEvent]:
        """Let time pass: silence to fill in while nothing comes, a peer that is gone."""
        if self._closed:
            return ()
        if now >= self._heard_at + self._timeout:
            return self.eof("timeout", now)
        events: list[IngressEvent] = []
        if self._received and self._arrival.fill(now):
            events.append(Audio(Frame(NO_SAMPLES, self._codec.rate, self._arrival.clock)))
        self._arm()
        return events

    def _arm(self) -> None:
        gone = self._heard_at + self._timeout
        heard = self._arrival.origin + self._arrival.seconds
        quiet = heard + QUIET if self._received else gone
        self.next_at = min(gone, quiet)

    @property
    def seconds(self) -> float:
        """How far the leg's clock has run."""
        return self._arrival.seconds

    @property
    def origin(self) -> float:
        """When sample 0 came."""
        return self._arrival.origin

    # -- the end, and out ----------------------------------------------------------------------

    def eof(self, reason: str, now: float) -> Sequence[IngressEvent]:
        """The stream is over."""
        if self._closed:
            return ()
        self._closed = True
        return (Closed(reason),)

    def hang_up(self, now: float) -> None:
        """End it from our side. What still comes is ignored."""
        self._closed = True

    def data_to_send(self) -> Sequence[bytes]:
        """Nothing, ever: what a unicast socket receives is played to the caller."""
        return ()

    def counts(self) -> RtpCounts:
        """What the stream has come to, as far as it can be known without sequence numbers."""
        return RtpCounts(received=self._received, invalid=self._invalid)


class RawSource:
    """Who may speak on a port. Implements `bridge.transport.udp_port.Gate`.

    `expected`: the announced host (an IP address as text), and its port or None. The first port of
    that host with `SEQUENTIAL` datagrams of one size, over `SPAN` at least, is it, for good; what
    it sent meanwhile is heard. Whoever can send from that host can win this race: announce the
    port where others live there.
    """

    __slots__ = ("_candidates", "_host", "locked", "strangers")

    def __init__(self, expected: tuple[str, int | None]) -> None:
        host, port = expected
        self.locked: Address | None = None
        """Who is listened to."""
        self.strangers = 0
        """Datagrams of others."""
        self._host = str(ipaddress.ip_address(host))
        self._candidates: dict[int, Packets] = {}
        if port is not None:
            self.locked = (self._host, port)

    def take(self, data: bytes, address: Address, now: float) -> Packets:
        """The datagrams that may be heard, now that this one has come; those that were kept first.

        Datagrams of an announced port are heard from the first.
        """
        if self.locked is not None:
            if address == self.locked:
                return [(data, now)]
            self.strangers += 1
            return []
        host, port = address
        if host != self._host:
            self.strangers += 1
            return []
        if port not in self._candidates and len(self._candidates) == CANDIDATES:
            weakest = min(self._candidates, key=lambda port: len(self._candidates[port]))
            self.strangers += len(self._candidates.pop(weakest))
        kept = self._candidates.setdefault(port, [])
        if len(kept) < HELD:
            kept.append((data, now))
        run = kept[-SEQUENTIAL:]
        steady = len(run) == SEQUENTIAL and len({len(one) for one, _ in run}) == 1
        if not data or not steady or now - run[0][1] < SPAN:
            return []
        self.locked = address
        del self._candidates[port]
        self.close()
        return kept

    def close(self) -> None:
        """Nobody will be learnt any more: all candidates were strangers."""
        self.strangers += sum(map(len, self._candidates.values()))
        self._candidates.clear()

    def senders(self) -> list[tuple[Network, int | None]]:
        """The network and port that datagrams may come from at all, for a filter before us."""
        if self.locked is not None:
            return [(ipaddress.ip_network(self.locked[0]), self.locked[1])]
        return [(ipaddress.ip_network(self._host), None)]
