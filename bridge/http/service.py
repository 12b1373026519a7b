"""What the HTTP side needs of the server, and the keys under which an application carries it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from aiohttp import web

from bridge.media import MediaAddress, MediaRequest
from bridge.metrics import Metrics
from bridge.types import Announcement, LegName

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Health:
    """How the bridge is. `reasons` are sentences why it is not ready; empty when it is.

    `live` is False when only a restart helps. `started`: it has been ready once. `checks` maps a
    part (``engine``, ``ami`` …) to ``ok`` or what is wrong with it. `used` of `slots` are leased,
    and `calls` of at most `max_calls` are running.
    """

    ready: bool
    live: bool
    started: bool
    reasons: tuple[str, ...]
    checks: dict[str, str]
    used: int
    slots: int
    calls: int
    max_calls: int
    waiting: int = 0  # connections that are not a call yet
    model: Mapping[str, str] = field(default_factory=dict)
    """``model_size``, ``device``, ``compute_type``: as session clients know them."""


class Service(Protocol):
    """The server, as the HTTP side sees it. Nothing here may block."""

    metrics: Metrics

    def info(self) -> dict[str, object]:
        """Name, version, engine, slots, used, uptime and the like, as JSON allows it."""

    def health(self) -> Health:
        """How we are now."""

    def calls(self) -> list[dict[str, object]]:
        """Running calls and those that ended last, without their words."""

    def search(self, text: str, *, ended: bool) -> list[dict[str, object]]:
        """Calls that are up, and `ended` ones, the latest first, in which `text` was said."""

    def call(self, id: str) -> dict[str, object] | None:
        """One call with its conversation, or None."""

    def text(self, id: str) -> str | None:
        """The conversation as plain text, or None for an unknown call."""

    def announce(self, announcement: Announcement) -> float:
        """Expect this UUID, a slot reserved; seconds it stays valid.

        Raises `Busy`, or ValueError if it is taken.
        """

    def open_media(self, announcement: Announcement, request: MediaRequest) -> MediaAddress:
        """Open a port for this UUID's stream. As `announce`, and `BadAnnouncement`."""

    def tap(self, channel: str, call: str, leg: LegName | None, *, consents: bool) -> str:
        """Listen to the call of a channel of Asterisk; the call's id. `leg`: None for both.

        `consents`: all who speak agree to be recorded.

        Raises LookupError for an unknown channel, `DeliveryError` while ARI is not there,
        `BadAnnouncement` without ARI.
        """

    def pause(self, id: str, leg: LegName | None, *, resume: bool) -> dict[str, bool] | None:
        """Do not hear a leg, or a call, for a while, or again. None if there is no such call.

        Which of its legs are paused then.
        """

    def listened(self, id: str, *, plain: bool) -> dict[str, object] | None:
        """What a dialplan that listened to this call heard; None for any other call.

        `plain`: in the characters that channel variables have.
        """

    def add_rule(self, id: str, given: Mapping[str, object]) -> list[str]:
        """A rule for one call; the names of those it has of its own.

        Raises `ConfigError` for a wrong one, LookupError for an unknown call, ValueError where it
        cannot be added.
        """

    def rules(self, id: str) -> dict[str, object]:
        """The rules that a call has of its own. Raises LookupError for an unknown call."""

    def remove_rule(self, id: str, name: str) -> None:
        """Take one of them away. Raises LookupError for an unknown call or rule."""

    def hang_up(self, id: str) -> bool:
        """End a call; close ports that were opened for it. False if there is no such call."""

    async def recording(self, id: str, leg: str) -> Path | None:
        """The file of a leg's recording. Raises TimeoutError when the disk does not answer."""

    async def delete_recording(self, id: str) -> bool:
        """Delete a call's recording. False if there was none. As `recording`, and OSError."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may take of us. Times in seconds, so that nobody holds a connection for free.

    A connection is cut when it has not asked a whole request `first` after it was made, and when
    it has not taken its answer and asked again `idle` after the last one was begun.
    """

    connections: int = 256
    first: float = 10.0
    idle: float = 75.0  # longer than the usual 15 s, 30 s and 60 s between two scrapes
    body: float = 5.0
    shutdown: float = 2.0


SERVICE: web.AppKey[Service] = web.AppKey("service")
LIMITS: web.AppKey[Limits] = web.AppKey("limits", Limits)
