"""The token stream at /v1/stream: float32 samples in, pieces of text out. Pure.

In, binary: little-endian float32, mono, 24 kHz, cut anywhere. Out: ``token`` (a word with the space
before it: joined, tokens are the text), ``vad_end`` at the end of a turn, ``ping``, ``error``. A
connection without audio for `patience` seconds is closed.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.ingress.media_socket import (
    BUSY,
    NORMAL,
    Opening,
    SocketEvent,
    SocketRules,
)
from bridge.ingress.pcm import Client, Pcm
from bridge.types import CallEvent, EndOfTurn, Heard, LegName

PING_EVERY = 5.0  # s


class FloatStream(Client):
    """One client."""

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self.idle = rules.patience
        self._pcm = Pcm("float32")
        self._ping_at = now + PING_EVERY

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        (samples,) = self._pcm.feed(message)
        return self.audio(now, samples) if len(samples) else ()

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if now >= self._ping_at:
            self._ping_at = now + PING_EVERY
            self.say({"type": "ping"})
        return super().expire(now)

    def plan(self) -> None:
        super().plan()
        self.next_at = min(self.next_at, self._ping_at)

    def silent(self, now: float) -> list[SocketEvent]:
        self._error(f"no audio came for {self.idle:g} seconds")
        return self.finish("timeout", (NORMAL, "no audio"), now)

    def heard(self, leg: LegName, heard: Heard) -> None:
        super().heard(leg, heard)
        for word in heard.words:
            self.say({"type": "token", "text": " " + word.text})

    def told(self, leg: LegName, event: CallEvent) -> None:
        if isinstance(event.body, EndOfTurn):
            self.say({"type": "vad_end"})
        super().told(leg, event)

    def refused(self, leg: LegName, reason: str) -> None:
        self._error(f"not taken: {reason}")
        self.leave(BUSY, f"not taken: {reason}")

    def hung_up(self, reason: str) -> None:
        self._error(f"ended by the {reason}")

    def _error(self, sentence: str) -> None:
        self.say({"type": "error", "message": sentence})
