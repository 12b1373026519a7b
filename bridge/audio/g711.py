"""G.711: eight bits a sample, mu-law and A-law, by table.

A decoder is one look-up in 256 values, an encoder one in 65536; the tables are computed here from
ITU-T G.711 (tables 1a to 2b). Both laws are a tiny floating point format: one bit of sign, three
of exponent ("segment"), four of mantissa. On the wire mu-law is inverted altogether, A-law in every
other bit (0x55), so that silence is not a run of zeros.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bridge.types import Samples

_Ints = npt.NDArray[np.int64]
_CODES: _Ints = np.arange(256)
_LEVELS: _Ints = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.int64)  # by bits

_ULAW_BIAS = 33  # added to 14 bit magnitudes, so that segments begin at powers of two
_ULAW_MAX = 0x1FFF - _ULAW_BIAS  # beyond it there is no code; louder is as loud as it gets


def _ulaw_values() -> Samples:
    """int16[256]: the value of each mu-law code, 14 bit values scaled to 16 bits."""
    code = ~_CODES & 0xFF
    segment, mantissa = code >> 4 & 7, code & 15
    magnitude = ((2 * mantissa + _ULAW_BIAS << segment) - _ULAW_BIAS) << 2
    values: Samples = np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)
    return values


def _alaw_values() -> Samples:
    """int16[256]: the value of each A-law code, 13 bit values scaled to 16 bits."""
    code = _CODES ^ 0x55
    segment, mantissa = code >> 4 & 7, code & 15
    # Segment 0 is as steep as segment 1, and has no hidden leading one.
    magnitude = (2 * mantissa + np.where(segment, 33, 1) << np.maximum(segment - 1, 0)) << 3
    values: Samples = np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)
    return values


def _segments(magnitude: _Ints, first: int) -> _Ints:
    """How often `magnitude` can be halved before it fits in `first` bits."""
    bits = np.frexp(magnitude.astype(np.float64))[1].astype(np.int64)
    return np.maximum(bits - first, 0)


def _magnitudes(bits: int) -> _Ints:
    """Every int16's magnitude in `bits` bits; −1 − x for negative x, as in ITU-T G.191."""
    return (_LEVELS ^ _LEVELS >> 15) >> 15 - bits


def _ulaw_codes() -> npt.NDArray[np.uint8]:
    """uint8[65536]: the mu-law code of each int16, indexed by its bits."""
    magnitude = np.minimum(_magnitudes(13), _ULAW_MAX) + _ULAW_BIAS
    segment = _segments(magnitude, 6)
    code = segment << 4 | magnitude >> segment + 1 & 15 | np.where(_LEVELS < 0, 0x80, 0)
    codes: npt.NDArray[np.uint8] = (~code & 0xFF).astype(np.uint8)
    return codes


def _alaw_codes() -> npt.NDArray[np.uint8]:
    """uint8[65536]: the A-law code of each int16, indexed by its bits."""
    magnitude = _magnitudes(11)  # without A-law's lowest bit, which decides nothing
    segment = _segments(magnitude, 4)
    code = segment << 4 | magnitude >> np.maximum(segment - 1, 0) & 15
    signed = (code | np.where(_LEVELS < 0, 0, 0x80)) ^ 0x55
    codes: npt.NDArray[np.uint8] = signed.astype(np.uint8)
    return codes


_ULAW_VALUES, _ALAW_VALUES = _ulaw_values(), _alaw_values()
_ULAW_CODES, _ALAW_CODES = _ulaw_codes(), _alaw_codes()


def decode_ulaw(data: bytes) -> Samples:
    """mu-law bytes → int16[len(data)]. Every byte is valid."""
    return _ULAW_VALUES.take(np.frombuffer(data, np.uint8))


def decode_alaw(data: bytes) -> Samples:
    """A-law bytes → int16[len(data)]. Every byte is valid."""
    return _ALAW_VALUES.take(np.frombuffer(data, np.uint8))


def encode_ulaw(samples: Samples) -> bytes:
    """int16[n] → n mu-law bytes."""
    return _ULAW_CODES[samples.view(np.uint16)].tobytes()


def encode_alaw(samples: Samples) -> bytes:
    """int16[n] → n A-law bytes."""
    return _ALAW_CODES[samples.view(np.uint16)].tobytes()
