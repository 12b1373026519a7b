"""What is logged of one sink: a line per change for the worse, never what was said."""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias

from bridge.contract import event_type
from bridge.egress.retry import PROBE, TRIP
from bridge.errors import DeliveryError
from bridge.types import CallEvent

QUIET = 60.0  # seconds between two lines about single failures

State: TypeAlias = Literal["ok", "failing", "open", "gone"]

log = logging.getLogger("callscribe.outbox")


class Teller:
    """`name` is the sink's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._quiet_until = float("-inf")

    def change(self, before: State, after: State, error: DeliveryError, now: float) -> None:
        """One line per change for the worse, not one per failure."""
        if after == before:
            return
        if after == "gone":
            log.error("%s gets no more events until a restart: %s", self._name, error)
        elif after == "open":
            text = "%s failed %d times in a row and is asked once in %g s from now on: %s"
            log.warning(text, self._name, TRIP, PROBE, error)
        elif now >= self._quiet_until:  # a sink that fails now and then must not fill the log
            self._quiet_until = now + QUIET
            log.warning("%s: %s; trying again", self._name, error)

    def recovery(self, waiting: int) -> None:
        log.warning("%s takes events again; %d are waiting", self._name, waiting)

    def given_up(self, event: CallEvent, error: DeliveryError) -> None:
        text = "%s: event %d of call %r is given up: %s"
        log.warning(text, self._name, event.seq, event.call.id, error)

    def odd(self, event: CallEvent, error: Exception) -> None:
        """What a sink must not raise. Only its type: its text may hold what was said."""
        log.error(
            "%s raised %s at event %d (%s) of call %r",
            *(self._name, type(error).__name__, event.seq, event_type(event), event.call.id),
        )

    def odd_close(self, error: Exception) -> None:
        log.error("%s raised %s when it was closed", self._name, type(error).__name__)

    def fault(self, error: Exception) -> None:
        """Of ours, in choosing what goes next."""
        log.error("%s: %s in its queue; calls wait a second", self._name, type(error).__name__)
