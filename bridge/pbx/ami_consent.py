"""Consent to recording, as a dialplan gives it: ``Set(CALLSCRIBE_CONSENT=1)``. Pure.

The variable names a channel, the announcement of a leg a UUID; whichever comes first waits for the
other. Consent is not taken back: who will not be recorded any more is not recorded from then on
when the call's recording is deleted or its transcription paused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bridge.types import Announcement

VARIABLE = "CALLSCRIBE_CONSENT"
MAX_CHANNELS = 10_000  # remembered; the oldest goes first


class Consents:
    """What channels have consented, and which leg is whose."""

    def __init__(self) -> None:
        self._given: OrderedDict[str, None] = OrderedDict()  # by Uniqueid
        self._legs: OrderedDict[str, Announcement] = OrderedDict()

    def announced(self, announcement: Announcement) -> Announcement:
        """The announcement, with the consent that its channel gave before."""
        channel = announcement.info.uniqueid
        if channel in self._given:
            return _consented(announcement)
        if channel:
            self._legs[channel] = announcement
            _shorten(self._legs)
        return announcement

    def heard(self, event: Mapping[str, str]) -> Announcement | None:
        """An event of AMI: what is to be announced again, because its channel now consents."""
        if event.get("event", "") != "VarSet" or event.get("variable", "") != VARIABLE:
            return None
        channel = event.get("uniqueid", "")
        if event.get("value", "").strip() != "1" or not channel:
            return None
        self._given[channel] = None
        _shorten(self._given)
        leg = self._legs.pop(channel, None)
        return None if leg is None else _consented(leg)


def _consented(announcement: Announcement) -> Announcement:
    return replace(announcement, info=replace(announcement.info, recording_consent=True))


def _shorten(remembered: OrderedDict[str, Any]) -> None:
    while len(remembered) > MAX_CHANNELS:
        remembered.popitem(last=False)
