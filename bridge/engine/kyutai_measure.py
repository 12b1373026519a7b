"""Kyutai rows that say what a step costs: what `callscribe bench engine` runs in their process.

What moshi itself needs for the same rows is measured in the same process, step by step in turn
with ours: on a machine whose speed wanders, two runs one after the other compare nothing.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from moshi.utils.compile import CUDAGraphed

from bridge.engine import kyutai_load
from bridge.engine.kyutai import KyutaiRows
from bridge.engine.kyutai_random import random_rows
from bridge.engine.rows import RowArrays

RAW = 0.5  # a first sample that asks for a step of moshi's own before ours
COPIED = 1 << 28  # float32 values; 1 GiB is far more than any cache


class RawStep:
    """moshi's own part of a step and nothing else, with all rows: what ours is measured by.

    It has CUDA graphs of its own, of its own modules. The rows hear noise, always the same.
    """

    def __init__(self, rows: KyutaiRows) -> None:
        self._rows = rows
        facts = rows.facts
        self._device = torch.device(facts.device)
        with torch.inference_mode():
            noise = torch.rand(facts.slots, 1, facts.block, device=self._device)
        self._noise = noise * 0.2 - 0.1
        self._graphs: list[tuple[Any, str, CUDAGraphed]] = []
        with rows.moshis_own() as (mimi, gen):
            own: list[tuple[Any, str, Any]] = [
                (mimi._streaming_state, "graphed_encoder", mimi.encoder),
                (mimi._streaming_state, "graphed_tr_enc", mimi.encoder_transformer),
                (gen._streaming_state, "graphed_main", gen.lm_model.forward_text),
            ]
        for owner, name, function in own:
            graph = CUDAGraphed(function, disable=self._device.type != "cuda")
            self._graphs.append((owner, name, graph))

    def __call__(self) -> float:
        """Seconds until the device is done."""
        with self._rows.moshis_own() as (mimi, gen), ExitStack() as stack:
            for owner, name, graph in self._graphs:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, graph)
            self._wait()
            began = time.perf_counter()
            gen.step_with_extra_heads(mimi.encode(self._noise))
            self._wait()
            return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class MeasuredRows:
    """A `RowModel`. After a step `pcm[0]` begins with seconds: moshi's (0: not asked), ours, and
    what was spent before ours.
    """

    def __init__(self, rows: KyutaiRows) -> None:
        self.facts = rows.facts
        self._rows = rows
        self._raw_step = RawStep(rows)

    def step(self, arrays: RowArrays) -> None:
        """See `RowModel.step`."""
        called, raw = time.perf_counter(), 0.0
        if arrays.pcm[0, 0] == RAW:
            raw = self._raw_step()
        began = time.perf_counter()
        self._rows.step(arrays)
        ended = time.perf_counter()
        arrays.pcm[0, :3] = raw, ended - began, began - called

    def close(self) -> None:
        """See `RowModel.close`."""
        self._rows.close()


def make(options: dict[str, Any], progress: Callable[[str], None]) -> MeasuredRows:
    """As `kyutai_load.make`, with ``random`` (a size) for random weights.

    The last line of progress is JSON: ``device``, ``bandwidth`` (bytes a second), ``weights`` and
    ``used`` (bytes).
    """
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    if options.get("random"):
        rows = random_rows(
            options["random"],
            options["slots"],
            device=options["device"],
            dtype=options["dtype"],
            speedups=options["speedups"],
        )
    else:
        rows = kyutai_load.make(options, progress)
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
