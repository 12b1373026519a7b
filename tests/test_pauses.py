"""Pauses and the watchdog: on a real call, through the line's damage, and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.audio.resample import make_resampler
from bridge.engine.pauses import FAINTEST, Pauses, Speech, Watchdog
from bridge.engine.rows import ModelFacts, arrays
from bridge.recording import read_recording
from bridge.types import Samples

ROOT = Path(__file__).parent.parent
BLOCK = 0.08  # s
PAUSED = 0.6  # the default threshold of [turns]
DELAY = 6  # blocks, of the model that says the words
Wave = npt.NDArray[np.float64]
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
YES, NO = np.array([True]), np.array([False])


def facts(slots: int = 1, heads: int = 0, delay: float = 0.5) -> ModelFacts:
    return ModelFacts("x", slots, "", delay, heads=heads)


@lru_cache
def recording(name: str, channel: int) -> Samples:
    """8 kHz, with 2 s of silence behind it."""
    return np.append(read_recording(ROOT / name)[channel][0], np.zeros(16000, np.int16))


@lru_cache
def texts(name: str, channel: int) -> list[bool]:
    """For each block, whether a model would give a token: a delay after every third loud one."""
    loud = [e > 1e-4 and k % 3 == 0 for k, e in enumerate(energies(recording(name, channel)))]
    return [False] * DELAY + loud


def energies(samples: Samples) -> list[float]:
    resampler = make_resampler(8000, 24000, 1920)
    return [float(np.var(b)) for b in (*resampler.feed(samples), *resampler.flush())]


def utterances(clean: Samples) -> list[tuple[float, float]]:
    """(first, last) second of each stretch of sound above the faintest, to 10 ms."""
    pieces = (clean[: len(clean) // 80 * 80].astype(float) / 32768).reshape(-1, 80)
    loud = np.flatnonzero(np.mean(pieces**2, axis=1) > 10 ** (FAINTEST / 10)) / 100
    cuts = np.flatnonzero(np.diff(loud) > 0.4)
    return list(
        zip(loud[[0, *(cuts + 1)]].tolist(), (loud[[*cuts, -1]] + 0.01).tolist(), strict=True)
    )


def listen(samples: Samples, texts: list[bool]) -> list[tuple[float, float]]:
    """(second, pause) after each block, without heads."""
    speech, pauses, block = Speech(1, BLOCK), Pauses(facts()), arrays(1, 8, 0)
    told = []
    for k, energy in enumerate(energies(samples)):
        fresh, text = np.array([k == 0]), np.array([texts[k]])
        spoken = speech.hear(np.array([energy], np.float32), YES, fresh)
        told.append(((k + 1) * BLOCK, float(pauses.hear(block, YES, fresh, text, spoken)[0])))
    return told


def noise(dbfs: float) -> Callable[[Wave], Wave]:
    def add(wave: Wave) -> Wave:
        return wave + np.random.default_rng(5).normal(0, 10 ** (dbfs / 20), len(wave))

    return add


DAMAGE: dict[str, Callable[[Wave], Wave]] = {
    "none": lambda wave: wave,
    "noise at -60": noise(-60),
    "noise at -40": noise(-40),
    "offset at -60": lambda wave: wave + 0.001,
    "offset at -40": lambda wave: wave - 0.01,
    "offset at -30": lambda wave: wave + 0.0316,
    "offset at -12": lambda wave: wave * 0.7 - 0.25,
    "clipping": lambda wave: wave * 10,
    "quiet": lambda wave: wave / 10,
    "quiet, noise": lambda wave: noise(-60)(wave / 10),
    "digital zero between": lambda wave: np.where(np.abs(wave) < 0.002, 0.0, wave),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("bridge/samples/call.wav", 0),
        ("bridge/samples/call.wav", 1),
        ("tests/vectors/i-want-to-cancel-my-appointment.wav", 0),
        ("tests/vectors/the-number-is-four-seven-one.wav", 0),
    ],
)
def test_pauses_are_after_utterances_and_not_within(name: str, channel: int, damage: str) -> None:
    clean = recording(name, channel)
    wave = DAMAGE[damage](clean / 32768.0)
    damaged = np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)
    told = listen(damaged, texts(name, channel))
    spoken = utterances(clean)
    for (first, last), (following, _) in zip(spoken, [*spoken[1:], (1e9, 0)], strict=True):
        within = [pause for at, pause in told if first + 0.1 < at < last]
        # In noise a word that begins softly stands out two blocks later.
        assert max(within[0 if damage == "none" else 2 :]) < PAUSED
        after = [at for at, pause in told if last < at < following and pause >= PAUSED]
        assert 0.35 < after[0] - last < (0.65 if damage == "none" else 1.1)


def test_the_sample_call_is_spoken_where_its_script_says() -> None:
    lines = [
        line.split(maxsplit=2)
        for line in (ROOT / "bridge/samples/call.txt").read_text("utf-8").splitlines()[1:]
    ]
    for channel, party in enumerate(("caller", "callee")):
        starts = [float(start) for start, who, _ in lines if who == party]
        found = [first for first, _ in utterances(recording("bridge/samples/call.wav", channel))]
        assert found == pytest.approx(starts, abs=0.1)


# -- speech --------------------------------------------------------------------------------------


def speech_in(levels: list[float]) -> list[bool]:
    """Blocks of these levels in dBFS."""
    speech = Speech(1, BLOCK)
    return [
        bool(speech.hear(np.array([10 ** (level / 10)], np.float32), YES, np.array([k == 0]))[0])
        for k, level in enumerate(levels)
    ]


@pytest.mark.parametrize("level", [-120.0, -60.0, -51.0])
def test_what_is_faint_is_no_speech(level: float) -> None:
    assert not any(speech_in([level + 5 * (k % 2 - 1) for k in range(100)]))


@pytest.mark.parametrize("level", [-45.0, -30.0, -10.0])
def test_what_stays_at_one_level_is_noise_after_half_a_second(level: float) -> None:
    heard = speech_in([level] * 40)
    assert heard == [True] * 6 + [False] * 34


def test_what_is_so_loud_that_it_clips_is_no_noise() -> None:
    assert all(speech_in([-3.0] * 40))


def test_speech_above_steady_noise_is_heard() -> None:
    heard = speech_in([-40.0] * 20 + [-25.0, -28.0] * 3 + [-40.0] * 5)
    assert heard[6:] == [False] * 14 + [True] * 6 + [False] * 5


def test_uneven_noise_is_noise_after_a_while_and_speech_is_not() -> None:
    street = [-44.0, -40.0, -42.5] * 60
    heard = speech_in(street)
    assert any(heard[:40]) and not any(heard[150:])
    fluent = [-25.0, -20.0, -30.0, -22.0, -45.0, -24.0] * 60  # 28 s, with its gaps
    heard = speech_in(fluent)
    assert [k for k, spoken in enumerate(heard) if not spoken and k % 6 != 4] == []


def test_the_noise_floor_falls_half_the_way_in_a_block() -> None:
    noise, dip = [-40.0] * 20, -46.0  # to -43, and speech is 8 dB above that
    assert speech_in([*noise, dip, -35.5])[-1] is False
    assert speech_in([*noise, dip, -34.5])[-1] is True


def test_digital_silence_does_not_move_the_noise_floor() -> None:
    """That of a flush: or a noisy line would be speech after it, and pause and flush for ever."""
    speech = Speech(1, BLOCK)
    rng = np.random.default_rng(4)
    line = [10 ** (-4.5 + rng.uniform(-0.3, 0.3)) for _ in range(100)]  # uneven, -45 dBFS

    def hear(energy: float, fresh: bool = False) -> bool:
        return bool(speech.hear(np.array([energy], np.float32), YES, np.array([fresh]))[0])

    for at, energy in enumerate(line):
        before = hear(energy, fresh=at == 0)
    assert not before, "it is noise by now"
    for _ in range(7):
        assert not hear(0.0)
    assert not any(hear(energy) for energy in line)


def test_the_noise_floor_rises_two_decibels_a_second() -> None:
    uneven = [-44.0, -40.0] * 100  # from -58; speech until the floor is at -48, then at -52
    heard = speech_in(uneven)
    assert max(k for k in range(1, 200, 2) if heard[k]) * BLOCK == pytest.approx(5.0, abs=0.2)
    assert max(k for k in range(0, 200, 2) if heard[k]) * BLOCK == pytest.approx(3.0, abs=0.2)


JUNK = [np.nan, np.inf, -1.0, 0.0, 1e-3, 1.0]
LEVELS = st.sampled_from([-120.0, -57.0, -45.0, -40.0, -39.0, -33.0, -25.0, -10.0, -3.0])
CALL = st.lists(LEVELS, min_size=1, max_size=30) | st.lists(LEVELS, min_size=1, max_size=3).map(
    lambda few: [level for level in few for _ in range(9)]
)


@given(st.lists(CALL, min_size=1, max_size=3), st.lists(st.sampled_from(JUNK), max_size=2))
@UNHURRIED
def test_speech_of_one_leg_leaves_nothing_for_the_next(
    calls: list[list[float]], junk: list[float]
) -> None:
    """One call after another in a row that steps every other time, with junk in between."""
    speech, got = Speech(2, BLOCK), []
    for levels in calls:
        for k, level in enumerate(levels):
            for energy in junk:
                idle = speech.hear(np.full(2, energy, np.float32), np.tile(NO, 2), np.tile(NO, 2))
                assert not idle.any()
            energies = np.array([1e-2, 10 ** (level / 10)], np.float32)
            spoken = speech.hear(energies, np.array([False, True]), np.array([False, k == 0]))
            got.append(bool(spoken[1]))
    assert got == [spoken for levels in calls for spoken in speech_in(levels)]


# -- pauses --------------------------------------------------------------------------------------


def paused(
    pattern: str, *, delay: float = 0.5, heads: int = 0, head: float = 0.0
) -> Iterator[float]:
    """``s`` speech, ``t`` text, ``x`` both, ``.`` neither, ``-`` not active."""
    pauses, block = Pauses(facts(heads=heads, delay=delay)), arrays(1, 8, heads)
    for k, step in enumerate(pattern):
        active = np.array([step != "-"])
        block.pauses[:] = [1 - head, 1 - head, head, 1 - head][:heads]
        text, speech = np.array([step in "tx"]), np.array([step in "sx"])
        told = pauses.hear(block, active, np.array([k == 0]) & active, text, speech)
        if active[0]:
            yield round(float(told[0]), 3)


def test_a_pause_rises_with_quiet_and_falls_at_once_with_speech() -> None:
    rises = [round(k * BLOCK / 0.9, 3) for k in range(1, 12)]
    assert list(paused("s" + "." * 14 + "s")) == [0, *rises, 1, 1, 1, 0]


def test_what_takes_no_part_does_not_count() -> None:
    assert list(paused("s..-----..s-.")) == list(paused("s....s."))


def test_text_says_that_there_was_speech_a_delay_ago() -> None:
    """A quiet talker, whose speech is not loud enough to be heard as such."""
    quiet = list(paused("." * 20 + "t..t..t" + "." * 7, delay=0.32))
    assert max(quiet[20:27]) < PAUSED < min(quiet[30:])
    assert quiet[20] == round(0.32 / 0.9, 3)


def test_loud_without_words_is_a_pause_in_the_end() -> None:
    told = list(paused("s" * 10 + "x" + "s" * 60))  # 3 s after the last word
    assert all(pause < PAUSED for pause in told[:48]) and told[48] >= PAUSED
    assert list(paused("x" + "s" * 60 + "x"))[-1] == 0
    assert list(paused("x" + "s" * 60 + ".s"))[-1] == 0  # speech begins anew
    # A model that is slow to speak has had no time yet.
    slow = list(paused("s" * 100, delay=2.5))
    assert [k for k, pause in enumerate(slow) if pause >= PAUSED][0] == round((3.0 + 2.5) / BLOCK)


def test_the_head_of_two_seconds_is_asked_as_it_is() -> None:
    assert list(paused("x.s", heads=4, head=0.625)) == [0.625] * 3
    assert list(paused("x.s", heads=3, head=0.25)) == [0.25] * 3
    assert list(paused("x.s", heads=2, head=0.25)) == list(paused("x.s"))


def test_a_fresh_rows_head_is_not_believed_for_twelve_steps_unless_there_is_text() -> None:
    assert list(paused("." * 14, heads=4, head=0.75)) == [0] * 12 + [0.75] * 2
    assert list(paused("...t...", heads=4, head=0.75)) == [0] * 3 + [0.75] * 4


@given(
    st.lists(st.text("stx.", min_size=1, max_size=15), min_size=1, max_size=3),
    st.sampled_from([0, 4]),
    st.booleans(),
)
@UNHURRIED
def test_one_leg_leaves_nothing_for_the_next(calls: list[str], heads: int, idle: bool) -> None:
    """`idle`: with steps in between in which the row takes no part."""
    pauses, block, got = Pauses(facts(heads=heads, delay=0.08)), arrays(1, 8, heads), []
    block.pauses[:] = 0.5
    for call in calls:
        for k, step in enumerate(call):
            if idle:
                pauses.hear(block, NO, NO, NO, NO)
            spoken, said = np.array([step in "sx"]), np.array([step in "tx"])
            got.append(pauses.hear(block, YES, np.array([k == 0]), said, spoken)[0])
    expected = [p for call in calls for p in paused(call, heads=heads, head=0.5, delay=0.08)]
    assert [round(float(pause), 3) for pause in got] == expected


def test_a_fresh_row_has_heard_nothing() -> None:
    for heads in (0, 4):
        pauses, block = Pauses(facts(heads=heads)), arrays(1, 8, heads)
        block.pauses[:] = 0.9
        told = [pauses.hear(block, YES, YES, YES, YES)]
        told += [pauses.hear(block, YES, NO, NO, NO) for _ in range(30)]
        assert told[-1] > 0.8
        assert pauses.hear(block, YES, YES, NO, NO)[0] == pytest.approx(0 if heads else BLOCK / 0.9)


# -- the watchdog --------------------------------------------------------------------------------


def alarms(
    pattern: str, *, patience: float = 1.0, delay: float = 0.4, again: bool = False
) -> list[int]:
    """Steps with an alarm. As `paused`; ``f`` another leg's first, ``e`` a leg's last, both loud.

    `again`: the row is heard afresh after every alarm.
    """
    dog = Watchdog(facts(delay=delay), patience)
    told, fresh = [], True
    for k, step in enumerate(pattern):
        active = np.array([step != "-"])
        begins = np.array([fresh or step == "f"]) & active
        text, speech = np.array([step in "tx"]), np.array([step in "sxfe"])
        stuck = bool(dog.hear(active, begins, text, speech, np.array([step == "e"]))[0])
        if active[0]:
            fresh = again and stuck
        told += [k] * stuck
    return told


def test_speech_without_text_is_an_alarm() -> None:
    # 1 s and the delay of 0.4 s are 17.5 blocks.
    assert alarms("s" * 18) == [17]
    assert alarms("s" * 17) == []
    assert alarms("t" + "s" * 18) == [18]


def test_the_delay_is_added_to_the_patience() -> None:
    assert alarms("s" * 105, delay=2.4, patience=6.0) == [104]
    assert alarms("s" * 104, delay=2.4, patience=6.0) == []


def test_text_begins_anew() -> None:
    assert alarms(("s" * 16 + "x") * 10) == []


def test_only_speech_counts() -> None:
    assert alarms("." * 1000) == []
    assert alarms("s.-" * 18) == [3 * 17]


@pytest.mark.parametrize("again", [False, True])
def test_patience_doubles_until_there_is_text(again: bool) -> None:
    """Also where the row is heard afresh after each alarm."""
    told = alarms("s" * 12000, again=again)
    apart = [round((b - a) * BLOCK) for a, b in zip([-1, *told], told, strict=False)]
    assert apart == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    after = alarms("s" * 200 + "x" + "s" * 30, again=again)
    assert after[-1] == 201 + 17


def test_steps_without_the_row_change_nothing_about_its_patience() -> None:
    assert alarms("s" * 18 + "---" + "s" * 40, again=True) == [17, 17 + 3 + 30]


def test_a_long_patience_stays_as_it_is() -> None:
    told = alarms("s" * 12000, patience=400.0)
    assert [round(k * BLOCK) for k in told] == [400, 801]  # each and its delay


def test_the_next_leg_does_not_inherit_the_patience() -> None:
    assert alarms("s" * 20 + "f" + "s" * 20) == [17, 20 + 17]
    assert alarms("s" * 17 + "e" + "f" + "s" * 20) == [18 + 17]  # a last step is no alarm


def test_no_patience_at_all_is_off() -> None:
    assert alarms("s" * 2000, patience=0.0) == []


def test_rows_are_watched_apart() -> None:
    dog = Watchdog(facts(3, delay=0.0), 0.8)
    none, all_ = np.zeros(3, np.bool_), np.ones(3, np.bool_)
    told = []
    for k in range(12):
        text = np.array([False, k == 5, False])
        stuck = dog.hear(
            all_, all_ if k == 0 else none, text, np.array([True, True, k % 2 == 0]), none
        )
        told.append(stuck.tolist())
    assert [k for k in range(12) if told[k] != [False] * 3] == [9]
    assert told[9] == [True, False, False]
