"""What clients with a microphone or a file have in common: samples, and one leg. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bridge.audio import g711
from bridge.ingress.media_socket import (
    INVALID,
    NEVER,
    NORMAL,
    POLICY,
    LegAsked,
    LegAudio,
    MediaBase,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
)
from bridge.types import CallEvent, Ended, Frame, Heard, LegName, Samples, Word

RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
IDLE = 120.0  # s without a message, where the protocol has no rule of its own; as moshi-server
STOPPED = 1.0  # s without audio after which the speaker has finished: a file, a muted microphone
BEHIND = 1.5  # s of audio unheard; then a client may be made to wait (bridge/socket_session.py)
LAST_WORDS = 30.0  # s that the engine may take for them before the goodbye

_LEVEL = np.float64(32767)


def from_floats(values: npt.NDArray[np.floating[Any]]) -> Samples:
    """Numbers in [-1, 1] → int16. Louder is as loud as it gets; what is no number is silence."""
    with np.errstate(invalid="ignore"):
        finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=1.0, neginf=-1.0)
    samples: Samples = np.rint(np.clip(finite, -1, 1) * _LEVEL).astype(np.int16)
    return samples


def from_list(values: object) -> Samples:
    """A list of numbers as a message carries it. Raises `SocketError`."""
    if isinstance(values, list):
        try:
            numbers = np.array(values, np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.zeros((1, 1))
        if numbers.ndim == 1:
            return from_floats(numbers)
    raise SocketError(INVALID, "pcm: expected a list of numbers")


def _linear16(data: bytes) -> Samples:
    return np.frombuffer(data, "<i2").astype(np.int16, copy=False)


def _float32(data: bytes) -> Samples:
    return from_floats(np.frombuffer(data, "<f4"))


Decoder: TypeAlias = Callable[[bytes], Samples]
ENCODINGS: Mapping[str, tuple[int, Decoder]] = {
    # → bytes of a sample, decoder
    "linear16": (2, _linear16),
    "float32": (4, _float32),
    "mulaw": (1, g711.decode_ulaw),
    "alaw": (1, g711.decode_alaw),
}


class Pcm:
    """A byte stream of samples, cut anywhere: a sample's first bytes wait for the others."""

    __slots__ = ("_decode", "_rest", "_width", "channels")

    def __init__(self, encoding: str = "linear16", channels: int = 1) -> None:
        width, self._decode = ENCODINGS[encoding]
        self.channels = channels
        self._width = width * channels
        self._rest = b""

    def feed(self, data: bytes) -> list[Samples]:
        """An array for each channel, as long as each other, perhaps empty."""
        if self._rest:
            data = self._rest + data
        whole = len(data) - len(data) % self._width
        self._rest = data[whole:]
        samples = self._decode(data[:whole])
        if self.channels == 1:
            return [samples]
        rows = samples.reshape(-1, self.channels)
        return [np.ascontiguousarray(rows[:, i]) for i in range(self.channels)]


def rate_of(value: object, default: int) -> int:
    """A sample rate that a client names. Raises `SocketError`."""
    number = default if value in (None, "") else value
    try:
        rate = int(str(number))
    except ValueError:
        rate = 0
    if rate not in RATES:
        known = ", ".join(map(str, RATES))
        raise SocketError(POLICY, f"the sample rate is one of {known} Hz")
    return rate


def seconds(at: float) -> float:
    """As messages say it: to the millisecond."""
    return round(at, 3)


def confidence_of(words: Sequence[Word]) -> float:
    """The words' mean, 0 where there are none."""
    return round(sum(w.confidence for w in words) / len(words), 3) if words else 0.0


class Client(MediaBase):
    """A client that is one leg, or two (`names`), from when the connection is open.

    It is over after `idle` seconds without a message. A client that has sent audio and sends no
    more for `stopped` seconds has finished: its last words are asked for, as the recogniser hears
    nothing while nothing comes. Time in which the recogniser is behind does not count: the client
    may be waiting for us. `ended` is called when the call has said its last.
    """

    idle = IDLE
    stopped = STOPPED
    rate = 24000
    names: tuple[LegName, ...] = ("caller",)

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self.next_at = now  # to begin
        self.clock = 0  # samples that have come
        self.listened = 0.0  # s that the recogniser has heard of every leg
        self._heard: dict[LegName, float] = {}
        self._last_message = self._last_audio = now
        self._unasked = False  # audio has come since the last words were asked for
        self._leave_by = NEVER
        self._farewell = (NORMAL, "")

    # -- for protocols ---------------------------------------------------------------------------

    def audio(self, now: float, *samples: Samples) -> list[SocketEvent]:
        """The next samples, as many of each leg."""
        if self._leave_by != NEVER:
            return []
        self._last_audio = now
        start = self.clock
        self.clock += len(samples[0])
        self._unasked = True
        return self.open(now) + [
            LegAudio(name, Frame(of_leg, self.rate, start))
            for name, of_leg in zip(self.names, samples, strict=True)
        ]

    def change_rate(self, rate: int) -> None:
        """What comes from now on is at another rate; the leg's clock goes on."""
        self.clock = round(self.clock * rate / self.rate)
        self.rate = rate

    def open(self, now: float) -> list[SocketEvent]:
        """Begin, unless that was done; and somebody has said something."""
        self._last_message = now
        began: list[SocketEvent] = []
        if not self._started:
            call = self.opening.id if len(self.names) > 1 else ""
            began = [self.begin(name, call) for name in self.names]
        self.plan()
        return began

    def ask(self) -> list[SocketEvent]:
        """All that was said until now; `finalised` is called."""
        self._unasked = False
        return [LegAsked(name) for name in self.names]

    def finish(self, reason: str, farewell: tuple[int, str], now: float) -> list[SocketEvent]:
        """No more audio: the last words, and then `farewell`, which is a code and a sentence."""
        self._farewell = farewell
        events = [event for name in self.names for event in self.end(name, reason)]
        if not events:  # there is nobody to wait for
            self.leave(*farewell)
        self._leave_by = now + LAST_WORDS
        self.next_at = self._leave_by
        return events

    def plan(self) -> None:
        """When to be called next."""
        if self._leave_by != NEVER:
            self.next_at = self._leave_by
            return
        self.next_at = self._last_message + self.idle
        if self._unasked and self.stopped:
            self.next_at = min(self.next_at, self._last_audio + self.stopped)

    def silent(self, now: float) -> list[SocketEvent]:
        """Nothing has come for `idle` seconds."""
        return self.finish("timeout", (NORMAL, f"nothing came for {self.idle:g} seconds"), now)

    def ended(self, event: CallEvent) -> None:
        """The call has said its last."""

    # -- MediaSocket -----------------------------------------------------------------------------

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if self._leave_by != NEVER:
            if now >= self._leave_by:
                self.leave(*self._farewell)
            return ()
        if not self._started:
            return self.open(now)
        if self.waiting() > BEHIND:
            self._last_message = self._last_audio = now
        if now >= self._last_message + self.idle:
            return self.silent(now)
        events: list[SocketEvent] = []
        if self._unasked and self.stopped and now >= self._last_audio + self.stopped:
            events = self.ask()
        self.plan()
        return events

    def heard(self, leg: LegName, heard: Heard) -> None:
        if self.waiting() > BEHIND:
            self._last_message = self._last_audio = self.rules.clock()
        self._heard[leg] = heard.at
        self.listened = min(self._heard.get(name, 0.0) for name in self.names)
        if self._leave_by != NEVER:  # it is still at it
            self._leave_by = self.next_at = self.rules.clock() + LAST_WORDS

    def told(self, leg: LegName, event: CallEvent) -> None:
        over = isinstance(event.body, Ended) and self._leave_by != NEVER
        if over and self.goodbye is None:  # both legs are told of their call's end
            self.ended(event)
            self.leave(*self._farewell)

    def waiting(self) -> float:
        """Seconds of audio that have come and were not heard yet."""
        return max(0.0, self.clock / self.rate - self.listened)
