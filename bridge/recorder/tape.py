"""One leg's audio on its way to a file. Pure.

A place in a file is a sample's index on the leg's clock, so that what is missing (lost, dropped,
paused, not consented to) is silence, and times of words are times in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bridge.types import Frame, Samples

PIECE = 0.5  # s of audio that go to the writer together
MAX_CONCEALED = 1000  # stretches of a leg that are listed; audio that bad is listed as a whole


@dataclass(frozen=True, slots=True)
class Piece:
    """Audio at `rate` Hz for one file, its first sample at `at`. A tape's pieces have one rate."""

    rate: int
    at: int
    samples: Samples


class Tape:
    """What `Leg.tape` is told of every frame. `allowed()` is asked each time: consent can be late.

    `stop` ends it for good. `counters`: rate_changed.
    """

    __slots__ = (
        "_allowed", "_at", "_clock", "_count", "_held", "_length", "_origin", "_rate", "_send",
        "_skipped", "concealed", "stopped",
    )  # fmt: skip

    def __init__(
        self,
        send: Callable[[Piece], None],
        allowed: Callable[[], bool],
        count: Counter[str],
    ) -> None:
        self.stopped = False
        self.concealed: list[tuple[float, float]] = []
        """Stretches, in seconds of the file, that nobody sent."""
        self._send, self._allowed, self._count = send, allowed, count
        self._rate = 0
        self._clock = 0  # of the leg, as `Leg.on_frame` counts it
        self._skipped = False  # something came before the first sample that was kept
        self._origin: int | None = None  # the sample at which the file begins
        self._held: list[Samples] = []
        self._at = self._length = 0  # where `_held` begins, and its samples

    def __call__(self, frame: Frame) -> None:
        """A frame of the leg, whether it is kept or not."""
        if self.stopped:
            return
        if frame.rate != self._rate and self._rate:
            self._count["rate_changed"] += 1
            self.stop()
            return
        self._rate = frame.rate
        start = max(self._clock, frame.start)
        self._clock = start + len(frame.samples)
        if not len(frame.samples):
            return
        if not self._allowed():
            self._skipped = True
            self.flush()
            return
        if self._origin is None:
            self._origin = start if self._skipped else 0
        self._keep(start - self._origin, frame)

    def _keep(self, at: int, frame: Frame) -> None:
        if at != self._at + self._length:
            self.flush()
        if not self._held:
            self._at = at
        self._held.append(frame.samples)
        self._length += len(frame.samples)
        if frame.concealed:
            self._conceal(at / frame.rate, (at + len(frame.samples)) / frame.rate)
        if self._length >= PIECE * frame.rate:
            self.flush()

    def _conceal(self, start: float, end: float) -> None:
        last = self.concealed[-1] if self.concealed else (0.0, -1.0)
        if start - last[1] < 1e-6 or len(self.concealed) >= MAX_CONCEALED:
            self.concealed[-1] = (last[0], end)
        else:
            self.concealed.append((start, end))

    def flush(self) -> None:
        """What is held goes to the writer now."""
        if self._held:
            self._send(Piece(self._rate, self._at, np.concatenate(self._held)))
            self._at, self._length, self._held = self._at + self._length, 0, []

    def stop(self) -> None:
        """Nothing more is kept."""
        self.flush()
        self.stopped = True

    @property
    def used(self) -> bool:
        """Whether anything was kept."""
        return self._origin is not None

    @property
    def start(self) -> float:
        """Seconds on the leg's clock at which the file begins."""
        return (self._origin or 0) / self._rate if self._rate else 0.0
