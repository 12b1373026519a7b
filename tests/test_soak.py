"""Long ones: ten thousand calls, and a call of an hour."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bridge.audio import resample
from bridge.bench import churn
from bridge.engine.batcher import _fill
from bridge.engine.slots import SlotLease, Slots
from bridge.engine.tones import TonesModel, encode, text_of
from bridge.ingress.arrival import GAP
from bridge.ingress.audiosocket import AudioSocket, Rules
from bridge.leg import Leg
from bridge.turns import TurnRules
from bridge.types import Audio, EventBody, Final, Heard, Samples, Word
from tests.fakes import FakeRecogniser

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

HOUR = 3600  # s
FRAME = 160  # samples at 8 kHz
BLOCK = 0.08  # s


def test_ten_thousand_calls_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory by its slope, everything else to the last piece."""
    assert churn.run(10_000) == 0
    out = capsys.readouterr().out
    slope = re.search(r"slope ([+-][\d.]+) MB", out)
    assert slope and float(slope[1]) <= 5.0, out
    for what in ("descriptors", "tasks", "threads"):
        found = re.search(rf"{what}: (\d+) before, (\d+) after", out)
        assert found and found[1] == found[2], out
    objects = re.search(r"objects: (\d+) before, (\d+) after", out)
    assert objects and int(objects[2]) <= 1.01 * int(objects[1]), out


class Inline(FakeRecogniser):
    """Slots and a model without a thread: steps are made by `step`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TonesModel(2)
        self.table = Slots(2, block_seconds=BLOCK, delay=self.model.delay, queue_blocks=125)

    def lease(  # type: ignore[override]
        self, heard: Callable[[Heard], None], done: Callable[[], None]
    ) -> SlotLease:
        return self.table.lease(heard, done)

    def step(self) -> bool:
        plan = self.table.schedule()
        if plan:
            _fill(self.model, plan)
            results = self.model.step() if plan.rows else {}
            self.table.commit(plan, results)
        return bool(plan)


def _speech(rng: random.Random) -> tuple[Samples, list[tuple[float, int]], list[range]]:
    """An hour of 8 kHz, when each word begins, and the frames that never come (all silent)."""
    line = np.zeros(HOUR * 8000, np.int16)
    words: list[tuple[float, int]] = []
    missing: list[range] = []
    at = 1.0
    while at < HOUR - 10:
        if rng.random() < 0.02:  # a digit, or a channel on mute
            pause = rng.choice([0.3, 1.0, 7.0])
            missing.append(range(int(at * 50) + 10, int((at + pause) * 50)))
            at += pause + 0.5
        word = rng.randrange(256)
        start = round(at * 8000)
        sound = encode([word])
        line[start : start + len(sound)] = sound
        words.append((start / 8000, word))
        at += 0.4 + rng.random()
    return line, words, missing


def _wire(line: Samples, missing: list[range]) -> Iterator[bytes | None]:
    gone = {i for each in missing for i in each}
    for i in range(len(line) // FRAME):
        samples = line[i * FRAME : (i + 1) * FRAME]
        yield None if i in gone else b"\x10\x01\x40" + samples.astype("<i2").tobytes()


@pytest.mark.parametrize("jitter", [0.0, 0.03])
def test_an_hour_long_call_keeps_its_times(jitter: float) -> None:
    """Virtual time, real bytes: ingress → leg → resampler → slots → model → turns.

    A frame arrives at most `jitter` seconds late; seventy times none come for a while.
    """
    rng = random.Random(20)
    line, true, missing = _speech(rng)
    events: list[EventBody] = []
    over: list[Leg] = []
    engine = Inline()
    leg = Leg("caller", engine, TurnRules(), tell=lambda _, body: events.append(body),
              over=over.append)  # fmt: skip
    ingress = AudioSocket(Rules(keepalive="off"), 0.0)
    ingress.receive(b"\x01\x00\x10" + uuid.UUID(int=1).bytes, 0.0)
    now = 0.0
    for i, message in enumerate(_wire(line, missing), start=1):
        now = max(now, i * 0.02 + rng.random() * jitter)
        said = ingress.receive(message, now) if message else ingress.expire(now)
        for event in said:
            if isinstance(event, Audio):
                leg.on_frame(event.frame)
        while engine.step():
            pass
    leg.finish("eof")
    while engine.step():
        pass
    heard = [word for body in events if isinstance(body, Final) for word in body.words]
    assert over == [leg]
    assert [word.text for word in heard] == [text_of(word) for _, word in true]
    assert len(true) > 3000
    errors = [word.start - at for word, (at, _) in zip(heard, true, strict=True)]
    assert max(map(abs, errors)) <= GAP + BLOCK + 2 * jitter
    assert max(map(abs, errors[-100:])) <= max(map(abs, errors[:1000])) + 0.02  # no drift
    assert abs(leg.counts().seconds - HOUR) <= GAP + jitter
    assert _monotonic(heard)
    assert engine.table.used == 0


def _monotonic(words: list[Word]) -> bool:
    return all(a.end <= b.start + 1e-6 for a, b in zip(words, words[1:], strict=False))


def test_the_resampler_adds_no_time_of_its_own() -> None:
    """An hour in frames of any length comes out an hour long."""
    rng = np.random.default_rng(3)
    line = np.zeros(HOUR * 8000 // 60, np.int16)  # a minute stands for each of sixty
    resampler = resample.make_resampler(8000, 24000, 1920)
    blocks = at = 0
    for _ in range(60):
        at = 0
        while at < len(line):
            n = int(rng.integers(1, 2000))
            blocks += len(list(resampler.feed(line[at : at + n])))
            at += n
    blocks += len(list(resampler.flush()))
    assert abs(blocks - HOUR / BLOCK) <= 1
