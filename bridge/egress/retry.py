"""When a sink that failed is asked again: the back-off of one event, the breaker of one sink. Pure.

`random` is not used here: the caller gives the jitter.
"""

from __future__ import annotations

from collections.abc import Sequence

_LIVE = (0.0, 1.0, 5.0, 30.0, 120.0, 300.0, 900.0, 1800.0, 3600.0)  # seconds, for call control
# The tail of Standard Webhooks' schedule, for the others: 75 hours in all, then it is given up.
SCHEDULE = (*_LIVE, *(hours * 3600.0 for hours in (2, 5, 10, 14, 20, 22)))
LONGEST = 80 * 3600.0  # seconds; an older event that fails once more is given up as well
WISH_LIMIT = 3600.0  # seconds: a Retry-After counts for no longer
TRIP = 5  # failures in a row, of whatever calls, that open the breaker
PROBE = 10.0  # seconds between two questions to a sink whose breaker is open


def backoff(schedule: Sequence[float], attempts: int, jitter: float) -> float:
    """Seconds to wait after `attempts` failures; `jitter` in 0…1 spreads them by ±25 %.

    Spread, because all calls of a sink that fails begin to wait at the same moment.
    """
    return schedule[min(attempts, len(schedule)) - 1] * (0.75 + 0.5 * jitter)


def too_late(attempts: int, age: float) -> bool:
    """The schedule is over, `age` seconds after the event: nobody can still want it."""
    return attempts > len(SCHEDULE) or age > LONGEST


class Breaker:
    """Counts a sink's failures in a row, and says when the sink may be asked (`ask_at`)."""

    def __init__(self) -> None:
        self.failures = 0
        self.ask_at = 0.0  # seconds of the caller's clock

    @property
    def open(self) -> bool:
        return self.failures >= TRIP

    def asked(self, now: float) -> None:
        """An event was given to the sink."""
        if self.open:
            self.ask_at = now + PROBE

    def failed(self, now: float, wish: float) -> None:
        """The sink did not take it, and wishes to be left alone for `wish` seconds."""
        self.failures += 1
        if self.open:
            self.ask_at = now + max(PROBE, wish)

    def taken(self) -> bool:
        """The sink took an event. True when that closed the breaker."""
        was_open = self.open
        self.failures, self.ask_at = 0, 0.0
        return was_open
