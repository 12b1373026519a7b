"""What hangs on one UDP port: the leg that was announced for it, and what it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from bridge.ingress.raw_udp import RawUdp
from bridge.ingress.rtp import Rtp
from bridge.ingress.rtp_types import RtpCounts
from bridge.line import Line
from bridge.media import MediaRequest, SrtpKey
from bridge.transport.udp_port import UdpPort
from bridge.types import LegCounts

COUNTED = (
    "received", "lost", "late", "duplicate", "reordered", "stray", "restarts", "invalid",
    "unknown_type", "srtp_failed", "srtp_replayed", "rtcp", "concealed",
)  # fmt: skip
"""What of `RtpCounts` adds up over legs; packets, and seconds concealed."""


@dataclass(slots=True)
class Stream:
    """What hangs on one port. `line`: none before the first packet, and none after the end."""

    uuid: str
    call: str
    request: MediaRequest
    types: Mapping[int, str]  # what is understood there
    rtp: Rtp | RawUdp | None  # None: it is over
    answer: SrtpKey | None = None  # of what we send, where the peer uses SRTP
    line: Line | None = None
    counts: RtpCounts = RtpCounts()  # when it was over
    strangers: int = 0

    def counted(self, counts: LegCounts) -> LegCounts:
        """A leg's counts with what became of its packets."""
        rtp = self.rtp.counts() if self.rtp is not None else self.counts
        deaf = rtp.invalid + rtp.stray + rtp.unknown_type + rtp.srtp_failed + rtp.srtp_replayed
        return replace(
            counts,
            packets_lost=rtp.lost,
            packets_late=rtp.late,
            packets_duplicate=rtp.duplicate,
            packets_invalid=deaf,
            packets_foreign=self.strangers,
            jitter=rtp.jitter,
            concealed=rtp.concealed,
        )


def stream_of(port: UdpPort) -> Stream:
    """What hangs on this port."""
    assert isinstance(port.context, Stream)
    return port.context


def add(totals: Counter[str], counts: RtpCounts) -> None:
    """Add `COUNTED` of one stream."""
    found = asdict(counts)
    for name in COUNTED:
        totals[name] += found[name]
