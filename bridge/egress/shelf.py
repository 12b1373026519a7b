"""One sink's part of the store, as its outbox sees it; and the store of all sinks (`Shelves`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bridge.egress.store import Store
from bridge.egress.store_types import (
    Adopt,
    Adopted,
    Again,
    Await,
    Bury,
    Dead,
    Done,
    Keep,
    LeftBacklog,
    Load,
    Loaded,
    Note,
    Over,
    Renewed,
    Result,
    Safe,
    Shed,
    StoreLimits,
)
from bridge.egress.store_writer import StoreWriter, Taken
from bridge.errors import BridgeError
from bridge.types import CallEvent, LeftCall, Refused

SHED_PARTIALS = 0.8  # of the room: from here on they are not queued
FULL = 1.0  # of the room: no new calls
OVERFULL = 1.1  # of the room: calls that are up write no more either
ADOPT_EVERY = 5.0  # seconds between two looks for what others have left
OPEN_LIMIT = 3.0  # seconds that the start waits for the file

log = logging.getLogger("callscribe.outbox")


class Listener(Protocol):
    """What an outbox is told. All on the event loop's thread."""

    def safe(self, call: str, seq: int) -> None:
        """This event may be given to the sink."""

    def loaded(self, told: Loaded) -> None:
        """The answer to `Shelf.load`."""

    def adopt(self, left: LeftBacklog) -> None:
        """Events that are the sink's to have; they were another process'."""

    def shed(self, told: Shed) -> None:
        """Events that are kept no longer."""

    def renewed(self) -> None:
        """What is in memory has to be kept once more."""


class Shelf:
    """What is kept for one sink. `wall` is Unix time."""

    def __init__(self, writer: StoreWriter, sink: str, wall: Callable[[], float]) -> None:
        self.wall = wall
        self.listener: Listener | None = None
        self._writer, self._sink = writer, sink

    @property
    def crowded(self) -> bool:
        """There is so little room that partials are not worth a place."""
        return self._writer.store.fill >= SHED_PARTIALS

    @property
    def failing(self) -> bool:
        """Nothing can be read or written for the present."""
        return bool(self._writer.trouble)

    def keep(self, event: CallEvent, rank: int, *, ends: bool) -> Taken:
        """Keep it. What ``waits`` must not be given to the sink before it is `Listener.safe`.

        When the file is full only calls that are up go on writing, and not for ever: the last word
        of a call that was refused is kept in memory only.
        """
        fill = self._writer.store.fill
        if fill >= (FULL if isinstance(event.body, Refused) else OVERFULL):
            self._writer.counters["unstored"] += 1
            return "no"
        return self._writer.put(Keep(self._sink, event, rank, ends))

    def wait(self, event: CallEvent) -> bool:
        """Its number has to be on disk first: True when `Listener.safe` will be told."""
        return self._writer.put(Await(self._sink, event.call.id, event.seq)) == "waits"

    def done(self, call: str, seq: int, *, kept: bool) -> None:
        self._writer.put(Done(self._sink, call, seq, kept))

    def again(self, call: str, seq: int, attempts: int, wait: float) -> None:
        """To be tried after `wait` seconds."""
        self._writer.put(Again(self._sink, call, seq, attempts, self.wall() + wait))

    def dead(self, call: str, seq: int, error: str) -> None:
        self._writer.put(Dead(self._sink, call, seq, error))

    def bury(self, error: str) -> None:
        self._writer.put(Bury(self._sink, error))

    def over(self, call: str) -> None:
        self._writer.put(Over(self._sink, call))

    def load(self, call: str, after: int, limit: int) -> bool:
        """True: `Listener.loaded` will be told."""
        return self._writer.put(Load(self._sink, call, after, limit)) != "no"


class Shelves:
    """The store of all sinks. `lost` gets what calls of dead processes there were, once each."""

    def __init__(
        self, path: Path, limits: StoreLimits, *, wall: Callable[[], float] = time.time
    ) -> None:
        self.writer = StoreWriter(Store(path, limits, wall=wall), self._told)
        self.on_calls: Callable[[Sequence[LeftCall], Sequence[str]], None] = lambda calls, ids: None
        self._wall = wall
        self._shelves: dict[str, Shelf] = {}
        self._opened = asyncio.Event()
        self._look: asyncio.TimerHandle | None = None
        self._strange: set[str] = set()  # sinks that nobody serves any more, once in the log

    def shelf(self, sink: str) -> Shelf:
        """The sink's part. Names are the sinks' own; a second sink of one name gets another."""
        while sink in self._shelves:
            sink += "'"
        found = self._shelves[sink] = Shelf(self.writer, sink, self._wall)
        return found

    def publish(self, event: CallEvent, put: Callable[[CallEvent], None]) -> None:
        """Use its number up and give it to the queues with `put`; on disk it is all or nothing."""
        with self.writer.together():
            self.writer.put(Note(event))
            put(event)

    @property
    def room(self) -> bool:
        """May a new call begin?"""
        return self.writer.store.fill < FULL

    @property
    def state(self) -> str:
        """For the health's checks."""
        if self.writer.trouble:
            return f"failing: {self.writer.trouble}; events are kept in memory only"
        fill = self.writer.store.fill
        return "ok" if fill < SHED_PARTIALS else f"{fill:.0%} full"

    async def start(self) -> None:
        """Open the file and take over what is left in it, unless that cannot be for the present.

        Raises `BridgeError` where it never could.
        """
        folder = self.writer.store.path.parent
        if not folder.is_dir():
            raise BridgeError(f"outbox.path: there is no directory {folder}")
        self.writer.start()
        self._adopt()
        try:
            async with asyncio.timeout(OPEN_LIMIT):
                await self._opened.wait()
        except TimeoutError:
            log.error("outbox: what was left in the file is delivered when it can be read")

    def _adopt(self) -> None:
        self.writer.put(Adopt())
        self._look = asyncio.get_running_loop().call_later(ADOPT_EVERY, self._adopt)

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - as StoreWriter.close
        """Write what waits."""
        if self._look is not None:
            self._look.cancel()
        if not await self.writer.close(timeout):
            log.error("outbox: %d changes could not be written", self.writer.waiting)

    def _told(self, results: Sequence[Result]) -> None:
        for result in results:
            match result:
                case Adopted():
                    self._adopted(result)
                case Renewed():
                    for shelf in self._shelves.values():
                        if shelf.listener is not None:
                            shelf.listener.renewed()
                case _:
                    self._tell(result)

    def _tell(self, result: Safe | Loaded | Shed) -> None:
        shelf = self._shelves.get(result.sink)
        if shelf is None or shelf.listener is None:
            return
        match result:
            case Safe():
                shelf.listener.safe(result.call, result.seq)
            case Loaded():
                shelf.listener.loaded(result)
            case Shed():
                shelf.listener.shed(result)

    def _adopted(self, left: Adopted) -> None:
        self._opened.set()
        rows = sum(backlog.rows for backlog in left.backlogs)
        if rows:
            log.warning("outbox: %d events of %d calls were left and are delivered now",
                        rows, len({backlog.call for backlog in left.backlogs}))  # fmt: skip
        for backlog in left.backlogs:
            shelf = self._shelves.get(backlog.sink)
            if shelf is not None and shelf.listener is not None:
                shelf.listener.adopt(backlog)
            elif backlog.sink not in self._strange:
                self._strange.add(backlog.sink)
                log.error("outbox: events are kept for %r, which is configured no more; see: "
                          "callscribe outbox list", backlog.sink)  # fmt: skip
        if left.calls or left.over:
            self.on_calls(left.calls, left.over)
