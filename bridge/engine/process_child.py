"""What the engine's process runs: one model of rows behind one socket. `process` is its host.

A packet each (SOCK_SEQPACKET keeps them apart), in this order:

    host                                         child
    {"target", "options", "path"}       ──→
                                        ←──      {"progress"}, any number, while the model loads
                                        ←──      {"facts"}, or {"error"} and exit 3
    MEMORY, with a memfd (SCM_RIGHTS)   ──→
                                        ←──      {"mapped"}, or {"error"} and exit 3
    STEP                                ──→      step(arrays)
                                        ←──      DONE, or a sentence and exit 70
    end of file                         ──→      close(), exit 0

`target` is ``module:function``, called as ``function(options, progress)``, which gives a
`RowModel`; `progress` takes a line of text, from any thread, and does nothing after the load.
What the model takes and gives lies in the shared memory (`rows`), never in a packet.

SIGINT is the host's business. The process is killed with the thread that started it: a hung step
sees no end of file. Needs Linux.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import mmap
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NoReturn, cast

from bridge.engine.rows import RowArrays, RowModel, arrays
from bridge.errors import EngineUnavailable

MEMORY, STEP, DONE = b"m", b"s", b"\0"
PACKET = 65536  # bytes: the largest packet either way
MAX_SENTENCE = 500  # characters
EXIT_LOAD = 3  # as the bridge's own, when the engine cannot be had
EXIT_STEP = 70  # EX_SOFTWARE, sysexits.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Progress = Callable[[str], None]
Make = Callable[[dict[str, Any], Progress], RowModel]


def sentence(text: str) -> str:
    """One line of printable characters: a library's message is neither short nor clean."""
    text = "".join(c if c.isprintable() else " " for c in text[: 8 * MAX_SENTENCE])
    return " ".join(text.split())[:MAX_SENTENCE].rstrip()


def why(error: Exception) -> str:
    """A sentence about an exception: ours is one already."""
    if isinstance(error, EngineUnavailable):
        return sentence(str(error))
    return sentence(f"{type(error).__name__}: {error}").removesuffix(":")


def _send(sock: socket.socket, packet: bytes) -> None:
    with suppress(ConnectionError):  # the host is gone: the next `_receive` says so
        sock.send(packet)


def _receive(sock: socket.socket) -> bytes:
    """A packet, or nothing when the host is gone."""
    with suppress(ConnectionError):
        return sock.recv(PACKET)
    return b""


def _tell(sock: socket.socket, **message: object) -> None:
    _send(sock, json.dumps(message).encode())


class _Progress:
    """Lines to the host. A thread that loads may still speak when the model is loaded."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._over = False

    def __call__(self, line: str) -> None:
        with self._lock:
            if not self._over:
                _tell(self._sock, progress=sentence(line))

    def end(self) -> None:
        """From here on the socket belongs to the steps."""
        with self._lock:
            self._over = True


def _function(target: str) -> Make:
    module, _, name = target.partition(":")
    try:
        return cast(Make, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as e:
        raise EngineUnavailable(f"{target!r} cannot be imported: {e}") from e


def _load(sock: socket.socket, start: dict[str, Any]) -> tuple[RowModel, RowArrays]:
    progress = _Progress(sock)
    sys.path[:] = start["path"]
    try:
        model = _function(start["target"])(start["options"], progress)
    finally:
        progress.end()
    _tell(sock, facts=asdict(model.facts))
    rows = _mapped(sock, model)
    gc.collect()
    gc.freeze()  # a collection in a step need not look through all of torch
    _tell(sock, mapped=True)
    return model, rows


def _mapped(sock: socket.socket, model: RowModel) -> RowArrays:
    _, fds, _, _ = socket.recv_fds(sock, len(MEMORY), 1)
    if not fds:  # the host did not like the facts
        _leave(0)
    memory = mmap.mmap(fds[0], 0)
    os.close(fds[0])
    facts = model.facts
    return arrays(facts.slots, facts.block, facts.heads, memoryview(memory))


def _serve(sock: socket.socket, model: RowModel, rows: RowArrays) -> int:
    while _receive(sock):
        try:
            model.step(rows)
        except Exception as e:  # whatever it was, the model's state is anybody's guess
            traceback.print_exc()
            _send(sock, why(e).encode())
            return EXIT_STEP
        _send(sock, DONE)
    model.close()
    return 0


def main(sock: socket.socket, parent: int) -> int:
    """Load a model and step it until the host closes its end. The exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with(parent)
    start = _receive(sock)
    if not start:
        return 0
    try:
        model, rows = _load(sock, json.loads(start))
    except Exception as e:
        if not isinstance(e, EngineUnavailable):  # which says all there is to say
            traceback.print_exc()
        _tell(sock, error=why(e))
        return EXIT_LOAD
    return _serve(sock, model, rows)


def end_with(parent: int) -> None:
    """Be killed when the thread of `parent` that started us ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _leave(status: int) -> NoReturn:
    """End now: the interpreter would first wait for threads that hang in their library."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run() -> NoReturn:
    status = 1
    try:
        status = main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    except BaseException:  # the host sees the process end; people want to know why
        traceback.print_exc()
    _leave(status)


if __name__ == "__main__":
    _run()
