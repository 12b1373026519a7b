"""Attention of moshi's transformers with what their layers have in common made once a step.

In moshi every layer has a position of its own, and makes of it, each step, where its ring is
written, which of its places may be looked at, and the rotation (RoPE) of queries and keys: about
thirty small operations a layer, with the same results in each. On a GPU they take longer than the
products of a small batch. Here they are made once, of the position that the transformer has.

Of a ring only so much is read as the longest of the active calls has written: `reach`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from moshi.modules.transformer import StreamingMultiheadAttention, StreamingTransformer
from moshi.utils.compile import torch_compile_lazy
from torch.nn import functional

from bridge.errors import EngineUnavailable

POSITIONS = "offset", "end_offset"  # of a layer and its ring, which are not used here
ALIGNED = 16  # values; rows of a mask that begin elsewhere are copied by the GPU's kernel


class SharedAttention:
    """The attention of `transformer`, which is streaming, until `aside`.

    Raises `EngineUnavailable` where the transformer is not as Kyutai's models and Mimi have it.
    """

    def __init__(self, transformer: StreamingTransformer) -> None:
        layers: list[Any] = [cast(Any, layer).self_attn for layer in transformer.layers]
        why = next(filter(None, map(_unlike, layers)), None)
        if why is not None:
            raise EngineUnavailable(
                f"this model's attention {why}: take attention out of engine.speedups"
            )
        first = layers[0]
        state = transformer._streaming_state
        assert state is not None
        assert first.rope is not None
        self.context = cast(int, first.context)
        self.reach = self.context
        self._state, self._layers = state, layers
        self._on = True
        self._dtype = next(first.parameters()).dtype
        size = first.embed_dim // first.num_heads
        halves = torch.arange(size // 2, device=state.device, dtype=torch.float32)
        self._turns = torch.exp(halves * (-math.log(first.rope.max_period) * 2 / size))
        self._ring = torch.arange(self.context, device=state.device)
        transformer.register_forward_pre_hook(self._prepare)
        for layer in layers:
            layer.forward = self._forward_of(layer)

    def tell_layers(self) -> None:
        """Where the rows are, to the layers' own positions."""
        for layer in self._layers:
            state = layer._streaming_state
            state.offset.copy_(self._state.offsets)
            state.kv_cache.end_offset.copy_(self._state.offsets)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """moshi's own attention meanwhile; the positions of its layers are their own."""
        self._on, kept = False, self._state.offsets.clone()
        try:
            yield
        finally:
            self._on = True
            self._state.offsets.copy_(kept)

    def _prepare(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """What all layers need of where each row is. `inputs`: [rows, steps, width]."""
        if not self._on:
            return
        steps = inputs[0].shape[1]
        ahead = self._ring[:steps]
        at = self._state.offsets[:, None] + ahead  # [rows, steps], of what is new
        places = at % self.context
        self._places = places[:, None, :, None]
        self._mask = self._mask_of(at, places[:, -1:])
        times = self._state.offsets.float()[:, None] + ahead.float()
        angles = self._turns * times[:, None, :, None]
        self._rotation = torch.cos(angles), torch.sin(angles)

    def _mask_of(self, at: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        """[rows, 1, steps, reach]: 0 where it may be looked, else minus infinity.

        `newest` [rows, 1]: the place that is written last. Rows that do not move look everywhere:
        where they are may be out of reach, and a row of minus infinities would make NaN.
        """
        position = at[:, -1:] - (newest - self._ring[: self.reach]) % self.context
        seen = (position >= 0)[:, None] & (position[:, None] <= at[:, :, None])
        seen = seen | ~self._state.exec_mask[:, None, None]
        rows, steps = at.shape
        width = -(-self.reach // ALIGNED) * ALIGNED
        mask = torch.zeros(rows, 1, steps, width, dtype=self._dtype, device=at.device)
        return mask[..., : self.reach].masked_fill_(~seen[:, None], -math.inf)

    def _forward_of(self, layer: Any) -> Callable[..., torch.Tensor]:
        """What stands in the place of `StreamingMultiheadAttention.forward`."""
        original = layer.forward
        keys, values = layer._streaming_state.kv_cache.cache

        def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            if not self._on:
                return cast(torch.Tensor, original(query, key, value))
            rows, steps, _ = query.shape
            projected = layer.in_projs[0](query).view(rows, steps, 3, layer.num_heads, -1)
            q, k, v = projected.permute(2, 0, 3, 1, 4)
            q, k = _rotate(q, k, *self._rotation)
            places = self._places.expand_as(k)
            keys.scatter_(2, places, k)
            values.scatter_(2, places, v)
            seen = functional.scaled_dot_product_attention(
                q, keys[:, :, : self.reach], values[:, :, : self.reach], self._mask
            )
            out: torch.Tensor = layer.out_projs[0](seen.transpose(1, 2).reshape(query.shape))
            return out

        return forward


@torch_compile_lazy  # type: ignore[untyped-decorator]
def _rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE of [rows, heads, steps, size], pairs of neighbours: moshi's `apply_rope` from there."""
    return _turned(q, cos, sin), _turned(k, cos, sin)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = x.view(*x.shape[:-1], -1, 2)
    real, imaginary = pairs[..., 0].float(), pairs[..., 1].float()
    turned = real * cos - imaginary * sin, real * sin + imaginary * cos
    return torch.stack([part.to(x.dtype) for part in turned], dim=-1).flatten(-2)


def _unlike(attention: StreamingMultiheadAttention) -> str | None:
    """How it differs from what `SharedAttention` does."""
    state = attention._streaming_state
    if attention.cross_attention or attention.kv_repeat != 1 or attention.weights_per_step:
        return "is of another kind"
    if not attention.causal or attention.rope is None or not attention.rope.interleave:
        return "has other positions"
    if state is None or state.kv_cache is None or state.kv_cache.capacity != attention.context:
        return "has no ring as long as its context"
    return None
