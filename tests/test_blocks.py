"""Cutting into pieces: nothing lost, nothing moved, and nothing that is given away written to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.blocks import Cutter, padded


@settings(deadline=None, max_examples=80)
@given(size=st.integers(1, 9), lengths=st.lists(st.integers(0, 25), max_size=12))
def test_pieces_are_the_stream_in_order(size: int, lengths: list[int]) -> None:
    stream = np.arange(sum(lengths), dtype=np.int16)
    cutter = Cutter(size, np.int16)
    pieces = []
    at = 0
    for length in lengths:
        pieces += cutter.cut(stream[at : at + length])
        at += length
        assert len(pieces) == at // size, "a piece comes as soon as it is complete"
    assert all(len(piece) == size for piece in pieces)
    rest = cutter.rest()
    assert np.concatenate([*pieces, rest]).tolist() == stream.tolist()
    assert len(cutter.rest()) == 0


def test_whole_pieces_are_not_copied() -> None:
    samples = np.arange(8, dtype=np.int16)
    cutter = Cutter(4, np.int16)
    assert all(np.shares_memory(piece, samples) for piece in cutter.cut(samples))
    assert cutter.cut(samples[:4])[0].base is samples


def test_pieces_that_were_gathered_are_never_written_again() -> None:
    cutter = Cutter(4, np.float32)
    samples = np.arange(6, dtype=np.float32)
    cutter.cut(samples[:3])
    (first,) = cutter.cut(samples[3:6])
    (second,) = cutter.cut(samples[:2])
    samples[:] = 9
    assert first.tolist() == [0, 1, 2, 3]
    assert second.tolist() == [4, 5, 0, 1]
    assert first.dtype == np.float32


def test_padded_puts_zeros_behind() -> None:
    assert padded(np.array([1, 2], np.int16), 4).tolist() == [1, 2, 0, 0]
    assert padded(np.array([1], np.float32), 1).dtype == np.float32


def test_a_piece_has_samples() -> None:
    with pytest.raises(ValueError, match="^a piece has at least one sample, not 0$"):
        Cutter(0, np.int16)
