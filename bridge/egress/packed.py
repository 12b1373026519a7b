"""An event as bytes that come back as the same event: what the store keeps. Pure.

The whole event, not what one sink makes of it: after a restart every sink writes it out itself,
to the byte as it would have before (a retry has the same body). JSON, so that an operator can read
a row; text that has no UTF-8 is escaped, so that any text has a form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any, get_args

import orjson

from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegCounts,
    LegName,
    Listened,
    Partial,
    Paused,
    Pressed,
    Refused,
    Resumed,
    RuleFired,
    Started,
    Word,
)

VERSION = 1
_KINDS: Mapping[str, type[EventBody]] = MappingProxyType(
    {
        "started": Started,
        "partial": Partial,
        "final": Final,
        "turn": EndOfTurn,
        "dtmf": Pressed,
        "ended": Ended,
        "refused": Refused,
        "paused": Paused,
        "resumed": Resumed,
        "listened": Listened,
        "rule": RuleFired,
    }
)
_NAMES = {kind: name for name, kind in _KINDS.items()}
_COUNTS = frozenset(field.name for field in fields(LegCounts))
_INFO = tuple(field.name for field in fields(CallInfo) if field.name != "extra")
# Not asdict, which copies what it finds: half of what keeping an event cost.
_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in _NAMES}
_escaped = json.JSONEncoder(separators=(",", ":")).encode


def _dump(value: object) -> bytes:
    """Fast; what that has no form for, a broken text or a number that is none, by `json`."""
    try:
        data = orjson.dumps(value)
    except orjson.JSONEncodeError:
        data = b"null"
    return _escaped(value).encode() if b"null" in data else data


def pack(event: CallEvent) -> bytes:
    """The event without its `gap_before`, which depends on what the sink was given."""
    return _dump(
        [
            VERSION,
            event.seq,
            event.at,
            event.leg,
            _NAMES[type(event.body)],
            _body(event.body),
            _info(event.call),
        ]
    )


def unpack(data: bytes) -> CallEvent:
    """What was packed. Raises ValueError, also for a version of callscribe to come."""
    try:
        version, seq, at, leg, kind, body, call = json.loads(data)
        if version != VERSION:
            raise ValueError(f"version {version!r} of an event, this is {VERSION}")
        if leg is not None and leg not in get_args(LegName):
            raise ValueError(f"no leg is called {leg!r}")
        return CallEvent(unpack_info(call), int(seq), float(at), leg, _of(_KINDS[kind], body))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not an event ({type(error).__name__})") from None


def pack_info(info: CallInfo) -> bytes:
    """Who is calling."""
    return _dump(_info(info))


def unpack_info(data: bytes | Mapping[str, Any]) -> CallInfo:
    """What `pack_info` packed, or the object that it was. Raises ValueError."""
    told = json.loads(data) if isinstance(data, bytes) else data
    try:
        known = {key: value for key, value in told.items() if key in _INFO}
        return CallInfo(**known, extra=dict(told["extra"]))
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"not who is calling ({type(error).__name__})") from None


def _info(info: CallInfo) -> dict[str, object]:
    return {name: getattr(info, name) for name in _INFO} | {"extra": dict(info.extra)}


def _body(body: EventBody) -> dict[str, object]:
    match body:
        case Partial(turn, text, words):
            return {"turn": turn, "text": text, "words": _words(words)}
        case Final(turn, text, words, language):
            return {"turn": turn, "text": text, "words": _words(words), "language": language}
        case Ended():
            return asdict(body)
        case RuleFired():
            known = {name: getattr(body, name) for name in _FIELDS[RuleFired]}
            return known | {"words": _words(body.words)}
        case _:
            return {name: getattr(body, name) for name in _FIELDS[type(body)]}


def _words(words: tuple[Word, ...]) -> list[list[object]]:
    return [[word.text, word.start, word.end, word.confidence] for word in words]


def _of(kind: type[EventBody], body: dict[str, Any]) -> EventBody:
    if kind in (Partial, Final, RuleFired):
        body["words"] = tuple(Word(*word) for word in body["words"])
    if kind is Ended:
        body["legs"] = {name: _counts(counts) for name, counts in body["legs"].items()}
    return kind(**body)


def _counts(counts: Mapping[str, Any]) -> LegCounts:
    return LegCounts(**{name: value for name, value in counts.items() if name in _COUNTS})
