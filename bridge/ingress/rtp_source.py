"""Who may speak on a port. Pure: no sockets here, and the time is an argument.

RTP has no names: whoever knows an open port can be the speaker (RTPBleed, CVE-2017-14099), and a
port that learns its peer can be taught the wrong one (CVE-2025-53399). So a port listens to one
address. It is announced, which is safe. Or it is learnt, as Asterisk's strictrtp does it: a
source that sends `SEQUENTIAL` packets in sequence, of one SSRC, over at least `SPAN` seconds,
from a network that is allowed to, is it. From then on nothing but a new announcement makes the
port listen to another, whatever that one sends and however long the peer is silent.

While a port learns, the packets of each candidate are kept, so that the winner's first word is
heard. What is kept, and how many candidates there are, is bounded, per host too: a flood from one
host does not keep another from being learnt. Somebody inside the allowed networks can still win
the race against the peer, or, from its host or from many, keep it from being learnt: against
these only an announced address helps.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Collection, Sequence
from typing import TypeAlias

Address: TypeAlias = tuple[str, int]
"""Host (an IP address as text) and port."""
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Packets: TypeAlias = list[tuple[bytes, float]]
"""Datagrams and their times of arrival."""

SEQUENTIAL = 4  # Asterisk's learning_min_sequential
SPAN = 0.022  # s from the first to the last of these: a burst of spray is shorter
HOSTS = 16  # that have candidates
PORTS = 8  # of each host that are candidates
HELD = 8  # packets kept of each candidate
DOUBTED = 32  # packets of a candidate that may still be the peer's; more are a stranger's
HELD_SIZE = 2000  # bytes; a longer packet counts, but is not kept
STALE = 0.5  # s of silence after which a candidate's place is anybody's
VERDICTS = 256  # on hosts, remembered
NOBODY = -1
RTP_TYPES = frozenset(range(128)) - frozenset(range(64, 96))
"""All but what would be RTCP on the same port (RFC 5761 §4)."""


class _Candidate:
    """A source that may become the peer."""

    __slots__ = ("at", "count", "held", "packets", "sequence", "since", "ssrc")

    def __init__(self, now: float) -> None:
        self.ssrc = self.sequence = NOBODY  # of its last packet
        self.count = 0  # packets in sequence
        self.since = self.at = now  # arrival of the first of these, and of the last packet
        self.packets = 0  # not yet counted as a stranger's
        self.held: deque[tuple[bytes, float]] = deque(maxlen=HELD)

    def hear(self, seq: int, ssrc: int, now: float) -> bool:
        """One more packet. Is that enough?"""
        self.at = now
        if ssrc == self.ssrc and seq == self.sequence:
            return False  # the network doubled it: neither for nor against
        if ssrc == self.ssrc and seq == (self.sequence + 1) & 0xFFFF:
            self.count += 1
        else:
            self.count, self.since = 1, now
        if ssrc != self.ssrc:
            self.held.clear()  # another stream's
        self.ssrc, self.sequence = ssrc, seq
        return self.count >= SEQUENTIAL and now - self.since >= SPAN

    def weak(self, now: float) -> bool:
        """May another have its place? Spray does not push out a sequence that goes on."""
        return self.count < 2 or now - self.at > STALE


class Source:
    """One port's rule.

    `expected`: the announced host and port, or host and None; None: any host in `allow` may be
    learnt, so that nobody can be where `allow` is empty. Hosts are IP addresses as text. `types`:
    payload types of RTP that the peer may send.
    """

    __slots__ = (
        "_allow", "_begun", "_candidates", "_host", "_kept", "_types", "_verdicts", "locked",
        "strangers",
    )  # fmt: skip

    def __init__(
        self,
        expected: tuple[str, int | None] | None,
        allow: Sequence[Network] = (),
        types: Collection[int] = RTP_TYPES,
    ) -> None:
        self.locked: Address | None = None
        """Who is listened to."""
        self.strangers = 0
        """Packets of others, or of nobody in particular."""
        self._allow = tuple(allow)
        self._types = frozenset(types)
        self._begun = False  # a packet has been heard
        self._candidates: dict[str, dict[int, _Candidate]] = {}  # by host and port
        self._kept: Packets = []
        self._verdicts: dict[str, bool] = {}
        self._host: str | None = None
        if expected is not None:
            host, port = expected
            self._host = str(ipaddress.ip_address(host))
            if port is not None:
                self.locked = (self._host, port)

    def check(self, address: Address, seq: int | None, ssrc: int, now: float) -> bool:
        """May this packet be heard? `seq` is None for what is no audio packet of RTP.

        While the source is being learnt it is not, until the packet that completes that.
        """
        if self.locked is not None:
            if address == self.locked:
                return True
        elif (candidate := self._candidate(address, seq, now)) is not None:
            if candidate.packets < DOUBTED:
                candidate.packets += 1
            else:
                self.strangers += 1
            if seq is None or not candidate.hear(seq, ssrc, now):
                return False
            self._lock(address, candidate)
            return True
        self.strangers += 1
        return False

    def take(self, data: bytes, address: Address, now: float) -> Packets:
        """The packets that may be heard, now that this one has come; those that were kept first.

        The first is RTP of a payload type that the peer may send; only such teach the source.
        After that everything of the source is for the ingress to judge.
        """
        if self._begun:
            return [(data, now)] if self.check(address, None, 0, now) else []
        seq, ssrc = peek(data, self._types)
        if self.check(address, seq, ssrc, now):
            if seq is None:
                return []
            self._begun = True
            kept, self._kept = self._kept, []
            return [*kept, (data, now)]
        candidate = self._candidates.get(address[0], {}).get(address[1])
        if candidate is not None and seq is not None and len(data) <= HELD_SIZE:
            candidate.held.append((data, now))
        return []

    def close(self) -> None:
        """Nobody will be learnt any more: all candidates were strangers."""
        self._dismiss(None)

    def senders(self) -> list[tuple[Network, int | None]]:
        """Networks and ports that packets may come from at all, for a filter before us."""
        if self.locked is not None:
            return [(ipaddress.ip_network(self.locked[0]), self.locked[1])]
        if self._host is not None:
            return [(ipaddress.ip_network(self._host), None)]
        return [(network, None) for network in self._allow]

    def _candidate(self, address: Address, seq: int | None, now: float) -> _Candidate | None:
        """The candidate at this address: a new one for RTP from where it may come."""
        host, port = address
        ports = self._candidates.get(host)
        if ports is None:
            if seq is None or not self._may(host) or not self._place_for_host(now):
                return None
            ports = self._candidates[host] = {}
        candidate = ports.get(port)
        if candidate is None and seq is not None and self._place_for_port(ports, now):
            candidate = ports[port] = _Candidate(now)
        return candidate

    def _place_for_host(self, now: float) -> bool:
        if len(self._candidates) < HOSTS:
            return True
        for host, ports in self._candidates.items():
            if all(candidate.weak(now) for candidate in ports.values()):
                self.strangers += sum(candidate.packets for candidate in ports.values())
                del self._candidates[host]
                return True
        return False

    def _place_for_port(self, ports: dict[int, _Candidate], now: float) -> bool:
        if len(ports) < PORTS:
            return True
        for port, candidate in ports.items():  # the oldest first
            if candidate.weak(now):
                self.strangers += candidate.packets
                del ports[port]
                return True
        return False

    def _may(self, host: str) -> bool:
        if self._host is not None:
            return host == self._host
        verdict = self._verdicts.get(host)
        if verdict is None:
            if len(self._verdicts) >= VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[host] = allowed(host, self._allow)
        return verdict

    def _lock(self, address: Address, winner: _Candidate) -> None:
        self.locked = address
        self._kept = list(winner.held)
        self._dismiss(winner)

    def _dismiss(self, winner: _Candidate | None) -> None:
        everybody = (c for ports in self._candidates.values() for c in ports.values())
        self.strangers += sum(c.packets for c in everybody if c is not winner)
        self._candidates.clear()
        self._verdicts.clear()


def allowed(host: str, networks: Sequence[Network]) -> bool:
    """Is this IP address, given as text, in one of the networks?"""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return any(address in network for network in networks)


def peek(data: bytes, types: frozenset[int]) -> tuple[int | None, int]:
    """Sequence number and SSRC of an RTP packet of these payload types; None and 0 for others.

    RFC 3550 §5.1.
    """
    if len(data) < 12 or data[0] >> 6 != 2 or data[1] & 0x7F not in types:
        return None, 0
    return data[2] << 8 | data[3], int.from_bytes(data[8:12], "big")
