"""Taps put together: ARI on one side, the switchboard and the metrics on the other."""

from __future__ import annotations

import time
from collections.abc import Callable

from bridge.config import AriSettings, AudioSocketSettings, Settings
from bridge.metrics import Metrics
from bridge.pbx.ami_tap import TapAsked
from bridge.pbx.ari import AriLink
from bridge.pbx.ari_media import AudioSocketMedia, Media, RtpMedia, WebSocketMedia
from bridge.pbx.ari_tap import Outcome
from bridge.rtp_taps import RtpTaps
from bridge.rtp_user import RtpUser
from bridge.switchboard import Switchboard
from bridge.types import Announcement, LegName

OURS = ("bridge",)  # reasons of a leg's end that are ours: it was hung up, or was too long


def make(
    settings: Settings, switchboard: Switchboard, metrics: Metrics, rtp: RtpUser | None = None
) -> AriLink | None:
    """The ARI link of a server, not started; None without [ari].

    Start it when the engine is ready, and close it before the AudioSocket port and `rtp`.
    """
    ari = settings.ari
    if ari is None:
        return None

    def announce(announcement: Announcement) -> None:
        switchboard.announce(announcement, time.monotonic())

    def came(uuid: str, call: str, leg: LegName) -> Outcome:
        return outcome(switchboard, uuid, call, leg)

    if ari.encapsulation == "rtp":
        assert rtp is not None  # checked with the settings
        ports = RtpTaps(rtp, ari.format, time.monotonic)
        media: Media = RtpMedia(ports, ari.format)
        link = AriLink(ari, ports.announce, came, media=media, learn=announce)
        ports.unheard = link.unheard
    else:
        media = AudioSocketMedia(address(ari, settings.audiosocket))
        if ari.encapsulation == "websocket":
            media = WebSocketMedia(ari.websocket, ari.format)
        link = AriLink(ari, announce, came, media=media)
    _watch(link, metrics)
    return link


def asked_by_ami(link: AriLink | None) -> Callable[[TapAsked], object] | None:
    """What an AMI link does with a tap that somebody asks for there; None without ARI."""
    if link is None:
        return None
    return lambda asked: link.tap(asked.channel, asked.wish)


def outcome(switchboard: Switchboard, uuid: str, call_id: str, name: LegName) -> Outcome:
    """What came of the UUID under which a leg was announced."""
    if uuid in switchboard.announced:
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
    metrics.gauge("ari_up", "1 when ARI's events come.", lambda: link.state == "up")
    metrics.gauge(
        "ari_channels", "Channels in Asterisk that are known.", lambda: len(link.taps.channels)
    )
    metrics.each("taps", "Legs that ARI taps, or should.", "state", link.taps.states)
    metrics.each("ari_total", "What happened between us and ARI.", "what", link.counters.copy)
