"""The plain protocol, at / and /ws: 16-bit samples in, JSON out. Pure.

In, binary: little-endian int16, mono, 24 kHz or ``?rate=``, cut anywhere. In, text:
``{"type":"flush"}`` for what was said so far, ``{"type":"end"}`` for the last words and a goodbye.
Out: ``word`` as soon as one is certain, ``partial``, ``final``, ``turn_ended``, ``error``,
``ended``. Times are seconds of audio, confidences 0…1.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.ingress.media_socket import (
    BUSY,
    NORMAL,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
    parse,
)
from bridge.ingress.pcm import Client, Pcm, confidence_of, rate_of, seconds
from bridge.types import CallEvent, EndOfTurn, Final, Heard, LegName, Partial


class Plain(Client):
    """One client. Raises `SocketError` for a rate that nobody has."""

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self.rate = rate_of(opening.query.get("rate"), 24000)
        self._pcm = Pcm()

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        (samples,) = self._pcm.feed(message)
        return self.audio(now, samples)

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        """A message that we do not understand costs itself, not the connection."""
        try:
            kind = parse(message).get("type")
        except SocketError as e:
            kind = None
            self._error(str(e))
        else:
            if kind not in ("flush", "end"):
                self._error('type: expected "flush" or "end"; audio comes in binary messages')
        events = self.open(now)
        match kind:
            case "flush":
                return [*events, *self.ask()]
            case "end":
                return [*events, *self.finish("hangup", (NORMAL, ""), now)]
        return events

    def _error(self, sentence: str) -> None:
        self.say({"type": "error", "message": sentence})

    def refused(self, leg: LegName, reason: str) -> None:
        self._error(f"not taken: {reason}")
        self.leave(BUSY, f"not taken: {reason}")

    def hung_up(self, reason: str) -> None:
        self._error(f"ended by the {reason}")

    # -- out -------------------------------------------------------------------------------------

    def heard(self, leg: LegName, heard: Heard) -> None:
        super().heard(leg, heard)
        for word in heard.words:
            self.say(
                {
                    "type": "word",
                    "text": word.text,
                    "start": seconds(word.start),
                    "end": seconds(word.end),
                    "confidence": round(word.confidence, 3),
                }
            )

    def told(self, leg: LegName, event: CallEvent) -> None:
        match event.body:
            case Partial(turn, text, words) | Final(turn, text, words) as body:
                self.say(
                    {
                        "type": "partial" if isinstance(body, Partial) else "final",
                        "turn": turn,
                        "text": text,
                        "start": seconds(words[0].start),
                        "end": seconds(words[-1].end),
                        "confidence": confidence_of(words),
                    }
                )
            case EndOfTurn(turn, text, start, end, reason):
                self.say(
                    {
                        "type": "turn_ended",
                        "turn": turn,
                        "text": text,
                        "start": seconds(start),
                        "end": seconds(end),
                        "reason": reason,
                    }
                )
        super().told(leg, event)

    def ended(self, event: CallEvent) -> None:
        self.say({"type": "ended", "seconds": seconds(self.clock / self.rate)})
