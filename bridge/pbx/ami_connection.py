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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from panoramisk.actions import Action
from panoramisk.ami_protocol import AMIProtocol
from panoramisk.message import Message

from bridge.errors import DeliveryError, ProtocolError
from bridge.pbx.ami_text import AmiDecoder, AmiValue, Pairs, encode_action
from bridge.pbx.ending import Ending


class AmiConnection(Ending, AMIProtocol):  # type: ignore[misc]  # panoramisk has no types
    """One TCP connection: responses to those who wait for them, events to `on_event`."""

    peer = "Asterisk"

    def __init__(self, on_event: Callable[[Message], None], counters: Counter[str]) -> None:
        Ending.__init__(self)
        self.decoder = AmiDecoder()
        self.responses: dict[str, Action] = {}  # ActionID → the action that waits
        self._on_event = on_event
        self._counters = counters

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        AMIProtocol.connection_made(self, transport)
        Ending.connection_made(self, transport)

    def data_received(self, data: bytes) -> None:
        oversized = self.decoder.oversized
        try:
            messages = self.decoder.feed(data)
        except ProtocolError as e:
            return self.fail(e)
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
        await self.writable()
        action = Action({"Action": name, "ActionID": AmiValue(action_id)})
        if self.responses.setdefault(action.id, action) is not action:
            raise DeliveryError(f"an action with this ActionID still waits: {action.id}")
        try:
            self.transport.write(wire)
            return await action.future
        finally:
            del self.responses[action.id]

    def _waits(self) -> Iterable[asyncio.Future[Any]]:
        return [action.future for action in self.responses.values()]
