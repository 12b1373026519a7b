"""All that an event goes to: sinks with their outboxes, the page, what HTTP shows, recordings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence

from bridge import outbox_file
from bridge.call import Call
from bridge.config import Settings
from bridge.egress.log import LogEgress
from bridge.egress.outbox import Outbox
from bridge.egress.webhook import Webhook
from bridge.http.live import Hub
from bridge.interfaces import Egress
from bridge.recorder.recorder import Recorder
from bridge.redact.kinds import Kind
from bridge.redacting import Redaction, ShownFinals, check
from bridge.types import CallEvent

log = logging.getLogger(__name__)

STORE_WAIT = 5.0  # s at the end for the outbox's file


class Sinks:
    """Made before there are calls: `find` knows them later.

    `given`: sinks of whoever starts a server himself. `links`: those of call control, each with
    what it must not be told. `delivered` hears how many seconds an event took.
    Raises `ConfigError`.
    """

    def __init__(
        self,
        settings: Settings,
        given: Sequence[Egress],
        links: Sequence[tuple[Egress, Collection[Kind]]],
        *,
        find: Callable[[str], Call | None],
        delivered: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        check(settings)
        self.outboxes: list[Outbox] = []
        self.shelves = outbox_file.make(settings.outbox)
        self.redaction = Redaction(settings.redaction, clock)
        self.hub = Hub()
        self.shown: ShownFinals | None = None  # by HTTP, where that is redacted
        self.recorder: Recorder | None = None
        self._delivered = delivered
        if settings.recording.enabled:
            self.recorder = Recorder(settings.recording, time.time)
            self.redaction.add(settings.recording.redact, self.recorder.put)
        self.redaction.add(settings.http.redact, self.hub.publish)
        for sink in given:
            self._add(sink)
        # The log never fails, and needs nothing on the disk.
        of_log = LogEgress(transcripts=settings.log.transcripts)
        self._add(of_log, settings.log.redact, kept=False)
        if settings.http.redact:
            self.shown = ShownFinals(find)
            self.redaction.add(settings.http.redact, self.shown.put)
        for sink, redact in links:
            self._add(sink, redact)
        for hook in settings.webhook:
            self._add(Webhook(hook), hook.redact, hook.queue)

    def _add(
        self, sink: Egress, redact: Collection[Kind] = (), limit: int = 10_000, *, kept: bool = True
    ) -> None:
        shelf = self.shelves.shelf(sink.name) if self.shelves is not None and kept else None
        outbox = Outbox(sink, limit=limit, delivered=self._delivered, shelf=shelf)
        self.outboxes.append(outbox)
        self.redaction.add(redact, outbox.put)

    def publish(self, event: CallEvent) -> None:
        """To every sink, redacted where its settings say so.

        What redaction holds back for a moment is not on the disk meanwhile: not in the clear.
        """
        if self.shelves is not None:
            self.shelves.publish(event, self.redaction.publish)
        else:
            self.redaction.publish(event)

    @property
    def room(self) -> bool:
        """May a new call say something?"""
        return self.shelves is None or self.shelves.room

    async def start(self) -> None:
        """Open the file, and begin delivering."""
        if self.shelves is not None:
            await self.shelves.start()
        for outbox in self.outboxes:
            await outbox.start()

    def expire(self, now: float) -> None:
        """Let time pass."""
        self.redaction.expire()
        if self.recorder is not None:
            self.recorder.expire(now)

    async def flush(self, patience: float) -> None:
        """Deliver what there is within the limit; the rest waits in the file, or is lost."""
        closing = (outbox.close(patience) for outbox in self.outboxes)
        left = await asyncio.gather(*closing, return_exceptions=True)
        for outbox, n in zip(self.outboxes, left, strict=True):
            if isinstance(n, BaseException):
                log.error("%s: could not be closed: %s", outbox.name, type(n).__name__)
            elif n:
                log.error("%s: %d events were not delivered", outbox.name, n)

    async def close(self, patience: float) -> None:
        """Write what is to be written, and let go of the files."""
        recorder = self.recorder
        if recorder is not None and not await asyncio.to_thread(recorder.close, patience):
            log.error("recording: %d bytes were not written", recorder.queued)
        if self.shelves is not None:
            await self.shelves.close(STORE_WAIT)
