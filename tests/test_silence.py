"""A sender that simply stops: its leg hears the pause while it lasts, and nothing twice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.engine.tones import TonesModel, encode, text_of
from bridge.interfaces import Batch
from bridge.leg import Leg
from bridge.silence import BEHIND, MOST, STOPPED, Lender
from bridge.turns import TurnRules
from bridge.types import EndOfTurn, EventBody, Final, Frame, Heard, Samples, Word
from tests.fakes import FakeLease, FakeRecogniser

LOOK = 0.05  # s, as the server looks
RATE = 8000


class Same(FakeRecogniser):
    """At 8 kHz, in blocks of 20 ms: what is pushed is the line's own samples."""

    rate = RATE
    block = 160


class Subject:
    """A leg, and the clock that it is looked at by. `told`: (when, what)."""

    def __init__(self, recogniser: FakeRecogniser | None = None) -> None:
        self.now = 100.0
        self.told: list[tuple[float, EventBody]] = []
        self.recogniser = recogniser or Same()
        self.leg = Leg(
            "caller",
            self.recogniser,
            TurnRules(partials=False),
            tell=lambda leg, body: self.told.append((self.now - 100, body)),
            over=lambda leg: None,
        )
        self.lease: FakeLease = self.recogniser.leases[-1]
        self._next = self.now + LOOK

    def send(self, samples: Samples, start: int, rate: int = RATE) -> None:
        """20 ms packets as time passes; `start` is where the first is on the leg's clock."""
        step = rate // 50
        for at in range(0, len(samples), step):
            self.wait(0.02)
            self.leg.on_frame(Frame(samples[at : at + step], rate, start + at))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self._next <= end + 1e-9:
            self.now = self._next
            self.look()
            self._next += LOOK
        self.now = end

    def look(self) -> None:
        self.leg.on_time(self.now)

    def pushed(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *self.lease.blocks])

    @property
    def seconds(self) -> float:
        """Of what the recogniser has heard."""
        return sum(map(len, self.lease.blocks)) / RATE


def loud(seconds: float) -> Samples:
    return np.full(round(seconds * RATE), 8192, np.int16)


# -- the account ----------------------------------------------------------------------------------


def test_silence_is_lent_as_time_passes_and_not_before_it_is_one() -> None:
    lender, lent = Lender(), []
    for n in range(40):
        lent.append(lender.look(8000, RATE, 100 + n * LOOK))
    assert lent[:10] == [0] * 10
    assert lent[10] == pytest.approx((STOPPED - BEHIND) * RATE, abs=1)
    assert lent[11:] == pytest.approx([LOOK * RATE] * 29, abs=1)
    assert lender.lent == sum(lent) == pytest.approx((39 * LOOK - BEHIND) * RATE, abs=1)


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """What came meanwhile has not been read either."""
    lender = Lender()
    for n in range(9):
        assert lender.look(8000, RATE, 100 + n * LOOK) == 0
    assert lender.look(8000, RATE, 130.0) == 0
    assert [lender.look(8000, RATE, 130 + n * LOOK) > 0 for n in range(1, 12)] == (
        [False] * 9 + [True] * 2
    )
    before = lender.lent
    assert lender.look(8000, RATE, 140.0) == 0  # nor in mid-silence
    assert lender.look(8000, RATE, 140.0 + STOPPED) == 0
    assert lender.lent == before


def test_a_sender_of_long_pieces_is_given_time() -> None:
    """A second of audio every second: not heard between its pieces after the first."""
    lender, wrong = Lender(), 0
    for piece in range(1, 20):
        for n in range(20):
            wrong += lender.look(piece * RATE, RATE, 100 + piece + n * LOOK)
        if lender.lent:
            assert piece == 1
            assert lender.settle(0, RATE) == 0
    assert 0 < wrong < RATE
    for _ in range(20):
        lender.lent = 100 * RATE
        lender.settle(0, RATE)
    assert lender._patience == MOST


# -- a leg ----------------------------------------------------------------------------------------


def test_a_gap_that_was_lent_is_filled_once() -> None:
    s = Subject()
    s.send(loud(1.0), 0)
    s.wait(3.0)
    assert s.seconds == pytest.approx(4.0 - BEHIND, abs=0.1)  # while it lasts
    assert s.leg.counts().seconds == 1.0 and s.leg.counts().silence_inserted == 0
    s.send(loud(1.0), 4 * RATE)
    assert s.pushed().tolist() == [0.25] * RATE + [0.0] * 3 * RATE + [0.25] * RATE
    counts = s.leg.counts()
    assert (counts.seconds, counts.silence_inserted) == (5.0, 3.0)


def test_a_pause_shorter_than_that_is_as_it_always_was() -> None:
    s = Subject()
    s.send(loud(1.0), 0)
    s.wait(STOPPED - 0.1)
    assert s.seconds == 1.0
    s.send(loud(1.0), round(1.4 * RATE))
    assert s.pushed().tolist() == [0.25] * RATE + [0.0] * 3200 + [0.25] * RATE


def test_audio_that_was_only_late_is_heard_whole_and_its_times_are_true() -> None:
    """The network held it for two seconds, and the recogniser has heard as much silence."""
    s = Subject()
    s.send(loud(1.0), 0)
    s.wait(2.0)
    ahead = s.seconds - 1.0
    assert ahead > 1.5
    s.leg.on_frame(Frame(loud(2.0), RATE, RATE))  # all at once
    s.send(loud(1.0), 3 * RATE)
    pushed = s.pushed()
    assert np.count_nonzero(pushed) == 4 * RATE
    assert s.leg.counts().seconds == 4.0 and s.leg.counts().silence_inserted == 0
    again = int(np.flatnonzero(pushed)[RATE]) / RATE  # where the recogniser hears second 1
    assert again - 1.0 == pytest.approx(ahead, abs=0.03)  # up to a block
    late = Word("late", again, again + 0.5, 0.9)
    s.lease.heard(Heard((late,), pause=1.0, at=again + 2, settled=9.0))
    ((_, final),) = [(at, body) for at, body in s.told if isinstance(body, Final)]
    assert (final.words[0].start, final.words[0].end) == pytest.approx((1.0, 1.5))


def test_nothing_is_lent_before_audio_or_after_the_end() -> None:
    s = Subject()
    s.wait(5.0)
    assert s.seconds == 0
    s.send(loud(0.5), 0)
    s.leg.finish("hangup")
    s.wait(5.0)
    assert s.seconds == 0.5


def test_what_nobody_came_back_for_is_not_the_legs() -> None:
    s = Subject()
    s.send(loud(0.5), 0)
    s.wait(5.0)
    s.leg.finish("timeout")
    assert s.leg.counts().seconds == 0.5 and s.leg.counts().silence_inserted == 0


def test_the_rate_may_change_over_it() -> None:
    s = Subject()
    s.send(loud(1.0), 0)
    s.wait(2.0)
    s.send(np.full(16000, 8192, np.int16), 3 * 16000, 16000)
    s.leg.finish("hangup")
    counts = s.leg.counts()
    assert (counts.seconds, counts.silence_inserted) == (pytest.approx(4.0), pytest.approx(2.0))
    heard = np.flatnonzero(np.abs(s.pushed()) > 0.2) / RATE
    assert heard[-1] == pytest.approx(4.0, abs=0.03)  # soxr keeps a sound's place


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=8))
def test_every_sample_is_heard_once_and_in_order(pieces: list[tuple[int, int]]) -> None:
    """Pieces of audio that come so long after each other, and say that so long was between them."""
    s = Subject()
    start, values = 0, itertools.count(1)
    sent: list[int] = []
    for silence, said in pieces:
        s.wait(silence / 1000)
        start += said * 8
        piece = np.array([next(values) for _ in range(80)], np.int16)
        s.leg.on_frame(Frame(piece, RATE, start))
        sent += piece.tolist()
        start += 80
    s.leg.finish("hangup")
    pushed = np.round(s.pushed() * 32768).astype(int)
    assert pushed[pushed != 0].tolist() == sent
    counts = s.leg.counts()
    assert counts.seconds * RATE == pytest.approx(start)
    assert counts.silence_inserted * RATE == pytest.approx(start - len(sent))


# -- words and turns, by a recogniser that hears tones --------------------------------------------


class Heeding(FakeRecogniser):
    """`TonesModel` behind a lease that steps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TonesModel(1)
        self.rate, self.block = self.model.rate, self.model.block
        self.stepped = 0

    def step(self) -> None:
        lease = self.leases[-1]
        batch: Batch = self.model.batch
        while self.stepped < len(lease.blocks):
            batch.pcm[0], batch.active[0] = lease.blocks[self.stepped], True
            batch.fresh[0] = self.stepped == 0
            self.stepped += 1
            heard = self.model.step().get(0)
            if heard is not None:
                lease.heard(heard)


class Speaking(Subject):
    def __init__(self) -> None:
        self.tones = Heeding()
        super().__init__(self.tones)

    def look(self) -> None:
        super().look()
        self.tones.step()


def test_the_turn_ends_in_real_time_while_nothing_comes() -> None:
    s = Speaking()
    said = encode([5, 6, 7])
    s.send(said, 0)
    spoken = len(said) / RATE
    s.wait(3.0)
    ((at, end),) = [(at, body) for at, body in s.told if isinstance(body, EndOfTurn)]
    assert end.text == " ".join(text_of(n) for n in (5, 6, 7))
    assert spoken + 0.5 < at < spoken + 1.3
    # The next turn's words are at their places, and no word of the first comes again.
    begin = round((spoken + 3.0) * RATE)
    s.send(encode([8, 9]), begin)
    s.wait(3.0)
    ends = [body for _, body in s.told if isinstance(body, EndOfTurn)]
    assert [end.text for end in ends[1:]] == [" ".join(text_of(n) for n in (8, 9))]
    words = [w for _, body in s.told if isinstance(body, Final) for w in body.words]
    assert [word.text for word in words] == [text_of(n) for n in (5, 6, 7, 8, 9)]
    assert words[3].start == pytest.approx(begin / RATE, abs=0.05)


def test_without_a_look_it_would_not_end() -> None:
    """What this is for: the recogniser hears no pause."""
    s = Speaking()
    s.send(encode([5, 6, 7]), 0)
    s.look = s.tones.step  # type: ignore[method-assign]
    s.wait(3.0)
    assert [body for _, body in s.told if isinstance(body, EndOfTurn)] == []


def test_what_is_written_off_is_neither_owed_nor_lent_again() -> None:
    lender = Lender()
    now, lent = 0.0, 0
    while now < 2.0:
        lent += lender.look(0, 8000, now)
        now += 0.05
    lender.write_off()
    assert lent > 0 and lender.lent == 0
    assert lender.look(0, 8000, now) <= 800  # what has passed since, not all of it again
    assert lender.settle(lent, 8000) <= 800
