"""The tones engine: exact words through the telephone's damage, rows that never mix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.g711 import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw
from bridge.audio.resample import make_resampler
from bridge.engine.tones import WORDS, TonesModel, encode, text_of
from bridge.interfaces import BatchModel, Upsampling
from bridge.types import Block, Heard, Samples, Word

DELAY = 6  # blocks
ON = np.array([True])

ids = st.integers(0, WORDS - 1)


def silence(seconds: float, rate: int = 8000) -> Samples:
    return np.zeros(round(seconds * rate), np.int16)


def blocks_of(samples: Samples, *, upsampling: Upsampling = "filter") -> list[Block]:
    """8 kHz line → blocks of 24 kHz, and the silence that a drained slot hears."""
    resampler = make_resampler(8000, 24000, 1920, upsampling)
    drain = [np.zeros(1920, np.float32)] * (DELAY + 1)
    return [*resampler.feed(samples), *resampler.flush(), *drain]


def listen(blocks: Sequence[Block]) -> list[Heard]:
    """One row, alone."""
    model = TonesModel(1)
    return [step(model, block[None], ON, ON & (at == 0))[0] for at, block in enumerate(blocks)]


def step(
    model: TonesModel,
    pcm: npt.NDArray[np.float32],
    active: npt.NDArray[np.bool_],
    fresh: npt.NDArray[np.bool_],
) -> dict[int, Heard]:
    model.batch.pcm[:] = pcm
    model.batch.active[:] = active
    model.batch.fresh[:] = fresh
    return model.step()


def words_of(heard: Sequence[Heard]) -> list[Word]:
    return [word for one in heard for word in one.words]


def texts(heard: Sequence[Heard]) -> list[str]:
    return [word.text for word in words_of(heard)]


def test_it_is_a_batch_model() -> None:
    model: BatchModel = TonesModel(3)
    assert (model.slots, model.rate, model.block) == (3, 24000, 1920)
    assert model.delay == pytest.approx(0.48)


@pytest.mark.parametrize("upsampling", ["filter", "repeat"])
@pytest.mark.parametrize("offset", [0, 150, 320, 433])
def test_every_word_is_heard_exactly(upsampling: Upsampling, offset: int) -> None:
    """All 256, at −12 dB, through mu-law, at several alignments."""
    quiet = encode(range(WORDS)) // 4
    line = np.concatenate([np.zeros(offset, np.int16), decode_ulaw(encode_ulaw(quiet))])
    heard = listen(blocks_of(line, upsampling=upsampling))
    assert texts(heard) == [text_of(word) for word in range(WORDS)]


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(ids | st.just(7), max_size=8),
    offset=st.integers(0, 1300),
    gap=st.sampled_from([0.08, 0.1, 0.16, 0.3, 0.7]),
    damage=st.sampled_from(["none", "ulaw", "alaw", "quiet", "loud"]),
    upsampling=st.sampled_from(["filter", "repeat"]),
)
def test_words_survive_the_line_in_their_places(
    words: list[int], offset: int, gap: float, damage: str, upsampling: Upsampling
) -> None:
    line = np.concatenate([np.zeros(offset, np.int16), encode(words, gap=gap)])
    match damage:
        case "ulaw":
            line = decode_ulaw(encode_ulaw(line))
        case "alaw":
            line = decode_alaw(encode_alaw(line))
        case "quiet":
            line = decode_ulaw(encode_ulaw((line // 4).astype(np.int16)))
        case "loud":
            line = (line * 1.9).astype(np.int16)
    heard = words_of(listen(blocks_of(line, upsampling=upsampling)))
    assert [word.text for word in heard] == [text_of(word) for word in words]
    for count, word in enumerate(heard):
        start = offset / 8000 + count * (0.24 + gap)
        assert abs(word.start - start) <= 0.08
        assert abs(word.end - start - 0.24) <= 0.08
        assert word.confidence == 1.0


def test_a_word_that_lost_a_packet_is_still_one_word() -> None:
    """20 ms of silence anywhere, however the word lies."""
    for offset in (0, 104, 400):
        for hole in range(0, 1920, 160):
            line = np.concatenate([np.zeros(offset, np.int16), encode([77, 77])])
            line[offset + hole : offset + hole + 160] = 0
            assert texts(listen(blocks_of(line))) == ["w077", "w077"], (offset, hole)


def test_words_come_out_after_the_delay_and_are_tentative_before() -> None:
    heard = listen(blocks_of(encode([5, 6])))
    at = {one.words[0].text: one.at for one in heard if one.words}
    by_text = {word.text: word for word in words_of(heard)}
    assert by_text["w005"].end == pytest.approx(0.24)
    assert at == {text: pytest.approx(word.end + 0.48) for text, word in by_text.items()}
    guesses = [[word.text for word in one.tentative] for one in heard]
    assert guesses[:4] == [["w005"]] * 4
    assert guesses[6] == ["w005", "w006"]
    assert guesses[-1] == []
    assert [one.tentative[0].end for one in heard[:3]] == pytest.approx([0.08, 0.16, 0.24])
    for before, after in zip(heard, heard[1:], strict=False):
        assert after.words == before.tentative[: len(after.words)], "a guess came true"


def test_a_shorter_delay_is_kept() -> None:
    model = TonesModel(1, delay_blocks=1)
    heard = [
        step(model, block[None], ON, ON & (at == 0))[0]
        for at, block in enumerate(blocks_of(encode([9])))
    ]
    assert [one.at for one in heard if one.words] == pytest.approx([0.32])


def test_listening_time_counts_active_steps() -> None:
    heard = listen([np.zeros(1920, np.float32)] * 3)
    assert [one.at for one in heard] == pytest.approx([0.08, 0.16, 0.24])


def test_a_pause_needs_silence_and_says_what_is_still_to_come() -> None:
    line = np.concatenate([encode([1, 2]), silence(1.0), encode([3]), silence(1.0)])
    heard = listen(blocks_of(line))
    pauses = [round(one.at, 2) for one in heard if one.pause]
    # The second word ends at 0.64. The third one begins at 1.8 in the middle of a block; the last
    # block that it fills ends at 2.0.
    assert pauses[0] == 1.04
    assert pauses[pauses.index(1.84) + 1] == 2.4
    assert heard[-1].pause == 1.0
    for one in heard:
        assert one.settled == pytest.approx(one.at - 0.48)
        assert all(word.end > one.settled for word in one.tentative)


def test_silence_from_the_start_is_a_pause_after_400_ms() -> None:
    heard = listen([np.zeros(1920, np.float32)] * 6)
    assert [one.pause for one in heard] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["noise", "one tone", "dtmf", "hum", "click", "faint"])
def test_other_sounds_are_no_words(kind: str) -> None:
    time = np.arange(8000) / 8000
    match kind:
        case "noise":
            line = np.random.default_rng(3).normal(0, 4000, 8000)
        case "one tone":
            line = 16000 * np.sin(2 * np.pi * 1050 * time)
        case "dtmf":
            line = 9000 * (np.sin(2 * np.pi * 770 * time) + np.sin(2 * np.pi * 1336 * time))
        case "hum":
            line = np.full(8000, 12000.0)
        case "click":
            line = np.where(np.arange(8000) % 800 == 0, 30000.0, 0.0)
        case _:
            line = encode([1, 2]) / 300
    heard = listen(blocks_of(line.astype(np.int16)))
    assert words_of(heard) == []
    assert not any(one.tentative for one in heard)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_rows_hear_their_own_words_only(data: st.DataObject, seed: int) -> None:
    """Random words and masks, several callers in one row after the other; bit for bit as alone."""
    slots = data.draw(st.integers(1, 6))
    calls = [
        [data.draw(st.lists(ids, max_size=4)) for _ in range(data.draw(st.integers(1, 3)))]
        for _ in range(slots)
    ]
    rng = np.random.default_rng(seed)
    model = TonesModel(slots)
    waiting = [
        [
            blocks_of(np.concatenate([np.zeros(rng.integers(640), np.int16), encode(words)]))
            for words in row
        ]
        for row in calls
    ]
    expected = [[listen(blocks) for blocks in row] for row in waiting]
    got: list[list[list[Heard]]] = [[[]] for _ in range(slots)]
    left = [[list(blocks) for blocks in row] for row in waiting]
    while any(left):
        pcm = np.zeros((slots, 1920), np.float32)
        active, fresh = np.zeros(slots, np.bool_), np.zeros(slots, np.bool_)
        for slot, awake in enumerate(rng.random(slots) < 0.7):
            if awake and left[slot]:
                active[slot] = True
                fresh[slot] = not got[slot][-1]
                pcm[slot] = left[slot][0].pop(0)
        heard = step(model, pcm, active, fresh)
        assert list(heard) == np.flatnonzero(active).tolist()
        for slot in heard:
            got[slot][-1].append(heard[slot])
            if not left[slot][0]:
                left[slot].pop(0)
                got[slot].append([])
    assert [row[:-1] for row in got] == expected
    assert [[texts(call) for call in row[:-1]] for row in got] == [
        [[text_of(word) for word in words] for words in row] for row in calls
    ]


def test_a_fresh_row_has_forgotten_the_word_before() -> None:
    """A caller who hangs up in mid-word leaves nothing to the next one."""
    model = TonesModel(2)
    on, off = np.array([True, False]), np.zeros(2, np.bool_)
    pcm = np.zeros((2, 1920), np.float32)
    pcm[0] = blocks_of(encode([200]))[0]
    assert step(model, pcm, on, on)[0].tentative
    pcm[0] = 0
    heard = [step(model, pcm, on, on if at == 0 else off)[0] for at in range(9)]
    assert words_of(heard) == []
    assert heard[0] == Heard(at=0.08, settled=pytest.approx(0.08 - 0.48))


def test_other_multiples_of_the_line_rate() -> None:
    model = TonesModel(1, rate=16000, block=1280)
    blocks = make_resampler(8000, 16000, 1280).feed(np.concatenate([encode([31]), silence(0.8)]))
    heard = [step(model, b[None], ON, ON & (at == 0))[0] for at, b in enumerate(blocks)]
    assert texts(heard) == ["w031"]


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_encode_speaks_at_any_rate_and_can_be_joined(rate: int) -> None:
    spoken = encode([3, 4], rate)
    assert spoken.dtype == np.int16
    assert len(spoken) == 2 * 0.4 * rate
    assert np.array_equal(spoken, np.concatenate([encode([3], rate), encode([4], rate)]))
    assert 15000 < np.abs(spoken.astype(int)).max() <= 16384
    assert len(encode([])) == 0


def test_spelling() -> None:
    assert [text_of(0), text_of(31), text_of(255)] == ["w000", "w031", "w255"]


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="^expected words 0 to 255, not 256$"):
        encode([256])
    with pytest.raises(ValueError, match="^gap: expected at least 0.08 seconds, not 0.05$"):
        encode([1], gap=0.05)
    with pytest.raises(ValueError, match="^the tones engine hears 80 ms blocks at a multiple of"):
        TonesModel(1, block=1000)
    with pytest.raises(ValueError, match="not 960 samples at 12000 Hz$"):
        TonesModel(1, rate=12000, block=960)
    with pytest.raises(ValueError, match="^delay_blocks: expected 1 or more, not 0$"):
        TonesModel(1, delay_blocks=0)
