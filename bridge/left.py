"""Calls that another process left when it died, for as long as they may come back. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.types import CallInfo, LeftCall, LegName


class LeftCalls:
    """By their id, which of a call that nobody announced is the UUID of its one leg."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[LeftCall, float]] = {}

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._calls

    def add(self, calls: Iterable[LeftCall], until: float) -> None:
        """They may come back until then."""
        for call in calls:
            self._calls[call.info.id] = (call, until)

    def find(self, call_id: str) -> LeftCall | None:
        return self._calls.get(call_id, (None, 0.0))[0]

    def back(self, info: CallInfo) -> None:
        """This one is up again."""
        self._calls.pop(info.id, None)

    def lost(self, now: float) -> list[LeftCall]:
        """Those that will not come any more, once each."""
        late = [call for call, until in self._calls.values() if until <= now]
        for call in late:
            del self._calls[call.info.id]
        return late

    def leg(self, uuid: str) -> LegName:
        """Which leg a UUID was in the other process, where nobody will say it again."""
        left = self.find(uuid)
        callee = left is not None and left.turns.get("callee", -1) > left.turns.get("caller", -1)
        return "callee" if callee else "caller"
