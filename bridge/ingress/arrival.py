"""Where audio without time stamps lies on its leg's clock: by when it came. Pure.

Frames that carry no time stop while a digit is pressed or a channel is silent, so the clock follows
arrival. `origin` is the arrival time of sample 0, the earliest that any frame has shown it to be.
Audio that ends more than `GAP` behind its arrival is labelled later, and the leg fills the hole
with silence. Bursts (the kernel held audio while the bridge restarted) are ahead of the arrival
clock: they move `origin` back, unless the lead is only what has just been filled in (`debt`), when
frames were late rather than missing.
"""

from __future__ import annotations

GAP = 0.16  # s; Asterisk's own scheduling was seen to be 0.12 s late with 200 calls
JITTER = 0.04  # s; a frame after a gap is this late or less: else each gap would add to the origin
QUIET = 0.25  # s without audio after which silence is filled in while it lasts
DEBT_AGE = 1.0  # s after which filled silence no longer explains a burst


def until_block(clock: int, rate: int, message: int, streams: int = 1) -> int:
    """Messages, of that many samples each, until a block of 80 ms is complete; at least one.

    `streams`: whose messages come in between.
    """
    block = rate * 2 // 25
    if not 0 < message < block:
        return 1
    return (block - clock % block) // message * streams or 1


class Arrival:
    """The clock of one stream. `clock`: samples at `rate` so far."""

    __slots__ = ("_debt", "_filled_at", "clock", "origin", "rate")

    def __init__(self, now: float, rate: int = 8000) -> None:
        self.clock = 0
        self.rate = rate
        self.restart(now)

    def restart(self, now: float) -> None:
        """The stream begins now."""
        self.origin = self._filled_at = now
        self._debt = 0.0  # s of silence filled in that late frames may still explain

    def place(self, samples: int, rate: int, now: float) -> int:
        """Where audio that has just come begins, as a sample index at `rate`."""
        if rate != self.rate:
            self.clock = round(self.clock * rate / self.rate)
            self.rate = rate
        start = self.clock
        lead = (start + samples) / rate - (now - self.origin)
        if lead < -GAP:
            missing = -lead - JITTER
            start += int(missing * rate)
            self._debt += missing
            self._filled_at = now
        elif lead > self._debt:
            self.origin -= lead - self._debt
        if self._debt and lead < GAP and now - self._filled_at > DEBT_AGE:
            self._debt = 0.0
        self.clock = start + samples
        return start

    def fill(self, now: float) -> bool:
        """Let time pass without audio. True: the clock has moved on, over silence."""
        behind = now - self.origin - self.clock / self.rate
        if behind <= QUIET:
            return False
        # Stay GAP behind, so that frames that are only late still fit.
        missing = behind - GAP
        self.clock += int(missing * self.rate)
        self._debt += missing
        self._filled_at = now
        return True

    @property
    def seconds(self) -> float:
        """How far the clock has run."""
        return self.clock / self.rate
