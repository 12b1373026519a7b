"""A model of rows in a process of its own. The host's side; `process_child` is what it runs.

A CUDA error stays in the process that had it, a step that hangs cannot be interrupted, and what
importing torch and loading a model do to the GIL would stop the event loop. So: a process, which
is killed and started afresh. The arrays of a step lie in memory that both have mapped; a step is
one byte there and one byte back.

A thread per process starts it and waits for it. Linux sends the parent-death signal when the
*thread* that started a process ends (prctl(2)), and an executor's thread may end long before its
process should; this one lives exactly as long. It reaps at once, so there are no zombies; it alone
reaps and closes, so nobody signals a process or uses a file descriptor that has become another's.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bridge.engine import process_child as child
from bridge.engine.rows import ModelFacts, RowArrays, arrays, size_of
from bridge.errors import BridgeError, EngineUnavailable

log = logging.getLogger(__name__)

GRACE = 1.0  # s that a process which was asked to end is given
DYING = 5.0  # s that the kernel is given to take a process down
MAX_SHARED = 1 << 30  # bytes; 130,000 slots. A memfd has no other limit than the machine's memory


class StepFailed(BridgeError):
    """A step failed and the model is lost: costs the engine a restart, and no call its end."""


class ProcessRows:
    """A `RowModel` whose model runs in another process. Blocking; made and stepped on one thread.

    `target` names a ``function(options, progress)`` that makes the model there (`process_child`);
    `options` must survive JSON. Times in seconds: `load_timeout` is the longest silence between
    two lines of progress, `step_timeout` the longest step. `progress` is called with each line on
    the thread that makes us; the default logs it. `blas_threads`: OPENBLAS_NUM_THREADS there,
    which is not passed on from here. Raises `EngineUnavailable`.
    """

    def __init__(
        self,
        target: str,
        options: dict[str, Any],
        *,
        load_timeout: float,
        step_timeout: float,
        name: str,
        progress: child.Progress | None = None,
        blas_threads: int | None = None,
    ) -> None:
        if platform.system() != "Linux":
            raise EngineUnavailable("an engine in a process of its own needs Linux")
        start = json.dumps({"target": target, "options": options, "path": sys.path}).encode()
        self.name = name
        self._step_timeout = step_timeout
        self._lost = ""  # why there is no model any more
        self._closing = threading.Lock()
        try:
            self._process = _Process(name, _environment(blas_threads))
            progress = progress or partial(log.info, "%s: %s", name)
            hear = partial(_hear, self._process, load_timeout, progress)
            try:
                self._process.send(start)
                self.facts = _checked(hear("facts"))
                self.arrays = self._share()  # after close(): no rows
                hear("mapped")
            except BaseException:
                self._process.kill()
                self._process.join()
                raise
        except OSError as e:
            raise EngineUnavailable(f"the engine's process cannot be had: {e.strerror or e}") from e
        # Should nobody close us (a cancelled start): it holds the device's memory.
        self._dropped = weakref.finalize(self, self._process.kill)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def step(self, rows: RowArrays) -> None:
        """One step with `self.arrays`. Raises `StepFailed`; only close() makes sense after that."""
        assert rows is self.arrays or self._lost, "a step takes the shared arrays"
        if not self._lost:
            self._process.send(child.STEP)
            answer = self._process.receive(self._step_timeout)
            if answer == child.DONE:
                return
            if not self._lost:  # else close() was called meanwhile, and explains it
                self._lost = self._why(answer)
        raise StepFailed(self._lost)

    def close(self) -> None:
        """End the process. Idempotent; from any thread, and then a step under way fails at once.

        The memory is unmapped when nobody holds its arrays any more.
        """
        with self._closing:
            self._lost = self._lost or "the engine is closed"
            self._process.close()
            self._dropped.detach()
            self.arrays = arrays(0, self.facts.block, self.facts.heads)

    def _why(self, answer: bytes | None) -> str:
        match answer:
            case None:
                self._process.kill()
                seconds = f"{self._step_timeout:g} s"
                return f"the engine's process did not come back within {seconds} and was ended"
            case b"":
                return f"the engine's process ended: {self._process.end()}"
            case said:
                return f"the engine's step failed: {child.sentence(said.decode(errors='replace'))}"

    def _share(self) -> RowArrays:
        shape = self.facts.slots, self.facts.block, self.facts.heads
        fd = os.memfd_create(f"callscribe {self.name}")
        try:
            # Now, or a lack of memory would be a SIGBUS in the middle of a step.
            os.posix_fallocate(fd, 0, size_of(*shape))
            memory = mmap.mmap(fd, 0)
            self._process.send(child.MEMORY, fd)
        finally:
            os.close(fd)
        return arrays(*shape, memoryview(memory))


class _Process:
    """A process, one end of its socket, and the thread that starts it and waits for it."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._transfer = threading.Lock()  # held while the socket is used
        self._ending = threading.RLock()  # re-entered when a collection of garbage kills
        self._status: int | None = None  # negative: minus the signal; None: not reaped
        started: Future[int] = Future()
        command = [sys.executable, "-P", "-u", "-m", child.__name__]
        command += [str(theirs.fileno()), str(os.getpid()), name]  # the name is for ps(1)
        self._thread = threading.Thread(
            target=self._run,
            args=(command, theirs.fileno(), environment, started),
            name=f"{name} process",
            daemon=True,
        )
        try:
            with theirs:
                self._thread.start()
                self.pid = started.result()
        except BaseException:
            self._sock.close()
            raise

    def send(self, packet: bytes, fd: int | None = None) -> None:
        """Never blocks: there is one packet under way at most. An end is for `receive` to see."""
        with self._transfer, suppress(ConnectionError):
            if self._sock.fileno() < 0:
                return
            if fd is None:
                self._sock.send(packet)
            else:
                socket.send_fds(self._sock, [packet], [fd])

    def receive(self, seconds: float) -> bytes | None:
        """A packet, or an empty one when the process has ended, or None when time is up."""
        with self._transfer:
            if self._sock.fileno() < 0:
                return b""
            if not self._poll.poll(seconds * 1000):
                return None
            with suppress(ConnectionError):
                return self._sock.recv(child.PACKET)
            return b""

    def kill(self) -> None:
        """The process and whatever it has started. Does not wait."""
        with self._ending:
            if self._status is None:
                os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> str:
        """How it ended, in words, when it has closed its socket."""
        if not self.join():
            self.kill()
            self.join()
        if self._status is None:
            return "it was killed and has not gone yet"
        if self._status < 0:
            return f"killed by signal {-self._status}"
        return f"exit status {self._status}"

    def close(self) -> None:
        """Ask it to end, then make it end."""
        with self._ending:
            self._hang_up()
        if not self.join(GRACE):
            self.kill()
            if not self.join():
                log.error("process %d was killed and has not gone yet", self.pid)

    def join(self, seconds: float = DYING) -> bool:
        """Wait until it has ended. False: it has not."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(
        self, command: Sequence[str], fd: int, environment: dict[str, str], started: Future[int]
    ) -> None:
        """The thread, from the start of the process to its end."""
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=2,  # stderr, where progress bars and warnings belong
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us only
            )
        except BaseException as e:
            started.set_exception(e)
            return
        started.set_result(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._ending:
            os.killpg(process.pid, signal.SIGKILL)  # what it started; until we reap, the number
            self._status = process.wait()  # is nobody else's
            self._hang_up()  # wakes `receive`, should somebody else hold their end
        with self._transfer, self._ending:
            self._sock.close()

    def _hang_up(self) -> None:
        with suppress(OSError):  # it has been closed
            self._sock.shutdown(socket.SHUT_RDWR)


def _hear(process: _Process, seconds: float, progress: child.Progress, key: str) -> Any:
    """What a process that loads says under `key` when it has got so far."""
    while True:
        packet = process.receive(seconds)
        if packet is None:
            raise EngineUnavailable(
                f"the engine said nothing for {seconds:g} s while it loaded, and was ended"
            )
        if not packet:
            raise EngineUnavailable(f"the engine's process ended while it loaded: {process.end()}")
        message = json.loads(packet)
        if "error" in message:
            raise EngineUnavailable(child.sentence(message["error"]))
        if key in message:
            return message[key]
        progress(child.sentence(message["progress"]))


def _checked(said: dict[str, Any]) -> ModelFacts:
    facts = ModelFacts(**{**said, "languages": tuple(said["languages"])})
    shape = facts.slots, facts.block, facts.heads
    if min(facts.slots, facts.block, facts.heads + 1) < 1 or size_of(*shape) > MAX_SHARED:
        raise EngineUnavailable(
            f"the engine's model cannot be: {facts.slots} slots, blocks of {facts.block} samples, "
            f"{facts.heads} heads"
        )
    return facts


def _environment(blas_threads: int | None) -> dict[str, str]:
    """Ours, with this package wherever it was imported from."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("OPENBLAS_NUM_THREADS", None)  # ours is for an event loop
    if blas_threads is not None:
        environment["OPENBLAS_NUM_THREADS"] = str(blas_threads)
    return environment
