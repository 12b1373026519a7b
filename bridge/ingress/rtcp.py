"""RTCP: what a peer reports, and the little that a receiver says (RFC 3550 §6). Pure.

A datagram holds several packets, each ``V P count (1) type (1) length in words − 1 (2)`` and its
body. The bridge sends nothing but reception reports, with a CNAME as every compound packet must
have, and BYE, and these only to a peer that sends sender reports: other peers have no use for
them, and a port that never answers first cannot be used as a mirror (RTPBleed).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

SR, RR, SDES, BYE, APP = 200, 201, 202, 203, 204
CNAME: Final = 1  # SDES item
MAX_RTCP: Final = 1500  # bytes of a datagram
INTERVAL: Final = 5.0  # s between reports, at least (RFC 3550 §6.2)
MAX_CNAME: Final = 255  # bytes

_HEADER = struct.Struct("!BBH")
_SENDER = struct.Struct("!IQIII")  # SSRC, NTP time, RTP timestamp, packets, octets
_REPORT = struct.Struct("!IIIIII")

Fault: TypeAlias = Literal["oversized", "short", "version", "length", "padding"]


class ReportBlock(NamedTuple):
    """What a receiver tells a sender about one stream (RFC 3550 §6.4.1)."""

    ssrc: int
    fraction: int  # of 256, lost since the last report
    lost: int  # in all, 24 bits; negative where duplicates outnumber losses
    highest: int  # sequence number, with its cycles in the upper 16 of 32 bits
    jitter: int  # timestamp units
    lsr: int = 0  # the middle 32 bits of the last sender report's NTP time; 0: none yet
    dlsr: int = 0  # since that came, in 1/65536 s


@dataclass(frozen=True, slots=True)
class SenderReport:
    """SR. `ntp` is 32.32 bits fixed point."""

    ssrc: int
    ntp: int
    timestamp: int
    packets: int
    octets: int
    blocks: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiverReport:
    """RR."""

    ssrc: int
    blocks: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """SDES: CNAMEs by SSRC, as bytes."""

    names: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Bye:
    """BYE: these sources are gone."""

    ssrcs: tuple[int, ...]


Report: TypeAlias = SenderReport | ReceiverReport | Description | Bye


# -- in --------------------------------------------------------------------------------------------


def parse(data: bytes) -> list[Report] | Fault:
    """Every packet of a datagram, or what is wrong with it (RFC 3550 A.2).

    APP, feedback and types that came later are stepped over. A datagram may begin with any type
    (RFC 5506), and its lengths must add up.
    """
    if len(data) > MAX_RTCP:
        return "oversized"
    if len(data) < _HEADER.size:
        return "short"
    reports: list[Report] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _HEADER.size:
            return "length"
        first, kind, words = _HEADER.unpack_from(data, at)
        body, at = at + _HEADER.size, at + 4 * (words + 1)
        if first >> 6 != 2:
            return "version"
        if at > end:
            return "length"
        stop = at
        if first & 0x20:  # only the last of a datagram is padded
            if at != end or not 1 <= data[-1] <= at - body:
                return "padding"
            stop -= data[-1]
        report = _parsed(kind, first & 0x1F, data[body:stop])
        if report == "length":
            return "length"
        if report is not None:
            reports.append(report)
    return reports


def _parsed(kind: int, count: int, body: bytes) -> Report | None | Literal["length"]:
    match kind:
        case 200:
            if len(body) < _SENDER.size + count * _REPORT.size:
                return "length"
            ssrc, ntp, timestamp, packets, octets = _SENDER.unpack_from(body)
            return SenderReport(
                ssrc, ntp, timestamp, packets, octets, _blocks(body, _SENDER.size, count)
            )
        case 201:
            if len(body) < 4 + count * _REPORT.size:
                return "length"
            return ReceiverReport(int.from_bytes(body[:4], "big"), _blocks(body, 4, count))
        case 202:
            return _description(body, count)
        case 203:
            if len(body) < 4 * count:
                return "length"
            return Bye(struct.unpack_from(f"!{count}I", body))
        case _:
            return None


def _blocks(body: bytes, at: int, count: int) -> tuple[ReportBlock, ...]:
    blocks = []
    for i in range(count):
        ssrc, loss, *rest = _REPORT.unpack_from(body, at + i * _REPORT.size)
        lost = loss & 0xFFFFFF
        blocks.append(ReportBlock(ssrc, loss >> 24, lost - (lost >> 23 << 24), *rest))
    return tuple(blocks)


def _description(body: bytes, count: int) -> Description | Literal["length"]:
    """Chunks of an SSRC and items; a zero ends the items and fills up to a whole word."""
    names = []
    at = 0
    for _ in range(count):
        if len(body) - at < 4:
            return "length"
        ssrc = int.from_bytes(body[at : at + 4], "big")
        at += 4
        while True:
            if at >= len(body):
                return "length"
            item = body[at]
            if item == 0:
                at += 4 - at % 4
                break
            if at + 2 > len(body) or at + 2 + body[at + 1] > len(body):
                return "length"
            if item == CNAME:
                names.append((ssrc, body[at + 2 : at + 2 + body[at + 1]]))
            at += 2 + body[at + 1]
    return Description(tuple(names))


# -- out -------------------------------------------------------------------------------------------


def build(ssrc: int, cname: str, blocks: Sequence[ReportBlock], *, bye: bool = False) -> bytes:
    """A compound packet: RR with `blocks`, SDES with `cname`, and BYE where wanted."""
    parts = [_packet(RR, len(blocks), ssrc.to_bytes(4, "big") + b"".join(map(_packed, blocks)))]
    name = cname.encode()[:MAX_CNAME]
    chunk = ssrc.to_bytes(4, "big") + bytes([CNAME, len(name)]) + name
    parts.append(_packet(SDES, 1, chunk + bytes(4 - len(chunk) % 4)))
    if bye:
        parts.append(_packet(BYE, 1, ssrc.to_bytes(4, "big")))
    return b"".join(parts)


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return _HEADER.pack(0x80 | count, kind, len(body) // 4) + body


def _packed(block: ReportBlock) -> bytes:
    loss = block.fraction << 24 | block.lost & 0xFFFFFF
    return _REPORT.pack(block.ssrc, loss, block.highest, block.jitter, block.lsr, block.dlsr)


# -- when ------------------------------------------------------------------------------------------


class Reporter:
    """When a report is due, and its timing part. `due` is infinite while the peer wants none."""

    __slots__ = ("_lsr", "_lsr_at", "_lsr_ssrc", "_spread", "due", "wanted")

    def __init__(self, ssrc: int) -> None:
        self.due = float("inf")
        self.wanted = False  # the peer has sent a report of its own
        # RFC 3550 §6.2 spreads reports, so that many do not fall into step: 5 to 7.5 s.
        self._spread = INTERVAL * (1 + (ssrc & 0xFF) / 512)
        self._lsr, self._lsr_at, self._lsr_ssrc = 0, 0.0, 0

    def hear(self, report: SenderReport, now: float) -> None:
        """The peer reports. A first answer comes after half the interval."""
        self._lsr, self._lsr_at, self._lsr_ssrc = report.ntp >> 16 & 0xFFFFFFFF, now, report.ssrc
        if self.due == float("inf"):
            self.due = now + (self._spread if self.wanted else self._spread / 2)
        self.wanted = True

    def timed(self, block: ReportBlock, now: float) -> ReportBlock:
        """The block with LSR and DLSR, where they are its sender's."""
        if block.ssrc != self._lsr_ssrc or not self.wanted:
            return block
        dlsr = max(0, min(0xFFFFFFFF, round((now - self._lsr_at) * 65536)))
        return block._replace(lsr=self._lsr, dlsr=dlsr)

    def sent(self, now: float) -> None:
        """A report has gone; the next one only if the peer goes on reporting."""
        self.due = now + self._spread if now - self._lsr_at < 3 * INTERVAL else float("inf")
