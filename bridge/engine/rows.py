"""What a model of rows takes and gives per step: arrays over all slots, nothing per row. Pure.

The arrays lie in one block of memory, so that it can be shared with the process that holds the
model. Times and words are made of them elsewhere (`bridge/engine/words.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

ALIGN = 64  # bytes; every array starts on a cache line


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a loaded model says of itself. Every field survives JSON.

    `delay`: seconds from audio to its text. `prefix`: samples of silence that each row hears
    before its first block. `heads`: pause heads, 0 when the weights have none. `tokenizer`: path
    of the SentencePiece model. `languages`: ISO 639-1 codes, one when there is nothing to tell.
    `slot_bytes`: memory of the device that each slot takes.
    """

    name: str
    slots: int
    tokenizer: str
    delay: float
    prefix: int = 0
    heads: int = 0
    languages: tuple[str, ...] = ("en",)
    rate: int = 24000
    block: int = 1920
    padding: int = 3
    boundary: int = 0  # ends a padding: the next word begins
    device: str = "cpu"
    dtype: str = "float32"
    slot_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RowArrays:
    """Inputs and outputs of a step, a row per slot.

    In: `pcm` float32[slots, block]; `active` bool[slots], other rows' state must not move; `fresh`
    bool[slots], reset the row before the step. What `pcm` holds in rows that are not active means
    nothing. Out, meaningless in rows that were not active: `tokens` int32[slots]; `probability`
    float32[slots] of that token, NaN when the model is broken; `pauses` float32[slots, heads], the
    probability that the speaker has nothing more to say in the head's horizon; `energy`
    float32[slots], variance of the block's samples.
    """

    pcm: npt.NDArray[np.float32]
    active: npt.NDArray[np.bool_]
    fresh: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int32]
    probability: npt.NDArray[np.float32]
    pauses: npt.NDArray[np.float32]
    energy: npt.NDArray[np.float32]


class RowModel(Protocol):
    """A model that steps all rows at once. Blocking; made and called on one thread only."""

    facts: ModelFacts

    def step(self, arrays: RowArrays) -> None:
        """One block further for the active rows. Any exception means that the model is lost."""

    def close(self) -> None:
        """Free everything. Idempotent."""


def _layout(slots: int, block: int, heads: int) -> list[tuple[str, tuple[int, ...], type[Any]]]:
    return [
        ("pcm", (slots, block), np.float32),
        ("active", (slots,), np.bool_),
        ("fresh", (slots,), np.bool_),
        ("tokens", (slots,), np.int32),
        ("probability", (slots,), np.float32),
        ("pauses", (slots, heads), np.float32),
        ("energy", (slots,), np.float32),
    ]


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def size_of(slots: int, block: int, heads: int) -> int:
    """Bytes that `arrays` needs."""
    return sum(
        _aligned(int(np.prod(shape)) * np.dtype(kind).itemsize)
        for _, shape, kind in _layout(slots, block, heads)
    )


def arrays(
    slots: int, block: int, heads: int, memory: bytearray | memoryview | None = None
) -> RowArrays:
    """Zeroed arrays, or those that lie in `memory` already. ValueError when it is too small."""
    size = size_of(slots, block, heads)
    if memory is None:
        memory = bytearray(size)
    if len(memory) < size:
        raise ValueError(f"{size} bytes are needed for {slots} slots, not {len(memory)}")
    made: dict[str, Any] = {}
    offset = 0
    for name, shape, kind in _layout(slots, block, heads):
        count = int(np.prod(shape))
        made[name] = np.frombuffer(memory, kind, count, offset).reshape(shape)
        offset += _aligned(count * np.dtype(kind).itemsize)
    return RowArrays(**made)
