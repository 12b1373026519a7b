"""Waiting for what others do, with a deadline and a sentence about what was seen instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WAIT = 30.0  # s


class Watched:
    """Something that changes and can be waited for."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()

    def seen(self) -> str:
        """What to say when the wait was in vain."""
        raise NotImplementedError

    async def change(self, change: Callable[[], object] = lambda: None) -> None:
        """Make a change, and have everybody who waits look again."""
        async with self._changed:
            change()
            self._changed.notify_all()

    async def until(self, wanted: Callable[[], bool], what: str, within: float = WAIT) -> None:
        """Wait until that is so. Raises AssertionError after `within` seconds."""
        try:
            async with asyncio.timeout(within), self._changed:
                await self._changed.wait_for(wanted)
        except TimeoutError:
            text = f"waited {within:.0f} s for {what}; seen: {self.seen()}"
            raise AssertionError(text) from None
