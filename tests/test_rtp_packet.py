"""RTP packets: golden vectors, every truncation, and what is built is what is parsed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.ingress.rtp_packet import MAX_PACKET, Packet, build, is_rtcp, parse

VECTORS = Path(__file__).parent / "vectors" / "rtp"
SSRC = 0xCAFE0001


def vector(name: str) -> bytes:
    return (VECTORS / f"{name}.bin").read_bytes()


GOLDEN = {
    "plain-pcmu-seq-1000-ts-160000": Packet(
        0, 1000, 160000, 0xDEADBEEF, bytes.fromhex("ff7f008001fe55aa")
    ),
    "marker-pcma-seq-65535-ts-4294967295": Packet(
        8, 65535, 4294967295, 1, bytes.fromhex("d5d5d5d5"), marker=True
    ),
    "csrc-15": Packet(0, 1, 160, SSRC, bytes.fromhex("11223344")),
    "extension-2-words": Packet(0, 2, 320, SSRC, bytes.fromhex("55667788")),
    "extension-of-no-words": Packet(0, 3, 480, SSRC, b"\x99"),
    "padding-4": Packet(0, 4, 640, SSRC, bytes.fromhex("aabbccdd")),
    "only-padding": Packet(0, 5, 800, SSRC, b""),
    "csrc-2-extension-1-word-padding-1": Packet(
        0, 6, 960, SSRC, bytes.fromhex("7f7f7f"), marker=True
    ),
    "empty-payload": Packet(0, 7, 1120, SSRC, b""),
    "comfort-noise-46-dbov": Packet(13, 8, 1280, SSRC, b"\x2e"),
    "telephone-event-5-begin": Packet(
        101, 9, 1440, SSRC, bytes.fromhex("050a00a0"), marker=True
    ),
    "telephone-event-5-end-1600": Packet(101, 10, 1440, SSRC, bytes.fromhex("058a0640")),
    "l16-16000-big-endian-type-118": Packet(
        118, 11, 1600, SSRC, bytes.fromhex("0001ff007fff8000")
    ),
}  # fmt: skip

BAD = {
    "bad-version-1": "version",
    "bad-csrc-beyond-end": "csrc",
    "bad-extension-cut": "extension",
    "bad-extension-beyond-end": "extension",
    "bad-padding-0": "padding",
    "bad-padding-of-the-header-too": "padding",
    "bad-padding-without-payload": "padding",
    "bad-short-11": "short",
}


@pytest.mark.parametrize(("name", "packet"), GOLDEN.items())
def test_golden_packets_are_parsed(name: str, packet: Packet) -> None:
    assert parse(vector(name)) == packet
    assert not is_rtcp(vector(name))


@pytest.mark.parametrize(("name", "fault"), BAD.items())
def test_what_is_wrong_has_a_name(name: str, fault: str) -> None:
    assert parse(vector(name)) == fault


def test_golden_packets_are_built() -> None:
    def same(name: str, **more: object) -> bool:
        return build(GOLDEN[name], **more) == vector(name)  # type: ignore[arg-type]

    assert same("plain-pcmu-seq-1000-ts-160000")
    assert same("marker-pcma-seq-65535-ts-4294967295")
    assert same("csrc-15", csrcs=range(1, 16))
    assert same("extension-2-words", extension=(0xBEDE, bytes.fromhex("1001ff0000000000")))
    assert same("extension-of-no-words", extension=(0xBEDE, b""))
    assert same("padding-4", padding=4)
    assert same("only-padding", padding=8)
    more = {"csrcs": (16, 32), "extension": (1, b"\xaa" * 4), "padding": 1}
    assert same("csrc-2-extension-1-word-padding-1", **more)


def test_every_vector_is_tested() -> None:
    names = {path.stem for path in VECTORS.glob("*.bin") if "rtcp" not in path.stem}
    assert names == GOLDEN.keys() | BAD.keys()


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "empty-payload"])
def test_every_truncation_is_a_packet_with_less_or_has_a_fault(name: str) -> None:
    data = vector(name)
    whole = GOLDEN[name]
    for length in range(len(data)):
        packet = parse(data[:length])
        if length < 12:
            assert packet == "short"
        elif isinstance(packet, Packet):
            assert whole.payload.startswith(packet.payload)
            assert packet._replace(payload=b"") == whole._replace(payload=b"")
        else:
            assert packet in ("csrc", "extension", "padding")


def test_too_long_is_refused_and_a_long_packet_is_not() -> None:
    for size, taken in ((1500, True), (MAX_PACKET, True), (MAX_PACKET + 1, False), (65507, False)):
        data = build(Packet(0, 1, 2, 3, bytes(size - 12)))
        assert len(data) == size
        packet = parse(data)
        assert (packet == "oversized") is not taken
        assert not isinstance(packet, Packet) or len(packet.payload) == size - 12


def test_rtp_and_rtcp_are_told_apart_on_one_port() -> None:
    """RFC 5761 §4: second octets 192 to 223 are RTCP, whatever the first one is."""
    assert [second for second in range(256) if is_rtcp(bytes([0x80, second]))] == list(
        range(192, 224)
    )
    assert not is_rtcp(b"")
    assert not is_rtcp(b"\x80")


@given(
    st.builds(
        Packet,
        st.integers(0, 127),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=200),
        st.booleans(),
    ),
    st.lists(st.integers(0, 0xFFFFFFFF), max_size=15),
    st.none() | st.tuples(st.integers(0, 0xFFFF), st.integers(0, 8).map(lambda n: bytes(4 * n))),
    st.integers(0, 255),
)
@settings(max_examples=300, deadline=None)
def test_what_is_built_is_what_is_parsed(
    packet: Packet, csrcs: list[int], extension: tuple[int, bytes] | None, padding: int
) -> None:
    data = build(packet, csrcs=csrcs, extension=extension, padding=padding)
    assert parse(data) == packet


@given(st.binary(max_size=80))
@settings(max_examples=2000, deadline=None)
def test_any_octets_are_a_packet_or_have_a_fault(data: bytes) -> None:
    packet = parse(data)
    if isinstance(packet, Packet):
        assert packet.payload in data
        assert len(packet.payload) <= len(data) - 12
    else:
        assert packet in ("oversized", "short", "version", "csrc", "extension", "padding")
