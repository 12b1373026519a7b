"""The body of POST /calls: parsed once, here, into what cannot be wrong in itself.

{"leg": "caller", "call": "c-1"}                          a UUID for AudioSocket
{…, "media": {"type": "rtp", "codec": "pcmu"}}            a UDP port for RTP
{…, "listen": {"seconds": 15, "begin": 5}}                one turn, then the dialplan goes on
{"tap": true, "channel": "PJSIP/alice-00000001"}          Asterisk is asked for the call's audio
"""

from __future__ import annotations

import ipaddress
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from bridge.errors import BridgeError
from bridge.media import MediaKind, MediaRequest, SrtpKey
from bridge.types import Announcement, CallInfo, LegName, Listen

MAX_BODY = 16_384  # bytes
MAX_TEXT = 256  # characters
MAX_EXTRA = 16

NAMES = ("channel", "uniqueid", "linkedid", "caller", "callee")
KEYS = ("uuid", "call", "leg", *NAMES, "extra", "recording_consent", "listen", "media", "tap")
LISTEN_KEYS = ("seconds", "begin")
MAX_LISTEN = 600  # s that a dialplan may wait for a turn
TAP_KEYS = ("tap", "channel", "call", "leg", "recording_consent")
KINDS = ("rtp", "l16")
MEDIA_KEYS = ("type", "codec", "from", "ptime", "payload_types", "srtp")
SRTP_KEYS = ("suite", "key")
MAX_TYPES = 32
PTIME = (10, 60)  # ms, as in SDP
LEGS = ("caller", "callee")
# [v6]:port, v4:port, v6; each gives a host and a port that may be empty
_PORT = "(?::([0-9]{1,6}))"
_FROM = re.compile(
    rf"\[([0-9a-fA-F:.]+)\](?:{_PORT}|())|([0-9.]+)(?:{_PORT}|())|([0-9a-fA-F:.]+)()"
)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Control characters and line ends could become lines of an AMI action; a lone
# surrogate, which JSON can spell, cannot be written to any sink at all.
_FORBIDDEN = frozenset(("Cc", "Cs", "Zl", "Zp"))


class BadAnnouncement(BridgeError):
    """The body is not an announcement. The text says which key, and what was expected."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A leg that will come. `media`: None for AudioSocket, which needs no port."""

    announcement: Announcement
    media: MediaRequest | None


@dataclass(frozen=True, slots=True)
class TapWanted:
    """A channel that is up, to be listened to. `leg`: None for both parties of its call."""

    channel: str
    call: str
    leg: LegName | None
    consents: bool = False  # to recording


def parse_announcement(body: bytes, new_uuid: Callable[[], str]) -> Wanted | TapWanted:
    """Check every key and value; a missing uuid comes from `new_uuid`. Raises `BadAnnouncement`."""
    given = json_object(body)
    for key in given:
        if key not in KEYS:
            raise BadAnnouncement(f"{_shown(key)} is not a key; the keys are {', '.join(KEYS)}")
    if given.get("tap", False) is not False:
        return _tap(given)
    texts = {key: _text(key, given.get(key, "")) for key in ("call", *NAMES)}
    uuid = _uuid(given["uuid"]) if "uuid" in given else new_uuid()
    info = CallInfo(
        id="",
        channel=texts["channel"],
        uniqueid=texts["uniqueid"],
        linkedid=texts["linkedid"],
        caller=texts["caller"],
        callee=texts["callee"],
        extra=_extra(given.get("extra", {})),
        recording_consent=_consent(given.get("recording_consent", False)),
    )
    listen = _listen(given["listen"]) if "listen" in given else None
    leg = _leg(given.get("leg", "caller"))
    announcement = Announcement(uuid, texts["call"], leg, info, listen)
    return Wanted(announcement, _media(given["media"]) if "media" in given else None)


def _tap(given: dict[str, object]) -> TapWanted:
    if given["tap"] is not True:
        raise BadAnnouncement("tap: expected true or false")
    for key in given:
        if key not in TAP_KEYS:
            raise BadAnnouncement(f"{key}: does not go with tap; only {', '.join(TAP_KEYS)} do")
    channel = _text("channel", given.get("channel", ""))
    if not channel:
        raise BadAnnouncement("channel: tap needs the name or the unique id of a channel")
    leg = _leg(given["leg"]) if "leg" in given else None
    consents = _consent(given.get("recording_consent", False))
    return TapWanted(channel, _text("call", given.get("call", "")), leg, consents)


def json_object(body: bytes, example: str = '{"leg": "caller"}') -> dict[str, object]:
    """A body that must be one JSON object. Raises `BadAnnouncement`."""
    if len(body) > MAX_BODY:
        raise BadAnnouncement(f"the body is longer than {MAX_BODY} bytes")
    try:
        given = json.loads(body.decode("utf-8"), object_pairs_hook=_without_twins)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise BadAnnouncement(f"the body is not JSON, for example {example}") from None
    if not isinstance(given, dict):
        raise BadAnnouncement(f"the body is not a JSON object, for example {example}")
    return given


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object's keys, each once: which of two values counts, two readers would disagree on."""
    given = dict(pairs)
    if len(given) != len(pairs):
        raise BadAnnouncement("the body has the same key twice in one object")
    return given


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadAnnouncement(f"{key}: expected a string; leave the key out when unknown")
    if len(value) > MAX_TEXT:
        raise BadAnnouncement(f"{key}: longer than {MAX_TEXT} characters")
    if any(unicodedata.category(c) in _FORBIDDEN for c in value):
        raise BadAnnouncement(f"{key}: has control characters, line ends or lone surrogates")
    return value


def _uuid(value: object) -> str:
    text = _text("uuid", value).lower()  # as AudioSocket's 16 bytes are spelt (`Opened.id`)
    if not _UUID.fullmatch(text):
        raise BadAnnouncement("uuid: expected 36 characters, 8-4-4-4-12 hexadecimal digits")
    return text


def _leg(value: object) -> LegName:
    if value not in LEGS:
        raise BadAnnouncement('leg: expected "caller" or "callee"')
    return cast(LegName, value)


def _listen(value: object) -> Listen:
    given = _keys("listen", value, LISTEN_KEYS)
    if "seconds" not in given:
        raise BadAnnouncement("listen.seconds: is missing")
    seconds = _seconds("listen.seconds", given["seconds"])
    begin = _seconds("listen.begin", given["begin"]) if "begin" in given else seconds
    return Listen(seconds, min(begin, seconds))


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnnouncement(f"{name}: expected seconds, as 8")
    if not 0 < value <= MAX_LISTEN:
        raise BadAnnouncement(f"{name}: expected more than 0 and at most {MAX_LISTEN} seconds")
    return float(value)


def _consent(value: object) -> bool:
    if not isinstance(value, bool):  # "no" must not be taken for a yes
        raise BadAnnouncement("recording_consent: expected true or false")
    return value


def _extra(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadAnnouncement("extra: expected an object of strings")
    if len(value) > MAX_EXTRA:
        raise BadAnnouncement(f"extra: more than {MAX_EXTRA} entries")
    if "" in value:
        raise BadAnnouncement("extra: a key is empty")
    # Keys go where values go, so they pass the same check before they are shown.
    return {_text("a key of extra", k): _text(f"extra.{_shown(k)}", v) for k, v in value.items()}


# -- media -------------------------------------------------------------------------------------


def _media(value: object) -> MediaRequest:
    given = _keys("media", value, MEDIA_KEYS)
    kind = given.get("type")
    if kind not in KINDS:
        raise BadAnnouncement('media.type: expected "rtp", or "l16" for samples without a header')
    types = given.get("payload_types", {})
    if not isinstance(types, dict):
        raise BadAnnouncement('media.payload_types: expected an object, as {"96": "l16/16000"}')
    if len(types) > MAX_TYPES:
        raise BadAnnouncement(f"media.payload_types: more than {MAX_TYPES} entries")
    return MediaRequest(
        kind=cast(MediaKind, kind),
        codec=_text("media.codec", given.get("codec", "")),
        source=_source(given["from"]) if "from" in given else None,
        payload_types={
            _text("a key of media.payload_types", k): _text(f"media.payload_types.{_shown(k)}", v)
            for k, v in types.items()
        },
        ptime=_ptime(given["ptime"]) if "ptime" in given else None,
        srtp=_srtp(given["srtp"]) if "srtp" in given else None,
    )


def _keys(name: str, value: object, keys: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadAnnouncement(f"{name}: expected an object with the keys {', '.join(keys)}")
    for key in value:
        if key not in keys:
            sentence = f"{name}.{_shown(key)} is not a key; the keys are {', '.join(keys)}"
            raise BadAnnouncement(sentence)
    return value


def _source(value: object) -> tuple[str, int | None]:
    """An IP address, with a port or without. Names are not looked up: nothing here waits."""
    found = _FROM.fullmatch(_text("media.from", value))
    try:
        host, port = [text for text in found.groups() if text is not None] if found else ("", "")
        address = ipaddress.ip_address(host)
    except ValueError:
        raise BadAnnouncement(
            'media.from: expected an IP address and a port, as "192.0.2.1:4000", or the address'
        ) from None
    if port and not 1 <= int(port) <= 65535:
        raise BadAnnouncement("media.from: a port is 1 to 65535")
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(port) if port else None


def _ptime(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnnouncement("media.ptime: expected milliseconds, as 20")
    if not PTIME[0] <= value <= PTIME[1]:
        raise BadAnnouncement(f"media.ptime: expected {PTIME[0]} to {PTIME[1]} milliseconds")
    return value / 1000


def _srtp(value: object) -> SrtpKey:
    given = _keys("media.srtp", value, SRTP_KEYS)
    for key in SRTP_KEYS:
        if key not in given:
            raise BadAnnouncement(f"media.srtp.{key}: is missing")
    return SrtpKey(*(_text(f"media.srtp.{key}", given[key]) for key in SRTP_KEYS))


def _shown(key: str) -> str:
    """A peer's key in a sentence: quoted, escaped, and cut to what a terminal line takes."""
    return json.dumps(key if len(key) <= 40 else key[:40] + "…")
