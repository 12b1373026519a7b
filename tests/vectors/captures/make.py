"""Writes the captures beside it, with another library than the one that reads them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import dpkt

HERE = Path(__file__).parent
SDP = (
    "v=0\r\no=- 1 1 IN IP4 {0}\r\ns=-\r\nc=IN IP4 {0}\r\nt=0 0\r\nm=audio {1} RTP/AVP 0 101\r\n"
    "a=rtpmap:101 telephone-event/8000\r\n"
)
HEAD = "Call-ID: vector@10.0.0.1\r\nContent-Type: application/sdp\r\n\r\n"
ONE, TWO = (b"\x0a\x00\x00\x01", 4000), (b"\x0a\x00\x00\x02", 5000)


def rtp(kind: int, seq: int, ssrc: int) -> bytes:
    return struct.pack("!BBHII", 0x80, kind, seq, 160 * seq, ssrc) + b"\xff" * 8


def udp(data: bytes, source: tuple[bytes, int], target: tuple[bytes, int]) -> dpkt.Packet:
    inner = dpkt.udp.UDP(sport=source[1], dport=target[1], data=data, ulen=8 + len(data))
    if len(source[0]) == 16:
        return dpkt.ip6.IP6(
            src=source[0], dst=target[0], nxt=17, plen=len(inner), data=inner, v=6, hlim=64
        )
    packet = dpkt.ip.IP(src=source[0], dst=target[0], p=17, data=inner)
    packet.len = len(packet)
    return packet


def vlan(packet: dpkt.Packet) -> bytes:
    return bytes(12) + struct.pack("!HHH", 0x8100, 7, 0x0800) + bytes(packet)


def call() -> bytes:
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(file)

    def put(when: float, data: bytes, source, target) -> None:
        writer.writepkt(vlan(udp(data, source, target)), ts=1_700_000_000 + when)

    sip = ONE[0], 5060
    sips = TWO[0], 5060
    put(0.0, ("INVITE sip:100@10.0.0.2 SIP/2.0\r\n" + HEAD + SDP.format("10.0.0.1", 4000)).encode(),
        sip, sips)  # fmt: skip
    put(0.1, ("SIP/2.0 200 OK\r\n" + HEAD + SDP.format("10.0.0.2", 5000)).encode(), sips, sip)
    put(0.15, b"ACK sip:100@10.0.0.2 SIP/2.0\r\nCall-ID: vector@10.0.0.1\r\n\r\n", sip, sips)
    for n in range(14):
        put(0.2 + 0.02 * n, rtp(0, n, 2), TWO, ONE)
        if n not in (5, 6):
            put(0.205 + 0.02 * n, rtp(0, n, 1), ONE, TWO)
    put(0.49, struct.pack("!BBHI", 0x80, 201, 1, 1), ONE, TWO)
    put(0.5, b"BYE sip:100@10.0.0.2 SIP/2.0\r\nCall-ID: vector@10.0.0.1\r\n\r\n", sip, sips)
    return file.getvalue()


def interfaces() -> bytes:
    parts = [bytes(dpkt.pcapng.SectionHeaderBlockLE())]
    parts.append(bytes(dpkt.pcapng.InterfaceDescriptionBlockLE(linktype=1, snaplen=65535)))
    nano = dpkt.pcapng.PcapngOptionLE(code=9, data=b"\x09")
    end = dpkt.pcapng.PcapngOptionLE(code=0, len=0)
    parts.append(
        bytes(dpkt.pcapng.InterfaceDescriptionBlockLE(linktype=113, snaplen=0, opts=[nano, end]))
    )
    six = bytes.fromhex("20010db8" + "00" * 11 + "02"), bytes.fromhex("20010db8" + "00" * 11 + "01")

    def put(which: int, ticks: int, frame: bytes) -> None:
        block = dpkt.pcapng.EnhancedPacketBlockLE(
            iface_id=which, ts_high=ticks >> 32, ts_low=ticks & 0xFFFFFFFF, caplen=len(frame),
            pkt_len=len(frame), pkt_data=frame,
        )  # fmt: skip
        parts.append(bytes(block))

    for n in range(10):
        micro = 1_700_000_000_000_000 + 20_000 * n
        put(0, micro, bytes(12) + b"\x08\x00" + bytes(udp(rtp(8, n, 1), ONE, TWO)))
        packet = bytes(udp(rtp(9, n, 2), (six[0], 4000), (six[1], 5000)))
        put(1, (micro + 5_000) * 1000, bytes(14) + b"\x86\xdd" + packet)
    return b"".join(parts)


if __name__ == "__main__":
    (HERE / "call_sip_rtcp_vlan.pcap").write_bytes(call())
    (HERE / "two_interfaces.pcapng").write_bytes(interfaces())
