"""The outbox's file: as the settings have it, and as Prometheus reads it."""

from __future__ import annotations

from pathlib import Path

from bridge.config import OutboxSettings
from bridge.egress.shelf import Shelves
from bridge.egress.store_types import StoreLimits
from bridge.metrics import Metrics


def make(settings: OutboxSettings) -> Shelves | None:
    """Not opened yet; None where everything is in memory."""
    if not settings.path:
        return None
    limits = StoreLimits(settings.max_rows, settings.max_mb << 20, settings.dead_days * 86400)
    return Shelves(Path(settings.path), limits)


def watch_outbox(metrics: Metrics, shelves: Shelves) -> None:
    """Register it; everything is read at scrape time."""
    writer = shelves.writer
    store = writer.store
    metrics.each(
        "outbox_events",
        "Events in the outbox's file: waiting for their sink, or dead letters.",
        "state",
        lambda: {"waiting": store.rows - store.dead, "dead": store.dead},
    )
    metrics.gauge("outbox_bytes", "Of the file that are in use.", lambda: store.size)
    metrics.gauge("outbox_full", "1: no new call is taken.", lambda: store.fill)
    metrics.gauge("outbox_unwritten", "Changes that wait for the disk.", lambda: writer.waiting)
    metrics.gauge("outbox_up", "1 when the file can be written.", lambda: not writer.trouble)
    metrics.each(
        "outbox_total",
        "What happened to the file; unstored: events that are kept in memory only.",
        "what",
        lambda: writer.counters,
    )
