"""What Prometheus reads of a server's state at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bridge.desk import Desk, remember_model
from bridge.outbox_file import watch_outbox

if TYPE_CHECKING:
    from bridge.rtp_user import RtpUser
    from bridge.server import Server


def watch(server: Server) -> None:
    """Register it."""
    remember_model(server)
    board, engine, boxes = server.switchboard, server.recogniser, server.outboxes
    link, esl, port = server.link, server.esl, server.port

    def gauge(name: str, text: str, read: Callable[[], float]) -> None:
        server.metrics.watch(name, text, lambda: {(): read()})

    def counts(name: str, text: str, read: Callable[[], Mapping[str, float]], label: str) -> None:
        server.metrics.watch(
            name, text, lambda: {(k,): n for k, n in read().items()}, [label], "counter"
        )

    def total(name: str, text: str) -> None:
        server.metrics.watch(
            f"{name}_total", text, lambda: {(): _total(server, name)}, (), "counter"
        )

    gauge("calls", "Calls that are up.", lambda: len(board.calls))
    gauge("legs", "Legs that are up.", lambda: board.lines)
    gauge("lines_waiting", "Connections not yet joined to a call.", lambda: board.waiting)
    gauge("slots_reserved", "Slots kept for announced legs.", lambda: board.gate.reserved)
    counts("reservations_total", "What became of them.", lambda: board.gate.counters, "what")
    if server.settings.limit:
        server.metrics.watch(
            "limit_calls",
            "Calls that count for a [[limit]], those reserved for included.",
            lambda: {(name,): n for name, n in board.gate.calls().items()},
            ["limit"],
        )
        counts("limit_refused_total", "Calls over it.", lambda: board.gate.refused, "limit")
    gauge("ready", "1 when ready for calls.", lambda: Desk(server).health().ready)
    total("frames", "Audio messages heard.")
    total("blocks_dropped", "80 ms blocks that the engine was too slow for.")
    server.metrics.watch(
        "slots",
        "Slots of the engine.",
        lambda: {("used",): engine.used, ("free",): engine.slots - engine.used},
        ["state"],
    )
    counts("engine_total", "What happened to the engine.", lambda: engine.counters, "what")
    server.metrics.watch(
        "sink_queue",
        "Events that wait.",
        lambda: {(box.name,): box.queued for box in boxes},
        ["sink"],
    )
    server.metrics.watch(
        "sink_events_total",
        "What became of events.",
        lambda: {(box.name, what): n for box in boxes for what, n in box.counters.items()},
        ["sink", "outcome"],
        "counter",
    )
    redaction, recorder = server.redaction, server.recorder
    counts("redaction_total", "What sinks were not told.", lambda: redaction.counters, "what")
    gauge("redaction_held", "Events that may hold a number begun.", lambda: redaction.held)
    if recorder is not None:
        counts("recording_total", "What became of recordings.", lambda: recorder.counters, "what")
        gauge("recording_queue_bytes", "Audio that waits.", lambda: recorder.queued)
    if server.shelves is not None:
        watch_outbox(server.metrics, server.shelves)
    if link is not None:
        gauge("ami_up", "1 when logged in.", lambda: link.state == "up")
        counts("ami_total", "What happened on the AMI connection.", lambda: link.counters, "what")
    if esl is not None:
        gauge("esl_up", "1 when logged in.", lambda: esl.state == "up")
        counts("esl_total", "What happened on the event socket.", lambda: esl.counters, "what")
    if server.sockets is not None and server.socket_user is not None:
        sockets, auth = server.sockets, server.socket_user.auth
        gauge("websockets", "Open WebSockets.", lambda: sockets.connections)
        counts("websocket_total", "What happened there.", lambda: sockets.counters, "what")
        counts("websocket_auth_total", "Who was let in, or not.", lambda: auth.counters, "what")
    if server.rtp is not None:
        _watch_rtp(server, server.rtp)
    if port is not None:
        gauge("connections", "Open sockets of the AudioSocket listener.", lambda: port.connections)
        counts("audiosocket_total", "What happened there.", lambda: port.counters, "what")


def _watch_rtp(server: Server, rtp: RtpUser) -> None:
    watch = server.metrics.watch
    watch(
        "rtp_ports",
        "UDP ports of [rtp].",
        lambda: {
            ("announced",): rtp.ports.waiting,
            ("heard",): len(rtp.ports) - rtp.ports.waiting,
            ("resting",): rtp.sockets.resting,
            ("free",): rtp.sockets.free,
        },
        ["state"],
    )
    watch(
        "rtp_packets_total",
        "What became of packets; foreign: not the peer's, or no room in the kernel.",
        lambda: {
            **{(name,): n for name, n in rtp.totals().items() if name != "concealed"},
            ("foreign",): rtp.ports.strangers,
        },
        ["what"],
        "counter",
    )
    watch(
        "rtp_concealed_seconds_total",
        "Audio that nobody sent.",
        lambda: {(): rtp.totals()["concealed"]},
        (),
        "counter",
    )
    watch(
        "rtp_total",
        "What happened at the ports.",
        lambda: {(what,): n for what, n in rtp.ports.counters.items()},
        ["what"],
        "counter",
    )


def _total(server: Server, name: str) -> float:
    live: float = sum(
        getattr(leg.counts(), name)
        for call in server.switchboard.calls.values()
        for leg in call.legs.values()
    )
    return live + server.switchboard.totals[name]
