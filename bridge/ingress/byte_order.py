"""Linear samples whose documents do not say which byte comes first. Pure.

"L16" is big-endian by RFC 3551 §4.5.11, and little-endian with most who use it on WebSockets.
Speech tells: in its own order neighbouring samples are alike; in the other they are noise, because
the low byte has become the high one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bridge.types import Samples

ENOUGH = 1600  # samples that are not silence; a tenth of a second at 16 kHz
LOUD = 64  # mean of magnitudes above which both orders tell something

_Floats = npt.NDArray[np.float64]


class EitherOrder:
    """A decoder that finds out. Implements `bridge.audio.codecs.Codec`.

    Until it knows, each payload is taken in the order in which it is smoother, little-endian where
    neither is; that costs a click at the most.
    """

    name = "l16"
    width = 2

    def __init__(self, rate: int) -> None:
        self.rate = self.clock = rate
        self.reset()

    def reset(self) -> None:
        self._order = ""
        self._smooth = {"<i2": 0, ">i2": 0}  # samples of payloads that were smoother so

    def samples(self, payload_bytes: int) -> int:
        return payload_bytes // 2

    def decode(self, payload: bytes) -> Samples:
        n = len(payload) // 2
        order = self._order or self._guess(payload[: 2 * n])
        return np.frombuffer(payload, np.dtype(order), n).astype(np.int16, copy=False)

    def _guess(self, payload: bytes) -> str:
        """The smoother order of one payload, and for good once there was enough to tell by."""
        rough = {order: _roughness(np.frombuffer(payload, order)) for order in self._smooth}
        if max(rough.values()) == 0.0 or rough["<i2"] == rough[">i2"]:
            return max(self._smooth, key=lambda order: self._smooth[order])
        smoother = min(rough, key=lambda order: rough[order])
        self._smooth[smoother] += len(payload) // 2
        if self._smooth[smoother] >= ENOUGH + 2 * min(self._smooth.values()):
            self._order = smoother
        return smoother


def _roughness(samples: Samples) -> float:
    """Mean difference of neighbours, where there is something to hear; else 0."""
    if len(samples) < 2:
        return 0.0
    x: _Floats = samples.astype(np.float64)
    return float(np.abs(np.diff(x)).mean()) if np.abs(x).mean() > LOUD else 0.0
