"""The end of a line from our side, not before call control knows what it was told.

A dialplan goes on when its audio connection ends, and reads its variables then. These come over
another connection, so the line waits until Asterisk has acknowledged them; where it does not in
time, it ends all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.types import CallEvent, CallInfo, Ended, Listened, Refused

PATIENCE = 0.3  # s, for the last words and CALLSCRIBE_STATUS of a call that ends
LISTENING = 2.0  # s, for what a dialplan has waited for all the time

HangUp = Callable[[], None]


class Farewells:
    """Lines that are to be hung up. `reachable(call)`: will its channel's variables be set?"""

    def __init__(self, reachable: Callable[[CallInfo], bool]) -> None:
        self._reachable = reachable
        self._waiting: dict[str, dict[HangUp, asyncio.TimerHandle]] = {}  # by call

    def part(self, call: CallInfo, hang_up: HangUp) -> None:
        """Hang up when `told` has been called with the call's last word, or time is up."""
        if not self._reachable(call):
            hang_up()
            return
        patience = LISTENING if call.listening else PATIENCE
        late = asyncio.get_running_loop().call_later(patience, self._late, call.id, hang_up)
        before = self._waiting.setdefault(call.id, {}).pop(hang_up, None)
        if before is not None:
            before.cancel()
        self._waiting[call.id][hang_up] = late

    def wanted(self, event: CallEvent) -> bool:
        """Does a dialplan still wait for it? Too late it could meet the next time it listens."""
        return not isinstance(event.body, Listened) or event.call.id in self._waiting

    def told(self, event: CallEvent) -> None:
        """The variables of an event are acknowledged, or it has none."""
        if isinstance(event.body, Listened | Ended | Refused):
            self._release(event.call.id)

    def close(self) -> None:
        """Nobody waits any more."""
        for call in list(self._waiting):
            self._release(call)

    def _late(self, call: str, hang_up: HangUp) -> None:
        self._waiting.get(call, {}).pop(hang_up, None)
        if not self._waiting.get(call):
            self._waiting.pop(call, None)
        hang_up()

    def _release(self, call: str) -> None:
        for hang_up, late in self._waiting.pop(call, {}).items():
            late.cancel()
            hang_up()
