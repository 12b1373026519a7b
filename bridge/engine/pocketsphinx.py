"""The embedded recogniser: pocketsphinx, one process per lease. The event loop's side.

pocketsphinx holds the GIL while it decodes, so it runs in processes of its own (see
`pocketsphinx_worker`, which also describes the packets). One *loader* process reads the model;
each lease gets a *decoder* process forked from it, and a socket to it. Blocks go down and answers
come back on it (see `pocketsphinx_lease`). A fork per lease costs 4 ms and 25 MB; one per slot
that loads its own model would cost 400 ms and 110 MB, and a reset between two legs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bridge.config import EngineSettings
from bridge.engine import pocketsphinx_worker as worker
from bridge.engine.pocketsphinx_lease import PocketsphinxLease, backoff
from bridge.errors import Busy, EngineUnavailable
from bridge.interfaces import Upsampling
from bridge.types import Heard

log = logging.getLogger(__name__)

LEGS_PER_CORE = 3  # one that speaks takes 0.25 of a core; all of them at once leave a quarter
HANG = 10.0  # seconds without an answer
LOAD_DEADLINE = 60.0  # seconds
FINISH_MARGIN = 20.0  # seconds beyond the queue's length that a hang-up may take
ATTEMPTS = 3  # to load


def make(settings: EngineSettings) -> Pocketsphinx:
    """What `config.ENGINE_KINDS` names."""
    slots = settings.slots
    count = slots if slots != "auto" else LEGS_PER_CORE * len(os.sched_getaffinity(0))
    return Pocketsphinx(count, settings.queue_seconds)


class Pocketsphinx:
    """A `Recogniser`. `ready` once the model is loaded: every slot is then a fork (4 ms) away.

    `counters`: processes that were replaced: ``loader``, ``died``, ``hung``. `progress` is
    called with (slots ready, slots).
    """

    name = "pocketsphinx"
    rate = worker.RATE
    block = worker.BLOCK
    upsampling: Upsampling = "repeat"
    settle = 0.48  # its endpointer wants 0.3 s of silence

    def __init__(
        self,
        slots: int,
        queue_seconds: float,
        *,
        hang: float = HANG,
        retry: float = 0.05,
        command: Sequence[str] = (sys.executable, "-P", "-m", worker.__name__),
    ) -> None:
        """`retry`: seconds before the first restart, doubled for each further one."""
        self.slots = slots
        self.queue_blocks = max(1, int(queue_seconds / worker.BLOCK_SECONDS))
        self.finish_deadline = queue_seconds + FINISH_MARGIN
        self.hang, self.retry = hang, retry
        self.counters: Counter[str] = Counter()
        self.on_step: Callable[[float, int], None] = lambda seconds, legs: None  # it has none
        self.progress: Callable[[int, int], None] | None = None
        self._command = command
        self._leases: set[PocketsphinxLease] = set()
        self._loader: _Loader | None = None
        self._ready = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def used(self) -> int:
        return len(self._leases)

    @property
    def ready(self) -> bool:
        return self._ready

    def language(self, text: str) -> str:
        """That of its model."""
        return "en"

    async def start(self) -> None:
        """Load the model. Raises `EngineUnavailable` after three attempts."""
        if platform.system() != "Linux":
            raise EngineUnavailable("the pocketsphinx engine needs Linux; choose another engine")
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tell_progress(0)
        self._tasks = [asyncio.create_task(self._load(loaded)), asyncio.create_task(self._watch())]
        try:
            await loaded
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Evict every lease and end every process."""
        for lease in list(self._leases):
            lease.evict()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> PocketsphinxLease:
        if not self._ready:
            raise Busy("not ready", "the recogniser is not loaded")
        if self.used >= self.slots:
            raise Busy(text=f"all {self.slots} slots of the recogniser are in use")
        lease = PocketsphinxLease(self, heard, done)
        self._leases.add(lease)
        return lease

    def free(self, lease: PocketsphinxLease) -> None:
        """The lease is over."""
        self._leases.discard(lease)

    def connect(self) -> socket.socket | None:
        """A socket to a decoder process that is being forked, or None: try again later."""
        return self._loader.connect() if self._loader and self._ready else None

    async def _load(self, loaded: asyncio.Future[None]) -> None:
        """Keep a loader running; tell `loaded` about the first."""
        failures = 0
        while True:
            loader = None
            try:
                self._loader = loader = _Loader(self._command)
                await asyncio.wait_for(loader.ready, LOAD_DEADLINE)
                failures, self._ready = 0, True
                self._tell_progress(self.slots)
                if not loaded.done():
                    loaded.set_result(None)
                await loader.ended
                log.error("the pocketsphinx loader process has ended; starting it again")
            except (EngineUnavailable, OSError) as e:  # OSError: also a timeout, or no process
                reason = str(e) or f"it did not load its model in {LOAD_DEADLINE:g} s"
                failures += 1
                log.error("the pocketsphinx engine cannot load: %s", reason)
                if failures >= ATTEMPTS and not loaded.done():
                    loaded.set_exception(EngineUnavailable(reason))
                    return
            finally:
                self._loader, self._ready = None, False
                if loader:
                    loader.close()
            self.counters["loader"] += 1
            await asyncio.sleep(backoff(self.retry, failures))

    async def _watch(self) -> None:
        """Look after leases whose process says nothing. One timer for all of them."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.hang / 4)
            for lease in list(self._leases):
                try:
                    lease.check(loop.time())
                except Exception:  # a leg's callback failed: that must not cost the others theirs
                    log.exception("a leg failed when its hang-up was told to it")

    def _tell_progress(self, ready: int) -> None:
        if self.progress:
            self.progress(ready, self.slots)


class _Loader:
    """The loader process and its control socket."""

    def __init__(self, command: Sequence[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            try:
                self._process = _spawn(command, theirs.fileno())
            except OSError:
                self._control.close()
                raise
        self._loop.add_reader(self._control, self._on_readable)

    def connect(self) -> socket.socket | None:
        """One end of a socket pair whose other end is on its way to a new process."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:  # no file descriptor is free
            return None
        ours.setblocking(False)
        with theirs:
            try:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            except OSError:  # it is ending, or a great many wait for it
                ours.close()
                return None
        return ours

    def close(self) -> None:
        """End the process, and with it its decoders."""
        self._loop.remove_reader(self._control)
        self._control.close()
        self._process.kill()
        self._process.wait()  # a killed process is gone in a millisecond
        for future in (self.ready, self.ended):
            future.cancel()

    def _on_readable(self) -> None:
        try:
            packet = self._control.recv(worker.PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet and not self.ready.done():
            self._started(json.loads(packet))
        elif not packet:
            self._loop.remove_reader(self._control)
            self._lost()

    def _started(self, message: dict[str, Any]) -> None:
        if error := message.get("error"):
            self.ready.set_exception(
                EngineUnavailable(
                    f"pocketsphinx cannot be loaded ({error}); install it with "
                    "'pip install pocketsphinx', or choose another engine"
                )
            )
        else:
            self.ready.set_result(None)

    def _lost(self) -> None:
        if not self.ready.done():
            text = "the pocketsphinx process ended while it loaded its model; is there memory?"
            self.ready.set_exception(EngineUnavailable(text))
        elif not self.ended.done():
            self.ended.set_result(None)


def _spawn(command: Sequence[str], fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, str(fd), str(os.getpid())],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """One thread per process, and this package, wherever it was imported from."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
