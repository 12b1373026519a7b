"""Captures as tcpdump and Wireshark write them, and whatever else is called one."""

from __future__ import annotations

import io
import ipaddress
import struct
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.capture import (
    Stream,
    calls_of,
    codec_of,
    is_capture,
    read_streams,
    streams,
)
from bridge.capture_file import Datagram, datagrams, read_datagrams
from bridge.errors import BridgeError
from bridge.ingress import rtcp
from bridge.ingress.rtp_packet import Packet, build

VECTORS = Path(__file__).parent / "vectors" / "captures"
A, B = ("192.0.2.1", 4000), ("192.0.2.2", 5000)
SIX = ("2001:db8::1", 4000), ("2001:db8::2", 5000)
ETHERNET, COOKED, COOKED2, RAW, NULL = 1, 113, 276, 101, 0


# -- writing captures ------------------------------------------------------------------------------


def rtp(n: int, *, kind: int = 0, ssrc: int = 7, payload: bytes = b"\xff" * 4) -> bytes:
    return build(Packet(kind, 65530 + n, 160 * n, ssrc, payload))


def udp(data: bytes, source=A, target=B, *, before: bytes = b"", fragment: int = 0) -> bytes:
    """An IP packet. `before`: extension headers of IPv6, the first's number in front."""
    body = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    hosts = b"".join(ipaddress.ip_address(host).packed for host, _ in (source, target))
    if len(hosts) == 32:
        first, more = (before[0], before[1:]) if before else (17, b"")
        return struct.pack("!IHBB", 6 << 28, len(more + body), first, 64) + hosts + more + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, fragment, 64, 17, 0)
    return head + hosts + body


def ethernet(packet: bytes, *vlans: int) -> bytes:
    tags = b"".join(struct.pack("!HH", kind, 5) for kind in vlans)
    return bytes(12) + tags + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet


def cooked(packet: bytes) -> bytes:
    return bytes(14) + b"\x08\x00" + packet


def pcap(frames: Iterable[bytes], link: int = ETHERNET, order: str = "<", nano: bool = False):
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for i, frame in enumerate(frames):
        fraction = 20_000 * i * (1000 if nano else 1)
        data += struct.pack(order + "IIII", 1_700_000_000, fraction, len(frame), len(frame)) + frame
    return data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(link: int, order: str = "<", options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, 0) + options)


def enhanced(frame: bytes, ticks: int, which: int = 0, order: str = "<") -> bytes:
    head = struct.pack(order + "IIIII", which, ticks >> 32, ticks & 0xFFFFFFFF, *[len(frame)] * 2)
    return block(order, 6, head + frame)


def frames_of(count: int = 12, **options) -> list[bytes]:
    return [ethernet(udp(rtp(n, **options))) for n in range(count)]


def found(data: bytes) -> list[Stream]:
    return streams(datagrams(data).datagrams)


# -- ways to a datagram ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "wrap"),
    [
        (ETHERNET, ethernet),
        (ETHERNET, lambda p: ethernet(p, 0x8100)),
        (ETHERNET, lambda p: ethernet(p, 0x88A8, 0x8100)),
        (ETHERNET, lambda p: ethernet(p) + b"\0" * 20),  # filled up to 60 bytes
        (COOKED, cooked),
        (COOKED2, lambda p: b"\x08\x00" + bytes(18) + p),
        (RAW, lambda p: p),
        (NULL, lambda p: b"\x02\0\0\0" + p),
        (NULL, lambda p: b"\0\0\0\x02" + p),
        (108, lambda p: b"\0\0\0\x02" + p),
        (228, lambda p: p),
    ],
)
def test_a_datagram_is_found_on_every_kind_of_link(link, wrap):
    [only] = datagrams(pcap([wrap(udp(b"hello"))], link)).datagrams
    assert only == Datagram(1_700_000_000.0, A, B, b"hello")


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\x00" + b"\x11\x00" + bytes(6),  # hop by hop
        b"\x3c" + b"\x2b\x00" + bytes(6) + b"\x11\x01" + bytes(14),  # options, routing
        b"\x33" + b"\x11\x04" + bytes(22),  # authentication
        b"\x2c" + b"\x11\x00\x00\x00" + bytes(4),  # a fragment that is all
    ],
)
def test_ipv6_and_its_extension_headers(before):
    packet = udp(b"six", *SIX, before=before)
    [only] = datagrams(pcap([ethernet(packet)])).datagrams
    assert only[1:] == (*SIX, b"six")


@pytest.mark.parametrize(
    "packet",
    [
        udp(b"one", fragment=0x2000),  # more come
        udp(b"two", fragment=0x0010),
        udp(b"six", *SIX, before=b"\x2c" + b"\x11\x00\x00\x01" + bytes(4)),
        udp(b"six", *SIX, before=b"\x2c" + b"\x11\x00\x01\x00" + bytes(4)),
    ],
)
def test_fragments_are_left_out_and_counted(packet):
    capture = datagrams(pcap([ethernet(packet)]))
    assert (capture.datagrams, capture.fragments, capture.packets) == ([], 1, 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_both_byte_orders_and_resolutions(order, nano):
    capture = datagrams(pcap(frames_of(3), order=order, nano=nano))
    assert [round(each.when - 1_700_000_000, 6) for each in capture.datagrams] == [0, 0.02, 0.04]


def test_lengths_of_udp_and_ip_are_both_kept_to():
    longer = bytearray(udp(b"hello and more"))
    struct.pack_into("!H", longer, 24, 8 + 5)  # UDP's
    assert datagrams(pcap([ethernet(bytes(longer))])).datagrams[0].payload == b"hello"
    shorter = bytearray(udp(b"hello and more"))
    struct.pack_into("!H", shorter, 2, 20 + 8 + 5)  # IP's: the rest is the link's
    assert datagrams(pcap([ethernet(bytes(shorter))])).datagrams == []


def test_what_is_no_udp_is_nothing():
    frames = [b"", b"\0" * 14, ethernet(b"\x45" + bytes(19)), bytes(12) + b"\x08\x06" + bytes(28)]
    frames += [ethernet(udp(b"x")[:9] + b"\x06" + udp(b"x")[10:])]  # TCP
    frames += [ethernet(udp(b"short")[:20] + struct.pack("!HHHH", 1, 2, 7, 0))]
    capture = datagrams(pcap(frames))
    assert (capture.datagrams, capture.packets, capture.cut) == ([], len(frames), 0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_interfaces_of_a_pcapng_have_their_own_links_and_clocks(order):
    nanoseconds = struct.pack(order + "HHB3x", 9, 1, 9)
    binary = struct.pack(order + "HHB3x", 9, 1, 0x80 | 10)
    ahead = struct.pack(order + "HHq", 14, 8, 1000) + struct.pack(order + "HH", 0, 0)
    data = section(order) + interface(ETHERNET, order) + interface(COOKED, order, nanoseconds)
    data += interface(RAW, order, binary + ahead)
    data += block(order, 5, bytes(12))  # statistics
    data += enhanced(ethernet(udp(b"0")), 5_000_000, 0, order)
    data += enhanced(cooked(udp(b"1")), 6_000_000_000, 1, order)
    data += enhanced(udp(b"2"), 7 << 10, 2, order)
    data += section(order) + interface(RAW, order) + enhanced(udp(b"3"), 8_000_000, 0, order)
    assert [(each.when, each.payload) for each in datagrams(data).datagrams] == [
        (5.0, b"0"), (6.0, b"1"), (1007.0, b"2"), (8.0, b"3"),
    ]  # fmt: skip


def test_another_program_reads_the_same():
    dpkt = pytest.importorskip("dpkt")
    data = pcap(frames_of())
    theirs = []
    for when, frame in dpkt.pcap.Reader(io.BytesIO(data)):
        packet = dpkt.ethernet.Ethernet(frame).data
        theirs.append((when, packet.data.sport, packet.data.dport, packet.data.data))
    ours = datagrams(data).datagrams
    assert [(d.when, d.source[1], d.target[1], d.payload) for d in ours] == theirs
    file = io.BytesIO()
    writer = dpkt.pcapng.Writer(file)
    for when, frame in dpkt.pcap.Reader(io.BytesIO(data)):
        writer.writepkt(frame, ts=when)
    again = datagrams(file.getvalue()).datagrams
    assert [each[1:] for each in again] == [each[1:] for each in ours]
    assert [each.when for each in again] == pytest.approx([each.when for each in ours])


# -- streams ---------------------------------------------------------------------------------------

INVITE = (
    b"INVITE sip:100@192.0.2.2 SIP/2.0\r\nCall-ID: one@a\r\nContent-Type: application/sdp\r\n\r\n"
    b"v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0 97 101\r\n"
    b"a=rtpmap:97 L16/16000\r\na=rtpmap:101 telephone-event/8000\r\nm=video 6000 RTP/AVP 97\r\n"
    b"a=rtpmap:97 H264/90000\r\n"
)
ANSWER = (
    b"SIP/2.0 200 OK\r\ni: one@a\r\n\r\nv=0\r\nc=IN IP4 198.51.100.9\r\n"
    b"m=audio 5000 RTP/AVP 96\r\nc=IN IP4 192.0.2.2\r\na=rtpmap:96 L16/16000/1\r\n"
)


def both(kind: int = 0, *, first=B, gap: float = 0.02) -> list[Datagram]:
    """The callee's stream begins before the caller's."""
    second = A if first == B else B
    one = [Datagram(n * gap, first, second, rtp(n, kind=kind, ssrc=1)) for n in range(20)]
    other = [Datagram(n * gap + 0.1, second, first, rtp(n, kind=kind, ssrc=2)) for n in range(20)]
    return sorted(one + other)


def test_a_capture_with_noise_has_the_streams_and_nothing_else():
    report = rtcp.build(7, "cname", (), bye=True)
    noise = [
        Datagram(n * 0.02, A, B, data) for n in range(30) for data in (INVITE, report, b"", b"x")
    ]
    noise += [Datagram(0.0, A, B, rtp(n, ssrc=99)) for n in range(9)]  # too few
    noise += [Datagram(0.0, A, B, rtp(3, ssrc=98))] * 50  # one packet, again and again
    noise += [Datagram(0.0, A, B, rtp(9000 * n, ssrc=97)) for n in range(50)]  # no sequence
    noise += [Datagram(n, A, B, bytes([0x80, 0]) + bytes([n] * 10)) for n in range(200)]
    noise += [Datagram(n, A, B, rtp(n, kind=72, ssrc=96)) for n in range(50)]  # RTCP's numbers
    names = {(s.ssrc, s.source, len(s.packets)) for s in streams(both() + noise)}
    assert names == {(1, B, 20), (2, A, 20)}


def test_loss_order_and_times_are_kept():
    order = [0, 1, 3, 2, 2, 5, 6, 7, 8, 20, 21, 22]
    heard = [Datagram(5 + 0.02 * i, A, B, rtp(n)) for i, n in enumerate(order)]
    [only] = streams(heard)
    assert [data for _, data in only.packets] == [rtp(n) for n in order]
    assert [when for when, _ in only.packets] == [each.when for each in heard]
    assert (only.begin, only.end, only.main) == (5.0, 5.22, 0)


def test_another_ssrc_or_address_is_another_stream():
    more = [Datagram(n, A, B, rtp(n, ssrc=8)) for n in range(10)]
    more += [Datagram(n, A, SIX[0], rtp(n, ssrc=8)) for n in range(10)]
    assert len(streams(more)) == 2


def test_sdp_names_types_and_tells_who_called():
    heard = [Datagram(0.0, A, B, INVITE), Datagram(0.0, B, A, ANSWER), *both(96)]
    [[caller, callee]] = calls_of(streams(heard))
    assert (caller.source, caller.leg) == (A, "caller") and (callee.source, callee.leg) == (
        B, "callee",
    )  # fmt: skip
    assert codec_of(caller) == codec_of(callee) == "l16/16000/1"


def test_a_second_invite_of_a_call_is_not_the_callers():
    again = INVITE.replace(b"192.0.2.1", b"192.0.2.2").replace(b"audio 4000", b"audio 5000")
    heard = [Datagram(0.0, A, B, INVITE), Datagram(0.0, B, A, again), *both(first=B)]
    [[caller, _]] = calls_of(streams(heard))
    assert caller.source == A


def test_without_sip_the_caller_is_who_speaks_first():
    [[caller, callee]] = calls_of(streams(both()))
    assert (caller.source, callee.source, caller.leg) == (B, A, "")


def test_two_streams_that_are_all_there_is_are_one_call():
    taps = [Datagram(n, A, B, rtp(n, ssrc=1)) for n in range(10)]
    taps += [Datagram(n, A, SIX[0], rtp(n, ssrc=2)) for n in range(10)]
    assert [len(call) for call in calls_of(streams(taps))] == [2]
    later = [each._replace(when=each.when + 100 * (each.target != B)) for each in taps]
    assert [len(call) for call in calls_of(streams(later))] == [1, 1]


def test_two_addresses_that_call_twice_have_two_calls():
    later = [
        each._replace(when=each.when + 60, payload=each.payload[:8] + b"\1" + each.payload[9:])
        for each in both()
    ]
    one = [each for each in both() if each.source == A]
    calls = calls_of(streams(one + [each for each in later if each.source == B] + later))
    assert [[s.source for s in call] for call in calls] == [[A], [B, A]]


def test_several_calls_are_told_apart():
    other = [
        each._replace(
            source=(each.source[0], each.source[1] + 2), target=(each.target[0], each.target[1] + 2)
        )
        for each in both()
    ]
    calls = calls_of(streams(both() + other))
    assert [[s.source[1] for s in call] for call in calls] == [[5000, 4000], [5002, 4002]]


def test_the_type_most_packets_have_is_the_stream_s():
    mixed = [Datagram(n, A, B, rtp(n, kind=101 if n % 3 else 8)) for n in range(30)]
    [only] = streams([Datagram(0.0, A, B, INVITE), *mixed])
    assert (only.main, only.types, codec_of(only)) == (
        8,
        {101: "telephone-event/8000"},
        "pcma/8000",
    )


def test_a_type_that_nobody_names_needs_a_codec():
    heard = [Datagram(n, A, B, rtp(n, kind=118)) for n in range(10)]
    [nameless] = streams(heard)
    with pytest.raises(BridgeError) as e:
        codec_of(nameless)
    assert str(e.value) == (
        "192.0.2.1:4000 > 192.0.2.2:5000 (SSRC 00000007) has payload type 118, which neither RFC "
        "3551 nor an SDP in the capture names; name it: --codec l16/16000"
    )
    [named] = streams(heard, "l16/16000")
    assert codec_of(named) == "l16/16000" and named.types == {118: "l16/16000"}
    [static] = streams([each._replace(payload=rtp(n)) for n, each in enumerate(heard)], "g722")
    assert codec_of(static) == "pcmu/8000"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"L16/16000/1", b"opus/48000/2", "codec 'opus/48000/2': only one channel can be heard"),
        (b"L16/16000/1", b"G729/8000", "codec 'g729' is not known; it is one of pcmu, pcma, g722"),
        (b"RTP/AVP", b"RTP/SAVP", "is encrypted (SRTP), and the capture has no keys for us"),
    ],
)
def test_what_no_bridge_hears_is_said(old, new, sentence):
    answer = Datagram(0.0, B, A, ANSWER.replace(old, new))
    with pytest.raises(BridgeError) as e:
        codec_of(streams([answer, *both(96)])[0])
    assert sentence in str(e.value)


# -- files that are none ---------------------------------------------------------------------------

GOOD = pcap(frames_of())
NG = section() + interface(ETHERNET) + b"".join(enhanced(f, n) for n, f in enumerate(frames_of()))
CUT = "is cut off after {} packets; copy it again, or keep what is whole: editcap IN OUT"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"RIFF" + bytes(40), "is not a capture: expected pcap or pcapng, as tcpdump and Wireshark "
         "write them"),
        (b"\x1f\x8b" + bytes(40), "is compressed; unpack it first (gunzip, unzstd)"),
        (GOOD[:20], CUT.format(0)),
        (GOOD[:-1], CUT.format(11)),
        (GOOD[: 24 + 74 * 3 + 5], CUT.format(3)),
        (GOOD[:24] + b"\xff" * 40, "is broken after 0 packets; copy it again"),
        (NG[:-1], CUT.format(11)),
        (NG[:20], CUT.format(0)),
        (NG + bytes(12), "is broken after 12 packets; copy it again"),
        (section() + enhanced(b"x", 0), "is broken after 0 packets; copy it again"),
        (section() + block("<", 1, b"1234"), "is broken after 0 packets; copy it again"),
        (NG + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 99, 99)),
         "is broken after 12 packets; copy it again"),
        (pcap([]), "has no RTP stream: of 0 packets, 0 are whole UDP datagrams, and no 10 of these "
         "follow each other as RTP does"),
        (pcap(frames_of(9) + [ethernet(udp(b"hello"))] * 20),
         "has no RTP stream: of 29 packets, 29 are whole UDP datagrams, and no 10 of these follow "
         "each other as RTP does"),
        (pcap(frames_of(), link=127),
         "has no RTP stream: of 12 packets, 0 are whole UDP datagrams, and no 10 of these follow "
         "each other as RTP does; link type 127 is not known (expected Ethernet, cooked, loopback "
         "or raw IP)"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_with_a_file(tmp_path, data, sentence):
    path = tmp_path / "x.pcap"
    path.write_bytes(data)
    with pytest.raises(BridgeError) as e:
        read_streams(path)
    assert str(e.value) == f"{path}: {sentence}"


def test_packets_that_were_not_captured_whole_are_named(tmp_path):
    data = pcap([])
    for frame in frames_of():
        data += struct.pack("<IIII", 1, 0, 48, len(frame)) + frame[:48]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BridgeError, match="; 12 packets are cut off, so capture them whole"):
        read_streams(tmp_path / "x")


def test_says_what_cannot_be_read(tmp_path):
    with pytest.raises(BridgeError, match="none.pcap: cannot be read: No such file or directory$"):
        read_datagrams(tmp_path / "none.pcap")
    with pytest.raises(BridgeError, match=": is not a plain file$"):
        read_datagrams(tmp_path)


def test_a_capture_is_told_by_its_bytes_or_its_name(tmp_path):
    for name, data, yes in [
        ("a", GOOD, True), ("b", NG, True), ("c.pcapng", b"", True), ("d.wav", b"RIFF", False),
        ("e.wav", GOOD, True),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(data)
        assert is_capture(tmp_path / name) is yes
    assert is_capture("nowhere.pcap") and not is_capture("nowhere.wav")


@given(st.data())
def test_a_damaged_capture_is_read_or_refused(data):
    whole = data.draw(st.sampled_from([GOOD, NG, pcap([cooked(udp(rtp(1)))] * 3, COOKED)]))
    at = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=12))
    try:
        streams(datagrams(whole[:at] + junk + whole[at + len(junk) :]).datagrams)
    except BridgeError:
        pass


@given(st.binary(max_size=120), st.sampled_from([ETHERNET, COOKED, COOKED2, RAW, NULL, 108, 9]))
def test_any_frame_is_a_datagram_or_none(frame, link):
    assert len(datagrams(pcap([frame, b"\x45" + frame, b"\x60" + frame], link)).datagrams) <= 3


@given(st.text(max_size=200))
def test_any_sdp_is_read(text):
    noise = Datagram(0.0, A, B, INVITE.replace(b"v=0", text.encode("utf-8", "replace")))
    assert len(streams([noise, *both()])) == 2


# -- stored ones -----------------------------------------------------------------------------------


def test_a_call_with_sip_and_rtcp_as_stored():
    """VLAN-tagged Ethernet: INVITE, 200, ACK, two streams of 12 and 14 packets, RTCP, BYE."""
    [[caller, callee]] = calls_of(read_streams(VECTORS / "call_sip_rtcp_vlan.pcap"))
    assert (caller.source, caller.target) == (("10.0.0.1", 4000), ("10.0.0.2", 5000))
    assert [data[3] for _, data in caller.packets] == [*range(5), *range(7, 14)]  # 5 and 6 lost
    assert (len(callee.packets), codec_of(caller), codec_of(callee)) == (
        14,
        "pcmu/8000",
        "pcmu/8000",
    )
    times = [when for when, _ in caller.packets]
    gaps = [round(after - before, 3) for before, after in pairwise(times)]
    assert gaps == [0.02] * 4 + [0.06] + [0.02] * 6


def test_two_interfaces_as_stored():
    """pcapng: one stream on Ethernet in microseconds, one on IPv6 cooked in nanoseconds."""
    found = read_streams(VECTORS / "two_interfaces.pcapng")
    assert [(s.source[0], len(s.packets), codec_of(s)) for s in found] == [
        ("10.0.0.1", 10, "pcma/8000"), ("2001:db8::2", 10, "g722/16000"),
    ]  # fmt: skip
    for stream in found:
        assert stream.end - stream.begin == pytest.approx(0.18)
