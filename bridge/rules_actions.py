"""What a rule's action is in the words of a switch: actions of AMI, commands of FreeSWITCH. Pure.

Nothing that was said is here part of a name or of a command. It is the value of a variable, in the
characters of `restricted`, or a header of an event; the writers of `pbx` make values safe again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from bridge.config_rules import (
    Action,
    CallWebhook,
    HangUp,
    RaiseEvent,
    Record,
    Redirect,
    SetVariable,
    StopRecording,
)
from bridge.egress.ami import restricted
from bridge.rules_types import Firing
from bridge.types import CallInfo, LegName

Headers = list[tuple[str, str]]

AMI_ACTIONS = {
    "setvar": "Setvar",
    "redirect": "Redirect",
    "hangup": "Hangup",
    "record": "MixMonitor",
    "stop_record": "StopMixMonitor",
    "userevent": "UserEvent",
}
AMI_RIGHTS = {"UserEvent": "user", "MixMonitor": "system"}  # the others need write = call

_CHANNEL = re.compile(r"[A-Za-z0-9]\S{0,255}")
_STRANGE = re.compile(r"[^A-Za-z0-9_-]")
LONGEST_ID = 80  # characters of a call's id in a file's name

# Q.850 causes by FreeSWITCH's names; others are NORMAL_CLEARING there
_CAUSES = {16: "NORMAL_CLEARING", 17: "USER_BUSY", 19: "NO_ANSWER", 21: "CALL_REJECTED"}


def channels(
    call: CallInfo, legs: Sequence[LegName], leg: LegName | None, target: str
) -> tuple[str, ...]:
    """What the channel of who spoke (``leg``), or the call's (``call``), is called, best first.

    A call's channel is its caller's; while it has no such leg, its callee's (`switchboard._learn`).
    What POST /calls said is a channel may be none: Hangup takes /…/ for a pattern of channels, and
    Setvar on nothing but spaces would set a global variable.
    """
    names = call.channel, call.uniqueid
    if target == "leg" and leg == "callee" and "caller" in legs:
        names = call.extra.get("callee_channel", ""), call.extra.get("callee_uniqueid", "")
    return tuple(name for name in names if _CHANNEL.fullmatch(name))


def value(action: SetVariable, firing: Firing) -> str:
    """What a variable is set to."""
    if action.value is not None:
        return action.value
    if firing.rule.pattern is not None:
        return restricted(firing.matched)
    return restricted(" ".join(word.text for word in firing.words))


def ami(action: Action, firing: Firing, channel: str, recordings: str) -> tuple[str, Headers]:
    """An AMI action's name and headers."""
    on = [("Channel", channel)]
    match action:
        case SetVariable():
            variable = [("Variable", action.variable), ("Value", value(action, firing))]
            return "Setvar", on + variable
        case Redirect():
            place = [("Context", action.context), ("Exten", action.exten)]
            return "Redirect", [*on, *place, ("Priority", action.priority)]
        case HangUp():
            return "Hangup", [*on, ("Cause", str(action.cause))]
        case Record():
            # No Command header: a shell would run it
            return "MixMonitor", [*on, ("File", recording(action, firing.cause.call, recordings))]
        case StopRecording():
            return "StopMixMonitor", on
        case RaiseEvent():
            return "UserEvent", [("UserEvent", action.event), *told(firing)]
        case CallWebhook():
            raise ValueError("a webhook is no action of a switch")


def esl(action: Action, firing: Firing, channel: str, recordings: str) -> str:
    """The arguments of an ``api`` command. Raises ValueError for variables, events, webhooks."""
    match action:
        case Redirect():
            return f"uuid_transfer {channel} {action.exten} XML {action.context}"
        case HangUp():
            return f"uuid_kill {channel} {_CAUSES.get(action.cause, 'NORMAL_CLEARING')}"
        case Record():
            path = recording(action, firing.cause.call, recordings)
            return f"uuid_record {channel} start {path}"
        case StopRecording():
            return f"uuid_record {channel} stop all"
        case _:
            raise ValueError(f"{action.do} is no command")


def told(firing: Firing) -> Headers:
    """The headers of a rule's own event, without those that have no value; the longest last."""
    event = firing.cause
    headers = {
        "CallID": event.call.id,
        "Channel": event.call.channel,
        "Uniqueid": event.call.uniqueid,
        "Linkedid": event.call.linkedid,
        "Leg": event.leg or "",
        "Cause": str(event.seq),
        "Rule": firing.rule.name,
        "Matched": firing.matched,
        "Text": " ".join(word.text for word in firing.words),
    }
    return [(key, text) for key, text in headers.items() if text]


def recording(action: Record, call: CallInfo, folder: str) -> str:
    """The file of a call's recording: the folder, and of the call nothing but its id.

    An id may be anybody's text (POST /calls), so that it is put into letters, digits, - and _;
    where that changes it, a hash keeps two calls apart. Asterisk takes what follows a comma for
    MixMonitor's options and its command.
    """
    name = _STRANGE.sub("_", call.id)[:LONGEST_ID]
    if name != call.id:
        name += "-" + hashlib.sha256(call.id.encode("utf-8", "replace")).hexdigest()[:12]
    return f"{folder}/{action.file.replace('{call_id}', name)}"
