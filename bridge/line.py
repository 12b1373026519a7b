"""One open line, from its UUID on: first its audio is kept, then it is a leg. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from bridge.admission import Claim
from bridge.leg import Leg
from bridge.types import CallEvent, Frame, Heard, LegCounts

SILENCE = -90.0  # dB of full scale
MAX_HELD = 12.0  # s of audio kept for a line that waits; the oldest goes first
MAX_PIECES = 2000  # frames and digits kept for it: 12 s of 10 ms frames, and some


class Listener(Protocol):
    """A peer that is told what is heard of it. Called from the leg's own calls: be quick."""

    def told(self, event: CallEvent) -> None:
        """An event of its leg, or of the call as a whole."""

    def heard(self, heard: Heard) -> None:
        """One step of its recogniser, on the call's clock."""


class Line:
    """One peer's connection or stream.

    `hang_up()` ends it from our side; `origin()`: when its first sample came, see `AudioSocket`.
    `counted` adds what its transport lost to the counts of its leg. `listener`: see there.
    """

    __slots__ = (
        "_held", "_last", "claim", "closed", "counted", "hang_up", "ingress", "latency", "leg",
        "listener", "lost", "opened", "origin", "owner", "uuid",
    )  # fmt: skip

    def __init__(
        self,
        uuid: str,
        ingress: str,
        hang_up: Callable[[], None],
        origin: Callable[[], float],
        now: float,
        counted: Callable[[LegCounts], LegCounts] = lambda counts: counts,
        listener: Listener | None = None,
        owner: object = None,
    ) -> None:
        self.uuid = uuid
        self.owner = owner  # who named its call; None: call control
        self.listener = listener
        self.ingress = ingress
        self.hang_up = hang_up
        self.origin = origin
        self.counted = counted
        self.opened = now
        self.closed = ""
        self.lost = 0  # digits
        self.leg: Leg | None = None
        self.claim: Claim | None = None  # to a slot, while it is a leg
        self.latency: float | None = None  # s from a word's end to the last event that told it
        self._last: Frame | None = None
        self._held: deque[Frame | str] = deque()

    def audio(self, frame: Frame) -> int:
        """To the leg, or kept until there is one. Returns the number of frames lost."""
        if self.leg is not None:
            self._last = None if self.leg.paused else frame
            self.leg.on_frame(frame)
            return 0
        self._last = frame
        self._held.append(frame)
        lost = 0
        while len(self._held) > MAX_PIECES or _seconds(frame) - _start(self._held) > MAX_HELD:
            if isinstance(self._held.popleft(), Frame):
                lost += 1
            else:
                self.lost += 1
        return lost

    def level(self) -> float:
        """Of the last frame, in dB of full scale; `SILENCE` at least, in a pause and at the end."""
        if self._last is None or self.closed or not len(self._last.samples):
            return SILENCE
        power = float(np.mean(np.square(self._last.samples, dtype=np.float32)))
        return max(SILENCE, round(10 * math.log10(power / 32768**2 + 1e-12), 1))

    def digit(self, digit: str) -> None:
        """As `audio`; of digits, those that are too many are lost (counted in `lost`)."""
        if self.leg is not None:
            self.leg.on_digit(digit)
        elif len(self._held) < MAX_PIECES:
            self._held.append(digit)
        else:
            self.lost += 1

    def attach(self, leg: Leg) -> None:
        """The line has become a leg: it hears what was kept."""
        self.leg = leg
        if self.listener is not None:
            leg.listen = self.listener.heard
        held, self._held = self._held, deque()
        for item in held:
            if isinstance(item, str):
                leg.on_digit(item)
            else:
                leg.on_frame(item)
        if self.closed:
            leg.finish(self.closed)

    def finalise(self, done: Callable[[], None]) -> None:
        """See `Leg.finalise`."""
        if self.leg is not None:
            self.leg.finalise(done)
        else:
            done()

    def close(self, reason: str) -> None:
        """The peer is gone."""
        self.closed = self.closed or reason
        if self.leg is not None:
            self.leg.finish(self.closed)


def _start(held: Iterable[Frame | str]) -> float:
    return next((_seconds(item) for item in held if isinstance(item, Frame)), 0.0)


def _seconds(frame: Frame) -> float:
    return frame.start / frame.rate
