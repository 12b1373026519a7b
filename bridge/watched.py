"""What Prometheus reads of a server's state at scrape time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.desk import Desk, remember_model
from bridge.outbox_file import watch_outbox

if TYPE_CHECKING:
    from bridge.metrics import Metrics
    from bridge.rtp_user import RtpUser
    from bridge.server import Server
    from bridge.sinks import Sinks


def watch(server: Server) -> None:
    """Register it."""
    remember_model(server)
    _calls(server)
    _engine(server)
    _sinks(server.metrics, server.sinks)
    _links(server)
    _listeners(server)
    if server.rtp is not None:
        _rtp(server.metrics, server.rtp)


def _calls(server: Server) -> None:
    metrics, board = server.metrics, server.switchboard
    gate = board.gate
    metrics.gauge("calls", "Calls that are up.", lambda: len(board.calls))
    metrics.gauge("legs", "Legs that are up.", lambda: board.lines)
    metrics.gauge("lines_waiting", "Connections not yet joined to a call.", lambda: board.waiting)
    metrics.gauge("slots_reserved", "Slots kept for announced legs.", lambda: gate.reserved)
    metrics.each("reservations_total", "What became of them.", "what", lambda: gate.counters)
    if server.settings.limit:
        metrics.each(
            "limit_calls",
            "Calls that count for a [[limit]], those reserved for included.",
            "limit",
            gate.calls,
        )
        metrics.each("limit_refused_total", "Calls over it.", "limit", lambda: gate.refused)
    _total(server, "frames", "Audio messages heard.")
    _total(server, "blocks_dropped", "80 ms blocks that the engine was too slow for.")


def _engine(server: Server) -> None:
    metrics, engine = server.metrics, server.recogniser
    metrics.gauge("ready", "1 when ready for calls.", lambda: Desk(server).health().ready)
    metrics.each(
        "slots",
        "Slots of the engine.",
        "state",
        lambda: {"used": engine.used, "free": engine.slots - engine.used},
    )
    metrics.each("engine_total", "What happened to the engine.", "what", lambda: engine.counters)


def _sinks(metrics: Metrics, sinks: Sinks) -> None:
    boxes, redaction, recorder = sinks.outboxes, sinks.redaction, sinks.recorder
    metrics.each(
        "sink_queue", "Events that wait.", "sink", lambda: {box.name: box.queued for box in boxes}
    )
    metrics.watch(
        "sink_events_total",
        "What became of events.",
        lambda: {(box.name, what): n for box in boxes for what, n in box.counters.items()},
        ["sink", "outcome"],
        "counter",
    )
    metrics.each("redaction_total", "What sinks were not told.", "what", lambda: redaction.counters)
    metrics.gauge("redaction_held", "Events that may hold a number begun.", lambda: redaction.held)
    if recorder is not None:
        metrics.each(
            "recording_total", "What became of recordings.", "what", lambda: recorder.counters
        )
        metrics.gauge("recording_queue_bytes", "Audio that waits.", lambda: recorder.queued)
    if sinks.shelves is not None:
        watch_outbox(metrics, sinks.shelves)


def _links(server: Server) -> None:
    metrics, link, esl = server.metrics, server.link, server.esl
    if link is not None:
        metrics.gauge("ami_up", "1 when logged in.", lambda: link.state == "up")
        metrics.each(
            "ami_total", "What happened on the AMI connection.", "what", lambda: link.counters
        )
    if esl is not None:
        metrics.gauge("esl_up", "1 when logged in.", lambda: esl.state == "up")
        metrics.each(
            "esl_total", "What happened on the event socket.", "what", lambda: esl.counters
        )


def _listeners(server: Server) -> None:
    metrics, port, sockets = server.metrics, server.port, server.sockets
    if sockets is not None and server.socket_user is not None:
        auth = server.socket_user.auth
        metrics.gauge("websockets", "Open WebSockets.", lambda: sockets.connections)
        metrics.each("websocket_total", "What happened there.", "what", lambda: sockets.counters)
        metrics.each(
            "websocket_auth_total", "Who was let in, or not.", "what", lambda: auth.counters
        )
    if port is not None:
        metrics.gauge(
            "connections",
            "Open sockets of the AudioSocket listener.",
            lambda: port.connections,
        )
        metrics.each("audiosocket_total", "What happened there.", "what", lambda: port.counters)


def _rtp(metrics: Metrics, rtp: RtpUser) -> None:
    metrics.each(
        "rtp_ports",
        "UDP ports of [rtp].",
        "state",
        lambda: {
            "announced": rtp.ports.waiting,
            "heard": len(rtp.ports) - rtp.ports.waiting,
            "resting": rtp.sockets.resting,
            "free": rtp.sockets.free,
        },
    )
    metrics.each(
        "rtp_packets_total",
        "What became of packets; foreign: not the peer's, or no room in the kernel.",
        "what",
        lambda: {
            **{name: n for name, n in rtp.totals().items() if name != "concealed"},
            "foreign": rtp.ports.strangers,
        },
    )
    metrics.watch(
        "rtp_concealed_seconds_total",
        "Audio that nobody sent.",
        lambda: {(): rtp.totals()["concealed"]},
        (),
        "counter",
    )
    metrics.each("rtp_total", "What happened at the ports.", "what", lambda: rtp.ports.counters)


def _total(server: Server, name: str, text: str) -> None:
    """Of all legs, those of ended calls included."""
    board = server.switchboard

    def read() -> dict[tuple[str, ...], float]:
        legs = (leg for call in board.calls.values() for leg in call.legs.values())
        return {(): board.totals[name] + sum(getattr(leg.counts(), name) for leg in legs)}

    server.metrics.watch(f"{name}_total", text, read, (), "counter")
