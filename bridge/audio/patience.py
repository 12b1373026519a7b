"""How long to wait for a missing packet.

What has to be known is how long after its first successor a missing packet still comes. That is
measured directly, and on our clock alone: the sender's drift, pauses and freezes, which blur the
jitter that RFC 3550 A.8 measures, do not enter. It goes into a histogram with forgetting, and the
wait is the one of least cost, as in WebRTC NetEQ's reorder optimiser: the wait itself for every
hole, and `LOST_COST` for every packet that would have come later. Where missing packets never
come, that is the floor; where they come late, up to the cap.

(A share of the jitter's histogram or rtpengine's mean + 4 deviations set the delay of
a buffer that delays every packet. Ours delays only what is behind a hole.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import inf

BUCKET = 0.01  # s of waiting that are told apart
FORGET = 0.99  # what an observation still counts after the next one: about a hundred matter
LOST_COST = 2.0  # s that we would wait for one packet; NetEQ's too: 20 ms for every per cent lost
GUESS = 0.1  # s to wait before anything is known; some 20 holes that stay empty overrule it


class Patience:
    """`wait` is in seconds, between `floor` and `cap`."""

    __slots__ = ("_came", "_total", "_waits", "_weight", "wait")

    def __init__(self, floor: float, cap: float) -> None:
        steps = (step * BUCKET for step in range(int(cap / BUCKET) + 1))
        self._waits = [floor, *(wait for wait in steps if floor < wait < cap)]
        if cap > floor:
            self._waits.append(cap)
        self._came = [0.0] * len(self._waits)  # within that wait, but not within the one before
        self._total = 1.0  # holes, filled or not
        self._weight = 1.0  # of the next observation: growing is forgetting the ones before
        self.wait = min(max(GUESS, floor), cap)
        self._came[bisect_left(self._waits, self.wait)] = 1.0

    def came(self, after: float) -> None:
        """A missing packet came, `after` seconds from its first successor."""
        wait = bisect_right(self._waits, after)
        if wait < len(self._came):
            self._came[wait] += self._weight
        self._observed()

    def lost(self) -> None:
        """A hole was given up."""
        self._observed()

    def _observed(self) -> None:
        self._total += self._weight
        self._weight /= FORGET
        if self._weight > 1e9:  # once in 2,000 observations
            self._came = [count / self._weight for count in self._came]
            self._total /= self._weight
            self._weight = 1.0
        self.wait = self._cheapest()

    def _cheapest(self) -> float:
        best, least, later = 0.0, inf, 0.0
        for wait, came in zip(reversed(self._waits), reversed(self._came), strict=True):
            cost = wait * self._total + LOST_COST * later
            if cost <= least:
                best, least = wait, cost
            later += came
        return best
