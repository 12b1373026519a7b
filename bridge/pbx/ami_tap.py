"""A tap that a client of the manager interface asks for. Pure.

``Action: UserEvent / UserEvent: CallscribeTap / Channel: PJSIP/alice-00000001``, and where wanted
``Call:``, ``Leg:`` and ``Consent: 1``. AMI sends such an event to its own clients alone, never to
ARI, so it is handed on here. Whoever has ``write = user`` may send it, and nothing in it proves who
did: who may ask a manager for that may well ask for the call itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.errors import ProtocolError
from bridge.pbx.ami_text import AmiValue
from bridge.pbx.ari_events import TEXT, USER_EVENT, Wish, wish


@dataclass(frozen=True, slots=True)
class TapAsked:
    """A channel, by its name or id, whose call is to be listened to."""

    channel: str
    wish: Wish


def tap_asked(event: Mapping[str, str]) -> TapAsked | None:
    """What an AMI event asks for; None if it is about something else.

    A dialplan's event comes with its channel's state in front, and ARI's own with a source too:
    ARI has told of both, and their ``Channel:`` would be that channel, whichever they ask for.
    `event` finds its keys in any case. Raises `ProtocolError` where it makes no sense.
    """
    if event.get("event", "") != "UserEvent" or event.get("userevent", "") != USER_EVENT:
        return None
    if event.get("channelstate", ""):
        return None
    channel = str(AmiValue(event.get("channel", "")))[:TEXT].strip()
    if not channel:
        raise ProtocolError(f"a {USER_EVENT} without Channel asks for nothing")
    try:
        asked = wish({key: event.get(key, "") for key in ("call", "leg", "consent")})
    except ProtocolError as e:
        raise ProtocolError(f"a {USER_EVENT} asks in vain: {e}") from None
    return TapAsked(channel, asked)
