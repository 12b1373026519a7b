"""Words to call control over AMI: `UserEvent: Transcript`, and channel variables.

A UserEvent is the safe way: whoever listens gets the whole text, in headers of its own. Channel
variables are for dialplans that wait for an answer; a dialplan may expand them anywhere, so they
carry letters and digits and next to nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from bridge.config import AmiSettings
from bridge.errors import DeliveryError
from bridge.types import (
    CallEvent,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
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

log = logging.getLogger(__name__)

VARIABLE_BYTES = 900  # UTF-8; Asterisk takes 1015 after "Value: "
_KEPT = " '-.?"

Fields = dict[str, str]


class AmiLinkLike(Protocol):
    """What this needs of the AMI connection. It makes values safe and splits long ones."""

    async def action(
        self,
        name: str,
        headers: Sequence[tuple[str, str]],
        *,
        action_id: str | None = None,
    ) -> Mapping[str, str]:
        """Wait for the response. Raises `DeliveryError`."""


class AmiEgress:
    """Tells Asterisk, and whoever listens to it.

    A retry carries the same ActionID and Seq as the attempt before, so that a listener can
    recognise what it has already seen. `counters`: events, variables, hung_up, variable_errors.
    `wanted` says whether an event's variables still help anybody; `told` is called when they have
    been acknowledged, or there were none.
    """

    name = "ami"

    def __init__(
        self,
        link: AmiLinkLike,
        settings: AmiSettings,
        *,
        wanted: Callable[[CallEvent], bool] = lambda event: True,
        told: Callable[[CallEvent], None] = lambda event: None,
    ) -> None:
        self._wanted = wanted
        self._told = told
        self.counters: Counter[str] = Counter()
        self._link = link
        self._events = frozenset(settings.events)
        self._set_variables = settings.set_variables

    async def start(self) -> None:
        """Nothing: the link has a life of its own."""

    async def close(self) -> None:
        """Nothing: the link has a life of its own."""

    async def deliver(self, event: CallEvent) -> None:
        """The variables first: whoever acts on the event may read them. Raises `DeliveryError`."""
        action_id = f"callscribe-{event.call.id}-{event.seq}"
        if self._set_variables and event.call.channel and self._wanted(event):
            # All at once: a dialplan may wait for them. Asterisk takes them in this order.
            done = await asyncio.gather(
                *(
                    self._set(event, variable, value, f"{action_id}-{variable}")
                    for variable, value in variables(event).items()
                ),
                return_exceptions=True,
            )
            for error in done:
                if error is not None:
                    raise error
        self._told(event)
        if type_of(event.body) in self._events:
            headers = [("UserEvent", "Transcript"), *transcript(event)]
            await self._link.action("UserEvent", headers, action_id=action_id)
            self.counters["events"] += 1

    async def _set(self, event: CallEvent, variable: str, value: str, action_id: str) -> None:
        headers = [("Channel", event.call.channel), ("Variable", variable), ("Value", value)]
        try:
            await self._link.action("Setvar", headers, action_id=action_id)
            self.counters["variables"] += 1
        except DeliveryError as e:
            if not e.permanent:
                raise
            if "No such channel" in str(e):  # the caller has hung up, which is no error
                self.counters["hung_up"] += 1
                return
            # Asterisk will not have the variable; the event must still be told
            self.counters["variable_errors"] += 1
            log.warning("call %s: %s is not set: %s", event.call.id, variable, e)


_RULE = ("Rule", "Rule-Action", "Outcome", "Matched")  # Action itself begins an action
_OPTIONAL = (
    "Start", "End", "Confidence", "Language", *_RULE, "Reason", "Digit", "By", "Status"
)  # fmt: skip


def type_of(body: EventBody) -> str:
    """The event's `Type` header, which is also its name in ``ami.events``."""
    match body:
        case Started():
            return "started"
        case Partial():
            return "partial"
        case Final():
            return "final"
        case EndOfTurn():
            return "turn"
        case Pressed():
            return "dtmf"
        case Paused():
            return "paused"
        case Resumed():
            return "resumed"
        case Listened():
            return "listened"
        case Ended():
            return "ended"
        case Refused():
            return "refused"
        case RuleFired():
            return "rule"


def transcript(event: CallEvent) -> list[tuple[str, str]]:
    """The headers of `UserEvent: Transcript`, in their order, without those that have no value."""
    call, fields = event.call, _fields(event.body)
    headers = {
        "CallID": call.id,
        "Channel": call.channel,
        "Uniqueid": call.uniqueid,
        "Linkedid": call.linkedid,
        "Leg": event.leg or "",
        "Seq": str(event.seq),
        "Turn": fields.get("Turn", ""),
        "Type": type_of(event.body),
        **{key: fields.get(key, "") for key in _OPTIONAL},
        "Gap-Before": str(event.gap_before or ""),
        "Text": fields.get("Text", ""),  # the last, because it may be long
    }
    return [(key, value) for key, value in headers.items() if value]


def _fields(body: EventBody) -> Fields:
    match body:
        case Partial(turn, text, words):
            return {"Turn": str(turn), "Text": text, **_times(words)}
        case Final(turn, text, words, language):
            return {"Turn": str(turn), "Text": text, "Language": language, **_times(words)}
        case EndOfTurn(turn, text, start, end, reason):
            span = {"Start": f"{start:.2f}", "End": f"{end:.2f}"}
            return {"Turn": str(turn), "Text": text, "Reason": reason, **span}
        case Pressed(digit, at):
            return {"Digit": digit, "Start": f"{at:.2f}"}
        case Paused(at, by) | Resumed(at, by):
            return {"Start": f"{at:.2f}", "By": by}
        case Listened(status, text, confidence, language):
            found = {"Confidence": _confidence(confidence), "Language": language}
            return {"Status": status, "Text": text, **found}
        case Ended(reason) | Refused(reason):
            return {"Reason": reason}
        case RuleFired():
            values = (body.rule, body.action, body.outcome, body.matched)
            rule = dict(zip(_RULE, values, strict=True))
            said = {"Turn": str(body.turn), "Text": body.text, **_times(body.words)}
            return {**rule, "Reason": body.reason, **said}
        case Started():
            return {}


def _times(words: tuple[Word, ...]) -> Fields:
    if not words:
        return {}
    confidence = sum(word.confidence for word in words) / len(words)
    return {
        "Start": f"{words[0].start:.2f}",
        "End": f"{words[-1].end:.2f}",
        "Confidence": f"{confidence:.2f}",
    }


def _confidence(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def variables(event: CallEvent) -> Fields:
    """The channel variables that an event sets, and their values, in this order.

    A dialplan that listens is told once, what it waits for; whatever comes later could meet the
    next time that it listens.
    """
    body = event.body
    if event.call.listening and not isinstance(body, Listened | Refused):
        return {}
    match body:
        case Listened():
            return listened_variables(body)
        case Final():
            return {"CALLSCRIBE_TEXT": restricted(body.text)}
        case Started():
            return {"CALLSCRIBE_STATUS": "started"}
        case Ended():
            return {"CALLSCRIBE_STATUS": "ended"}
        case Refused():
            why = ":".join(map(restricted, body.reason.split(":")))
            return {"CALLSCRIBE_STATUS": f"refused:{why}"}
        case _:
            return {}


def listened_variables(body: Listened) -> Fields:
    """What a dialplan that listened has. The status comes last: it says that the rest is there."""
    return {
        "CALLSCRIBE_TEXT": restricted(body.text),
        "CALLSCRIBE_CONFIDENCE": _confidence(body.confidence),
        "CALLSCRIBE_LANGUAGE": restricted(body.language),
        "CALLSCRIBE_STATUS": body.status,
    }


def restricted(text: str) -> str:
    """Letters, digits and marks of any script, and ``space ' - . ?``; at most 900 bytes.

    Anything else is a space, and spaces do not repeat. A comma splits the arguments of dialplan
    applications; quotes, ``$ { } [ ] \\ ; & |`` mean something to expressions and shells.
    """
    plain = "".join(c if _plain(c) else " " for c in text.replace("\u2019", "'"))
    whole = " ".join(plain.split()).encode()[:VARIABLE_BYTES]
    return whole.decode("utf-8", "ignore").rstrip()


def _plain(character: str) -> bool:
    return character in _KEPT or unicodedata.category(character)[0] in "LNM"
