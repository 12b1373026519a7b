"""A switch's side of one RTP leg: packets from its own address, and a clock that tests move."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bridge.audio.g711 import encode_ulaw
from bridge.ingress.rtp_packet import Packet, build
from bridge.types import Samples

SSRC = 0x1234ABCD


class Clock:
    """Monotonic time, and whatever a test has added to it: packets of hours in a moment."""

    def __init__(self) -> None:
        self.skew = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skew


class Peer:
    """One address that sends one stream. `clock` moves on by a packet's time with each."""

    def __init__(self, clock: Clock, *, host: str = "127.0.0.1", ssrc: int = SSRC) -> None:
        self.clock = clock
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.sock.setblocking(False)
        self.ssrc = ssrc
        self.sequence = 65500  # wraps soon
        self.timestamp = (1 << 32) - 4000
        self.to = ("127.0.0.1", 0)
        self.seal: Callable[[bytes], bytes] = lambda data: data

    @property
    def source(self) -> str:
        """As announced."""
        host, port = self.sock.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendto(data, self.to)

    def packets(
        self,
        samples: Samples,
        *,
        encode: Callable[[Samples], bytes] = encode_ulaw,
        payload_type: int = 0,
        frame: int = 160,
        clock: int | None = None,
    ) -> Iterator[bytes]:
        """The stream's next packets, of `frame` samples; `clock` timestamp units in each."""
        samples = np.concatenate([samples, np.zeros(-len(samples) % frame, np.int16)])
        for at in range(0, len(samples), frame):
            payload = encode(samples[at : at + frame])
            yield self.seal(
                build(Packet(payload_type, self.sequence, self.timestamp, self.ssrc, payload))
            )
            self.sequence = (self.sequence + 1) & 0xFFFF
            self.timestamp = (self.timestamp + (clock or frame)) & 0xFFFFFFFF

    def play(self, packets: Iterable[bytes], seconds: float = 0.02) -> None:
        """Send them, `seconds` apart on the clock; a lost one is b""."""
        for data in packets:
            if data:
                self.send(data)
            self.clock.skew += seconds

    def speak(self, samples: Samples) -> None:
        """PCMU, 20 ms a packet."""
        self.play(self.packets(samples))

    def press(self, digit: str) -> None:
        """An event of 100 ms, its end three times (RFC 4733)."""
        event = "0123456789*#ABCD".index(digit)
        for n, end in [(160, 0), (320, 0), (480, 0), (800, 0x80), (800, 0x80), (800, 0x80)]:
            payload = struct.pack(">BBH", event, end | 10, n)
            packet = Packet(101, self.sequence, self.timestamp, self.ssrc, payload, n == 160)
            self.sequence = (self.sequence + 1) & 0xFFFF
            self.play([self.seal(build(packet))], 0.02 if not end else 0.0)
        self.timestamp = (self.timestamp + 800) & 0xFFFFFFFF

    def report(self) -> None:
        """RTCP: a sender report."""
        self.send(struct.pack(">BBHIQIII", 0x80, 200, 6, self.ssrc, 1 << 40, 0, 1, 160))

    def bye(self) -> None:
        """RTCP: a report and BYE."""
        report = struct.pack(">BBHIQIII", 0x80, 200, 6, self.ssrc, 1 << 40, 0, 1, 160)
        self.send(report + struct.pack(">BBHI", 0x81, 203, 1, self.ssrc))

    def answers(self) -> list[bytes]:
        """What has come back."""
        found = []
        while True:
            try:
                found.append(self.sock.recv(4096))
            except BlockingIOError:
                return found
