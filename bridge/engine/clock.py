"""A row's time and its leg's. Pure.

The model counts the steps of its row since the row was fresh; the leg counts the blocks that it
pushed. They part where blocks were lost, where the row was fed silence that was never in the call,
and where it started afresh further back.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from bridge.types import Heard, Word

MAX_PIECES = 128  # remembered, each a block at worst; older times are mapped as the oldest

_BEGINS, _ENDS = 1e-6, -1e-6  # blocks; what rounding may lose


class _Piece(NamedTuple):
    """From `step` of the row on the leg is at `block`, and moves along or stands still."""

    step: int
    block: int
    moves: bool


class RowClock:
    """Maps seconds since a row's fresh step to seconds since its leg's first block."""

    __slots__ = ("_block_seconds", "_expected", "_pieces", "_steps")

    def __init__(self, block_seconds: float) -> None:
        self._block_seconds = block_seconds
        self._pieces: deque[_Piece] = deque(maxlen=MAX_PIECES)
        self._steps = 0  # of the row, since fresh
        self._expected = -1  # index of the block that would go on without a break

    def restart(self) -> None:
        """The next step is fresh."""
        self._pieces.clear()
        self._steps = 0
        self._expected = -1

    def block(self, index: int) -> None:
        """The next step hears the leg's block `index`."""
        if index != self._expected or not self._pieces[-1].moves:
            self._pieces.append(_Piece(self._steps, index, True))
        self._expected = index + 1
        self._steps += 1

    def silence(self) -> None:
        """The next step hears silence that is not the leg's; the leg's time stands still."""
        if self._pieces[-1].moves:
            self._pieces.append(_Piece(self._steps, self._expected, False))
        self._steps += 1

    def on_leg(self, heard: Heard) -> Heard:
        """The same, in the leg's time."""
        if len(self._pieces) == 1 and self._pieces[0] == (0, 0, True):
            return heard
        return Heard(
            tuple(map(self._moved, heard.words)),
            tuple(map(self._moved, heard.tentative)),
            heard.pause,
            self._leg(heard.at, _ENDS),
            self._leg(heard.settled, _ENDS),
            heard.stuck,
        )

    def _moved(self, word: Word) -> Word:
        start = self._leg(word.start, _BEGINS)
        return Word(word.text, start, max(start, self._leg(word.end, _ENDS)), word.confidence)

    def _leg(self, seconds: float, rounding: float) -> float:
        """What begins with a block belongs to that block, what ends there to the one before."""
        if math.isinf(seconds):
            return seconds
        row = seconds / self._block_seconds
        for piece in reversed(self._pieces):  # most are of now
            if piece.step <= row + rounding:
                break
        gone = row - piece.step
        return (piece.block + (gone if piece.moves else 0.0)) * self._block_seconds
