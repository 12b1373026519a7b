"""RTP packets: bytes ↔ header and payload (RFC 3550 §5.1). Pure.

    byte 0   version (2), padding (1), extension (1), number of CSRCs (4)
    byte 1   marker (1), payload type (7)
    2, 4, 8  sequence number (16), timestamp (32), SSRC (32), all big-endian
    12 …     4 octets a CSRC; profile (16), length in words (16) and words of an extension; payload;
             padding, whose last octet is its own length

Nothing here raises: what is wrong with a packet is one of a few words, which name a counter.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

HEADER = struct.Struct("!BBHII")
SIZE: Final = 12  # bytes of a header without CSRCs
PLAIN: Final = 0x80  # byte 0 of nearly every packet there is: nothing optional in it
MARKER: Final = 0x80  # of byte 1
MAX_PACKET: Final = 8192  # bytes; 60 ms of L16 at 48 kHz are 5772

Fault: TypeAlias = Literal["oversized", "short", "version", "csrc", "extension", "padding"]


class Packet(NamedTuple):
    """One packet. `sequence` and `timestamp` are as sent, 16 and 32 bits."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes
    marker: bool = False


def is_rtcp(data: bytes) -> bool:
    """RTP and RTCP share a port: RTCP's packet types are 192 to 223 (RFC 5761 §4)."""
    return len(data) > 1 and 192 <= data[1] <= 223


def parse(data: bytes) -> Packet | Fault:
    """A datagram's packet, or what is wrong with it. CSRCs, extension and padding are left out."""
    end = len(data)
    if end < SIZE:
        return "short"
    if end > MAX_PACKET:
        return "oversized"
    first, second, sequence, timestamp, ssrc = HEADER.unpack_from(data)
    at = SIZE
    if first != PLAIN:
        if first >> 6 != 2:
            return "version"
        at += 4 * (first & 0x0F)
        if at > end:
            return "csrc"
        if first & 0x10:
            at += 4
            if at > end:
                return "extension"
            at += 4 * (data[at - 2] << 8 | data[at - 1])
            if at > end:
                return "extension"
        if first & 0x20:
            padding = data[-1]  # counts itself, and takes nothing of the header
            if not 1 <= padding <= end - at:
                return "padding"
            end -= padding
    return Packet(second & 0x7F, sequence, timestamp, ssrc, data[at:end], second >= MARKER)


def build(
    packet: Packet,
    *,
    csrcs: Sequence[int] = (),
    extension: tuple[int, bytes] | None = None,
    padding: int = 0,
) -> bytes:
    """The datagram of a packet; numbers are cut to their bits.

    `extension` is a profile and whole words; `padding` is a number of octets, at most 255.
    """
    first = PLAIN | len(csrcs) | (0x10 if extension else 0) | (0x20 if padding else 0)
    second = packet.payload_type | (MARKER if packet.marker else 0)
    parts = [
        HEADER.pack(
            first,
            second,
            packet.sequence & 0xFFFF,
            packet.timestamp & 0xFFFFFFFF,
            packet.ssrc & 0xFFFFFFFF,
        ),
        *(csrc.to_bytes(4, "big") for csrc in csrcs),
    ]
    if extension is not None:
        profile, words = extension
        parts.append(struct.pack("!HH", profile, len(words) // 4) + words)
    parts.append(packet.payload)
    if padding:
        parts.append(bytes(padding - 1) + bytes([padding]))
    return b"".join(parts)
