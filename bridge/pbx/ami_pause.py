"""What AMI's `CallscribePause` and `CallscribeResume` say. Pure.

From a dialplan they need no headers, because Asterisk adds the channel; another AMI client names a
`Channel` (its name or its unique id) or a `CallID`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from bridge.errors import ProtocolError
from bridge.types import LegName

EVENTS = {"CallscribePause": False, "CallscribeResume": True}


@dataclass(frozen=True, slots=True)
class PauseWish:
    """Do not hear, or hear again, a call. `call` or `channel` says which; `leg` None: all of it."""

    resume: bool
    call: str
    channel: str
    leg: LegName | None


def pause_wish(event: Mapping[str, str]) -> PauseWish | None:
    """None for any other event. `event` finds its keys in any case. Raises `ProtocolError`."""
    resume = EVENTS.get(event.get("userevent", "")) if event.get("event") == "UserEvent" else None
    if resume is None:
        return None
    leg = event.get("leg", "").strip().lower()
    if leg not in ("", "caller", "callee"):
        raise ProtocolError("a pause's Leg is neither caller nor callee")
    call, channel = event.get("callid", "").strip(), event.get("channel", "").strip()
    if not call and not channel:
        raise ProtocolError("a pause has neither CallID nor Channel")
    return PauseWish(resume, call, channel, cast(LegName, leg) if leg else None)
