"""What call control says about a stream over UDP, and what it is told. Pure.

Parsed once, where it comes in (bridge/http/announce.py); whether the codecs, keys and addresses
make sense together is decided where the port is opened (bridge/rtp_user.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

MediaKind: TypeAlias = Literal["rtp", "l16"]
"""RTP, or samples without any header (FreeSWITCH's `unicast`)."""


@dataclass(frozen=True, slots=True)
class SrtpKey:
    """A crypto suite and ``inline:`` key of the peer's, as in SDP (RFC 4568)."""

    suite: str
    key: str = field(repr=False)  # never in a log


@dataclass(frozen=True, slots=True)
class MediaRequest:
    """One leg's stream.

    `codec`: its name, empty: the configured one. `source`: the IP address that it comes from, and
    its port where that is known; None: to be learnt. `payload_types`: names by number, both as
    text. `ptime`: seconds of audio in a packet, where it was said; any is understood. `held`:
    nobody is heard until `RtpUser.listen_to` says who. `timeout`: seconds without a packet after
    which the leg is over; None: as configured.
    """

    kind: MediaKind = "rtp"
    codec: str = ""
    source: tuple[str, int | None] | None = None
    payload_types: Mapping[str, str] = field(default_factory=dict)
    ptime: float | None = None
    srtp: SrtpKey | None = None
    held: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class MediaAddress:
    """Where the peer is to send to, within `expires_in` seconds (0: it is sending already).

    `payload_types`: what is understood there, names by number. `srtp`: the key of what we send
    (reports), where the peer has announced one of its own.
    """

    address: str
    port: int
    expires_in: float
    codec: str
    payload_types: Mapping[int, str] = field(default_factory=dict)
    srtp: SrtpKey | None = None
