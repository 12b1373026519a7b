"""int16 at the leg's rate in, float32 blocks at the recogniser's rate out.

Four ways, chosen by `make_resampler`:

* the rates are equal: scaling and cutting only;
* upsampling by 2, 3 or 3/2 (8 → 16, 8 → 24, 16 → 24 kHz): a polyphase filter of ours. soxr would
  hold live audio back for 90 ms and give it in lumps; this holds back 2 ms;
* ``repeat``, for an engine that wants energy above 4 kHz: every sample a few times, no filter;
* everything else: soxr, which is good at it, and late.

The output is the same to the last bit however the input was cut into frames: all but soxr work on
pieces of one size, counted from the leg's beginning.

The filter as one matrix product: the piece lies behind the last samples of the one before; rows of
`hop` new samples and their past, taken from there, times a matrix that holds the filter once for
every output of a row (a Toeplitz matrix), are the outputs in order. One small product for a block
of 80 ms costs a few microseconds, and there is no loop in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import gcd
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soxr

from bridge.audio.blocks import Cutter, padded
from bridge.interfaces import Upsampling
from bridge.types import Block, Samples

_Floats = npt.NDArray[np.float64]

TAPS = 32
"""Input samples that one output sees."""
PASS, STOP = 0.425, 0.575
"""The filter's edges as shares of the input rate: 3400 and 4600 Hz of 8 kHz. An image of what is
below PASS lies above STOP."""
STOP_WEIGHT = 30.0
"""Ripple for image: ±0.02 dB and −85 dB with 32 taps (tests/test_resample.py holds it to that)."""
HOP = 16
"""Input samples of a row; of 4…64 the fastest with OpenBLAS on AVX2."""
LEGS = 16
"""Legs in one product, always."""
TILES = 48
"""Rows: a multiple of the tiles (2, 4, 6, 8, 12, 16, 24) of OpenBLAS' kernels."""
FILTERED = ((2, 1), (3, 1), (3, 2))
"""Ratios (up, down) that have a filter."""

_NO_PAST: Samples = np.zeros(TAPS - 1, np.int16)
_SCALE = np.float32(1 / 32768)
# Arrays without dimensions: a scalar would be converted at every call. A filter overshoots a step
# at full scale by an eighth; whoever turns the block back into int16 must not see it wrap around.
_LOW = np.array(-1, np.float32)
_HIGH = np.array(np.nextafter(np.float32(1), np.float32(0)))


class Feed(Protocol):
    """One leg's way through a `Bank`: as a `Resampler`, but blocks are pushed, maybe later."""

    delay: float

    def feed(self, samples: Samples) -> None:
        """Take int16[n], any n."""

    def flush(self) -> None:
        """The end: every block is pushed before this returns. Then no more `feed`."""


class Resampler(Protocol):
    """One leg's conversion. `feed` and `flush` give new arrays, which the caller may keep."""

    delay: float
    """Seconds by which a sound is later in the output's samples than in the input's."""

    def feed(self, samples: Samples) -> list[Block]:
        """Take int16[n], any n; the blocks that are now complete, each in [-1, 1)."""

    def flush(self) -> list[Block]:
        """The end: what is left, with zeros up to a whole block. Then no more `feed`."""


def make_resampler(
    rate_in: int, rate_out: int, block: int, upsampling: Upsampling = "filter"
) -> Resampler:
    """A resampler between rates in Hz, to blocks of `block` samples. Raises ValueError."""
    for name, value in (("rate_in", rate_in), ("rate_out", rate_out), ("block", block)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive number, not {value}")
    common = gcd(rate_in, rate_out)
    up, down = rate_out // common, rate_in // common
    if block % up == 0:
        if down == 1 and (up == 1 or upsampling == "repeat"):
            return _Repeat(up, block)
        if (up, down) in FILTERED:
            return _Polyphase(up, down, rate_in, block)
    return _Soxr(rate_in, rate_out, block)


class _Repeat:
    """Every sample `up` times; once, where the rates are equal. Without delay."""

    delay = 0.0

    def __init__(self, up: int, block: int) -> None:
        self._up = up
        self._cutter = Cutter(block // up, np.int16)

    def feed(self, samples: Samples) -> list[Block]:
        return [self._block(piece) for piece in self._cutter.cut(samples)]

    def flush(self) -> list[Block]:
        rest = self._cutter.rest()
        return [self._block(padded(rest, self._cutter.size))] if len(rest) else []

    def _block(self, piece: Samples) -> Block:
        scaled: Block = piece * _SCALE
        return scaled if self._up == 1 else scaled.repeat(self._up)


class _Filter:
    """The matrix of one ratio, for legs of one block size."""

    def __init__(self, up: int, down: int, block: int) -> None:
        self.size = block // up * down  # int16 samples that make a block
        self.hop = gcd(self.size, HOP * down)
        self.matrix = _toeplitz(up, down, self.hop)

    def rows(self, lines: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
        """A view of int16[n, TAPS − 1 + size] as overlapping rows: [n, rows, TAPS − 1 + hop]."""
        width = TAPS - 1 + self.hop
        view = np.lib.stride_tricks.sliding_window_view(lines, width, axis=1)
        return view[:, :: self.hop]


class _Polyphase:
    """The filter for one leg alone.

    `flush` does not add a block for the filter's own tail: of a leg that ends with a whole block,
    the last 2 ms are not heard.
    """

    def __init__(self, up: int, down: int, rate_in: int, block: int) -> None:
        self._blocks: list[Block] = []
        shelf = _Shelf(_Filter(up, down, block), 1)
        self._feed = _Banked(shelf, up, down, rate_in, self._blocks.append)
        self.delay = self._feed.delay

    def feed(self, samples: Samples) -> list[Block]:
        self._feed.feed(samples)
        return self._taken()

    def flush(self) -> list[Block]:
        self._feed.flush()
        return self._taken()

    def _taken(self) -> list[Block]:
        blocks = self._blocks[:]
        self._blocks.clear()
        return blocks


class Bank:
    """Many legs through one filter in one product.

    A leg's blocks are pushed when `rows` of them have come together, or by `run`, which the
    transport calls after each turn: nothing waits for longer than a turn of the event loop. A
    product for 16 legs takes 7 µs a leg where one each takes 10 (BENCHMARKS.md). The order of a
    leg's blocks is kept. With one row every block is pushed at once.
    """

    def __init__(self, rows: int = 1) -> None:
        self._rows = rows
        self._shelves: dict[tuple[int, int, int], _Shelf] = {}

    def open(
        self,
        rate_in: int,
        rate_out: int,
        block: int,
        upsampling: Upsampling,
        push: Callable[[Block], None],
    ) -> Feed:
        """A leg's way from `rate_in` to blocks of `block` samples at `rate_out`. ValueError."""
        resampler = make_resampler(rate_in, rate_out, block, upsampling)
        if not isinstance(resampler, _Polyphase):
            return _Direct(resampler, push)
        common = gcd(rate_in, rate_out)
        up, down = rate_out // common, rate_in // common
        key = (up, down, block)
        if key not in self._shelves:
            self._shelves[key] = _Shelf(_Filter(up, down, block), self._rows)
        return _Banked(self._shelves[key], up, down, rate_in, push)

    def run(self) -> None:
        """Push every block that is complete."""
        for shelf in self._shelves.values():
            if shelf.filled:
                shelf.run()


class _Shelf:
    """Blocks of one ratio that wait for the product, and its buffers.

    They are made once: arrays of half a megabyte that come and go are taken from and given back to
    the kernel each time, and their page faults cost more than the product.

    A leg's output must not depend on its company, but BLAS adds up in another order at the edge of
    its tiles and in small products. So every product has the same shape, `LEGS` legs, and a leg
    takes a whole number of any kernel's tiles, `TILES` rows.
    """

    def __init__(self, filter_: _Filter, rows: int) -> None:
        self.filter = filter_
        self.filled = 0
        self._most = rows
        lines = np.zeros((-(-rows // LEGS) * LEGS, TAPS - 1 + filter_.size), np.int16)
        self._view = filter_.rows(lines)
        # Views made once: indexing an array costs as much as copying a row.
        self._past = [line[: TAPS - 1] for line in lines]
        self._new = [line[TAPS - 1 :] for line in lines]
        self._pushes: list[Callable[[Block], None]] = []
        # BLAS takes no overlapping rows, and wants floats: they are laid out here.
        count = self._view.shape[1]
        width, height = filter_.matrix.shape
        self._laid = np.zeros((LEGS, -(-count // TILES) * TILES, width), np.float32)
        self._rows = self._laid[:, :count]
        self._out = np.empty((*self._laid.shape[:2], height), np.float32)
        self._blocks = list(self._out.reshape(LEGS, -1)[:, : count * height])

    def put(self, past: Samples, piece: Samples, push: Callable[[Block], None]) -> None:
        """One block's input: the last TAPS − 1 samples before it, and it."""
        i = self.filled
        self._past[i][:] = past
        self._new[i][:] = piece
        self._pushes.append(push)
        self.filled = i + 1
        if self.filled == self._most:
            self.run()

    def run(self) -> None:
        """The product; each row, as a new array, to its leg."""
        pushes, self._pushes = self._pushes, []
        self.filled = 0
        matrix = self.filter.matrix
        laid, out = self._laid.reshape(-1, matrix.shape[0]), self._out.reshape(-1, matrix.shape[1])
        for first in range(0, len(pushes), LEGS):
            self._rows[...] = self._view[first : first + LEGS]
            np.dot(laid, matrix, out=out)
            np.clip(out, _LOW, _HIGH, out=out)
            for push, block in zip(pushes[first : first + LEGS], self._blocks, strict=False):
                push(block.copy())


class _Banked:
    """A `Feed` whose blocks go through a shelf."""

    __slots__ = ("_cutter", "_past", "_push", "_shelf", "delay")

    def __init__(
        self, shelf: _Shelf, up: int, down: int, rate_in: int, push: Callable[[Block], None]
    ) -> None:
        self.delay = _centre(up, down) / (up * rate_in)
        self._shelf = shelf
        self._push = push
        self._cutter = Cutter(shelf.filter.size, np.int16)
        self._past: Samples = _NO_PAST

    def feed(self, samples: Samples) -> None:
        for piece in self._cutter.cut(samples):
            past, self._past = self._past, piece[1 - TAPS :]
            self._shelf.put(past, piece, self._push)

    def flush(self) -> None:
        rest = self._cutter.rest()
        if len(rest):
            self._shelf.put(self._past, padded(rest, self._cutter.size), self._push)
        if self._shelf.filled:
            self._shelf.run()


class _Direct:
    """A `Feed` of a resampler that gains nothing from company."""

    def __init__(self, resampler: Resampler, push: Callable[[Block], None]) -> None:
        self.delay = resampler.delay
        self._resampler = resampler
        self._push = push

    def feed(self, samples: Samples) -> None:
        for block in self._resampler.feed(samples):
            self._push(block)

    def flush(self) -> None:
        for block in self._resampler.flush():
            self._push(block)


class _Soxr:
    """soxr, HQ. A sound keeps its place (`delay` is 0), but comes out up to 0.1 s late.

    It gives the same bits for every way of feeding it (tested, because nothing promises it).
    """

    delay = 0.0

    def __init__(self, rate_in: int, rate_out: int, block: int) -> None:
        self._stream: Any = soxr.ResampleStream(rate_in, rate_out, 1, np.float32, quality="HQ")
        self._cutter = Cutter(block, np.float32)

    def feed(self, samples: Samples) -> list[Block]:
        return self._cutter.cut(self._resampled(samples, last=False))

    def flush(self) -> list[Block]:
        blocks = self._cutter.cut(self._resampled(np.empty(0, np.int16), last=True))
        rest = self._cutter.rest()
        return [*blocks, padded(rest, self._cutter.size)] if len(rest) else blocks

    def _resampled(self, samples: Samples, *, last: bool) -> Block:
        resampled: Block = self._stream.resample_chunk(samples * _SCALE, last=last)
        return resampled.clip(_LOW, _HIGH, out=resampled)


def _centre(up: int, down: int) -> int:
    """The filter's middle, in samples of up × rate_in: its delay, a whole number of outputs."""
    return (TAPS * up - 1) // 2 // down * down


@lru_cache
def _design(up: int, down: int) -> _Floats:
    """float64[TAPS × up]: a symmetric low-pass with gain `up`, by weighted least squares.

    Its response is a sum of cosines, linear in the coefficients: one lstsq over a grid of
    frequencies. Weighted this way it beats a Kaiser window of the same length by 15 dB.
    """
    half = _centre(up, down)
    passed, stopped = np.linspace(0, PASS, 400), np.linspace(STOP, up / 2, 1600)
    weight = np.where(np.arange(2000) < len(passed), 1.0, STOP_WEIGHT)
    wanted = np.where(np.arange(2000) < len(passed), float(up), 0.0)
    cosines = np.cos(2 * np.pi / up * np.outer(np.append(passed, stopped), np.arange(half + 1)))
    cosines[:, 1:] *= 2  # each coefficient but the middle one stands on both sides
    side = np.linalg.lstsq(cosines * weight[:, None], wanted * weight, rcond=None)[0]
    taps = np.append(side[:0:-1], side)
    return np.append(taps, np.zeros(TAPS * up - len(taps)))


@lru_cache
def _toeplitz(up: int, down: int, hop: int) -> npt.NDArray[np.float32]:
    """float32[TAPS − 1 + hop, hop × up / down]: a row of input → a row of output, scaled to ±1.

    Output m lies at m × down of the upsampled grid: phase m × down % up of input m × down // up.
    """
    taps = _design(up, down).reshape(TAPS, up)  # [input samples back, phase]
    matrix = np.zeros((TAPS - 1 + hop, hop * up // down))
    for m in range(matrix.shape[1]):
        newest, phase = divmod(m * down, up)
        matrix[newest : newest + TAPS, m] = taps[::-1, phase]
    return (matrix / 32768).astype(np.float32)
