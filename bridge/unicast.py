"""FreeSWITCH is asked for a channel's audio, once for each announcement that says something new."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from bridge.config import Address
from bridge.egress.esl import channel_of
from bridge.errors import DeliveryError
from bridge.media import MediaAddress, MediaRequest
from bridge.pbx.esl import EslLink
from bridge.types import Announcement

log = logging.getLogger(__name__)

Source = tuple[str, int | None]


class Unicasts:
    """`source(uuid)`: where the audio of the port that is open for it comes from; None: no port.

    A second `unicast` of a channel that has one makes FreeSWITCH end the first. So the same
    announcement once more, by a call control that is not sure, asks for nothing; unless the audio
    is to come from elsewhere now, or FreeSWITCH has said no.
    """

    def __init__(self, link: EslLink, source: Callable[[str], Source | None]) -> None:
        self._link = link
        self._source = source
        self._asked: dict[str, Source] = {}  # by UUID, of ports that are open
        self._asking: set[asyncio.Task[None]] = set()

    def opened(self, announcement: Announcement, request: MediaRequest, to: MediaAddress) -> None:
        """A port has been announced."""
        channel, source, uuid = channel_of(announcement.info), request.source, announcement.uuid
        if request.kind != "l16" or source is None or not channel:
            return
        self._asked = {id: at for id, at in self._asked.items() if self._source(id) is not None}
        if self._asked.get(uuid) == source:
            return
        self._asked[uuid] = source
        local, remote = Address(source[0], source[1] or 0), Address(to.address, to.port)
        native = not to.codec.startswith("l16")
        task = asyncio.create_task(self._ask(uuid, channel, local, remote, native))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(
        self, uuid: str, channel: str, local: Address, remote: Address, native: bool
    ) -> None:
        """Where FreeSWITCH does not send any, the port expires."""
        try:
            await self._link.unicast(channel, local, remote, native=native)
        except DeliveryError as e:
            self._asked.pop(uuid, None)
            log.warning("channel %s will not be heard: %s", channel, e)
