"""Words to call control over FreeSWITCH's event socket: CUSTOM events and channel variables.

The event `callscribe::transcript` has the headers of AMI's `UserEvent: Transcript`, and as its body
the JSON that an HTTP callback has. The channel is in ``Channel-UUID``: with ``Unique-ID``, as
FreeSWITCH's own events have it, the event would go to the channel instead of those who listen.

A call has a FreeSWITCH channel when it was announced with its UUID (POST /calls, "channel"). That
one gets the variables; calls without, Asterisk's for example, only have events.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from bridge import contract
from bridge.config import EslSettings
from bridge.egress.ami import transcript, type_of, variables
from bridge.errors import DeliveryError
from bridge.types import CallEvent, CallInfo

log = logging.getLogger(__name__)

SUBCLASS = "callscribe::transcript"
_ASTERISKS = ("CallID", "Channel", "Uniqueid", "Linkedid")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class EslLinkLike(Protocol):
    """What this needs of the connection. It makes values safe."""

    async def event(
        self, subclass: str, headers: Sequence[tuple[str, str]], body: bytes = b""
    ) -> None:
        """Fire a CUSTOM event. Raises `DeliveryError`."""

    async def setvar(self, channel: str, name: str, value: str) -> None:
        """Set a channel variable. Raises `DeliveryError`."""


class EslEgress:
    """Tells FreeSWITCH, and whoever listens to it.

    A retry carries the same Seq as the attempt before, so that a listener can recognise what it
    has already seen. `counters`: events, variables, hung_up, variable_errors.
    """

    name = "esl"

    def __init__(self, link: EslLinkLike, settings: EslSettings) -> None:
        self.counters: Counter[str] = Counter()
        self._link = link
        self._events = frozenset(settings.events)
        self._set_variables = settings.set_variables

    async def start(self) -> None:
        """Nothing: the link has a life of its own."""

    async def close(self) -> None:
        """Nothing: the link has a life of its own."""

    async def deliver(self, event: CallEvent) -> None:
        """The variables first: whoever acts on the event may read them. Raises `DeliveryError`."""
        channel = channel_of(event.call)
        if self._set_variables and channel:
            for variable, value in variables(event).items():
                await self._set(event, channel, variable, value)
        if type_of(event.body) in self._events:
            await self._link.event(SUBCLASS, headers(event), contract.body(event))
            self.counters["events"] += 1

    async def _set(self, event: CallEvent, channel: str, variable: str, value: str) -> None:
        try:
            await self._link.setvar(channel, variable, value)
            self.counters["variables"] += 1
        except DeliveryError as e:
            if not e.permanent:
                raise
            if "No such channel" in str(e):  # the caller has hung up, which is no error
                self.counters["hung_up"] += 1
                return
            # FreeSWITCH will not have the variable; the event must still be told
            self.counters["variable_errors"] += 1
            log.warning("call %s: %s is not set: %s", event.call.id, variable, e)


def channel_of(call: CallInfo) -> str:
    """The UUID of the call's FreeSWITCH channel, empty where it has none that we know of."""
    return next((name for name in (call.channel, call.uniqueid) if _UUID.fullmatch(name)), "")


def headers(event: CallEvent) -> list[tuple[str, str]]:
    """The event's headers in their order, without those that have no value."""
    own = [("Call-ID", event.call.id), ("Channel-UUID", channel_of(event.call))]
    rest = [pair for pair in transcript(event) if pair[0] not in _ASTERISKS]
    return [pair for pair in own if pair[1]] + rest
