"""The body of POST /calls: parsed once, here, into an `Announcement` that cannot be wrong."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import cast

from bridge.errors import BridgeError
from bridge.types import Announcement, CallInfo, LegName

MAX_BODY = 16_384  # bytes
MAX_TEXT = 256  # characters
MAX_EXTRA = 16

NAMES = ("channel", "uniqueid", "linkedid", "caller", "callee")
KEYS = ("uuid", "call", "leg", *NAMES, "extra")
LEGS = ("caller", "callee")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Control characters and line ends could become lines of an AMI action (RELIABILITY S7); a lone
# surrogate, which JSON can spell, cannot be written to any sink at all.
_FORBIDDEN = frozenset(("Cc", "Cs", "Zl", "Zp"))


class BadAnnouncement(BridgeError):
    """The body is not an announcement. The text says which key, and what was expected."""


def parse_announcement(body: bytes, new_uuid: Callable[[], str]) -> Announcement:
    """Check every key and value; a missing uuid comes from `new_uuid`. Raises `BadAnnouncement`."""
    given = _object(body)
    for key in given:
        if key not in KEYS:
            raise BadAnnouncement(f"{_shown(key)} is not a key; the keys are {', '.join(KEYS)}")
    texts = {key: _text(key, given.get(key, "")) for key in ("call", *NAMES)}
    uuid = _uuid(given["uuid"]) if "uuid" in given else new_uuid()
    info = CallInfo(id="", extra=_extra(given.get("extra", {})), **{k: texts[k] for k in NAMES})
    return Announcement(uuid, texts["call"], _leg(given.get("leg", "caller")), info)


def _object(body: bytes) -> dict[str, object]:
    if len(body) > MAX_BODY:
        raise BadAnnouncement(f"the body is longer than {MAX_BODY} bytes")
    try:
        given = json.loads(body.decode("utf-8"), object_pairs_hook=_without_twins)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise BadAnnouncement('the body is not JSON, for example {"leg": "caller"}') from None
    if not isinstance(given, dict):
        raise BadAnnouncement('the body is not a JSON object, for example {"leg": "caller"}')
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


def _extra(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadAnnouncement("extra: expected an object of strings")
    if len(value) > MAX_EXTRA:
        raise BadAnnouncement(f"extra: more than {MAX_EXTRA} entries")
    if "" in value:
        raise BadAnnouncement("extra: a key is empty")
    # Keys go where values go, so they pass the same check before they are shown.
    return {_text("a key of extra", k): _text(f"extra.{_shown(k)}", v) for k, v in value.items()}


def _shown(key: str) -> str:
    """A peer's key in a sentence: quoted, escaped, and cut to what a terminal line takes."""
    return json.dumps(key if len(key) <= 40 else key[:40] + "…")
