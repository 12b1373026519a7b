"""What a caller says over RTP, datagram by datagram, and when; and what a network does to it. Pure.

Chance comes in as an argument: the numbers a stream begins with, and a seed.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from bridge.audio.codecs import STATIC_TYPES
from bridge.audio.encoders import encoder
from bridge.errors import BridgeError
from bridge.ingress.rtp_dtmf import EVENTS
from bridge.ingress.rtp_packet import Packet, build
from bridge.ingress.rtp_types import EVENTS as EVENT_TYPE
from bridge.ingress.rtp_types import AudioType, BadMedia, payload_types
from bridge.script import checked_digits, resampled
from bridge.types import Samples

Schedule: TypeAlias = list[tuple[float, bytes]]
"""(seconds since the first packet, datagram), in order of time."""

PTIME: Final = (10, 60)  # ms, as an announcement may say it
OWN_TYPE: Final = 96  # for a codec that nobody has given a number
PRESS: Final = 0.1  # s that a key is held
PAUSE: Final = 0.06  # s between two keys
ENDS: Final = 3  # packets that end an event (RFC 4733 §2.5.1.4)
MAX_JITTER: Final = 10_000.0  # ms
HELD: Final = (1.0, 3.5)  # packets' times that a reordered one is held back
TWICE: Final = 0.05  # s that a duplicate is late, at most


@dataclass(frozen=True, slots=True)
class Form:
    """How audio is sent: its codec, the codec's payload type, seconds of audio in a packet."""

    audio: AudioType
    number: int
    ptime: float

    @property
    def types(self) -> dict[str, str]:
        """What an announcement says of the payload types."""
        types = {str(EVENT_TYPE): "telephone-event"}
        if STATIC_TYPES.get(self.number) != (self.audio.name, self.audio.rate):
            types[str(self.number)] = str(self.audio)
        return types


def form(codec: str = "pcmu", ptime: float = 20) -> Form:
    """`codec` as `payload_types` knows it, `ptime` in ms. Raises `BridgeError`."""
    try:
        audio = payload_types("pcmu", {str(OWN_TYPE): codec})[OWN_TYPE]
    except BadMedia as e:
        raise BridgeError(str(e)) from None
    if not isinstance(audio, AudioType):
        raise BridgeError(f"codec {codec!r} is no audio; it is one of pcmu, pcma, g722, l16, l16le")
    if not PTIME[0] <= ptime <= PTIME[1]:
        raise BridgeError(f"ptime: expected {PTIME[0]} to {PTIME[1]} ms, not {ptime:g}")
    if round(audio.rate * ptime) != audio.rate * ptime or audio.rate * ptime % 1000:
        raise BridgeError(f"ptime: {ptime:g} ms of {audio} are not a whole number of samples")
    return Form(audio, _number(audio), ptime / 1000)


def _number(audio: AudioType) -> int:
    """RFC 3551's number, else Asterisk's, else our own."""
    try:
        types = payload_types(str(audio))
    except BadMedia:
        return OWN_TYPE
    return next(number for number, kind in types.items() if kind == audio)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The numbers that a stream begins with; they should be random (RFC 3550 §5.1)."""

    ssrc: int
    sequence: int = 0
    timestamp: int = 0


def make_stream(
    samples: Samples,
    rate: int,
    how: Form,
    begin: Beginning,
    digits: Sequence[tuple[float, str]] = (),
    linger: float = 0.0,
) -> Schedule:
    """int16[n] at `rate` Hz as packets; the last one is filled up with silence.

    A pressed key (seconds, digit) is an event of `PRESS` seconds instead of the audio of that
    time; keys wait for each other. `linger` seconds of silence follow the recording, and as much
    as the last key needs. Raises `BridgeError` as `checked_digits`.
    """
    checked_digits(digits, linger)
    payloads = _payloads(resampled(samples, rate, how.audio.rate), how, digits, linger)
    writer = _Writer(how, begin)
    keys = deque(sorted(digits))
    free = 0  # the first packet in which a key may begin
    at = 0
    while at < len(payloads) or keys:
        if keys and at >= free and at * how.ptime >= keys[0][0] - 1e-9:
            at = writer.press(at, keys.popleft()[1])
            free = at + round(PAUSE / how.ptime)
        else:
            writer.audio(at, payloads[at] if at < len(payloads) else payloads[-1])
            at += 1
    return writer.schedule


def _payloads(
    samples: Samples, how: Form, digits: Sequence[tuple[float, str]], linger: float
) -> list[bytes]:
    """Of equal length; the last is silence where a key might need more of them."""
    codec = encoder(how.audio.name, how.audio.rate)
    step = round(codec.rate * how.ptime)
    length = max([len(samples) / codec.rate + linger, *(at + PRESS for at, _ in digits)])
    frames = -(-round(length * codec.rate) // step) + bool(digits)
    silence = np.zeros(frames * step - len(samples), np.int16)
    wire = codec.encode(np.concatenate([samples, silence]))
    size = len(wire) // frames if frames else 1
    return [wire[i : i + size] for i in range(0, len(wire), size)]


class _Writer:
    """Numbers packets in the order in which they go."""

    def __init__(self, how: Form, begin: Beginning) -> None:
        self.schedule: Schedule = []
        self._how = how
        self._begin = begin
        self._ticks = round(encoder(how.audio.name, how.audio.rate).clock * how.ptime)

    def audio(self, at: int, payload: bytes) -> None:
        self._put(at, self._how.number, at, payload, marker=not self.schedule)

    def press(self, at: int, digit: str) -> int:
        """RFC 4733. The packet that comes after it."""
        event, count = EVENTS.index(digit), max(2, round(PRESS / self._how.ptime))
        for n in range(1, count + 1):
            last = n == count
            body = struct.pack("!BBH", event, last << 7 | 10, n * self._ticks)
            for _ in range(ENDS if last else 1):
                self._put(at + n - 1, EVENT_TYPE, at, body, marker=n == 1)
        return at + count

    def _put(self, at: int, kind: int, began: int, payload: bytes, *, marker: bool) -> None:
        begin = self._begin
        packet = Packet(
            kind,
            begin.sequence + len(self.schedule),
            begin.timestamp + began * self._ticks,
            begin.ssrc,
            payload,
            marker,
        )
        self.schedule.append((at * self._how.ptime, build(packet)))


# -- the network -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Impairments:
    """What happens to packets on the way. Shares are 0 to 1, `jitter` is in seconds.

    loss: share that never comes, each packet for itself. jitter: each packet is late by 0 to
    `jitter`, for itself, so that they overtake each other where that is more than their distance.
    reorder: share that is held back until up to three later ones have gone. duplicate: share that
    goes twice, the second time up to 50 ms later. The same seed gives the same network, and each
    of the four is decided alone: asking for jitter too loses no other packets.
    """

    loss: float = 0.0
    jitter: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    seed: int = 1


def impairments(
    loss: float = 0.0,
    jitter: float = 0.0,
    reorder: float = 0.0,
    duplicate: float = 0.0,
    seed: int = 1,
) -> Impairments:
    """Shares in percent, `jitter` in ms. Raises `BridgeError`."""
    for name, share in (("loss", loss), ("reorder", reorder), ("dup", duplicate)):
        if not 0 <= share <= 100:
            raise BridgeError(f"{name}: expected 0 to 100 percent, not {share:g}")
    if not 0 <= jitter <= MAX_JITTER:
        raise BridgeError(f"jitter: expected 0 to {MAX_JITTER:.0f} ms, not {jitter:g}")
    if seed < 0:
        raise BridgeError(f"seed: expected a number from 0 on, not {seed}")
    return Impairments(loss / 100, jitter / 1000, reorder / 100, duplicate / 100, seed)


@dataclass(frozen=True, slots=True)
class Impaired:
    """What is left to send; and of the packets that there were, how many met with what."""

    schedule: Schedule = field(repr=False)
    lost: int = 0
    held_back: int = 0
    twice: int = 0


def impair(schedule: Schedule, network: Impairments, leg: int = 0) -> Impaired:
    """Send `schedule` through the network; each leg (from 0) meets with other things in it."""
    count = len(schedule)

    def chance(which: int) -> np.random.Generator:
        return np.random.default_rng([network.seed, leg, which])

    when = np.array([at for at, _ in schedule])
    gap = float(np.median(np.diff(when))) if count > 1 else 0.0
    lost = chance(0).random(count) < network.loss
    when += chance(1).uniform(0.0, 1.0, count) * network.jitter
    holding = chance(2)
    held = (holding.random(count) < network.reorder) & ~lost
    when += held * holding.uniform(*HELD, count) * gap
    doubling = chance(3)
    twice = (doubling.random(count) < network.duplicate) & ~lost
    again = when + doubling.uniform(0.0, TWICE, count)
    index = np.concatenate([np.flatnonzero(~lost), np.flatnonzero(twice)])
    times = np.concatenate([when[~lost], again[twice]])
    order = np.argsort(times, kind="stable")
    sent = [(float(times[i]), schedule[index[i]][1]) for i in order]
    return Impaired(sent, int(lost.sum()), int(held.sum()), int(twice.sum()))
