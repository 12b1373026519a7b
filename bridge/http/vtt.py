"""A conversation as WebVTT (W3C), a cue for each final, its speaker as the voice. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def vtt(finals: Iterable[Mapping[str, Any]]) -> str:
    """`finals`: objects with ``leg``, ``text``, ``start`` and ``end`` in seconds, in order."""
    cues = ["WEBVTT\n"]
    for final in finals:
        start, end = float(final["start"]), float(final["end"])
        when = f"{_clock(start)} --> {_clock(max(end, start + 0.001))}"
        cues.append(f"{when}\n<v {final['leg']}>{_escaped(str(final['text']))}\n")
    return "\n".join(cues)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _escaped(text: str) -> str:
    """An empty line would end the cue, ``-->`` begin one, ``<`` a tag."""
    flat = " ".join(text.split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
