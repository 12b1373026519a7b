"""Audio of one read: fewer and longer frames cost the leg behind them less. Pure."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from bridge.ingress.media_socket import LegAudio
from bridge.types import Frame, LegName

E = TypeVar("E")


def joined(events: list[E]) -> list[E]:
    """Pieces of a leg's audio that follow each other, with nothing but audio between, as one."""
    if len(events) < 2:
        return events
    out: list[Any] = []
    runs: dict[LegName, list[Frame]] = {}
    for event in events:
        if not isinstance(event, LegAudio):
            out += _run_out(runs)
            out.append(event)
            continue
        run, frame = runs.get(event.leg), event.frame
        if run is not None and not _follows(run[-1], frame):
            out += _run_out({event.leg: run})
            run = None
        if run is None:
            runs[event.leg] = [frame]
        else:
            run.append(frame)
    return [*out, *_run_out(runs)]


def _follows(before: Frame, after: Frame) -> bool:
    return after.start == before.start + len(before.samples) and after.rate == before.rate


def _run_out(runs: dict[LegName, list[Frame]]) -> list[LegAudio]:
    """One frame for each, and none left."""
    out: list[LegAudio] = []
    for leg, run in runs.items():
        frame = run[0]
        if len(run) > 1:
            samples = np.concatenate([piece.samples for piece in run])
            frame = Frame(samples, frame.rate, frame.start, packets=len(run))
        out.append(LegAudio(leg, frame))
    runs.clear()
    return out
