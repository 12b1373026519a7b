"""One leg, top to bottom: frames in, transcript events out. START READING HERE. Pure.

on_frame → fill the gap before it → resample → blocks → lease.push
on_time → nothing comes: lend the recogniser silence (bridge/silence.py)
on_heard → turns → tell(event)
finalise → silence → lease.push … on_heard → the turn's end
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from bridge.audio.resample import Bank, Feed
from bridge.interfaces import Lease, Recogniser
from bridge.pausing import Keypad, Pausing
from bridge.silence import Lender
from bridge.turns import TurnRules, Turns
from bridge.types import (
    Block,
    EventBody,
    Final,
    Frame,
    Heard,
    LegCounts,
    LegName,
    Partial,
    Paused,
    Pressed,
    Resumed,
    TranscriptEvent,
    Word,
)

Tell = Callable[["Leg", EventBody], None]
ROUNDING = 1e-6  # s; times come from several clocks
MAX_HOLE = 12.0  # s of a gap that the recogniser hears: the longest turns.min_pause, and some
MAX_ASKED = 4  # `finalise` that have not been answered; further ones are answered with the last
MAX_LATE = 1000  # of such; of more the first is told that it is done before it is
MAX_SKEWS = 16  # changes of rate remembered; words older than these keep the oldest one's skew


class Leg:
    """One speaker of one call.

    `offset`: seconds on the call's clock at which this leg began; times told are on the call's
    clock. `latency(stage, end)` is told when a word that ended at `end` (seconds since the leg's
    first sample) becomes a partial or a final. `tell` gets every event, `over` is
    called once, after the last. `toggle` is called when the digits `pause_digits` are pressed.
    `listened`: up to which second of the call's clock all words have been said; `spoken`: there was
    a word, or the guess at one. `turn`: the number of
    its first turn. Raises `Busy`.
    """

    __slots__ = (
        "_asked", "_bank", "_clock", "_feed", "_keypad", "_late", "_lease", "_lender", "_over",
        "_pausing", "_pushed", "_rate", "_recogniser", "_silence", "_skews", "_tell", "_toggle",
        "_told_words", "_turns", "draining", "ended", "frames", "latency", "listen", "listened",
        "name", "offset", "reason", "spoken", "tape", "words",
    )  # fmt: skip

    def __init__(
        self,
        name: LegName,
        recogniser: Recogniser,
        rules: TurnRules,
        *,
        tell: Tell,
        over: Callable[[Leg], None],
        offset: float = 0.0,
        latency: Callable[[str, float], None] = lambda stage, end: None,
        bank: Bank | None = None,
        pause_digits: str = "",
        toggle: Callable[[], None] = lambda: None,
        turn: int = 0,
    ) -> None:
        self.name: LegName = name
        self.offset = offset
        self.ended = False  # takes no more audio
        self.draining = False  # its last words may still come
        self.reason = ""
        self.frames = 0
        self.words = 0
        self.listened = offset
        self.spoken = False
        self.latency = latency
        self._pausing = Pausing()
        self._keypad = Keypad(pause_digits)
        self._toggle = toggle
        self.listen: Callable[[Heard], None] | None = None  # a peer that wants every step
        self._asked: deque[tuple[float, Callable[[], None]]] = deque()  # when to end the turn
        self._late: deque[Callable[[], None]] = deque()  # asked too often
        self.tape: Callable[[Frame], None] | None = None  # a recording; sees what is heard
        self._tell = tell
        self._over = over
        self._turns = Turns(rules, recogniser.language)
        self._turns.turn = turn
        self._told_words = 0  # of the present partial
        self._recogniser = recogniser
        self._rate = 0
        self._clock = 0  # samples at _rate that were pushed on, silence included
        self._silence = 0.0  # s of gaps filled
        self._lender = Lender()
        # From which second of the recogniser on it is how many seconds behind the leg.
        self._skews: deque[tuple[float, float]] = deque(maxlen=MAX_SKEWS)
        self._pushed = 0
        self._feed: Feed | None = None
        self._bank = bank or Bank()
        self._lease: Lease = recogniser.lease(self.on_heard, self.on_done)

    # -- down: audio ---------------------------------------------------------------------------

    def on_frame(self, frame: Frame) -> None:
        """Audio of any rate and length; a start beyond what was heard is filled with silence."""
        if self.ended:
            return
        samples = self._pausing.heard(frame.samples, frame.start / frame.rate, frame.rate)
        if samples is not frame.samples:  # nor is it recorded
            frame = Frame(samples, frame.rate, frame.start, frame.concealed, frame.packets)
        if self.tape is not None:
            self.tape(frame)
        if self._lender.lent:
            self._settle(frame)
        if self._feed is None or frame.rate != self._rate:
            self._feed = self._change_rate(frame.rate)
        gap = frame.start - self._clock
        if gap > 0:
            self._fill(gap)
        if len(samples):
            self.frames += frame.packets
            self._clock += len(samples)
            self._feed.feed(samples)

    def on_time(self, now: float) -> None:
        """Some time has passed, a twentieth of a second or so."""
        if self.ended or self._feed is None:
            return
        lent = self._lender.look(self._clock, self._rate, now)
        if lent:
            self._feed.feed(np.zeros(lent, np.int16))

    def _settle(self, frame: Frame) -> None:
        """Audio comes again: what was lent is the gap before it, or a part of it."""
        lent, rate = self._lender.lent, self._rate
        gap = round(frame.start * rate / frame.rate) - self._clock
        owed = self._lender.settle(gap, rate)
        if self._pausing.active:
            self._pausing.seconds += owed / rate
        else:
            self._silence += owed / rate
        self._clock += owed
        if owed < lent:  # it was late: the recogniser is ahead of the leg by the rest
            self._feed = self._change_rate(rate)

    def _take(self, block: Block) -> None:
        """A block is ready; the bank calls this, at the end of the turn at the latest."""
        self._pushed += 1
        self._lease.push(block)

    def _fill(self, gap: int) -> None:
        """`gap` samples of silence, a second at a time; of a long hole no more than ends a turn,
        or an hour of it would stop everybody, and push this leg's own words out of the queue."""
        if self._pausing.active:
            self._pausing.seconds += gap / self._rate
        else:
            self._silence += gap / self._rate
        self._clock += gap
        assert self._feed is not None
        left = min(gap, int(MAX_HOLE * self._rate))
        unheard = gap - left
        while left > 0:
            n = min(left, self._rate)
            self._feed.feed(np.zeros(n, np.int16))
            left -= n
        if unheard:  # it is behind the leg by that
            self._feed = self._change_rate(self._rate)

    def _change_rate(self, rate: int) -> Feed:
        if self._feed is not None:
            self._feed.flush()
            self._clock = round(self._clock * rate / self._rate)
        self._rate = rate
        r = self._recogniser
        feed = self._bank.open(rate, r.rate, r.block, r.upsampling, self._take)
        # A flushed block was padded: what the recogniser has heard is ahead of the leg by that.
        heard = self._pushed * r.block / r.rate
        self._skews.append((heard, self._clock / rate - heard - feed.delay))
        return feed

    def on_digit(self, digit: str) -> None:
        """A DTMF digit, after the audio before it."""
        if self.ended:
            return
        at = self._now
        complete = self._keypad.press(digit, at)
        # In a pause somebody types a card's number; only what ends the pause is told
        shown = digit if not self.paused else self._keypad.digits if complete else ""
        for each in shown:
            self._tell(self, Pressed(each, max(0.0, self.offset + at)))
        if complete:
            self._toggle()

    @property
    def _at(self) -> float:
        """Seconds on the leg's clock."""
        return self._clock / self._rate if self._rate else 0.0

    @property
    def _now(self) -> float:
        """The same, with the silence of a sender that has stopped."""
        return self._at + self._lender.lent / self._rate if self._rate else 0.0

    @property
    def paused(self) -> bool:
        """True while nothing is heard, as call control wished."""
        return self._pausing.active

    def pause(self, by: str) -> None:
        """Hear nothing from now on. Told when what was said before has been. Idempotent."""
        if self.ended or self.paused:
            return
        self._pausing.begin(self._now, by)
        if not self._clock:
            self._tell_pause()  # nothing was said

    def resume(self, by: str) -> None:
        """Hear again. Idempotent."""
        if self.ended or not self.paused:
            return
        self._tell_pause()
        now = self._now
        self._pausing.end(now)
        self._tell(self, Resumed(max(0.0, self.offset + now), by))

    def _tell_pause(self) -> None:
        """What was said before the pause is final, and then there is the pause."""
        pausing = self._pausing
        if not pausing.untold:
            return
        pausing.untold = False
        for event in self._turns.finish("paused"):
            self._said(event)
        self._tell(self, Paused(max(0.0, self.offset + pausing.at), pausing.by))

    def finalise(self, done: Callable[[], None]) -> None:
        """What was said up to here is wanted now: it ends its turn, and `done` is called.

        The recogniser hears so much silence that nothing is held back, as fast as it can; the
        silence is not on the leg's clock. `done` is called at once where there is nobody to ask.
        """
        if self.ended or self._feed is None:
            done()
            return
        if len(self._asked) >= MAX_ASKED:
            if len(self._late) >= MAX_LATE:
                self._late.popleft()()
            self._late.append(done)
            return
        self._feed.flush()
        r = self._recogniser
        for _ in range(math.ceil(r.settle * r.rate / r.block - 1e-9)):
            self._take(np.zeros(r.block, np.float32))
        self._lender.write_off()
        self._feed = None
        self._feed = self._change_rate(self._rate)
        self._asked.append((self._pushed * r.block / r.rate, done))

    def finish(self, reason: str) -> None:
        """No more audio. The last words are still heard; then `over` is called."""
        if self.ended:
            return
        self.ended = self.draining = True
        self.reason = reason
        if self._feed is not None:
            self._feed.flush()
        self._lease.finish()

    def abort(self) -> None:
        """Give everything back now, without a word more."""
        self.ended, self.draining = True, False
        self._lease.evict()

    # -- up: words -----------------------------------------------------------------------------

    def on_heard(self, heard: Heard) -> None:
        """What the recogniser heard, on the recogniser's clock."""
        at = self._shift(heard.at)
        heard = Heard(
            tuple(_moved(word, self._shift(word.start)) for word in heard.words),
            tuple(_moved(word, self._shift(word.start)) for word in heard.tentative),
            heard.pause,
            heard.at + at,
            heard.settled + at,
        )
        self.words += len(heard.words)
        self.listened = min(heard.at, heard.settled)
        self.spoken = self.spoken or bool(heard.words or heard.tentative)
        if self.listen is not None:
            self.listen(heard)
        for event in self._turns.hear(heard):
            self._said(event)
        on_leg = heard.at - self.offset, heard.settled - self.offset
        if self._pausing.due(*on_leg, guessing=bool(heard.tentative)):
            self._tell_pause()
        while self._asked and heard.at - at >= self._asked[0][0] - ROUNDING:
            self._answer(self._asked.popleft()[1])
            if self._late and not self._asked:
                self.finalise(partial(_each, list(self._late)))
                self._late.clear()
        if self._turns.wants_flush and not self._asked:
            self._lease.flush()

    def _answer(self, done: Callable[[], None]) -> None:
        """The recogniser has heard the silence of a `finalise`."""
        for event in self._turns.finish("asked"):
            self._said(event)
        done()

    def on_done(self) -> None:
        """The recogniser has nothing more to say."""
        self.ended, self.draining = True, False
        try:
            self._tell_pause()
            for event in self._turns.finish():
                self._said(event)
            while self._asked:
                self._asked.popleft()[1]()
            while self._late:
                self._late.popleft()()
        finally:  # or the call would never end
            self._over(self)

    def _shift(self, at: float) -> float:
        """What second `at` of the recogniser is behind the call's clock."""
        skew = 0.0
        for i, (since, behind) in enumerate(self._skews):
            if i and since > at + 1e-6:
                break
            skew = behind
        return self.offset + skew

    def _said(self, event: TranscriptEvent) -> None:
        match event:
            case Partial():
                if len(event.words) > self._told_words:  # news, not another guess at the same
                    self.latency("partial", event.words[-1].end - self.offset)
                self._told_words = len(event.words)
            case Final():
                self.latency("final", event.words[-1].end - self.offset)
                self._told_words = 0
        self._tell(self, event)

    def counts(self) -> LegCounts:
        """What this leg's audio came to so far."""
        return LegCounts(
            seconds=self._at,
            frames=self.frames,
            words=self.words,
            silence_inserted=self._silence,
            blocks=self._pushed,
            blocks_dropped=self._lease.dropped,
            paused=self._pausing.seconds,
        )


def _moved(word: Word, seconds: float) -> Word:
    start = max(0.0, word.start + seconds)
    return Word(word.text, start, max(start, word.end + seconds), word.confidence)


def _each(done: Iterable[Callable[[], None]]) -> None:
    for one in done:
        one()
