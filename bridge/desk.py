"""The front desk: what HTTP asks of a server. Reads, and hangs up."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bridge import __version__
from bridge.call import Call, conversation
from bridge.config import ENGINE_KINDS, Address
from bridge.egress.ami import listened_variables
from bridge.engine import device
from bridge.http.announce import BadAnnouncement
from bridge.http.app import Health
from bridge.ingress.rtp_types import BadMedia
from bridge.media import MediaAddress, MediaRequest
from bridge.pbx.ari_events import Wish
from bridge.pbx.ari_taps import NoChannel
from bridge.recorder.recorder import answered
from bridge.types import Announcement, Final, LegCounts, LegName, Listened

if TYPE_CHECKING:
    from bridge.server import Server


class Desk:
    """A server as the HTTP side sees it. Implements `bridge.http.app.Service`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.metrics = server.metrics

    def info(self) -> dict[str, object]:
        """GET /."""
        return {
            "name": "callscribe",
            "version": __version__,
            "engine": self._server.recogniser.name,
            "slots": self._server.recogniser.slots,
            "used": self._server.recogniser.used,
            "calls": len(self._server.switchboard.calls),
            "uptime": round(time.monotonic() - self._server.began, 3),
            "websocket": self._websocket(),
        }

    def _websocket(self) -> str:
        """Where the page's microphone goes; empty where there is no such listener."""
        settings = self._server.settings.websocket
        if settings is None or self._server.sockets is None:
            return ""
        port = self._server.sockets.sock.getsockname()[1]
        return settings.public_url or f"ws://{Address(settings.listen.host, port)}"

    def health(self) -> Health:
        """Readiness and its reasons."""
        reasons = []
        if not self._server.loaded:
            reasons.append("the engine is loading")
        elif not self._server.recogniser.ready:
            reasons.append("the engine is down")
        if self._server.draining:
            reasons.append("draining")
        checks = {"engine": "ok" if self._server.recogniser.ready else "down"}
        if self._server.sockets is not None:
            checks["websocket"] = "ok" if self._server.loaded else "loading"
        if self._server.link is not None:
            checks["ami"] = self._server.link.state
        if self._server.esl is not None:
            checks["esl"] = self._server.esl.state
        if self._server.ari is not None:
            checks["ari"] = self._server.ari.state
        if self._server.sinks.shelves is not None:
            checks["outbox"] = self._server.sinks.shelves.state
        for outbox in self._server.sinks.outboxes:
            checks[f"sink {outbox.name}"] = outbox.state
        return Health(
            ready=not reasons,
            live=True,
            started=self._server.loaded,
            reasons=tuple(reasons),
            checks=checks,
            used=self._server.recogniser.used,
            slots=self._server.recogniser.slots,
            calls=len(self._server.switchboard.calls),
            max_calls=self._server.settings.calls.max,
            waiting=self._server.switchboard.waiting,
            model=_model(self._server),
        )

    def calls(self) -> list[dict[str, object]]:
        """Calls that are up."""
        return [_summary(self._server, call) for call in self._server.switchboard.calls.values()]

    def search(self, text: str, *, ended: bool) -> list[dict[str, object]]:
        """Calls in which `text` was said."""
        board = self._server.switchboard
        calls = [*board.calls.values(), *(board.ended.values() if ended else ())]
        words = text.casefold()
        found = [c for c in calls if not words or words in self._text(c)]
        found.sort(key=lambda call: call.began_at, reverse=True)
        return [_summary(self._server, call) for call in found]

    def _text(self, call: Call) -> str:
        return conversation(self._finals(call)).casefold()

    def call(self, id: str) -> dict[str, object] | None:
        """One call, up or lately ended, with its finals."""
        call = self._server.switchboard.find(id)
        if call is None:
            return None
        finals = [
            {
                "leg": leg,
                "turn": final.turn,
                "text": final.text,
                "start": round(final.words[0].start, 3),
                "end": round(final.words[-1].end, 3),
            }
            for leg, final in sorted(self._finals(call), key=lambda pair: pair[1].words[0].start)
        ]
        return {**_summary(self._server, call), "finals": finals}

    def text(self, id: str) -> str | None:
        """The conversation as plain text."""
        call = self._server.switchboard.find(id)
        return None if call is None else conversation(self._finals(call))

    def _finals(self, call: Call) -> Iterable[tuple[LegName, Final]]:
        """What HTTP may show."""
        shown = self._server.sinks.shown
        return call.finals if shown is None else shown.of(call)

    def announce(self, announcement: Announcement) -> float:
        """POST /calls."""
        if announcement.uuid in self._server.switchboard.announced:
            raise ValueError("this UUID has been announced already")
        return self._server.announce(announcement)

    def open_media(self, announcement: Announcement, request: MediaRequest) -> MediaAddress:
        """POST /calls with media."""
        try:
            return self._server.open_media(announcement, request)
        except BadMedia as e:
            raise BadAnnouncement(f"media: {e}") from None

    def tap(self, channel: str, call: str, leg: LegName | None, *, consents: bool) -> str:
        """POST /calls with tap."""
        if self._server.ari is None:
            raise BadAnnouncement("tap: this bridge has no ARI; its configuration needs [ari]")
        try:
            return self._server.ari.tap(channel, Wish(call, leg, consents))
        except NoChannel as e:
            raise LookupError(str(e)) from None

    def pause(self, id: str, leg: LegName | None, *, resume: bool) -> dict[str, bool] | None:
        """POST /calls/{id}/pause and /resume."""
        call = self._server.switchboard.calls.get(id)
        if call is None:
            return None
        (call.resume if resume else call.pause)(leg, "http")
        return {name: of_leg.paused for name, of_leg in call.legs.items()}

    def listened(self, id: str, *, plain: bool) -> dict[str, object] | None:
        """GET /calls/{id}/listen."""
        call = self._server.switchboard.find(id)
        if call is None or not call.info.listening:
            return None
        found = call.listened or Listened("listening")
        confidence = found.confidence
        if plain:
            variables = listened_variables(found)
            return {name.partition("_")[2].lower(): value for name, value in variables.items()}
        return {
            "status": found.status,
            "confidence": None if confidence is None else round(confidence, 3),
            "language": found.language,
            "text": found.text,
        }

    def add_rule(self, id: str, given: Mapping[str, object]) -> list[str]:
        """POST /calls/{id}/rules."""
        return self._server.rules.add(id, given)

    def rules(self, id: str) -> dict[str, object]:
        """GET /calls/{id}/rules."""
        return self._server.rules.of(id)

    def remove_rule(self, id: str, name: str) -> None:
        """DELETE /calls/{id}/rules/{name}."""
        self._server.rules.remove(id, name)

    def hang_up(self, id: str) -> bool:
        """DELETE /calls/{id}."""
        ended = self._server.switchboard.hang_up(id)
        rtp = self._server.rtp
        ports = rtp is not None and rtp.withdraw(id)
        return self._server.switchboard.announced.withdraw(id) or ports or ended

    async def recording(self, id: str, leg: str) -> Path | None:
        """GET /calls/{id}/recording/{leg}."""
        recorder = self._server.sinks.recorder
        return None if recorder is None else await answered(recorder.find(id, leg))

    async def delete_recording(self, id: str) -> bool:
        """DELETE /calls/{id}/recording."""
        recorder = self._server.sinks.recorder
        return recorder is not None and await answered(recorder.delete(id))


def _model(server: Server) -> dict[str, str]:
    """What hears, and on what; of an engine of your own only its name is known."""
    choice, settings = server.choice, server.settings.engine
    if choice is None or choice.kind != "kyutai":
        known = choice is not None and choice.kind in ENGINE_KINDS
        where = "cpu" if known else "unknown"
        return {"model_size": server.recogniser.name, "device": where, "compute_type": "default"}
    where = _device(settings.device)
    best = "float32" if where == "cpu" else "bfloat16"
    return {
        "model_size": settings.model.rpartition("/")[2],
        "device": where.partition(":")[0],
        "compute_type": best if settings.dtype == "auto" else settings.dtype,
    }


def remember_model(server: Server) -> None:
    """Find out now, before anybody asks."""
    _model(server)


@functools.cache  # asking takes a process, and somebody looks at the health every second
def _device(setting: str) -> str:
    return device.resolve(setting)


def _summary(server: Server, call: Call) -> dict[str, object]:
    info = call.info
    counts = server.switchboard.counts(call)
    return {
        "call_id": call.id,
        "ingress": info.ingress,
        "channel": info.channel,
        "uniqueid": info.uniqueid,
        "linkedid": info.linkedid,
        "caller": info.caller,
        "callee": info.callee,
        "extra": dict(info.extra),
        "started": call.began_at,
        "ended": call.ended is not None,
        "legs": {
            name: _counts(of_leg) | server.switchboard.now(call, name)
            for name, of_leg in counts.items()
        },
    }


def _counts(counts: LegCounts) -> dict[str, float | None]:
    return {
        "seconds": round(counts.seconds, 3),
        "frames": counts.frames,
        "words": counts.words,
        "silence_inserted": round(counts.silence_inserted, 3),
        "blocks": counts.blocks,
        "blocks_dropped": counts.blocks_dropped,
        "packets_lost": counts.packets_lost,
        "packets_late": counts.packets_late,
        "packets_duplicate": counts.packets_duplicate,
        "packets_invalid": counts.packets_invalid,
        "packets_foreign": counts.packets_foreign,
        "jitter": round(counts.jitter, 4),
        "concealed": round(counts.concealed, 3),
        "paused": round(counts.paused, 3),
    }
