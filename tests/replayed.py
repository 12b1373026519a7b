"""CUDA graphs without a GPU: what a function does is recorded and replayed.

As on a GPU an operation is repeated on the same memory, its results are written where they were
written first, and Python is not asked again. What would stop a capture is refused: to wait for a
value, to make something whose size depends on one, to copy from the host (but for a number, which
`tensor[mask] = number` brings, and a GPU is told as it is).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")


class Recording(TorchDispatchMode):
    """Everything that is done while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        kwargs = kwargs or {}
        masked = name == "index" and any(
            getattr(leaf, "dtype", None) is torch.bool for leaf in tree_leaves(args[1])
        )
        brought = name == "lift_fresh" and args[0].dim() > 0
        if name in REFUSED or masked or brought:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        out = func(*args, **kwargs)
        self.done.append((func, args, kwargs, _tensors(out)))
        return out

    @property
    def work(self) -> int:
        """Operations that compute: those that only look at a tensor in another way cost nothing."""
        return sum(
            func._schema.is_mutable
            or not {_storage(old) for old in results} & {_storage(t) for t in _tensors(args)}
            for func, args, _, results in self.done
        )

    def replay(self) -> None:
        for func, args, kwargs, results in self.done:
            for new, old in zip(_tensors(func(*args, **kwargs)), results, strict=True):
                if _storage(new) != _storage(old):
                    old.copy_(new)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class ReplayedGraphs:
    """In the place of `kyutai_graph.StepGraphs`."""

    def __init__(self, step: Callable[[int], None], variants: Iterable[int]) -> None:
        self.ran: list[int] = []
        self._graphs: dict[int, Recording] = {}
        for variant in variants:
            with Recording() as recording:
                step(variant)
            self._graphs[variant] = recording

    def run(self, variant: int) -> None:
        self.ran.append(variant)
        self._graphs[variant].replay()
