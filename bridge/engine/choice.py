"""Which recogniser is used, and why."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from bridge.config import ENGINE_KINDS, EngineSettings
from bridge.engine import checkpoint, device
from bridge.engine.batcher import Batcher
from bridge.errors import Busy, EngineUnavailable
from bridge.interfaces import Recogniser

EMBEDDED = "pocketsphinx"  # what works anywhere


@dataclass(frozen=True, slots=True)
class Choice:
    """`target` is ``module:function``; `why` is a sentence for the log and for doctor."""

    kind: str
    target: str
    why: str


def choose(settings: EngineSettings) -> Choice:
    """Decide without loading anything heavy.

    "auto" asks the GPU's driver, and the hub when the model is not on this machine: it may block
    for some seconds. Decide once, and give the choice to `build`.
    """
    kind = settings.kind
    if kind == "auto":
        return _auto(settings)
    if kind in ENGINE_KINDS:
        return Choice(kind, ENGINE_KINDS[kind], f'engine.kind is "{kind}"')
    return Choice(kind, kind, "engine.kind names a function of your own")


def _auto(settings: EngineSettings) -> Choice:
    try:
        why = kyutai(settings)
    except EngineUnavailable as e:
        why = f"engine.kind is auto, and for kyutai something is missing: {e}"
        return Choice(EMBEDDED, ENGINE_KINDS[EMBEDDED], why)
    return Choice("kyutai", ENGINE_KINDS["kyutai"], f"engine.kind is auto, and there is {why}")


def kyutai(settings: EngineSettings) -> str:
    """What Kyutai would run on here. Raises `EngineUnavailable` with all that is missing."""
    missing = []
    gpu: device.Gpu | None = None
    try:
        gpu = device.pick(settings.device)
    except EngineUnavailable as e:
        missing.append(str(e))
    if importlib.util.find_spec("moshi") is None:
        missing.append("moshi is not installed (pip install 'callscribe[kyutai]')")
    if gpu is None or missing:
        raise EngineUnavailable("; ".join(missing))
    return f"a GPU ({gpu}) and {_model(settings)}"


def _model(settings: EngineSettings) -> str:
    """Where its files are. Raises `EngineUnavailable`."""
    model, revision = settings.model, settings.revision
    if checkpoint.is_directory(model):
        return f"a model in {checkpoint.find(model).name}"
    if checkpoint.cached(model, revision):
        checkpoint.find(model, revision, download=False)
        return f"{model} on this machine"
    checkpoint.ask(model, revision)
    return f"{model} on the hub, from where it is fetched"


def build(settings: EngineSettings, choice: Choice | None = None) -> Recogniser:
    """The chosen recogniser, not started yet. Raises `EngineUnavailable`."""
    choice = choice or choose(settings)
    module_name, _, function = choice.target.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as e:
        raise EngineUnavailable(f"engine.kind = {choice.kind!r} cannot be imported: {e}") from e
    return cast(Callable[[EngineSettings], Recogniser], made)(settings)


def objection(engine: Recogniser) -> Busy | None:
    """What an engine has against any new leg, though it may have slots; None: nothing."""
    if isinstance(engine, Batcher) and engine.budget.spent(time.monotonic()):
        return Busy("overload", "steps of the engine take too long for another leg")
    return None
