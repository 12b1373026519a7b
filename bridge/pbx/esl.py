"""FreeSWITCH's event socket (mod_event_socket): one connection that looks after itself.

The sister of `bridge.pbx.ami`, with the same states. Replies have no id: FreeSWITCH executes the
commands of a connection one after the other and answers each, so the oldest command that waits
gets the next reply. A command that was given up keeps its place until its reply has come, or the
next one would get it. There is no TLS: the password and all that is said go in the clear.

We subscribe to nothing. A listener that does not read its events is cut off by FreeSWITCH, and
keeps others waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, TypeAlias

from bridge.config import Address, EslSettings
from bridge.errors import BridgeError, DeliveryError, ProtocolError
from bridge.pbx.ami import backoff
from bridge.pbx.esl_text import (
    EslDecoder,
    EslMessage,
    encode_command,
    is_channel,
    plain_event,
    quoted,
)

log = logging.getLogger(__name__)

IN_FLIGHT = 64  # commands that wait for a reply; more wait their turn, in order
UNANSWERED = 128  # of these and of those that were given up
MISSED_PONGS = 2  # in a row, and the connection is taken for dead
GOODBYE = 1.0  # seconds that FreeSWITCH has to close
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
        self._connection: _Connection | None = None
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
        connection = _Connection(self._event, self.counters)
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

    async def _log_in(self, connection: _Connection) -> None:
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

    async def _watch(self, connection: _Connection) -> None:
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


class _Connection(asyncio.Protocol):
    """One TCP connection: replies to those who wait for them, in order; events to `on_event`."""

    def __init__(self, on_event: Callable[[EslMessage], None], counters: Counter[str]) -> None:
        self.greeted = asyncio.Event()  # FreeSWITCH has asked for the password, or never will
        self.lost = asyncio.Event()
        self.transport: asyncio.Transport
        self._decoder = EslDecoder()
        self._waiting: deque[asyncio.Future[EslMessage]] = deque()  # done: given up
        self._on_event = on_event
        self._counters = counters
        self._writable = asyncio.Event()
        self._writable.set()
        self._failure: Exception | None = None
        self._connected = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connected = True

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._dispatch(message)
        except ProtocolError as e:
            self._failure = e
            self.transport.abort()

    def _dispatch(self, message: EslMessage) -> None:
        if self.greeted.is_set():
            self._take(message)
        elif message.kind == "auth/request":
            self.greeted.set()
        elif message.kind == "text/rude-rejection":
            raise ProtocolError(
                "FreeSWITCH takes no connections from this machine: see apply-inbound-acl in "
                "event_socket.conf.xml"
            )
        else:
            raise ProtocolError(
                "what answers there is not FreeSWITCH's event socket, which would ask for the "
                "password first; check esl.host and esl.port"
            )

    def _take(self, message: EslMessage) -> None:
        match message.kind:
            case "command/reply" | "api/response":
                if not self._waiting:
                    raise ProtocolError("FreeSWITCH sent a reply to nothing")
                waits = self._waiting.popleft()
                if waits.done():
                    self._counters["late_replies"] += 1
                else:
                    waits.set_result(message)
            case "text/event-plain":
                self._counters["events"] += 1
                self._on_event(plain_event(message))
            case "text/disconnect-notice":
                self._failure = DeliveryError("FreeSWITCH said goodbye")
            case _:
                self._counters["unknown_messages"] += 1

    async def ask(self, wire: bytes) -> EslMessage:
        """Write a command and wait for its reply. Raises `DeliveryError` if the line is lost."""
        await self._writable.wait()
        if self.lost.is_set():
            raise self.error()
        if len(self._waiting) >= UNANSWERED:
            raise DeliveryError(f"FreeSWITCH has left {UNANSWERED} commands without an answer")
        waits: asyncio.Future[EslMessage] = asyncio.get_running_loop().create_future()
        self._waiting.append(waits)
        self.transport.write(wire)
        return await waits

    async def ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.lost.wait()
        return self.lost.is_set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._failure = self._failure or exc
        self.lost.set()
        self.greeted.set()
        self._writable.set()
        for waits in self._waiting:
            if not waits.done():
                waits.set_exception(self.error())

    def error(self) -> BridgeError:
        """Why the connection ended, as nobody's fault but FreeSWITCH's."""
        if isinstance(self._failure, BridgeError):
            return self._failure
        return DeliveryError(
            "FreeSWITCH closed the connection"
            if self._failure is None
            else f"the connection broke: {self._failure}"
        )

    async def shut(self) -> None:
        """Close, and wait until it is closed; what FreeSWITCH does not take in time is dropped."""
        if not self._connected:
            return
        self.transport.close()
        if not await self.ends_within(GOODBYE):
            self.transport.abort()
            await self.lost.wait()
