"""One lease of the embedded recogniser: a leg's queue, and the process that listens to it now.

    push ─→ queue (bounded, drops the oldest) ─→ socket ─→ kept ─→ answered and certain: forgotten
              ↑                                              │
              └──────── the process died or hung ────────────┘

Blocks stay in `_kept` until the words in them are certain. When a process dies, or is killed
because it answered nothing for `hang` seconds, they go back to the queue and a new process hears
them again; words that the leg was already told are left out. Audio that ends three processes
in a row is given up, with all that is in `_kept`, and counted as dropped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from bridge.engine import pocketsphinx_worker as worker
from bridge.types import Block, Heard, Word

log = logging.getLogger(__name__)

WINDOW = 12  # blocks sent and not answered: 1 s, which covers the end of an utterance
KEPT = round((worker.MAX_UTTERANCE + 2.0) / worker.BLOCK_SECONDS)  # blocks; more never wait
ATTEMPTS = 3  # to get past the same audio
_PACKETS_AT_ONCE = 16  # then the event loop has its turn


class Host(Protocol):
    """What a lease asks of its recogniser."""

    queue_blocks: int  # bound of queue 1
    hang: float  # seconds without an answer
    finish_deadline: float  # seconds from finish() to done, at most
    retry: float  # seconds before the first restart
    counters: Counter[str]

    def connect(self) -> socket.socket | None:
        """A socket to a process that is being forked, or None: try again later."""

    def free(self, lease: PocketsphinxLease) -> None:
        """The lease is over."""


def backoff(retry: float, failures: int) -> float:
    """Seconds before the next attempt: doubled each time, never more than 2."""
    return min(2.0, retry * 2.0 ** min(failures, 10))


class PocketsphinxLease:
    """A `Lease`: one leg, its queue, and the process that listens to it now."""

    def __init__(
        self,
        host: Host,
        heard: Callable[[Heard], None],
        done: Callable[[], None],
    ) -> None:
        self.dropped = 0
        self._host, self._heard, self._done = host, heard, done
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[int, bytes]] = deque()  # index and int16 samples
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._replay = 0  # blocks at the head of the queue that were sent before
        self._count = 0  # blocks pushed
        self._waiting = 0  # packets that are not answered
        self._finished: float | None = None  # when finish() was called
        self._end_sent = False
        self._over = False
        self._failures = 0  # without getting further than ever
        self._furthest = 0.0  # seconds listened to
        self._certain = 0.0  # seconds: the end of the last word that is certain
        self._tentative: tuple[Word, ...] = ()
        self._retry: asyncio.TimerHandle | None = None
        self._sock: socket.socket | None = None
        self.pid = 0  # of the process that listens now; 0: not known yet
        self._answered = self._loop.time()
        self._connect()

    def push(self, block: Block) -> None:
        if self._finished is not None or self._over:
            return
        samples = np.clip(block * 32768.0, -32768, 32767).astype("<i2")
        self._queue.append((self._count, samples.tobytes()))
        self._count += 1
        self._pump()
        if len(self._queue) - self._replay > self._host.queue_blocks:
            del self._queue[self._replay]
            self.dropped += 1

    def flush(self) -> None:
        """Nothing is held back: it tells of a pause together with the words before it."""

    def finish(self) -> None:
        if self._finished is None and not self._over:
            self._finished = self._loop.time()
            self._pump()

    def evict(self) -> None:
        if self._over:
            return
        self._over = True
        self._disconnect()
        if self._retry:
            self._retry.cancel()
        self._queue.clear()
        self._kept.clear()
        self._host.free(self)

    def check(self, now: float) -> None:
        """Replace a process that hangs; end a hang-up that takes too long."""
        if self._finished is not None and now - self._finished > self._host.finish_deadline:
            self.dropped += len(self._queue)
            self._complete()
        elif self._sock and self._waiting and now - self._answered > self._host.hang:
            self._lost("hung")

    # -- the process ------------------------------------------------------------------------

    def _connect(self) -> None:
        self._retry = None
        self._sock = self._host.connect()
        if self._sock is None:
            self._connect_later()
            return
        self._answered = self._loop.time()
        self._loop.add_reader(self._sock, self._on_readable)
        self._pump()

    def _connect_later(self) -> None:
        self._retry = self._loop.call_later(
            backoff(self._host.retry, self._failures), self._connect
        )

    def _disconnect(self) -> None:
        """End the process. Closing its socket would do, were it not busy or stopped."""
        if self._sock is None:
            return
        self._loop.remove_reader(self._sock)
        self._sock.close()
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._sock, self.pid, self._waiting, self._end_sent = None, 0, 0, False

    def _lost(self, reason: str) -> None:
        log.warning("a pocketsphinx process %s; its leg goes on in another", reason)
        self._disconnect()
        self._host.counters[reason] += 1
        self._failures += 1
        if self._failures % ATTEMPTS == 0:
            log.error("the same audio ended %d pocketsphinx processes: it is dropped", ATTEMPTS)
            self.dropped += len(self._kept)
        else:
            self._queue.extendleft(reversed(self._kept))
            self._replay += len(self._kept)
        self._kept.clear()
        self._connect_later()

    def _pump(self) -> None:
        """Send what the process may have. Never blocks, never calls back."""
        while self._sock and self._queue and self._waiting < WINDOW:
            index, pcm = self._queue[0]
            if not self._send(worker.AUDIO, index, pcm):
                return
            self._kept.append(self._queue.popleft())
            self._replay = max(0, self._replay - 1)
        if self._sock and self._finished is not None and not (self._queue or self._end_sent):
            self._end_sent = self._send(worker.END, self._count)

    def _send(self, kind: int, index: int, pcm: bytes = b"") -> bool:
        assert self._sock is not None
        try:
            self._sock.send(worker.HEADER.pack(kind, index) + pcm)
        except OSError:  # full: the next answer pumps again; broken: the reader will see it
            return False
        if not self._waiting:
            self._answered = self._loop.time()  # it has had nothing to answer until now
        self._waiting += 1
        return True

    # -- its answers ------------------------------------------------------------------------

    def _on_readable(self) -> None:
        sock = self._sock
        for _ in range(_PACKETS_AT_ONCE):
            if sock is None or self._sock is not sock:  # a callback evicted us
                return
            try:
                packet = sock.recv(worker.PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lost("died")
                return
            self._answer(json.loads(packet))

    def _answer(self, message: dict[str, Any]) -> None:
        self._answered = self._loop.time()
        if "pid" in message:
            self.pid = message["pid"]
            return
        self._waiting -= 1
        while self._kept and (self._kept[0][0] + 1) * worker.BLOCK_SECONDS <= message["keep"]:
            self._kept.popleft()
        self._pump()
        behind = message["at"] < self._furthest
        heard = self._understand(message)
        if "done" in message:
            self._complete(heard)
        elif heard.words or not behind:  # a replay's guesses are older than what the leg knows
            self._heard(heard)

    def _understand(self, message: dict[str, Any]) -> Heard:
        at = float(message["at"])
        if at > self._furthest:
            self._furthest, self._failures = at, 0
        words = self._new_words(message.get("words", ()))
        if words:
            self._certain = words[-1].end
        if "tentative" in message:
            self._tentative = self._new_words(message["tentative"])
        return Heard(words, self._tentative, float(message["pause"]), self._furthest)

    def _new_words(self, rows: Sequence[Sequence[Any]]) -> tuple[Word, ...]:
        """Words that end after the last certain one: a replay may begin inside that one."""
        words = (Word(str(t), float(s), float(e), float(c)) for t, s, e, c in rows)
        return tuple(word for word in words if (word.start + word.end) / 2 > self._certain)

    def _complete(self, heard: Heard | None = None) -> None:
        """The last words; then, unless hearing them evicted us, the slot is free, and done."""
        try:
            if heard:
                self._heard(heard)
        finally:
            if not self._over:
                self.evict()
                self._done()
