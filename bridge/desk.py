"""The front desk: what HTTP and Prometheus ask of a server. Reads, and hangs up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bridge import __version__
from bridge.call import Call
from bridge.http.app import Health
from bridge.types import Announcement, LegCounts

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
        }

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
        if self._server.link is not None:
            checks["ami"] = self._server.link.state
        for outbox in self._server.outboxes:
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
        )

    def calls(self) -> list[dict[str, object]]:
        """Calls that are up."""
        return [_summary(call) for call in self._server.switchboard.calls.values()]

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
            for leg, final in sorted(call.finals, key=lambda pair: pair[1].words[0].start)
        ]
        return {**_summary(call), "finals": finals}

    def text(self, id: str) -> str | None:
        """The conversation as plain text."""
        call = self._server.switchboard.find(id)
        return None if call is None else call.text()

    def announce(self, announcement: Announcement) -> float:
        """POST /calls."""
        if self._server.switchboard.known(announcement.uuid):
            raise ValueError("this UUID has been announced already")
        return self._server.switchboard.announce(announcement, time.monotonic())

    def hang_up(self, id: str) -> bool:
        """DELETE /calls/{id}."""
        return self._server.switchboard.hang_up(id)


def watch(server: Server) -> None:
    """Register what Prometheus reads from the server's state at scrape time."""
    m, board, engine = server.metrics, server.switchboard, server.recogniser
    m.watch("calls", "Calls that are up.", lambda: {(): len(board.calls)})
    m.watch("legs", "Legs that are up.", lambda: {(): board.lines})
    m.watch("lines_waiting", "Connections not yet joined.", lambda: {(): board.waiting})
    m.watch("ready", "1 when ready.", lambda: {(): float(Desk(server).health().ready)})
    m.watch(
        "slots",
        "Slots of the engine.",
        lambda: {("used",): engine.used, ("free",): engine.slots - engine.used},
        ["state"],
    )
    m.watch(
        "leg_frames_total", "Audio frames.", lambda: {(): _total(server, "frames")}, kind="counter"
    )
    m.watch(
        "leg_blocks_dropped_total",
        "80 ms blocks that the engine was too slow for.",
        lambda: {(): _total(server, "blocks_dropped")},
        kind="counter",
    )
    m.watch(
        "sink_queue",
        "Events that wait.",
        lambda: {(outbox.name,): outbox.queued for outbox in server.outboxes},
        ["sink"],
    )
    m.watch(
        "sink_events_total",
        "What became of events.",
        lambda: {
            (outbox.name, what): n
            for outbox in server.outboxes
            for what, n in outbox.counters.items()
        },
        ["sink", "outcome"],
        kind="counter",
    )
    if server.link is not None:
        link = server.link
        m.watch("ami_up", "1 when logged in.", lambda: {(): float(link.state == "up")})
        m.watch(
            "ami_session_total",
            "What happened on the AMI connection.",
            lambda: {(what,): n for what, n in link.counters.items()},
            ["what"],
            kind="counter",
        )
    if server.port is not None:
        port = server.port
        m.watch("connections", "Open sockets.", lambda: {(): port.connections})
        m.watch(
            "audiosocket_total",
            "What happened on the AudioSocket listener.",
            lambda: {(what,): n for what, n in port.counters.items()},
            ["what"],
            kind="counter",
        )


def _total(server: Server, name: str) -> float:
    live: float = sum(
        getattr(leg.counts(), name)
        for call in server.switchboard.calls.values()
        for leg in call.legs.values()
    )
    return live + server.switchboard.totals[name]


def _summary(call: Call) -> dict[str, object]:
    info = call.info
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
        "legs": {name: _counts(leg.counts()) for name, leg in call.legs.items()},
    }


def _counts(counts: LegCounts) -> dict[str, float]:
    return {
        "seconds": round(counts.seconds, 3),
        "frames": counts.frames,
        "words": counts.words,
        "silence_inserted": round(counts.silence_inserted, 3),
        "blocks": counts.blocks,
        "blocks_dropped": counts.blocks_dropped,
    }
