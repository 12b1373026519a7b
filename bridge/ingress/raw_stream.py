"""Binary messages that are nothing but audio: one codec, one leg or two interleaved. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bridge.audio.codecs import Codec
from bridge.ingress.arrival import QUIET, Arrival, until_block
from bridge.ingress.media_socket import LegAudio, MediaBase, SocketEvent
from bridge.types import Frame, LegName, Samples

_NO_SAMPLES: Samples = np.zeros(0, np.int16)


class RawStream:
    """Cuts messages of any size into frames of its legs, on the clock of their arrival.

    `until_block`: see `MediaSocket`. `next_at`: when `fill` wants to be called: whoever sends
    nothing while all is quiet would otherwise never come to the end of a turn.
    """

    __slots__ = ("_arrival", "_codec", "_legs", "_rest", "_width", "next_at", "until_block")

    def __init__(self, codec: Codec, legs: Sequence[LegName], now: float) -> None:
        self._codec = codec
        self._legs = tuple(legs)
        self._width = codec.width * len(self._legs)
        self._rest = b""  # of a message that ended inside a sample
        self._arrival = Arrival(now, codec.rate)
        self.until_block = 1
        self.next_at = now + QUIET

    def feed(self, data: bytes, now: float) -> list[LegAudio]:
        """A message's audio, a frame for each leg."""
        if self._rest:
            data = self._rest + data
        whole = len(data) - len(data) % self._width
        data, self._rest = data[:whole], data[whole:]
        self.next_at = now + QUIET
        if not data:
            return []
        samples = self._codec.decode(data)
        legs, rate = self._legs, self._codec.rate
        n = len(samples) // len(legs)
        start = self._arrival.place(n, rate, now)
        self.until_block = until_block(start + n, rate, n)
        if len(legs) == 1:
            return [LegAudio(legs[0], Frame(samples, rate, start))]
        return [
            LegAudio(leg, Frame(np.ascontiguousarray(samples[i :: len(legs)]), rate, start))
            for i, leg in enumerate(legs)
        ]

    def fill(self, now: float) -> list[LegAudio]:
        """Let time pass without audio."""
        self.next_at = now + QUIET
        if not self._arrival.fill(now):
            return []
        frame = Frame(_NO_SAMPLES, self._codec.rate, self._arrival.clock)
        return [LegAudio(leg, frame) for leg in self._legs]


class RawMedia(MediaBase):
    """A protocol whose binary messages are its legs' audio, from `stream` on."""

    _raw: RawStream | None = None

    @property
    def streaming(self) -> bool:
        """Has the audio begun?"""
        return self._raw is not None

    def stream(self, decoder: Codec, legs: Sequence[LegName], now: float) -> None:
        """What comes from now on is audio of these legs, which have begun."""
        self._raw = RawStream(decoder, legs, now)
        self.next_at = self._raw.next_at

    def feed(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        """A message's audio."""
        assert self._raw is not None
        audio = self._raw.feed(message, now)
        self.next_at, self.until_block = self._raw.next_at, self._raw.until_block
        return audio

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if self._raw is None or now < self.next_at:
            return super().expire(now)
        audio = self._raw.fill(now)
        self.next_at = self._raw.next_at
        return audio
