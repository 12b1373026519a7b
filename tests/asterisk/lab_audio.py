"""Is this recording in that one?"""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]


def read_wav(path: Path) -> Samples:
    """Samples of a mono 16-bit wav file."""
    with wave.open(str(path), "rb") as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, 8000)
        return np.frombuffer(wav.readframes(wav.getnframes()), "<i2")


def to_wav(samples: Samples) -> bytes:
    """An 8 kHz wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(8000)
        wav.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def likeness(heard: Samples, prompt: Samples) -> float:
    """Normalised cross-correlation at the best shift: 1 for the same recording, about 0 for
    another. The prompt is cut to what could have been heard of it."""
    a, b = heard.astype(float), prompt[: len(heard)].astype(float)
    a, b = a - a.mean(), b - b.mean()
    size = 1 << (len(a) + len(b)).bit_length()
    products = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    return float(np.abs(products).max() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9))
