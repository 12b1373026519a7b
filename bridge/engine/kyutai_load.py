"""From a checkpoint to rows: device, precision, weights, as many slots as there is room for.

Whatever stops it ends in `EngineUnavailable`, a sentence that says what to do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel

from bridge.engine.checkpoint import Checkpoint, ModelShape, find, slot_bytes, slots_that_fit
from bridge.engine.kyutai import KyutaiRows, drop_decoder
from bridge.engine.kyutai_speedups import ALL
from bridge.engine.rows import ModelFacts
from bridge.errors import EngineUnavailable

log = logging.getLogger(__name__)

CPU_SLOTS = 4  # of slots = "auto": a CPU is for trying things out
Progress = Callable[[str], None]
Slots = int | Literal["auto"]


def make(options: dict[str, Any], progress: Progress) -> KyutaiRows:
    """What the engine's process runs (`process_child`); `options` as `kyutai_engine` gives them."""
    found = find(options["model"], options["revision"], progress=progress)
    return load(
        found,
        slots=options["slots"],
        device=options["device"],
        dtype=options["dtype"],
        threads=options["threads"],
        speedups=options["speedups"],
        reserve_bytes=round(options["reserve_gb"] * (1 << 30)),
        progress=progress,
    )


def load(
    checkpoint: Checkpoint,
    *,
    slots: Slots,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    speedups: Collection[str] = ALL,
    reserve_bytes: int = 0,
    progress: Progress = lambda line: None,
) -> KyutaiRows:
    """Rows that are warm. `device`, `dtype` as in [engine]; ``auto``: a GPU and bfloat16, if any.

    `slots` ``auto`` fills the device but for `reserve_bytes`. `speedups`: see `kyutai_speedups`.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    if threads:
        torch.set_num_threads(threads)
    with _out_of_memory(checkpoint.name, where):
        progress(f"reading Mimi to {where}")
        info = _info(checkpoint)
        mimi = info.get_mimi(where)
        drop_decoder(mimi)
        progress(f"reading the weights of {checkpoint.name}")
        lm = info.get_moshi(where, kind, lm_kwargs_overrides=_heads(checkpoint))
    return rows_of(
        mimi,
        lm,
        checkpoint.shape,
        name=checkpoint.name,
        tokenizer=str(checkpoint.tokenizer),
        slots=slots,
        speedups=speedups,
        reserve_bytes=reserve_bytes,
        progress=progress,
    )


def _info(checkpoint: Checkpoint) -> loaders.CheckpointInfo:
    """moshi's own reading of `config.json`. Every file is given: it looks for none on the hub."""
    return loaders.CheckpointInfo.from_hf_repo(
        "",
        moshi_weights=checkpoint.weights,
        mimi_weights=checkpoint.mimi,
        tokenizer=checkpoint.tokenizer,
        config_path=checkpoint.config,
        mimi_config_path=checkpoint.mimi_config,
    )


def _heads(checkpoint: Checkpoint) -> dict[str, int]:
    """The published weights that have pause heads have no word of them in their `config.json`."""
    count, classes = checkpoint.heads, checkpoint.shape.lm.head_dim
    return {"extra_heads_num_heads": count, "extra_heads_dim": classes} if count else {}


def rows_of(
    mimi: MimiModel,
    lm: LMModel,
    shape: ModelShape,
    *,
    name: str,
    tokenizer: str,
    slots: Slots,
    speedups: Collection[str] = ALL,
    reserve_bytes: int = 0,
    progress: Progress = lambda line: None,
) -> KyutaiRows:
    """Rows of two models that are on their device already. Raises `EngineUnavailable`."""
    where = lm.device
    if where.type == "cuda":
        torch.cuda.set_device(where)  # moshi captures its graphs on the current one
        torch.backends.cudnn.benchmark = False  # or two runs may take different algorithms
        torch.backends.cudnn.deterministic = True
        torch.cuda.empty_cache()
    dtype = str(lm.dtype).removeprefix("torch.")
    each = slot_bytes(shape, dtype)
    most = None if where.type == "cuda" else CPU_SLOTS
    what = f"{name} on {where}"
    count = fitting_slots(slots, each, free_bytes(where), reserve_bytes, what, most=most)
    facts = ModelFacts(
        name=name,
        slots=count,
        tokenizer=tokenizer,
        delay=shape.delay,
        prefix=shape.prefix,
        heads=len(lm.extra_heads),
        languages=shape.languages,
        rate=shape.mimi.rate,
        block=shape.mimi.block,
        padding=lm.text_padding_token_id,
        boundary=lm.end_of_text_padding_id,
        device=str(where),
        dtype=dtype,
    )
    progress(f"making {count} slots and warming up")
    with _out_of_memory(f"{name} with {count} slots", where):
        return KyutaiRows(mimi, lm, facts, compiled=_can_compile(where), speedups=speedups)


# -- where, and how much of it --------------------------------------------------------------------


def resolve_device(device: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if seen else "cpu"
    where = torch.device(device)
    if where.type != "cuda":
        return where
    if not torch.version.cuda:
        raise EngineUnavailable(
            f"engine.device is {device} and this torch was built without CUDA: "
            'install one with it (https://pytorch.org), or set engine.device = "cpu"'
        )
    if (where.index or 0) >= seen:
        found = "no GPU" if not seen else "1 GPU" if seen == 1 else f"{seen} GPUs"
        raise EngineUnavailable(
            f"engine.device is {device} and torch sees {found}: "
            'look at nvidia-smi, or set engine.device = "cpu"'
        )
    return torch.device("cuda", where.index or 0)


def resolve_dtype(dtype: str, where: torch.device) -> torch.dtype:
    """``auto``: bfloat16, in which the models were trained; on a CPU float32, which is faster."""
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found


def free_bytes(where: torch.device) -> int:
    """Of the device's memory."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def fitting_slots(
    slots: Slots, each: int, free: int, reserve: int, what: str, *, most: int | None = None
) -> int:
    """How many slots of `each` bytes to make in `free` bytes. `what`: the model and the device.

    `reserve` bytes stay free, and `most` slots are made, when `slots` is ``auto``.
    """
    auto = slots == "auto"
    fit = slots_that_fit(free, slot=each, reserve=reserve if auto else 0)
    wanted = (fit if most is None else min(fit, most)) if slots == "auto" else slots
    if fit == 0:
        beside = f" beside the reserve of {_gb(reserve)}" if auto and reserve else ""
        raise EngineUnavailable(
            f"no slot of {what} fits: one takes {_gb(each)} and {_gb(free)} is free{beside}; "
            "stop what else uses the memory, or take a smaller engine.model"
        )
    if wanted > fit:
        raise EngineUnavailable(
            f"{wanted} slots of {what} take {_gb(wanted * each)} and {_gb(free)} is free: "
            f'{fit} fit; set engine.slots = {fit}, or "auto"'
        )
    return wanted


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


@contextmanager
def _out_of_memory(what: str, where: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        if not isinstance(e, torch.OutOfMemoryError) and "can't allocate memory" not in str(e):
            raise
        raise EngineUnavailable(
            f"{where} has not enough memory for {what}: set fewer engine.slots, stop what else "
            "uses the memory, or take a smaller engine.model"
        ) from e


def _can_compile(where: torch.device) -> bool:
    """Whether torch.compile works, which moshi uses for a few small things on a GPU.

    It wants triton, a C compiler and Python's headers; trying is the only way to know.
    """
    if where.type != "cuda" or os.environ.get("NO_TORCH_COMPILE"):
        return False
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(2, device=where))
    except (RuntimeError, ImportError, OSError) as e:
        why = str(e).strip().splitlines() or [type(e).__name__]
        log.warning(
            "torch cannot compile here, and steps take a little longer: "
            "install a C compiler and Python's headers (%s)", why[0]
        )  # fmt: skip
        return False
    return True
