"""Payloads in order, holes and pauses → frames.

Nothing is decoded before it is asked for: payloads that lie behind each other are decoded in one
call. A hole is filled when what follows it has been decoded, because that helps to fill it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bridge.audio.codecs import Codec
from bridge.audio.conceal import HISTORY, conceal
from bridge.types import Frame, Samples

MAX_READY = 4096  # packets, 80 s of 20 ms; holes and pauses count as well

NO_SAMPLES: Samples = np.zeros(0, np.int16)


@dataclass(slots=True)
class _Run:
    """Payloads without a gap between them."""

    payloads: list[bytes]


@dataclass(slots=True)
class _Hole:
    """Samples that were lost."""

    count: int


@dataclass(slots=True)
class _Pause:
    """Samples that nobody sent. `told`: the sender said so, and the leg's clock may run on."""

    count: int
    told: bool


_Piece: TypeAlias = _Run | _Hole | _Pause | Frame


class Playout:
    """What is ready to be played, in order.

    `run`: payloads behind everything else, a list that stays the same; append to it.
    """

    __slots__ = ("_at", "_past", "_pieces", "_waiting", "codec", "run")

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.run: list[bytes] = []
        self._pieces: list[_Piece] = []
        self._waiting = 0  # pieces, and packets in them
        self._at = 0  # samples; the place of the next frame
        self._past: deque[Samples] = deque(maxlen=8)  # what was played, enough for `conceal`

    # -- in ------------------------------------------------------------------------------------

    def lose(self, count: int) -> None:
        """`count` samples were lost."""
        self._push(_Hole(count))

    def pause(self, count: int, *, told: bool = False) -> None:
        """`count` samples were not sent. `told`: by the sender; that makes a frame of its own."""
        self._push(_Pause(count, told))

    def change(self, codec: Codec | None) -> None:
        """Another stream follows, perhaps in another codec; its decoder begins afresh."""
        self._pieces = list(self.frames())  # now, before the decoder forgets
        self._past.clear()
        if codec is not None:
            self._at = round(self._at * codec.rate / self.codec.rate)
            self.codec = codec
        self.codec.reset()

    def bound(self) -> int:
        """Let go of everything when there is too much of it. Packets that were dropped."""
        if self._waiting + len(self.run) < MAX_READY:
            return 0
        self._push(_Pause(0, False))
        dropped = passed = 0
        for piece in self._pieces:
            match piece:
                case _Run(payloads):
                    dropped += len(payloads)
                    passed += sum(self.codec.samples(len(payload)) for payload in payloads)
                case _Hole(count) | _Pause(count):
                    passed += count
                case Frame():  # of before a change; the clock has passed it
                    dropped += piece.packets
        self._pieces = [_Pause(passed, False)]
        self._waiting = 0
        return dropped

    def _push(self, piece: _Piece) -> None:
        self._waiting += len(self.run) + 1
        if self.run:
            self._pieces.append(_Run(self.run[:]))
            self.run.clear()
        self._pieces.append(piece)

    # -- out -----------------------------------------------------------------------------------

    def frames(self) -> list[Frame]:
        """All of it. A run is one frame, a hole one frame per second or less."""
        run = self.run
        if self._pieces:
            return self._assembled()
        if not run:
            return []
        payload = run[0] if len(run) == 1 else b"".join(run)
        packets = len(run)
        run.clear()
        codec = self.codec
        samples = codec.decode(payload)
        start = self._at
        self._at = start + len(samples)
        self._past.append(samples if packets == 1 else self._tail(samples))
        return [Frame(samples, codec.rate, start, False, packets)]

    def _assembled(self) -> list[Frame]:
        pieces, self._pieces = self._pieces, []
        self._waiting = 0
        if self.run:
            pieces.append(_Run(self.run[:]))
            self.run.clear()
        frames: list[Frame] = []
        lost = 0
        for piece in pieces:
            match piece:
                case _Hole(count):
                    lost += count
                case _Run(payloads):
                    samples = self.codec.decode(b"".join(payloads))
                    self._conceal(lost, samples, frames)
                    frames.append(Frame(samples, self.codec.rate, self._at, False, len(payloads)))
                    self._at += len(samples)
                    self._past.append(self._tail(samples))
                    lost = 0
                case _Pause(count, told):
                    self._conceal(lost, NO_SAMPLES, frames)
                    self._at += count
                    if told:
                        frames.append(Frame(NO_SAMPLES, self.codec.rate, self._at))
                    self._past.clear()
                    lost = 0
                case Frame():
                    frames.append(piece)
        return frames

    def _conceal(self, count: int, after: Samples, frames: list[Frame]) -> None:
        """Frames of a second at most, so that a long hole is no long array."""
        rate = self.codec.rate
        while count:
            some = min(count, rate)
            count -= some
            past = np.concatenate(self._past) if self._past else NO_SAMPLES
            samples = conceal(past, some, rate, NO_SAMPLES if count else after)
            frames.append(Frame(samples, rate, self._at, True, 0))
            self._at += some
            self._past.append(self._tail(samples))

    def _tail(self, samples: Samples) -> Samples:
        """A copy of what `conceal` may want of it: keeping a view would keep all of a burst."""
        return samples[-round(HISTORY * self.codec.rate) :].copy()
