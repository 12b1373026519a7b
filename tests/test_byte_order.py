"""Linear samples of either order: which it is is heard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.ingress.byte_order import EitherOrder
from bridge.types import Samples
from tests.sockets import at_rate, pieces, speech

ORDERS = pytest.mark.parametrize("order", ["<i2", ">i2"])


def heard(samples: Samples, order: str, size: int = 640) -> Samples:
    decoder = EitherOrder(16000)
    data = samples.astype(order).tobytes()
    return np.concatenate([decoder.decode(piece) for piece in pieces(data, size)])


@ORDERS
@pytest.mark.parametrize("size", [320, 640, 3200])
def test_speech_is_heard_in_its_own_order(order: str, size: int) -> None:
    samples = at_rate(speech([7, 177, 3]), 16000)
    assert np.array_equal(heard(samples, order, size), samples)


@ORDERS
def test_silence_and_hiss_before_it_decide_nothing(order: str) -> None:
    hiss = np.random.default_rng(5).integers(-3, 4, 32000).astype(np.int16)
    words = at_rate(speech([7, 177]), 16000)
    found = heard(np.concatenate([hiss, words]), order)
    assert np.array_equal(found[-len(words) :], words)


@given(st.lists(st.binary(max_size=64), max_size=6))
def test_any_bytes_are_samples(payloads: list[bytes]) -> None:
    decoder = EitherOrder(8000)
    for payload in payloads:
        assert len(decoder.decode(payload)) == decoder.samples(len(payload)) == len(payload) // 2
    decoder.reset()
