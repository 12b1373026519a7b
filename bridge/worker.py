"""The worker process: one `Server` on sockets that somebody else may hold."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from bridge.config import Settings
from bridge.errors import EngineUnavailable
from bridge.server import Server

log = logging.getLogger(__name__)

EXIT_ENGINE = 3  # the engine cannot be had
# Not SIGTERM: Linux sends it once for each thread of the parent, and a second SIGTERM is a hurry.
ORPHANED = signal.SIGUSR2


def run(settings: Settings, sockets: dict[str, socket.socket]) -> int:
    """Serve until SIGTERM. The exit status."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(settings, sockets))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed (BENCHMARKS.md)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(settings: Settings, sockets: dict[str, socket.socket]) -> int:
    server = Server(settings)
    stop, retire = asyncio.Event(), asyncio.Event()
    starting = asyncio.current_task()

    def on_stop() -> None:
        if not stop.is_set() and not server.loaded and starting is not None:
            starting.cancel()
        stop.set()

    def on_sigterm() -> None:
        if stop.is_set():
            server.hurry()
        on_stop()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_sigterm)
    loop.add_signal_handler(signal.SIGINT, on_sigterm)
    loop.add_signal_handler(ORPHANED, on_stop)
    loop.add_signal_handler(signal.SIGUSR1, retire.set)
    loop.add_signal_handler(signal.SIGHUP, _on_hangup)  # or it would end every call
    try:
        await server.start(sockets)
    except EngineUnavailable as e:
        log.error("%s", e)
        print(f"callscribe: {e}", file=sys.stderr)
        await server.close()
        return EXIT_ENGINE
    except asyncio.CancelledError:
        await server.close()
        return 0
    notify_ready()
    await server.run_until(stop, retire)
    log.info("stopped")
    return 0


def _on_hangup() -> None:
    log.warning("SIGHUP: settings are read at the start only; restart to read them anew")


def die_with_parent() -> None:
    """Be drained when the parent is killed: nobody would start the next worker."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, ORPHANED)
    parent = os.environ.pop("CALLSCRIBE_PARENT", "")
    if parent and parent != str(os.getppid()):  # it was killed before we asked
        os.kill(os.getpid(), ORPHANED)


def leave(status: int) -> NoReturn:
    """End the process now.

    The interpreter would first wait for the engine's thread, and that may hang in its library.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def notify_ready() -> None:
    """Tell systemd (sd_notify(3)) or our parent that calls are answered."""
    fd = os.environ.pop("CALLSCRIBE_READY_FD", "")
    if fd:
        os.write(int(fd), b"ready\n")
        os.close(int(fd))
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            s.send(b"READY=1")
