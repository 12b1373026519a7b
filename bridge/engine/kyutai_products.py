"""Products of few rows and large weights on a CPU, the other way round.

What a linear layer does, `x @ W.T` with `x` of a few rows, takes MKL several times as long as
`(W @ x.T).T`, which reads the same weights once: with 4 rows and 2048 × 11264 weights 35 ms against
8, with 2 threads of an AMD EPYC. One row is the same both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from moshi.modules.gating import ActivationGating
from torch.nn import functional


class TurnedProducts:
    """All linear layers and gates of `models`, until `aside`."""

    def __init__(self, models: Sequence[torch.nn.Module]) -> None:
        self._parts: list[tuple[torch.nn.Module, Callable[..., torch.Tensor]]] = []
        for module in (module for model in models for module in model.modules()):
            if type(module) is torch.nn.Linear:
                self._parts.append((module, partial(_linear, module.weight, module.bias)))
            elif isinstance(module, ActivationGating) and _plain(module):
                self._parts.append((module, partial(_gate, module)))
        self._turn()

    def _turn(self) -> None:
        for module, forward in self._parts:
            module.forward = forward

    @contextmanager
    def aside(self) -> Iterator[None]:
        """torch's own meanwhile."""
        with ExitStack() as stack:
            stack.callback(self._turn)
            for module, _ in self._parts:
                del module.forward  # its class has it still
            yield


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) == 1:
        return functional.linear(x, weight, bias)
    product = (weight @ rows.T).T.contiguous().view(*x.shape[:-1], -1)
    return product if bias is None else product + bias


def _plain(gate: ActivationGating) -> bool:
    return type(gate.linear_in) is type(gate.linear_out) is torch.nn.Linear


def _gate(gate: Any, x: torch.Tensor) -> torch.Tensor:
    """moshi's `gating_forward_kernel`, which asks no layer for its product."""
    both = _linear(gate.linear_in.weight, None, x)
    both = both.view(*x.shape[:-1], 2, -1)
    gated: torch.Tensor = gate.activation(both[..., 0, :]) * both[..., 1, :]
    return _linear(gate.linear_out.weight, None, gated)
