"""A whole step as one CUDA graph: the GPU is told once what it shall do, and not a thousand times.

moshi has a graph for each of its larger parts; what is between them (the quantiser, LMGen's
bookkeeping, pause heads) is told operation by operation, which takes the host longer than the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch


def graphs_for(device: torch.device) -> MakeGraphs | None:
    """What makes them, if the device has any."""
    return StepGraphs if device.type == "cuda" else None


class StepGraphs:
    """`step(variant)` works between tensors that stay where they are, and nothing waits in it.

    A graph per variant. What they need besides lies in one pool: they never run at the same time,
    and none leaves anything there for later.
    """

    def __init__(self, step: Callable[[int], None], variants: Iterable[int]) -> None:
        pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        for variant in variants:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                step(variant)
            self._graphs[variant] = graph

    def run(self, variant: int) -> None:
        self._graphs[variant].replay()


MakeGraphs: TypeAlias = Callable[[Callable[[int], None], Iterable[int]], StepGraphs]
