"""When a leg is not to be heard: what becomes of its audio, its words and its digits. Pure.

In a pause the leg goes on with silence of the same length in place of its audio. So nothing that is
said there reaches an engine, its queue or what it keeps to hear again; the leg's clock runs on, so
words after the pause have their true times without any arithmetic; and the engine hears a pause,
which is when it says what it still holds back. The price is a slot that hears silence.

What was said before is told first: the pause is told when the engine has listened to its beginning
and has no word open, or `PATIENCE` seconds later. Audio is on its way for a while, in Asterisk, in
the kernel and in a jitter buffer: the first `GUARD` seconds after a pause were said in it, and are
silence too.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from bridge.types import Samples

PATIENCE = 2.0  # s of the leg's clock that words before a pause are waited for
GUARD = 0.2  # s; a jitter buffer's longest wait, and two blocks of AudioSocket
APART = 3.0  # s between two digits of one sequence, at most
ROUNDING = 1e-6  # s


class Pausing:
    """The pauses of one leg. Times are seconds on the leg's clock.

    `seconds`: of audio that nobody heard for a pause. `untold`: the pause has begun, and words from
    before it may still come.
    """

    __slots__ = ("active", "at", "by", "seconds", "untold", "_deaf_until")

    def __init__(self) -> None:
        self.active = False
        self.untold = False
        self.at = 0.0  # where the present pause began
        self.by = ""
        self.seconds = 0.0
        self._deaf_until = 0.0

    def begin(self, at: float, by: str) -> None:
        """From now on, which is `at`, nothing is heard."""
        self.active = self.untold = True
        self.at, self.by = at, by

    def end(self, at: float) -> None:
        """What is said from now on is heard."""
        self.active = False
        self._deaf_until = at + GUARD

    def heard(self, samples: Samples, start: float, rate: int) -> Samples:
        """What of a frame's samples, of which the first is at `start`, is to be heard."""
        if not self.active and start >= self._deaf_until:
            return samples
        deaf = len(samples)
        if not self.active:
            deaf = min(deaf, round((self._deaf_until - start) * rate))
        self.seconds += deaf / rate
        silent = np.zeros_like(samples)
        silent[deaf:] = samples[deaf:]
        return silent

    def due(self, at: float, settled: float, *, guessing: bool) -> bool:
        """Has the engine, which has listened up to `at`, said all from before the pause?"""
        if not self.untold:
            return False
        said = at >= self.at - ROUNDING and settled >= self.at - ROUNDING and not guessing
        return said or at >= self.at + PATIENCE


class Keypad:
    """Watches a leg's digits for the sequence that begins and ends pauses; none: an empty one."""

    __slots__ = ("_pressed", "digits")

    def __init__(self, digits: str = "") -> None:
        self.digits = digits
        self._pressed: deque[tuple[str, float]] = deque(maxlen=max(1, len(digits)))

    def press(self, digit: str, at: float) -> bool:
        """Does this digit, `at` seconds on the leg's clock, complete the sequence?"""
        if self._pressed and at - self._pressed[-1][1] > APART:
            self._pressed.clear()
        self._pressed.append((digit, at))
        if not self.digits or "".join(pressed for pressed, _ in self._pressed) != self.digits:
            return False
        self._pressed.clear()
        return True
