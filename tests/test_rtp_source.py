"""Who may speak on a port, and who may try."""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.ingress.rtp_source import (
    DOUBTED,
    HELD,
    HOSTS,
    PORTS,
    SEQUENTIAL,
    SPAN,
    STALE,
    VERDICTS,
    Address,
    Network,
    Source,
    allowed,
    peek,
)

PEER = ("192.0.2.1", 4000)
NEIGHBOUR = ("192.0.2.1", 4002)  # the same host, another port
STRANGER = ("198.51.100.9", 4000)
ANYWHERE = [ipaddress.ip_network("0.0.0.0/0")]
TYPES = frozenset((0, 8))


def rtp(seq: int, ssrc: int = 7, payload_type: int = 0, payload: bytes = bytes(160)) -> bytes:
    return struct.pack(">BBHII", 0x80, payload_type, seq & 0xFFFF, seq * 160 & 0xFFFFFFFF, ssrc) + (
        payload
    )


def heard(source: Source, address: Address, seqs: Iterator[int] | range, now: float) -> list[bool]:
    """What `check` says of one packet every 20 ms."""
    return [source.check(address, seq & 0xFFFF, 7, now + 0.02 * i) for i, seq in enumerate(seqs)]


def test_an_announced_address_is_heard_from_its_first_packet_and_nobody_else_is() -> None:
    source = Source(PEER)
    assert source.check(PEER, 1, 7, 0.0)
    assert source.check(PEER, None, 0, 0.0)  # its RTCP
    assert heard(source, NEIGHBOUR, range(100), 0.1) == [False] * 100
    assert heard(source, STRANGER, range(100), 0.1) == [False] * 100
    assert source.check(PEER, 2, 7, 9.0)
    assert (source.locked, source.strangers) == (PEER, 200)


def test_of_an_announced_host_the_port_is_learnt() -> None:
    source = Source(("192.0.2.1", None))
    assert heard(source, STRANGER, range(20), 0.0) == [False] * 20
    assert heard(source, PEER, range(5), 1.0) == [False, False, False, True, True]
    assert heard(source, NEIGHBOUR, range(20), 2.0) == [False] * 20
    assert (source.locked, source.strangers) == (PEER, 40)


def test_the_same_address_written_otherwise_is_the_same() -> None:
    assert Source(("2001:DB8:0:0::1", 4000)).check(("2001:db8::1", 4000), 1, 7, 0.0)
    with pytest.raises(ValueError):
        Source(("pbx.example.org", 4000))


def test_where_nothing_is_allowed_nobody_is_learnt() -> None:
    source = Source(None)
    assert heard(source, PEER, range(100), 0.0) == [False] * 100
    assert (source.locked, source.strangers) == (None, 100)


def test_only_allowed_networks_can_be_learnt() -> None:
    source = Source(None, [ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("fc00::/7")])
    for address in (STRANGER, ("2001:db8::1", 4000), ("fe80::1%eth0", 4000), ("?", 1)):
        assert heard(source, address, range(20), 0.0) == [False] * 20
    assert heard(source, ("fd00::5", 4000), range(4), 1.0) == [False, False, False, True]


def test_four_in_sequence_make_the_peer() -> None:
    source = Source(None, ANYWHERE)
    assert heard(source, PEER, range(65533, 65538), 0.0) == [False, False, False, True, True]
    assert (source.locked, source.strangers) == (PEER, 0)


@pytest.mark.parametrize(
    ("seqs", "last"),
    [
        ([1, 2, 3, 5, 6, 7, 8], 8),  # a gap begins anew
        ([1, 2, 3, 1, 2, 3, 4], 4),
        ([4, 3, 2, 1, 2, 3, 4], 4),
        ([1, 2, 2, 2, 3, 4], 4),  # a packet that the network doubled neither helps nor harms
    ],
)
def test_it_takes_four_without_a_gap(seqs: list[int], last: int) -> None:
    source = Source(None, ANYWHERE)
    verdicts = [source.check(PEER, seq, 7, 0.02 * i) for i, seq in enumerate(seqs)]
    assert verdicts == [False] * (len(seqs) - 1) + [True]
    assert seqs[-1] == last


def test_a_burst_is_not_enough_it_must_last() -> None:
    source = Source(None, ANYWHERE)
    step = SPAN / 10
    verdicts = [source.check(PEER, i, 7, step * i) for i in range(12)]
    assert verdicts == [False] * 10 + [True] * 2


def test_another_ssrc_begins_anew() -> None:
    source = Source(None, ANYWHERE)
    assert [source.check(PEER, i, i // 3, 0.02 * i) for i in range(9)] == [False] * 9


def test_what_is_no_rtp_proves_nothing() -> None:
    source = Source(None, ANYWHERE)
    for i in range(50):
        assert not source.check(STRANGER, None, 0, 0.02 * i)
    assert source.strangers == 50
    # Between packets of the peer it does no harm.
    for i in range(3):
        assert not source.check(PEER, i, 7, 2 + 0.02 * i)
        assert not source.check(PEER, None, 0, 2 + 0.02 * i)
    assert source.check(PEER, 3, 7, 2.06)
    assert source.strangers == 50


# -- attacks -----------------------------------------------------------------------------------


def test_an_attacker_who_is_first_with_one_packet_wins_nothing() -> None:
    source = Source(None, ANYWHERE)
    assert not source.check(STRANGER, 999, 7, 0.0)
    assert heard(source, PEER, range(10, 14), 0.001)[-1]
    assert not source.check(STRANGER, 1000, 7, 0.2)
    assert (source.locked, source.strangers) == (PEER, 2)


@pytest.mark.parametrize("ports", [1, 10, 5000])
def test_a_flood_while_learning_does_not_keep_the_peer_out(ports: int) -> None:
    """50,000 packets a second from one host, on one or many ports, in no sequence."""
    dice = random.Random(ports)
    source = Source(None, ANYWHERE)
    for tick in range(20):
        for i in range(1000):
            address = (STRANGER[0], 1024 + dice.randrange(ports))
            assert not source.check(address, dice.randrange(65536), 7, tick * 0.02 + i * 2e-5)
        if source.check(PEER, tick, 7, tick * 0.02 + 0.019):
            break
    assert source.locked == PEER
    assert tick == 3


def test_a_flood_that_repeats_the_peers_sequence_numbers_is_another_address() -> None:
    source = Source(("192.0.2.1", None))
    for i in range(4):
        assert not source.check(STRANGER, i, 7, 0.02 * i)
        assert source.check(PEER, i, 7, 0.02 * i) == (i == 3)
    assert source.locked == PEER


def test_after_the_lock_nothing_moves_it() -> None:
    source = Source(None, ANYWHERE)
    heard(source, PEER, range(4), 0.0)
    for attacker in (STRANGER, NEIGHBOUR):
        # The peer's own SSRC and numbers; long after the peer's last packet; for long.
        assert heard(source, attacker, range(4, 400), 0.1) == [False] * 396
        assert heard(source, attacker, range(4, 400), 3600.0) == [False] * 396
    assert source.check(PEER, 4, 7, 7200.0)
    assert source.strangers == 2 * 2 * 396


def test_spray_from_many_hosts_does_not_push_out_a_sequence_that_goes_on() -> None:
    source = Source(None, ANYWHERE)
    for i in range(2):
        assert not source.check(PEER, i, 7, 0.02 * i)
    for n in range(5000):
        assert not source.check((f"10.0.{n >> 8}.{n & 255}", n % 3), 1, 7, 0.03)
    assert not source.check(PEER, 2, 7, 0.04)
    assert source.check(PEER, 3, 7, 0.06)
    assert source.strangers == 5000


def test_candidates_that_fell_silent_make_room() -> None:
    source = Source(None, ANYWHERE)
    for host in range(HOSTS):
        for port in range(PORTS):
            heard(source, (f"10.0.0.{host}", port), range(2), 0.0)
    assert heard(source, PEER, range(10), 0.1) == [False] * 10  # every place is taken
    assert heard(source, ("10.0.0.1", 99), range(10), 0.1) == [False] * 10
    assert heard(source, PEER, range(4), 0.1 + STALE)[-1]
    everybody = HOSTS * PORTS * 2 + 20
    assert source.strangers == everybody


def test_what_is_not_counted_while_it_may_be_the_peer_is_counted_in_the_end() -> None:
    source = Source(None, ANYWHERE)
    heard(source, STRANGER, range(0, 3 * DOUBTED, 3), 0.0)
    assert source.strangers == 0
    for n in range(100):  # with RTCP too
        source.check(STRANGER, None if n % 2 else 7 * n, 7, 1.0)
    assert source.strangers == 100
    source.close()
    source.close()
    assert source.strangers == 100 + DOUBTED


def test_verdicts_on_hosts_are_not_kept_for_ever() -> None:
    source = Source(None, [ipaddress.ip_network("192.0.2.0/24")])
    for n in range(5000):
        assert not source.check((f"10.0.{n >> 8}.{n & 255}", 1), 1, 7, 0.0)
    assert len(source._verdicts) <= VERDICTS
    assert heard(source, PEER, range(4), 0.1)[-1]


# -- packets that are kept ---------------------------------------------------------------------


def test_the_first_packets_of_the_peer_are_heard_once_it_is_known() -> None:
    source = Source(None, ANYWHERE, TYPES)
    packets = [rtp(i) for i in range(6)]
    taken = []
    for i, packet in enumerate(packets):
        assert source.take(rtp(i, ssrc=8), STRANGER, 0.02 * i - 0.1) == [] or i > 2
        taken.append(source.take(packet, PEER, 0.02 * i))
        if i == 2:
            assert source.locked is None
    # The stranger, a tenth of a second ahead, won this race: nobody is heard but it.
    assert source.locked == STRANGER and taken == [[]] * 6

    source = Source(None, ANYWHERE, TYPES)
    taken = [source.take(packet, PEER, 0.02 * i) for i, packet in enumerate(packets)]
    stamped = [(packet, 0.02 * i) for i, packet in enumerate(packets)]
    assert taken == [[], [], [], stamped[:4], stamped[4:5], stamped[5:6]]


def test_packets_before_a_gap_are_kept_too_and_those_of_another_stream_are_not() -> None:
    source = Source(None, ANYWHERE, TYPES)
    packets = [rtp(1, ssrc=1), rtp(2, ssrc=1), *(rtp(i) for i in (10, 12, 13, 14, 15))]
    for i, packet in enumerate(packets[:-1]):
        assert source.take(packet, PEER, 0.02 * i) == []
    taken = source.take(packets[-1], PEER, 1.0)
    assert [packet for packet, _ in taken] == packets[2:]


def test_what_is_kept_is_bounded() -> None:
    source = Source(None, ANYWHERE, TYPES)
    for i in range(50):  # every second one is lost
        assert source.take(rtp(2 * i), PEER, 0.02 * i) == []
    huge = rtp(100, payload=bytes(5000))
    for i, packet in enumerate((huge, rtp(101), rtp(102))):
        assert source.take(packet, PEER, 1 + 0.02 * i) == []
    taken = [packet for packet, _ in source.take(rtp(103), PEER, 1.1)]
    assert taken[-3:] == [rtp(101), rtp(102), rtp(103)]
    assert len(taken) == HELD + 1 and huge not in taken


def test_only_known_payload_types_are_evidence() -> None:
    source = Source(None, ANYWHERE, TYPES)
    for i in range(20):
        assert source.take(rtp(i, payload_type=34), PEER, 0.02 * i) == []
    assert (source.locked, source.strangers) == (None, 20)


def test_a_known_source_is_heard_from_its_first_audio_on_whatever_it_sends_then() -> None:
    source = Source(PEER, (), TYPES)
    rtcp = b"\x80\xc9" + bytes(10)
    for early in (rtcp, b"", b"\x80", rtp(1, payload_type=34)):
        assert source.take(early, PEER, 1.0) == []
    assert source.take(rtp(1), STRANGER, 1.0) == []
    assert source.take(rtp(1), PEER, 1.0) == [(rtp(1), 1.0)]
    assert source.take(rtcp, PEER, 1.1) == [(rtcp, 1.1)]
    assert source.take(rtp(2), STRANGER, 1.2) == []
    assert source.strangers == 2


def test_without_types_rtcp_is_no_evidence_all_the_same() -> None:
    source = Source(None, ANYWHERE)
    for i in range(10):
        assert source.take(b"\x80" + bytes([200 + i % 5, 0, i]) + bytes(24), PEER, 0.02 * i) == []
    assert heard(source, PEER, range(4), 1.0)[-1]


def test_senders_are_what_a_filter_may_let_pass() -> None:
    network = ipaddress.ip_network
    source = Source(None, ANYWHERE)
    assert source.senders() == [(network("0.0.0.0/0"), None)]
    heard(source, PEER, range(4), 0.0)
    assert source.senders() == [(network("192.0.2.1/32"), 4000)]
    assert Source(("fd00::1", None), ANYWHERE).senders() == [(network("fd00::1/128"), None)]
    assert Source(None).senders() == []


@pytest.mark.parametrize("size", range(13))
def test_peek_reads_a_header_and_nothing_shorter(size: int) -> None:
    packet = rtp(0x1234, ssrc=0xDEADBEEF)
    expected = (0x1234, 0xDEADBEEF) if size == 12 else (None, 0)
    assert peek(packet[: min(size, 12)], TYPES) == expected
    assert peek(b"\x40" + packet[1:], TYPES) == (None, 0)
    assert peek(packet[:1] + b"\x88" + packet[2:], TYPES) == (0x1234, 0xDEADBEEF)  # marker, 8


def test_what_is_no_address_is_not_allowed() -> None:
    networks: list[Network] = [ipaddress.ip_network("::/0"), *ANYWHERE]
    assert [allowed(host, networks) for host in ("::1", "10.0.0.1", "x", "")] == [True, True, 0, 0]


datagrams = st.binary(max_size=16) | st.integers(0, 20).map(rtp)
sources = st.sampled_from([PEER, NEIGHBOUR, STRANGER, ("fd00::1", 9)])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(sources, st.binary(max_size=16) | st.integers(0, 20).map(rtp)), max_size=60)
)
def test_whatever_comes_only_one_address_is_ever_heard(
    packets: list[tuple[Address, bytes]],
) -> None:
    source = Source(None, ANYWHERE, TYPES)
    came: dict[Address, list[bytes]] = {}
    spoke = set()
    for i, (address, packet) in enumerate(packets):
        came.setdefault(address, []).append(packet)
        taken = source.take(packet, address, 0.01 * i)
        if taken:
            spoke.add(address)
            assert source.locked == address
            assert all(data in came[address] for data, _ in taken)
            assert sum(len(p) >= 12 for p in came[address]) >= SEQUENTIAL
    assert len(spoke) <= 1
    assert source.strangers <= len(packets)
