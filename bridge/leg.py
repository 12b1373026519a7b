"""One leg, top to bottom: frames in, transcript events out. START READING HERE. Pure.

on_frame → fill the gap before it → resample → blocks → lease.push
on_heard → turns → tell(event)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bridge.audio.resample import Resampler, make_resampler
from bridge.interfaces import Lease, Recogniser
from bridge.turns import TurnRules, Turns
from bridge.types import (
    EventBody,
    Final,
    Frame,
    Heard,
    LegCounts,
    LegName,
    Partial,
    Pressed,
    TranscriptEvent,
    Word,
)

Tell = Callable[["Leg", EventBody], None]


class Leg:
    """One speaker of one call.

    `offset`: seconds on the call's clock at which this leg began; times told are on the call's
    clock. `latency(stage, end)` is told when a word that ended at `end` (seconds since the leg's
    first sample) becomes a partial or a final. `tell` gets every event, `over` is
    called once, after the last. Raises `Busy`.
    """

    __slots__ = (
        "_clock", "_lease", "_over", "_pushed", "_rate", "_recogniser", "_resampler",
        "_silence", "_skew", "_tell", "_told_words", "_turns", "draining", "ended", "frames",
        "latency", "name", "offset", "reason", "words",
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
    ) -> None:
        self.name: LegName = name
        self.offset = offset
        self.ended = False  # takes no more audio
        self.draining = False  # its last words may still come
        self.reason = ""
        self.frames = 0
        self.words = 0
        self.latency = latency
        self._tell = tell
        self._over = over
        self._turns = Turns(rules)
        self._told_words = 0  # of the present partial
        self._recogniser = recogniser
        self._rate = 0
        self._clock = 0  # samples at _rate that were pushed on, silence included
        self._silence = 0.0  # s of gaps filled
        self._skew = 0.0  # s that the recogniser's clock is behind the leg's
        self._pushed = 0
        self._resampler: Resampler | None = None
        self._lease: Lease = recogniser.lease(self.on_heard, self.on_done)

    # -- down: audio ---------------------------------------------------------------------------

    def on_frame(self, frame: Frame) -> None:
        """Audio of any rate and length; a start beyond what was heard is filled with silence."""
        if self.ended:
            return
        if frame.rate != self._rate:
            self._change_rate(frame.rate)
        gap = frame.start - self._clock
        if gap > 0:
            self._fill(gap)
        samples = frame.samples
        if len(samples):
            self.frames += 1
            self._clock += len(samples)
            self._push(samples)

    def _push(self, samples: np.ndarray) -> None:
        assert self._resampler is not None
        for block in self._resampler.feed(samples):
            self._pushed += 1
            self._lease.push(block)

    def _fill(self, gap: int) -> None:
        """`gap` samples of silence, a second at a time: a long hole costs no memory."""
        self._silence += gap / self._rate
        self._clock += gap
        while gap > 0:
            n = min(gap, self._rate)
            self._push(np.zeros(n, np.int16))
            gap -= n

    def _change_rate(self, rate: int) -> None:
        if self._resampler is not None:
            for block in self._resampler.flush():
                self._pushed += 1
                self._lease.push(block)
            self._clock = round(self._clock * rate / self._rate)
        self._rate = rate
        r = self._recogniser
        self._resampler = make_resampler(rate, r.rate, r.block, r.upsampling)
        # A flushed block was padded: what the recogniser has heard is ahead of the leg by that.
        self._skew = self._clock / rate - self._pushed * r.block / r.rate - self._resampler.delay

    def on_digit(self, digit: str) -> None:
        """A DTMF digit, after the audio before it."""
        at = self._clock / self._rate if self._rate else 0.0
        self._tell(self, Pressed(digit, self.offset + at))

    def finish(self, reason: str) -> None:
        """No more audio. The last words are still heard; then `over` is called."""
        if self.ended:
            return
        self.ended = self.draining = True
        self.reason = reason
        if self._resampler is not None:
            for block in self._resampler.flush():
                self._pushed += 1
                self._lease.push(block)
        self._lease.finish()

    def abort(self) -> None:
        """Give everything back now, without a word more."""
        self.ended, self.draining = True, False
        self._lease.evict()

    # -- up: words -----------------------------------------------------------------------------

    def on_heard(self, heard: Heard) -> None:
        """What the recogniser heard, on the recogniser's clock."""
        shift = self.offset + self._skew
        if shift:
            heard = replace(
                heard,
                words=tuple(_moved(word, shift) for word in heard.words),
                tentative=tuple(_moved(word, shift) for word in heard.tentative),
                at=heard.at + shift,
            )
        self.words += len(heard.words)
        for event in self._turns.hear(heard):
            self._said(event)

    def on_done(self) -> None:
        """The recogniser has nothing more to say."""
        self.ended, self.draining = True, False
        for event in self._turns.finish():
            self._said(event)
        self._over(self)

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
            seconds=self._clock / self._rate if self._rate else 0.0,
            frames=self.frames,
            words=self.words,
            silence_inserted=self._silence,
            blocks=self._pushed,
            blocks_dropped=self._lease.dropped,
        )


def _moved(word: Word, seconds: float) -> Word:
    start = max(0.0, word.start + seconds)
    return replace(word, start=start, end=max(start, word.end + seconds))
