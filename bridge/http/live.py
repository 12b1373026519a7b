"""Events as they come, to whoever watches: `GET /events`, server-sent (HTML standard, §9.2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque

from aiohttp import web

from bridge.contract import body
from bridge.http.access import Refusal
from bridge.http.listener import Connection
from bridge.types import CallEvent

WATCHERS = 32  # at once
QUEUE = 1000  # events that wait for one of them
KEEP_ALIVE = 15.0  # s between comments that keep proxies from closing
LOOK = 1.0  # s between looks whether the client is still there


class Watcher:
    """One who watches. What does not fit in its queue is lost, the oldest first, and it is told."""

    def __init__(self, call: str) -> None:
        self.call = call  # "": all
        self.news = asyncio.Event()
        self._queue: deque[bytes] = deque()
        self._lost = 0

    def put(self, event: bytes) -> int:
        """How many were lost."""
        self._queue.append(event)
        self.news.set()
        if len(self._queue) <= QUEUE:
            return 0
        self._queue.popleft()
        self._lost += 1
        return 1

    def take(self) -> bytes:
        """All that waits, as the stream has it."""
        lost, self._lost = self._lost, 0
        found = [b'{"type":"gap","lost":%d}' % lost] if lost else []
        found += self._queue
        self._queue.clear()
        self.news.clear()
        return b"".join(b"data: " + event + b"\n\n" for event in found)


class Hub:
    """Everybody who watches."""

    def __init__(self) -> None:
        self.watchers: set[Watcher] = set()
        self.counters: Counter[str] = Counter()

    def publish(self, event: CallEvent) -> None:
        """To whoever wants it. Costs nothing where nobody does."""
        if not self.watchers:
            return
        data = body(event)
        for watcher in self.watchers:
            if watcher.call in ("", event.call.id):
                self.counters["lost"] += watcher.put(data)

    def watch(self, call: str) -> Watcher:
        """Begin. Raises `Refusal` where there are too many."""
        if len(self.watchers) >= WATCHERS:
            raise Refusal(503, f"{WATCHERS} are watching already; close one of them")
        watcher = Watcher(call)
        self.watchers.add(watcher)
        return watcher


HUB: web.AppKey[Hub] = web.AppKey("hub", Hub)


async def events(request: web.Request) -> web.StreamResponse:
    """Until the client goes."""
    hub = request.app[HUB]
    watcher = hub.watch(request.query.get("call", ""))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    try:
        await response.prepare(request)
        await response.write(b": events of calls\n\n")
        while await _news(request, watcher):
            await response.write(watcher.take() or b":\n\n")
            if isinstance(request.protocol, Connection):
                request.protocol.answering()  # its deadline begins anew
    except ConnectionError:
        pass
    finally:
        hub.watchers.discard(watcher)
    return response


async def _news(request: web.Request, watcher: Watcher) -> bool:
    """Wait for news, for `KEEP_ALIVE` at most. False when the client has gone."""
    for _ in range(round(KEEP_ALIVE / LOOK)):
        if request.transport is None or request.transport.is_closing():
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await watcher.news.wait()
                return True
    return True
