"""What call control has said of UUIDs whose sockets have not come, and their reservations. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from bridge.admission import Gate
from bridge.joining import together
from bridge.types import Announcement

MAX_ANNOUNCED = 10_000  # UUIDs waiting for their socket; the oldest goes first


class Announced:
    """Announcements by UUID, in the order of their time. A reservation of `gate` goes with its own.

    `lost(reason)` counts one that nobody came for: ``full`` or ``expired``.
    """

    def __init__(self, ttl: float, gate: Gate, lost: Callable[[str], None]) -> None:
        self.ttl = ttl  # s that one is valid
        self._gate = gate
        self._lost = lost
        self._found: OrderedDict[str, tuple[Announcement, float]] = OrderedDict()

    def add(self, announcement: Announcement, now: float) -> None:
        """Valid anew for `ttl`, with all that was said of this UUID before."""
        uuid = announcement.uuid
        before = self._found.pop(uuid, None)
        if before is not None:
            announcement = together(before[0], announcement)
        while len(self._found) >= MAX_ANNOUNCED:
            self._gate.release(self._found.popitem(last=False)[0])
            self._lost("full")
        self._found[uuid] = announcement, now + self.ttl

    def take(self, uuid: str) -> Announcement | None:
        """Its socket has come. The reservation stays: it is to be claimed."""
        found = self._found.pop(uuid, None)
        return None if found is None else found[0]

    def __contains__(self, uuid: object) -> bool:
        return uuid in self._found

    def call_of(self, id: str) -> str | None:
        """The call that this UUID was announced for, or of which a leg was; None for neither."""
        if id in self._found:
            return self._found[id][0].call or id
        return id if id in self.calls() else None

    def calls(self) -> set[str]:
        """The ids of calls that are to come."""
        return {announced.call or uuid for uuid, (announced, _) in self._found.items()}

    def forget(self, uuid: str) -> None:
        """Nobody will come for this UUID any more."""
        self._found.pop(uuid, None)
        self._gate.release(uuid)

    def withdraw(self, id: str) -> bool:
        """Nobody will come for this UUID, or for any of this call."""
        mine = [u for u, (told, _) in self._found.items() if id in (u, told.call)]
        for uuid in mine:
            self.forget(uuid)
        return bool(mine)

    def expire(self, now: float) -> None:
        """Let time pass."""
        while self._found:
            uuid, (_, until) = next(iter(self._found.items()))
            if until > now:
                break
            self.forget(uuid)
            self._lost("expired")
