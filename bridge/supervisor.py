"""`callscribe serve`: a small parent that holds the listeners while workers come and go.

SIGTERM and SIGINT go to the worker, which drains; SIGHUP starts a fresh worker and, when that is
ready, retires the old one, whose calls end in peace while new ones are taken by the fresh one. A
worker that dies is started again; connections wait in the kernel meanwhile, with all their audio.
If there is no worker for `PATIENCE` seconds, the parent itself answers AudioSocket connections
with a hang-up (three zero bytes), so that dialplans go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence

from bridge import listeners

log = logging.getLogger(__name__)

PATIENCE = 5.0  # s that connections wait for a worker
LINGER = 5.0  # s for a refused peer to close
RESTART_FIRST, RESTART_MOST = 0.2, 5.0  # s between a worker's death and the next one
STEADY = 30.0  # s of life after which a death is not part of a series
HANGUP = b"\x00\x00\x00"
EXIT_CONFIG = 2


class Worker:
    """One worker process. `ready` is set when it answers calls, `over` when it cannot any more."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.began = time.monotonic()
        self.ready = False
        self.settled = asyncio.Event()  # ready, or dead before that

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    @property
    def alive(self) -> bool:
        """The process runs."""
        return self.process.returncode is None


class Supervisor:
    """The parent. `command`: what runs a worker; `sockets`: the listeners by name."""

    def __init__(self, command: Sequence[str], sockets: dict[str, socket.socket]) -> None:
        self._command = list(command)
        self._sockets = sockets
        self._worker: Worker | None = None  # whose turn it is
        self._workers: set[Worker] = set()  # all, the retired and the coming ones too
        self._stopping = asyncio.Event()
        self._ever_ready = False
        self._answered = time.monotonic()  # when a worker was last there to answer
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until told to stop; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._start(self._roll_over()))
        self._start(self._watch())
        try:
            return await self._keep_one()
        finally:
            self._refuse(False)
            for worker in self._workers:
                await worker.process.wait()
            for task in self._tasks:
                task.cancel()

    async def _keep_one(self) -> int:
        delay = RESTART_FIRST
        while True:
            worker = self._worker = await self._spawn()
            status = await worker.process.wait()
            while self._worker is not worker:  # it had been retired: its successor counts now
                worker = self._worker
                status = await worker.process.wait()
            if self._stopping.is_set():
                return 0 if status in (0, -signal.SIGTERM) else 1
            if status == EXIT_CONFIG or not self._ever_ready:
                return status if status > 0 else 1
            if time.monotonic() - worker.began > STEADY:
                delay = RESTART_FIRST
            log.error("the worker died (status %d), a new one in %.1f s", status, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return 0
            delay = min(RESTART_MOST, delay * 2)

    async def _spawn(self) -> Worker:
        reader, writer = os.pipe()
        environment = {
            **os.environ,
            **listeners.environment(self._sockets),
            "CALLSCRIBE_READY_FD": str(writer),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=environment,
                pass_fds=[writer, *(sock.fileno() for sock in self._sockets.values())],
                start_new_session=True,  # Ctrl-C reaches the parent only, who passes it on once
            )
        finally:
            os.close(writer)
        worker = Worker(process)
        self._workers.add(worker)
        self._start(self._await_ready(worker, reader))
        if self._stopping.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _await_ready(self, worker: Worker, reader: int) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb", 0)
        )
        said = await stream.readline()  # empty when the worker died first
        transport.close()
        if said == b"ready\n":
            worker.ready = self._ever_ready = True
        worker.settled.set()

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- signals -------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._stopping.set()
        for worker in self._workers:
            worker.signal(signal.SIGTERM)

    async def _roll_over(self) -> None:
        """SIGHUP: a fresh worker first, then the old one goes."""
        old = self._worker
        if old is None or self._stopping.is_set():
            return
        fresh = await self._spawn()
        await fresh.settled.wait()
        if not fresh.ready:
            log.error("the fresh worker failed; the old one stays")
            return
        self._worker = fresh
        log.info("worker %d takes over from %d", fresh.process.pid, old.process.pid)
        old.signal(signal.SIGUSR1)

    # -- nobody there --------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            self._workers = {worker for worker in self._workers if worker.alive}
            if self._workers:
                # A worker that is still loading refuses by itself when that takes long.
                self._answered = time.monotonic()
                self._refuse(False)
            elif time.monotonic() - self._answered > PATIENCE and not self._stopping.is_set():
                self._refuse(True)

    def _refuse(self, on: bool) -> None:
        sock = self._sockets.get("audiosocket")
        if sock is None or on == self._refusing:
            return
        self._refusing = on
        loop = asyncio.get_running_loop()
        if on:
            log.error("no worker for %.0f s: calls are refused, dialplans go on", PATIENCE)
            sock.setblocking(False)
            loop.add_reader(sock.fileno(), self._refuse_one, sock)
        else:
            loop.remove_reader(sock.fileno())

    def _refuse_one(self, sock: socket.socket) -> None:
        try:
            peer, _ = sock.accept()
        except OSError:
            return
        self._start(_goodbye(peer))


async def _goodbye(peer: socket.socket) -> None:
    """Hang-up, read to EOF, close: a close with unread data would be a reset."""
    loop = asyncio.get_running_loop()
    peer.setblocking(False)
    with peer, contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER):
            await loop.sock_sendall(peer, HANGUP)
            while await loop.sock_recv(peer, 65536):
                pass


def serve(config: str | None, sockets: dict[str, socket.socket]) -> int:
    """Run workers behind these sockets until told to stop."""
    command = [sys.executable, "-m", "bridge", "worker"]
    if config is not None:
        command += ["-c", config]
    return asyncio.run(Supervisor(command, sockets).run())
