"""Codes of a frame, and what the language model makes of them, with fewer operations than moshi.

moshi finds the nearest entry of each of Mimi's books by `torch.cdist`, which makes the whole book
anew with its norms at each step, about a dozen operations a book, and takes roots that change no
order. Here the norms are made once, and a book takes one product, a minimum and a look-up.

Its embeddings look after a code that means zero. None comes here: a code is an entry's number or
the token that stands before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel
from moshi.models.lm_utils import ScaledEmbedding
from moshi.quantization.vq import ResidualVectorQuantizer, SplitResidualVectorQuantizer
from torch.nn import functional

from bridge.errors import EngineUnavailable


class DirectCodes:
    """Mimi's quantiser and the embeddings of `lm`, until `aside`. Raises `EngineUnavailable`."""

    def __init__(self, mimi: MimiModel, lm: LMModel) -> None:
        quantizer = mimi.quantizer
        if not isinstance(quantizer, SplitResidualVectorQuantizer):
            raise EngineUnavailable(
                "this Mimi's quantiser is of another kind: take codes out of engine.speedups"
            )
        self._parts: list[tuple[Any, str, Callable[..., Any]]] = [
            (part.vq, "encode", _encode_of(part))
            for part in (quantizer.rvq_first, quantizer.rvq_rest)
        ]
        for table in (*lm.emb, lm.text_emb):
            if _plain(table):
                self._parts.append((table, "forward", _look_up_of(table)))
        for owner, name, ours in self._parts:
            setattr(owner, name, ours)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """moshi's own meanwhile."""
        with ExitStack() as stack:
            for owner, name, ours in self._parts:
                delattr(owner, name)  # its class has it still
                stack.callback(setattr, owner, name, ours)
            yield


def _encode_of(part: ResidualVectorQuantizer) -> Callable[..., torch.Tensor]:
    """In the place of `ResidualVectorQuantization.encode`: [rows, size, steps] to codes."""
    books: list[torch.Tensor] = [cast(Any, layer)._codebook.embedding for layer in part.vq.layers]
    halves = [book.square().sum(dim=1) / 2 for book in books]

    def encode(latents: torch.Tensor, n_q: int) -> torch.Tensor:
        rows, size, steps = latents.shape
        left = latents.transpose(1, 2).reshape(rows * steps, size)
        codes = []
        for book, half in zip(books[:n_q], halves, strict=False):
            # |x - e|² / 2 but for |x|² / 2, which is the same for all entries
            nearest = torch.addmm(half, left, book.T, alpha=-1).argmin(dim=1)
            left = left - functional.embedding(nearest, book)
            codes.append(nearest.view(rows, steps))
        return torch.stack(codes)

    return encode


def _plain(table: ScaledEmbedding) -> bool:
    return table.norm is None and table.low_rank is None and not table.demux_second_stream


def _look_up_of(table: ScaledEmbedding) -> Callable[..., torch.Tensor]:
    def forward(codes: torch.Tensor) -> torch.Tensor:
        return functional.embedding(codes, table.weight)

    return forward
