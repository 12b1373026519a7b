"""One connection to Asterisk's manager: actions out, responses to those who wait, events in.

From panoramisk come `Message` (headers in any case), `Action` (an action's id and its future) and
`AMIProtocol` (the connection and its table of waiting actions). Most methods of its protocol are
overridden, because version 1.4 loses characters that are split over two reads, takes any event
with our ActionID for the response, and lets a line feed in a value through.

Everything from the socket is handled at once in `data_received`: Asterisk ends a session that does
not read (`writetimeout`), so there is no queue between the socket and the announcement.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from panoramisk.actions import Action
from panoramisk.ami_protocol import AMIProtocol
from panoramisk.message import Message

from bridge.errors import BridgeError, DeliveryError, ProtocolError
from bridge.pbx.ami_text import AmiDecoder, AmiValue, Pairs, encode_action

LOGOFF = 1.0  # seconds that Asterisk has to say goodbye


class AmiConnection(AMIProtocol):  # type: ignore[misc]  # panoramisk has no types
    """One TCP connection: responses to those who wait for them, events to `on_event`."""

    def __init__(self, on_event: Callable[[Message], None], counters: Counter[str]) -> None:
        self.decoder = AmiDecoder()
        self.greeted = asyncio.Event()  # the banner has come, or never will
        self.lost = asyncio.Event()
        self.transport: asyncio.Transport
        self.responses: dict[str, Action] = {}  # ActionID → the action that waits
        self._on_event = on_event
        self._counters = counters
        self._writable = asyncio.Event()
        self._writable.set()
        self._failure: Exception | None = None
        self._connected = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connected = True

    def data_received(self, data: bytes) -> None:
        oversized = self.decoder.oversized
        try:
            messages = self.decoder.feed(data)
        except ProtocolError as e:
            self._failure = e
            return self.transport.abort()
        self._counters["oversized"] += self.decoder.oversized - oversized
        if self.decoder.version is not None:
            self.greeted.set()
        for pairs in messages:
            self._dispatch(pairs)

    def _dispatch(self, pairs: Pairs) -> None:
        """By the first header, which Asterisk writes; what follows may be a caller's."""
        kind = pairs[0][0].lower()
        # The first of repeated headers counts: a dialplan UserEvent's snapshot precedes its own
        message = Message({key.lower(): value for key, value in reversed(pairs)})
        if kind == "event":
            self._on_event(message)
        elif kind == "response":
            self.handle_message(message)

    def handle_message(self, message: Message) -> None:
        action = self.responses.get(message.actionid)
        if action is None or action.future.done():
            # Too late, or the second answer that a line too long gets, which has no ActionID
            self._counters["unmatched_responses"] += 1
        else:
            action.future.set_result(message)

    async def ask(self, name: str, headers: Sequence[tuple[str, str]], action_id: str) -> Message:
        """Write an action and wait for its response. Raises `DeliveryError` if the line is lost."""
        wire = encode_action(name, action_id, headers)
        await self._writable.wait()
        if self.lost.is_set():
            raise self.error()
        action = Action({"Action": name, "ActionID": AmiValue(action_id)})
        if self.responses.setdefault(action.id, action) is not action:
            raise DeliveryError(f"an action with this ActionID still waits: {action.id}")
        try:
            self.transport.write(wire)
            return await action.future
        finally:
            del self.responses[action.id]

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
        for action in self.responses.values():
            if not action.future.done():
                action.future.set_exception(self.error())

    def error(self) -> BridgeError:
        """Why the connection ended, as nobody's fault but Asterisk's."""
        if isinstance(self._failure, BridgeError):
            return self._failure
        return DeliveryError(
            "Asterisk closed the connection"
            if self._failure is None
            else f"the connection broke: {self._failure}"
        )

    async def shut(self) -> None:
        """Close, and wait until it is closed; what Asterisk does not take in time is dropped."""
        if not self._connected:
            return
        self.transport.close()
        if not await self.ends_within(LOGOFF):
            self.transport.abort()
            await self.lost.wait()
