"""Doctor and the outbox's file: can it be written, and what is in it? Makes no file."""

from __future__ import annotations

import os
from pathlib import Path

from bridge.config import OutboxSettings
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.egress.store_letters import opened
from bridge.errors import BridgeError

NAME = "outbox"


def check(settings: OutboxSettings) -> Finding:
    """One line."""
    if not settings.path:
        return ok(NAME, "in memory: what waits is lost with the process (outbox.path keeps it)")
    path = Path(settings.path)
    if not path.parent.is_dir():
        return failed(NAME, f"there is no directory {path.parent}", "make it, or correct the path")
    where = path if path.exists() else path.parent
    if not os.access(where, os.W_OK):
        return failed(NAME, f"{where} cannot be written", "give it to the user of the bridge")
    if not path.exists():
        return ok(NAME, f"{path} will be made")
    try:
        with opened(path) as letters:
            sinks = letters.waiting()
    except BridgeError as e:
        advice = "move it away: the bridge would set it aside and begin a new one"
        return failed(NAME, str(e), advice)
    told = f"{path}: {sum(s.rows for s in sinks)} events wait"
    dead = sum(s.dead for s in sinks)
    if dead:
        return warning(NAME, f"{told}, {dead} were given up", "see: callscribe outbox list")
    return ok(NAME, told)
