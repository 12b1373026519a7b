"""Cutting a stream of samples into pieces of one size, however it arrives."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Sample = TypeVar("Sample", np.int16, np.float32)


class Cutter(Generic[Sample]):
    """Pieces of exactly `size` samples. Holds less than one piece.

    A piece that arrives whole while nothing is held is passed on without a copy, as a view of the
    caller's array. Any other piece is a new array, which nobody writes to again.
    """

    __slots__ = ("_dtype", "_fill", "_held", "size")

    def __init__(self, size: int, dtype: type[Sample]) -> None:
        if size < 1:
            raise ValueError(f"a piece has at least one sample, not {size}")
        self.size = size
        self._dtype: type[Sample] = dtype
        self._held: npt.NDArray[Sample] = np.empty(0, dtype)
        self._fill = 0  # samples of _held that are filled

    def cut(self, samples: npt.NDArray[Sample]) -> list[npt.NDArray[Sample]]:
        """The pieces that `samples` complete, in order."""
        if self._fill == 0 and len(samples) == self.size:  # what the line is tuned to send
            return [samples]
        if self._fill + len(samples) < self.size:  # and what it sends otherwise
            self._hold(samples)
            return []
        pieces = []
        at = 0
        if self._fill:
            at = self.size - self._fill
            self._hold(samples[:at])
            pieces.append(self._held)
            self._fill = 0
        while len(samples) - at >= self.size:
            pieces.append(samples[at : at + self.size])
            at += self.size
        self._hold(samples[at:])
        return pieces

    def rest(self) -> npt.NDArray[Sample]:
        """What is held: 0 to size − 1 samples. Afterwards nothing is."""
        rest = self._held[: self._fill]
        self._fill = 0
        return rest

    def _hold(self, samples: npt.NDArray[Sample]) -> None:
        """Add to what is held, to a piece at most."""
        if self._fill == 0:  # the one before was given away
            self._held = np.empty(self.size, self._dtype)
        end = self._fill + len(samples)
        self._held[self._fill : end] = samples
        self._fill = end


def padded(samples: npt.NDArray[Sample], size: int) -> npt.NDArray[Sample]:
    """`samples` and zeros after them, `size` in all."""
    whole = np.zeros(size, samples.dtype)
    whole[: len(samples)] = samples
    return whole
