"""How much of the device's memory a model takes, and each slot of it. Arithmetic only. Pure.

A slot's state is exact: it is the tensors that moshi's streaming modules keep per row, counted
from the configuration. What a step needs besides is an allowance, and argued where it stands.
"""

from __future__ import annotations

import math

from bridge.engine.checkpoint_config import ModelShape, TransformerShape
from bridge.engine.checkpoint_tensors import encoder_convs, lm_tensors, mimi_tensors

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
OFFSET = 8  # bytes; moshi counts positions in int64
MIMI = "float32"  # what Mimi runs in


def state_bytes(model: ModelShape, dtype: str, *, mimi: str = MIMI) -> int:
    """What moshi keeps for one row of a batch. `dtype`: of the language model.

    The rings of keys and values, the samples that the convolutions remember, LMGen's tokens and
    the positions. Mimi's decoder is thrown away before it streams. Not counted: a byte of exec
    mask per module, which is written before each step and is no state.
    """
    lm = _ring(model.lm.transformer, ITEM[dtype])
    tokens = (model.lm.n_q + 1) * 2 * OFFSET  # LMGen keeps max(delays) + 2 steps; delays are 0
    return lm + tokens + OFFSET + _mimi_state(model, ITEM[mimi])


def _ring(shape: TransformerShape, item: int) -> int:
    """A transformer: per layer keys and values, `offset` and `end_offset`; and `offsets`."""
    layer = 2 * shape.context * shape.kv_dim * item + 2 * OFFSET
    return shape.layers * layer + OFFSET


def _mimi_state(model: ModelShape, item: int) -> int:
    mimi = model.mimi
    convs = sum(conv.inputs * conv.kept * item + 1 for conv in encoder_convs(mimi))  # 1: `first`
    downsample = mimi.seanet.dim * mimi.stride * item + 1
    return convs + downsample + _ring(mimi.transformer, item)


def working_bytes(model: ModelShape, dtype: str, *, mimi: str = MIMI) -> int:
    """What a step needs per row besides: an allowance, above what can be counted on paper.

    Mimi's encoder is widest at full rate. There a residual block holds its input, the ELU of it,
    that with the samples remembered before it, and the convolution's output: four times the
    widest. The step runs once as it is and once as a CUDA graph, which keeps memory of its own:
    twice that. The language model: one layer's ring, in case the attention's kernel copies keys
    and values to be aligned, and the logits three times in float32 (float, softmax, sampling).
    Samples come in, in a buffer of the device, and are cleaned into another.
    """
    widest = max(
        conv.outputs * (model.mimi.block // conv.every) for conv in encoder_convs(model.mimi)
    )
    encoder = 2 * 4 * widest * ITEM[mimi]
    lm = model.lm.transformer
    ring = 2 * lm.context * lm.kv_dim * ITEM[dtype]
    return encoder + ring + 3 * model.lm.text_card_out * 4 + 3 * model.mimi.block * 4


def slot_bytes(model: ModelShape, dtype: str, *, mimi: str = MIMI) -> int:
    """What one slot takes of the device's memory."""
    return state_bytes(model, dtype, mimi=mimi) + working_bytes(model, dtype, mimi=mimi)


def weight_bytes(model: ModelShape, heads: int, dtype: str, *, mimi: str = MIMI) -> int:
    """What the weights take while the engine runs; Mimi's decoder has been thrown away.

    Mimi's books are kept twice: as loaded, and divided by how often each entry was used.
    """
    lm = sum(map(math.prod, lm_tensors(model.lm, heads).values()))
    encoder = sum(map(math.prod, mimi_tensors(model.mimi, decoder=False).values()))
    books = model.lm.n_q * model.mimi.bins * model.mimi.book_dim
    return lm * ITEM[dtype] + (encoder + books) * ITEM[mimi]


def slots_that_fit(free: int, *, slot: int, weights: int = 0, reserve: int = 0) -> int:
    """Into `free` bytes. `weights`: those that are not loaded yet."""
    return max(0, (free - weights - reserve) // slot)
