"""The sending side of one leg over RTP: datagrams at their times, to one port.

Nothing answers RTP. All that is told here is what the kernel reports (nobody listens there), so
what was heard must be asked of the bridge (bridge/announcing.py).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bridge.caller import Clock
from bridge.config import Address
from bridge.rtp_script import Impaired, Schedule

DEAF = 25  # packets that came back: half a second of a usual stream

End: TypeAlias = Literal["us", "peer", "error"]


@dataclass
class RtpResult:
    """What became of one leg.

    `seconds` is the time of the last packet sent on the leg's clock. `lost`, `held_back` and
    `twice` are packets that the impairments met, of `packets_of` that there were. `returned` came
    back from the network. `ended_by`: ``us`` when all was sent, ``peer`` when the port closed after
    it had been open, ``error`` for anything else; then `error` is a sentence.
    """

    uuid: str
    leg: str = "caller"
    call: str = ""
    to: str = ""
    packets_of: int = 0
    packets_sent: int = 0
    bytes_received: int = 0
    lost: int = 0
    held_back: int = 0
    twice: int = 0
    returned: int = 0
    seconds: float = 0.0
    ended_by: End = "us"
    error: str = ""

    def met(self, sent: Impaired) -> None:
        """Take over what the impairments have met."""
        self.lost, self.held_back, self.twice = sent.lost, sent.held_back, sent.twice

    @property
    def failed(self) -> bool:
        """A bridge may end a leg; one that does not listen is a failure."""
        return self.ended_by == "error" or bool(self.error)


class Line(asyncio.DatagramProtocol):
    """A connected UDP socket; counts what comes and what comes back."""

    def __init__(self, result: RtpResult) -> None:
        self._result = result
        self.returned = 0
        self.cause = ""

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._result.bytes_received += len(data)

    def error_received(self, exc: Exception) -> None:
        self.returned += 1
        self._result.returned += 1
        self.cause = (exc.strerror if isinstance(exc, OSError) else "") or str(exc)


def bound_socket(host: str) -> socket.socket:
    """A UDP socket with a port, of the family of this IP address of ours. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(("", 0))
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(sock: socket.socket, to: Address) -> None:
    """Speak to this address alone, which sends nothing yet. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(to.host, to.port, family=sock.family, type=socket.SOCK_DGRAM)
    sock.connect(found[0][4])


async def open_socket(to: Address) -> socket.socket:
    """A UDP socket that speaks to this address alone. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(to.host, to.port, type=socket.SOCK_DGRAM)
    sock = bound_socket(str(found[0][4][0]))
    try:
        sock.connect(found[0][4])
    except BaseException:
        sock.close()
        raise
    return sock


async def send(
    schedule: Schedule,
    sock: socket.socket,
    result: RtpResult,
    start: float,
    pace: float,
    clock: Clock,
    *,
    goodbye: bytes = b"",
    on_sent: Callable[[float], None] | None = None,
) -> None:
    """Send each datagram `pace` seconds a second after `start`, and `goodbye` whatever happens.

    The times are from the start, so that nothing drifts. `sock` is connected, and closed here.
    """
    loop = asyncio.get_running_loop()
    line = Line(result)
    try:
        transport, _ = await loop.create_datagram_endpoint(lambda: line, sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        for due, data in schedule:
            await clock.sleep_until(start + due * pace)
            if line.returned >= DEAF:
                _deaf(result, line)
                break
            transport.sendto(data)
            result.packets_sent += 1
            result.seconds = due
            if on_sent is not None:
                on_sent(due)
        await asyncio.sleep(0)  # let in what came back of the last ones
        if line.returned and line.returned >= result.packets_sent // 2:
            _deaf(result, line)  # the kernel tells of every second one
    finally:
        if goodbye:
            transport.sendto(goodbye)
        transport.close()


def _deaf(result: RtpResult, line: Line) -> None:
    """The port is closed: from the beginning, or since the bridge has ended the leg."""
    if line.returned >= result.packets_sent // 2:
        result.ended_by = "error"
        result.error = (
            f"nobody listens at {result.to}: {line.cause}; a port must be announced "
            "(POST /calls), which --to http://host:port does by itself"
        )
    else:
        result.ended_by = "peer"
