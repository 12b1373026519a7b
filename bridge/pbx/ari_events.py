"""What ARI says, as types: JSON goes in, events come out. Pure.

Only what taps need is read (rest-api/api-docs/events.json of Asterisk). Names, numbers and ids come
from callers and their switches, so every text is made safe for a line of AMI or of a log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from bridge.errors import ProtocolError
from bridge.pbx.ami_text import AmiValue
from bridge.types import LegName

# What `parse` understands; Asterisk is asked to send nothing else (eventFilter, since 13.26).
TYPES = (
    "ApplicationReplaced", "ChannelCreated", "ChannelDestroyed", "ChannelEnteredBridge",
    "ChannelLeftBridge", "ChannelStateChange", "ChannelUserevent", "Dial", "StasisStart",
)  # fmt: skip
PLACES = "ChannelDialplan"  # one for each step of the dialplan: asked for where a rule needs it
USER_EVENT = "CallscribeTap"
# In ari.conf: channelvars = CHANNEL(linkedid),CALLSCRIBE_CONSENT
LINKEDID, CONSENT = "CHANNEL(linkedid)", "CALLSCRIBE_CONSENT"
TEXT = 256  # characters of any value

_CALL = re.compile(r"[A-Za-z0-9._:@+=-]{0,128}")


@dataclass(frozen=True, slots=True)
class Channel:
    """A snapshot. `created` is ISO 8601 and sorts by time; `app` is what it runs, as AppDial."""

    id: str
    name: str
    state: str  # Down, Ring, Ringing, Up …
    created: str = ""
    context: str = ""
    exten: str = ""
    app: str = ""
    app_data: str = ""
    caller: str = ""  # the party's own number
    connected: str = ""  # that of whom it talks with
    linkedid: str = ""  # empty unless ari.conf lists it
    consents: bool = False  # to recording; false unless ari.conf lists it


@dataclass(frozen=True, slots=True)
class Wish:
    """That a call be tapped. `leg` empty: both legs, and who is who is found out.

    `consents`: all who speak agree to be recorded.
    """

    call: str = ""
    leg: LegName | None = None
    consents: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A channel is new, or in another state."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Placed:
    """A channel is about to run an application at this place of the dialplan."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Gone:
    """A channel has been destroyed."""

    id: str


@dataclass(frozen=True, slots=True)
class Dialled:
    """`caller` (None: nobody, as in an Originate) dials `peer`."""

    caller: Channel | None
    peer: Channel


@dataclass(frozen=True, slots=True)
class Entered:
    """A channel has joined a bridge."""

    bridge: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class Left:
    """A channel has left a bridge."""

    bridge: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class Arrived:
    """A channel is in our Stasis application; the dialplan's arguments are `args`."""

    channel: Channel
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A user event wants `target` (a channel's id or name) tapped."""

    target: str
    wish: Wish


@dataclass(frozen=True, slots=True)
class Replaced:
    """Another client has taken our application's name. Nothing more will come."""


Event: TypeAlias = Seen | Placed | Gone | Dialled | Entered | Left | Arrived | Asked | Replaced


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge and the ids of the channels in it, who hear each other if it `talks`.

    In a holding bridge, as of parked calls, they do not.
    """

    id: str
    channels: tuple[str, ...]
    talks: bool = True


def parse(text: str) -> Event | None:
    """One message of the events' WebSocket; None if it is about something else.

    Raises `ProtocolError` for what is not such a message.
    """
    message = _object(_json(text), "an event")
    kind = message.get("type")
    try:
        return _event(kind, message) if isinstance(kind, str) else None
    except ProtocolError as e:
        raise ProtocolError(f"ARI's {AmiValue(str(kind))[:64]} makes no sense: {e}") from None


def _event(kind: str, message: Mapping[str, Any]) -> Event | None:
    match kind:
        case "ChannelCreated" | "ChannelStateChange":
            return Seen(channel(message.get("channel")))
        case "ChannelDialplan":
            return Placed(channel(message.get("channel")))
        case "ChannelDestroyed":
            return Gone(channel(message.get("channel")).id)
        case "Dial":
            caller = message.get("caller")
            return Dialled(channel(caller) if caller else None, channel(message.get("peer")))
        case "ChannelEnteredBridge" | "ChannelLeftBridge":
            found = bridge(message.get("bridge"))
            event = Entered if kind == "ChannelEnteredBridge" else Left
            return event(found.id, channel(message.get("channel"))) if found.talks else None
        case "StasisStart":
            args = message.get("args", [])
            if not isinstance(args, list):
                raise ProtocolError("args is not a list")
            return Arrived(channel(message.get("channel")), tuple(_text(arg) for arg in args))
        case "ChannelUserevent" if message.get("eventname") == USER_EVENT:
            return _asked(message)
        case "ApplicationReplaced":
            return Replaced()
    return None


def channel(value: object) -> Channel:
    """A channel as ARI describes it. Raises `ProtocolError`."""
    fields = _object(value, "channel")
    place = _object(fields.get("dialplan", {}), "dialplan")
    variables = _object(fields.get("channelvars", {}), "channelvars")
    return Channel(
        id=_id(fields.get("id")),
        name=_text(fields.get("name", "")),
        state=_text(fields.get("state", "")),
        created=_text(fields.get("creationtime", "")),
        context=_text(place.get("context", "")),
        exten=_text(place.get("exten", "")),
        app=_text(place.get("app_name", "")),
        app_data=_text(place.get("app_data", "")),
        caller=_number(fields.get("caller", {})),
        connected=_number(fields.get("connected", {})),
        linkedid=_text(variables.get(LINKEDID, "")),
        consents=_text(variables.get(CONSENT, "")).strip() == "1",
    )


def bridge(value: object) -> Bridge:
    """A bridge as ARI describes it. Raises `ProtocolError`."""
    fields = _object(value, "bridge")
    members = fields.get("channels", [])
    if not isinstance(members, list):
        raise ProtocolError("channels is not a list")
    talks = fields.get("bridge_type") != "holding"
    return Bridge(_id(fields.get("id")), tuple(_id(member) for member in members), talks)


def channels(text: str) -> list[Channel]:
    """The answer to GET /channels. Raises `ProtocolError`."""
    return [channel(value) for value in _list(_json(text))]


def bridges(text: str) -> list[Bridge]:
    """The answer to GET /bridges. Raises `ProtocolError`."""
    return [bridge(value) for value in _list(_json(text))]


def answer(text: str) -> Mapping[str, Any]:
    """The answer to any other GET; empty where there is no sense in it."""
    try:
        return _object(_json(text), "the answer")
    except ProtocolError:
        return {}


def error_text(text: str) -> str:
    """What ARI says of an error: the message of its answer."""
    return _text(answer(text).get("message", ""))


def wish(fields: Mapping[str, Any]) -> Wish:
    """What the headers Call, Leg and Consent ask for. Raises `ProtocolError`."""
    call, leg = _text(fields.get("call", "")).strip(), _text(fields.get("leg", "")).strip().lower()
    if not _CALL.fullmatch(call):
        raise ProtocolError("Call is no id: use ${UNIQUEID} or a UUID")
    if leg not in ("", "caller", "callee"):
        raise ProtocolError("Leg is neither caller nor callee")
    consents = _text(fields.get("consent", "")).strip() == "1"  # anything else is no yes
    return Wish(call, cast(LegName, leg) if leg else None, consents)


def _asked(message: Mapping[str, Any]) -> Asked:
    said = _object(message.get("userevent", {}), "userevent")
    fields = {key.lower(): value for key, value in said.items()}
    target = _text(fields.get("channel", "")).strip()
    if not target:
        target = channel(message.get("channel")).id
    return Asked(target, wish(fields))


def _json(text: str) -> object:
    try:
        return cast(object, json.loads(text))
    except (ValueError, RecursionError):
        raise ProtocolError("what ARI sent is not JSON") from None


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} is not an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ProtocolError("the answer is not a list")
    return value


def _id(value: object) -> str:
    """An id as it is, because it must be said back to Asterisk."""
    if not isinstance(value, str) or not value or AmiValue(value) != value:
        raise ProtocolError("there is no id")
    return value


def _text(value: object) -> str:
    return str(AmiValue(value))[:TEXT] if isinstance(value, str) else ""


def _number(value: object) -> str:
    return _text(value.get("number", "")) if isinstance(value, dict) else ""
