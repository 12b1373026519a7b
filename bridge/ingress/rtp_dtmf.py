"""Digits as RTP events: telephone-event packets → one digit each (RFC 4733). Pure.

A packet is ``event (8) E (1) R (1) volume (6) duration (16)``. All packets of one event carry the
timestamp of its beginning; its end is a packet with the E bit, usually sent three times. A digit
is told once: at the first end packet, or when another event begins, or `CLOSE_AFTER` seconds after
the last packet, for ends get lost. What still comes of an event that was told is ignored. An event
too long for 16 bits goes on, without an end, under the timestamp at which its duration ran over.
"""

from __future__ import annotations

from collections import deque
from typing import Final

EVENTS: Final = "0123456789*#ABCD"  # by number; 16 is a hook flash, beyond are tones of modems
CLOSE_AFTER: Final = 0.15  # s, as Asterisk
TOLD: Final = 8  # events remembered
LONGEST: Final = 0xFFFF  # duration of a segment of a longer event


class Digits:
    """The digits of one stream. `deadline` is when `expire` wants to be called; infinite: never."""

    __slots__ = ("_event", "_timestamp", "_told", "deadline")

    def __init__(self) -> None:
        self.deadline = float("inf")
        self._event: int | None = None  # begun and not told
        self._timestamp = 0
        self._told: deque[tuple[int, int]] = deque(maxlen=TOLD)  # timestamp and event

    def hear(self, payload: bytes, timestamp: int, now: float) -> str:
        """One packet: the digits that are complete now, mostly none; in one case two.

        `timestamp` is unwrapped. Payloads of less than four octets and events that are no digits
        give nothing.
        """
        done = self.expire(now)
        if len(payload) < 4:
            return done
        event = payload[0]
        if event == self._event and timestamp == self._timestamp + LONGEST:
            self._told.append((self._timestamp, event))  # goes on; what is late of it says no more
            self._timestamp = timestamp
        key = (timestamp, event)
        if key in self._told:
            return done
        if self._event is not None and key != (self._timestamp, self._event):
            if timestamp < self._timestamp:
                self._told.append(key)  # all of it was overtaken: told late, but told
                return done + _digit(event)
            done += self.close()
        self._event, self._timestamp = event, timestamp
        self.deadline = now + CLOSE_AFTER
        return done + self.close() if payload[1] & 0x80 else done

    def expire(self, now: float) -> str:
        """Let time pass: the digit whose end was lost."""
        return self.close() if now >= self.deadline else ""

    def close(self) -> str:
        """The digit that has begun, if any: it is over."""
        if self._event is None:
            return ""
        event, self._event = self._event, None
        self._told.append((self._timestamp, event))
        self.deadline = float("inf")
        return _digit(event)


def _digit(event: int) -> str:
    return EVENTS[event] if event < len(EVENTS) else ""
