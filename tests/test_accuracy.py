"""Counting words that were recognised right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.accuracy import normalised, word_errors

texts = st.lists(st.sampled_from(["one", "two", "three"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "heard", "errors", "words"),
    [
        ("", "", 0, 0),
        ("one two three", "one two three", 0, 3),
        ("One, two - THREE!", "one two three", 0, 3),
        ("one two three", "", 3, 3),
        ("", "one two", 2, 0),
        ("one two three", "one three", 1, 3),
        ("one two three", "one two two three", 1, 3),
        ("one two three", "one tea three", 1, 3),
        ("one two three", "two three one", 2, 3),
        ("I don't know", "i don't no", 1, 3),
    ],
)
def test_word_errors(reference: str, heard: str, errors: int, words: int) -> None:
    assert word_errors(reference, heard) == (errors, words)


def test_normalised() -> None:
    assert normalised("  It's a Test -- of \n words. ") == "it's a test of words"


@given(texts, texts)
def test_it_is_a_distance(a: str, b: str) -> None:
    errors, words = word_errors(a, b)
    assert errors == word_errors(b, a)[0]
    assert (errors == 0) == (a == b)
    assert abs(words - len(b.split())) <= errors <= max(words, len(b.split()))
