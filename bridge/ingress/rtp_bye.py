"""What a BYE means. Pure.

BYE says that an SSRC has left (RFC 3550 §6.6), not that the call is over: phones whose media is
made anew, for a re-INVITE or a transfer, say it too and go on under another SSRC, and some say it
when they hold. But it is the only prompt hang-up that RTP has. So after a BYE the leg is over
unless audio comes within a while, of whatever SSRC. That while is a setting, because only call
control knows of a hold, which may last: who says BYE to hold needs one as long as a hold may be.
"""

from __future__ import annotations

from typing import Final

STRAY: Final = 0.2  # s after a BYE in which packets sent before it may still come
NEVER: Final = float("inf")


class Departure:
    """One stream's BYE, if there was one. `due`: when it has come true or not."""

    __slots__ = ("_at", "_wait", "due")

    def __init__(self, wait: float) -> None:
        self.due = NEVER
        self._at = NEVER
        self._wait = wait

    def said(self, now: float) -> None:
        """A BYE. To repeat it is not to begin anew."""
        self._at = min(self._at, now)
        self.due = self._at + self._wait

    def over(self, heard_at: float, now: float) -> bool:
        """Is the leg over? `heard_at`: when the last packet of the stream came."""
        if now < self.due:
            return False
        if heard_at <= self._at + STRAY:
            return True
        self._at = self.due = NEVER  # it was taken back
        return False
