"""Numbered chunks that may overtake each other, put right where that takes no long wait. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

HOLD = 0.2  # s that a chunk waits for one before it, at most: as long as RTP's jitter buffer
NEVER = float("inf")


class ChunkOrder(Generic[T]):
    """Numbers begin at 1. `depth`: chunks held at once; 0: none, and a hole is a hole at once.

    `since`: when the oldest that is held came; infinite: none is.
    """

    __slots__ = ("_depth", "_held", "_next", "since")

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._next = 1
        self._held: dict[int, T] = {}
        self.since = NEVER

    def take(self, number: int, chunk: T, now: float) -> list[T] | None:
        """What is now in order, this one maybe among it; None: it comes twice, or too late."""
        if number < self._next or number in self._held:
            return None
        if not self._depth:  # nothing is waited for: what comes later is the next
            self._next = number + 1
            return [chunk]
        self._held[number] = chunk
        ready = self._ready()
        while len(self._held) > self._depth:  # the one before them does not come any more
            self._next = min(self._held)
            ready += self._ready()
        if not self._held:
            self.since = NEVER
        elif ready or self.since == NEVER:
            self.since = now
        return ready

    def _ready(self) -> list[T]:
        ready = []
        while self._next in self._held:
            ready.append(self._held.pop(self._next))
            self._next += 1
        return ready

    def rest(self) -> list[T]:
        """All that is held, in order: nothing is waited for any more."""
        numbers = sorted(self._held)
        if numbers:
            self._next = numbers[-1] + 1
        self.since = NEVER
        return [self._held.pop(number) for number in numbers]
