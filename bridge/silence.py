"""A sender that simply stops: how much silence its leg may hear meanwhile. Pure.

Some senders send nothing while nobody speaks (DTX without comfort noise, an unsnooped channel of
Asterisk's). The next packet says how long the pause was, and the gap before it is filled then. But
a recogniser that hears nothing hears no pause either, and the turn would end only with the next
word.

What was chosen: the pause is heard while it lasts, made of the time that passes. When a leg has
had no audio for `STOPPED`, silence is *lent* to its recogniser, `BEHIND` the clock, as long as
nothing comes. The leg's own clock stands still. When audio comes again, what was lent counts
against the gap before it: nothing is heard twice, and nothing is moved. If the gap turns out to be
shorter than what was lent, the audio was late and not missing: the recogniser has heard so much
silence more than the call had, and the leg sets the times right (`Leg._change_rate`).

Not chosen: to ask for a flush alone, and let the pause last on paper. A flush brings the words that
an engine holds back, not the end of an utterance, which engines find by hearing the pause; and
each would have to be told of time in a way of its own.
"""

from __future__ import annotations

from typing import Final

STOPPED: Final = 0.5  # s without audio
BEHIND: Final = 0.16  # s; audio that is only late still finds its place (ingress/audiosocket.py)
STALL: Final = 0.25  # s between two looks: who looks so late has not read what has come either
MOST: Final = 4.0  # s that a sender of long pieces may be silent between them


class Lender:
    """One leg's account. `lent`: samples that its recogniser has heard ahead of its clock, and
    that are to count against the next gap."""

    __slots__ = ("_clock", "_looked", "_off", "_patience", "_since", "lent")

    def __init__(self) -> None:
        self.lent = 0
        self._off = 0  # samples that were lent in this silence, and are not owed any more
        self._clock = 0  # samples, at the last look
        self._since = 0.0  # when it was first seen there
        self._looked = 0.0
        self._patience = STOPPED

    def look(self, clock: int, rate: int, now: float) -> int:
        """Samples of silence to lend now, where the leg's clock shows `clock` at `rate` Hz."""
        stalled = now - self._looked > STALL
        self._looked = now
        if clock != self._clock:
            self._clock, self._since, self._off = clock, now, 0
        elif stalled:  # the time between does not count
            heard = self.lent + self._off
            self._since = now - (heard / rate + BEHIND if heard else 0.0)
        silent = now - self._since
        if silent < self._patience:
            return 0
        more = max(0, int((silent - BEHIND) * rate) - self.lent - self._off)
        self.lent += more
        return more

    def write_off(self) -> None:
        """What was lent is not owed: the leg has set its times right."""
        self._off += self.lent
        self.lent = 0

    def settle(self, gap: int, rate: int) -> int:
        """Audio comes again, after `gap` samples of nothing: how many were rightly lent.

        A sender that was only late, because it sends long pieces, is given more time from now on.
        """
        lent, self.lent = self.lent, 0
        if lent > gap:
            self._patience = min(MOST, max(self._patience, 1.5 * (lent / rate + BEHIND)))
        return min(lent, max(0, gap))
