"""G.711 against the recommendation's own definition: outputs, decision values, characters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bridge.audio.g711 import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw
from bridge.types import Samples

EVERY_CODE = bytes(range(256))
EVERY_LEVEL = np.arange(-32768, 32768).astype(np.int16)

Ints = npt.NDArray[np.int64]


def ulaw_outputs() -> list[int]:
    """Table 2a, column 8: 128 outputs, 0, 2 … 30, 33, 37 … 8031, of 14 bits."""
    outputs = [0]
    for segment in range(8):
        steps = 15 if segment == 0 else 16
        start = outputs[-1] if segment == 0 else outputs[-1] + 3 * 2 ** (segment - 1)
        first = 1 if segment == 0 else 0
        outputs += [start + 2 ** (segment + 1) * (n + first) for n in range(steps)]
    return outputs


def alaw_outputs() -> list[int]:
    """Table 1a, column 8: 128 outputs, 1, 3 … 31, 33 … 63, 66 … 4032, of 13 bits."""
    outputs = [1 + 2 * n for n in range(32)]
    for segment in range(2, 8):
        step = 2**segment
        outputs += [32 * 2 ** (segment - 1) + step // 2 + step * n for n in range(16)]
    return outputs


def decisions(outputs: list[int], first: int) -> list[int]:
    """Column 4: each output lies in the middle between two decision values."""
    values = [first]
    for output in outputs[1:]:
        values.append(2 * output - values[-1])
    return values[: len(outputs) - 1]


@pytest.mark.parametrize(
    ("decode", "outputs", "scale", "positive"),
    [
        (decode_ulaw, ulaw_outputs(), 4, [0xFF - n for n in range(128)]),
        (decode_alaw, alaw_outputs(), 8, [(0x80 + n) ^ 0x55 for n in range(128)]),
    ],
    ids=["ulaw", "alaw"],
)
def test_every_code_decodes_to_its_output(
    decode: Callable[[bytes], Samples], outputs: list[int], scale: int, positive: list[int]
) -> None:
    """The character signal of the positive values counts down (mu) or up (A, even bits turned)."""
    assert len(outputs) == 128
    values = decode(EVERY_CODE)
    assert values.dtype == np.int16
    assert values[positive].tolist() == [scale * output for output in outputs]
    negative = [code ^ 0x80 for code in positive]  # the sign is the first bit
    assert values[negative].tolist() == [-scale * output for output in outputs]


@pytest.mark.parametrize(
    ("encode", "outputs", "first", "scale", "positive"),
    [
        (encode_ulaw, ulaw_outputs(), 1, 4, [0xFF - n for n in range(128)]),
        (encode_alaw, alaw_outputs(), 2, 8, [(0x80 + n) ^ 0x55 for n in range(128)]),
    ],
    ids=["ulaw", "alaw"],
)
def test_every_level_encodes_by_the_decision_values(
    encode: Callable[[Samples], bytes],
    outputs: list[int],
    first: int,
    scale: int,
    positive: list[int],
) -> None:
    edges = scale * np.array(decisions(outputs, first))
    levels = EVERY_LEVEL.astype(np.int64)
    up = np.searchsorted(edges, levels[levels >= 0], side="right")
    down = np.searchsorted(edges, -levels[levels < 0], side="left")
    codes = np.array(positive)
    expected = np.concatenate([codes[down] ^ 0x80, codes[up]])
    assert np.array_equal(np.frombuffer(encode(EVERY_LEVEL), np.uint8), expected)


def test_known_codes() -> None:
    assert decode_ulaw(b"\x00\x80\xff\x7f\xfe").tolist() == [-32124, 32124, 0, 0, 8]
    assert decode_alaw(b"\x2a\xaa\xd5\x55").tolist() == [-32256, 32256, 8, -8]
    loudest = np.array([-32768, 32767, 0], np.int16)
    assert encode_ulaw(loudest) == b"\x00\x80\xff"
    assert encode_alaw(loudest) == b"\x2a\xaa\xd5"


@pytest.mark.parametrize(
    ("encode", "decode", "doubles"),
    [(encode_ulaw, decode_ulaw, {0x7F: 0xFF}), (encode_alaw, decode_alaw, {})],
    ids=["ulaw", "alaw"],
)
def test_codes_survive_a_round_trip(
    encode: Callable[[Samples], bytes], decode: Callable[[bytes], Samples], doubles: dict[int, int]
) -> None:
    """All but mu-law's second zero."""
    assert encode(decode(EVERY_CODE)) == bytes(doubles.get(code, code) for code in EVERY_CODE)


@pytest.mark.parametrize("decode", [decode_ulaw, decode_alaw])
def test_no_bytes_are_no_samples_and_results_are_new(decode: Callable[[bytes], Samples]) -> None:
    assert len(decode(b"")) == 0
    first = decode(b"\x00")
    before = int(first[0])
    first[0] = 1
    assert decode(b"\x00")[0] == before != 1


def test_encoders_take_slices() -> None:
    samples = np.arange(-3200, 3200, 10, dtype=np.int16)
    assert encode_ulaw(samples[::2]) == encode_ulaw(samples)[::2]
    assert encode_alaw(samples[5:9]) == encode_alaw(samples)[5:9]
    assert encode_alaw(samples[:0]) == b""
