"""The Kyutai engine as a leg sees it: a process with rows, words, hearing again after a fault.

The model is tiny and random: its words mean nothing, and are the same whenever the same audio is
heard from the same beginning. What they should be is the reference's tokens made into words alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("moshi", reason="moshi is not installed: pip install 'callscribe[kyutai]'")

import torch  # noqa: E402

from bridge.config import EngineSettings  # noqa: E402
from bridge.engine import kyutai_engine  # noqa: E402
from bridge.engine.batcher import Batcher  # noqa: E402
from bridge.engine.choice import build  # noqa: E402
from bridge.engine.kyutai_random import sound, write  # noqa: E402
from bridge.engine.process import ProcessRows  # noqa: E402
from bridge.engine.rows import ModelFacts, arrays  # noqa: E402
from bridge.engine.words import WordRows  # noqa: E402
from bridge.errors import EngineUnavailable  # noqa: E402
from bridge.types import Heard, Word  # noqa: E402
from tests.kyutai_reference import FRAME, Reference  # noqa: E402
from tests.waiting import until  # noqa: E402

Audio = npt.NDArray[np.float32]
SLOTS = 3
HEADS = 4
TOKENIZER = "tokenizer_en_fr_audio_8000.model"  # published so; it tells the languages
PATIENCE = 60.0  # s, on a machine that does much else
FRAMES = 40  # of a call: more than the tiny model's context

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), heads=True, tokenizer_name=TOKENIZER)


class Oracle:
    """What calls, named by a seed, should hear when they are alone."""

    def __init__(self, checkpoint: Path) -> None:
        self.reference = Reference(checkpoint, heads=HEADS)
        tokenizer = str(checkpoint / TOKENIZER)
        self.facts = ModelFacts("alone", 1, tokenizer, delay=0.5, heads=HEADS)
        self._words: dict[int, list[Word]] = {}

    def audio(self, seed: int) -> Audio:
        return sound(FRAMES * FRAME / 24000, seed)

    def seeds(self, count: int) -> list[int]:
        """Calls without a decision that rounding could turn round."""
        found = (seed for seed in range(100, 200) if self.words(seed))
        return list(islice(found, count))

    def words(self, seed: int) -> list[Word]:
        """Empty when rounding decides."""
        if seed not in self._words:
            silence = np.zeros(FRAME * 24, np.float32)
            said = self.reference.hear(np.concatenate([self.audio(seed), silence]))
            heard = [] if said.tied(len(said.tokens) - 1) else self._heard(said)
            self._words[seed] = heard
        return self._words[seed]

    def _heard(self, said: Any) -> list[Word]:
        rows = WordRows(self.facts, kyutai_engine.pieces(self.facts.tokenizer), patience=0)
        one = arrays(1, FRAME, HEADS)
        one.active[:] = True
        words: list[Word] = []
        extra = 0
        for i in range(len(said.tokens)):
            one.fresh[:] = i == 0
            one.tokens[:], one.probability[:] = said.tokens[i], said.probability[i]
            one.pauses[0] = said.pauses[i]
            drained = i - FRAMES + 1 >= 7  # 0.5 s are 6 blocks, and one
            extra += drained
            last = extra == 13  # and a second more while a word is being spelt
            heard = rows.hear(one, np.array([last])).get(0, Heard())
            words += heard.words
            if last or (drained and not heard.tentative):
                break
        end = FRAMES * 0.08  # the silence after it is not in the call: there time stands still
        return [Word(w.text, min(w.start, end), min(w.end, end), w.confidence) for w in words]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Layers this small only get slower with more, the more so on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


Start = Callable[..., Awaitable[Batcher]]


@pytest.fixture
async def start(checkpoint: Path) -> AsyncIterator[Start]:
    engines: list[Batcher] = []

    async def begin(**more: Any) -> Batcher:
        options: dict[str, Any] = {
            "kind": "kyutai", "model": str(checkpoint), "slots": SLOTS, "device": "cpu",
            "threads": 1, "flush": False, "watchdog": 0, **more,
        }  # fmt: skip
        engine = build(EngineSettings(**options))
        assert isinstance(engine, Batcher)
        engines.append(engine)
        await engine.start()
        return engine

    yield begin
    for engine in engines:
        await engine.close()


class Leg:
    """A lease, and what it was told."""

    def __init__(self, engine: Batcher) -> None:
        self.words: list[Word] = []
        self.heards: list[Heard] = []
        self.done = asyncio.Event()
        self.lease = engine.lease(self.heard, self.done.set)

    def heard(self, heard: Heard) -> None:
        self.heards.append(heard)
        self.words += heard.words

    def push(self, audio: Audio) -> None:
        for block in audio.reshape(-1, FRAME):
            self.lease.push(block)

    async def end(self) -> list[Word]:
        self.lease.finish()
        await asyncio.wait_for(self.done.wait(), PATIENCE)
        return self.words


def near(words: list[Word]) -> list[Word]:
    """Times and confidences to what float32 leaves of them."""
    return [Word(w.text, round(w.start, 3), round(w.end, 3), round(w.confidence, 2)) for w in words]


def in_order(words: list[Word]) -> bool:
    times = [time for word in words for time in (word.start, word.end)]
    return times == sorted(times)


def process_of(engine: Batcher) -> ProcessRows:
    model = engine.model
    assert isinstance(model, kyutai_engine.KyutaiModel)
    rows = model._rows
    assert isinstance(rows, ProcessRows)
    return rows


async def test_every_call_hears_what_it_hears_alone(start: Start, oracle: Oracle) -> None:
    """Ragged, interleaved, slots used again; words, times and confidences."""
    engine = await start()
    assert (engine.slots, engine.ready, engine.used) == (SLOTS, True, 0)
    rng = np.random.default_rng(5)
    waiting = oracle.seeds(6)
    expected = [near(oracle.words(seed)) for seed in waiting]
    assert all(expected), "silence would prove nothing"
    heard: dict[int, list[Word]] = {}

    async def call(seed: int) -> None:
        leg = Leg(engine)
        blocks = oracle.audio(seed).reshape(-1, FRAME)
        at = 0
        while at < len(blocks):
            burst = int(rng.integers(1, 6))
            leg.push(blocks[at : at + burst].reshape(-1))
            at += burst
            for _ in range(int(rng.integers(0, 30))):
                await asyncio.sleep(0)
        heard[seed] = await leg.end()

    for round_ in range(0, 6, SLOTS):
        await asyncio.gather(*(call(seed) for seed in waiting[round_ : round_ + SLOTS]))
    for seed, words in zip(waiting, expected, strict=True):
        assert near(heard[seed]) == words, seed
    assert engine.used == 0
    assert engine.counters == {}


async def test_what_one_leg_sends_is_no_other_legs_matter(start: Start, oracle: Oracle) -> None:
    """NaN, infinity, clipping, DC: steps go on, and the neighbour's words are its own."""
    engine = await start()
    seed = oracle.seeds(1)[0]
    good, bad, silent = Leg(engine), Leg(engine), Leg(engine)
    rng = np.random.default_rng(7)
    shapes = [
        np.full(FRAME, np.nan), np.full(FRAME, np.inf), np.full(FRAME, 40.0), np.full(FRAME, 0.9),
        np.zeros(FRAME), rng.standard_normal(FRAME) * 1e30,
    ]  # fmt: skip
    for i, block in enumerate(oracle.audio(seed).reshape(-1, FRAME)):
        good.push(block)
        bad.push(shapes[i % len(shapes)].astype(np.float32))
        await asyncio.sleep(0)
    said = await good.end()
    assert near(said) == near(oracle.words(seed))
    assert in_order(await bad.end())
    assert await silent.end() == [], "a leg that sent nothing took no step"
    assert engine.counters == {}


async def test_a_killed_process_costs_a_restart_and_no_call(start: Start, oracle: Oracle) -> None:
    engine = await start()
    one, two = oracle.seeds(2)
    first, second = Leg(engine), Leg(engine)
    first.push(oracle.audio(one))
    await until(lambda: len(first.heards) >= FRAMES, PATIENCE)
    before = list(first.words)
    assert before
    os.kill(process_of(engine).pid, signal.SIGKILL)
    first.push(oracle.audio(one)[: 20 * FRAME])
    second.push(oracle.audio(two))
    assert near(await second.end()) == near(oracle.words(two)), "it had heard nothing yet"
    said = await first.end()
    assert said[: len(before)] == before and in_order(said)
    assert said[-1].end > FRAMES * 0.08, "what came after the fault is heard"
    assert (engine.counters["step_errors"], engine.counters["restarts"]) == (1, 1)
    assert engine.counters["blocks_replayed"] >= 30
    assert first.lease.dropped == second.lease.dropped == 0


async def test_a_call_that_had_said_nothing_is_heard_again_from_its_beginning(
    start: Start, oracle: Oracle
) -> None:
    engine = await start()
    seed = oracle.seeds(1)[0]
    leg = Leg(engine)
    leg.push(oracle.audio(seed)[: 3 * FRAME])
    await until(lambda: leg.heards, PATIENCE)
    assert not leg.words
    os.kill(process_of(engine).pid, signal.SIGKILL)
    leg.push(oracle.audio(seed)[3 * FRAME :])
    assert near(await leg.end()) == near(oracle.words(seed))
    assert engine.counters["restarts"] == 1


async def test_a_process_that_hangs_is_ended_and_made_anew(start: Start, oracle: Oracle) -> None:
    engine = await start(step_timeout=1.0)
    seed = oracle.seeds(1)[0]
    os.kill(process_of(engine).pid, signal.SIGSTOP)
    leg = Leg(engine)
    leg.push(oracle.audio(seed))
    assert near(await leg.end()) == near(oracle.words(seed))
    assert engine.counters["restarts"] == 1


async def test_a_flush_at_a_pause_loses_no_audio(start: Start, oracle: Oracle) -> None:
    engine = await start(flush=True)
    seed = oracle.seeds(1)[0]
    leg = Leg(engine)
    leg.push(oracle.audio(seed)[: 20 * FRAME])
    await until(lambda: leg.heards and leg.heards[-1].at >= 1.599, PATIENCE)
    assert leg.heards[-1].settled == pytest.approx(1.1)
    leg.lease.flush()
    leg.push(oracle.audio(seed)[20 * FRAME :])
    await until(lambda: any(h.settled >= h.at >= 1.599 for h in leg.heards), PATIENCE)
    said = await leg.end()
    assert in_order(said)
    assert leg.heards[-1].at == pytest.approx(FRAMES * 0.08)
    assert engine.counters == {"flushes": 1}


async def test_a_stuck_row_is_heard_again_and_says_nothing_twice(
    start: Start, oracle: Oracle
) -> None:
    """The watchdog's patience is the setting; what it does is the slots' (tests/test_slots.py)."""
    engine = await start(watchdog=0.5)
    leg = Leg(engine)
    noise = np.random.default_rng(3).standard_normal(60 * FRAME).astype(np.float32) * 0.2
    leg.push(noise)
    said = await leg.end()
    assert in_order(said)
    assert leg.heards[-1].at == pytest.approx(60 * 0.08)


async def test_a_language_is_told_of_a_final(start: Start) -> None:
    engine = await start()
    assert engine.language("I would like to speak with the manager, please.") == "en"
    assert engine.language("Je voudrais parler au responsable, s'il vous plaît.") == "fr"


async def test_what_cannot_be_loaded_is_a_sentence(tmp_path: Path, start: Start) -> None:
    with pytest.raises(EngineUnavailable) as e:
        await start(model=str(tmp_path))
    assert str(tmp_path) in str(e.value) and "config.json" in str(e.value)


async def test_nothing_is_left_of_an_engine_that_is_closed(start: Start) -> None:
    engine = await start()
    pid = process_of(engine).pid
    await engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not engine.ready
