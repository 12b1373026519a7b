"""The session protocol at /ws/stt: JSON to control, PCM16 in, transcripts out. Pure.

One session at a time on a connection, one after the other. In: ``start_session``, ``flush``,
``end_session``, ``cancel``, and binary audio. Out: ``session_started``, ``vad_event``,
``partial_transcript``, ``final_transcript``, ``session_ended``, ``error``; a wrong message costs
itself. A segment is what becomes one final. What the fields of ``timing`` are is said in
bridge/ingress/session_timing.py.

Codes of a session that is not taken: MAX_SESSIONS_REACHED for ``calls.max``, QUEUE_FULL when every
slot is taken, QUEUE_CONGESTION when steps of the engine take too long; INTERNAL_ERROR while it
loads or drains. ``vad_threshold`` decides when a ``vad_event`` says that speech has ended, not when
a final comes: that is [turns]. ``lang_code`` is passed on with the call's events; the model hears
what it hears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.ingress.media_socket import (
    NORMAL,
    LegAsked,
    LegAudio,
    MediaBase,
    SocketError,
    SocketEvent,
    parse,
)
from bridge.ingress.pcm import IDLE, confidence_of, seconds
from bridge.ingress.session_config import Session, started
from bridge.types import CallEvent, CallInfo, Ended, Final, Frame, Heard, LegName, Partial, Word

CODES = {
    "limit": ("MAX_SESSIONS_REACHED", "as many sessions as this server takes are active"),
    "busy": ("QUEUE_FULL", "Queue full: every slot of the recogniser is taken"),
    "overload": ("QUEUE_CONGESTION", "the recogniser is too slow for another session"),
}


class Sessions(MediaBase):
    """One connection."""

    session: Session | None = None
    _last = 0.0  # when the last message came

    # -- in --------------------------------------------------------------------------------------

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        self._last = now
        try:
            said = parse(message)
            events = self._understand(said)
        except SocketError as e:
            self._error("INVALID_MESSAGE", str(e))
            return ()
        self._plan()
        return events

    def _understand(self, said: Mapping[str, Any]) -> Sequence[SocketEvent]:
        kind, session = said.get("type"), self.session
        if kind == "start_session":
            if session is None:
                return self._start(said)
            self._error("SESSION_EXISTS", f"session {session.id} is active on this connection")
        elif kind not in ("flush", "end_session", "cancel"):
            self._error(
                "INVALID_MESSAGE", "type: expected start_session, flush, end_session, cancel"
            )
        elif session is None:
            self._error("INVALID_MESSAGE", f"{kind}: there is no session")
        elif kind == "flush":
            return [] if session.reason else [LegAsked("caller")]
        else:
            return self._finish("completed" if kind == "end_session" else "cancelled")
        return ()

    def _start(self, said: Mapping[str, Any]) -> Sequence[SocketEvent]:
        """Raises `SocketError`."""
        session = self.session = started(said, self.opening.id)
        extra = {"session_id": session.id, "language": session.language}
        return [self.begin("caller", session.id, CallInfo(id="", extra=extra))]

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        self._last = now
        session = self.session
        if session is None:
            self._error("INVALID_MESSAGE", "audio comes after start_session")
            return ()
        (samples,) = session.pcm.feed(message)
        if session.reason or not len(samples):
            return ()
        start = session.clock
        session.clock += len(samples)
        session.timing.came(session.clock / session.rate, now)
        self._plan()
        return (LegAudio("caller", Frame(samples, session.rate, start)),)

    def _finish(self, reason: str) -> Sequence[SocketEvent]:
        """The last words, unless nobody wants them; then `session_ended`."""
        if self.session is not None:
            self.session.reason = self.session.reason or reason
        return self.end("caller", "timeout" if reason == "timeout" else "hangup")

    def _plan(self) -> None:
        if self._started:
            self.next_at = self._last + IDLE

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if self._started and now >= self._last + IDLE:
            self._last = now
            self._plan()
            if not self.legs:
                self.leave(NORMAL, f"nothing came for {IDLE:g} seconds")
            return self._finish("timeout")
        return super().expire(now)

    # -- out -------------------------------------------------------------------------------------

    def taken(self, leg: LegName) -> None:
        self._say("session_started")

    def refused(self, leg: LegName, reason: str) -> None:
        self.legs.remove(leg)
        self._error(*CODES.get(reason, ("INTERNAL_ERROR", f"not taken: {reason}")))
        self.session = None

    def hung_up(self, reason: str) -> None:
        code = "INFERENCE_ERROR" if reason == "engine" else "INTERNAL_ERROR"
        self._error(code, f"ended by the {reason}")
        self._ended("error")

    def heard(self, leg: LegName, heard: Heard) -> None:
        session = self.session
        if session is None or session.reason == "cancelled":
            return
        words = (*heard.words, *heard.tentative)
        session.timing.stepped(heard.at, self.rules.clock(), words=bool(words))
        if words and not session.speaking:
            session.speaking = True
            self._vad("speech_start", words[0].start)
        session.last_end = words[-1].end if words else session.last_end
        paused = heard.pause > 0 and heard.pause >= 1 - session.threshold
        if session.speaking and paused and not heard.tentative:
            session.speaking = False
            self._vad("speech_end", session.last_end)

    def told(self, leg: LegName, event: CallEvent) -> None:
        session = self.session
        if session is None:
            return
        match event.body:
            case Partial(text=text, words=words) if session.partials:
                self._transcript("partial_transcript", session, text, words)
            case Final(text=text, words=words):
                self._transcript("final_transcript", session, text, words)
            case Ended():
                self._ended(session.reason or "error")

    def _transcript(self, kind: str, session: Session, text: str, words: Sequence[Word]) -> None:
        if session.reason == "cancelled":
            return
        final = kind == "final_transcript"
        timing = session.timing.told(words[-1].end, self.rules.clock(), self.rules.step())
        more: dict[str, Any] = {}
        if final:
            length = words[-1].end - words[0].start
            shown = [_shown(word) for word in words] if session.words else []
            more = {"words": shown, "audio_duration_ms": round(1000 * length, 2)}
        self._say(
            kind,
            segment_id=session.segment,
            text=text,
            confidence=confidence_of(words),
            is_final=final,
            **more,
            timing=timing,
        )
        session.segments += final

    def _vad(self, state: str, at: float) -> None:
        if self.session is not None and self.session.vad:
            self._say("vad_event", state=state, t_ms=round(1000 * at, 2))

    def _ended(self, reason: str) -> None:
        session = self.session
        if session is not None:
            total = round(1000 * session.clock / session.rate, 2)
            self._say(
                "session_ended",
                reason=reason,
                total_audio_ms=total,
                total_segments=session.segments,
            )
        self.session = None

    def _error(self, code: str, sentence: str) -> None:
        self._say("error", code=code, message=sentence)

    def _say(self, kind: str, **more: Any) -> None:
        id = self.session.id if self.session is not None else ""
        self.say({"type": kind, "session_id": id, **more})


def _shown(word: Word) -> dict[str, Any]:
    return {
        "word": word.text,
        "start": seconds(word.start),
        "end": seconds(word.end),
        "probability": round(word.confidence, 3),
    }
