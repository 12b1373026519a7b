"""A network that does what networks do to packets, in virtual time and by a seed.

`Network.deliver` turns the times at which packets are sent into the order and the times in which
they come; `play` runs a jitter buffer on them. Nothing sleeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.audio.g711 import decode_ulaw
from bridge.audio.jitter import JitterBuffer
from bridge.types import Frame

Bools = npt.NDArray[np.bool_]

TICKS = 160  # a packet of 20 ms
COUNT = 1500  # packets, 30 s


def numbered(samples: int) -> bytes:
    """mu-law of which any three bytes from a multiple of three on are the index of the first."""
    index = np.arange(samples)
    return (index // 3 >> 7 * (index % 3) & 127).astype(np.uint8).tobytes()


def cut(stream: bytes, size: int = TICKS) -> list[bytes]:
    """Payloads of that many bytes."""
    return [stream[at : at + size] for at in range(0, len(stream), size)]


PAYLOADS = cut(numbered(COUNT * TICKS))
SENT = decode_ulaw(b"".join(PAYLOADS))
"""int16: what the payloads sound like."""


@dataclass(frozen=True, slots=True)
class Network:
    """What happens on the way. Shares are in 0 … 1, times in seconds.

    loss, burst: share lost, and how many in a row on average (Gilbert); 1 is independent losses.
    jitter: every packet is late by 0 … jitter, each for itself, so that they overtake each other.
    reorder: share that is held back until up to three later ones have come.
    duplicate: share that comes twice, the second time up to 50 ms later.
    freezes: (from, for): nothing comes for so long, then all of it at once.
    drift: how many parts per million faster than ours the sender's clock is.
    """

    loss: float = 0.0
    burst: float = 1.0
    jitter: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    freezes: tuple[tuple[float, float], ...] = ()
    drift: float = 0.0
    delay: float = 0.03

    def deliver(self, count: int, ptime: float, seed: int) -> list[tuple[float, int]]:
        """(when it comes, its index), in the order of arrival, for packets every `ptime`."""
        rng = np.random.default_rng(seed)
        sent = np.arange(count) * ptime / (1.0 + self.drift * 1e-6)
        came = sent + self.delay + rng.uniform(0.0, self.jitter, count)
        held_back = rng.random(count) < self.reorder
        came += held_back * rng.uniform(1.0, 3.5, count) * ptime
        twice = np.flatnonzero(rng.random(count) < self.duplicate)
        indices = np.append(np.arange(count), twice)
        came = np.append(came, came[twice] + rng.uniform(0.0, 0.05, len(twice)))
        lost = np.append(self.losses(count, rng), np.zeros(len(twice), bool))
        lost[count:] = lost[twice]  # both copies
        came, indices = came[~lost], indices[~lost]
        for begin, seconds in self.freezes:
            frozen = (came >= begin) & (came < begin + seconds)
            came[frozen] = begin + seconds + (came[frozen] - begin) * 1e-4  # in order still
        order = np.argsort(came, kind="stable")
        return list(zip(came[order].tolist(), indices[order].tolist(), strict=True))

    def losses(self, count: int, rng: np.random.Generator) -> Bools:
        """bool[count]: which are lost."""
        if self.burst <= 1.0 or not self.loss:
            return rng.random(count) < self.loss
        good = self.burst * (1.0 - self.loss) / self.loss  # packets between bursts, on average
        runs = rng.geometric([1.0 / max(good, 1.0), 1.0 / self.burst], (count, 2)).ravel()
        lost: Bools = np.repeat(np.arange(2 * count) % 2 == 1, runs)[:count]
        return lost


def play(
    buffer: JitterBuffer,
    payloads: Sequence[bytes],
    arrivals: Sequence[tuple[float, int]],
    *,
    ticks: int = 160,
    seq: int = 0,
    timestamp: int = 0,
) -> Iterator[Frame]:
    """Put packets as they arrive, pull after each and at each deadline; flush."""
    put, pull = buffer.put, buffer.pull
    for now, index in arrivals:
        deadline = buffer.deadline()
        while deadline is not None and deadline <= now:
            yield from pull(deadline)
            deadline = buffer.deadline()
        put(seq + index, timestamp + index * ticks, payloads[index], now)
        yield from pull(now)
    yield from buffer.flush()
