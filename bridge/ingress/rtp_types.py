"""What was announced about a stream: words → rules that can be relied on; and its counts. Pure.

RTP says only a number, 0 to 127. Some numbers are fixed (RFC 3551 table 4); the others mean what
call control says. Without SDP, Asterisk has numbers of its own for them (main/rtp_engine.c), and
these hold where an announcement names a codec and no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from bridge.audio.codecs import STATIC_TYPES, codec
from bridge.errors import BridgeError


class BadMedia(BridgeError):
    """What was announced about a stream cannot be heard. The text says what, and what would do."""


@dataclass(frozen=True, slots=True)
class AudioType:
    """Audio: the codec's name and its rate in Hz."""

    name: str
    rate: int

    def __str__(self) -> str:
        return f"{self.name}/{self.rate}"


PayloadType: TypeAlias = AudioType | Literal["cn", "telephone-event"]

EVENTS: Final = 101  # telephone-event's number by convention
OLD_NOISE: Final = 19  # comfort noise, before it was 13
SLIN: Final = {
    8000: (10, 11), 12000: (122,), 16000: (118,), 24000: (123,), 32000: (124,), 44100: (125,),
    48000: (126,),
}  # fmt: skip
"""Asterisk's payload types of signed linear. 10 and 11 are 44.1 kHz in RFC 3551."""
_ASTERISK = {"ulaw": "pcmu", "alaw": "pcma", "slin": "l16/8000"} | {
    f"slin{rate // 1000}": f"l16/{rate}" for rate in SLIN if rate != 8000
}
_RATES = {"pcmu": 8000, "pcma": 8000, "g722": 16000}
MAX_SHOWN: Final = 40  # characters of somebody's text in a sentence


@dataclass(frozen=True, slots=True)
class Keys:
    """An SRTP suite, and its master key and salt. Made by `srtp.keys`, which checks them."""

    suite: str
    key: bytes = field(repr=False)  # never in a log


def payload_types(
    audio: str = "pcmu", given: Mapping[str, str] | None = None, *, events: int = EVENTS
) -> Mapping[int, PayloadType]:
    """The table of a stream of `audio`, with what was `given` by number. Raises `BadMedia`.

    Names are SDP's (``PCMU/8000``, ``L16/16000``, ``telephone-event/8000``, ``CN``) or Asterisk's
    (``ulaw``, ``slin16``). The numbers of RFC 3551 mean what they always do unless given anew.
    `events` is telephone-event's number unless that is given.
    """
    mine = _audio(audio)
    types: dict[int, PayloadType] = {
        number: "cn" if name == "cn" else AudioType(name, rate)
        for number, (name, rate) in STATIC_TYPES.items()
    }
    types[OLD_NOISE] = "cn"
    more = {_number(number): _type(name) for number, name in (given or {}).items()}
    if "telephone-event" not in more.values():
        types[events] = "telephone-event"
    if mine not in more.values() and mine not in types.values():
        if mine.name != "l16" or mine.rate not in SLIN:
            raise BadMedia(
                f'codec {mine} has no payload type of its own: give it one, as {{"96": "{mine}"}}'
            )
        types |= dict.fromkeys(SLIN[mine.rate], mine)
    return types | more


def _number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else -1
    if not 0 <= number <= 127:
        raise BadMedia(f"payload type {_shown(text)}: expected a number from 0 to 127")
    if 64 <= number <= 95:
        raise BadMedia(
            f"payload type {number} cannot be told from RTCP (RFC 5761): "
            "expected 0 to 63 or 96 to 127"
        )
    return number


def _type(text: str) -> PayloadType:
    match text.lower().partition("/")[0]:
        case "cn":
            return "cn"
        case "telephone-event":
            return "telephone-event"
    return _audio(text)


def _audio(text: str) -> AudioType:
    """SDP's ``name/clock/channels`` or a name of Asterisk's."""
    name, *more = _ASTERISK.get(text.lower(), text.lower()).split("/")
    if len(more) > 1 and more[1] != "1":
        raise BadMedia(f"codec {_shown(text)}: only one channel can be heard")
    rate = _RATES.get(name, 0)
    if more:
        clock = more[0]
        if not (clock.isascii() and clock.isdigit() and len(clock) <= 6):
            raise BadMedia(f'codec {_shown(text)}: expected a rate in Hz, as "l16/16000"')
        # SDP gives G.722 the clock that it has, not its rate (RFC 3551 §4.5.2).
        rate = 16000 if name == "g722" and clock == "8000" else int(clock)
    elif rate == 0 and name in ("l16", "l16le"):
        raise BadMedia(f'codec {_shown(text)} needs its rate, as "{name}/16000"')
    try:
        found = codec(name, rate)
    except ValueError as e:
        raise BadMedia(str(e)) from None
    return AudioType(found.name, found.rate)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


# -- rules and counts ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RtpRules:
    """What was announced about one stream. Times in seconds.

    `ssrc` and `cname` are our own, in reports; an SSRC should be random. `answer` are the SRTP
    keys that the peer was told for what we send. `bye_wait`: how long after a BYE audio that goes
    on can still take it back.
    """

    payload_types: Mapping[int, PayloadType] = field(default_factory=payload_types)
    timeout: float = 30.0
    bye_wait: float = 2.0
    jitter_floor: float = 0.02
    jitter_cap: float = 0.2
    conceal: bool = True
    srtp: Keys | None = None
    answer: Keys | None = None
    ssrc: int = 1
    cname: str = "callscribe"


@dataclass(frozen=True, slots=True)
class RtpCounts:
    """What a stream came to, in packets where nothing else is said.

    Every datagram is one of `received`, `duplicate`, `stray`, `invalid`, `srtp_failed`,
    `srtp_replayed` and `rtcp`.
    """

    received: int = 0  # of the stream, each once
    lost: int = 0  # never came
    late: int = 0  # among the received: came when their place had been played
    duplicate: int = 0
    reordered: int = 0  # among the received: came after a later one
    stray: int = 0  # of another SSRC or numbering, and never believed
    restarts: int = 0  # changes of SSRC, and jumps of the numbering
    invalid: int = 0
    unknown_type: int = 0  # among the received
    srtp_failed: int = 0
    srtp_replayed: int = 0
    rtcp: int = 0
    jitter: float = 0.0  # s, as RFC 3550 A.8 has it at the end
    concealed: float = 0.0  # s of audio that nobody sent
    faults: Mapping[str, int] = field(default_factory=dict)  # `invalid`, by what was wrong
