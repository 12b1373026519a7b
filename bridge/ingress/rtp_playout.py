"""A stream's audio and digits in order, on the leg's clock. Pure.

The leg's clock is the jitter buffer's: samples from 0, true to the sender's timestamps, through
changes of codec and numbering. A digit waits for the audio before it: until the buffer waits for
nothing, and no longer than the buffer may wait for a packet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from bridge.audio.codecs import Codec
from bridge.audio.jitter import JitterBuffer
from bridge.ingress.rtp_types import RtpRules
from bridge.types import Audio, Digit, Frame, IngressEvent

NEVER: Final = float("inf")
WINDOW: Final = 250  # pulls with audio over which the earliest says when the leg began


class Playout:
    """What one leg hears. Events are appended to the lists that the methods are given."""

    __slots__ = (
        "_concealed", "_counted", "_least", "_presses", "_pulls", "_rules", "buffer", "codec",
        "origin", "seconds",
    )  # fmt: skip

    def __init__(self, rules: RtpRules, now: float) -> None:
        self.buffer: JitterBuffer | None = None  # None: no audio yet
        self.codec: Codec | None = None  # of what is in it
        self.origin = now  # arrival time of sample 0, were the network always at its fastest
        self.seconds = 0.0  # of the leg's clock, told
        self._rules = rules
        self._presses: deque[tuple[Digit, float]] = deque()  # digits that wait; until when
        self._least, self._pulls = NEVER, 0
        self._concealed, self._counted = 0.0, 0  # s and samples, by the codecs before this one

    def change(self, codec: Codec) -> None:
        """Audio of another codec from here on, behind what has come."""
        if self.buffer is None:
            rules = self._rules
            self.buffer = JitterBuffer(
                codec, floor=rules.jitter_floor, cap=rules.jitter_cap, conceal=rules.conceal
            )
        else:
            self.buffer.restart(codec)
            self._concealed, self._counted = self.concealed, self.buffer.stats.concealed
        self.codec = codec

    def restart(self, now: float, events: list[IngressEvent]) -> None:
        """Another numbering from here on; it goes behind what has come."""
        if self.buffer is not None:
            self.buffer.restart()
            self.pull(now, events)

    def pull(self, now: float, events: list[IngressEvent]) -> float:
        """What may be heard now. Returns when to pull again, infinite: when something comes."""
        buffer = self.buffer
        if buffer is None:
            self._let_go(events)
            return NEVER
        frames = buffer.pull(now)
        if frames:
            self._tell(frames, now, events)
        due = buffer.deadline()
        if due is None:
            if self._presses:
                self._let_go(events)
            return NEVER
        while self._presses and now >= self._presses[0][1]:
            events.append(self._presses.popleft()[0])
        return due

    def press(self, digit: str, now: float, events: list[IngressEvent]) -> None:
        """A digit, after the audio that came before it."""
        self._presses.append((Digit(digit), now + self._rules.jitter_cap))
        self.pull(now, events)

    def flush(self, now: float, events: list[IngressEvent]) -> None:
        """Everything that waits."""
        if self.buffer is not None:
            frames = self.buffer.flush()
            if frames:
                self._tell(frames, now, events)
        self._let_go(events)

    def _let_go(self, events: list[IngressEvent]) -> None:
        events.extend(press for press, _ in self._presses)
        self._presses.clear()

    def _tell(self, frames: Sequence[Frame], now: float, events: list[IngressEvent]) -> None:
        for frame in frames:
            events.append(Audio(frame))
        self.seconds = seconds = (frame.start + len(frame.samples)) / frame.rate
        begun = now - seconds
        if begun < self._least:
            self._least = begun
            if begun < self.origin or self._pulls == 0:
                self.origin = begun
        self._pulls += 1
        if self._pulls > WINDOW:  # the sender's clock may be slower than ours
            self.origin, self._least, self._pulls = self._least, NEVER, 1

    @property
    def due(self) -> float:
        """When `pull` is wanted; infinite: when something comes."""
        due = self.buffer.deadline() if self.buffer is not None else None
        return min(NEVER if due is None else due, self._presses[0][1] if self._presses else NEVER)

    @property
    def late(self) -> int:
        """Packets that came when their place had been played."""
        return self.buffer.stats.late if self.buffer is not None else 0

    @property
    def concealed(self) -> float:
        """Seconds of audio that nobody sent."""
        if self.buffer is None or self.codec is None:
            return 0.0
        return self._concealed + (self.buffer.stats.concealed - self._counted) / self.codec.rate
