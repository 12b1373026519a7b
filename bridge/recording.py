"""Reading recordings as telephone people have them: .wav, and headerless .ulaw .alaw .sln.

Standard WAVE only (Microsoft RIFF, formats 1, 6 and 7, also inside WAVE_FORMAT_EXTENSIBLE):
Python's own `wave` takes neither mu-law nor A-law.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.audio.g711 import decode_alaw, decode_ulaw
from bridge.errors import BridgeError
from bridge.types import Samples

MIN_RATE, MAX_RATE = 4_000, 192_000  # Hz
MAX_CHANNELS = 2
MAX_BYTES = 512 * 1024 * 1024  # nine hours of 8 kHz stereo: a wrong file, not a call
STREAMED = 0x7FFF_0000  # a "size" from here on means that a pipe's writer did not know it
PCM, ALAW, ULAW, EXTENSIBLE = 1, 6, 7, 0xFFFE
NAMES = {2: "ADPCM", 3: "floating point", 17: "IMA ADPCM", 49: "GSM", 80: "MPEG", 85: "MP3"}
SLN_RATES = {"": 8, "12": 12, "16": 16, "24": 24, "32": 32, "44": 44.1, "48": 48, "96": 96}
SLN_RATES |= {"192": 192}  # Asterisk's names of its signed linear formats → kHz


@dataclass(frozen=True, slots=True)
class _Format:
    """What a ``fmt`` chunk says. `rate` in Hz, `bits` per sample."""

    kind: int
    channels: int
    rate: int
    bits: int


def read_recording(path: str | Path, *, channel: int | None = None) -> list[tuple[Samples, int]]:
    """The recording's channels, each as (int16[n], rate in Hz); at most two.

    `channel` (from 0) takes one of them. Raises `BridgeError` for anything that cannot be read.
    """
    path = Path(path)
    data = _bytes_of(path)
    try:
        channels, rate = _decode(path.suffix.lower(), data)
    except BridgeError as e:
        raise BridgeError(f"{path}: {e}") from None
    if channel is None:
        return [(samples, rate) for samples in channels]
    if not 0 <= channel < len(channels):
        has = "one channel" if len(channels) == 1 else f"{len(channels)} channels"
        raise BridgeError(f"{path}: has {has}, so there is no channel {channel} (they start at 0)")
    return [(channels[channel], rate)]


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise BridgeError(f"{path}: is a directory; name one recording in it")
        if path.exists() and not path.is_file():
            raise BridgeError(f"{path}: is not a plain file")
        if path.stat().st_size > MAX_BYTES:
            raise BridgeError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; cut it into calls")
        data = path.read_bytes()
    except OSError as e:
        raise BridgeError(f"{path}: cannot be read: {e.strerror}") from None
    if not data:
        raise BridgeError(f"{path}: is empty")
    return data


def _decode(suffix: str, data: bytes) -> tuple[list[Samples], int]:
    """The content decides for WAVE, the suffix for what has no header."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _decode_wave(data)
    sln = re.fullmatch(r"\.sln(\d*)", suffix)
    if sln and sln[1] in SLN_RATES:
        if len(data) % 2:
            raise BridgeError(f"has an odd number of bytes, but {suffix} has two bytes a sample")
        return [np.frombuffer(data, "<i2").astype(np.int16)], round(SLN_RATES[sln[1]] * 1000)
    if suffix in (".ulaw", ".ul"):
        return [decode_ulaw(data)], 8000
    if suffix in (".alaw", ".al"):
        return [decode_alaw(data)], 8000
    if suffix == ".wav":
        raise BridgeError("is named .wav but has no RIFF/WAVE header")
    raise BridgeError("is not a recording: expected .wav, .ulaw, .alaw or .sln (.sln16 …)")


def _decode_wave(data: bytes) -> tuple[list[Samples], int]:
    form, audio, declared = _chunks(data)
    _check(form)
    width = form.channels * form.bits // 8  # bytes of one sample of every channel
    if declared < STREAMED and len(audio) < declared:
        has, should = (n / width / form.rate for n in (len(audio), declared))
        raise BridgeError(f"is cut off: {has:.2f} of {should:.2f} seconds are there; copy it again")
    audio = audio[: len(audio) - len(audio) % width]
    if not audio:
        raise BridgeError("has a header but no audio")
    samples = _samples(form, audio).reshape(-1, form.channels)
    return [np.ascontiguousarray(samples[:, i]) for i in range(form.channels)], form.rate


def _chunks(data: bytes) -> tuple[_Format, bytes, int]:
    """The format, the audio's bytes, and how many of them the header promised."""
    form: _Format | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt ":
            form = _format(body)
        elif name == b"data":
            if form is None:
                raise BridgeError("has audio before its format; save it with sox")
            return form, body, size
        at += 8 + size + size % 2  # chunks are padded to even sizes
    raise BridgeError("is cut off: its header has no audio after it; copy it again")


def _format(body: bytes) -> _Format:
    if len(body) < 16:
        raise BridgeError("is cut off inside its header; copy it again")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if kind == EXTENSIBLE and len(body) >= 26:
        kind = struct.unpack_from("<H", body, 24)[0]  # the sub-format's first two bytes
    return _Format(kind, channels, rate, bits)


def _check(form: _Format) -> None:
    if (form.kind, form.bits) not in ((PCM, 8), (PCM, 16), (ALAW, 8), (ULAW, 8)):
        name = "PCM" if form.kind == PCM else NAMES.get(form.kind, f"format {form.kind}")
        raise BridgeError(
            f"is {form.bits}-bit {name}; expected 16-bit or 8-bit PCM, mu-law or A-law "
            "(sox IN -b 16 OUT.wav makes one)"
        )
    if not 1 <= form.channels <= MAX_CHANNELS:
        raise BridgeError(f"has {form.channels} channels; a call has one or two")
    if not MIN_RATE <= form.rate <= MAX_RATE:
        raise BridgeError(f"says {form.rate} samples a second; expected {MIN_RATE} to {MAX_RATE}")


def _samples(form: _Format, audio: bytes) -> Samples:
    if form.kind == ALAW:
        return decode_alaw(audio)
    if form.kind == ULAW:
        return decode_ulaw(audio)
    if form.bits == 16:
        return np.frombuffer(audio, "<i2").astype(np.int16)
    # 8-bit WAVE is unsigned around 128
    return (np.frombuffer(audio, np.uint8).astype(np.int16) - 128) << 8
