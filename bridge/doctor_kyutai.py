"""What doctor can see of Kyutai: its package, the GPU, the model, and how many slots fit."""

from __future__ import annotations

import importlib.util

from bridge.config import EngineSettings
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.engine import checkpoint
from bridge.engine.checkpoint import Checkpoint
from bridge.engine.device import Gpu, NoGpu, pick
from bridge.errors import EngineUnavailable

AMPERE = (8, 0)  # the first that multiplies bfloat16
INSTALL = "pip install 'callscribe[kyutai]'"


def check(settings: EngineSettings) -> list[Finding]:
    """For `engine.kind` kyutai, or auto where that is what it means. Blocks for some seconds."""
    if importlib.util.find_spec("moshi") is None:
        return [failed("engine", "moshi, which kyutai runs on, is not installed", INSTALL)]
    gpu, findings = _gpu(settings)
    found, about = _model(settings)
    findings.append(about)
    if gpu is not None and found is not None:
        findings.append(_slots(settings, gpu, found))
    return findings


def unused(settings: EngineSettings) -> bool:
    """Whether there is a GPU that kyutai could run on, and something else is in the way."""
    try:
        pick(settings.device)
    except NoGpu:
        return False
    return True


def _gpu(settings: EngineSettings) -> tuple[Gpu | None, list[Finding]]:
    slow = "a CPU hears few calls at once, or none fast enough: for trying it out only"
    try:
        gpu = pick(settings.device)
    except NoGpu as e:
        if settings.device.startswith("cuda"):
            return None, [failed("GPU", str(e))]
        return None, [warning("GPU", str(e), slow)]
    found = f"{gpu}, {_gib(gpu.free)} free"
    if gpu.capability < AMPERE and settings.dtype in ("auto", "bfloat16"):
        advice = 'set engine.dtype = "float16"'
        return gpu, [warning("GPU", f"{found}; it is slow with bfloat16", advice)]
    return gpu, [ok("GPU", found)]


def _model(settings: EngineSettings) -> tuple[Checkpoint | None, Finding]:
    model, revision = settings.model, settings.revision
    try:
        if not checkpoint.is_directory(model) and not checkpoint.cached(model, revision):
            checkpoint.ask(model, revision)
            found = f"{model} is on the hub, and is fetched when the bridge is first started"
            return None, ok("model", found)
        here = checkpoint.find(model, revision, download=False)
    except EngineUnavailable as e:
        return None, failed("model", str(e))
    found = f"{here.name}, complete on this machine; words come {here.shape.delay:g} s late"
    if not here.heads:
        return here, ok("model", f"{found}; without pause heads, turns end by the sound alone")
    return here, ok("model", f"{found}; {here.heads} pause heads")


def _slots(settings: EngineSettings, gpu: Gpu, found: Checkpoint) -> Finding:
    dtype = "bfloat16" if settings.dtype == "auto" else settings.dtype
    slot = checkpoint.slot_bytes(found.shape, dtype)
    weights = checkpoint.weight_bytes(found.shape, found.heads, dtype)
    reserve = round(settings.reserve_gb * 2**30) if settings.slots == "auto" else 0
    fit = checkpoint.slots_that_fit(gpu.free, slot=slot, weights=weights, reserve=reserve)
    sizes = f"{slot / 1e6:.0f} MB each beside {weights / 1e9:.1f} GB of weights"
    if settings.slots == "auto" and fit:
        left = f", with {settings.reserve_gb:g} GiB left" if reserve else ""
        return ok("slots", f"{fit} fit into the {_gib(gpu.free)} that are free{left}; {sizes}")
    if fit and settings.slots != "auto" and settings.slots <= fit:
        return ok("slots", f"{settings.slots}; {fit} would fit; {sizes}")
    wanted = f"{settings.slots} do not fit, {fit} do" if fit else "none fits"
    if gpu.free < 0.9 * gpu.total:  # perhaps the very bridge that is asked about
        advice = "another program, perhaps this bridge itself, has the rest: see nvidia-smi"
        return warning(
            "slots", f"{wanted} into the {_gib(gpu.free)} that are free; {sizes}", advice
        )
    advice = f'set engine.slots = {fit}, or "auto"' if fit else "take a smaller engine.model"
    return failed("slots", f"{wanted} into {_gib(gpu.free)}; {sizes}", advice)


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"
