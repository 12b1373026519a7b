"""What every engine promises, on every engine of `config.ENGINE_KINDS`.

A later engine is one more `Voice`: what is said to it, and which words it should hear.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from bridge.accuracy import word_errors
from bridge.audio.resample import make_resampler
from bridge.config import ENGINE_KINDS, EngineSettings
from bridge.engine.choice import build
from bridge.engine.tones import encode, text_of
from bridge.errors import Busy
from bridge.interfaces import Recogniser
from bridge.types import Block, Heard, Samples, Word

VECTORS = Path(__file__).parent / "vectors"
PATIENCE = 30.0  # seconds, on a machine that does much else
SLOTS = 2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Voice:
    """Two utterances at 8 kHz, what they say, and how many words of them may be wrong."""

    one: Samples
    one_says: str
    two: Samples
    two_says: str
    errors: int


def recorded(name: str) -> Samples:
    with wave.open(str(VECTORS / name)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


VOICES = {
    "tones": Voice(
        encode([1, 2, 3, 4]),
        " ".join(map(text_of, [1, 2, 3, 4])),
        encode([250, 17, 17]),
        " ".join(map(text_of, [250, 17, 17])),
        0,
    ),
    "pocketsphinx": Voice(
        recorded("the-number-is-four-seven-one.wav"),
        "the number is four seven one",
        recorded("i-want-to-cancel-my-appointment.wav"),
        "i want to cancel my appointment",
        1,
    ),
}


async def test_every_engine_is_held_to_it() -> None:
    spoken_to = ENGINE_KINDS.keys() - {"kyutai"}  # held to it with a model: test_kyutai_engine.py
    assert VOICES.keys() == spoken_to, "a new engine needs a Voice"


async def test_kyutai_is_here_where_it_must_be() -> None:
    """Its tests are skipped without moshi; CALLSCRIBE_REQUIRE_KYUTAI=1 says there must be one."""
    if os.environ.get("CALLSCRIBE_REQUIRE_KYUTAI") == "1":
        assert importlib.util.find_spec("moshi"), "no moshi here: make kyutai"


@dataclass
class Subject:
    """An engine that is started, and what may be said to it."""

    engine: Recogniser
    voice: Voice

    def blocks(self, samples: Samples) -> list[Block]:
        """As a leg gives them to this engine."""
        engine = self.engine
        resampler = make_resampler(8000, engine.rate, engine.block, engine.upsampling)
        return [*resampler.feed(samples), *resampler.flush()]

    def right(self, reference: str, heard: str) -> bool:
        return word_errors(reference, heard)[0] <= self.voice.errors


@pytest_asyncio.fixture(params=sorted(VOICES), scope="module", loop_scope="module")
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    engine = build(EngineSettings(kind=request.param, slots=SLOTS))
    assert not engine.ready
    with pytest.raises(Busy) as busy:
        engine.lease(lambda heard: None, lambda: None)
    assert busy.value.reason == "not ready"
    await engine.start()
    assert engine.ready
    yield Subject(engine, VOICES[request.param])
    last = Leg(engine)
    await engine.close()
    assert (engine.used, engine.ready, last.done.is_set()) == (0, False, False)


@pytest.fixture
def subject(shared: Subject) -> Subject:
    assert shared.engine.used == 0, "a test left its lease behind"
    return shared


class Leg:
    """A lease and what it was told. It checks what holds for every engine at any time."""

    def __init__(self, engine: Recogniser) -> None:
        self.heards: list[Heard] = []
        self.done = asyncio.Event()
        self.changed = asyncio.Event()
        self.inside = True
        self.over = False
        self.pushed = 0.0  # seconds
        self.engine = engine
        self.lease = engine.lease(self.hear, self.end)
        self.inside = False

    def hear(self, heard: Heard) -> None:
        assert not self.inside, "heard was called from inside lease, push or finish"
        assert not self.over, "heard was called after done or evict"
        before = self.heards[-1].at if self.heards else 0.0
        assert heard.at >= before - 1e-6, "time went back"
        assert 0.0 <= heard.pause <= 1.0
        self.heards.append(heard)
        self.changed.set()

    def end(self) -> None:
        assert not self.inside, "done was called from inside lease, push or finish"
        assert not self.over, "done was called twice, or after evict"
        self.over = True
        self.done.set()

    def push(self, blocks: list[Block]) -> None:
        self.inside = True
        for block in blocks:
            self.lease.push(block)
            self.pushed += len(block) / self.engine.rate
        self.inside = False

    def finish(self) -> None:
        self.inside = True
        self.lease.finish()
        self.lease.finish()
        self.inside = False

    def evict(self) -> None:
        self.over = True
        self.lease.evict()
        self.lease.evict()

    async def ended(self) -> str:
        """Hang up, and what was said in all."""
        self.finish()
        await asyncio.wait_for(self.done.wait(), PATIENCE)
        return " ".join(word.text for word in self.words)

    async def heard_something(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.heards:
                self.changed.clear()
                await self.changed.wait()

    @property
    def words(self) -> list[Word]:
        return [word for heard in self.heards for word in heard.words]


async def test_words_are_heard_in_time_and_done_comes_once(subject: Subject) -> None:
    """Also the last word, which is at the very end of the audio."""
    samples = subject.voice.one
    sound = np.flatnonzero(np.abs(samples.astype(np.int32)) > 1000)
    leg = Leg(subject.engine)
    leg.push(subject.blocks(samples[: sound[-1] + 1]))
    said = await leg.ended()
    assert subject.right(subject.voice.one_says, said)
    assert said.split()[-1] == subject.voice.one_says.split()[-1]
    assert leg.lease.dropped == 0
    times = [time for word in leg.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0.0
    assert times[-1] <= leg.pushed + 1e-6
    assert times[0] <= sound[0] / 8000 + 0.35
    assert times[-1] >= sound[-1] / 8000 - 0.35
    assert all(0.0 <= word.confidence <= 1.0 for word in leg.words)
    assert leg.heards[-1].at >= leg.pushed - 0.081
    assert subject.engine.used == 0


async def test_done_comes_without_any_audio(subject: Subject) -> None:
    leg = Leg(subject.engine)
    assert await leg.ended() == ""
    leg.push(subject.blocks(subject.voice.one))
    leg.evict()
    assert (leg.words, subject.engine.used) == ([], 0)


async def test_done_comes_with_less_than_a_word(subject: Subject) -> None:
    leg = Leg(subject.engine)
    leg.push(subject.blocks(np.zeros(100, np.int16)))
    assert await leg.ended() == ""


async def test_two_legs_at_once_hear_only_their_own(subject: Subject) -> None:
    """Interleaved, block by block."""
    voice = subject.voice
    one, two = Leg(subject.engine), Leg(subject.engine)
    a, b = subject.blocks(voice.one), subject.blocks(voice.two)
    for i in range(max(len(a), len(b))):
        one.push(a[i : i + 1])
        two.push(b[i : i + 1])
        await asyncio.sleep(0)
    said = await asyncio.gather(one.ended(), two.ended())
    assert subject.right(voice.one_says, said[0])
    assert subject.right(voice.two_says, said[1])
    others = set(voice.two_says.split()) - set(voice.one_says.split())
    assert not others & set(said[0].split())


async def test_one_leg_too_many_is_busy_at_once(subject: Subject) -> None:
    """The reason is told, who is there is not disturbed, and a slot that is free is had."""
    legs = [Leg(subject.engine) for _ in range(SLOTS)]
    assert subject.engine.used == subject.engine.slots == SLOTS
    for _ in range(3):
        with pytest.raises(Busy) as busy:
            Leg(subject.engine)
        assert busy.value.reason == "busy"
        assert str(SLOTS) in str(busy.value)
    legs[0].evict()
    again = Leg(subject.engine)
    for leg in (*legs[1:], again):
        assert await leg.ended() == ""
    assert subject.engine.used == 0


async def test_an_evicted_leg_hears_nothing_and_neither_does_the_next(subject: Subject) -> None:
    """In mid-word, with audio queued; the slot's next leg has a clean one."""
    voice = subject.voice
    keeper = Leg(subject.engine)
    old = Leg(subject.engine)
    old.push(subject.blocks(voice.one))
    await old.heard_something()
    old.evict()
    told = len(old.heards)
    new = Leg(subject.engine)
    new.push(subject.blocks(voice.two))
    assert subject.right(voice.two_says, await new.ended())
    old.push(subject.blocks(voice.one))
    old.finish()
    assert await keeper.ended() == ""
    assert len(old.heards) == told


async def test_slots_are_used_again_without_leakage(subject: Subject) -> None:
    """Each use hears itself, with times from its own beginning."""
    voice = subject.voice
    for samples, reference in ((voice.one, voice.one_says), (voice.two, voice.two_says)):
        legs = [Leg(subject.engine) for _ in range(SLOTS)]
        for leg in legs:
            leg.push(subject.blocks(samples))
        for said in await asyncio.gather(*(leg.ended() for leg in legs)):
            assert subject.right(reference, said)
        assert all(leg.words[-1].end <= leg.pushed + 1e-6 for leg in legs)
    assert subject.engine.used == 0


async def test_races_of_evict_and_lease(subject: Subject) -> None:
    """Whatever the moment, a lease that is evicted is silent and its slot is free."""
    blocks = subject.blocks(subject.voice.one)
    for turns in range(12):
        old = Leg(subject.engine)
        old.push(blocks[:3])
        if turns % 2:
            old.finish()
        for _ in range(turns):
            await asyncio.sleep(0)
        if not old.over:
            old.evict()
        assert subject.engine.used == 0
    leg = Leg(subject.engine)
    leg.push(blocks)
    assert subject.right(subject.voice.one_says, await leg.ended())
