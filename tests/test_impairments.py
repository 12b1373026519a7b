"""The jitter buffer on bad networks: a whole factorial of loss, jitter, bursts and order.

Every sample of the stream tells its own index, so "each exactly once, in order, in its place" is
an equality of arrays.
"""

from __future__ import annotations

from itertools import accumulate, product

import numpy as np
import pytest

from bridge.audio.codecs import codec
from bridge.audio.jitter import JitterBuffer, JitterStats
from bridge.types import Samples
from tests.impairments import COUNT, PAYLOADS, SENT, TICKS, Bools, Network, play

PTIME = 0.02
CAP = 0.2

LOSS = [0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3]
BURST = [1.0, 3.0, 8.0]
SPIKE = ((11.0, 0.5),)
JITTER = [(0.0, ()), (0.02, ()), (0.06, ()), (0.12, ()), (0.2, ()), (0.2, SPIKE)]
REORDER = DUPLICATE = [0.0, 0.01, 0.05]


def heard(
    buffer: JitterBuffer, arrivals: list[tuple[float, int]], payloads: list[bytes] = PAYLOADS
) -> tuple[Samples, Bools]:
    """What the buffer gave out, and for every sample whether it was concealed; without a gap."""
    frames = list(play(buffer, payloads, arrivals))
    at = 0
    for frame in frames:
        assert frame.start == at, "a gap, or a step back"
        at += len(frame.samples)
    flags = np.repeat([f.concealed for f in frames], [len(f.samples) for f in frames])
    return np.concatenate([frame.samples for frame in frames]), flags


def check(arrivals: list[tuple[float, int]]) -> JitterStats:
    """M1's criteria, to the sample."""
    buffer = JitterBuffer(codec("pcmu", 8000), cap=CAP)
    samples, concealed = heard(buffer, arrivals)
    stats = buffer.stats
    indices = [index for _, index in arrivals]
    first, last = indices[0], max(indices)
    # The output is as long as what was sent, and right wherever it is not made up.
    assert len(samples) == (last - first + 1) * TICKS
    sent = SENT[first * TICKS : (last + 1) * TICKS]
    assert np.array_equal(samples[~concealed], sent[~concealed])
    # Whole packets are concealed, and those that are not are packets that came.
    packets = concealed.reshape(-1, TICKS)
    assert (packets.all(axis=1) == packets.any(axis=1)).all()
    played = set((first + np.flatnonzero(~packets[:, 0])).tolist())
    came = {index for index in indices if index >= first}
    assert played <= came
    # Every packet is accounted for, once.
    older = sum(index < first for index in indices)  # than the first: nobody waited for them
    late = stats.late - older
    assert len(came) - len(played) == late
    assert stats.concealed == concealed.sum() == (stats.lost + late) * TICKS
    assert stats.received == len(arrivals)
    assert stats.duplicate == len(arrivals) - older - len(came)
    assert (stats.resyncs, stats.dropped) == (0, 0)
    assert stats.depth <= CAP + 1e-9
    return stats


@pytest.mark.parametrize("loss", LOSS)
def test_every_combination_of_impairments(loss: float) -> None:
    """All 1,026 of it; without loss there are no patterns of loss."""
    cases = product(BURST if loss else BURST[:1], JITTER, REORDER, DUPLICATE)
    for seed, (burst, (jitter, spike), reorder, duplicate) in enumerate(cases):
        network = Network(loss, burst, jitter, reorder, duplicate, spike)
        arrivals = network.deliver(COUNT, PTIME, seed)
        try:
            check(arrivals)
        except Exception as error:
            error.add_note(f"{network}, seed {seed}")
            raise


@pytest.mark.parametrize("seconds", [0.1, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_a_freeze_is_caught_up_in_one_burst(seconds: float, loss: float) -> None:
    """The burst may have holes and swaps in it; nothing is thrown away."""
    network = Network(loss=loss, jitter=0.02, freezes=((4.0, seconds),))
    check(network.deliver(COUNT, PTIME, 7))


@pytest.mark.parametrize("depth", [0.02, 0.06, 0.1])
@pytest.mark.parametrize("jitter", [0.06, 0.12, 0.2])
def test_a_classic_buffer_of_the_same_depth_loses_more(jitter: float, depth: float) -> None:
    """One that plays packet i at `i * PTIME + depth` after the fastest that there may be."""
    network = Network(jitter=jitter, loss=0.03)
    arrivals = network.deliver(COUNT, PTIME, 3)
    buffer = JitterBuffer(codec("pcmu", 8000), floor=depth, cap=depth)
    heard(buffer, arrivals)
    first = arrivals[0][1]
    late = sum(
        now > network.delay + index * PTIME + depth for now, index in arrivals if index > first
    )
    older = sum(index < first for _, index in arrivals)
    assert buffer.stats.late - older <= late
    if jitter > depth + PTIME:
        assert buffer.stats.late - older < 0.7 * late


def test_a_burst_is_one_frame() -> None:
    """What comes together is decoded in one call."""
    buffer = JitterBuffer(codec("pcmu", 8000))
    for index, payload in enumerate(PAYLOADS):
        buffer.put(index, index * TICKS, payload, 30.0)
    (frame,) = buffer.pull(30.0)
    assert (frame.start, frame.packets, frame.concealed) == (0, COUNT, False)
    assert np.array_equal(frame.samples, SENT)
    assert buffer.deadline() is None


@pytest.mark.parametrize(
    ("ppm", "minutes"),
    [(-50, 60), (50, 60), (-100, 60), (100, 60), (-200, 60), (200, 60), (-25_000, 5), (25_000, 5)],
)
def test_the_clock_is_the_senders(ppm: int, minutes: int) -> None:
    """Talk of 7 s and pauses of 3; every packet is out at once, in its place to the sample."""
    count = minutes * 60 * 50
    buffer = JitterBuffer(codec("pcmu", 8000))
    put, pull, payload = buffer.put, buffer.pull, PAYLOADS[0]
    seq = 0
    for now, index in Network(jitter=0.015, drift=ppm).deliver(count, PTIME, abs(ppm)):
        if index % 500 < 350:
            put(seq, index * TICKS, payload, now)
            seq += 1
            (frame,) = pull(now)
            assert frame.start == index * TICKS
    assert buffer.stats == JitterStats(received=seq, jitter=buffer.stats.jitter)
    assert 0.003 < buffer.stats.jitter < 0.007  # 5 ms: a third of the spread, as A.8 has it


# -- the network itself -------------------------------------------------------------------------


def test_losses_come_alone_or_in_bursts() -> None:
    for burst in (1.0, 3.0, 8.0):
        lost = Network(loss=0.1, burst=burst).losses(200_000, np.random.default_rng(1))
        assert abs(lost.mean() - 0.1) < 0.01
        edges = np.flatnonzero(np.diff(np.concatenate([[0], lost.astype(int), [0]])))
        expected = burst if burst > 1.0 else 1.0 / 0.9
        assert abs((edges[1::2] - edges[::2]).mean() / expected - 1.0) < 0.05


def test_packets_are_swapped_doubled_and_delayed_by_their_shares() -> None:
    count = 50_000
    doubled = Network(duplicate=0.05).deliver(count, PTIME, 1)
    assert abs(len(doubled) / count - 1.05) < 0.005
    swapped = [index for _, index in Network(reorder=0.05).deliver(count, PTIME, 1)]
    assert sorted(swapped) == list(range(count))
    late = sum(
        index < newest for index, newest in zip(swapped, accumulate(swapped, max), strict=True)
    )
    assert abs(late / count - 0.05) < 0.005
    ages = [
        now - index * PTIME - 0.03 for now, index in Network(jitter=0.1).deliver(count, PTIME, 1)
    ]
    assert min(ages) >= 0.0 and max(ages) <= 0.1 and abs(np.mean(ages) - 0.05) < 0.002


def test_nothing_comes_while_it_is_frozen_and_a_fast_sender_is_done_early() -> None:
    arrivals = Network(freezes=((2.0, 3.0),)).deliver(500, PTIME, 1)
    assert not [now for now, _ in arrivals if 2.0 <= now < 5.0]
    assert [index for _, index in arrivals] == list(range(500))
    (last, _) = Network(drift=25_000, delay=0.0).deliver(501, PTIME, 1)[-1]
    assert last == pytest.approx(10.0 / 1.025)


def test_a_seed_is_a_network() -> None:
    network = Network(0.1, 3.0, 0.06, 0.05, 0.05)
    assert network.deliver(1000, PTIME, 5) == network.deliver(1000, PTIME, 5)
    assert network.deliver(1000, PTIME, 5) != network.deliver(1000, PTIME, 6)
