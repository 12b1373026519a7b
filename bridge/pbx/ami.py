"""The Asterisk Manager Interface: one connection that looks after itself.

panoramisk's `Manager` is not used: version 1.4 never checks its pings, retries for ever at one pace
(also a wrong password, also after close()), lets waiting actions pile up, and sends them again only
if FullyBooted comes. One connection is `AmiConnection`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal, TypeAlias

from panoramisk.actions import Action
from panoramisk.message import Message

from bridge.config import Address, AmiSettings
from bridge.errors import BridgeError, DeliveryError, ProtocolError
from bridge.pbx.ami_connection import AmiConnection
from bridge.pbx.ami_consent import Consents
from bridge.pbx.ami_pause import PauseWish, pause_wish
from bridge.pbx.ami_tap import TapAsked, tap_asked
from bridge.pbx.ami_text import AmiValue, announcement
from bridge.pbx.ending import GOODBYE
from bridge.types import Announcement

log = logging.getLogger(__name__)

IN_FLIGHT = 64  # actions that wait for a response; more wait their turn, in order
MISSED_PONGS = 2  # in a row, and the connection is taken for dead
BACKOFF = (0.5, 30.0)  # seconds: the first and the longest span that a retry is drawn from

State: TypeAlias = Literal["connecting", "up", "down", "refused"]


class _Refused(BridgeError):
    """Asterisk does not want this user: trying again would only fill its security log."""


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait before trying again: full jitter over a span that doubles from 0.5 to 30."""
    first, longest = BACKOFF
    return jitter * min(longest, first * 2.0 ** min(failures, 16))


class AmiLink:
    """A logged-in AMI session, made again whenever it is lost.

    `on_announcement` is called on the event loop for every leg that the dialplan announces,
    `on_pause` for every call that is not to be heard for a while, or again, and `on_tap` for every
    tap that a client asks for; it raises `BridgeError` where that is in vain.
    `jitter` gives numbers in 0…1. `state` is ``refused`` after a failed authentication, which
    only a restart ends; `last_error` is a sentence without secrets.
    """

    def __init__(
        self,
        settings: AmiSettings,
        on_announcement: Callable[[Announcement], None],
        *,
        on_pause: Callable[[PauseWish], None] = lambda wish: None,
        on_tap: Callable[[TapAsked], object] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state: State = "connecting"
        self.last_error = ""
        self.version = ""
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._where = str(Address(settings.host, settings.port))
        self._on_announcement = on_announcement
        self._consents = Consents()
        self._on_tap = on_tap
        self._on_pause = on_pause
        # Made once: reading the system's certificates stops the event loop for 0.1 s
        self._tls = ssl.create_default_context() if settings.tls else None
        self._jitter = jitter
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self._moved = asyncio.Event()  # set, and replaced, whenever `state` changes
        self._connection: AmiConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures = 0

    async def start(self) -> None:
        """Begin connecting in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ami")

    async def close(self) -> None:
        """Log off and let go. Actions still waiting raise `DeliveryError`. Idempotent."""
        task, self._task = self._task, None
        if self._connection is not None:
            with suppress(OSError, BridgeError):
                async with asyncio.timeout(min(GOODBYE, self._settings.timeout)):
                    await self._connection.ask("Logoff", [], Action.action_id_generator())
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._move("down", "the AMI link is closed")

    async def up(self) -> None:
        """Wait until logged in. Raises `DeliveryError` when refused, closed or not started."""
        while self.state != "up":
            if self.state == "refused" or self._task is None:
                raise self._unavailable()
            await self._moved.wait()

    async def action(
        self,
        name: str,
        headers: Sequence[tuple[str, str]],
        *,
        action_id: str | None = None,
    ) -> Mapping[str, str]:
        """Send one action and wait for its response, whose keys are found in any case.

        Values are made safe (`AmiValue`), and split where a UserEvent's line would be too long.
        Raises `DeliveryError`: permanent where Asterisk said no, gone where it refused our user,
        neither where it is down or did not answer in time; then nobody knows whether it acted.
        """
        self.counters["actions"] += 1
        try:
            async with asyncio.timeout(self._settings.timeout), self._places:
                if self._connection is None:
                    raise self._unavailable()
                response = await self._connection.ask(
                    name, headers, action_id or Action.action_id_generator()
                )
        except TimeoutError:
            self.counters["action_timeouts"] += 1
            raise DeliveryError(
                f"Asterisk at {self._where} did not answer {name} within "
                f"{self._settings.timeout:g} s"
            ) from None
        return self._accepted(name, response)

    def _accepted(self, name: str, response: Message) -> Mapping[str, str]:
        if response.success:
            headers: Mapping[str, str] = response
            return headers
        self.counters["action_errors"] += 1
        text = _text(response)
        right = {"UserEvent": "user", "MixMonitor": "system"}.get(name, "call")
        hint = f"; in manager.conf, {name} needs write = {right}"
        raise DeliveryError(
            f"Asterisk refused {name}: {text}{hint if text == 'Permission denied' else ''}",
            permanent="shutting down" not in text and text != "Authentication Required",
        )

    def _unavailable(self) -> DeliveryError:
        because = f": {self.last_error}" if self.last_error else ""
        return DeliveryError(f"AMI is {self.state}{because}", gone=self.state == "refused")

    def _move(self, state: State, error: str = "") -> None:
        self.state = state
        self.last_error = "" if state == "up" else error or self.last_error
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # -- the connection's life ------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._move("connecting")
            try:
                await self._session()
            except _Refused as e:
                log.error("%s", e)
                return self._move("refused", str(e))
            except (OSError, BridgeError) as e:
                self._down(self._sentence(e))
            except Exception as e:  # a fault of ours must not end the link for good
                self.counters["errors"] += 1
                log.exception("the AMI session failed")
                self._down(f"the AMI session failed: {type(e).__name__}")
            await asyncio.sleep(backoff(self._failures, self._jitter()))
            self._failures += 1
            self.counters["reconnects"] += 1

    def _down(self, error: str) -> None:
        if error != self.last_error:  # once, not at every retry
            log.warning("AMI: %s", error)
        self._move("down", error)

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._where} did not answer within {self._settings.timeout:g} s"
        if isinstance(error, ssl.SSLError):
            return (
                f"TLS with {self._where} failed: {error.strerror or error}; does this port speak "
                "TLS (tlsenable, 5039), with a certificate for ami.host that this machine trusts?"
            )
        if isinstance(error, OSError):
            # asyncio's own text of a refused connection repeats the address instead of saying why
            refused = isinstance(error, ConnectionError) and error.errno
            reason = os.strerror(error.errno or 0) if refused else error.strerror or str(error)
            return (
                f"cannot connect to {self._where}: {reason}; "
                "is Asterisk running there, with enabled = yes in manager.conf?"
            )
        return f"{self._where}: {error}"

    async def _session(self) -> None:
        connection = AmiConnection(self._event, self.counters)
        try:
            async with asyncio.timeout(self._settings.timeout):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    self._settings.host,
                    self._settings.port,
                    ssl=self._tls,
                )
                await self._log_in(connection)
            self._connection = connection
            self._move("up")
            log.info("AMI: logged in at %s, version %s", self._where, self.version)
            await self._watch(connection)
        finally:
            self._connection = None
            await connection.shut()

    async def _log_in(self, connection: AmiConnection) -> None:
        await connection.greeted.wait()
        self.version = connection.decoder.version or ""
        user, secret = self._settings.username, self._settings.secret.get_secret_value()
        headers = [("Username", user), ("Events", "user,dialplan")]
        if self._settings.auth == "md5":
            challenge = await connection.ask(
                "Challenge", [("AuthType", "MD5")], Action.action_id_generator()
            )
            text = self._accepted("Challenge", challenge).get("challenge", "") + secret
            key = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            headers += [("AuthType", "MD5"), ("Key", key)]
        else:
            headers.append(("Secret", secret))
        response = await connection.ask("Login", headers, Action.action_id_generator())
        # A stopping Asterisk answers "Asterisk is shutting down", which passes
        if not response.success and _text(response).casefold() == "authentication failed":
            raise _Refused(
                f"Asterisk at {self._where} refused the AMI user {user!r}: correct ami.username "
                "and ami.secret, or manager.conf (secret, permit, deny), and restart"
            )
        self._accepted("Login", response)

    async def _watch(self, connection: AmiConnection) -> None:
        """Ping until the connection ends, or until two pongs in a row are missing."""
        missed = 0
        while missed < MISSED_PONGS:
            if not missed and await connection.ends_within(self._settings.ping_interval):
                raise connection.error()
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await connection.ask("Ping", [], Action.action_id_generator())
            except TimeoutError:
                missed += 1
                self.counters["pings_missed"] += 1
            else:
                missed = 0
                self._failures = 0  # only now: a log-in alone does not prove that it will last
        connection.transport.abort()
        raise DeliveryError(f"{MISSED_PONGS} pings in a row were not answered")

    def _event(self, event: Message) -> None:
        self.counters["events"] += 1
        try:
            found = announcement(event, self._settings.join_variables)
            found = self._consents.announced(found) if found else self._consents.heard(event)
            asked = tap_asked(event) if self._on_tap is not None and found is None else None
            wish = pause_wish(event) if found is None and asked is None else None
        except ProtocolError as e:
            self.counters["bad_announcements"] += 1
            log.warning("AMI: %s", e)
            return
        try:
            if found is not None:
                self.counters["announcements"] += 1
                self._on_announcement(found)
            elif wish is not None:
                self.counters["pauses"] += 1
                self._on_pause(wish)
        except Exception:  # costs this event, not the connection
            self.counters["errors"] += 1
            what = f"leg {found.uuid} could not be announced" if found else "a pause failed"
            log.exception("%s", what)
        if asked is not None:
            self._tap(asked)

    def _tap(self, asked: TapAsked) -> None:
        assert self._on_tap is not None
        self.counters["taps_asked"] += 1
        try:
            self._on_tap(asked)
        except BridgeError as e:
            self.counters["bad_taps"] += 1
            log.warning("AMI: a CallscribeTap asks in vain: %s", e)
        except Exception:  # costs this wish, not the connection
            self.counters["errors"] += 1
            log.exception("a CallscribeTap could not be handed on")


def _text(response: Message) -> str:
    return AmiValue(response.message)[:200]
