"""The codecs of RTP payloads: bytes to int16 (RFC 3551; FreeSWITCH's L16 as it lies in memory).

A decoder of G.711 or L16 knows nothing of the packet before, so payloads may be joined and decoded
in one call, which is cheaper. G.722 remembers what it heard: its payloads must come in order, and
joining them changes nothing.

The clock of an RTP stream is its rate, but for G.722, which has 16 kHz audio and, by an old error
that RFC 3551 §4.5.2 keeps, timestamps of 8 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from bridge.audio import g711
from bridge.types import Samples

STATIC_TYPES: Mapping[int, tuple[str, int]] = {
    0: ("pcmu", 8000),
    8: ("pcma", 8000),
    9: ("g722", 16000),
    11: ("l16", 44100),
    13: ("cn", 8000),
}
"""Payload type → name and rate (RFC 3551 table 4), as far as they are taken.

Type 10, stereo, is not. ``cn`` is comfort noise (RFC 3389), which is no codec: there is nothing in
it to decode. Asterisk without SDP sends 8 kHz L16 as type 10 or 11; say so by a payload map.
"""

L16_RATES = (8000, 12000, 16000, 24000, 32000, 44100, 48000)


class Codec(Protocol):
    """One stream's decoder."""

    name: str
    rate: int
    """Hz of the samples."""
    clock: int
    """Hz of the RTP timestamps; `rate` is a whole multiple of it."""
    width: int
    """Bytes that belong together; what is left over at a payload's end is no sample."""

    def samples(self, payload_bytes: int) -> int:
        """How many samples a payload of that many bytes becomes."""

    def decode(self, payload: bytes) -> Samples:
        """int16[samples(len(payload))]. Any bytes are valid."""

    def reset(self) -> None:
        """Forget the stream: what comes next is another one's."""


class _G711:
    """A byte is a sample."""

    rate = clock = 8000
    width = 1

    def __init__(self, name: str, decode: Callable[[bytes], Samples]) -> None:
        self.name = name
        self.decode = decode

    def samples(self, payload_bytes: int) -> int:
        return payload_bytes

    def reset(self) -> None:
        """There is nothing to forget."""


class _L16:
    """Two bytes are a sample."""

    width = 2

    def __init__(self, name: str, rate: int, dtype: str) -> None:
        self.name = name
        self.rate = self.clock = rate
        self._dtype = np.dtype(dtype)

    def samples(self, payload_bytes: int) -> int:
        return payload_bytes // 2

    def decode(self, payload: bytes) -> Samples:
        samples = np.frombuffer(payload, self._dtype, len(payload) // 2)
        return samples.astype(np.int16, copy=False)  # a view where the order is the machine's own

    def reset(self) -> None:
        """There is nothing to forget."""


class _G722:
    """A byte is two samples. 64 kbit/s: RFC 3551 has no other.

    The library (libg722, bit-exact to ITU-T G.722) takes `bytes` only and gives an `array`, which
    numpy looks at without a copy: 10 µs for 20 ms.
    """

    name = "g722"
    rate = 16000
    clock = 8000
    width = 1

    def __init__(self) -> None:
        # Here, because most bridges never hear any.
        from G722 import G722

        self._make: Callable[[], Any] = lambda: G722(16000, 64000, False)
        self._decoder = self._make()

    def samples(self, payload_bytes: int) -> int:
        return 2 * payload_bytes

    def decode(self, payload: bytes) -> Samples:
        samples: Samples = np.frombuffer(self._decoder.decode(bytes(payload)), np.int16)
        return samples

    def reset(self) -> None:
        self._decoder = self._make()


def codec(name: str, rate: int) -> Codec:
    """A decoder of its own for one stream.

    `name`: ``pcmu``, ``pcma``, ``g722``, ``l16`` (big-endian, RFC 3551 §4.5.11) or ``l16le``; in
    capitals too, as SDP has them. `rate`: Hz; for G.722 also 8000, as SDP says it. Raises
    ValueError with a sentence.
    """
    match name.lower():
        case "pcmu":
            _check(name, rate, (8000,))
            return _G711("pcmu", g711.decode_ulaw)
        case "pcma":
            _check(name, rate, (8000,))
            return _G711("pcma", g711.decode_alaw)
        case "g722":
            _check(name, rate, (16000, 8000))
            return _g722()
        case "l16" | "l16le":
            _check(name, rate, L16_RATES)
            return _L16(name.lower(), rate, ">i2" if name.lower() == "l16" else "<i2")
    raise ValueError(f"codec {name!r} is not known; it is one of pcmu, pcma, g722, l16, l16le")


def _check(name: str, rate: int, rates: tuple[int, ...]) -> None:
    if rate not in rates:
        wanted = " or ".join(str(known) for known in rates)
        raise ValueError(f"codec {name!r} has a rate of {wanted} Hz, not {rate}")


def _g722() -> Codec:
    try:
        return _G722()
    except ImportError:
        raise ValueError("codec 'g722' needs a library: pip install G722") from None
