"""RTCP: golden vectors, lengths that lie, reports and when they are due."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.ingress.rtcp import (
    INTERVAL,
    Bye,
    Description,
    ReceiverReport,
    Report,
    ReportBlock,
    Reporter,
    SenderReport,
    build,
    parse,
)

VECTORS = Path(__file__).parent / "vectors" / "rtp"
SSRC = 0xCAFE0001
NTP = 0xE50E2F4D4CCCCCCD
SR = SenderReport(SSRC, NTP, 160000, 1000, 160000)

GOLDEN: dict[str, list[Report]] = {
    "rtcp-sr-sdes": [SR, Description(((SSRC, b"alice@p"),))],
    "rtcp-sr-1-block-bye": [
        SenderReport(
            SSRC, 0xE50E2F4D80000000, 160000, 1000, 160000,
            (ReportBlock(0x0BADCAFE, 64, -2, 65636, 16, 0x2F4D8000, 98304),),
        ),
        Bye((SSRC,)),
    ],
    "rtcp-rr-empty-sdes-bye-with-reason": [
        ReceiverReport(7), Description(((7, b"x"),)), Bye((7,)),
    ],
    "rtcp-sr-app-feedback": [SenderReport(SSRC, 1, 2, 3, 4)],
    "rtcp-bye-2-padding-4": [Bye((SSRC, 0xCAFE0002))],
}  # fmt: skip

BAD = {
    "bad-rtcp-bleed-4-octets": "length",
    "bad-rtcp-length-beyond-end": "length",
    "bad-rtcp-count-beyond-length": "length",
    "bad-rtcp-sdes-item-beyond-end": "length",
    "bad-rtcp-version-0": "version",
}


def vector(name: str) -> bytes:
    return (VECTORS / f"{name}.bin").read_bytes()


@pytest.mark.parametrize(("name", "reports"), GOLDEN.items())
def test_golden_datagrams_are_parsed(name: str, reports: list[Report]) -> None:
    assert parse(vector(name)) == reports


@pytest.mark.parametrize(("name", "fault"), BAD.items())
def test_what_is_wrong_has_a_name(name: str, fault: str) -> None:
    assert parse(vector(name)) == fault


def test_every_vector_is_tested() -> None:
    assert {path.stem for path in VECTORS.glob("*rtcp*.bin")} == GOLDEN.keys() | BAD.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_is_whole_packets_or_has_a_fault(name: str) -> None:
    data, reports = vector(name), GOLDEN[name]
    for length in range(len(data)):
        parsed = parse(data[:length])
        if isinstance(parsed, list):
            assert parsed == reports[: len(parsed)]
        else:
            assert parsed in ("short", "length", "padding")


def test_too_long_a_datagram_is_refused() -> None:
    assert parse(vector("rtcp-sr-sdes") * 32) == "oversized"
    assert len(parse(vector("rtcp-sr-sdes") * 31)) == 62


def test_only_the_last_packet_may_be_padded() -> None:
    padded = vector("rtcp-bye-2-padding-4")
    assert parse(vector("rtcp-sr-sdes") + padded) == [
        *GOLDEN["rtcp-sr-sdes"], *GOLDEN["rtcp-bye-2-padding-4"],
    ]  # fmt: skip
    assert parse(padded + vector("rtcp-sr-sdes")) == "padding"
    assert parse(padded[:-1] + b"\x00") == "padding"
    assert parse(padded[:-1] + b"\x0d") == "padding"
    assert parse(padded[:-1] + b"\x08") == "length"  # padding that eats an SSRC


@pytest.mark.parametrize("name", [b"", b"a", b"ab", b"abc", b"abcd"])
def test_chunks_of_a_description_begin_at_whole_words(name: bytes) -> None:
    chunks = b""
    for ssrc in (7, 8):
        chunk = ssrc.to_bytes(4, "big") + bytes([1, len(name)]) + name + b"\x02\x01x"
        chunks += chunk + bytes(4 - len(chunk) % 4)
    data = b"\x82\xca" + (len(chunks) // 4).to_bytes(2, "big") + chunks
    assert parse(data) == [Description(((7, name), (8, name)))]


@given(st.binary(max_size=100))
@settings(max_examples=1000, deadline=None)
def test_any_octets_are_reports_or_have_a_fault(data: bytes) -> None:
    parsed = parse(data)
    assert isinstance(parsed, list) or parsed in ("short", "version", "length", "padding")


@given(
    st.sampled_from(sorted(GOLDEN)),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4),
)
@settings(max_examples=1000, deadline=None)
def test_golden_datagrams_with_wrong_octets_do_no_harm(
    name: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(vector(name))
    for at, value in changes:
        data[at % len(data)] = value
    parsed = parse(bytes(data))
    assert isinstance(parsed, list) or parsed in ("version", "length", "padding")


# -- out -----------------------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(
            ReportBlock,
            st.integers(0, 0xFFFFFFFF),
            st.integers(0, 255),
            st.integers(-0x800000, 0x7FFFFF),
            *[st.integers(0, 0xFFFFFFFF)] * 4,
        ),
        max_size=3,
    ),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=300),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_what_is_built_is_what_is_parsed(blocks: list[ReportBlock], cname: str, bye: bool) -> None:
    data = build(7, cname, blocks, bye=bye)
    assert len(data) % 4 == 0
    reports: list[Report] = [
        ReceiverReport(7, tuple(blocks)), Description(((7, cname.encode()[:255]),)),
    ]  # fmt: skip
    assert parse(data) == reports + ([Bye((7,))] if bye else [])


def test_a_report_is_these_octets() -> None:
    block = ReportBlock(SSRC, 64, -2, 65636, 16, 0x2F4D4CCC, 0x18000)
    assert build(7, "x", [block], bye=True).hex(" ", 4) == (
        "81c90007 00000007 cafe0001 40fffffe 00010064 00000010 2f4d4ccc 00018000 "
        "81ca0002 00000007 01017800 "
        "81cb0001 00000007"
    )


# -- when ----------------------------------------------------------------------------------------


def test_nothing_is_due_before_the_peer_reports() -> None:
    reporter = Reporter(1)
    assert (reporter.due, reporter.wanted) == (float("inf"), False)
    block = ReportBlock(SSRC, 0, 0, 0, 0)
    assert reporter.timed(block, 9.0) == block


@pytest.mark.parametrize("ssrc", [0, 1, 0xFF, 0x12345680])
def test_reports_are_five_seconds_apart_at_least_and_seven_and_a_half_at_most(ssrc: int) -> None:
    reporter = Reporter(ssrc)
    sent = []
    for tick in range(0, 100_00):  # 100 s of 10 ms; the peer reports every 3 s
        now = tick / 100
        if tick % 300 == 0:
            reporter.hear(SR, now)
        if now >= reporter.due:
            reporter.sent(now)
            sent.append(now)
    assert 2.5 <= sent[0] <= 3.75 + 0.01
    assert all(INTERVAL <= b - a <= 7.51 for a, b in zip(sent, sent[1:], strict=False))
    assert len(sent) > 12


def test_no_report_follows_when_the_peer_has_stopped() -> None:
    reporter = Reporter(0)
    reporter.hear(SR, 100.0)
    while reporter.due < float("inf"):
        now = reporter.due
        reporter.sent(now)
    assert now <= 100 + 4 * INTERVAL
    reporter.hear(SR, 200.0)
    assert reporter.due == 205.0


def test_lsr_and_dlsr_let_the_peer_measure_the_round_trip() -> None:
    """RFC 3550 figure 2: the round trip is A − LSR − DLSR, in units of 1/65536 s."""
    reporter = Reporter(1)
    reporter.hear(SR, 1000.25)
    block = reporter.timed(ReportBlock(SSRC, 0, 0, 0, 0), 1003.75)
    assert (block.lsr, block.dlsr) == (0x2F4D4CCC, round(3.5 * 65536))
    arrival = (NTP >> 16) + round(3.6 * 65536) & 0xFFFFFFFF
    assert (arrival - block.lsr - block.dlsr) / 65536 == pytest.approx(0.1, abs=1e-4)


def test_lsr_is_not_another_ssrcs() -> None:
    reporter = Reporter(1)
    reporter.hear(SR, 0.0)
    block = ReportBlock(SSRC + 1, 0, 0, 0, 0)
    assert reporter.timed(block, 1.0) == block
