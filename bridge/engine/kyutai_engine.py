"""Kyutai speech-to-text as an engine: rows in a process of their own, words made of them here.

    Batcher ─ KyutaiModel ─ ProcessRows ═ shared memory ═ KyutaiRows (torch, moshi; the GPU)
                  └ WordRows: tokens → words, pauses

torch is never imported in the bridge's own process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor

from bridge.config import EngineSettings
from bridge.engine import device, language
from bridge.engine.batcher import Batcher, rules
from bridge.engine.process import ProcessRows
from bridge.engine.rows import RowArrays, RowModel
from bridge.engine.words import WordRows
from bridge.errors import BridgeError
from bridge.interfaces import Batch
from bridge.types import Heard

log = logging.getLogger(__name__)

TARGET = "bridge.engine.kyutai_load:make"
RATE, BLOCK = 24_000, 1_920  # Hz, samples: Mimi's frame of 80 ms
GPU_BUDGET = 0.04  # s; half a block, so that a leg that fell behind catches up
LOAD_TIMEOUT = 300.0  # s without a line of progress


class KyutaiModel:
    """A `BatchModel`: rows of tokens, and the words that they make.

    `arrays` are those that `rows` steps with. `watchdog`: seconds of speech without text after
    which a row is stuck.
    """

    def __init__(self, rows: RowModel, arrays: RowArrays, *, watchdog: float = 6.0) -> None:
        facts = rows.facts
        self.slots, self.rate, self.block = facts.slots, facts.rate, facts.block
        # What a row has not heard of its last block waits as long as the model's own delay.
        self.delay = facts.delay + facts.prefix % facts.block / facts.rate
        ending = np.zeros(facts.slots, np.bool_)
        self.batch = Batch(arrays.pcm, arrays.active, arrays.fresh, ending)
        self.facts = facts
        self._rows = rows
        self._arrays = arrays
        self._words = WordRows(facts, pieces(facts.tokenizer), patience=watchdog)

    def step(self) -> dict[int, Heard]:
        """See `BatchModel.step`."""
        self._rows.step(self._arrays)
        return self._words.hear(self._arrays, self.batch.ending)

    def close(self) -> None:
        """See `BatchModel.close`."""
        self._rows.close()


def pieces(tokenizer: str) -> list[str]:
    """The pieces of a SentencePiece model, by id."""
    model = SentencePieceProcessor(tokenizer)
    return [model.id_to_piece(i) for i in range(model.vocab_size())]


def make(settings: EngineSettings) -> Batcher:
    """What `config.ENGINE_KINDS` names."""
    return engine(
        options(settings),
        settings,
        budget=None if device.resolve(settings.device) == "cpu" else GPU_BUDGET,
    )


def _load_languages(languages: list[str]) -> None:
    """Now, and not at the first final. Without them a call is transcribed all the same."""
    try:
        language.load(tuple(languages))
    except BridgeError as e:
        log.warning("finals will not say their language: %s", e)
        languages.clear()


def options(settings: EngineSettings) -> dict[str, Any]:
    """What the engine's process is told."""
    names = (
        "model", "revision", "device", "dtype", "slots", "reserve_gb", "threads", "speedups",
    )  # fmt: skip
    return {name: getattr(settings, name) for name in names}


def engine(
    options: dict[str, Any],
    settings: EngineSettings,
    *,
    budget: float | None,
    target: str = TARGET,
    progress: Callable[[str], None] | None = None,
) -> Batcher:
    """A recogniser whose rows `target` makes of `options`."""
    languages: list[str] = []

    def load() -> KyutaiModel:
        rows = ProcessRows(
            target,
            options,
            load_timeout=LOAD_TIMEOUT,
            step_timeout=settings.step_timeout,
            name="kyutai",
            progress=progress,
        )
        try:
            options["slots"] = rows.facts.slots  # a model that is made anew has as many
            languages[:] = rows.facts.languages
            if len(languages) > 1:
                _load_languages(languages)
            return KyutaiModel(rows, rows.arrays, watchdog=settings.watchdog)
        except BaseException:
            rows.close()
            raise

    return Batcher(
        "kyutai",
        load,
        rate=RATE,
        block=BLOCK,
        rules=rules(settings, budget),
        language=lambda text: language.tell(text, tuple(languages)),
    )
