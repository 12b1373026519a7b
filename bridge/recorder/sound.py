"""Files of samples: WAV, and Opus in Ogg (by soundfile, whose wheels bring libsndfile along).

Both take samples at a place, never before one where they have been; what is left out is silence.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Protocol

import numpy as np

from bridge.types import Samples

HEADER = 44  # bytes
MAX_DATA = 2**32 - 2 - HEADER  # bytes; WAV's sizes are 32 bits
STREAMED = 0x7FFF_FFFF  # as a pipe's writer has it: whoever reads it takes what there is
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


class Sound(Protocol):
    """One file being written. What goes wrong is an OSError, or of the library's own kind."""

    frames: int  # samples so far

    def write(self, at: int, samples: Samples) -> None:
        """Samples, the first at index `at`."""

    def close(self) -> None:
        """Finish the file, to the disk."""


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


class WavFile:
    """16 bits, one channel. Playable at any time: until it is closed its size is a pipe's."""

    def __init__(self, path: Path, rate: int) -> None:
        self.frames = 0
        self._rate = rate
        self._file = os.fdopen(_create(path), "r+b", buffering=0)
        try:
            self._put(0, self._header(STREAMED))
        except OSError:
            self._file.close()
            path.unlink()  # or an empty file would pass for a recording
            raise

    def write(self, at: int, samples: Samples) -> None:
        data = samples.astype("<i2", copy=False).tobytes()
        place = max(at, self.frames)
        if 2 * place + len(data) > MAX_DATA:
            raise OSError(errno.EFBIG, "longer than a WAV file can be")
        self._put(HEADER + 2 * place, data)
        self.frames = place + len(samples)

    def _put(self, place: int, data: bytes) -> None:
        self._file.seek(place)
        view = memoryview(data)
        while view:  # a disk that is filling up takes a part, and then fails
            view = view[self._file.write(view) :]

    def _header(self, size: int) -> bytes:
        head = struct.pack(
            "<4sI4s4sIHH", b"RIFF", min(size + 36, STREAMED), b"WAVE", b"fmt ", 16, 1, 1
        )
        return head + struct.pack("<IIHH4sI", self._rate, 2 * self._rate, 2, 16, b"data", size)

    def close(self) -> None:
        try:
            self._file.truncate(HEADER + 2 * self.frames)  # of a write that failed half-way
            self._put(0, self._header(2 * self.frames))
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


class OpusFile:
    """Opus in Ogg, one channel, at a tenth of the size."""

    def __init__(self, path: Path, rate: int) -> None:
        import soundfile

        self.frames = 0
        self._rate = rate
        self._path = path
        os.close(_create(path))
        try:
            self._file = soundfile.SoundFile(
                str(path), "w", samplerate=rate, channels=1, format="OGG", subtype="OPUS"
            )
        except Exception:
            path.unlink()
            raise

    def write(self, at: int, samples: Samples) -> None:
        while self.frames < at:
            n = min(at - self.frames, self._rate)
            self._write(np.zeros(n, np.int16))
        self._write(samples)

    def _write(self, samples: Samples) -> None:
        self._file.write(samples)
        self.frames += len(samples)

    def close(self) -> None:
        self._file.close()
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())


def create(folder: Path, leg: str, rate: int, format: str) -> Sound:
    """The file of one leg; WAV where Opus does not know the rate."""
    if format == "opus" and rate in OPUS_RATES:
        return OpusFile(folder / f"{leg}.ogg", rate)
    return WavFile(folder / f"{leg}.wav", rate)
