"""What a caller says over AudioSocket, message by message, and when. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from bridge.audio.resample import make_resampler
from bridge.errors import BridgeError
from bridge.types import Samples

HANGUP, NAME, DTMF = 0x00, 0x01, 0x03  # res_audiosocket.h
KINDS = {8000: 0x10, 12000: 0x11, 16000: 0x12, 24000: 0x13, 32000: 0x14, 44100: 0x15}
KINDS |= {48000: 0x16, 96000: 0x17, 192000: 0x18}  # Hz → kind
RATES = {kind: rate for rate, kind in KINDS.items()}
FRAME = 0.02  # seconds
DAY = 86_400  # seconds; no call is longer

Script: TypeAlias = list[tuple[float, bytes]]
"""(seconds since the first frame, message), in order of time."""


def message(kind: int, payload: bytes) -> bytes:
    """The wire form; `payload` is at most 65535 bytes."""
    return struct.pack(">BH", kind, len(payload)) + payload


def _at_wire_rate(samples: Samples, rate: int) -> tuple[Samples, int]:
    """Resampled to the nearest rate that AudioSocket has, the higher one in a tie."""
    wire = min(KINDS, key=lambda known: (abs(known - rate), -known))
    return resampled(samples, rate, wire), wire


def resampled(samples: Samples, rate: int, wire: int) -> Samples:
    """int16[n] at `rate` Hz → int16[n · wire / rate] at `wire` Hz."""
    if wire == rate:
        return samples
    resampler = make_resampler(rate, wire, round(wire * FRAME))
    blocks = [*resampler.feed(samples), *resampler.flush()]
    sound = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    sound = sound[: round(len(samples) * wire / rate)]  # without the last block's padding
    return np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)


def checked_digits(digits: Sequence[tuple[float, str]], linger: float) -> None:
    """Raises `BridgeError` for digits that no telephone has and times that no call has."""
    for at, digit in digits:
        if len(digit) != 1 or digit not in "0123456789*#ABCD" or not 0 <= at <= DAY:
            raise BridgeError(
                f"digit {digit!r} at {at} s: expected one of 0-9 * # A-D, from 0 s on"
            )
    if not 0 <= linger <= DAY:
        raise BridgeError(f"linger: expected 0 to {DAY} seconds, not {linger}")


def make_script(
    samples: Samples, rate: int, digits: Sequence[tuple[float, str]] = (), linger: float = 0.0
) -> Script:
    """All messages of a leg after its UUID. The last audio frame may be short, as Asterisk's is.

    `linger` seconds of silence follow the recording, and as much as the last digit needs.
    Raises `BridgeError` for digits that no telephone has and times that no call has.
    """
    checked_digits(digits, linger)
    samples, rate = _at_wire_rate(samples, rate)
    wanted = max([len(samples) / rate + linger, *(at for at, _ in digits)])
    silence = np.zeros(max(0, round(wanted * rate) - len(samples)), np.int16)
    wire = np.concatenate([samples, silence]).astype("<i2")
    step, kind = round(rate * FRAME), KINDS[rate]
    script = [
        (i / rate, message(kind, wire[i : i + step].tobytes()))
        for i in range(0, len(wire), step)
    ]  # fmt: skip
    script += [(at, message(DTMF, digit.encode())) for at, digit in digits]
    return sorted(script, key=lambda item: item[0])
