"""A session of /ws/stt: how it was asked for, and how far it has come. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.ingress.media_socket import POLICY, SocketError, clean, identifier
from bridge.ingress.pcm import Pcm, rate_of
from bridge.ingress.session_timing import Timing


@dataclass(slots=True)
class Session:
    """One session; its times are seconds of its audio."""

    id: str
    language: str = ""
    rate: int = 16000
    vad: bool = True
    threshold: float = 0.5
    partials: bool = True
    words: bool = True
    pcm: Pcm = field(default_factory=Pcm)
    timing: Timing = field(default_factory=Timing)
    clock: int = 0  # samples
    segments: int = 0  # that have their final
    speaking: bool = False
    last_end: float = 0.0  # of its last word
    reason: str = ""  # why it ends

    @property
    def segment(self) -> str:
        return f"seg-{self.segments + 1}"


def started(said: Mapping[str, Any], default: str) -> Session:
    """What a ``start_session`` asks for; `default`: the id where it names none. `SocketError`."""
    config = said.get("config") or {}
    if not isinstance(config, dict):
        raise SocketError(POLICY, "config: expected an object")
    threshold = config.get("vad_threshold", 0.5)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        threshold = -1
    if not 0 <= threshold <= 1:
        raise SocketError(POLICY, "vad_threshold: expected a number from 0 to 1")
    return Session(
        identifier(said.get("session_id", default), "session_id"),
        clean(config.get("lang_code") or ""),
        rate_of(config.get("sample_rate"), 16000),
        _flag(config, "vad_enabled"),
        threshold,
        _flag(config, "partial_results"),
        _flag(config, "word_timestamps"),
    )


def _flag(config: Mapping[str, Any], name: str) -> bool:
    found = config.get(name)
    if found is None or isinstance(found, bool):
        return found is not False
    raise SocketError(POLICY, f"{name}: expected true or false")
