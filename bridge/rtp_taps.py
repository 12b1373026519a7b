"""UDP ports for taps by RTP: opened before Asterisk is asked, told who sends after it has answered.

`bridge/pbx/ari_media.py` says why in this order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.config import Address
from bridge.media import MediaRequest
from bridge.rtp_user import RtpUser
from bridge.types import Announcement

# s without a packet: a snoop sends one every 20 ms, silence too, so that Asterisk or the way to it
# is gone; RTP's own patience (rtp.timeout) is for senders that may be silent.
TIMEOUT = 5.0


class RtpTaps:
    """Implements `bridge.pbx.ari_media.Ports`.

    `unheard` is told the UUID of each leg that is over though its tap is not. `format`: Asterisk's
    name of the codec.
    """

    def __init__(self, rtp: RtpUser, format: str, clock: Callable[[], float]) -> None:
        self.unheard: Callable[[str], None] = lambda uuid: None
        self._rtp = rtp
        self._request = MediaRequest(codec=format, held=True, timeout=TIMEOUT)
        self._clock = clock
        self._addresses: dict[str, str] = {}  # by UUID, of ports that are open
        rtp.on_closed = self._closed

    def announce(self, announcement: Announcement) -> None:
        """A port for this leg. Raises `BridgeError`, or ValueError if the UUID is taken."""
        opened = self._rtp.open(announcement, self._request, self._clock())
        self._addresses[announcement.uuid] = str(Address(opened.address, opened.port))

    def address(self, uuid: str) -> str:
        return self._addresses[uuid]

    def listen_to(self, uuid: str, host: str, port: int) -> None:
        self._rtp.listen_to(uuid, (host, port))

    def end(self, uuid: str) -> None:
        if self._addresses.pop(uuid, None) is not None:
            self._rtp.end(uuid)

    def _closed(self, uuid: str) -> None:
        """A port has closed, and not because its tap is over.

        Told later: whoever closes it has yet to say why.
        """
        if self._addresses.pop(uuid, None) is not None:
            asyncio.get_running_loop().call_soon(self.unheard, uuid)
