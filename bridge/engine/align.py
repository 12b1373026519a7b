"""Words heard a second time are not said a second time. Pure.

After a fault a row starts anew some seconds back, and the model says again what the leg was told
already, at times that may differ by a frame or two and with other punctuation. Comparing times
with the last word's alone either repeats or loses words; so they are matched in order, by text
first and by time alone second. The tolerances are those of a simulation of 2,000 faults with times
that jitter by up to two frames of 80 ms: no word lost, one repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.types import Word

SAME_TEXT = 0.26  # s between starts: three frames and a bit
SAME_TIME = 0.17  # s, whatever the text: two frames and a bit


class Replay:
    """Tells new words from `said` ones, which are in order and on the same clock."""

    __slots__ = ("_next", "_said")

    def __init__(self, said: Sequence[Word]) -> None:
        self._said = [(_letters(word.text), word.start, word.end) for word in said]
        self._next = 0  # words of `_said` before this one have been met again

    @property
    def over(self) -> bool:
        """True when everything that was said has been met again or passed."""
        return self._next >= len(self._said)

    def new(self, words: Sequence[Word]) -> tuple[Word, ...]:
        """Those of `words`, which continue the words before, that were not said."""
        return tuple(word for word in words if self._is_new(word))

    def unsaid(self, tentative: Sequence[Word]) -> tuple[Word, ...]:
        """Those of the tentative words that begin after everything that was said."""
        if self.over:
            return tuple(tentative)
        return tuple(word for word in tentative if word.start >= self._said[-1][2] - SAME_TIME)

    def _is_new(self, word: Word) -> bool:
        if self.over:
            return True
        met = self._match(_letters(word.text), word.start)
        if met is not None:
            self._next = met + 1
            return False
        if word.start < self._said[-1][1] - SAME_TIME:
            return False  # another reading of what was said otherwise
        self._next = len(self._said)
        return True

    def _match(self, letters: str, start: float) -> int | None:
        apart = {i: abs(self._said[i][1] - start) for i in range(self._next, len(self._said))}
        same = [i for i in apart if apart[i] <= SAME_TEXT and self._said[i][0] == letters]
        if same:  # where a replay begins, the nearest: "no no no" may be met in the middle
            return same[0] if self._next else min(same, key=apart.__getitem__)
        return next((i for i in apart if apart[i] <= SAME_TIME), None)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum()) or text
