"""FreeSWITCH's event socket (mod_event_socket): one connection that looks after itself.

The sister of `bridge.pbx.ami`, with the same states. There is no TLS: the password and all that is
said go in the clear.

We subscribe to nothing. A listener that does not read its events is cut off by FreeSWITCH, and
keeps others waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from bridge.config import Address, EslSettings
from bridge.errors import BridgeError, DeliveryError, ProtocolError
from bridge.pbx.ami import backoff
from bridge.pbx.esl_connection import EslConnection
from bridge.pbx.esl_text import EslMessage, encode_command, is_channel, quoted

log = logging.getLogger(__name__)

IN_FLIGHT = 64  # commands that wait for a reply; more wait their turn, in order
MISSED_PONGS = 2  # in a row, and the connection is taken for dead
PING = "nolog"  # answered at once, needs no right, and changes nothing: we never ask for the log

State: TypeAlias = Literal["connecting", "up", "down", "refused"]


class _Refused(BridgeError):
    """FreeSWITCH does not want this password: trying again would only fill its log."""


class EslLink:
    """A logged-in event socket, made again whenever it is lost.

    `jitter` gives numbers in 0…1. `state` is ``refused`` after a wrong password, which only a
    restart ends; `last_error` is a sentence without secrets. `on_event` gets what `subscribe`
    asked for, on the event loop.
    """

    def __init__(
        self,
        settings: EslSettings,
        *,
        jitter: Callable[[], float] = random.random,
        on_event: Callable[[EslMessage], None] = lambda event: None,
    ) -> None:
        self.state: State = "connecting"
        self.last_error = ""
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._where = str(Address(settings.host, settings.port))
        self._jitter = jitter
        self._on_event = on_event
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self._moved = asyncio.Event()  # set, and replaced, whenever `state` changes
        self._connection: EslConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._failures = 0

    async def start(self) -> None:
        """Begin connecting in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="esl")

    async def close(self) -> None:
        """Let go. Commands still waiting raise `DeliveryError`. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._move("down", "the event socket link is closed")

    async def up(self) -> None:
        """Wait until logged in. Raises `DeliveryError` when refused, closed or not started."""
        while self.state != "up":
            if self.state == "refused" or self._task is None:
                raise self._unavailable()
            await self._moved.wait()

    # -- commands --------------------------------------------------------------------------------
    # All raise `DeliveryError`: permanent where FreeSWITCH said no, gone where it refused our
    # password, neither where it is down or did not answer; then nobody knows whether it acted.

    async def event(
        self, subclass: str, headers: Sequence[tuple[str, str]], body: bytes = b""
    ) -> None:
        """Fire a CUSTOM event."""
        wire = encode_command("sendevent CUSTOM", [("Event-Subclass", subclass), *headers], body)
        await self._command("sendevent", wire)

    async def setvar(self, channel: str, name: str, value: str) -> None:
        """Set a channel variable; `channel` is a UUID, `name` is ours."""
        _check_channel(channel)
        await self._command(
            "uuid_setvar", encode_command(f"api uuid_setvar {channel} {name} {quoted(value)}")
        )

    async def api(self, command: str) -> None:
        """Run an API command that answers +OK; made of what is ours, nothing is made safe here."""
        name = command.partition(" ")[0]
        await self._command(name, encode_command(f"api {command}"))

    async def unicast(
        self, channel: str, local: Address, remote: Address, *, native: bool = False
    ) -> None:
        """Have a channel's audio sent from `local` (port 0: any) to `remote`, raw, by UDP.

        L16 in the byte order of FreeSWITCH's machine, or, where `native`, the bytes of the
        channel's codec. It begins when the channel is parked, and ends when it no longer is.
        """
        _check_channel(channel)
        headers = [
            ("call-command", "unicast"),
            ("local-ip", local.host),
            ("local-port", str(local.port)),
            ("remote-ip", remote.host),
            ("remote-port", str(remote.port)),
            ("transport", "udp"),
            *([("flags", "native")] if native else []),
        ]
        await self._command("unicast", encode_command(f"sendmsg {channel}", headers))

    async def subscribe(self, subclass: str) -> None:
        """Have CUSTOM events of this subclass sent to `on_event`, until the connection is lost."""
        await self._command("event", encode_command(f"event plain CUSTOM {subclass}"))

    async def _command(self, name: str, wire: bytes) -> None:
        self.counters["commands"] += 1
        try:
            async with asyncio.timeout(self._settings.timeout), self._places:
                if self._connection is None:
                    raise self._unavailable()
                reply = await self._connection.ask(wire)
        except TimeoutError:
            self.counters["command_timeouts"] += 1
            raise DeliveryError(
                f"FreeSWITCH at {self._where} did not answer {name} within "
                f"{self._settings.timeout:g} s"
            ) from None
        answer = reply.answer
        if answer.startswith("+OK"):
            return
        self.counters["command_errors"] += 1
        hint = f"; the user's esl-allowed-api needs {name}" if "denied" in answer else ""
        raise DeliveryError(f"FreeSWITCH refused {name}: {answer[:200]}{hint}", permanent=True)

    def _unavailable(self) -> DeliveryError:
        because = f": {self.last_error}" if self.last_error else ""
        return DeliveryError(
            f"the event socket is {self.state}{because}", gone=self.state == "refused"
        )

    def _move(self, state: State, error: str = "") -> None:
        self.state = state
        self.last_error = "" if state == "up" else error or self.last_error
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # -- the connection's life -------------------------------------------------------------------

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
                log.exception("the event socket session failed")
                self._down(f"the event socket session failed: {type(e).__name__}")
            await asyncio.sleep(backoff(self._failures, self._jitter()))
            self._failures += 1
            self.counters["reconnects"] += 1

    def _down(self, error: str) -> None:
        if error != self.last_error:  # once, not at every retry
            log.warning("event socket: %s", error)
        self._move("down", error)

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._where} did not answer within {self._settings.timeout:g} s"
        if isinstance(error, OSError):
            # asyncio's own text of a refused connection repeats the address instead of saying why
            refused = isinstance(error, ConnectionError) and error.errno
            reason = os.strerror(error.errno or 0) if refused else error.strerror or str(error)
            return (
                f"cannot connect to {self._where}: {reason}; is FreeSWITCH running there, with "
                "mod_event_socket loaded and its listen-ip and listen-port so?"
            )
        return f"{self._where}: {error}"

    async def _session(self) -> None:
        connection = EslConnection(self._event, self.counters)
        try:
            async with asyncio.timeout(self._settings.timeout):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, self._settings.host, self._settings.port
                )
                await self._log_in(connection)
            self._connection = connection
            self._move("up")
            log.info("event socket: logged in at %s", self._where)
            await self._watch(connection)
        finally:
            self._connection = None
            await connection.shut()

    async def _log_in(self, connection: EslConnection) -> None:
        await connection.greeted.wait()
        user, password = self._settings.username, self._settings.password.get_secret_value()
        line = f"userauth {user}:{password}" if user else f"auth {password}"
        reply = await connection.ask(encode_command(line))
        if reply.answer.startswith("+OK"):
            return
        if reply.answer.startswith("-ERR invalid"):
            what = f"the user {user!r}: correct esl.username" if user else "us: correct"
            raise _Refused(
                f"FreeSWITCH at {self._where} refused {what}{' and' if user else ''} esl.password, "
                f"or {'esl-password of that user' if user else 'event_socket.conf.xml'}, and "
                "restart"
            )
        raise ProtocolError(f"FreeSWITCH answered the log-in with {reply.answer[:100]!r}")

    async def _watch(self, connection: EslConnection) -> None:
        """Ping until the connection ends, or until two pongs in a row are missing."""
        missed = 0
        while missed < MISSED_PONGS:
            if not missed and await connection.ends_within(self._settings.ping_interval):
                raise connection.error()
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await connection.ask(encode_command(PING))  # any answer will do
            except TimeoutError:
                missed += 1
                self.counters["pings_missed"] += 1
            else:
                missed = 0
                self._failures = 0  # only now: a log-in alone does not prove that it will last
        connection.transport.abort()
        raise DeliveryError(f"{MISSED_PONGS} pings in a row were not answered")

    def _event(self, event: EslMessage) -> None:
        try:
            self._on_event(event)
        except Exception:  # costs this event, not the connection
            self.counters["errors"] += 1
            log.exception("an event from FreeSWITCH could not be handled")


def _check_channel(channel: str) -> None:
    if not is_channel(channel):
        raise DeliveryError(f"{channel[:64]!r} is no FreeSWITCH channel's UUID", permanent=True)
