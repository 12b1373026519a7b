"""One leg: frames in, blocks out; words in, events out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.resample import make_resampler
from bridge.errors import Busy
from bridge.leg import MAX_ASKED, MAX_LATE, MAX_SKEWS, Leg
from bridge.turns import MAX_TURN, TurnRules
from bridge.types import EndOfTurn, EventBody, Final, Frame, Heard, Partial, Pressed, Word
from tests.fakes import FakeLease, FakeRecogniser

BLOCK = 0.08  # seconds


class Same(FakeRecogniser):
    """A recogniser at 8 kHz: blocks are the line's own samples, and nothing is delayed."""

    rate = 8000
    block = 640


class Subject:
    """A leg, its lease, and what it told."""

    def __init__(
        self,
        recogniser: FakeRecogniser | None = None,
        *,
        offset: float = 0.0,
        rules: TurnRules | None = None,
    ) -> None:
        self.told: list[EventBody] = []
        self.over: list[Leg] = []
        self.latencies: list[tuple[str, float]] = []
        self.recogniser = recogniser or Same()
        self.leg = Leg(
            "caller",
            self.recogniser,
            rules or TurnRules(),
            tell=lambda leg, body: self.told.append(body),
            over=self.over.append,
            offset=offset,
            latency=lambda stage, end: self.latencies.append((stage, round(end, 6))),
        )
        self.lease: FakeLease = self.recogniser.leases[-1]

    def audio(self, start: int, n: int, rate: int = 8000, value: int = 8192) -> None:
        self.leg.on_frame(Frame(np.full(n, value, np.int16), rate, start))

    def pushed(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *self.lease.blocks])

    def kinds(self) -> list[type]:
        return [type(body) for body in self.told]


def word(text: str, start: float, end: float) -> Word:
    return Word(text, start, end, 0.9)


# -- audio ------------------------------------------------------------------------------------


def test_frames_become_blocks() -> None:
    s = Subject()
    for i in range(9):
        s.audio(160 * i, 160)
    assert len(s.lease.blocks) == 2
    assert np.all(s.pushed() == 0.25)
    counts = s.leg.counts()
    assert (counts.frames, counts.blocks, counts.seconds) == (9, 2, 0.18)
    assert (counts.silence_inserted, counts.words, counts.blocks_dropped) == (0, 0, 0)


def test_gaps_are_filled_with_silence() -> None:
    s = Subject()
    s.audio(0, 640)
    s.audio(640 + 1280, 640)
    assert [block[0] for block in s.lease.blocks] == [0.25, 0, 0, 0.25]
    assert s.leg.counts().silence_inserted == pytest.approx(0.16)
    assert s.leg.counts().seconds == pytest.approx(0.32)


def test_a_leg_may_begin_with_a_gap() -> None:
    """What a line could not keep while it waited."""
    s = Subject()
    s.audio(1280, 640)
    assert [block[0] for block in s.lease.blocks] == [0, 0, 0.25]


def test_an_empty_frame_only_advances_the_clock() -> None:
    s = Subject()
    s.audio(0, 640)
    s.audio(1280, 0)
    assert len(s.lease.blocks) == 2
    assert (s.leg.counts().frames, s.leg.counts().seconds) == (1, 0.16)
    s.leg.on_digit("5")
    assert s.told == [Pressed("5", 0.16)]


def test_of_an_hour_of_gap_a_pause_is_heard_and_times_stay_right() -> None:
    engine, told = FakeRecogniser(), []
    leg = Leg("caller", engine, TurnRules(), tell=lambda leg, body: told.append(body), over=print)
    leg.on_frame(Frame(np.ones(640, np.int16), 8000, 0))
    leg.on_frame(Frame(np.ones(640, np.int16), 8000, 3600 * 8000))
    assert 150 < leg.counts().blocks < 155
    assert leg.counts().silence_inserted == pytest.approx(3600 - 0.08)
    at = leg.counts().blocks * 0.08
    word = Word("late", at - 0.08, at, 1.0)
    engine.leases[0].heard(Heard((word,), pause=1.0, at=at))
    assert told[-1].words[0].start == pytest.approx(3600, abs=0.1)


def test_audio_that_overlaps_is_not_lost() -> None:
    """A start before the clock is rounding at a change of rate: nothing is cut."""
    s = Subject()
    s.audio(0, 640)
    s.audio(639, 640)
    assert len(s.lease.blocks) == 2


def test_upsampling_is_the_recognisers_wish() -> None:
    engine = FakeRecogniser()
    engine.upsampling = "repeat"
    s = Subject(engine)
    s.leg.on_frame(Frame(np.arange(640, dtype=np.int16), 8000, 0))
    assert np.array_equal(s.lease.blocks[0][:9] * 32768, [0, 0, 0, 1, 1, 1, 2, 2, 2])


def test_no_slot_no_leg() -> None:
    with pytest.raises(Busy):
        Subject(FakeRecogniser(0))


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 500)), max_size=20))
def test_the_clock_is_frames_and_gaps_and_nothing_else(pieces: list[tuple[int, int]]) -> None:
    """However audio comes, sample n of the leg is sample n of what was pushed."""
    s = Subject()
    clock, expected = 0, []
    for i, (gap, n) in enumerate(pieces, 1):
        clock += gap
        expected += [0] * gap + [i] * n
        s.audio(clock, n, value=i)
        clock += n
    s.leg.finish("hangup")
    pushed = np.rint(s.pushed() * 32768)
    assert list(pushed[: len(expected)]) == expected
    assert not pushed[len(expected) :].any()
    assert len(pushed) - len(expected) < 640
    assert s.leg.counts().seconds == pytest.approx(clock / 8000)


# -- the end ----------------------------------------------------------------------------------


def test_finish_pushes_what_is_left_and_finishes_the_lease_once() -> None:
    s = Subject()
    s.audio(0, 100)
    s.leg.finish("hangup")
    assert [block[99:101].tolist() for block in s.lease.blocks] == [[0.25, 0]]
    assert (s.lease.finished, s.leg.ended, s.leg.draining) == (True, True, True)
    s.lease.finished = False
    s.leg.finish("eof")
    assert (s.lease.finished, s.leg.reason) == (False, "hangup")


def test_after_finish_there_is_no_more_audio_and_no_digit() -> None:
    s = Subject()
    s.leg.finish("hangup")
    s.audio(0, 640)
    s.leg.on_digit("1")
    assert (s.lease.blocks, s.told, s.leg.counts().seconds) == ([], [], 0)


def test_the_last_words_come_after_finish_and_then_the_leg_is_over() -> None:
    s = Subject()
    s.audio(0, 640)
    s.leg.finish("hangup")
    s.lease.heard(Heard((word("bye", 0.0, 0.08),), at=0.5))
    assert s.over == []
    s.lease.done()
    assert s.kinds() == [Partial, Final, EndOfTurn]
    assert s.over == [s.leg]
    assert (s.leg.ended, s.leg.draining) == (True, False)


def test_an_engine_that_gives_up_ends_the_leg_with_what_it_said() -> None:
    s = Subject()
    s.audio(0, 640)
    s.lease.heard(Heard((word("hello", 0.0, 0.08),), at=0.08))
    s.lease.done()
    assert s.kinds() == [Partial, Final, EndOfTurn]
    assert (s.over, s.leg.ended) == ([s.leg], True)
    s.leg.finish("hangup")
    s.audio(640, 640)
    assert (s.over, s.lease.finished, len(s.lease.blocks)) == ([s.leg], False, 1)


def test_a_failing_listener_does_not_keep_the_leg_from_being_over() -> None:
    over: list[Leg] = []

    def tell(leg: Leg, body: EventBody) -> None:
        if isinstance(body, Final):
            raise RuntimeError("boom")

    engine = Same()
    leg = Leg("caller", engine, TurnRules(), tell=tell, over=over.append)
    leg.on_heard(Heard((word("hello", 0.0, 0.08),), at=0.08))
    with pytest.raises(RuntimeError):
        engine.leases[0].done()
    assert over == [leg]


def test_abort_evicts_and_says_nothing() -> None:
    s = Subject()
    s.lease.heard(Heard((word("hello", 0.0, 0.08),), at=0.08))
    told = list(s.told)
    s.leg.abort()
    s.audio(0, 640)
    assert (s.lease.evicted, s.lease.finished, s.lease.blocks) == (True, False, [])
    assert (s.told, s.over, s.leg.ended, s.leg.draining) == (told, [], True, False)


# -- words and their times --------------------------------------------------------------------


def heard_times(s: Subject) -> list[tuple[float, float]]:
    finals = [body for body in s.told if isinstance(body, Final)]
    return [(round(w.start, 4), round(w.end, 4)) for final in finals for w in final.words]


def test_words_are_counted_and_timed_on_the_calls_clock() -> None:
    s = Subject(offset=2.5)
    s.audio(0, 640)
    s.lease.heard(Heard((word("a", 0.1, 0.2), word("b", 0.3, 0.4)), (word("c", 0.5, 0.6),), at=0.7))
    (partial,) = s.told
    assert isinstance(partial, Partial)
    assert partial.text == "a b c"
    assert [w.start for w in partial.words] == pytest.approx([2.6, 2.8, 3.0])
    assert s.leg.counts().words == 2
    s.leg.on_digit("#")
    assert s.told[-1] == Pressed("#", 2.58)


def test_a_turn_ends_by_the_calls_clock_too() -> None:
    s = Subject(offset=100.0)
    s.lease.heard(Heard((word("a", 0.1, 0.2),), pause=1.0, at=0.3))
    s.lease.heard(Heard(pause=1.0, at=0.7))
    assert s.kinds() == [Final]
    s.lease.heard(Heard(pause=1.0, at=0.85))
    assert s.told[-1] == EndOfTurn(0, "a", 100.1, 100.2, "pause")


def test_a_leg_that_was_there_before_its_call_has_no_times_before_it() -> None:
    s = Subject(offset=-1.0)
    s.audio(0, 640)
    s.lease.heard(Heard((word("a", 0.1, 0.2), word("b", 0.9, 1.1)), pause=1.0, at=1.2))
    assert heard_times(s) == [(0.0, 0.0), (0.0, 0.1)]
    s.leg.on_digit("1")
    assert s.told[-1] == Pressed("1", 0.0)


def test_the_resamplers_delay_is_not_the_words_fault() -> None:
    delay = make_resampler(8000, 24000, 1920).delay
    assert delay > 0.0015
    s = Subject(FakeRecogniser())
    s.audio(0, 640)
    s.lease.heard(Heard((word("a", 0.5 + delay, 0.6 + delay),), pause=1.0, at=1.0))
    assert heard_times(s) == [(0.5, 0.6)]


def click(s: Subject, at: float, rate: int) -> None:
    """20 ms in which a single sample, `at` seconds on the leg's clock, is not zero."""
    start = round(at // 0.02 * 0.02 * rate)
    samples = np.zeros(round(rate * 0.02), np.int16)
    samples[round(at * rate) - start] = 32000
    s.leg.on_frame(Frame(samples, rate, start))


@pytest.mark.parametrize("rates", [(8000, 16000), (16000, 8000), (24000, 8000), (8000, 48000)])
def test_a_change_of_rate_keeps_word_times(rates: tuple[int, int]) -> None:
    """A sound's place in the recogniser's blocks, taken for a word's time, is told as its time."""
    s = Subject(FakeRecogniser())
    clicks = [(0.511, rates[0]), (1.031, rates[1]), (1.731, rates[0]), (2.111, rates[1])]
    for at, rate in clicks:
        click(s, at, rate)
    s.leg.finish("hangup")
    pushed = np.abs(s.pushed())
    words = []
    for i in range(len(clicks)):
        peak = int(pushed.argmax())
        pushed[max(0, peak - 240) : peak + 240] = 0
        words.append(word(f"w{i}", peak / 24000, peak / 24000 + 0.01))
    words.sort(key=lambda w: w.start)
    s.lease.heard(Heard(tuple(words), pause=1.0, at=4.0))
    starts = [start for start, _ in heard_times(s)]
    assert starts == pytest.approx([at for at, _ in clicks], abs=0.001)
    assert s.leg.counts().seconds == pytest.approx(2.12)


def test_a_word_from_before_the_change_that_is_heard_after_it_keeps_its_time() -> None:
    """The flushed block is padded: later words are early by that, but not those before."""
    s = Subject()
    s.audio(0, 80)  # 10 ms, padded to 80 ms at the change
    s.audio(160, 160, rate=16000)
    s.audio(320, 3200, rate=16000)
    s.lease.heard(
        Heard((word("a", 0.0, 0.01), word("b", 0.08, 0.16), word("c", 0.17, 0.18)), at=0.3)
    )
    s.lease.done()
    assert heard_times(s) == [(0.0, 0.01), (0.01, 0.09), (0.1, 0.11)]


def test_a_rate_that_changes_with_every_frame_is_survived() -> None:
    s = Subject(FakeRecogniser())
    clock = 0.0
    for i in range(4 * MAX_SKEWS):
        rate = (8000, 16000)[i % 2]
        s.audio(round(clock * rate), rate // 50, rate=rate)
        clock += 0.02
    assert s.leg.counts().seconds == pytest.approx(clock, abs=0.001)
    s.lease.heard(Heard((word("now", (4 * MAX_SKEWS - 1) * BLOCK, 99.0),), at=99.0))
    s.lease.done()
    assert heard_times(s)[0][0] == pytest.approx(clock - 0.02, abs=0.003)


def test_one_who_never_pauses_is_cut_even_where_there_is_always_a_guess() -> None:
    """A turn's text is bounded; the guess that is under way begins the next turn."""
    s = Subject()
    for second in range(int(MAX_TURN) + 20):
        said = (word(f"w{second}", second, second + 0.9),)
        guess = (word(f"w{second + 1}", second + 1, second + 1.9),)
        s.lease.heard(Heard(said, guess, at=second + 1.0))
    (end,) = [body for body in s.told if isinstance(body, EndOfTurn)]
    assert (end.reason, end.turn) == ("length", 0)
    assert end.end - end.start < MAX_TURN + 20
    after = s.told[s.told.index(end) + 1]
    assert isinstance(after, Partial)
    assert (after.turn, after.text) == (1, f"w{len(end.text.split())}")


# -- latency ----------------------------------------------------------------------------------


def test_latency_is_told_once_per_word_and_once_per_final() -> None:
    s = Subject(offset=10.0)
    a, b = word("a", 0.1, 0.2), word("b", 0.3, 0.4)
    s.lease.heard(Heard(tentative=(a,), at=0.25))
    s.lease.heard(Heard(tentative=(word("e", 0.1, 0.21),), at=0.3))  # another guess, no new word
    s.lease.heard(Heard(tentative=(a, b), at=0.45))
    s.lease.heard(Heard((a, b), pause=1.0, at=0.5))
    s.lease.heard(Heard(tentative=(word("c", 0.7, 0.8),), at=0.9))
    assert s.latencies == [("partial", 0.2), ("partial", 0.4), ("final", 0.4), ("partial", 0.8)]


def test_a_dropped_block_is_counted() -> None:
    s = Subject()
    s.lease.dropped = 3
    assert s.leg.counts().blocks_dropped == 3


@pytest.mark.parametrize("act", [lambda leg: leg.abort(), lambda leg: leg.finish("hangup")])
def test_a_leg_without_audio(act: Callable[[Leg], None]) -> None:
    s = Subject()
    s.leg.on_digit("1")
    act(s.leg)
    assert s.told == [Pressed("1", 0.0)]
    assert s.leg.counts().seconds == 0


def test_what_was_said_so_far_can_be_asked_for() -> None:
    """The recogniser hears silence that is not on the leg's clock; then the turn is over."""
    engine, told, done = FakeRecogniser(), [], []
    leg = Leg("caller", engine, TurnRules(), tell=lambda leg, body: told.append(body), over=print)
    leg.on_frame(Frame(np.ones(8000, np.int16), 8000, 0))
    before = len(engine.leases[0].blocks)
    leg.finalise(lambda: done.append(len(told)))
    lease = engine.leases[0]
    # one block of what was less than a block, two of silence
    assert [bool(block.any()) for block in lease.blocks[before:]] == [True, False, False]
    lease.heard(Heard((Word("one", 0.1, 0.3, 1.0),), at=1.0))
    assert done == []
    lease.heard(Heard((), at=len(lease.blocks) * 0.08))
    assert [type(body).__name__ for body in told[-2:]] == ["Final", "EndOfTurn"]
    assert told[-1].reason == "asked" and done == [len(told)]
    # What comes now is heard at its own time, whatever the recogniser's clock says.
    leg.on_frame(Frame(np.ones(8000, np.int16), 8000, 8000))
    later = len(lease.blocks) * 0.08
    lease.heard(Heard((Word("two", later - 0.2, later - 0.1, 1.0),), pause=1.0, at=later))
    assert told[-1].text == "two" and told[-1].words[0].end < 2.0


def test_asked_for_too_early_or_too_late_is_answered_at_once() -> None:
    engine, done = FakeRecogniser(), []
    leg = Leg("caller", engine, TurnRules(), tell=lambda leg, body: None, over=lambda leg: None)
    leg.finalise(lambda: done.append("early"))
    leg.on_frame(Frame(np.ones(800, np.int16), 8000, 0))
    leg.finalise(lambda: done.append("waiting"))
    leg.finish("hangup")
    leg.finalise(lambda: done.append("late"))
    assert done == ["early", "late"]
    engine.leases[0].done()
    assert done == ["early", "late", "waiting"]


def test_who_asks_without_end_is_heard_silence_a_bounded_number_of_times() -> None:
    engine, done = FakeRecogniser(), []
    leg = Leg("caller", engine, TurnRules(), tell=lambda leg, body: None, over=lambda leg: None)
    leg.on_frame(Frame(np.ones(8000, np.int16), 8000, 0))
    for i in range(1000):
        leg.finalise(lambda i=i: done.append(i))
    lease = engine.leases[0]
    assert len(lease.blocks) < 40
    lease.heard(Heard((), at=len(lease.blocks) * 0.08))
    assert done == [0, 1, 2, 3]
    lease.heard(Heard((), at=len(lease.blocks) * 0.08))
    assert done == list(range(1000))
    for i in range(10):
        leg.finalise(lambda i=i: done.append(i))
    leg.finish("hangup")
    lease.done()
    assert done[1000:] == list(range(10))


def test_no_more_than_a_bounded_number_of_askers_wait() -> None:
    engine, done = FakeRecogniser(), []
    leg = Leg("caller", engine, TurnRules(), tell=lambda leg, body: None, over=lambda leg: None)
    leg.on_frame(Frame(np.ones(8000, np.int16), 8000, 0))
    for i in range(MAX_ASKED + MAX_LATE + 2):
        leg.finalise(lambda i=i: done.append(i))
    assert done == [MAX_ASKED, MAX_ASKED + 1]
    leg.finish("hangup")
    engine.leases[0].done()
    assert sorted(done) == list(range(MAX_ASKED + MAX_LATE + 2))
