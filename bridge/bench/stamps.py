"""When each block of each leg was sent or ready, shared between two processes."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt


class Stamps:
    """float64[legs, blocks] of monotonic seconds; 0: not yet."""

    __slots__ = ("_array", "_shape")

    def __init__(self, array: npt.NDArray[np.float64]) -> None:
        self._array = array
        self._shape = array.shape

    def mark(self, leg: int, block: int) -> None:
        """This block of this leg: now. What lies outside the table is forgotten."""
        if 0 <= leg < self._shape[0] and block < self._shape[1]:
            self._array[leg, block] = time.monotonic()
