"""A WAV file's header as it comes in over a stream: what the samples behind it are. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bridge.ingress.media_socket import INVALID, SocketError

LONGEST = 65536  # bytes before the samples
CODECS = {1: "linear16", 6: "alaw", 7: "mulaw"}
EXTENSIBLE = 0xFFFE


@dataclass(frozen=True, slots=True)
class Found:
    """`encoding` as `bridge.ingress.pcm.ENCODINGS` has it; `audio`: what came behind the header."""

    encoding: str
    channels: int
    rate: int
    audio: bytes


class WavHeader:
    """Bytes in, until the samples begin."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Found | None:
        """None: more is needed. Raises `SocketError` for what is no WAV of ours."""
        self._data += data
        if self._data[:4] != b"RIFF"[: len(self._data)]:
            raise SocketError(INVALID, "name the encoding, or send a WAV file: this is neither")
        form: tuple[str, int, int] | None = None
        at = 12
        while len(self._data) >= at + 8:
            name, size = struct.unpack_from("<4sI", self._data, at)
            body = at + 8
            if name == b"data" and form is not None:
                return Found(*form, self._data[body:])  # its size is a guess where it is streamed
            if name == b"fmt " and len(self._data) >= body + 16:
                form = _form(self._data[body : body + size])
            at = body + size + size % 2
        if len(self._data) > LONGEST:
            raise SocketError(INVALID, f"no samples in the first {LONGEST} bytes of the WAV file")
        return None


def _form(chunk: bytes) -> tuple[str, int, int]:
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk.ljust(16, b"\0"))
    if tag == EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)  # the first field of its GUID
    encoding = CODECS.get(tag)
    if encoding is None or bits != (16 if encoding == "linear16" else 8):
        raise SocketError(INVALID, "a WAV file: expected 16-bit PCM, A-law or mu-law")
    return encoding, channels, rate
