"""The one thread that the store's file belongs to, and what waits for it.

The event loop asks (`put`, which never blocks), the thread does all that waits in one transaction,
and the answers come back to the loop together. After a commit the next one waits `GATHER` seconds,
and as much longer as more than `BUSY` is asked, up to `LONGEST`: a commit costs what a dozen
events do. The first event after a quiet moment waits for nobody.

When the file cannot be written (disk full, locked, broken) nothing stops: everything that waited is
answered `Safe` with `stored` false, so that it is delivered from memory as without a store; what
was asked goes on waiting, up to `MOST`, and is written when the file can be again. A file that is
broken is set aside under another name and a new one begun.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, TypeAlias

from bridge.egress.store import Store
from bridge.egress.store_schema import is_broken, reason, set_aside
from bridge.egress.store_types import (
    Await,
    Keep,
    Load,
    Loaded,
    Note,
    Op,
    Renewed,
    Result,
    Safe,
    Tidy,
)

GATHER, LONGEST = 0.005, 0.015  # seconds from a commit to the next (BENCHMARKS.md)
BUSY = 3000.0  # asked a second: a thousand events; beyond that the wait grows with it
MOST = 50_000  # of what is asked, waiting; beyond it events are not kept on disk, and that is told
RETRY = 1.0  # seconds between two tries to write
TIDY = 60.0  # seconds between two looks at what is too old

Taken: TypeAlias = Literal["waits", "late", "no"]

log = logging.getLogger("callscribe.outbox")


def spacing(gather: float, pace: float) -> float:
    """Seconds from a commit to the next, when `pace` a second is asked."""
    return max(gather, min(gather * pace / BUSY, LONGEST))


class StoreWriter:
    """`tell` gets the answers, on the event loop's thread.

    `counters`: commits, failures, unstored (events that are in memory only), set_aside.
    """

    def __init__(
        self,
        store: Store,
        tell: Callable[[Sequence[Result]], None],
        *,
        gather: float = GATHER,
        most: int = MOST,
        retry: float = RETRY,
    ) -> None:
        self.store = store
        self.counters: Counter[str] = Counter()
        self.trouble = ""  # why the file cannot be written; empty while it can
        self._tell, self._gather, self._most, self._retry = tell, gather, most, retry
        self._waiting: deque[tuple[Op, ...]] = deque()  # what is together is in one commit
        self._together: list[Op] | None = None
        self._batch: list[Op] = []  # the thread's
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last = self._tidied = float("-inf")
        self._pace = 0.0  # asked a second, lately

    @property
    def waiting(self) -> int:
        """Of what was asked, not yet begun."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to write; answers come to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="outbox store", daemon=True)
        self._thread.start()

    def put(self, op: Op) -> Taken:
        """Ask. ``waits``: an answer will come. ``late``: it will be done when the file can be
        written again, and nobody should wait for it. ``no``: there is no room for it either."""
        if self._closing.is_set() or len(self._waiting) >= self._most:
            if isinstance(op, Keep):
                self.counters["unstored"] += 1
            if isinstance(op, Keep | Await | Note) or len(self._waiting) >= 2 * self._most:
                return "no"
        trouble = bool(self.trouble)
        if self._together is not None:
            self._together.append(op)
        else:
            self._waiting.append((op,))
            self._some.set()
        return "late" if trouble else "waits"

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is asked inside is done in one commit, or none of it.

        A number that is used up without its event being kept would be an event lost.
        """
        together: list[Op] = []
        self._together = together
        try:
            yield
        finally:
            self._together = None
            if together:
                self._waiting.append(tuple(together))
                self._some.set()

    async def close(self, timeout: float) -> bool:  # noqa: ASYNC109 - for the thread, not for us
        """Write what waits, for at most `timeout` seconds. False when something was not written."""
        self._closing.set()
        self._some.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join, timeout)
        return not self._waiting and not self._batch

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._gathered()
            if self._batch and not self._write() and self._closing.is_set():
                break  # it cannot be written, and nobody will try again
            if self._closing.is_set() and not self._waiting and not self._batch:
                break
        with suppress(sqlite3.Error, OSError):
            self.store.close()

    def _gathered(self) -> None:
        """Take all that waits, once something does and the last commit is long enough ago."""
        if self._batch:  # that could not be written
            self._closing.wait(self._retry)
        elif self._some.wait(TIDY):
            until = self._last + spacing(self._gather, self._pace)
            self._closing.wait(max(0.0, until - time.monotonic()))
        self._some.clear()
        room = self._most * 2 - len(self._batch)
        for _ in range(min(room, len(self._waiting))):
            self._batch += self._waiting.popleft()
        if self._waiting:  # there was no room: it is not to wait for somebody who asks
            self._some.set()
        if time.monotonic() - self._tidied > TIDY:
            self._tidied = time.monotonic()
            self._batch.append(Tidy())

    def _write(self) -> bool:
        try:
            results = self.store.apply(self._batch)
        except (sqlite3.OperationalError, OSError) as error:
            self._failed(error)
            return False
        except sqlite3.DatabaseError as error:
            if is_broken(error):
                self._failed(error)
                return False
            self._one_by_one(error)
            return True
        except Exception as error:  # of one of these that nobody thought of
            self._one_by_one(error)
            return True
        now = time.monotonic()
        self._pace += 0.1 * (len(self._batch) / max(now - self._last, GATHER) - self._pace)
        self._batch = []
        self._last = now
        self.counters["commits"] += 1
        if self.trouble:
            log.warning("outbox: %s can be written again", self.store.path)
            self.trouble = ""
        self._answer(results)
        return True

    def _failed(self, error: sqlite3.Error | OSError) -> None:
        self.counters["failures"] += 1
        self.store.abandon()
        if isinstance(error, sqlite3.Error) and is_broken(error) and self._set_aside(error):
            return
        why = reason(error)
        if why != self.trouble:
            log.error(
                "outbox: %s cannot be written: %s; calls go on, and what is said is kept in memory "
                "only", *(self.store.path, why),
            )  # fmt: skip
        self.trouble = why
        self._release()

    def _release(self) -> None:
        """Nobody waits for what cannot be written now. Their events are still to be kept."""
        loose: list[Result] = []
        for i, op in enumerate(self._batch):
            match op:
                case Keep():
                    loose.append(Safe(op.sink, op.event.call.id, op.event.seq, stored=False))
                case Await():
                    loose.append(Safe(op.sink, op.call, op.seq, stored=False))
                    self._batch[i] = Tidy()  # one answer is enough
        self._answer(loose)

    def _set_aside(self, error: sqlite3.Error) -> bool:
        try:
            aside = set_aside(self.store.path)
        except OSError:
            return False
        self.counters["set_aside"] += 1
        log.error(
            "outbox: %s is broken (%s); it is kept as %s and a new one is begun: events that only "
            "it had are not delivered", *(self.store.path, reason(error), aside.name),
        )  # fmt: skip
        self._answer([Renewed(aside.name)])
        return True

    def _one_by_one(self, error: Exception) -> None:
        """One of them must not cost the others; only its type is logged, for what was said."""
        if len(self._batch) == 1:
            (op,) = self._batch
            log.error("outbox: %s: %s", type(op).__name__, type(error).__name__)
            self.counters["failures"] += 1
            self._release()
            if isinstance(op, Load):  # or its call would wait for ever
                self._answer([Loaded(op.sink, op.call, (), True)])
            self._batch = []
            return
        rest, self._batch = self._batch, []
        while rest:
            self._batch = [rest.pop(0)]
            if not self._write():
                self._batch += rest
                return

    def _answer(self, results: Sequence[Result]) -> None:
        if results and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._tell, results)
