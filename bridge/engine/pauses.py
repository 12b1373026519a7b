"""Has the speaker paused, and has the model fallen silent? Arrays over all slots. Pure.

`Speech` hears in a block's energy whether somebody speaks. `Pauses` takes the model's own pause
heads where it has them, and measures where it has none. `Watchdog` notices a row that hears speech
and says nothing.

Rows that are not active keep their state. A block is 80 ms; levels are in dBFS, a full-scale
square wave being 0.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bridge.engine.rows import ModelFacts, RowArrays

Mask: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float32]
Counts: TypeAlias = npt.NDArray[np.int64]

DIGITAL_SILENCE = 1e-9  # mean square; half a step of 16 bits is 2e-10
FAINTEST = -50.0  # dBFS; below it nothing is speech. Line noise is at -60, a quiet talker at -40
ABOVE_NOISE = 8.0  # dB; stationary noise stays within 1 dB of its mean from block to block
LOWEST_NOISE = FAINTEST - ABOVE_NOISE  # a lower floor decides nothing and would rise for longer
NOISE_RISES = 2.0  # dB/s; between two gaps of fluent speech the floor must not reach the speech
NOISE_FALLS = 0.5  # of the way, each block
STEADY = 1.25  # dB from block to block; white noise of the telephone band stays within 1.1
LOUDEST_NOISE = -8.0  # dBFS; what is so loud for long is speech that clips
STEADY_BLOCKS = 6  # half a second: nobody speaks as evenly (the sample call: 5 at most)

HEAD = 2  # of 0.5, 1, 2, 3 s: the one that Kyutai's own clients ask
UNSURE = 12  # steps of a fresh row in which the heads are not believed, as in Kyutai's unmute
SURE = 0.9  # s of quiet that are a pause for certain
SURE_TEXT = 5.0  # s without text that are a pause for certain, however loud it is

MAX_PATIENCE = 300.0  # s


class Speech:
    """Energy → speech, against a noise floor of each row's own that falls fast and rises slowly.

    What stays at one level for half a second is noise at once: line noise, hum, an offset (DC), a
    dialling tone. Music is noise after a while, for its softest blocks.
    """

    __slots__ = ("_floor", "_level", "_rise", "_steady")

    def __init__(self, slots: int, block_seconds: float) -> None:
        self._rise = np.float32(NOISE_RISES * block_seconds)
        self._floor: Floats = np.full(slots, LOWEST_NOISE, np.float32)
        self._level: Floats = np.full(slots, np.inf, np.float32)  # of the block before
        self._steady: Counts = np.zeros(slots, np.int64)  # blocks at the level of the one before

    def hear(self, energy: Floats, active: Mask, fresh: Mask) -> Mask:
        """bool[slots]: active rows in whose block, of mean square `energy`, somebody speaks."""
        self._floor[fresh] = LOWEST_NOISE
        self._level[fresh] = np.inf  # from which every level differs
        # The log wants something above zero. What is not a number is nothing at all.
        # Digital silence is no line's noise: it is a flush's, or a switch's between two parties.
        heard: Mask = active & (energy > DIGITAL_SILENCE)
        energy = np.fmin(np.fmax(energy, np.float32(1e-12)), np.float32(1))
        level: Floats = np.float32(10) * np.log10(energy)
        differs = np.abs(level - self._level) > STEADY
        np.copyto(self._level, level, where=heard)
        self._steady += heard
        self._steady[differs & heard] = 0
        even = (self._steady >= STEADY_BLOCKS) & (level < LOUDEST_NOISE)
        threshold = np.maximum(self._floor + np.float32(ABOVE_NOISE), np.float32(FAINTEST))
        self._follow(level, heard, even)
        speech: Mask = heard & ~even & (level > threshold)
        return speech

    def _follow(self, level: Floats, heard: Mask, even: Mask) -> None:
        """Move the floor."""
        above = level - self._floor
        step = np.minimum(above, self._rise)
        np.multiply(above, np.float32(NOISE_FALLS), out=step, where=above < 0)
        np.copyto(step, above, where=even)
        moved = np.clip(self._floor + step, np.float32(LOWEST_NOISE), np.float32(0))
        np.copyto(self._floor, moved, where=heard)


class Pauses:
    """float32[slots] in each step: the probability that the speaker has paused.

    With heads it is the model's own, of the horizon of 2 s, as it is: unmute's
    smoothing has a time constant of 10 ms, which at one value in 80 ms is none, and whoever takes
    it has a hysteresis.

    Without heads it rises with the time since the last speech (0.6 after 0.56 s, 1 after 0.96 s)
    and falls to 0 in the block in which speech begins. Text speaks against it: a token says that
    there was speech the model's delay ago, whatever its energy. Where it is loud and no word comes
    (music, a noisy street), 3 s without text are a pause too, counted from when text could come.
    """

    __slots__ = (
        "_began", "_block", "_delay", "_heads", "_quiet", "_said", "_spoke", "_steps", "_text",
    )  # fmt: skip

    def __init__(self, facts: ModelFacts) -> None:
        slots = facts.slots
        self._heads = facts.heads > HEAD
        self._block = facts.block / facts.rate
        self._delay = facts.delay
        # Steps since something happened, or since the row was fresh.
        self._steps: Counts = np.zeros(slots, np.int64)
        self._text: Counts = np.zeros(slots, np.int64)
        self._quiet: Counts = np.zeros(slots, np.int64)
        self._began: Counts = np.zeros(slots, np.int64)  # speech, from silence
        self._said: Mask = np.zeros(slots, np.bool_)  # there was text
        self._spoke: Mask = np.zeros(slots, np.bool_)  # in the step before

    def hear(
        self, arrays: RowArrays, active: Mask, fresh: Mask, text: Mask, speech: Mask
    ) -> Floats:
        """`text`, `speech`: rows with a token of text, with a block of speech."""
        if self._heads:
            self._steps[fresh] = 0
            self._steps += active
            self._said[fresh] = False
            self._said |= text
            unsure = (self._steps <= UNSURE) & ~self._said
            told: Floats = np.where(unsure, np.float32(0), arrays.pauses[:, HEAD])
            return told
        for count in (self._text, self._quiet, self._began):
            count[fresh] = 0
            count += active
        self._spoke[fresh] = False
        self._text[text] = 0
        self._quiet[speech] = 0
        self._began[speech & ~self._spoke] = 0
        np.copyto(self._spoke, speech, where=active)
        return self._measured()

    def _measured(self) -> Floats:
        without_text = self._text * self._block
        quiet = np.minimum(self._quiet * self._block, without_text + self._delay)
        wordless = np.minimum(without_text, self._began * self._block - self._delay)
        pause = np.maximum(quiet / SURE, wordless / SURE_TEXT)
        measured: Floats = np.clip(pause, 0, 1).astype(np.float32)
        return measured


class Watchdog:
    """Tells rows that have heard speech for `patience` seconds and given no text.

    Only speech counts, and as text comes the model's delay later, so much more must have been
    heard. After an alarm the patience doubles, to `MAX_PATIENCE`, until there is text again: music
    on hold is no speech, however often it is heard. It doubles beyond the fresh start that an
    alarm brings about in the row's next step; any other fresh start is another leg's and begins
    with the patience that was set. 0 is off.
    """

    __slots__ = ("_alarmed", "_block", "_delay", "_limit", "_nothing", "_patience", "_wordless")

    def __init__(self, facts: ModelFacts, patience: float) -> None:
        self._block = facts.block / facts.rate
        self._delay = facts.delay
        self._patience = patience
        self._limit = np.full(facts.slots, patience)  # seconds
        self._wordless: Counts = np.zeros(facts.slots, np.int64)  # blocks of speech since text
        self._alarmed: Mask = np.zeros(facts.slots, np.bool_)  # in the row's step before
        self._nothing: Mask = np.zeros(facts.slots, np.bool_)

    def hear(self, active: Mask, fresh: Mask, text: Mask, speech: Mask, ending: Mask) -> Mask:
        """bool[slots]: rows that are stuck. An alarm is given once, and not in a row's last step.

        `ending`: rows whose last step it is.
        """
        if not self._patience:
            return self._nothing
        self._limit[(fresh & ~self._alarmed) | text] = self._patience
        self._wordless[fresh] = 0
        self._wordless += speech
        self._wordless[text] = 0
        late = self._wordless * self._block - self._delay
        stuck: Mask = active & ~ending & (late >= self._limit - 1e-6)  # a sum of blocks, rounded
        if stuck.any():
            self._wordless[stuck] = 0
            most = max(MAX_PATIENCE, self._patience)
            self._limit[stuck] = np.minimum(2 * self._limit[stuck], most)
        np.copyto(self._alarmed, stuck, where=active)
        return stuck
