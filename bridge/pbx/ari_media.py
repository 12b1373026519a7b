"""How the media channel of a tap (form external_media) brings us what is heard. Pure.

A kind of encapsulation is a class here and an entry of ari.encapsulation: it says what Asterisk is
asked for, makes sense of the answer, and knows what must be done when the attempt is over.

audiosocket   Asterisk connects to us. The channel ends with the connection, so that a process that
              dies takes its taps with it, and one that goes on after a hand-over keeps them.
rtp           Asterisk sends to a port that was opened for this leg and hears nobody, until
              Asterisk has said where it sends from. Nothing comes before the channel is in a
              bridge [seen with 22.10], which is asked for after that: so nobody else can be
              first, and nothing is learnt. Nobody tells Asterisk that the port has closed, nor us
              that the stream is over: whoever notices first ends the other side.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import ProtocolError
from bridge.pbx import ari_events

ADDRESS, PORT = "UNICASTRTP_LOCAL_ADDRESS", "UNICASTRTP_LOCAL_PORT"  # chan_rtp's channelvars


class Media(Protocol):
    """One encapsulation.

    `answers`: the channel may be heard only when `told` has its answer. `stays`: a process can
    hear what another has begun, because Asterisk notices when nobody does.
    """

    @property
    def answers(self) -> bool: ...

    @property
    def stays(self) -> bool: ...

    def ask(self, uuid: str) -> Mapping[str, str]:
        """Parameters of externalMedia, for the leg announced as `uuid`."""

    def told(self, uuid: str, answer: str) -> None:
        """What Asterisk answered. Raises `BridgeError`, and the attempt is over."""

    def over(self, uuid: str) -> None:
        """The attempt is over. Idempotent."""

    def hint(self) -> str:
        """What to look at where no audio comes."""


@dataclass(frozen=True, slots=True)
class AudioSocketMedia:
    """`address`: of [audiosocket], as Asterisk reaches it."""

    address: str = "127.0.0.1:9092"
    answers: bool = False
    stays: bool = True

    def ask(self, uuid: str) -> Mapping[str, str]:
        return {
            "external_host": self.address,
            "encapsulation": "audiosocket",
            "transport": "tcp",
            "data": uuid,
            "format": "slin",
        }

    def told(self, uuid: str, answer: str) -> None:
        """Nothing that we did not know."""

    def over(self, uuid: str) -> None:
        """Its connection ends with its channel."""

    def hint(self) -> str:
        return f"does callscribe listen at {self.address}, as Asterisk sees it?"


class Ports(Protocol):
    """UDP ports, each opened with the announcement of its leg (bridge/rtp_taps.py)."""

    def address(self, uuid: str) -> str:
        """host:port of this leg's."""

    def listen_to(self, uuid: str, host: str, port: int) -> None:
        """From now on hear this sender. Raises `BridgeError` where that may not be."""

    def end(self, uuid: str) -> None:
        """Close it, and end its leg. Idempotent."""


@dataclass(frozen=True, slots=True)
class RtpMedia:
    """`format`: Asterisk's name of the codec, which both sides must agree on: there is no SDP."""

    ports: Ports
    format: str = "ulaw"
    answers: bool = True
    stays: bool = False

    def ask(self, uuid: str) -> Mapping[str, str]:
        return {
            "external_host": self.ports.address(uuid),
            "encapsulation": "rtp",
            "transport": "udp",
            "format": self.format,
        }

    def told(self, uuid: str, answer: str) -> None:
        self.ports.listen_to(uuid, *source(answer))

    def over(self, uuid: str) -> None:
        self.ports.end(uuid)

    def hint(self) -> str:
        return "can Asterisk reach rtp.listen (or rtp.advertise), with no NAT in between?"


def source(answer: str) -> tuple[str, int]:
    """Where a UnicastRTP channel sends from, by the answer to externalMedia.

    Raises `ProtocolError`.
    """
    variables = ari_events.answer(answer).get("channelvars")
    found = variables if isinstance(variables, dict) else {}
    try:
        host = ipaddress.ip_address(str(found[ADDRESS]))
        port = int(str(found[PORT]))
    except (KeyError, ValueError):
        raise ProtocolError(
            f"Asterisk does not say where its audio comes from: expected {ADDRESS} and {PORT} in "
            "the answer to externalMedia"
        ) from None
    if not 1 <= port <= 65535 or host.is_unspecified:
        raise ProtocolError(f"Asterisk says that its audio comes from {host}, port {port}")
    mapped = getattr(host, "ipv4_mapped", None)
    return str(mapped or host), port
