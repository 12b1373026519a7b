"""Which recogniser is used, and why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from bridge.config import ENGINE_KINDS, EngineSettings
from bridge.errors import EngineUnavailable
from bridge.interfaces import Recogniser


@dataclass(frozen=True, slots=True)
class Choice:
    """`target` is ``module:function``; `why` is a sentence for the log and for doctor."""

    kind: str
    target: str
    why: str


def choose(settings: EngineSettings) -> Choice:
    """Decide without loading anything heavy."""
    kind = settings.kind
    if kind == "auto":
        return Choice(
            "pocketsphinx",
            ENGINE_KINDS["pocketsphinx"],
            "engine.kind is auto and the embedded recogniser is the only one installed",
        )
    if kind in ENGINE_KINDS:
        return Choice(kind, ENGINE_KINDS[kind], f'engine.kind is "{kind}"')
    return Choice(kind, kind, "engine.kind names a function of your own")


def build(settings: EngineSettings) -> Recogniser:
    """The chosen recogniser, not started yet. Raises `EngineUnavailable`."""
    choice = choose(settings)
    module_name, _, function = choice.target.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as e:
        raise EngineUnavailable(f"engine.kind = {choice.kind!r} cannot be imported: {e}") from e
    return cast(Callable[[EngineSettings], Recogniser], made)(settings)
