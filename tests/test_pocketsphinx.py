"""The embedded recogniser, with the real pocketsphinx in real processes."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from bridge.config import EngineSettings
from bridge.engine import pocketsphinx, pocketsphinx_lease
from bridge.engine import pocketsphinx_worker as worker
from bridge.engine.pocketsphinx import Pocketsphinx, make
from bridge.errors import Busy, EngineUnavailable
from bridge.types import Block, Heard, Word

VECTORS = Path(__file__).parent / "vectors"
NUMBER = "the number is four seven one"
CANCEL = "i want to cancel my appointment"
PATIENCE = 30.0  # seconds, on a machine that does much else

pytestmark = pytest.mark.asyncio(loop_scope="module")


def pcm(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A recording as the bridge gives it to this engine: each 8 kHz sample twice."""
    with wave.open(str(VECTORS / f"{text.replace(' ', '-')}.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.repeat(2).astype(np.float32) / 32768


def silence(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.zeros(round(seconds * worker.RATE), np.float32)


def blocks(*parts: np.ndarray[Any, np.dtype[np.float32]]) -> list[Block]:
    samples = np.concatenate(parts)
    samples = np.pad(samples, (0, -len(samples) % worker.BLOCK))
    return list(samples.reshape(-1, worker.BLOCK))


class Leg:
    """What a leg is told, and events to wait for it."""

    def __init__(self, engine: Pocketsphinx) -> None:
        self.all: list[Heard] = []
        self.dones = 0
        self._changed = asyncio.Event()
        self.inside = False
        self.lease = engine.lease(self.heard, self.done)

    def heard(self, heard: Heard) -> None:
        assert not self.inside, "heard was called from inside push or finish"
        assert not self.dones
        self.all.append(heard)
        self._changed.set()

    def done(self) -> None:
        assert not self.inside, "done was called from inside push or finish"
        self.dones += 1
        self._changed.set()

    def push(self, audio: list[Block]) -> None:
        self.inside = True
        for block in audio:
            self.lease.push(block)
        self.inside = False

    def finish(self) -> None:
        self.inside = True
        self.lease.finish()
        self.inside = False

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def listened(self, seconds: float) -> None:
        await self.until(lambda: self.all and self.all[-1].at >= seconds - 1e-6)

    async def end(self) -> str:
        self.finish()
        await self.until(lambda: self.dones)
        return self.text

    async def say(self, audio: list[Block]) -> str:
        self.push(audio)
        return await self.end()

    @property
    def words(self) -> list[Word]:
        return [word for heard in self.all for word in heard.words]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def assert_in_order(words: list[Word], first: float, last: float) -> None:
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert first < times[0] < first + 0.3
    assert last - 0.5 < times[-1] < last


def changed(code: str) -> list[str]:
    """The command, with something of the worker changed."""
    lines = [
        "import os, signal, socket, sys",
        "from bridge.engine import pocketsphinx_worker as worker",
        code,
        "worker.main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))",
    ]
    return [sys.executable, "-P", "-c", "\n".join(lines)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Pocketsphinx]:
    command = changed("worker.NICE = 0")  # other tests may keep the machine busy
    engine = Pocketsphinx(2, 10.0, hang=60.0, retry=0.01, command=command)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
def engine(shared: Pocketsphinx) -> Iterator[Pocketsphinx]:
    """Two slots, loaded once for all tests of this file."""
    shared.counters.clear()
    assert shared.used == 0
    yield shared
    assert shared.used == 0, "a test left its lease behind"


@asynccontextmanager
async def started(**options: Any) -> AsyncIterator[Pocketsphinx]:
    engine = Pocketsphinx(**{"slots": 1, "queue_seconds": 10.0, "retry": 0.01, **options})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def fake(listener: str) -> list[str]:
    """A command whose decoders are this Python class instead of pocketsphinx."""
    return changed(f"{listener}\nworker.load, worker.Listener = object, Listener")


# A word per block that is not silent, certain at once; what a test needs is patched in.
ECHO = """
class Listener:
    def __init__(self, decoder, base): self.at, self.words = base, []
    def feed(self, pcm):
        {feed}
        if any(pcm): self.words.append([str(pcm[1]), self.at, self.at + 0.08, 1.0])
        self.at += 0.08
    def finish(self): pass
    def report(self):
        words, self.words = self.words, []
        return {{"at": self.at, "keep": {keep}, "pause": 0.0, "words": words}}
"""


def level(high_byte: int) -> Block:
    """A block that ECHO hears as the word `high_byte`."""
    return np.full(worker.BLOCK, high_byte * 256 / 32768, np.float32)


# -- what is heard ------------------------------------------------------------------------------


async def test_two_utterances(engine: Pocketsphinx) -> None:
    """Words with times and confidence; guesses before them that grow; a pause that ends each."""
    leg = Leg(engine)
    await leg.say(blocks(pcm(NUMBER), silence(1), pcm(CANCEL)))
    assert leg.text == f"{NUMBER} {CANCEL}"
    assert_in_order(leg.words, 0.1, (len(pcm(NUMBER)) + len(pcm(CANCEL))) / 16000 + 1)
    assert all(0 <= word.confidence <= 1 for word in leg.words)
    assert len({word.confidence for word in leg.words}) > 1
    first = next(i for i, heard in enumerate(leg.all) if heard.words)
    guesses = [len(heard.tentative) for heard in leg.all[:first]]
    assert len(set(guesses)) >= 4
    assert not leg.all[first].tentative
    assert [heard.pause for heard in leg.all[first - 3 : first + 1]] == [0, 0, 0, 1]
    assert leg.all[first].at < len(pcm(NUMBER)) / 16000 + 0.5, "0.3 s of silence end it"
    assert leg.lease.dropped == 0


async def test_one_answer_per_block_with_the_time(engine: Pocketsphinx) -> None:
    leg = Leg(engine)
    await leg.say(blocks(silence(1.6)))
    assert [heard.at for heard in leg.all[:20]] == pytest.approx(np.arange(1, 21) * 0.08)
    assert {heard.pause for heard in leg.all} == {1.0}
    assert not leg.words


async def test_finish_delivers_the_last_word(engine: Pocketsphinx) -> None:
    """A caller who hangs up on the last syllable is still heard."""
    leg = Leg(engine)
    whole = pcm(NUMBER)
    loud = np.flatnonzero(np.abs(whole) > 0.03)
    assert await leg.say(blocks(whole[: loud[-1]])) == NUMBER
    assert leg.dones == 1
    assert leg.all[-1].words[-1].text == "one"
    assert leg.all[-1].pause == 1


async def test_finish_where_audio_ends_with_a_whole_frame(engine: Pocketsphinx) -> None:
    """240 ms are eight frames of the endpointer and three blocks: nothing is left over."""
    leg = Leg(engine)
    audio = blocks(pcm(NUMBER))[:18]
    assert len(audio) % 3 == 0
    assert (await leg.say(audio)).startswith("the number is")
    assert not engine.counters


async def test_finish_without_audio_and_twice(engine: Pocketsphinx) -> None:
    leg = Leg(engine)
    leg.finish()
    await leg.end()
    leg.finish()
    leg.push(blocks(silence(1)))
    assert (leg.dones, leg.words) == (1, [])


async def test_words_never_cross_legs_and_busy(engine: Pocketsphinx) -> None:
    one, two = Leg(engine), Leg(engine)
    assert engine.used == 2
    with pytest.raises(Busy, match="^all 2 slots of the recogniser are in use$") as busy:
        Leg(engine)
    assert busy.value.reason == "busy"
    texts = await asyncio.gather(one.say(blocks(pcm(NUMBER))), two.say(blocks(pcm(CANCEL))))
    assert texts == [NUMBER, CANCEL]
    assert engine.used == 0


# -- eviction -----------------------------------------------------------------------------------


async def test_evict_and_reuse_at_once(engine: Pocketsphinx) -> None:
    other = Leg(engine)
    old = Leg(engine)
    old.push(blocks(pcm(NUMBER)))
    await old.until(lambda: old.all and old.all[-1].tentative)
    old.lease.evict()
    told = len(old.all)
    new = Leg(engine)
    assert await new.say(blocks(pcm(CANCEL))) == CANCEL
    old.lease.evict()
    old.finish()
    old.push(blocks(pcm(NUMBER)))
    assert (len(old.all), old.dones) == (told, 0)
    other.lease.evict()


async def test_evict_from_inside_heard(engine: Pocketsphinx) -> None:
    """Neither another `heard` nor `done` follows, even where answers are waiting."""
    told: list[Heard] = []
    dones: list[None] = []
    evicted = asyncio.Event()

    def heard(heard: Heard) -> None:
        told.append(heard)
        if heard.at >= 0.8:  # the answer to END has 0.8 as well
            lease.evict()
            evicted.set()

    lease = engine.lease(heard, lambda: dones.append(None))
    for block in blocks(silence(0.72)):
        lease.push(block)
    lease.push(level(1))
    lease.finish()
    await asyncio.wait_for(evicted.wait(), PATIENCE)
    assert await Leg(engine).say(blocks(silence(0.2))) == ""
    assert (len(told), dones, dict(engine.counters)) == (10, [], {})


async def test_evict_at_done(engine: Pocketsphinx) -> None:
    """Hearing the last words may evict: `done` is then not called."""
    dones: list[None] = []
    last = asyncio.Event()

    def heard(_heard: Heard) -> None:
        lease.evict()
        last.set()

    lease = engine.lease(heard, lambda: dones.append(None))
    lease.finish()
    await asyncio.wait_for(last.wait(), PATIENCE)
    assert await Leg(engine).say(blocks(silence(0.2))) == ""
    assert (engine.used, dones) == (0, [])


async def test_an_evicted_process_ends_even_if_stopped(engine: Pocketsphinx) -> None:
    leg = Leg(engine)
    leg.push(blocks(silence(0.1)))
    await leg.listened(0.08)
    with pid_watch(leg.lease.pid) as gone:
        os.kill(leg.lease.pid, signal.SIGSTOP)
        leg.lease.evict()
        assert await gone()


# -- processes that die or hang -----------------------------------------------------------------


async def test_words_are_neither_lost_nor_said_twice(engine: Pocketsphinx) -> None:
    """The process dies in the second utterance: that one is heard again, the first is not."""
    leg = Leg(engine)
    audio = blocks(pcm(NUMBER), silence(1), pcm(CANCEL))
    middle = len(blocks(pcm(NUMBER), silence(1))) + 18
    leg.push(audio[:middle])
    await leg.listened(middle * 0.08)
    assert leg.text == NUMBER
    assert leg.all[-1].tentative
    os.kill(leg.lease.pid, signal.SIGKILL)
    leg.push(audio[middle:])
    assert await leg.end() == f"{NUMBER} {CANCEL}"
    assert engine.counters == {"died": 1}
    assert leg.lease.dropped == 0
    ats = [heard.at for heard in leg.all]
    assert ats == sorted(ats), "a replay is not told as going back in time"
    assert_in_order(leg.words, 0.1, len(audio) * 0.08)


async def test_a_process_that_hangs_is_replaced(engine: Pocketsphinx) -> None:
    leg = Leg(engine)
    audio = blocks(silence(1), pcm(NUMBER))
    leg.push(audio[:25])
    await leg.listened(2.0)
    os.kill(leg.lease.pid, signal.SIGSTOP)
    leg.push(audio[25:])
    leg.lease.check(asyncio.get_running_loop().time() + engine.hang - 1)
    assert not engine.counters
    leg.lease.check(asyncio.get_running_loop().time() + engine.hang + 1)
    assert await leg.end() == NUMBER
    assert engine.counters == {"hung": 1}
    assert_in_order(leg.words, 1.1, len(audio) * 0.08)


async def test_the_loader_dies_and_calls_go_on(engine: Pocketsphinx) -> None:
    leg = Leg(engine)
    audio = blocks(pcm(NUMBER))
    leg.push(audio[:15])
    await leg.listened(1.2)
    assert engine._loader
    os.kill(engine._loader._process.pid, signal.SIGKILL)
    leg.push(audio[15:])
    assert await leg.end() == NUMBER
    assert engine.counters == {"died": 1, "loader": 1}
    assert engine.ready


async def test_signals_to_the_group_do_not_end_a_call(engine: Pocketsphinx) -> None:
    """Ctrl-C and systemd signal every process; a drain still wants its words."""
    leg = Leg(engine)
    audio = blocks(pcm(NUMBER))
    leg.push(audio[:15])
    await leg.listened(1.2)
    assert engine._loader
    for pid in (leg.lease.pid, engine._loader._process.pid):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    leg.push(audio[15:])
    assert await leg.end() == NUMBER
    assert not engine.counters


async def test_audio_that_kills_is_given_up() -> None:
    feed = "if pcm[1] == 66: os._exit(1)"
    async with started(command=fake(ECHO.format(feed=feed, keep="self.at"))) as engine:
        leg = Leg(engine)
        assert await leg.say([level(1), level(66), level(2)]) in ("1 2", "1")
        # two more where the block before it was answered only on the third try
        assert 3 <= engine.counters["died"] <= 5
        assert leg.lease.dropped == 3 - len(leg.words)


async def test_a_replay_says_nothing_twice() -> None:
    """The process keeps nothing certain in mind: everything is replayed, only once said."""
    async with started(command=fake(ECHO.format(feed="pass", keep="0.0"))) as engine:
        leg = Leg(engine)
        leg.push([level(1), level(2)])
        await leg.listened(0.16)
        os.kill(leg.lease.pid, signal.SIGKILL)
        assert await leg.say([level(3)]) == "1 2 3"
        assert leg.lease.dropped == 0


async def test_a_hang_up_has_a_deadline(engine: Pocketsphinx) -> None:
    leg = Leg(engine)
    leg.push(blocks(silence(0.1)))
    await leg.listened(0.08)
    os.kill(leg.lease.pid, signal.SIGSTOP)
    leg.finish()
    leg.lease.check(asyncio.get_running_loop().time() + engine.finish_deadline - 1)
    assert not leg.dones
    leg.lease.check(asyncio.get_running_loop().time() + engine.finish_deadline + 1)
    assert leg.dones == 1


async def test_the_watch_finds_a_process_that_hangs() -> None:
    feed = "if pcm[1] == 66 and not self.at: os.kill(os.getpid(), signal.SIGSTOP)"
    command = fake(ECHO.format(feed=feed, keep="self.at"))
    async with started(command=command, hang=0.2) as engine:
        leg = Leg(engine)
        await leg.say([level(66)])
        assert engine.counters["hung"] >= 3
        assert leg.lease.dropped == 1


# -- the queue ----------------------------------------------------------------------------------


async def test_a_process_that_is_behind_loses_the_oldest_blocks() -> None:
    command = fake(ECHO.format(feed="pass", keep="self.at"))
    async with started(command=command, queue_seconds=0.4) as engine:
        leg = Leg(engine)
        leg.push([level(1)])
        await leg.listened(0.08)
        os.kill(leg.lease.pid, signal.SIGSTOP)
        leg.push([level(i) for i in range(2, 2 + pocketsphinx_lease.WINDOW + 9)])
        assert leg.lease.dropped == 4
        os.kill(leg.lease.pid, signal.SIGCONT)
        await leg.end()
        numbers = [*range(1, 14), *range(18, 23)]
        assert leg.text == " ".join(map(str, numbers))
        starts = [word.start for word in leg.words]
        assert starts == pytest.approx([(n - 1) * 0.08 for n in numbers])


async def test_times_count_dropped_blocks(
    engine: Pocketsphinx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real process takes blocks that never came for silence."""
    monkeypatch.setattr(engine, "queue_blocks", 60)
    leg = Leg(engine)
    leg.push(blocks(silence(0.08)))
    await leg.listened(0.08)
    os.kill(leg.lease.pid, signal.SIGSTOP)
    leg.push(blocks(silence(8.0), pcm(NUMBER)))
    assert leg.lease.dropped > 25
    os.kill(leg.lease.pid, signal.SIGCONT)
    assert await leg.end() == NUMBER
    assert leg.words[0].start == pytest.approx(8.08 + 0.2, abs=0.2)
    assert leg.words[-1].end == pytest.approx(8.08 + len(pcm(NUMBER)) / 16000, abs=0.4)


# -- start and end ------------------------------------------------------------------------------


async def test_progress_ready_and_not_ready() -> None:
    engine = Pocketsphinx(3, 10.0)
    calls: list[tuple[int, int]] = []
    engine.progress = lambda ready, slots: calls.append((ready, slots))
    assert not engine.ready
    with pytest.raises(Busy, match="^the recogniser is not loaded$") as busy:
        Leg(engine)
    assert busy.value.reason == "not ready"
    await engine.start()
    assert (engine.ready, calls) == (True, [(0, 3), (3, 3)])
    leg = Leg(engine)
    await engine.close()
    assert (engine.ready, engine.used, leg.dones) == (False, 0, 0)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            changed("sys.modules['pocketsphinx'] = None"),
            "pocketsphinx cannot be loaded (ModuleNotFoundError: import of pocketsphinx halted; "
            "None in sys.modules); install it with 'pip install pocketsphinx', or choose "
            "another engine",
        ),
        (
            changed("sys.exit(3)"),
            "the pocketsphinx process ended while it loaded its model; is there memory?",
        ),
    ],
)
async def test_an_engine_that_cannot_be_had(command: list[str], sentence: str) -> None:
    engine = Pocketsphinx(1, 10.0, retry=0.001, command=command)
    with pytest.raises(EngineUnavailable) as error:
        await engine.start()
    assert str(error.value) == sentence
    assert (engine.ready, engine.counters["loader"]) == (False, 2)


async def test_a_program_that_does_not_exist() -> None:
    engine = Pocketsphinx(1, 10.0, retry=0.001, command=["/nonexistent"])
    with pytest.raises(EngineUnavailable, match="No such file"):
        await engine.start()


async def test_a_leg_that_fails_costs_only_itself(engine: Pocketsphinx) -> None:
    """`done` is called even where hearing the last words failed."""
    loop = asyncio.get_running_loop()
    errors: list[Any] = []
    done = asyncio.Event()
    loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
    lease = engine.lease(lambda _heard: print(1 / 0), done.set)
    lease.finish()
    await asyncio.wait_for(done.wait(), PATIENCE)
    await Leg(engine).end()
    loop.set_exception_handler(None)
    assert [type(error) for error in errors] == [ZeroDivisionError]


async def test_processes_end_with_the_bridge() -> None:
    """kill -9 of the bridge leaves nobody behind, not even a stopped decoder."""
    code = (
        "import asyncio\n"
        "from bridge.engine.pocketsphinx import Pocketsphinx\n"
        "async def main():\n"
        "    engine = Pocketsphinx(1, 10.0); await engine.start()\n"
        "    heard = asyncio.Event()\n"
        "    lease = engine.lease(lambda h: heard.set(), lambda: None)\n"
        "    import numpy; lease.push(numpy.zeros(1280, 'f4')); await heard.wait()\n"
        "    print(engine._loader._process.pid, lease.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    bridge = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert bridge.stdout
    line = await asyncio.wait_for(bridge.stdout.readline(), PATIENCE)
    loader, decoder = map(int, line.split())
    os.kill(decoder, signal.SIGSTOP)
    with pid_watch(loader) as loader_gone, pid_watch(decoder) as decoder_gone:
        bridge.kill()
        await bridge.wait()
        assert await loader_gone()
        assert await decoder_gone()


async def test_make() -> None:
    engine = make(EngineSettings(kind="pocketsphinx", slots=5, queue_seconds=0.2))
    assert (engine.slots, engine.queue_blocks) == (5, 2)
    auto = make(EngineSettings(kind="pocketsphinx"))
    assert auto.slots == pocketsphinx.LEGS_PER_CORE * len(os.sched_getaffinity(0))
    assert (auto.rate, auto.block, auto.upsampling) == (16000, 1280, "repeat")


async def test_backoff() -> None:
    waits = [pocketsphinx_lease.backoff(0.05, failures) for failures in (0, 1, 5, 6, 10_000)]
    assert waits == [0.05, 0.1, 1.6, 2.0, 2.0]


# -- the worker's own part ----------------------------------------------------------------------


async def test_an_utterance_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words come out without a pause, none is missing but the one that was cut."""
    monkeypatch.setattr(worker, "MAX_UTTERANCE", 1.0)
    listener = worker.Listener(worker.load(), base=100.0)
    reports = []
    for block in blocks(pcm(NUMBER)):
        listener.feed((block * 32768).astype("<i2").tobytes())
        reports.append(listener.report())
    listener.finish()
    reports.append(listener.report())
    certain = [report for report in reports if "words" in report]
    assert len(certain) >= 2
    assert certain[0]["pause"] == 0.0
    assert certain[0]["keep"] == pytest.approx(certain[0]["words"][-1][2], abs=0.5)
    words = [row for report in certain for row in report["words"]]
    assert {"number", "four", "seven"} <= {row[0] for row in words}
    times = [time for row in words for time in row[1:3]]
    assert times == sorted(times)
    assert 100 < times[0] < 101
    assert not any(set(row[0]) & set("(<[") for row in words)


@contextmanager
def pid_watch(pid: int) -> Iterator[Any]:
    """Yields a coroutine function: has the process ended within our patience?"""
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)

    async def gone() -> bool:
        return bool(await asyncio.to_thread(poll.poll, PATIENCE * 1000))

    try:
        yield gone
    finally:
        os.close(fd)
