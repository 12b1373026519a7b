"""Twilio streams in real time from this process into another one that is measured.

As bridge/bench/media.py does it for AudioSocket. Every message is new: numbers count, as Twilio's
do. Their mask is zero, which costs the receiver what any other does, and the sender nothing.
"""

from __future__ import annotations

import base64
import functools
import socket
import struct

from bridge.bench import media
from bridge.bench.media import Rung
from bridge.bench.rtp import code_of

STREAM = "MZ" + "0" * 32
HELLO = (
    b"GET /twilio HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
START = (
    '{"event":"start","sequenceNumber":"1","start":{"accountSid":"AC","streamSid":"%s",'
    '"callSid":"CA%032d","tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw",'
    '"sampleRate":8000,"channels":1},"customParameters":{}},"streamSid":"%s"}'
)
MEDIA = (
    '{"event":"media","sequenceNumber":"%d","media":{"track":"inbound","chunk":"%d",'
    '"timestamp":"%d","payload":"'
)


class Generator(media.Generator):
    """Legs as Twilio sends them, one track each."""

    def _greet(self, i: int, sock: socket.socket) -> None:
        sock.sendall(HELLO)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(4096)
        payload = base64.b64encode(bytes([code_of(i)]) * 160)
        self._messages.append(payload + b'"},"streamSid":"%s"}' % STREAM.encode())

    def _send_frame(self, i: int, frame: int) -> None:
        if frame == 0:
            self._socks[i].send(framed((START % (STREAM, i, STREAM)).encode()))
        self._socks[i].send(framed(head(frame) + self._messages[i]))


@functools.lru_cache(64)
def head(frame: int) -> bytes:
    """A media message up to its payload."""
    return (MEDIA % (frame + 2, frame + 1, frame * 20)).encode()


def framed(text: bytes) -> bytes:
    """A masked text frame."""
    return struct.pack("!BBHI", 0x81, 0x80 | 126, len(text), 0) + text


def number_of(call: str) -> int:
    """The leg's number in its callSid."""
    return int(call.removeprefix("CA"))


def measure(legs: int, seconds: float, kind: str, *, loop: str) -> Rung:
    """One rung of the ladder."""
    return media.measure(
        legs,
        seconds,
        kind,
        keepalive="off",
        loop=loop,
        module="bridge.bench.twilio_subject",
        generate=Generator,
    )
