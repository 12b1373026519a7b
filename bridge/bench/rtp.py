"""RTP legs in real time from this process into another one that is measured; and strays.

As bridge/bench/media.py does it for AudioSocket, with a socket and an address of its own for every
leg. The kernel's work for a packet on loopback is done in the sender's system call, so what is
measured is the receiver's part: reading, and all that follows.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import NamedTemporaryFile

import numpy as np
import numpy.typing as npt

from bridge.bench.media import BUCKETS, MOST_LATE, WARM_UP, Rung, allow_files, answer, ask

LEGS = 50  # of the strays' bench
STRAY_SOURCES = 20
HEADER = struct.Struct("!BBHI")
COST, DELAY = 5e-6, 0.025  # s: the most that a stray may cost, and a block may take


@contextmanager
def subject(
    kind: str, shared: str, shape: tuple[int, int], loop: str, *options: str
) -> Iterator[subprocess.Popen[str]]:
    """The measured process, on a core of its own where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge.bench.rtp_subject", shared, *map(str, shape), kind, loop,
         *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        os.sched_setaffinity(process.pid, cores[:1])
        os.sched_setaffinity(0, cores[1:] or cores)
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        os.sched_setaffinity(0, cores)


def ports_of(process: subprocess.Popen[str], sources: Sequence[int]) -> list[int]:
    """Announce legs that come from these ports of ours, 0: from any; where each is to go."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(sources) + "\n")
    process.stdin.flush()
    found: list[int] = json.loads(process.stdout.readline())
    return found


def measure(legs: int, seconds: float, kind: str, *, loop: str) -> Rung:
    """One rung of the ladder."""
    allow_files(legs + 100)
    shape = (legs, int((WARM_UP + seconds + 2) * 12.5) + 50)
    sent = np.zeros(shape)
    with NamedTemporaryFile(dir="/dev/shm") as shared:
        ready = np.memmap(shared.name, np.float64, "w+", shape=shape)
        with subject(kind, shared.name, shape, loop) as process:
            before = answer(process)["rss"]
            generator = Generator(legs, sent)
            generator.connect(ports_of(process, generator.sources))
            generator.run(WARM_UP)
            ask(process, "zero")
            first = generator.frames // 4
            lateness = generator.run(seconds)
            result = ask(process, "read")
            generator.run(0.3)
            generator.close()
        window = slice(first + 1, first + int(seconds * 12.5) - 1)
        valid = ready[:, window] > 0
        latency = (np.asarray(ready) - sent)[:, window][valid]
    return Rung(
        legs,
        result["cpu"],
        result["cpu"] / (legs * 50),
        result["late50"],
        result["late99"],
        float(np.percentile(latency, 50)) if latency.size else float("inf"),
        float(np.percentile(latency, 99)) if latency.size else float("inf"),
        (result["rss"] - before) / legs / 1000,
        float(np.percentile(lateness, 99)),
        1 - float(valid.mean()),
    )


class Generator:
    """PCMU legs in real time from a plain loop: a packet for 1/20 of the legs every millisecond.

    A leg's samples are all the same, by its number, so that a block tells whose it is.
    """

    def __init__(self, legs: int, sent: npt.NDArray[np.float64]) -> None:
        self.frames = 0  # per leg
        self.strays = 0
        self._sent = sent
        self._socks = [udp_socket() for _ in range(legs)]
        self._tails = [struct.pack("!I", i) + bytes([code_of(i)]) * 160 for i in range(legs)]
        self._strays: list[socket.socket] = []
        self._to: list[tuple[str, int]] = []
        self._per_bucket = 0.0
        self._owed = 0.0

    @property
    def sources(self) -> list[int]:
        """The legs' ports on our side."""
        return [int(sock.getsockname()[1]) for sock in self._socks]

    def connect(self, ports: Sequence[int]) -> None:
        """Where each leg goes."""
        for sock, port in zip(self._socks, ports, strict=True):
            sock.connect(("127.0.0.1", port))

    def stray(self, rate: float, ports: Sequence[int]) -> None:
        """From now on also `rate` packets a second from other addresses to these ports."""
        while len(self._strays) < STRAY_SOURCES:
            self._strays.append(udp_socket())
        self._to = [("127.0.0.1", port) for port in ports]
        self._per_bucket = rate / 50 / BUCKETS

    def run(self, seconds: float) -> list[float]:
        """Whole frames for about so long; how late each millisecond was."""
        late: list[float] = []
        start = time.monotonic()
        for frame in range(int(seconds * 50)):
            for bucket in range(BUCKETS):
                due = start + frame * 0.02 + bucket * 0.001
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                late.append(max(0.0, time.monotonic() - due))
                self._send(bucket)
                if self._per_bucket:
                    self._send_strays()
            self.frames += 1
        return late

    def _send(self, bucket: int) -> None:
        socks, tails, sent = self._socks, self._tails, self._sent
        # Calls begin at any time: a quarter of them ends a block in each frame.
        heads = [self._head(self.frames - lag) for lag in range(4)]
        for i in range(bucket, len(socks), BUCKETS):
            lag = i // BUCKETS % 4
            frame = self.frames - lag
            if frame < 0:
                continue
            if frame % 4 == 3:
                sent[i, frame // 4] = time.monotonic()
            try:
                socks[i].send(heads[lag] + tails[i])
            except (BlockingIOError, ConnectionRefusedError):
                pass

    @staticmethod
    def _head(frame: int) -> bytes:
        return HEADER.pack(0x80, 0, frame & 0xFFFF, frame * 160 & 0xFFFFFFFF)

    def _send_strays(self) -> None:
        self._owed += self._per_bucket
        while self._owed >= 1:
            self._owed -= 1
            n = self.strays
            self.strays = n + 1
            # In no sequence, or the ports that learn would learn them.
            data = HEADER.pack(0x80, 0, n * 7919 & 0xFFFF, n) + self._tails[0]
            try:
                self._strays[n % STRAY_SOURCES].sendto(data, self._to[n % len(self._to)])
            except (BlockingIOError, ConnectionRefusedError):
                pass

    def close(self) -> None:
        """Fall silent."""
        for sock in (*self._socks, *self._strays):
            sock.close()


def udp_socket() -> socket.socket:
    """On a port of its own."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


def code_of(leg: int) -> int:
    """The mu-law code of a leg's samples: neighbours differ, and none is near silence."""
    return 16 + leg * 37 % 64


def run_strays(args: argparse.Namespace) -> int:
    """50 live legs, and strangers: at the legs' own ports, and at ports that learn their peer."""
    allow_files(4 * LEGS)
    seconds, phases = args.seconds, ("none", "live ports", "learning ports")
    shape = (2 * LEGS, int((WARM_UP + 4 * (seconds + 1)) * 12.5) + 100)
    sent = np.zeros(shape)
    good = True
    print(f"{LEGS} live legs, {args.rate} stray packets/s, {seconds:g} s each, {args.loop}")
    print("  strays to        CPU  µs/stray  loop late p99 ms  block ready p99 ms  lost  strays")
    with NamedTemporaryFile(dir="/dev/shm") as shared:
        ready = np.memmap(shared.name, np.float64, "w+", shape=shape)
        filtering = "plain" if args.no_filter else "filter"
        with subject("ours", shared.name, shape, args.loop, filtering) as process:
            answer(process)
            generator = Generator(LEGS, sent)
            ports = ports_of(process, generator.sources + [0] * LEGS)
            generator.connect(ports[:LEGS])
            generator.run(WARM_UP)
            idle = 0.0
            for phase in phases:
                to = ports[LEGS:] if phase == "learning ports" else ports[:LEGS]
                generator.stray(0 if phase == "none" else args.rate, to)
                generator.run(0.5)
                before, strays = ask(process, "zero"), generator.strays
                first = generator.frames // 4
                generator.run(seconds)
                result = ask(process, "read")
                generator.stray(0, to)
                generator.run(0.5)
                window = slice(first + 1, first + int(seconds * 12.5) - 1)
                valid = ready[:LEGS, window] > 0
                latency = (np.asarray(ready) - sent)[:LEGS, window][valid]
                strays = generator.strays - strays
                idle = idle or result["cpu"]
                cost = (result["cpu"] - idle) * seconds / strays if strays else 0.0
                late99 = float(np.percentile(latency, 99)) if latency.size else float("inf")
                lost = 1 - float(valid.mean())
                print(
                    f"  {phase:15s} {result['cpu']:5.1%} {cost * 1e6:9.2f}"
                    f" {result['late99'] * 1e3:17.1f} {late99 * 1e3:19.1f} {lost:5.1%}"
                    f"  {strays} sent, {result['strangers'] - before['strangers']:.0f} counted",
                    flush=True,
                )
                good &= cost <= COST and late99 <= DELAY and lost < 0.001
                good &= result["late99"] <= MOST_LATE and result["wrong"] == 0
            print(f"samples of strangers that were heard: {result['wrong']:.0f} blocks")
            generator.close()
    print("within the limits" if good else "NOT within the limits")
    return int(not good)
