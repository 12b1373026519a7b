"""Concealment held to numbers: level, edges, pitch, likeness to what was lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.conceal import HISTORY, conceal
from bridge.recording import read_recording
from bridge.types import Samples

RATES = [8000, 12000, 16000, 24000, 44100, 48000]
NOTHING: Samples = np.zeros(0, np.int16)
VECTORS = Path(__file__).parent / "vectors"


def voice(rate: int, seconds: float, pitch: float = 130.0) -> Samples:
    """Harmonics of one pitch, as of a vowel, at about a quarter of full scale."""
    time = np.arange(round(rate * seconds)) / rate
    wave = sum(np.cos(2 * np.pi * pitch * n * time + n) / n for n in range(1, 9))
    samples: Samples = np.rint(5000 * wave).astype(np.int16)
    return samples


def level(samples: Samples) -> float:
    return float(np.sqrt(np.mean(samples.astype(float) ** 2)))


def error(made: Samples, real: Samples) -> float:
    """Energy of the difference, as a share of what was lost."""
    real = real.astype(np.float64)
    return float(((made - real) ** 2).sum() / (real**2).sum())


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("pitch", [70.0, 130.0, 190.0, 330.0])
def test_a_steady_voice_goes_on(rate: int, pitch: float) -> None:
    """10 ms from one side only, 20 ms from both: hardly to be told from what was lost."""
    wave = voice(rate, 0.3, pitch)
    at, ten = len(wave) // 2, rate // 100
    past = wave[:at]
    assert error(conceal(past, ten, rate, NOTHING), wave[at : at + ten]) < 0.05
    made = conceal(past, 2 * ten, rate, wave[at + 2 * ten :])
    assert error(made, wave[at : at + 2 * ten]) < 0.08


@pytest.mark.parametrize("rate", RATES)
def test_it_fades_to_silence_in_60_ms(rate: int) -> None:
    past = voice(rate, 0.1)
    made = conceal(past, rate // 5, rate, NOTHING)
    ten = rate // 100
    loud = level(past)
    levels = [level(made[i * ten : (i + 1) * ten]) / loud for i in range(6)]
    assert levels == pytest.approx([1.0, 0.9, 0.7, 0.5, 0.3, 0.1], abs=0.17)
    assert all(later < earlier for earlier, later in zip(levels[1:], levels[2:], strict=False))
    assert not made[round(0.06 * rate) :].any()


def test_what_follows_a_long_hole_is_faded_into() -> None:
    wave = voice(8000, 0.3)
    made = conceal(wave, 1600, 8000, wave)
    loud = level(wave)
    assert not made[480:1120].any()
    assert level(made[1120:1200]) < 0.25 * loud < 0.75 * loud < level(made[-80:])


@pytest.mark.parametrize("count", [40, 80, 160, 320, 480, 700, 960, 2000])
def test_there_is_no_jump_at_either_edge(count: int) -> None:
    """Even where the two sides have nothing to do with each other."""
    past, after = voice(8000, 0.1, 110.0), voice(8000, 0.1, 173.0)
    made = conceal(past, count, 8000, after).astype(int)
    steepest = max(
        np.abs(np.diff(past.astype(int))).max(), np.abs(np.diff(after.astype(int))).max()
    )
    assert abs(made[0] - int(past[-1])) <= 1.5 * steepest
    assert abs(made[-1] - int(after[0])) <= 1.5 * steepest
    assert np.abs(np.diff(made)).max() <= 2.0 * steepest


def test_what_does_not_repeat_is_led_from_where_it_was_and_over_the_seams() -> None:
    """A ramp: its last period lies far below its end."""
    ramp: Samples = np.arange(0, 20_000, 50, dtype=np.int16)
    made = conceal(ramp, 480, 8000, NOTHING).astype(int)
    assert abs(made[0] - 20_000) < 200
    assert np.abs(np.diff(made)).max() < 1000  # the seams are jumps of 2,000, 4,000 and 6,000


def test_recorded_speech_is_concealed_better_than_by_silence_or_repetition() -> None:
    """One packet, of 20 ms, lost anywhere in a recording; then three in a row."""
    for path in sorted(VECTORS.glob("*.wav")):
        ((speech, rate),) = read_recording(path)
        assert rate == 8000
        for count, best in ((160, 0.3), (480, 0.7)):
            places = range(800, len(speech) - 1600, 97)
            errors = np.zeros(3)
            for at in places:
                real = speech[at : at + count].astype(float)
                made = conceal(speech[at - 390 : at], count, 8000, speech[at + count :][:160])
                again = speech[at - count : at]
                errors += [((x - real) ** 2).sum() for x in (made, again, np.zeros(count))]
            assert errors[0] < best * errors[2] < errors[1]


def test_silence_and_missing_sides_stay_silent() -> None:
    quiet: Samples = np.zeros(400, np.int16)
    assert not conceal(quiet, 320, 8000, quiet).any()
    assert not conceal(NOTHING, 320, 8000, NOTHING).any()
    wave = voice(8000, 0.1)
    beginning = conceal(NOTHING, 320, 8000, wave)
    assert level(beginning[:80]) < 0.5 * level(beginning[-80:])
    assert len(conceal(wave, 0, 8000, wave)) == 0


def test_what_was_heard_is_not_changed() -> None:
    past, after = voice(8000, 0.1), voice(8000, 0.1, 90.0)
    before = past.copy(), after.copy()
    past.flags.writeable = after.flags.writeable = False
    conceal(past, 320, 8000, after)
    assert np.array_equal(past, before[0]) and np.array_equal(after, before[1])


def test_only_the_nearest_audio_matters() -> None:
    wave = voice(8000, 0.5)
    near = round(HISTORY * 8000)
    past, after = wave[:2000], wave[2160:]
    assert np.array_equal(
        conceal(past, 160, 8000, after), conceal(past[-near:], 160, 8000, after[:near])
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([-32768, -1, 0, 1, 32767]), max_size=500),
    st.integers(0, 1500),
    st.sampled_from(RATES),
    st.lists(st.integers(-32768, 32767), max_size=60),
)
def test_any_audio_of_any_length_will_do(
    past: list[int], count: int, rate: int, after: list[int]
) -> None:
    """The loudest square waves there are: no warning of a number out of range either."""
    made = conceal(np.array(past, np.int16), count, rate, np.array(after, np.int16))
    assert made.dtype == np.int16 and len(made) == count
