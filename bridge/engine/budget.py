"""Is there time left for another leg? Admission by step time. Pure.

A block is 80 ms of audio. Steps that take longer than that fall behind for ever, and at half of it
a leg that fell behind can still catch up one block per step. So legs are refused while more than
one step in a hundred takes longer than the budget.
"""

from __future__ import annotations

from collections import deque

WINDOW = 2.0  # s that a step counts, or as long as `SLOW` of its kind take
SLOW = 3  # steps over budget, at least; one hiccup closes nothing
HUNG = 10  # budgets that a step under way may take before it counts by itself


class StepBudget:
    """Watches the time of steps. `limit` in seconds; None: no limit."""

    __slots__ = ("_began", "_slow", "_steps", "limit")

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._steps: deque[tuple[float, bool]] = deque()
        self._slow = 0
        self._began: float | None = None  # of the step under way

    def begin(self, now: float) -> None:
        """A step begins."""
        self._began = now

    def add(self, seconds: float, now: float) -> None:
        """A step took `seconds` and ended at `now`."""
        self._began = None
        if self.limit is None:
            return
        slow = seconds > self.limit
        self._steps.append((now + max(WINDOW, SLOW * seconds), slow))
        self._slow += slow
        self._forget(now)

    def spent(self, now: float) -> bool:
        """True when the 99th percentile of the steps that count is over the limit."""
        if self.limit is None:
            return False
        if self._began is not None and now - self._began > HUNG * self.limit:
            return True
        self._forget(now)
        return self._slow >= SLOW and self._slow * 100 > len(self._steps)

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0][0] < now:
            self._slow -= self._steps.popleft()[1]
