"""The Asterisk REST Interface: a link that looks after itself, and the taps that it serves.

What to do is decided by `Taps`, which is pure; here are its clock and its wires. Events are handled
at once as they come: Asterisk ends a WebSocket that is not read (websocket_write_timeout in
ari.conf) and, worse, refuses SIP calls while its queue towards us is long. Of all that happens we
therefore have it send only what taps need.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias
from uuid import uuid4

from bridge.config import AriSettings
from bridge.errors import BridgeError, DeliveryError, ProtocolError
from bridge.pbx import ari_events
from bridge.pbx.ari_events import PLACES, TYPES, Replaced, Wish
from bridge.pbx.ari_http import AriHttp, AriRefused, Events, make_tls, where
from bridge.pbx.ari_media import AudioSocketMedia, Media
from bridge.pbx.ari_rules import Rule
from bridge.pbx.ari_tap import Form, Outcome, Request
from bridge.pbx.ari_taps import Taps
from bridge.types import Announcement, LegName

ANY = Wish()  # both legs, under an id of its own

log = logging.getLogger(__name__)

BACKOFF = (0.5, 30.0)  # s: the first and the longest span that a retry is drawn from
LOOK = 30.0  # s between looks whether the application's name is free again
GOODBYE = 1.0  # s for what is to be removed at the end

State: TypeAlias = Literal["connecting", "up", "down", "refused", "replaced"]


class AriReplaced(BridgeError):
    """Another client has our application's name now."""


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait before trying again: full jitter over a span that doubles from 0.5 to 30."""
    first, longest = BACKOFF
    return jitter * min(longest, first * 2.0 ** min(failures, 16))


class AriLink:
    """ARI's events and requests, made again whenever they are lost.

    `announce` and `outcome`: see `Taps`; `media`: for the form external_media. `state` is
    ``refused`` after a failed authentication, which only a restart ends, and ``replaced`` while
    another client has our application's name; `last_error` is a sentence without secrets. `jitter`
    gives numbers in 0…1.
    """

    def __init__(
        self,
        settings: AriSettings,
        announce: Callable[[Announcement], object],
        outcome: Callable[[str, str, LegName], Outcome],
        *,
        media: Media | None = None,
        learn: Callable[[Announcement], object] | None = None,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state: State = "connecting"
        self.last_error = ""
        self.taps = Taps(
            Form(settings.app, settings.form, settings.context, media or AudioSocketMedia()),
            [Rule(r.context, r.exten, r.endpoint, tuple(r.legs)) for r in settings.taps],
            announce,
            outcome,
            new_uuid=lambda: str(uuid4()),
            jitter=jitter,
            notice=self._notice,
            learn=learn,
        )
        self.counters: Counter[str] = self.taps.counters
        self._settings = settings
        self._where = where(settings.url)
        self._tls = make_tls(settings)
        self._jitter = jitter
        self._clock = clock
        self._http: AriHttp | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()  # set, and replaced, whenever `state` changes
        self._failures = 0

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin connecting in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ari")

    async def close(self, *, leave: bool = False) -> None:
        """Remove what we have made in Asterisk, and let go. Idempotent.

        `leave`: another process takes over; what is heard stays, and ends by itself, where the
        form can do that.
        """
        task, self._task = self._task, None
        if self.state == "up" and not (leave and self.taps.stays):
            self.taps.stop()
            self._turn()
            if self._asking:
                await asyncio.wait(list(self._asking), timeout=GOODBYE)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._move("down", "the ARI link is closed")

    async def up(self) -> None:
        """Wait until ARI is there. Raises `DeliveryError` when refused, closed or not started."""
        while self.state != "up":
            if self.state == "refused" or self._task is None:
                raise self._unavailable()
            await self._moved.wait()

    def tap(self, channel: str, wish: Wish = ANY) -> str:
        """Listen to the call of this channel (id or name); see `Taps.tap`. Returns the call's id.

        Raises `NoChannel`, and `DeliveryError` while ARI is not there.
        """
        if self.state != "up":
            raise self._unavailable()
        found = self.taps.tap(channel, wish, self._clock())
        self._turn()
        return found

    def unheard(self, uuid: str) -> None:
        """See `Taps.unheard`."""
        self.taps.unheard(uuid, self._clock())
        self._turn()

    def _unavailable(self) -> DeliveryError:
        because = f": {self.last_error}" if self.last_error else ""
        return DeliveryError(f"ARI is {self.state}{because}", gone=self.state == "refused")

    def _notice(self, sentence: str) -> None:
        if self._task is not None:  # at the end everything is let go, which is no news
            log.warning("ARI: %s", sentence)

    def _move(self, state: State, error: str = "") -> None:
        self.state = state
        self.last_error = "" if state == "up" else error or self.last_error
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _run(self) -> None:
        while True:
            self._move("connecting")
            began = self._clock()
            try:
                await self._session()
            except AriRefused as e:
                log.error("%s", e)
                return self._move("refused", str(e))
            except AriReplaced as e:
                log.error("ARI: %s", e)
                self._move("replaced", str(e))
                await self._free_again()
                continue
            except BridgeError as e:
                self._down(str(e))
            except Exception as e:  # a fault of ours must not end the link for good
                self.counters["errors"] += 1
                log.exception("the ARI session failed")
                self._down(f"the ARI session failed: {type(e).__name__}")
            if self._clock() - began > self._settings.ping_interval:
                self._failures = 0  # it has lasted; that it began proves nothing
            await asyncio.sleep(backoff(self._failures, self._jitter()))
            self._failures += 1
            self.counters["reconnects"] += 1

    def _down(self, error: str) -> None:
        if error != self.last_error:  # once, not at every retry
            log.warning("ARI: %s", error)
        self._move("down", error)

    async def _free_again(self) -> None:
        """Until nobody else has our application's name."""
        status = 200
        while status == 200:
            await asyncio.sleep(LOOK * (0.5 + self._jitter()))
            async with AriHttp(self._settings, self._tls) as http:
                status, _ = await http.ask("GET", f"/applications/{self._settings.app}")

    # -- one session --------------------------------------------------------------------------

    async def _session(self) -> None:
        """Until it ends, which raises."""
        async with AriHttp(self._settings, self._tls) as http:
            events = await http.listen(self._settings.app)
            self._http = http
            self.taps.connected()
            tasks = [asyncio.create_task(self._read(events)), asyncio.create_task(self._sync(http))]
            error: Exception | None = None
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                self._http = None
                error = await _end([*tasks, *self._asking])
                await events.close()
                why = str(error) if isinstance(error, BridgeError) else "its link ended"
                self.taps.lost(why, self._clock())
                self._turn()
            if error is not None:
                raise error

    async def _read(self, events: Events) -> None:
        while True:
            self._event(await events.next())

    def _event(self, text: str) -> None:
        self.counters["events"] += 1
        try:
            event = ari_events.parse(text)
            if isinstance(event, Replaced):
                raise AriReplaced(
                    f"another client has connected as {self._settings.app!r}; give each bridge a "
                    "name of its own in ari.app"
                )
            if event is not None:
                self.taps.event(event, self._clock())
        except AriReplaced:
            raise
        except ProtocolError as e:
            self.counters["bad_events"] += 1
            log.warning("ARI: %s", e)
        except Exception:  # costs this event, not the connection
            self.counters["errors"] += 1
            log.exception("an event of ARI could not be handled")
        self._turn()

    async def _sync(self, http: AriHttp) -> None:
        """Say which events we want, and learn what there is already.

        Not by subscribeAll: that brings endpoints and devices too, and does nothing at all where
        Asterisk still has the application of a client before us [seen with 22.10.1].
        """
        app = self._settings.app
        everything = {"eventSource": "channel:,bridge:"}
        status, text = await http.ask("POST", f"/applications/{app}/subscription", everything)
        if status != 200:
            why = text if status == 0 else f"{status} {ari_events.error_text(text)}".strip()
            hint = "; our user needs read_only = no in ari.conf" if status == 403 else ""
            raise DeliveryError(f"ARI does not let us subscribe to channels: {why}{hint}")
        kinds = [*TYPES, PLACES] if self.taps.by_place else TYPES
        wanted = {"allowed": [{"type": kind} for kind in kinds]}
        status, _ = await http.ask("PUT", f"/applications/{app}/eventFilter", body=wanted)
        if status not in (200, 204):
            self.counters["unfiltered"] += 1  # Asterisk before 13.26: it sends everything
        channels = ari_events.channels(await _listing(http, "channels"))
        bridges = ari_events.bridges(await _listing(http, "bridges"))
        self.taps.listed(channels, bridges, self._clock())
        self._turn()
        self._move("up")
        log.info("ARI: at %s as %r, %d channels", self._where, app, len(self.taps.channels))

    # -- requests and time --------------------------------------------------------------------

    def _turn(self) -> None:
        """Carry out what the taps want now, and come back when they want to be looked at."""
        for request in self.taps.requests():
            if self._http is not None:
                task = asyncio.create_task(self._carry_out(self._http, request))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.taps.deadline()
        if due is not None and self._task is not None:
            wait = max(0.0, due - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._expire)

    def _expire(self) -> None:
        self._timer = None
        try:
            self.taps.expire(self._clock())
        except Exception:
            self.counters["errors"] += 1
            log.exception("letting time pass failed")
        self._turn()

    async def _carry_out(self, http: AriHttp, request: Request) -> None:
        self.counters["requests"] += 1
        status, text = await http.ask(request.method, request.path, dict(request.params))
        said = text if status < 300 else ari_events.error_text(text)
        try:
            self.taps.answered(request, status, said, self._clock())
        except Exception:
            self.counters["errors"] += 1
            log.exception("an answer of ARI could not be handled")
        self._turn()


async def _end(tasks: list[asyncio.Task[None]]) -> Exception | None:
    """Cancel them. The first error that one of them had."""
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return next((e for e in results if isinstance(e, Exception)), None)


async def _listing(http: AriHttp, what: str) -> str:
    status, text = await http.ask("GET", f"/{what}")
    if status != 200:
        raise DeliveryError(f"ARI does not list the {what}: {text if status == 0 else status}")
    return text
