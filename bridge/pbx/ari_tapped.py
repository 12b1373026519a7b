"""A call that is tapped, and when its taps want to be looked at. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from bridge.pbx.ari_events import Wish
from bridge.pbx.ari_tap import Tap
from bridge.types import LegName


@dataclass(frozen=True, slots=True)
class Wanted:
    """That a channel's call be tapped, once it is answered."""

    legs: tuple[LegName, ...]
    wish: Wish = Wish()
    rule: bool = False


@dataclass(slots=True)
class TappedCall:
    """One call that is listened to, asked for under the id `first`, told of under `id`."""

    first: str
    id: str
    anchor: str
    wants: set[LegName] = field(default_factory=set)
    names: dict[str, LegName] = field(default_factory=dict)  # channel → leg, where that was said
    taps: dict[LegName, Tap] = field(default_factory=dict)
    consents: bool = False  # to recording: all who speak, as the dialplan says


class Alarms:
    """When which tap wants to be looked at."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TappedCall, Tap]] = []
        self._count = 0  # so that of two at one time no more is compared

    def set(self, call: TappedCall, tap: Tap) -> None:
        """At `tap.due`. What was set before counts no more."""
        if tap.due is not None:
            self._count += 1
            heappush(self._heap, (tap.due, self._count, call, tap))

    def next(self) -> float | None:
        """The earliest, or None."""
        while self._heap and self._heap[0][3].due != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self) -> tuple[TappedCall, Tap]:
        """That one, after `next`."""
        _, _, call, tap = heappop(self._heap)
        tap.due = None
        return call, tap
