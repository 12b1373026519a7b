"""The jitter buffer: order, holes, clock, restarts, bounds.

The whole factorial of bad networks is in test_impairments.py.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio import g711
from bridge.audio.codecs import Codec, codec
from bridge.audio.jitter import MAX_HELD, JitterBuffer
from bridge.audio.playout import MAX_READY
from bridge.types import Frame
from tests.impairments import PAYLOADS, SENT, cut, numbered

Told = tuple[int, int, bool]  # start, samples, concealed


def pcmu() -> Codec:
    return codec("pcmu", 8000)


def told(frames: list[Frame]) -> list[Told]:
    return [(frame.start, len(frame.samples), frame.concealed) for frame in frames]


class Line:
    """A buffer, and the packets of 20 ms of a stream put into it on time unless said otherwise."""

    def __init__(self, buffer: JitterBuffer | None = None, seq: int = 0, timestamp: int = 0):
        self.buffer = buffer or JitterBuffer(pcmu())
        self.seq, self.timestamp = seq, timestamp
        self.frames: list[Frame] = []

    def put(self, index: int, at: float | None = None) -> list[Frame]:
        """Packet `index`, at second `at`; what came out by then."""
        now = index * 0.02 if at is None else at
        frames = self.wait(now)
        timestamp = self.timestamp + index * 160
        self.buffer.put(self.seq + index, timestamp, PAYLOADS[index], now)
        frames += self.buffer.pull(now)
        self.frames += frames
        return frames

    def wait(self, until: float) -> list[Frame]:
        """Serve the deadlines."""
        frames = []
        while (deadline := self.buffer.deadline()) is not None and deadline <= until:
            frames += self.buffer.pull(deadline)
        return frames

    def check(self, packets: int) -> None:
        """The clock never steps back, and what was not made up is what was sent there."""
        end = 0
        for frame in self.frames:
            assert frame.start >= end
            end = frame.start + len(frame.samples)
            if not frame.concealed:
                assert np.array_equal(frame.samples, SENT[frame.start : end])
        assert end == packets * 160


# -- order --------------------------------------------------------------------------------------


def test_packets_in_order_come_out_at_once_however_late() -> None:
    line = Line()
    for index, at in enumerate([0.0, 0.02, 0.3, 0.3, 0.301, 0.9]):
        assert told(line.put(index, at)) == [(index * 160, 160, False)]
        assert line.buffer.deadline() is None
    line.check(6)


def test_a_hole_makes_the_packets_behind_it_wait_until_it_is_filled() -> None:
    line = Line()
    line.put(0)
    assert line.put(2) == [] and line.put(3) == []
    assert line.buffer.deadline() == pytest.approx(0.04 + 0.1)
    assert told(line.put(1, 0.09)) == [(160, 480, False)]
    assert line.buffer.deadline() is None
    assert line.buffer.stats.lost == line.buffer.stats.concealed == 0
    assert line.buffer.stats.depth == pytest.approx(0.05)
    line.check(4)


def test_a_hole_is_given_up_at_its_deadline_and_concealed() -> None:
    line = Line()
    line.put(0)
    line.put(3)
    line.put(4)
    assert line.buffer.pull(0.15) == []
    frames = line.buffer.pull(0.16)
    assert told(frames) == [(160, 320, True), (480, 320, False)]
    assert [frame.packets for frame in frames] == [0, 2]
    assert line.buffer.deadline() is None
    stats = line.buffer.stats
    assert (stats.lost, stats.late, stats.concealed) == (2, 0, 320)
    line.frames += frames
    line.check(5)


def test_each_hole_has_a_deadline_of_its_own() -> None:
    line = Line()
    for index in (0, 2, 4, 6):
        line.put(index)
    for hole in (2, 4, 6):
        deadline = line.buffer.deadline()
        # The wait gets shorter as holes turn out to be losses.
        assert deadline is not None and hole * 0.02 + 0.09 <= deadline <= hole * 0.02 + 0.1
        line.frames += line.buffer.pull(deadline)
    assert line.buffer.deadline() is None
    line.check(7)


def test_a_packet_that_comes_too_late_is_counted_and_not_played() -> None:
    line = Line()
    for index in (0, 2):
        line.put(index)
    line.frames += line.wait(1.0)
    assert (line.buffer.stats.lost, line.buffer.stats.late) == (1, 0)
    assert line.put(1, 1.0) == []
    assert (line.buffer.stats.lost, line.buffer.stats.late) == (0, 1)
    assert line.put(1, 1.1) == []
    assert (line.buffer.stats.late, line.buffer.stats.duplicate) == (1, 1)
    line.check(3)


def test_duplicates_of_played_and_waiting_packets_are_counted() -> None:
    line = Line()
    for index in (0, 0, 2, 2, 1, 1, 2):
        line.put(index, 0.05)
    stats = line.buffer.stats
    assert (stats.received, stats.duplicate, stats.late, stats.lost) == (7, 4, 0, 0)
    line.check(3)


def test_what_is_older_than_the_first_packet_is_late() -> None:
    line = Line(seq=-5, timestamp=-800)
    for index in (5, 4, 3, 6):
        line.put(index, 0.1)
    assert told(line.frames) == [(0, 160, False), (160, 160, False)]
    assert (line.buffer.stats.late, line.buffer.stats.lost) == (2, 0)


@pytest.mark.parametrize("dropped", [(), (3, 4)])
def test_numbers_go_through_the_wraps(dropped: tuple[int, ...]) -> None:
    """0xFFFF and 0, dropped too, and the timestamp's wrap in the same packets."""
    line = Line(seq=0xFFFC, timestamp=(1 << 32) - 3 * 160)
    for index in range(20):
        if index not in dropped:
            line.put(index)
    stats = line.buffer.stats
    assert (stats.lost, stats.resyncs, stats.duplicate) == (len(dropped), 0, 0)
    assert stats.concealed == 160 * len(dropped)
    line.check(20)


# -- the wait -----------------------------------------------------------------------------------


def waits(line: Line, now: float) -> float:
    deadline = line.buffer.deadline()
    assert deadline is not None
    return deadline - now


def test_the_wait_shrinks_where_packets_are_lost_and_grows_where_they_are_late() -> None:
    line = Line(JitterBuffer(pcmu(), floor=0.03, cap=0.15))
    for index in range(0, 200, 2):  # every other packet is lost
        line.put(index)
    line.put(200)
    assert waits(line, 4.0) == pytest.approx(0.03)
    for index in range(202, 400, 2):  # every other packet is 123 ms behind its successor
        line.put(index)
        line.put(index - 7, index * 0.02 + 0.003)
    line.wait(9.0)
    line.put(450)
    assert waits(line, 9.0) == pytest.approx(0.13)


def test_packets_that_come_in_time_are_learned_from_as_well() -> None:
    line = Line()
    for index in range(0, 100, 2):
        line.put(index + 1, index * 0.02)
        line.put(index, index * 0.02 + 0.055 if index else 0.0)
    line.put(101, 2.1)
    assert waits(line, 2.1) == pytest.approx(0.06)


@pytest.mark.parametrize(("floor", "cap"), [(-0.01, 0.2), (0.3, 0.2)])
def test_a_floor_above_the_cap_is_refused(floor: float, cap: float) -> None:
    with pytest.raises(ValueError) as error:
        JitterBuffer(pcmu(), floor=floor, cap=cap)
    assert str(error.value) == f"a jitter buffer's floor is in 0 … {cap} s (its cap), not {floor}"


def test_without_patience_a_hole_is_given_up_at_once() -> None:
    line = Line(JitterBuffer(pcmu(), floor=0.0, cap=0.0))
    line.put(0)
    assert told(line.put(2)) == [(160, 160, True), (320, 160, False)]


# -- the clock ----------------------------------------------------------------------------------


def test_a_pause_is_a_jump_of_the_start() -> None:
    """No number is missing and the timestamps go on: the sender sends no silence."""
    buffer = JitterBuffer(pcmu())
    buffer.put(0, 0, PAYLOADS[0], 0.0)
    buffer.put(1, 40_000, PAYLOADS[1], 5.01, marker=True)
    buffer.put(2, 40_160, PAYLOADS[2], 5.02)
    assert told(buffer.pull(5.02)) == [(0, 160, False), (40_000, 320, False)]
    assert buffer.stats.resyncs == 0


def test_a_loss_before_a_pause_is_concealed_and_the_pause_is_not() -> None:
    buffer = JitterBuffer(pcmu())
    buffer.put(0, 0, PAYLOADS[0], 0.0)
    buffer.put(3, 8000, PAYLOADS[3], 1.0)
    assert told(buffer.pull(1.0) + buffer.pull(2.0)) == [
        (0, 160, False),
        (160, 320, True),
        (8000, 160, False),
    ]
    assert buffer.stats.concealed == 320


@pytest.mark.parametrize("seconds", [1, 60])
def test_a_timestamp_that_is_ahead_of_time_is_a_jump(seconds: int) -> None:
    line = Line()
    for index in range(10):
        line.put(index)
    line.timestamp += seconds * 8000
    for index in range(10, 20):
        line.put(index)
    assert line.buffer.stats.resyncs == 1
    line.check(20)


def test_a_jump_of_the_timestamps_is_no_jitter() -> None:
    buffer = JitterBuffer(pcmu())
    for seq in range(20):
        buffer.put(seq, seq * 160 + 480_000 * (seq > 9), PAYLOADS[seq], seq * 0.02)
    assert buffer.stats.jitter == pytest.approx(0.0, abs=1e-9)


def test_a_pause_right_after_a_spike_is_believed() -> None:
    """The earliest arrival of the last ten seconds counts, not that of a packet that was late."""
    line = Line()
    for index in range(504):
        line.put(index, max(index * 0.02, 10.25 if index > 500 else 0.0))
    line.buffer.put(504, 504 * 160 + 8000, PAYLOADS[504], 504 * 0.02 + 1.0)
    assert told(line.buffer.pull(12.0)) == [(504 * 160 + 8000, 160, False)]
    assert line.buffer.stats.resyncs == 0


def test_a_step_back_is_put_right_behind_and_the_next_pause_makes_up_for_it() -> None:
    buffer = JitterBuffer(pcmu())
    for seq, timestamp in enumerate([0, 160, 240, 400]):  # 10 ms back in the middle
        buffer.put(seq, timestamp, PAYLOADS[seq], 0.02 * seq)
    buffer.put(4, 4000, PAYLOADS[4], 0.5)
    assert told(buffer.pull(0.5)) == [(0, 640, False), (4000, 160, False)]
    assert buffer.stats.resyncs == 0


def test_timestamps_that_stand_still_lose_no_audio() -> None:
    buffer = JitterBuffer(pcmu())
    for seq in range(50):
        buffer.put(seq, 0, PAYLOADS[seq], 0.02 * seq)
    (frame,) = buffer.pull(1.0)
    assert np.array_equal(frame.samples, SENT[: 50 * 160])
    assert buffer.stats.resyncs == 8  # every sixth packet is more than 100 ms behind


SEQ_JUMPS = [0, 1, -1, 50, -50, 3000, -3000, 30_000, -30_000]
TIMESTAMP_JUMPS = [0, 8000, -8000, 480_000, -480_000]


@pytest.mark.parametrize("marker", [False, True])
@pytest.mark.parametrize(("seq", "timestamp"), [*product(SEQ_JUMPS, TIMESTAMP_JUMPS)])
def test_a_sender_that_jumps_is_followed(seq: int, timestamp: int, marker: bool) -> None:
    """100 ms of audio may be wrong, and a step forward that leaves a hole waits as one."""
    line = Line(seq=100_000, timestamp=1_000_000)
    for index in range(200):
        now = index * 0.02
        if index == 100:
            line.seq += seq
            line.timestamp += timestamp
        line.frames += line.wait(now)
        line.buffer.put(
            line.seq + index,
            line.timestamp + index * 160,
            PAYLOADS[index],
            now,
            marker=marker and index == 100,
        )
        line.frames += line.buffer.pull(now)
    line.frames += line.buffer.flush()
    end, heard = 0, []
    for frame in line.frames:
        assert frame.start >= end
        end = frame.start + len(frame.samples)
        if not frame.concealed:
            heard += frame.samples.tolist()
    assert abs(end - 200 * 160) <= 800
    sent = SENT[: 200 * 160].tolist()
    missing = len(sent) - len(heard)
    assert 0 <= missing <= 800
    cut_at = 100 * 160  # whatever is missing was sent right after the jump
    assert heard == sent[:cut_at] + sent[cut_at + missing :]
    assert line.buffer.deadline() is None


def test_one_wild_packet_moves_nothing() -> None:
    line = Line(seq=100_000)
    for index in range(50):
        line.put(index)
        if index == 20:
            line.buffer.put(140_000, 77, PAYLOADS[0], 0.41)
            line.buffer.put(60_000, 10**9, PAYLOADS[0], 0.41)
    assert line.buffer.stats.dropped == 2
    line.check(50)


def test_wild_packets_in_a_row_are_no_stream_while_the_stream_goes_on() -> None:
    line = Line(seq=100_000)
    for wild, index in enumerate(i for i in range(20) if i != 10):
        line.put(index)  # from 11 on they are held
        line.buffer.put(140_000 + wild, 77, PAYLOADS[0], index * 0.02)
    line.put(10, 0.3)
    assert line.buffer.stats.dropped == 19
    line.check(20)


def test_doubled_bursts_are_not_a_sender_that_rewinds() -> None:
    """A switch that sends the last 20 packets again does so at once; a sender takes its time."""
    line = Line()
    for index in range(40):
        line.put(index)
    for index in range(20, 40):
        line.put(index, 0.8 + index * 1e-5)
    assert line.buffer.stats.duplicate == 20
    for index in range(40, 60):
        line.put(index)
    line.check(60)


# -- comfort noise, events, packet lengths ------------------------------------------------------


def test_comfort_noise_lets_the_clock_run_on_in_silence() -> None:
    buffer = JitterBuffer(pcmu())
    buffer.put(0, 0, PAYLOADS[0], 0.0)
    buffer.comfort(1, 160, 0.02)
    buffer.comfort(2, 1760, 0.22)
    assert told(buffer.pull(0.22)) == [(0, 160, False), (160, 0, False), (1760, 0, False)]
    buffer.put(
        5, 8000, PAYLOADS[5], 1.0
    )  # two more comfort packets were lost: silence all the same
    frames = buffer.pull(2.0)
    assert told(frames) == [(1760, 320, True), (8000, 160, False)]
    assert not frames[0].samples.any()


def test_packets_without_audio_keep_their_numbers() -> None:
    """Telephone events: the same timestamp again and again, and no audio meanwhile."""
    buffer = JitterBuffer(pcmu())
    buffer.put(0, 0, PAYLOADS[0], 0.0)
    for seq in range(1, 8):
        buffer.skip(seq, 160, 0.02 * seq)
    buffer.put(8, 8 * 160, PAYLOADS[8], 0.16)
    assert told(buffer.pull(0.17)) == [(0, 160, False), (8 * 160, 160, False)]
    buffer.put(9, 9 * 160, b"", 0.18)  # only padding
    buffer.put(10, 9 * 160, PAYLOADS[9], 0.2)
    assert told(buffer.pull(0.2)) == [(9 * 160, 160, False)]
    assert buffer.stats.lost == buffer.stats.concealed == 0
    assert buffer.stats.received == 11


def test_a_lost_event_packet_is_no_lost_audio() -> None:
    buffer = JitterBuffer(pcmu())
    buffer.put(0, 0, PAYLOADS[0], 0.0)
    buffer.skip(2, 0, 0.01)  # number 1 was another of them
    frames = buffer.pull(0.2)
    buffer.put(3, 160, PAYLOADS[1], 0.21)
    buffer.put(4, 8000, PAYLOADS[4], 1.0)
    frames += buffer.pull(1.0)
    assert told(frames) == [(0, 160, False), (160, 160, False), (8000, 160, False)]
    assert (buffer.stats.lost, buffer.stats.concealed) == (1, 0)


@pytest.mark.parametrize("ptime", [10, 20, 30, 40, 60])
def test_every_packet_length_with_losses(ptime: int) -> None:
    """M7."""
    size = 8 * ptime
    payloads = cut(numbered(100 * size), size)
    sent = g711.decode_ulaw(b"".join(payloads))
    buffer = JitterBuffer(pcmu())
    frames = []
    for seq, payload in enumerate(payloads):
        now = seq * ptime / 1000
        if seq % 10 != 5:
            buffer.put(seq, seq * size, payload, now)
        frames += buffer.pull(now)
    frames += buffer.flush()
    assert sum(len(frame.samples) for frame in frames) == len(sent)
    assert buffer.stats.concealed == 10 * size == 10 * size * buffer.stats.lost // 10
    for frame in frames:
        if not frame.concealed:
            assert np.array_equal(
                frame.samples, sent[frame.start : frame.start + len(frame.samples)]
            )


def test_the_packet_length_may_change_and_loss_covers_the_longer() -> None:
    stream = numbered(9 * 480)
    sizes = [160, 160, 80, 240, 240, 80, 480, 80]
    buffer, at, frames = JitterBuffer(pcmu()), 0, []
    for seq, size in enumerate(sizes):
        if seq not in (3, 6):
            buffer.put(seq, at, stream[at : at + size], at / 8000)
        at += size
        frames += buffer.pull(at / 8000)
    frames += buffer.flush()
    # The last loss is 60 ms between packets of 10: one of 10 is concealed, the rest is silent.
    assert told(frames) == [
        (0, 160, False),
        (160, 160, False),
        (320, 80, False),
        (400, 240, True),
        (640, 320, False),
        (960, 80, True),
        (1440, 80, False),
    ]


def test_a_wideband_codec_with_a_narrow_clock_has_places_at_its_rate() -> None:
    buffer = JitterBuffer(codec("g722", 16000))
    for seq in (0, 1, 3):
        buffer.put(seq, 1000 + seq * 160, bytes(160), seq * 0.02)
    frames = buffer.pull(0.02) + buffer.pull(1.0)
    assert told(frames) == [(0, 640, False), (640, 320, True), (960, 320, False)]
    assert {frame.rate for frame in frames} == {16000}


def test_half_a_sample_at_the_end_of_a_packet_is_left_out() -> None:
    buffer = JitterBuffer(codec("l16", 16000))
    for seq in range(3):
        buffer.put(seq, seq * 2, bytes([0, seq, 1, seq, 9]), 0.0)
    (frame,) = buffer.pull(0.0)
    assert frame.samples.tolist() == [0, 256, 1, 257, 2, 258]


# -- concealment --------------------------------------------------------------------------------


def tone(packets: int) -> list[bytes]:
    wave = 8000 * np.sin(np.arange(packets * 160) * 2 * np.pi * 150 / 8000)
    return cut(g711.encode_ulaw(wave.astype(np.int16)))


def test_a_hole_is_filled_from_both_sides_and_what_came_is_untouched() -> None:
    payloads = tone(20)
    sent = g711.decode_ulaw(b"".join(payloads)).astype(int)
    buffer = JitterBuffer(pcmu())
    frames = []
    for seq, payload in enumerate(payloads):
        if seq not in (7, 8, 10):
            buffer.put(seq, seq * 160, payload, seq * 0.02)
            frames += buffer.pull(seq * 0.02)
    frames += buffer.flush()
    concealed = [frame for frame in frames if frame.concealed]
    assert told(concealed) == [(7 * 160, 320, True), (10 * 160, 160, True)]
    for frame in frames:
        wanted = sent[frame.start : frame.start + len(frame.samples)]
        if frame.concealed:
            assert np.abs(frame.samples - wanted).max() < 8000 * 0.35
        else:
            assert np.array_equal(frame.samples, wanted)


def test_without_concealment_a_hole_is_a_jump() -> None:
    buffer = JitterBuffer(pcmu(), conceal=False)
    for seq in (0, 1, 4):
        buffer.put(seq, seq * 160, PAYLOADS[seq], seq * 0.02)
    frames = buffer.pull(0.08) + buffer.pull(1.0)
    assert told(frames) == [(0, 320, False), (640, 160, False)]
    assert (buffer.stats.lost, buffer.stats.concealed) == (2, 0)


def test_an_outage_is_silence_in_frames_of_a_second() -> None:
    """30 s of packets lost: the sender's clock went on, and so does ours."""
    line = Line()
    for index in range(10):
        line.put(index)
    line.buffer.put(1510, 1510 * 160, PAYLOADS[10], 30.2)
    frames = line.buffer.flush()
    assert [len(frame.samples) for frame in frames[:-1]] == [8000] * 30
    assert told(frames[-1:]) == [(1510 * 160, 160, False)]
    assert frames[0].samples[:400].any() and not frames[0].samples[480:].any()
    assert line.buffer.stats.concealed == 1500 * 160


# -- restarts -----------------------------------------------------------------------------------


def test_a_restart_gives_out_what_is_held_and_goes_on_behind_it() -> None:
    buffer = JitterBuffer(pcmu())
    for seq in (0, 2):
        buffer.put(seq, seq * 160, PAYLOADS[seq], seq * 0.02)
    buffer.restart()
    buffer.put(40_000, 9, PAYLOADS[3], 0.06)
    assert buffer.deadline() is None
    assert told(buffer.pull(0.06)) == [
        (0, 160, False),
        (160, 160, True),
        (320, 160, False),
        (480, 160, False),
    ]
    assert buffer.stats.resyncs == 1


def test_a_restart_after_a_silence_is_placed_by_its_arrival() -> None:
    line = Line()
    line.put(0)
    line.buffer.restart()
    line.buffer.put(500, 500, PAYLOADS[1], 3.0)
    assert told(line.buffer.pull(3.0)) == [(24_000, 160, False)]


def test_a_restart_after_a_drift_is_placed_right_behind() -> None:
    """The sender was 0.6 s slow in five minutes, and that is not a silence."""
    line = Line()
    put = line.buffer.put
    for index in range(15_000):
        put(index, index * 160, PAYLOADS[0], index * 0.02 * 1.002)
        line.buffer.pull(0.0)
    line.buffer.restart()
    put(7, 7, PAYLOADS[0], 15_000 * 0.02 * 1.002)
    assert told(line.buffer.pull(400.0)) == [(15_000 * 160, 160, False)]


def test_the_lost_packets_of_another_stream_do_not_come_late() -> None:
    line = Line()
    for index in (0, 2):
        line.put(index)
    line.buffer.restart()
    for seq in (100, 1):
        line.buffer.put(seq, 0, PAYLOADS[3], 0.06)
    assert (line.buffer.stats.lost, line.buffer.stats.late) == (1, 1)


def test_another_codec_goes_on_at_its_own_rate() -> None:
    line = Line()
    for index in range(5):
        line.put(index)
    line.buffer.restart(codec("l16", 16000))
    line.buffer.put(5, 70_000, bytes(640), 0.1)
    line.buffer.put(6, 70_320 + 16_000, bytes(640), 1.12)
    frames = line.buffer.pull(1.12)
    assert [(*place, frame.rate) for place, frame in zip(told(frames), frames, strict=True)] == [
        (1600, 320, False, 16000),
        (17_920, 320, False, 16000),
    ]


def test_a_restart_makes_the_decoder_new() -> None:
    """But only for what follows: packets before it are decoded as they were sent."""
    payload = bytes(range(160))
    buffer = JitterBuffer(codec("g722", 16000))
    for seq in range(2):
        buffer.put(seq, seq * 160, payload, 0.0)
    buffer.restart()
    buffer.put(9, 0, payload, 0.0)
    both, fresh = buffer.pull(0.0)
    assert np.array_equal(both.samples[:320], fresh.samples)
    assert not np.array_equal(both.samples[320:], fresh.samples)


# -- bounds -------------------------------------------------------------------------------------


def test_too_many_packets_behind_a_hole_give_it_up_early() -> None:
    buffer = JitterBuffer(pcmu())
    buffer.put(0, 0, PAYLOADS[0], 0.0)
    for seq in range(2, 2 + MAX_HELD):
        buffer.put(seq, seq * 160, PAYLOADS[seq], 0.0)
    assert buffer.deadline() is not None
    buffer.put(2 + MAX_HELD, (2 + MAX_HELD) * 160, PAYLOADS[0], 0.0)
    assert buffer.deadline() is None
    frames = buffer.pull(0.0)
    assert sum(frame.packets for frame in frames) == MAX_HELD + 2
    assert (buffer.stats.lost, buffer.stats.dropped) == (1, 0)


@pytest.mark.parametrize("step", [1, 2])
def test_what_nobody_fetches_is_dropped_and_counted(step: int) -> None:
    """A run without holes, and one with a hole before every packet."""
    buffer = JitterBuffer(pcmu(), floor=0.0, cap=0.0)
    count = 3 * MAX_READY
    for seq in range(0, step * count, step):
        buffer.put(seq, seq * 160, PAYLOADS[0], seq * 0.02)
    frames = buffer.pull(1e9)
    played = sum(frame.packets for frame in frames)
    assert 0 < played <= MAX_READY
    assert buffer.stats.dropped == count - played
    assert frames[-1].start + len(frames[-1].samples) == (step * (count - 1) + 1) * 160


# -- anything -----------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "marked", "comfort", "skip", "restart"]),
        st.integers(-5, 30) | st.integers(-70_000, 70_000),
        st.integers(-400, 4000) | st.integers(-(2**33), 2**33),
        st.integers(0, 500),
        st.floats(-1.0, 100.0),
    ),
    max_size=40,
)


@settings(max_examples=500, deadline=None)
@given(EVENTS, st.booleans())
def test_nothing_that_comes_breaks_it(
    events: list[tuple[str, int, int, int, float]], conceal: bool
) -> None:
    buffer = JitterBuffer(pcmu(), conceal=conceal)
    frames, put = [], 0
    for what, seq, timestamp, size, now in events:
        match what:
            case "put" | "marked":
                buffer.put(seq, timestamp, bytes(size), now, marker=what == "marked")
                put += size
            case "comfort":
                buffer.comfort(seq, timestamp, now)
            case "skip":
                buffer.skip(seq, timestamp, now)
            case _:
                buffer.restart()
        frames += buffer.pull(now)
        if (deadline := buffer.deadline()) is not None and size % 3:
            frames += buffer.pull(deadline)
    frames += buffer.flush()
    assert buffer.deadline() is None and buffer.flush() == []
    end = heard = concealed = 0
    for frame in frames:
        assert frame.start >= end
        end = frame.start + len(frame.samples)
        if frame.concealed:
            concealed += len(frame.samples)
        else:
            heard += len(frame.samples)
    assert heard <= put
    assert concealed == buffer.stats.concealed
    assert min(buffer.stats.lost, buffer.stats.late, buffer.stats.dropped) >= 0
    assert buffer.stats.received == sum(what != "restart" for what, *_ in events)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.0, 2.0)), min_size=1, max_size=80))
def test_any_order_and_any_delay_give_each_packet_once_in_its_place(
    arrivals: list[tuple[int, float]],
) -> None:
    """Whatever the network does: a packet is played, or late, or a duplicate."""
    line = Line()
    line.put(0)
    order = sorted(arrivals, key=lambda arrival: arrival[0] * 0.02 + arrival[1])
    for index, delay in order:
        line.put(index, index * 0.02 + delay)
    line.frames += line.buffer.flush()
    newest = max(index for index, _ in arrivals)
    line.check(newest + 1)
    stats = line.buffer.stats
    assert stats.concealed == 160 * (stats.lost + stats.late)
    unique = {0, *(index for index, _ in arrivals)}
    assert stats.lost == newest + 1 - len(unique)
    assert stats.duplicate == 1 + len(arrivals) - len(unique)
