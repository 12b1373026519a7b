"""N AudioSocket legs in real time from this process into another one that is measured.

Each process has a core of its own where there are two. A rung counts when the subject used at
most 70 % of its core and its event loop was at most 10 ms late in 99 % of all looks.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import NamedTemporaryFile

import numpy as np
import numpy.typing as npt

from bridge.config import Address
from bridge.errors import BridgeError
from bridge.listeners import listen

MOST_CPU, MOST_LATE = 0.70, 0.010
BUCKETS = 20  # legs are spread over the 20 ms of a frame
WARM_UP = 3.0  # s
CLIMB = 1.15
FIRST = {"naive": 100, "ours": 500}  # legs on the first rung


@dataclass(frozen=True, slots=True)
class Rung:
    """One measurement. Times in seconds, `cpu` as a share of one core."""

    legs: int
    cpu: float
    per_frame: float
    late50: float
    late99: float
    latency50: float
    latency99: float
    kb_per_leg: float
    generator_late99: float
    lost: float  # share of blocks that were not ready in time

    @property
    def good(self) -> bool:
        """Within the limits."""
        return self.cpu <= MOST_CPU and self.late99 <= MOST_LATE and self.lost < 0.001


def run(args: argparse.Namespace) -> int:
    """Ours and the fifty lines, each up to its most legs or on the given rungs."""
    most = {}
    rung: Callable[..., Rung] = functools.partial(measure, keepalive=args.keepalive, loop=args.loop)
    note = f"AudioSocket, silence back: {args.keepalive}"
    if args.ingress == "rtp":
        from bridge.bench import rtp

        rung, note = functools.partial(rtp.measure, loop=args.loop), "RTP"
    elif args.ingress == "twilio":
        from bridge.bench import twilio

        rung, note = functools.partial(twilio.measure, loop=args.loop), "Twilio's WebSockets"
    for kind in [args.only] if args.only else ["naive", "ours"]:
        most[kind] = climb(kind, args, rung, note)
    if len(most) == 2 and all(most.values()):
        print(f"ours / naive: {most['ours'] / most['naive']:.1f}")
    return 0


def climb(kind: str, args: argparse.Namespace, measure: Callable[..., Rung], note: str) -> int:
    """The most legs that were good; prints every rung."""
    print(f"{kind}, {args.loop}, {note}, {args.seconds:g} s a rung")
    print("   legs   CPU  µs/frame  loop late p50/p99 ms  block ready p50/p99 ms  kB/leg  ok")
    best = 0
    again = True  # other tenants of the machine may spoil a rung: one more try
    rungs = list(args.legs or [FIRST[kind]])
    while rungs:
        rung = measure(rungs.pop(0), args.seconds, kind)
        print(
            f"{rung.legs:7d} {rung.cpu:5.0%} {rung.per_frame * 1e6:9.1f}"
            f" {rung.late50 * 1e3:11.1f} /{rung.late99 * 1e3:7.1f}"
            f" {rung.latency50 * 1e3:13.1f} /{rung.latency99 * 1e3:7.1f}"
            f" {rung.kb_per_leg:8.1f}  {'yes' if rung.good else 'NO'}"
            + (
                f"  (generator {rung.generator_late99 * 1e3:.0f} ms late)"
                if rung.generator_late99 > 0.01
                else ""
            ),
            flush=True,
        )
        if rung.good:
            best, again = max(best, rung.legs), True
            if not args.legs:
                rungs.append(int(rung.legs * CLIMB))
        elif again:
            again = False
            rungs.insert(0, rung.legs)
    print(f"most legs on one core at ≤ {MOST_CPU:.0%} and ≤ {MOST_LATE * 1e3:.0f} ms: {best}\n")
    return best


def measure(
    legs: int,
    seconds: float,
    kind: str,
    *,
    keepalive: str,
    loop: str,
    module: str = "bridge.bench.subject",
    generate: Callable[..., Generator] | None = None,
    begun: Callable[[], object] = lambda: None,
) -> Rung:
    """One rung. `begun` is called when the legs are up and what follows is measured."""
    allow_files(legs + 100)
    blocks = int((WARM_UP + seconds + 2) * 12.5) + 50
    shape = (legs, blocks)
    sent = np.zeros(shape)
    shared = NamedTemporaryFile(dir="/dev/shm")
    ready = np.memmap(shared.name, np.float64, "w+", shape=shape)
    sock = listen(Address("127.0.0.1", 0), "bench")
    cores = sorted(os.sched_getaffinity(0))
    subject = subprocess.Popen(
        [sys.executable, "-m", module, str(sock.fileno()), shared.name,
         str(legs), str(blocks), kind, keepalive, loop],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[sock.fileno()],
    )  # fmt: skip
    try:
        os.sched_setaffinity(subject.pid, cores[:1])
        os.sched_setaffinity(0, cores[1:] or cores)
        before = answer(subject)["rss"]
        generator = (generate or Generator)(legs, sock.getsockname(), sent)
        generator.run(WARM_UP)
        ask(subject, "zero")
        begun()
        first = generator.frames // 4
        lateness = generator.run(seconds)
        result = ask(subject, "read")
        generator.run(0.3)
        generator.close()
        window = slice(first + 1, first + int(seconds * 12.5) - 1)
        blocks_ready = np.asarray(ready)[:, window]
        return _rung(result, before, blocks_ready, blocks_ready - sent[:, window], lateness)
    finally:
        subject.kill()
        subject.wait()
        for pipe in (subject.stdin, subject.stdout):
            if pipe is not None:
                pipe.close()
        os.sched_setaffinity(0, cores)
        sock.close()
        shared.close()


def _rung(
    result: Mapping[str, float],
    before: float,
    ready: npt.NDArray[np.float64],
    waits: npt.NDArray[np.float64],
    lateness: Sequence[float],
) -> Rung:
    """`ready`: legs × blocks, 0 for those that were not in time; `before`: bytes without legs."""
    legs, valid = len(ready), ready > 0
    latency = waits[valid]
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
    """Real-time legs from a plain loop: a frame for 1/20 of the legs every millisecond."""

    def __init__(self, legs: int, address: tuple[str, int], sent: npt.NDArray[np.float64]) -> None:
        self.frames = 0  # per leg
        self._sent = sent
        self._socks: list[socket.socket] = []
        self._messages: list[bytes] = []
        for i in range(legs):
            sock = socket.create_connection(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socks.append(sock)
            self._greet(i, sock)
            sock.setblocking(False)

    def _greet(self, i: int, sock: socket.socket) -> None:
        """What a leg has to say before its first frame is due."""
        samples = np.full(160, i % 32000 + 1, "<i2").tobytes()
        self._messages.append(b"\x10\x01\x40" + samples)

    def _send_frame(self, i: int, frame: int) -> None:
        if frame == 0:  # not before: from its UUID on a leg's clock runs
            self._socks[i].send(b"\x01\x00\x10" + uuid.UUID(int=i + (4 << 76)).bytes)
        self._socks[i].send(self._messages[i])

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
            self.frames += 1
        return late

    def _send(self, bucket: int) -> None:
        socks, sent = self._socks, self._sent
        drain = self.frames % 10 == bucket % 10
        for i in range(bucket, len(socks), BUCKETS):
            # Calls begin at any time: a quarter of them ends a block in each frame.
            frame = self.frames - i // BUCKETS % 4
            if frame < 0:
                continue
            if frame % 4 == 3:
                sent[i, frame // 4] = time.monotonic()
            try:
                self._send_frame(i, frame)
                if drain:
                    socks[i].recv(65536)
            except BlockingIOError:
                pass

    def close(self) -> None:
        """Hang up all legs."""
        for sock in self._socks:
            sock.close()


def answer(subject: subprocess.Popen[str]) -> dict[str, float]:
    """What the measured process says next. Raises `BridgeError` if it is dead."""
    assert subject.stdout is not None
    line = subject.stdout.readline()
    if not line:
        raise BridgeError("the measured process died; its message is above")
    said: dict[str, float] = json.loads(line)
    return said


def ask(subject: subprocess.Popen[str], command: str) -> dict[str, float]:
    """Send a line; the answer."""
    assert subject.stdin is not None
    subject.stdin.write(command + "\n")
    subject.stdin.flush()
    return answer(subject)


def allow_files(n: int) -> None:
    """Raises `BridgeError` where the system allows fewer open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < n:
        raise BridgeError(f"{n} open files are needed, the limit is {hard}: ulimit -n {n}")
    if soft < n:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n, hard))
