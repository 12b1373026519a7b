"""Encoders of RTP payloads, for what we send ourselves: the other half of codecs.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bridge.audio.codecs import codec
from bridge.audio.g711 import encode_alaw, encode_ulaw
from bridge.types import Samples


@dataclass(frozen=True, slots=True)
class Encoder:
    """`encode`: int16[n] at `rate` Hz → its bytes. `clock`: Hz of the RTP timestamps.

    Whole recordings may be encoded at once: equal times are equally many bytes.
    """

    rate: int
    clock: int
    encode: Callable[[Samples], bytes]


def encoder(name: str, rate: int) -> Encoder:
    """A new one, for one stream. Names, rates and ValueError as for `codec`."""
    known = codec(name, rate)
    encode: Callable[[Samples], bytes]
    match known.name:
        case "pcmu":
            encode = encode_ulaw
        case "pcma":
            encode = encode_alaw
        case "g722":
            encode = _g722()
        case "l16":
            encode = _big_endian
        case _:
            encode = _little_endian
    return Encoder(known.rate, known.clock, encode)


def _big_endian(samples: Samples) -> bytes:
    return samples.astype(">i2").tobytes()


def _little_endian(samples: Samples) -> bytes:
    return samples.astype("<i2").tobytes()


def _g722() -> Callable[[Samples], bytes]:
    from G722 import G722  # codec() has found it

    library: Any = G722(16000, 64000)

    def encode(samples: Samples) -> bytes:
        even = samples[: len(samples) - len(samples) % 2]  # a byte is two samples
        return bytes(library.encode(even))

    return encode
