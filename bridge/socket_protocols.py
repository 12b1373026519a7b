"""Which protocol is spoken at which path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from bridge.ingress.media_socket import MediaSocket, Opening, SocketRules

Make: TypeAlias = Callable[[Opening, SocketRules, float], MediaSocket]


@dataclass(frozen=True, slots=True)
class Kind:
    """A protocol: its name in events and metrics, what speaks it, its subprotocols."""

    name: str
    make: str  # "module:class", called with (Opening, SocketRules, now)
    subprotocols: tuple[str, ...] = ()

    def load(self) -> Make:
        """The class."""
        module, _, name = self.make.partition(":")
        made: Make = getattr(importlib.import_module(module), name)
        return made


PROTOCOLS: dict[str, Kind] = {
    # path → protocol; a path that ends in / has others below it
    "/twilio": Kind("twilio", "bridge.ingress.twilio:Twilio"),
    "/signalwire": Kind("signalwire", "bridge.ingress.signalwire:SignalWire"),
    "/telnyx": Kind("telnyx", "bridge.ingress.telnyx:Telnyx"),
    "/plivo": Kind("plivo", "bridge.ingress.plivo:Plivo"),
    "/exotel": Kind("exotel", "bridge.ingress.exotel:Exotel"),
    "/vonage/": Kind("vonage", "bridge.ingress.vonage:Vonage"),
    "/audiohook/": Kind("audiohook", "bridge.ingress.audiohook:AudioHook"),
    "/asterisk/": Kind("asterisk", "bridge.ingress.asterisk:Asterisk", ("media",)),
    "/freeswitch/": Kind(
        "freeswitch", "bridge.ingress.freeswitch:FreeSwitch", ("audio.drachtio.org",)
    ),
}


def kind_of(path: str) -> Kind | None:
    """The protocol that is spoken at a path."""
    bare = path.rstrip("/") or "/"
    exact = (kind for at, kind in PROTOCOLS.items() if (at.rstrip("/") or "/") == bare)
    below = (kind for at, kind in PROTOCOLS.items() if at[1:].endswith("/") and path.startswith(at))
    return next(chain(exact, below), None)
