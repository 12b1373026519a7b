"""One connection to FreeSWITCH's event socket: commands out, replies in their order, events in.

Replies have no id: FreeSWITCH executes the commands of a connection one after the other and answers
each, so the oldest command that waits gets the next reply. A command that was given up keeps its
place until its reply has come, or the next one would get it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from bridge.errors import DeliveryError, ProtocolError
from bridge.pbx.ending import Ending
from bridge.pbx.esl_text import EslDecoder, EslMessage, plain_event

UNANSWERED = 128  # commands that wait for a reply, and those that were given up


class EslConnection(Ending, asyncio.Protocol):
    """One TCP connection: replies to those who wait for them, in order; events to `on_event`."""

    peer = "FreeSWITCH"

    def __init__(self, on_event: Callable[[EslMessage], None], counters: Counter[str]) -> None:
        Ending.__init__(self)
        self._decoder = EslDecoder()
        self._waiting: deque[asyncio.Future[EslMessage]] = deque()  # done: given up
        self._on_event = on_event
        self._counters = counters

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._dispatch(message)
        except ProtocolError as e:
            self.fail(e)

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
        await self.writable()
        if len(self._waiting) >= UNANSWERED:
            raise DeliveryError(f"FreeSWITCH has left {UNANSWERED} commands without an answer")
        waits: asyncio.Future[EslMessage] = asyncio.get_running_loop().create_future()
        self._waiting.append(waits)
        self.transport.write(wire)
        return await waits

    def _waits(self) -> Iterable[asyncio.Future[Any]]:
        return self._waiting
