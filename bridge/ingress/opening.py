"""How a WebSocket was asked for, and what a protocol is given along with it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Opening:
    """How a WebSocket was asked for, after it was allowed.

    `query`: percent-decoded, the last of equal names. `headers`: names in lower case. `who`: the
    name of the key, token or signature that let it in.
    """

    path: str = "/"
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    who: str = ""
    offered: Sequence[str] = ()
    """Subprotocols that the client speaks, in its order."""
    id: str = "00000000-0000-4000-8000-000000000000"
    """Of this connection alone: a UUID."""
    at: float = 0.0
    """Unix time."""


@dataclass(frozen=True, slots=True)
class SocketRules:
    """Settings of [websocket] that protocols need. Seconds.

    `patience`: without audio, where a protocol ends a connection for that. `clock`: that of every
    `now`, for what happens between messages. `step`: what the engine's last step took.
    """

    start_deadline: float = 5.0
    patience: float = 10.0
    clock: Callable[[], float] = lambda: 0.0
    step: Callable[[], float] = lambda: 0.0
