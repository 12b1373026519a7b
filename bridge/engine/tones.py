"""A recogniser of tones: words are numbers coded in the audio, heard exactly or not at all.

For tests and demonstrations. "No word lost, none twice, none in another call" is an exact assertion
with it, and it behaves as the real engines do: rows of a batch, a delay, words with times, pauses.

A word is two tones at once, one of 16 low and one of 16 high ones, for three blocks, then silence
for two. All frequencies are multiples of 12.5 Hz, so that each is a whole number of periods in a
block of 80 ms and invisible in every other tone's bin.

The decision is made for each block by itself: of all the energy, how much is in the strongest low
and the strongest high bin? In a block that the word fills it is nearly all; in a block that it
fills by a share f, the bins hold f² of the energy of a whole block and the block f: the answer is
f, whatever the level. A word in any alignment fills at least two blocks; between two words, where
at least one block's time is silent, at least one block is filled by no more than a half. So a
threshold between a half and one tells words apart without a memory of levels.

Above 4 kHz an engine's input holds what its upsampling left there (a lot, for `repeat`); the mean
of every 24000 / 8000 samples takes that out before the energy is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bridge.config import EngineSettings
from bridge.engine.batcher import Batcher, rules
from bridge.interfaces import Batch
from bridge.types import Heard, Samples, Word

WORDS = 256
BLOCK_SECONDS = 0.08
WORD_SECONDS = 0.24
QUIET_SECONDS = 0.4  # without a tone: a pause

_FREQUENCIES = 350 + 87.5 * np.arange(32)  # Hz, 350 to 3062.5: 16 low ones, then 16 high ones
_AMPLITUDE = 0.25  # of each tone: together at most half of full scale
_LINE_RATE = 8000  # Hz, to which the input is brought back
_LINE_BLOCK = 640  # samples, BLOCK_SECONDS of it
_FILLED = 0.66  # share of a block's energy in its two bins, from which on it is a word's
_FLOOR = 1e-5  # mean square below which it is nobody's; a word at −12 dB has 4e-3
_BALANCE = 0.1  # each tone's least share: one tone alone, or DTMF, is no word


def text_of(word: int) -> str:
    """How the word 0…255 is spelt: ``w000`` … ``w255``."""
    return f"w{word:03d}"


def encode(words: Iterable[int], rate: int = _LINE_RATE, *, gap: float = 0.16) -> Samples:
    """Speak words 0…255: int16 at `rate` Hz (8000 or more), `gap` seconds of silence after each.

    A gap shorter than 0.08 s would make one word of two that are equal. Raises ValueError.
    """
    if gap < BLOCK_SECONDS:
        raise ValueError(f"gap: expected at least {BLOCK_SECONDS} seconds, not {gap}")
    silence = np.zeros(round(gap * rate), np.int16)
    pieces = [piece for word in words for piece in (_tones(word, rate), silence)]
    return np.concatenate([np.zeros(0, np.int16), *pieces])


def _tones(word: int, rate: int) -> Samples:
    if not 0 <= word < WORDS:
        raise ValueError(f"expected words 0 to {WORDS - 1}, not {word}")
    time = np.arange(round(WORD_SECONDS * rate)) / rate
    low, high = _FREQUENCIES[word >> 4], _FREQUENCIES[16 + (word & 15)]
    both = np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time)
    samples: Samples = np.rint(32767 * _AMPLITUDE * both).astype(np.int16)
    return samples


def _seconds(blocks: int) -> float:
    return blocks * _LINE_BLOCK / _LINE_RATE


@dataclass(slots=True)
class _Row:
    """What one row has heard since its fresh step. Counts of blocks."""

    steps: int = 0
    quiet: int = 0  # since the last tone
    said: int | None = None  # the word that sounds
    since: int = 0  # the block in which it began
    waiting: deque[tuple[int, Word]] = field(default_factory=deque)  # (step to say it in, word)

    def hear(self, said: int | None, delay: int) -> Heard:
        """One block further: `said` is the word that fills it. `delay` in blocks."""
        if said != self.said:
            if self.said is not None:
                self.waiting.append((self.steps + delay, self._word(self.said)))
            self.said, self.since = said, self.steps
        self.steps += 1
        self.quiet = 0 if said is not None else self.quiet + 1
        words = []
        while self.waiting and self.waiting[0][0] <= self.steps:
            words.append(self.waiting.popleft()[1])
        at = _seconds(self.steps)
        pause = float(_seconds(self.quiet) >= QUIET_SECONDS)
        return Heard(tuple(words), self._tentative(), pause, at, at - _seconds(delay))

    def _word(self, said: int) -> Word:
        """The word that sounds, as far as it was heard."""
        return Word(text_of(said), _seconds(self.since), _seconds(self.steps), 1.0)

    def _tentative(self) -> tuple[Word, ...]:
        sounding = () if self.said is None else (self._word(self.said),)
        return (*(word for _, word in self.waiting), *sounding)


class TonesModel:
    """A `BatchModel` in numpy. Words come out `delay_blocks` after the block that they end in.

    `rate` is a multiple of 8000 Hz and `block` 80 ms of it. A row's `tentative` words are those
    that were heard and are not out yet, and the one that sounds.
    """

    def __init__(
        self, slots: int, *, rate: int = 24000, block: int = 1920, delay_blocks: int = 6
    ) -> None:
        if rate % _LINE_RATE or block * _LINE_RATE != _LINE_BLOCK * rate:
            raise ValueError(
                f"the tones engine hears 80 ms blocks at a multiple of {_LINE_RATE} Hz, "
                f"not {block} samples at {rate} Hz"
            )
        if delay_blocks < 1:
            raise ValueError(f"delay_blocks: expected 1 or more, not {delay_blocks}")
        self.slots = slots
        self.rate = rate
        self.block = block
        self.delay = _seconds(delay_blocks)
        self.batch = Batch.zeros(slots, block)
        self._delay = delay_blocks
        self._rows = [_Row() for _ in range(slots)]

    def step(self) -> dict[int, Heard]:
        """See `BatchModel.step`."""
        batch = self.batch
        for slot in np.flatnonzero(batch.fresh):
            self._rows[slot] = _Row()
        active = np.flatnonzero(batch.active)
        return {
            int(slot): self._rows[slot].hear(said, self._delay)
            for slot, said in zip(active, _decide(batch.pcm[active]), strict=True)
        }

    def close(self) -> None:
        """Nothing to free."""


def _table() -> npt.NDArray[np.float32]:
    """float32[640, 64]: 32 columns of cosines, then 32 of sines.

    Scaled so that the squares of a tone's two columns are its share of the block's sum of squares.
    """
    turns = np.outer(np.arange(_LINE_BLOCK), 2 * np.pi * _FREQUENCIES / _LINE_RATE)
    scale = np.float32(np.sqrt(2 / _LINE_BLOCK))
    return np.hstack([np.cos(turns), np.sin(turns)], dtype=np.float32, casting="same_kind") * scale


_TABLE = _table()


def _decide(pcm: npt.NDArray[np.float32]) -> list[int | None]:
    """The word that fills each row of float32[rows, block], if one does."""
    every = pcm.shape[1] // _LINE_BLOCK
    line = sum((pcm[:, i::every] for i in range(1, every)), start=pcm[:, ::every]) / every
    energy = np.einsum("ij,ij->i", line, line)
    bins = np.square(line @ _TABLE)
    tones = bins[:, :32] + bins[:, 32:]
    low, high = tones[:, :16], tones[:, 16:]
    weak, strong = np.sort([low.max(axis=1), high.max(axis=1)], axis=0)
    filled = (weak + strong >= _FILLED * energy) & (weak >= _BALANCE * energy)
    loud = energy >= _FLOOR * _LINE_BLOCK
    words = 16 * low.argmax(axis=1) + high.argmax(axis=1)
    return [int(w) if f else None for w, f in zip(words, filled & loud, strict=True)]


def make(settings: EngineSettings) -> Batcher:
    """A recogniser of tones (``engine.kind = "tones"``), 64 slots unless told otherwise."""
    slots = settings.slots if isinstance(settings.slots, int) else 64
    model = TonesModel(1)
    return Batcher(
        "tones",
        lambda: TonesModel(slots),
        rate=model.rate,
        block=model.block,
        rules=rules(settings),
    )
