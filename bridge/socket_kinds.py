"""Which protocol is spoken at which path of [websocket], and where its clients put their keys."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from bridge import auth_credentials as shown
from bridge.auth import Credential, Knock
from bridge.ingress.media_socket import MediaSocket, Opening, SocketRules

Find: TypeAlias = Callable[[Knock], tuple[Credential, ...]]
Make: TypeAlias = Callable[[Opening, SocketRules, float], MediaSocket]


@dataclass(frozen=True, slots=True)
class Kind:
    """A protocol: its name in events and metrics, what speaks it, its subprotocols."""

    name: str
    make: str  # "module:class", called with (Opening, SocketRules, now)
    subprotocols: tuple[str, ...] = ()
    credentials: tuple[Find, ...] = ()
    """Where its own clients put their keys, besides the usual places."""
    paced: bool = False
    """Its clients may send faster than real time, a file say, and are made to wait (`BEHIND`)."""

    def load(self) -> Make:
        """The class."""
        module, _, name = self.make.partition(":")
        made: Make = getattr(importlib.import_module(module), name)
        return made

    def find(self, knock: Knock, pair: Sequence[str]) -> list[Credential]:
        """All that a request shows. `pair`: names of two headers for a key of two parts."""
        found = [found for find in (*self.credentials, *USUAL) for found in find(knock)]
        return [*found, *shown.pair(knock, *pair)]


USUAL: tuple[Find, ...] = (
    shown.bearer,
    shown.token,
    shown.basic,
    lambda knock: shown.header(knock, "x-api-key"),
    lambda knock: shown.query(knock, "token"),
)
"""Where keys are looked for, whatever the protocol."""
TELNYX: Find = lambda knock: shown.header(knock, "x-telnyx-streaming-auth-token")  # noqa: E731


PROTOCOLS: dict[str, Kind] = {
    # path → protocol; a path that ends in / has others below it
    "/twilio": Kind("twilio", "bridge.ingress.twilio:Twilio", credentials=(shown.twilio,)),
    "/signalwire": Kind("signalwire", "bridge.ingress.signalwire:SignalWire"),
    "/telnyx": Kind("telnyx", "bridge.ingress.telnyx:Telnyx", credentials=(TELNYX,)),
    "/plivo": Kind("plivo", "bridge.ingress.plivo:Plivo"),
    "/exotel": Kind("exotel", "bridge.ingress.exotel:Exotel"),
    "/vonage/": Kind("vonage", "bridge.ingress.vonage:Vonage"),
    "/audiohook/": Kind("audiohook", "bridge.ingress.audiohook:AudioHook"),
    "/asterisk/": Kind("asterisk", "bridge.ingress.asterisk:Asterisk", ("media",)),
    "/freeswitch/": Kind(
        "freeswitch", "bridge.ingress.freeswitch:FreeSwitch", ("audio.drachtio.org",)
    ),
    "/": Kind("pcm", "bridge.ingress.plain:Plain", paced=True),
    "/ws": Kind("pcm", "bridge.ingress.plain:Plain", paced=True),
    "/ws/stt": Kind("stt", "bridge.ingress.sessions:Sessions", paced=True),
    "/v1/stream": Kind("stream", "bridge.ingress.float_stream:FloatStream", paced=True),
    "/v1/realtime": Kind(
        "realtime",
        "bridge.ingress.realtime:Realtime",
        ("realtime",),
        (shown.subprotocol,),
        paced=True,
    ),
    "/v1/listen": Kind(
        "deepgram",
        "bridge.ingress.deepgram:Deepgram",
        ("token", "bearer"),
        (shown.after_token,),
        paced=True,
    ),
    "/api/asr-streaming": Kind(
        "moshi",
        "bridge.ingress.moshi:Moshi",
        credentials=(
            lambda knock: shown.header(knock, "kyutai-api-key"),
            lambda knock: shown.query(knock, "auth_id"),
        ),
        paced=True,
    ),
}


def kind_of(path: str) -> Kind | None:
    """The protocol that is spoken at a path."""
    bare = path.rstrip("/") or "/"
    exact = (kind for at, kind in PROTOCOLS.items() if (at.rstrip("/") or "/") == bare)
    below = (kind for at, kind in PROTOCOLS.items() if at[1:].endswith("/") and path.startswith(at))
    return next(chain(exact, below), None)
