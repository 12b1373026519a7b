"""Taps put together: ARI on one side, the switchboard and the metrics on the other."""

from __future__ import annotations

import time
from collections.abc import Callable

from bridge.config import AriSettings, AudioSocketSettings, Settings
from bridge.metrics import Metrics
from bridge.pbx.ari import AriLink
from bridge.pbx.ari_tap import Outcome
from bridge.switchboard import Switchboard
from bridge.types import Announcement, LegName

OURS = ("bridge",)  # reasons of a leg's end that are ours: it was hung up, or was too long


def make(settings: Settings, switchboard: Switchboard, metrics: Metrics) -> AriLink | None:
    """The ARI link of a server, not started; None without [ari].

    Start it when the engine is ready, and close it before the AudioSocket port.
    """
    if settings.ari is None:
        return None

    def announce(announcement: Announcement) -> None:
        switchboard.announce(announcement, time.monotonic())

    link = AriLink(
        settings.ari,
        announce,
        lambda uuid, call, leg: outcome(switchboard, uuid, call, leg),
        address=address(settings.ari, settings.audiosocket),
    )
    _watch(link, metrics)
    return link


def outcome(switchboard: Switchboard, uuid: str, call_id: str, name: LegName) -> Outcome:
    """What came of the UUID under which a leg was announced."""
    if switchboard.known(uuid):
        return "pending"
    for id in (call_id, uuid):  # a leg whose call's id was taken is a call named by its UUID
        call = switchboard.find(id)
        leg = call.legs.get(name) if call is not None else None
        if leg is not None:
            return "ended" if leg.reason in OURS else "heard"
    return "refused"


def address(ari: AriSettings, audiosocket: AudioSocketSettings | None) -> str:
    """host:port at which Asterisk reaches [audiosocket]."""
    return str(ari.audiosocket or (audiosocket or AudioSocketSettings()).listen)


def _watch(link: AriLink, metrics: Metrics) -> None:
    """What Prometheus reads of it."""

    def gauge(name: str, text: str, read: Callable[[], float]) -> None:
        metrics.watch(name, text, lambda: {(): read()})

    gauge("ari_up", "1 when ARI's events come.", lambda: link.state == "up")
    gauge("ari_channels", "Channels in Asterisk that are known.", lambda: len(link.taps.channels))
    metrics.watch(
        "taps",
        "Legs that ARI taps, or should.",
        lambda: {(state,): float(n) for state, n in link.taps.states().items()},
        ["state"],
    )
    metrics.watch(
        "ari_total",
        "What happened between us and ARI.",
        lambda: {(what,): float(n) for what, n in link.counters.copy().items()},
        ["what"],
        "counter",
    )
