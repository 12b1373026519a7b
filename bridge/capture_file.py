"""Captures (pcap, pcapng) → the UDP datagrams in them. Pure but for reading the file.

pcap: draft-ietf-opsawg-pcap; pcapng: draft-ietf-opsawg-pcapng. Read here and not by a library,
because a capture of several interfaces has several link types and resolutions, and because one
that was cut off should be told from one that has ended.

Of a packet only the way to UDP is followed: Ethernet with VLAN tags, Linux cooked (both versions),
loopback or raw IP; IPv4, IPv6 with its extension headers. Fragments are left out: half a datagram
is no RTP packet, and whole ones are not split at their sizes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from bridge.errors import BridgeError

MAX_BYTES: Final = 512 * 1024 * 1024
MAX_PACKET: Final = 256 * 1024  # bytes; the largest snap length there is
SUFFIXES: Final = (".pcap", ".pcapng", ".cap")

_NG = b"\x0a\x0d\x0d\x0a"
_MAGIC = {  # byte order, resolution in Hz, bytes of a packet's header
    b"\xa1\xb2\xc3\xd4": (">", 10**6, 16),
    b"\xd4\xc3\xb2\xa1": ("<", 10**6, 16),
    b"\xa1\xb2\x3c\x4d": (">", 10**9, 16),
    b"\x4d\x3c\xb2\xa1": ("<", 10**9, 16),
    b"\xa1\xb2\xcd\x34": (">", 10**6, 24),  # with Kuznetzov's additions
    b"\x34\xcd\xb2\xa1": ("<", 10**6, 24),
}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6

Endpoint: TypeAlias = tuple[str, int]
"""IP address as text, and port."""


class Datagram(NamedTuple):
    """One UDP datagram. `when` in seconds, on the capture's clock."""

    when: float
    source: Endpoint
    target: Endpoint
    payload: bytes


@dataclass(slots=True)
class Capture:
    """What was in the file. `packets` counts all; of those that are not datagrams the reasons:
    `cut` were longer than was captured, `links` are link types that are not known."""

    datagrams: list[Datagram] = field(default_factory=list)
    packets: int = 0
    fragments: int = 0
    cut: int = 0
    links: set[int] = field(default_factory=set)


def is_capture(path: str | Path) -> bool:
    """By its first bytes, or by its name where it cannot be read or is something else."""
    path = Path(path)
    head = b""
    with contextlib.suppress(OSError):
        if path.is_file():  # anything else might make us wait
            with path.open("rb") as file:
                head = file.read(4)
    return head in _MAGIC or head == _NG or path.suffix.lower() in SUFFIXES


def read_datagrams(path: str | Path) -> Capture:
    """Raises `BridgeError` for a file that cannot be read, is no capture, broken or cut off."""
    try:
        return datagrams(_bytes_of(Path(path)))
    except BridgeError as e:
        raise BridgeError(f"{path}: {e}") from None


def _bytes_of(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise BridgeError("is not a plain file")
        if path.stat().st_size > MAX_BYTES:
            raise BridgeError(
                f"is larger than {MAX_BYTES >> 20} MiB; take one call out of it, as with "
                "tshark -r IN -Y 'ip.addr == …' -w OUT"
            )
        return path.read_bytes()
    except OSError as e:
        raise BridgeError(f"cannot be read: {e.strerror}") from None


def datagrams(data: bytes) -> Capture:
    """Of a capture's bytes. Raises `BridgeError`, without the file's name."""
    if data[:4] in _MAGIC:
        packets = _pcap(data)
    elif data[:4] == _NG:
        packets = _pcapng(data)
    else:
        raise BridgeError(_other(data))
    found = Capture()
    for when, link, packet, length in packets:
        found.packets += 1
        _take(found, when, link, packet, length > len(packet))
    return found


def _other(data: bytes) -> str:
    if not data:
        return "is empty"
    if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd":
        return "is compressed; unpack it first (gunzip, unzstd)"
    return "is not a capture: expected pcap or pcapng, as tcpdump and Wireshark write them"


# -- files -----------------------------------------------------------------------------------------

_Packets: TypeAlias = Iterator[tuple[float, int, bytes, int]]
"""Seconds, link type, what was captured, and the length that the packet had."""


def _cut_off(count: int) -> BridgeError:
    return BridgeError(
        f"is cut off after {count} packets; copy it again, or keep what is whole: editcap IN OUT"
    )


def _broken(count: int) -> BridgeError:
    return BridgeError(f"is broken after {count} packets; copy it again")


def _pcap(data: bytes) -> _Packets:
    order, resolution, size = _MAGIC[data[:4]]
    if len(data) < 24:
        raise _cut_off(0)
    link = struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF  # above are FCS bits
    header = struct.Struct(order + "IIII")
    at, count = 24, 0
    while at < len(data):
        if at + size > len(data):
            raise _cut_off(count)
        seconds, fraction, captured, length = header.unpack_from(data, at)
        at += size
        if captured > MAX_PACKET:
            raise _broken(count)
        if at + captured > len(data):
            raise _cut_off(count)
        yield seconds + fraction / resolution, link, data[at : at + captured], length
        at += captured
        count += 1


@dataclass(frozen=True, slots=True)
class _Interface:
    """`tick` in seconds; `offset` in seconds is added to every time."""

    link: int
    snap: int
    tick: float = 1e-6
    offset: int = 0


def _pcapng(data: bytes) -> _Packets:
    order = "<"
    interfaces: list[_Interface] = []
    at = count = 0
    while at < len(data):
        if at + 12 > len(data):
            raise _cut_off(count)
        if data[at : at + 4] == _NG:  # the same in both orders; a section has its own
            order = "<" if data[at + 8 : at + 12] == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces = []
        kind, size = struct.unpack_from(order + "II", data, at)
        if size < 12 or size % 4 or size > MAX_PACKET * 4:
            raise _broken(count)
        if at + size > len(data):
            raise _cut_off(count)
        body = data[at + 8 : at + size - 4]
        at += size
        try:
            if kind == _INTERFACE:
                interfaces.append(_interface(order, body))
            elif kind in (_PACKET, _OLD_PACKET):
                yield _packet(order, kind, body, interfaces)
                count += 1
        except (struct.error, IndexError):
            raise _broken(count) from None


def _packet(
    order: str, kind: int, body: bytes, interfaces: list[_Interface]
) -> tuple[float, int, bytes, int]:
    """A simple packet has no time, so that it is not taken. Raises struct.error, IndexError."""
    form = "IIIII" if kind == _PACKET else "HxxIIII"
    which, high, low, captured, length = struct.unpack_from(order + form, body)
    interface = interfaces[which]
    if captured > len(body) - 20:
        raise struct.error
    when = interface.offset + (high << 32 | low) * interface.tick
    return when, interface.link, body[20 : 20 + captured], length


def _interface(order: str, body: bytes) -> _Interface:
    link, _, snap = struct.unpack_from(order + "HHI", body)
    tick, offset, at = 1e-6, 0, 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4
        if code == 0:
            break
        if code == 9 and len(value) == 1:  # if_tsresol
            tick = 2.0 ** -(value[0] & 0x7F) if value[0] & 0x80 else 10.0 ** -value[0]
        elif code == 14 and len(value) == 8:  # if_tsoffset
            offset = struct.unpack(order + "q", value)[0]
    return _Interface(link, snap, tick, offset)


# -- packets ---------------------------------------------------------------------------------------

_V4, _V6 = 0x0800, 0x86DD
_VLAN = (0x8100, 0x88A8, 0x9100)
_FAMILIES = {2: _V4, 10: _V6, 24: _V6, 28: _V6, 30: _V6}  # AF_INET, and AF_INET6 of many systems
_LINKS = {  # link type → where the EtherType is, where the packet begins
    1: (12, 14),
    113: (14, 16),
    276: (0, 20),
}
_LOOPBACK = (0, 108)
_RAW = (12, 14, 101, 228, 229)
_EXTENSIONS = (0, 43, 60, 135)  # hop by hop, routing, destination options, mobility


def _take(found: Capture, when: float, link: int, packet: bytes, cut: bool) -> None:
    try:
        kind, at = _network(link, packet)
        if kind == _V4:
            _ipv4(found, when, packet, at, cut)
        elif kind == _V6:
            _ipv6(found, when, packet, at, cut)
    except KeyError:
        found.links.add(link)
    except (IndexError, struct.error):
        found.cut += cut  # without that it is nonsense, which is nobody's


def _network(link: int, packet: bytes) -> tuple[int, int]:
    """EtherType, and where the packet in it begins. KeyError: an unknown link type."""
    if link in _RAW:
        return (_V6 if packet[0] >> 4 == 6 else _V4), 0
    if link in _LOOPBACK:
        family = int.from_bytes(packet[:4], "little")
        return _FAMILIES.get(min(family, int.from_bytes(packet[:4], "big")), 0), 4
    kind_at, at = _LINKS[link]
    (kind,) = struct.unpack_from("!H", packet, kind_at)
    while kind in _VLAN:
        (kind,) = struct.unpack_from("!H", packet, at + 2)
        at += 4
    return kind, at


def _ipv4(found: Capture, when: float, packet: bytes, at: int, cut: bool) -> None:
    first, length, fragment, protocol = struct.unpack_from("!BxH2xHxB", packet, at)
    header = 4 * (first & 0x0F)
    if first >> 4 != 4 or header < 20 or protocol != 17:
        return
    if fragment & 0x3FFF:  # more of them, or an offset
        found.fragments += 1
        return
    hosts = packet[at + 12 : at + 16], packet[at + 16 : at + 20]
    end = at + length if length else len(packet)  # 0 where the network card cuts packets itself
    _udp(found, when, hosts, packet[at + header : end], cut)


def _ipv6(found: Capture, when: float, packet: bytes, at: int, cut: bool) -> None:
    length, following = struct.unpack_from("!4xHB", packet, at)
    hosts = packet[at + 8 : at + 24], packet[at + 24 : at + 40]
    end = at + 40 + length if length else len(packet)
    at += 40
    while following != 17:
        if following == 44:
            if int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF9:
                found.fragments += 1
                return
            size = 8
        elif following == 51:  # authentication
            size = 4 * (packet[at + 1] + 2)
        elif following in _EXTENSIONS:
            size = 8 * (packet[at + 1] + 1)
        else:
            return
        following = packet[at]
        at += size
    _udp(found, when, hosts, packet[at:end], cut)


def _udp(found: Capture, when: float, hosts: tuple[bytes, bytes], data: bytes, cut: bool) -> None:
    source, target, length = struct.unpack_from("!HHH", data)
    if length > len(data):
        found.cut += cut
        return
    if length < 8:
        return
    here, there = (str(ipaddress.ip_address(host)) for host in hosts)
    found.datagrams.append(Datagram(when, (here, source), (there, target), data[8:length]))
