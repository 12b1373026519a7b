"""AMI ↔ the switchboard: legs announced, calls that pause, lines that end after the news."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from bridge.config import AmiSettings
from bridge.egress.ami import AmiEgress
from bridge.errors import Busy
from bridge.farewell import Farewells
from bridge.pbx.ami import AmiLink
from bridge.pbx.ami_pause import PauseWish
from bridge.pbx.ami_tap import TapAsked
from bridge.switchboard import Switchboard
from bridge.types import Announcement, CallInfo


class AmiUser:
    """What a bridge has of [ami]; without that section only lines that end at once.

    `board()` gives the switchboard, which needs `farewells` to be made.
    """

    def __init__(
        self,
        settings: AmiSettings | None,
        board: Callable[[], Switchboard],
        clock: Callable[[], float],
        on_tap: Callable[[TapAsked], object] | None = None,
    ) -> None:
        self.farewells = Farewells(self._reachable)
        self.link: AmiLink | None = None
        self.egress: AmiEgress | None = None
        self._variables = settings is not None and settings.set_variables
        self._board = board
        self._clock = clock
        if settings is not None:
            self.link = AmiLink(settings, self._announced, on_pause=self._paused, on_tap=on_tap)
            self.egress = AmiEgress(
                self.link, settings, wanted=self.farewells.wanted, told=self.farewells.told
            )

    def _reachable(self, call: CallInfo) -> bool:
        up = self.link is not None and self.link.state == "up"
        return self._variables and up and bool(call.channel)

    def _announced(self, announcement: Announcement) -> None:
        with contextlib.suppress(ValueError, Busy):  # no UUID, or draining: nobody asked for room
            self._board().announce(announcement, self._clock())

    def _paused(self, wish: PauseWish) -> None:
        board = self._board()
        found = board.calls.get(wish.call)
        calls = [found] if found else [] if wish.call else board.of_channel(wish.channel)
        for call in calls:
            (call.resume if wish.resume else call.pause)(wish.leg, "ami")
