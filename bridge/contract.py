"""The public JSON of an event: what an HTTP callback's body and the API's answers say. Pure.

The envelope is that of Standard Webhooks 1.0: ``type``, ``timestamp``, ``data``. Every key of a
type is always there (``null`` or an empty string where nothing is known), but for ``gap_before``,
which is there only when events before this one were not given to the sink.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import assert_never

import orjson

from bridge.types import (
    CallEvent,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegCounts,
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

EVENT_TYPES: Mapping[type[EventBody], str] = MappingProxyType(
    {
        Started: "call.started",
        Partial: "transcript.partial",
        Final: "transcript.final",
        EndOfTurn: "turn.ended",
        Pressed: "dtmf",
        Paused: "transcription.paused",
        Resumed: "transcription.resumed",
        Listened: "listen.ended",
        Ended: "call.ended",
        Refused: "call.refused",
        RuleFired: "rule.fired",
    }
)


def event_type(event: CallEvent) -> str:
    """The event's public name, for example ``transcript.final``."""
    return EVENT_TYPES[type(event.body)]


def to_json(event: CallEvent) -> dict[str, object]:
    """The event as JSON objects. Times in seconds to the millisecond, confidences to 0.001."""
    call = event.call
    data: dict[str, object] = {"call_id": call.id, "seq": event.seq, "leg": event.leg}
    data |= _body(event.body)
    data |= {
        "channel": call.channel,
        "uniqueid": call.uniqueid,
        "linkedid": call.linkedid,
        "caller": call.caller,
        "callee": call.callee,
        "extra": dict(call.extra),
    }
    if event.gap_before > 0:
        data["gap_before"] = event.gap_before
    return {"type": event_type(event), "timestamp": _timestamp(event.at), "data": data}


def body(event: CallEvent) -> bytes:
    """`to_json` as compact UTF-8.

    A lone surrogate (a caller's name in a broken encoding) becomes ``?``: it has no UTF-8, and
    must not cost the event.
    """
    told = to_json(event)
    try:
        return orjson.dumps(told)
    except orjson.JSONEncodeError:
        text = json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def _body(body: EventBody) -> dict[str, object]:
    match body:
        case Started():
            return {}
        case Partial():
            return {"turn": body.turn, "text": body.text} | _words(body.words)
        case Final():
            said: dict[str, object] = {"turn": body.turn, "text": body.text}
            return said | {"language": body.language} | _words(body.words)
        case EndOfTurn():
            times = {"start": _number(body.start), "end": _number(body.end)}
            return {"turn": body.turn, "text": body.text, **times, "reason": body.reason}
        case Pressed():
            return {"digit": body.digit, "start": _number(body.at)}
        case Paused() | Resumed():
            return {"start": _number(body.at), "by": body.by}
        case Listened():
            heard = {"status": body.status, "text": body.text, "language": body.language}
            return {**heard, "confidence": _number(body.confidence)}
        case Ended():
            legs = {name: _counts(counts) for name, counts in body.legs.items()}
            return {"reason": body.reason, "seconds": _number(body.seconds), "legs": legs}
        case Refused():
            return {"reason": body.reason}
        case RuleFired():
            return _fired(body)
        case _:
            assert_never(body)


def _fired(body: RuleFired) -> dict[str, object]:
    return {
        "rule": body.rule,
        "action": body.action,
        "outcome": body.outcome,
        "reason": body.reason,
        "cause": body.cause,
        "turn": body.turn,
        "matched": body.matched,
        "text": body.text,
    } | _words(body.words)


def _words(words: Sequence[Word]) -> dict[str, object]:
    mean = math.fsum(word.confidence for word in words) / len(words) if words else None
    return {
        "start": _number(words[0].start) if words else None,
        "end": _number(words[-1].end) if words else None,
        "confidence": _number(mean),
        "words": [
            {
                "word": word.text,
                "start": _number(word.start),
                "end": _number(word.end),
                "confidence": _number(word.confidence),
            }
            for word in words
        ],
    }


def _counts(counts: LegCounts) -> dict[str, object]:
    return {
        name: _number(value) if isinstance(value, float) else value
        for name, value in asdict(counts).items()
    }


def _number(value: float | None) -> float | None:
    """To three decimals; None for what JSON has no number for (an engine may say NaN)."""
    if value is None or not math.isfinite(value):
        return None
    return round(value, 3) + 0.0  # + 0.0: no "-0.0"


def _timestamp(at: float) -> str:
    """ISO 8601 in UTC with milliseconds, from Unix time."""
    moment = datetime.fromtimestamp(round(at, 3), UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
