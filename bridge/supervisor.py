"""`callscribe serve`: a small parent that holds the listeners while workers come and go.

SIGTERM and SIGINT go to the worker, which drains; SIGHUP starts a fresh worker and, when that is
ready, retires the old one, whose calls end in peace while new ones are taken by the fresh one. A
worker that dies is started again; connections wait in the kernel meanwhile, with all their audio.
If no worker is ready for `PATIENCE` seconds, the parent itself answers AudioSocket connections
with a hang-up (three zero bytes), so that dialplans go on. Once a worker has been ready, nothing
but a signal ends the parent: a refused connect would harm other calls.
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
from bridge.errors import BridgeError

log = logging.getLogger(__name__)

PATIENCE = 5.0  # s that connections wait for a worker
LINGER = 5.0  # s for a refused peer to close
GOODBYES = 500  # peers at once that are given the time to close
LOOK_EVERY = 0.25  # s between looks at who answers
RESTART_FIRST, RESTART_MOST = 0.2, 5.0  # s between a worker's death and the next one
STEADY = 30.0  # s of life after which a death is not part of a series
HANGUP = b"\x00\x00\x00"


class Worker:
    """One worker process. `ready` is set when it answers calls."""

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
    """The parent. `command`: what runs a worker; `sockets`: the listeners by name.

    At most one worker is `_worker`, whose turn it is, and one `_coming`, which is still loading
    and will be; all others are retired.
    """

    def __init__(self, command: Sequence[str], sockets: dict[str, socket.socket]) -> None:
        self._command = list(command)
        self._sockets = sockets
        self._worker: Worker | None = None
        self._coming: Worker | None = None
        self._workers: set[Worker] = set()  # that are alive
        self._stopping = asyncio.Event()
        self._renew = asyncio.Event()  # SIGHUP; however many, one fresh worker is the newest
        self._news = asyncio.Event()  # a worker has ended
        self._ever_ready = False
        self._answered = time.monotonic()  # when a worker was last there to answer
        self._refusing = False
        self._goodbyes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until told to stop; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._renew.set)
        self._start(self._watch())
        self._start(self._roll_over())
        try:
            return await self._keep_one()
        finally:
            await self._end()

    async def _keep_one(self) -> int:
        delay = RESTART_FIRST
        self._worker = await self._spawn()
        if self._worker is None:
            raise BridgeError("no worker process can be started; the line above says why")
        while True:
            worker, status = await self._death()
            if self._stopping.is_set():
                return 0 if status in (0, -signal.SIGTERM) else 1
            if self._coming is None and not self._ever_ready:
                return status if status > 0 else 1
            if time.monotonic() - worker.began > STEADY:
                delay = RESTART_FIRST
            log.error("the worker died (status %d), a new one in %.1f s", status, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return 0
            delay = min(RESTART_MOST, delay * 2)
            if self._coming is not None:
                self._worker, self._coming = self._coming, None
            elif self._worker is worker:
                self._worker = await self._spawn() or worker

    async def _death(self) -> tuple[Worker, int]:
        """The worker whose turn it is, once it is dead, and its status.

        It is not the one whose turn it was when the waiting began, if SIGHUP came meanwhile.
        """
        while True:
            worker = self._worker
            assert worker is not None
            if worker.process.returncode is not None:
                return worker, worker.process.returncode
            self._news.clear()
            await self._news.wait()

    async def _spawn(self) -> Worker | None:
        """Start a process. None, and a line in the log, when there cannot be one."""
        reader, writer = os.pipe()
        environment = {
            **os.environ,
            **listeners.environment(self._sockets),
            "CALLSCRIBE_READY_FD": str(writer),
            "CALLSCRIBE_PARENT": str(os.getpid()),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=environment,
                pass_fds=[writer, *(sock.fileno() for sock in self._sockets.values())],
                start_new_session=True,  # Ctrl-C reaches the parent only, who passes it on once
            )
        except OSError as e:  # no memory, too many processes
            os.close(reader)
            log.error("a worker process cannot be started: %s", e.strerror)
            return None
        finally:
            os.close(writer)
        worker = Worker(process)
        self._workers.add(worker)
        self._start(self._await_ready(worker, reader))
        self._start(self._await_end(worker))
        if self._stopping.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _await_ready(self, worker: Worker, reader: int) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb", 0)
        )
        try:
            said = await stream.readline()  # empty when the worker died first
        finally:
            transport.close()
        if said == b"ready\n":
            worker.ready = self._ever_ready = True
            self._refuse(False)
        worker.settled.set()

    async def _await_end(self, worker: Worker) -> None:
        await worker.process.wait()
        self._workers.discard(worker)
        self._news.set()

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
        while True:
            await self._renew.wait()
            self._renew.clear()
            if self._stopping.is_set() or self._worker is None or not self._worker.alive:
                continue  # a fresh one is coming anyway, or none should
            fresh = self._coming = await self._spawn()
            if fresh is None:
                continue
            await fresh.settled.wait()
            if self._coming is not fresh:
                continue  # the old one died meanwhile, and it is this one's turn already
            self._coming = None
            if not fresh.ready:
                log.error("the fresh worker failed; the old one stays")
                continue
            old, self._worker = self._worker, fresh
            log.info("worker %d takes over from %d", fresh.process.pid, old.process.pid)
            old.signal(signal.SIGUSR1)

    async def _end(self) -> None:
        """Answer for the retired workers, until their calls are over too."""
        self._stopping.set()
        self._refuse(bool(self._workers))
        while self._workers:
            self._news.clear()
            await self._news.wait()
        self._refuse(False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- nobody there --------------------------------------------------------------------------

    async def _watch(self) -> None:
        while not self._stopping.is_set():
            worker, now = self._worker, time.monotonic()
            if not self._ever_ready or (worker is not None and worker.alive and worker.ready):
                # The first one that loads for long refuses by itself.
                self._answered = now
                self._refuse(False)
            elif now - self._answered > PATIENCE and not self._refusing:
                log.error("no worker for %.0f s: calls are refused, dialplans go on", PATIENCE)
                self._refuse(True)
            await asyncio.sleep(LOOK_EVERY)

    def _refuse(self, on: bool) -> None:
        sock = self._sockets.get("audiosocket")
        if sock is None or on == self._refusing:
            return
        self._refusing = on
        loop = asyncio.get_running_loop()
        if on:
            sock.setblocking(False)
            loop.add_reader(sock.fileno(), self._refuse_one, sock)
        else:
            loop.remove_reader(sock.fileno())

    def _refuse_one(self, sock: socket.socket) -> None:
        try:
            peer, _ = sock.accept()
        except OSError:
            return
        if self._goodbyes >= GOODBYES:
            peer.close()
            return
        self._goodbyes += 1
        self._start(self._goodbye(peer))

    async def _goodbye(self, peer: socket.socket) -> None:
        """Hang-up, read to EOF, close: a close with unread data would be a reset."""
        loop = asyncio.get_running_loop()
        peer.setblocking(False)
        try:
            with peer, contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(LINGER):
                    await loop.sock_sendall(peer, HANGUP)
                    while await loop.sock_recv(peer, 65536):
                        pass
        finally:
            self._goodbyes -= 1


def serve(config: str | None, sockets: dict[str, socket.socket]) -> int:
    """Run workers behind these sockets until told to stop."""
    command = [sys.executable, "-m", "bridge", "worker"]
    if config is not None:
        command += ["-c", config]
    return asyncio.run(Supervisor(command, sockets).run())
