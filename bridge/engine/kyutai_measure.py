"""Kyutai rows that say what a step costs: what `callscribe bench engine` runs in their process.

What moshi itself needs for the same rows is measured in the same process, step by step in turn
with ours: on a machine whose speed wanders, two runs one after the other compare nothing.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from bridge.engine import kyutai_load
from bridge.engine.kyutai import KyutaiRows
from bridge.engine.kyutai_random import random_rows
from bridge.engine.rows import RowArrays

RAW = 0.5  # a first sample that asks for a step of moshi's own before ours
COPIED = 1 << 28  # float32 values; 1 GiB is far more than any cache


class MeasuredRows:
    """A `RowModel`. After a step `pcm[0]` begins with moshi's seconds (0: not asked) and ours."""

    def __init__(self, rows: KyutaiRows) -> None:
        self.facts = rows.facts
        self._rows = rows

    def step(self, arrays: RowArrays) -> None:
        """See `RowModel.step`."""
        raw = 0.0
        if arrays.pcm[0, 0] == RAW:
            began = time.perf_counter()
            self._rows.raw_step()
            raw = time.perf_counter() - began
        began = time.perf_counter()
        self._rows.step(arrays)
        arrays.pcm[0, :2] = raw, time.perf_counter() - began

    def close(self) -> None:
        """See `RowModel.close`."""
        self._rows.close()


def make(options: dict[str, Any], progress: Callable[[str], None]) -> MeasuredRows:
    """As `kyutai_load.make`, with ``random`` (a size) for random weights.

    ``fill``: steps of moshi's own before anything is measured, so that rings are full. The last
    line of progress is JSON: ``device``, ``bandwidth`` (bytes a second), ``weights`` and ``used``
    (bytes).
    """
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    if options.get("random"):
        rows = random_rows(
            options["random"],
            options["slots"],
            device=options["device"],
            dtype=options["dtype"],
        )
    else:
        rows = kyutai_load.make(options, progress)
    for done in range(options.get("fill", 0)):
        rows.raw_step()
        if done % 50 == 0:
            progress(f"filling the rings, step {done}")
    device = torch.device(rows.facts.device)
    progress(json.dumps(_machine(device) | {"weights": rows.weight_bytes}))
    return MeasuredRows(rows)


def _machine(device: torch.device) -> dict[str, object]:
    if device.type == "cuda":
        used = torch.cuda.max_memory_reserved(device)
        name = torch.cuda.get_device_name(device)
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        name = f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "used": used, "bandwidth": _bandwidth(device)}


def _bandwidth(device: torch.device) -> float:
    """Bytes a second that copying moves, reading and writing: the best of five."""
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - began))
    return best
