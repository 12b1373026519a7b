"""Words heard again are neither said again nor lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.engine.align import Replay
from bridge.types import Word

JITTER = 0.16  # s: two frames


def word(text: str, start: float, length: float = 0.2) -> Word:
    return Word(text, start, start + length, 0.9)


def texts(words: tuple[Word, ...]) -> list[str]:
    return [w.text for w in words]


SAID = [word("I", 1.0), word("want", 1.3), word("to", 1.6), word("cancel", 1.9)]


def test_what_was_said_is_left_out_and_the_rest_is_new() -> None:
    replay = Replay(SAID)
    assert texts(replay.new([*SAID, word("my", 2.3), word("order.", 2.6)])) == ["my", "order."]
    assert replay.over


def test_capitals_and_punctuation_make_no_other_word() -> None:
    replay = Replay([word("Hello,", 0.2), word("yes.", 0.6)])
    assert texts(replay.new([word("hello", 0.28), word("Yes", 0.52), word("Please", 0.9)])) == [
        "Please"
    ]


def test_another_reading_of_the_same_moment_is_left_out() -> None:
    replay = Replay(SAID)
    assert texts(replay.new([word("why", 1.05), word("wanted", 1.32), word("two", 1.5)])) == []
    assert texts(replay.new([word("cancel", 2.0), word("it", 2.4)])) == ["it"]


def test_a_garbled_start_is_left_out() -> None:
    replay = Replay(SAID)
    assert texts(replay.new([word("uh", 0.2), word("eye", 0.7), word("I", 1.0)])) == []
    assert not replay.over


def test_the_same_word_twice_is_two_words() -> None:
    replay = Replay([word("no", 1.0), word("no", 1.4)])
    again = [word("no", 1.02), word("no", 1.41), word("no", 1.8)]
    assert texts(replay.new(again)) == ["no"]


def test_a_word_repeated_fast_is_met_where_the_replay_begins() -> None:
    said = [word("no", at, 0.16) for at in (1.0, 1.24, 1.48)]
    again = [word("no", at, 0.16) for at in (1.24, 1.48, 1.72, 1.96)]
    assert [w.start for w in Replay(said).new(again)] == [1.72, 1.96]


def test_guesses_at_what_was_said_are_left_out() -> None:
    replay = Replay(SAID)
    guesses = [word("cancel", 1.92), word("my", 2.2)]
    assert texts(replay.unsaid(guesses)) == ["my"]
    replay.new([*SAID, word("my", 2.2)])
    assert texts(replay.unsaid(guesses)) == ["cancel", "my"], "when it is over nothing is"


@pytest.mark.parametrize("text", ["…", "?", ""])
def test_a_word_without_letters_is_compared_as_it_is(text: str) -> None:
    assert Replay([word(text, 1.0)]).new([word(text, 1.1)]) == ()


@given(st.integers(0, 2**32))
@settings(max_examples=400)
def test_a_replay_from_anywhere_loses_nothing_and_repeats_nothing(seed: int) -> None:
    """Distinct words, times that differ by up to two frames, a cut anywhere."""
    rng = random.Random(seed)
    start, whole = 0.0, []
    for i in range(rng.randrange(2, 30)):
        start += rng.uniform(0.2, 0.9)
        whole.append(word(f"w{i}", start))
    cut = rng.randrange(1, len(whole))
    first = rng.randrange(0, cut)
    again = [word(w.text, w.start + rng.uniform(-JITTER, JITTER) / 2) for w in whole[first:]]
    replay = Replay(whole[:cut])
    new: list[str] = []
    for w in again:
        new += texts(replay.new([w]))
    assert new == [w.text for w in whole[cut:]]
