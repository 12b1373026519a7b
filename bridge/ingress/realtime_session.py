"""The settings of an OpenAI Realtime transcription session: parsed, applied, shown. Pure.

Source: the types of openai-python, the form of today and the beta's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge.ingress.media_socket import clean

FORMATS: Mapping[str, tuple[str, str, int]] = {
    # theirs → the beta's name for it, ours (`bridge.ingress.pcm.ENCODINGS`), Hz
    "audio/pcm": ("pcm16", "linear16", 24000),
    "audio/pcmu": ("g711_ulaw", "mulaw", 8000),
    "audio/pcma": ("g711_alaw", "alaw", 8000),
}
LOGPROBS = "item.input_audio_transcription.logprobs"
MAX_MS = 60_000


class BadEvent(Exception):
    """A client's event that cannot be: `code` and `param` as their errors have them."""

    def __init__(self, sentence: str, param: str | None = None, code: str = "invalid_value"):
        super().__init__(sentence)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Vad:
    """When an item ends. `silence`, `padding`: seconds. `shown`: as the client said it."""

    silence: float = 0.5
    padding: float = 0.3
    shown: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """What the client has settled. Models, languages and prompts are repeated, and change nothing.

    `vad`: None: the client commits.
    """

    format: str = "audio/pcm"
    transcription: Mapping[str, str] | None = None
    noise_reduction: str | None = None
    vad: Vad | None = Vad()
    logprobs: bool = False

    def shown(self, id: str, *, beta: bool) -> dict[str, Any]:
        """As `session.created` and `session.updated` have it."""
        vad = None
        if self.vad is not None:
            vad = self.vad.shown or {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": round(1000 * self.vad.padding),
                "silence_duration_ms": round(1000 * self.vad.silence),
            }
        noise = None if self.noise_reduction is None else {"type": self.noise_reduction}
        include = [LOGPROBS] if self.logprobs else []
        head = {"id": id, "object": "realtime.transcription_session", "include": include}
        if beta:
            return {
                **head,
                "input_audio_format": FORMATS[self.format][0],
                "input_audio_transcription": self.transcription,
                "input_audio_noise_reduction": noise,
                "turn_detection": vad,
            }
        form = {"type": self.format}
        if self.format == "audio/pcm":
            form |= {"rate": 24000}  # type: ignore[dict-item]
        heard = {
            "format": form,
            "transcription": self.transcription,
            "noise_reduction": noise,
            "turn_detection": vad,
        }
        return {**head, "type": "transcription", "audio": {"input": heard}}


def updated(session: Session, wanted: object, *, beta: bool) -> Session:
    """The session after an update; what it does not name stays. Raises `BadEvent`."""
    said = _table(wanted, "session")
    if beta:
        where, prefix, given = said, "session.", "input_audio_"
    else:
        if said.get("type", "transcription") != "transcription":
            raise BadEvent('this server transcribes; expected "transcription"', "session.type")
        audio = _table(said.get("audio") or {}, "session.audio")
        where, prefix, given = _table(audio.get("input") or {}, "session.audio.input"), "", ""
        prefix = "session.audio.input."
    if f"{given}format" in where:
        session = replace(
            session, format=_format(where[f"{given}format"], f"{prefix}{given}format")
        )
    if f"{given}transcription" in where:
        session = replace(session, transcription=_strings(where[f"{given}transcription"]))
    if f"{given}noise_reduction" in where:
        noise = _strings(where[f"{given}noise_reduction"])
        session = replace(session, noise_reduction=(noise or {}).get("type"))
    if "turn_detection" in where:
        session = replace(session, vad=_vad(where["turn_detection"], f"{prefix}turn_detection"))
    if isinstance(said.get("include"), list):
        session = replace(session, logprobs=LOGPROBS in said["include"])
    return session


def _table(value: object, name: str) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise BadEvent(f"{name}: expected an object", name, "invalid_type")


def _strings(value: object) -> Mapping[str, str] | None:
    """The strings of an object, to be repeated to the client."""
    if not isinstance(value, dict):
        return None
    return {clean(k): clean(v) for k, v in list(value.items())[:8] if isinstance(v, str)}


def _format(value: object, param: str) -> str:
    if isinstance(value, str):  # the beta
        for name, (beta, _, _) in FORMATS.items():
            if value == beta:
                return name
    elif isinstance(value, dict):
        name = str(value.get("type"))
        if name in FORMATS and value.get("rate") in (None, FORMATS[name][2]):
            return name
    raise BadEvent("expected audio/pcm at 24000 Hz, audio/pcmu or audio/pcma", param)


def _vad(value: object, param: str) -> Vad | None:
    if value is None:
        return None
    said = _table(value, param)
    kind = said.get("type", "server_vad")
    if kind == "semantic_vad":  # our own: it hears in the words and the voice who has finished
        shown = {"type": kind, "eagerness": clean(said.get("eagerness", "auto"))}
        return Vad(0.0, 0.3, shown)
    if kind != "server_vad":
        raise BadEvent("expected server_vad or semantic_vad, or null", f"{param}.type")
    silence = _milliseconds(said, "silence_duration_ms", 500, param)
    return Vad(silence, _milliseconds(said, "prefix_padding_ms", 300, param))


def _milliseconds(said: Mapping[str, Any], name: str, default: int, param: str) -> float:
    value = said.get(name)
    if value is None:
        return default / 1000
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_MS:
        raise BadEvent(f"expected whole milliseconds up to {MAX_MS}", f"{param}.{name}")
    return value / 1000
