"""Sequence, SSRC, losses and jitter against RFC 3550's own code."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.ingress.rtp_packet import Packet
from bridge.ingress.rtp_sequence import HELD, Placed, Sequencer

A, B = 0xAAAA0001, 0xBBBB0002
STEP = 160  # timestamp units in 20 ms


def packet(number: int, *, ssrc: int = A, timestamp: int | None = None) -> Packet:
    """Packet `number` of a stream that counts from 0, with wraps; its payload says which it is."""
    ts = number * STEP if timestamp is None else timestamp
    return Packet(0, number & 0xFFFF, ts & 0xFFFFFFFF, ssrc, str(number).encode())


def feed(
    sequencer: Sequencer, packets: Iterable[Packet], now: float = 0.0, every: float = 0.02
) -> list[Placed]:
    placed = []
    for i, one in enumerate(packets):
        placed += sequencer.take(one, now + i * every)
    return placed


def numbers(placed: list[Placed]) -> list[int]:
    return [int(item.packet.payload) for item in placed]


def running(first: int = 1000, count: int = 3) -> Sequencer:
    """A stream that has begun."""
    sequencer = Sequencer()
    assert len(feed(sequencer, map(packet, range(first, first + count)))) == count
    return sequencer


# -- the RFC's code ----------------------------------------------------------------------------


class Appendix:
    """RFC 3550 A.1 and A.3, line by line: what `update_seq` and the report make of a source."""

    def __init__(self, seq: int) -> None:
        self.init_seq(seq)
        self.max_seq = (seq - 1) & 0xFFFF
        self.probation = 2
        self.expected_prior = self.received_prior = 0

    def init_seq(self, seq: int) -> None:
        self.base_seq = self.max_seq = seq
        self.bad_seq = 65537
        self.cycles = self.received = 0

    def update_seq(self, seq: int) -> bool:
        udelta = (seq - self.max_seq) & 0xFFFF
        if self.probation:
            if seq == (self.max_seq + 1) & 0xFFFF:
                self.probation -= 1
                self.max_seq = seq
                if self.probation == 0:
                    self.init_seq(seq)
                    self.received += 1
                    return True
            else:
                self.probation = 1
                self.max_seq = seq
            return False
        if udelta < 3000:
            if seq < self.max_seq:
                self.cycles += 65536
            self.max_seq = seq
        elif udelta <= 65536 - 100:
            if seq != self.bad_seq:
                self.bad_seq = (seq + 1) & 0xFFFF
                return False
            self.init_seq(seq)
        self.received += 1
        return True

    def report(self) -> tuple[int, int, int]:
        """Fraction, cumulative number lost, extended highest number."""
        highest = self.cycles + self.max_seq
        expected = highest - self.base_seq + 1
        lost = expected - self.received
        expected_interval = expected - self.expected_prior
        received_interval = self.received - self.received_prior
        self.expected_prior, self.received_prior = expected, self.received
        lost_interval = expected_interval - received_interval
        fraction = 0
        if expected_interval != 0 and lost_interval > 0:
            fraction = (lost_interval << 8) // expected_interval
        return fraction, lost, highest


@pytest.mark.parametrize("seed", range(20))
def test_losses_and_reports_are_those_of_the_rfcs_code(seed: int) -> None:
    """The RFC drops the first packet of a source, ours holds it: its report begins one later."""
    rng = random.Random(seed)
    first = rng.randrange(65536)
    loss, dup, swap = rng.choice([0, 0.05, 0.3]), rng.choice([0, 0.05]), rng.choice([0, 0.05])
    sent = [first + i for i in range(4) ] + [
        n for n in range(first + 4, first + 5000) if rng.random() >= loss for _ in range(
            2 if rng.random() < dup else 1)
    ]  # fmt: skip
    for i in range(4, len(sent) - 1):
        if rng.random() < swap:
            sent[i], sent[i + 1] = sent[i + 1], sent[i]
    ours, theirs = Sequencer(), Appendix(first & 0xFFFF)
    for i, number in enumerate(sent):
        feed(ours, [packet(number)])
        theirs.update_seq(number & 0xFFFF)
        if i % 500 == 499:
            report = ours.report()
            assert report is not None
            fraction, lost, highest = theirs.report()
            assert (report.lost, report.highest) == (lost, highest)
            # The packet more that we have is in the first interval.
            assert report.fraction == pytest.approx(fraction, abs=0 if i > 500 else 1)


@pytest.mark.parametrize("seed", range(5))
def test_jitter_is_that_of_appendix_a_8(seed: int) -> None:
    rng = random.Random(seed)
    sequencer = running(0, 2)
    now, jitter, last = 1.0, 0.0, None
    for number in range(2, 400):
        now = max(now, number * 0.02 + 1 + rng.uniform(0, 0.03))
        if number % 7:
            sequencer.step(number * STEP, now)
        else:  # the slow way counts the same
            [placed] = sequencer.take(packet(number), now)
            sequencer.time(placed.timestamp, now)
        transit = now * 8000 - number * STEP
        if last is not None:
            d = abs(transit - last)
            jitter += (1.0 / 16.0) * (d - jitter)
        last = transit
    assert sequencer.jitter == pytest.approx(jitter)
    assert 20 < jitter < 200


def test_jitter_is_not_measured_across_a_change_of_numbering_or_clock() -> None:
    sequencer = running(0, 2)
    for number in range(2, 20):
        sequencer.step(number * STEP, number * 0.02)
    assert sequencer.jitter == pytest.approx(0.0, abs=1e-6)
    for number in range(40_000, 40_003):
        for item in sequencer.take(packet(number), 3.0 + number * 0.02):
            sequencer.time(item.timestamp, item.at)
    assert sequencer.jitter == pytest.approx(0.0, abs=1e-6)
    sequencer.retime(16000)
    sequencer.step(40_003 * STEP, 3.0 + 40_003 * 0.02)
    assert sequencer.jitter == 0.0


# -- probation -----------------------------------------------------------------------------------


def test_a_stream_is_two_packets_in_sequence_and_none_is_lost() -> None:
    sequencer = Sequencer()
    assert feed(sequencer, [packet(7)]) == []
    assert sequencer.waiting == 1
    placed = feed(sequencer, [packet(8)])
    assert numbers(placed) == [7, 8]
    assert [item.fresh for item in placed] == [True, False]
    assert (sequencer.received, sequencer.waiting, sequencer.strays) == (2, 0, 0)


@pytest.mark.parametrize(
    ("sent", "placed", "lost"),
    [
        ([1, 3, 5, 6], [1, 3, 5, 6], 2),  # each gap begins probation anew
        ([2, 1, 3, 4], [1, 2, 3, 4], 0),
        ([1, 1, 2], [1, 2], 0),
        ([1, 500, 501], [500, 501], 0),  # too far off to be the beginning of this
        ([65535, 65536, 65537], [65535, 65536, 65537], 0),
    ],
)
def test_probation_keeps_what_belongs_together(
    sent: list[int], placed: list[int], lost: int
) -> None:
    sequencer = Sequencer()
    assert numbers(feed(sequencer, map(packet, sent))) == placed
    assert sequencer.lost == lost


def test_what_comes_after_the_first_and_was_sent_before_it_is_reordered() -> None:
    sequencer = running(65536, 3)
    [placed] = feed(sequencer, [packet(65534)])
    assert (placed.newest, placed.sequence) == (False, sequencer.highest - 4)
    assert (sequencer.reordered, sequencer.lost) == (1, 1)
    assert len(feed(sequencer, [packet(65535)])) == 1
    assert feed(sequencer, [packet(65535), packet(65534)]) == []
    assert (sequencer.lost, sequencer.duplicates) == (0, 2)


# -- order, wraps (M2) -------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [(), (65535,), (65536,), (65535, 65536), (65534, 65537)])
@pytest.mark.parametrize("start", [0, (1 << 32) - 3000, (1 << 32) - 1])
def test_numbers_and_timestamps_grow_over_their_wraps(dropped: tuple[int, ...], start: int) -> None:
    sequencer = Sequencer()
    sent = [n for n in range(65500, 65600) if n not in dropped]
    placed = feed(sequencer, (packet(n, timestamp=start + n * STEP) for n in sent))
    assert numbers(placed) == sent
    base = placed[0]
    for number, item in zip(sent, placed, strict=True):
        assert item.sequence - base.sequence == number - 65500
        assert item.timestamp - base.timestamp == (number - 65500) * STEP
    assert (sequencer.lost, sequencer.duplicates, sequencer.restarts) == (len(dropped), 0, 0)


def test_the_fast_step_and_the_slow_way_agree() -> None:
    start = (1 << 32) - 5 * STEP
    fast, slow = Sequencer(), Sequencer()
    for sequencer in (fast, slow):
        feed(sequencer, (packet(n, timestamp=start + n * STEP) for n in (65530, 65531)))
    for number in range(65532, 65560):
        timestamp = start + number * STEP - (480_000 if number > 65550 else 0)
        assert fast.next == slow.next == number & 0xFFFF
        unwrapped = fast.step(timestamp & 0xFFFFFFFF, 0.0)
        [placed] = slow.take(packet(number, timestamp=timestamp), 0.0)
        assert (unwrapped, fast.highest) == (placed.timestamp, placed.sequence)
        assert fast.received == slow.received


def test_late_packets_are_reordered_once_and_then_duplicates() -> None:
    sequencer = running(10, 3)  # 10 to 12
    placed = feed(sequencer, map(packet, [15, 13, 14, 13, 14, 15, 12, 16]))
    assert numbers(placed) == [15, 13, 14, 16]
    assert [item.newest for item in placed] == [True, False, False, True]
    assert (sequencer.reordered, sequencer.duplicates, sequencer.lost) == (2, 4, 0)


def test_a_late_packet_that_was_sent_before_an_events_is_still_late() -> None:
    """Packets of an event carry the timestamp of its beginning, so audio may be ahead of them."""
    sequencer = running(10, 3)
    event = packet(14, timestamp=12 * STEP)
    assert numbers(feed(sequencer, [event, packet(13), packet(15)])) == [14, 13, 15]


def test_what_is_missing_is_bounded() -> None:
    sequencer = running(0, 2)
    for number in range(10, 2_000_000, 1000):
        sequencer.take(packet(number), 0.0)
    assert len(sequencer._missing) <= 300
    assert sequencer.lost == sequencer.highest - 65536 + 1 - sequencer.received


# -- jumps (M4) --------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [1, 50, 2998])
def test_a_gap_below_the_limit_is_a_loss(jump: int) -> None:
    sequencer = running()
    assert numbers(feed(sequencer, [packet(1003 + jump)])) == [1003 + jump]
    assert (sequencer.lost, sequencer.restarts) == (jump, 0)


@pytest.mark.parametrize("jump", [2999, 3000, 30000, -50, -99, -100, -3000, -30000])
@pytest.mark.parametrize("seconds", [0, 1, 60, -60])
def test_a_jump_is_followed_at_the_second_packet_and_loses_nothing(jump: int, seconds: int) -> None:
    sequencer = running()
    jumped = [
        Packet(0, (n + jump) & 0xFFFF, n * STEP + seconds * 8000 & 0xFFFFFFFF, A, str(n).encode())
        for n in range(1003, 1008)
    ]
    placed = feed(sequencer, jumped)
    assert numbers(placed) == list(range(1003, 1008))
    assert [item.fresh for item in placed] == [True] + [False] * 4
    assert [b.sequence - a.sequence for a, b in zip(placed, placed[1:], strict=False)] == [1] * 4
    assert placed[0].sequence > 65536 + 1002
    assert (sequencer.restarts, sequencer.lost) == (1, 0)


def test_a_jump_back_by_one_costs_one_packet() -> None:
    """The same number once more, further on in time: the next one is the next of both."""
    sequencer = running()
    jumped = [packet(n - 1, timestamp=n * STEP) for n in range(1003, 1008)]
    assert len(feed(sequencer, jumped)) == 4


def test_a_sender_that_goes_back_in_number_and_time_is_believed_after_four_packets() -> None:
    """Its packets look like duplicates, which come with others between them, or at once."""
    sequencer = running(1000, 60)
    again = [packet(n) for n in range(1010, 1020)]
    placed = feed(sequencer, again)
    assert numbers(placed) == list(range(1013, 1020))
    assert placed[0].fresh
    assert (sequencer.duplicates, sequencer.restarts) == (3, 1)


def test_duplicates_of_all_packets_are_no_restart() -> None:
    sequencer = Sequencer()
    placed = feed(sequencer, (packet(n // 2) for n in range(400)), every=0.01)
    assert numbers(placed) == list(range(200))
    assert (sequencer.duplicates, sequencer.restarts) == (200, 0)
    # And in blocks, as a link that repeats itself would: at once.
    block = [packet(n) for n in range(150, 200)]
    assert feed(sequencer, block, every=0.0) == []


def test_one_packet_from_nowhere_changes_nothing() -> None:
    sequencer = running()
    for number in range(1003, 1100):
        assert numbers(feed(sequencer, [packet(number)])) == [number]
        assert feed(sequencer, [packet(number + 20000 + 7 * number)]) == []
    assert sequencer.restarts == 0
    assert sequencer.strays + sequencer.waiting == 97


# -- another SSRC (M3) -------------------------------------------------------------------------


def test_another_ssrc_is_ignored_until_four_packets_and_22_ms_and_then_heard_whole() -> None:
    sequencer = running()
    change = [packet(n, ssrc=B) for n in range(30000, 30006)]
    assert feed(sequencer, change[:3], 1.0) == []
    placed = sequencer.take(change[3], 1.06)
    assert numbers(placed) == [30000, 30001, 30002, 30003]
    assert [item.at for item in placed] == pytest.approx([1.0, 1.02, 1.04, 1.06])
    assert [item.fresh for item in placed] == [True, False, False, False]
    assert (sequencer.ssrc, sequencer.restarts) == (B, 1)
    assert len(sequencer.take(change[4], 1.08)) == 1
    assert sequencer.take(packet(1003), 1.09) == []  # and now the old one is a stranger


def test_a_burst_of_another_ssrc_is_not_enough() -> None:
    sequencer = running()
    burst = [packet(n, ssrc=B) for n in range(20)]
    assert feed(sequencer, burst, 1.0, every=0.001) == []
    assert sequencer.ssrc == A
    assert numbers(sequencer.take(packet(20, ssrc=B), 1.022)) == list(range(21))


def test_another_ssrc_beside_the_stream_is_never_heard() -> None:
    """An attacker with a spoofed address, or a sender of two streams: the first one stays."""
    sequencer = running(0, 3)
    for number in range(3, 300):
        now = number * 0.02
        assert len(feed(sequencer, [packet(number)], now)) == 1
        assert feed(sequencer, [packet(number + 500, ssrc=B)], now + 0.01) == []
    assert sequencer.ssrc == A
    assert sequencer.strays + sequencer.waiting == 297


def test_the_last_packet_of_the_old_ssrc_may_come_between_the_first_of_the_new() -> None:
    sequencer = running(0, 3)
    new = [packet(n, ssrc=B) for n in range(100, 104)]
    sent = [new[0], new[1], packet(3), new[2], new[3]]
    placed = feed(sequencer, sent)
    assert [item.packet.ssrc for item in placed] == [A, B, B, B, B]


def test_a_new_ssrc_whose_packets_come_out_of_order_is_heard_in_order() -> None:
    sequencer = running(0, 3)
    sent = [packet(n, ssrc=B) for n in (100, 102, 101, 103, 104, 105, 106)]
    assert numbers(feed(sequencer, sent)) == list(range(100, 107))


def test_many_ssrcs_of_one_packet_each_are_counted_and_forgotten() -> None:
    sequencer = running(0, 3)
    assert feed(sequencer, (packet(n, ssrc=n) for n in range(1000))) == []
    assert (sequencer.ssrc, sequencer.strays, sequencer.waiting) == (A, 999, 1)


def test_what_is_held_is_bounded() -> None:
    sequencer = running(0, 3)
    feed(sequencer, (packet(n, ssrc=B) for n in range(1000)), every=0.0)
    assert sequencer.waiting == HELD
    assert sequencer.strays == 1000 - HELD


def test_reports_begin_anew_with_another_ssrc() -> None:
    sequencer = running(0, 3)
    feed(sequencer, [packet(13)])
    report = sequencer.report()
    assert report is not None
    assert (report.ssrc, report.lost, report.highest, report.fraction) == (A, 10, 13, 182)
    feed(sequencer, (packet(n, ssrc=B) for n in range(65534, 65540)))
    report = sequencer.report()
    assert report is not None
    assert (report.ssrc, report.lost, report.highest, report.fraction) == (B, 0, 65539, 0)
    assert Sequencer().report() is None


# -- anything ----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(-5, 5) | st.integers(0, 65535),
            st.sampled_from([0, 160, 320, -160, 48000, -480000]) | st.integers(0, 1 << 32),
            st.sampled_from([A, A, A, B]),
            st.sampled_from([0.0, 0.01, 0.02, 1.0]),
        ),
        max_size=60,
    )
)
@settings(max_examples=500, deadline=None)
def test_every_packet_is_counted_once_and_no_number_is_given_twice(
    moves: list[tuple[int, int, int, float]],
) -> None:
    sequencer = Sequencer()
    number, timestamp, now = 65530, (1 << 32) - 500, 0.0
    given: set[int] = set()
    for ahead, ticks, ssrc, wait in moves:
        number, timestamp, now = number + ahead, timestamp + ticks, now + wait
        for item in sequencer.take(packet(number, ssrc=ssrc, timestamp=timestamp), now):
            assert item.sequence not in given
            assert item.sequence & 0xFFFF == item.packet.sequence
            assert item.timestamp & 0xFFFFFFFF == item.packet.timestamp
            given.add(item.sequence)
    counted = sequencer.received + sequencer.duplicates + sequencer.strays + sequencer.waiting
    assert counted == len(moves)
    assert len(given) == sequencer.received
    assert sequencer.lost >= 0
