"""Resampling held to numbers (ripple, images, delay), to soxr, and to every cutting."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.resample import Bank, Resampler, make_resampler
from bridge.interfaces import Upsampling
from bridge.types import Block, Samples

FILTERED = [(8000, 24000, 1920), (8000, 16000, 1280), (16000, 24000, 1920), (12000, 24000, 1920)]
EVERY: list[tuple[int, int, int, Upsampling]] = [
    *((*way, "filter") for way in FILTERED),
    (8000, 24000, 1920, "repeat"),
    (24000, 24000, 1920, "filter"),
    (48000, 24000, 1920, "filter"),
    (44100, 16000, 1280, "filter"),
]


def noise(count: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).integers(-20000, 20000, count).astype(np.int16)


def whole(resampler: Resampler, samples: Samples) -> Block:
    """Everything that comes out, flushed."""
    return np.concatenate([*resampler.feed(samples), *resampler.flush()])


def tone(frequency: float, rate: int, seconds: float = 1.2) -> Samples:
    time = np.arange(round(seconds * rate)) / rate
    samples: Samples = np.rint(16384 * np.sin(2 * np.pi * frequency * time)).astype(np.int16)
    return samples


def band(below: float, rate: int) -> Samples:
    """Two seconds of noise that ends at `below` Hz."""
    bins = np.fft.rfft(np.random.default_rng(5).standard_normal(2 * rate))  # of half a Hz
    bins[round(2 * below) :] = 0
    samples: Samples = np.rint(4000 * np.fft.irfft(bins)).astype(np.int16)
    return samples


def spectrum(out: Block, rate: int) -> npt.NDArray[np.float64]:
    """Amplitudes of whole Hz, from the second after the first 0.1 s."""
    second = out[rate // 10 : rate // 10 + rate]
    return np.abs(np.fft.rfft(second)) / (rate / 2)


@pytest.mark.parametrize(("rate_in", "rate_out", "block"), FILTERED)
def test_passband_is_flat_and_images_are_gone(rate_in: int, rate_out: int, block: int) -> None:
    wide = rate_in // 8000  # telephone band, or wideband
    for frequency in (*range(300, 3400, 310), 3400):
        frequency *= wide
        amplitudes = spectrum(
            whole(make_resampler(rate_in, rate_out, block), tone(frequency, rate_in)), rate_out
        )
        assert abs(20 * np.log10(amplitudes[frequency] / 0.5)) < 0.05  # dB; 0.1 is asked for
        images = amplitudes[round(0.575 * rate_in) :]
        assert 20 * np.log10(images.max() / 0.5) < -80, frequency


@pytest.mark.parametrize(("rate_in", "rate_out", "block"), FILTERED)
def test_delay_is_what_it_says(rate_in: int, rate_out: int, block: int) -> None:
    impulse = np.zeros(2 * rate_in, np.int16)
    impulse[1200] = 16000
    resampler = make_resampler(rate_in, rate_out, block)
    peak = int(np.argmax(whole(resampler, impulse)))
    assert (peak - 1200 * rate_out / rate_in) / rate_out == pytest.approx(resampler.delay)
    assert 0 < resampler.delay < 0.0025  # 5 ms is asked for


@pytest.mark.parametrize(("rate_in", "rate_out", "block"), FILTERED)
def test_filter_agrees_with_soxr(rate_in: int, rate_out: int, block: int) -> None:
    """Noise below 0.4 of the rate, where both have a passband: ripple is the difference."""
    samples = band(0.4 * rate_in, rate_in)
    wanted = soxr.resample(samples.astype(np.float64) / 32768, rate_in, rate_out, quality="VHQ")
    resampler = make_resampler(rate_in, rate_out, block)
    late = round(resampler.delay * rate_out)
    inner = slice(rate_out // 4, -rate_out // 4)
    got = whole(resampler, samples)[late:][: len(wanted) - late][inner]
    error = got - wanted[: len(wanted) - late][inner]
    assert 10 * np.log10(np.mean(wanted[inner] ** 2) / np.mean(error**2)) > 55


@pytest.mark.parametrize(("rate_in", "rate_out"), [(48000, 24000), (44100, 24000), (12000, 16000)])
def test_other_rates_are_soxrs_in_place(rate_in: int, rate_out: int) -> None:
    samples = band(0.44 * min(rate_in, rate_out), rate_in)
    wanted = soxr.resample(samples / 32768, rate_in, rate_out, quality="VHQ")
    resampler = make_resampler(rate_in, rate_out, rate_out * 2 // 25)
    got = whole(resampler, samples)[: len(wanted)]
    assert resampler.delay == 0
    assert len(got) == len(wanted)
    inner = slice(rate_out // 10, -rate_out // 10)
    error = got[inner] - wanted[inner]
    assert 10 * np.log10(np.mean(wanted[inner] ** 2) / np.mean(error**2)) > 60


def test_soxr_holds_back_100_ms_beyond_a_block() -> None:
    resampler = make_resampler(48000, 24000, 1920)
    blocks = 0
    for frame in range(1, 101):
        blocks += len(resampler.feed(noise(960)))
        assert frame * 0.02 - blocks * 0.08 < 0.08 + 0.1


@pytest.mark.parametrize(("rate_in", "rate_out", "block", "upsampling"), EVERY)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_every_cutting_gives_the_same_bits(
    rate_in: int, rate_out: int, block: int, upsampling: Upsampling, data: st.DataObject
) -> None:
    """10 ms to 1 s and anything odd."""
    samples = noise(rate_in * 5 // 4 + 77)
    sizes = st.sampled_from([1, 7, rate_in // 100, rate_in // 50, rate_in * 2 // 25, rate_in])
    cuts = data.draw(st.lists(sizes | st.integers(0, rate_in), max_size=30))
    edges = np.minimum(np.cumsum([0, *cuts]), len(samples))
    resampler = make_resampler(rate_in, rate_out, block, upsampling)
    blocks = []
    for start, end in pairwise([*edges, len(samples)]):
        blocks += resampler.feed(samples[start:end])
    blocks += resampler.flush()
    assert all(len(one) == block and one.dtype == np.float32 for one in blocks)
    expected = whole(make_resampler(rate_in, rate_out, block, upsampling), samples)
    assert np.array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize(("rate_in", "rate_out", "block", "upsampling"), EVERY)
def test_full_scale_stays_in_range(
    rate_in: int, rate_out: int, block: int, upsampling: Upsampling
) -> None:
    """Steps between the extremes, at several periods: a filter overshoots them."""
    for period in (2, 5, 16, 101):
        high = np.arange(rate_in // 2) // period % 2
        samples = np.where(high, 32767, -32768).astype(np.int16)
        out = whole(make_resampler(rate_in, rate_out, block, upsampling), samples)
        assert out.min() >= -1
        assert out.max() < 1
        assert np.abs((out * 32768).astype(np.int16).astype(int) - out * 32768).max() < 1


@pytest.mark.parametrize("way", FILTERED[:2])
def test_the_extremes_reach_the_edges(way: tuple[int, int, int]) -> None:
    samples = np.repeat(np.array([-32768, 32767], np.int16), 400)
    out = whole(make_resampler(*way), samples)
    assert out.min() == -1
    assert out.max() == np.nextafter(np.float32(1), np.float32(0))


def test_equal_rates_only_scale() -> None:
    samples = noise(3000)
    samples[:2] = -32768, 32767
    out = whole(make_resampler(8000, 8000, 640), samples)
    assert np.array_equal(out[:3000] * 32768, samples)
    assert len(out) == 5 * 640
    assert not out[3000:].any()


@pytest.mark.parametrize("up", [2, 3])
def test_repeat_repeats(up: int) -> None:
    samples = noise(1280)
    out = whole(make_resampler(8000, 8000 * up, 640 * up, "repeat"), samples)
    assert np.array_equal(out * 32768, samples.repeat(up))


def test_repeat_is_only_for_whole_ratios() -> None:
    repeated = whole(make_resampler(16000, 24000, 1920, "repeat"), noise(1280))
    filtered = whole(make_resampler(16000, 24000, 1920, "filter"), noise(1280))
    assert np.array_equal(repeated, filtered)


@pytest.mark.parametrize(("rate_in", "rate_out", "block", "upsampling"), EVERY)
def test_blocks_are_the_callers_to_keep(
    rate_in: int, rate_out: int, block: int, upsampling: Upsampling
) -> None:
    resampler = make_resampler(rate_in, rate_out, block, upsampling)
    samples = noise(rate_in * 2 // 25)
    kept = [one for _ in range(6) for one in resampler.feed(samples)]
    copies = [one.copy() for one in kept]
    assert len(kept) >= 4
    for one in kept:
        assert not np.shares_memory(one, samples)
    samples[:] = 0
    resampler.feed(samples)
    assert all(np.array_equal(one, copy) for one, copy in zip(kept, copies, strict=True))
    assert not any(np.shares_memory(a, b) for a, b in pairwise(kept))


@pytest.mark.parametrize("way", [*EVERY])
def test_legs_do_not_hear_each_other(way: tuple[int, int, int, Upsampling]) -> None:
    length = way[0] * 2 // 25
    one, other = make_resampler(*way), make_resampler(*way)
    blocks = []
    for at in range(5):
        blocks += one.feed(noise(length, seed=at))
        other.feed(noise(length, seed=99))
    alone = make_resampler(*way)
    expected = alone.feed(np.concatenate([noise(length, seed=at) for at in range(5)]))
    assert np.array_equal(np.concatenate(blocks), np.concatenate(expected))


@pytest.mark.parametrize(("rate_in", "rate_out", "block", "upsampling"), EVERY)
def test_flush_gives_what_is_left_once(
    rate_in: int, rate_out: int, block: int, upsampling: Upsampling
) -> None:
    assert make_resampler(rate_in, rate_out, block, upsampling).flush() == []
    resampler = make_resampler(rate_in, rate_out, block, upsampling)
    assert resampler.feed(noise(rate_in // 50)) == []
    (last,) = resampler.flush()
    assert len(last) == block
    assert last[: block // 4].any()
    assert not last[block // 4 + 100 :].any(), "20 ms, the filter's end, then zeros"


def test_a_leg_that_ends_with_a_block_gets_no_further_one() -> None:
    resampler = make_resampler(8000, 24000, 1920)
    assert len(resampler.feed(noise(1280))) == 2
    assert resampler.flush() == []


@pytest.mark.parametrize("upsampling", ["filter", "repeat"])
def test_a_leg_is_small(upsampling: Upsampling) -> None:
    bank = Bank(64)
    bank.open(8000, 24000, 1920, upsampling, forget).feed(noise(700))  # the shared shelf
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        feeds = [bank.open(8000, 24000, 1920, upsampling, forget) for _ in range(20)]
        for feed in feeds:
            feed.feed(noise(700))
        used = (tracemalloc.get_traced_memory()[0] - before) / len(feeds)
    finally:
        tracemalloc.stop()
    assert used < 6_000


def forget(block: Block) -> None:
    """A push() into nowhere."""


@given(st.integers(1, 12), st.integers(0, 2**32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_legs_in_a_bank_get_what_they_would_alone(rows: int, seed: int, ends: bool) -> None:
    """Whatever the company, the cuts and the turns: to the last bit, in order, nobody else's."""
    rng = np.random.default_rng(seed)
    bank = Bank(rows)
    ways = [EVERY[i] for i in rng.integers(0, len(EVERY), 6)]
    legs: list[list[Block]] = [[] for _ in ways]
    feeds = [
        bank.open(*way, legs[i].append) for i, way in enumerate((a, b, c, u) for a, b, c, u in ways)
    ]
    audio = [noise(int(rng.integers(0, 9000)), i) for i in range(len(ways))]
    at = [0] * len(ways)
    while any(at[i] < len(audio[i]) for i in range(len(ways))):
        i = int(rng.integers(len(ways)))
        n = int(rng.integers(0, 1500))
        feeds[i].feed(audio[i][at[i] : at[i] + n])
        at[i] += n
        if rng.random() < 0.3:
            bank.run()
    for i, way in enumerate(ways):
        if ends:
            feeds[i].flush()
        bank.run()
        alone = make_resampler(*way)
        expected = alone.feed(audio[i]) + (alone.flush() if ends else [])
        assert len(legs[i]) == len(expected)
        for got, want in zip(legs[i], expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_full_shelf_does_not_wait_for_the_end_of_the_turn() -> None:
    pushed: list[Block] = []
    bank = Bank(2)
    feed = bank.open(8000, 24000, 1920, "filter", pushed.append)
    feed.feed(noise(640))
    assert pushed == []
    feed.feed(noise(640))
    assert len(pushed) == 2
    assert not np.shares_memory(*pushed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 24000, 1920), "rate_in: expected a positive number, not 0"),
        ((8000, -1, 1920), "rate_out: expected a positive number, not -1"),
        ((8000, 24000, 0), "block: expected a positive number, not 0"),
    ],
)
def test_senseless_numbers_are_refused(arguments: tuple[int, int, int], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_resampler(*arguments)
    assert str(caught.value) == sentence


def test_a_block_that_no_ratio_divides_is_still_cut_right() -> None:
    out = make_resampler(8000, 24000, 1000).feed(noise(8000))
    assert len(out) > 20
    assert {len(one) for one in out} == {1000}
