"""How long a session's words took, as far as it was measured. Milliseconds out. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

KEPT = 4096  # messages whose arrival is remembered: 80 s of 20 ms


class Timing:
    """When audio came, when it was heard. Times of day are those of one clock, in seconds."""

    __slots__ = ("_came", "_listened", "_stepped", "_words_at")

    def __init__(self) -> None:
        self._came: deque[tuple[float, float]] = deque(maxlen=KEPT)  # (end of the audio, when)
        self._listened = 0.0  # s of audio
        self._stepped = 0.0  # when that was known
        self._words_at = 0.0  # when the newest words, or guesses at them, were

    def came(self, end: float, now: float) -> None:
        """Audio up to second `end` has come."""
        self._came.append((end, now))

    def stepped(self, at: float, now: float, *, words: bool) -> None:
        """The recogniser has listened up to second `at`, and heard words, or not."""
        self._listened, self._stepped = at, now
        if words:
            self._words_at = now

    def told(self, end: float, now: float, step: float) -> dict[str, float]:
        """Of a message, about words up to second `end`, that goes out now.

        ``preprocess_ms``: 0, conversion and resampling are not measured apart and are part of the
        next. ``queue_wait_ms``: from the arrival of the newest audio that has been heard to the
        step that heard it. ``inference_ms``: the engine's last step, `step`, of all calls together;
        0 for an engine that does not step in batches. ``postprocess_ms``: from the words' being
        heard to this message; of a final mostly the wait for the speaker's pause.
        ``server_total_ms``: from the arrival of the last word's audio to this message, with the
        model's own delay.
        """
        heard = self._arrival(self._listened, self._stepped)
        return {
            "preprocess_ms": 0.0,
            "queue_wait_ms": _ms(self._stepped - heard - step),
            "inference_ms": _ms(step),
            "postprocess_ms": _ms(now - (self._words_at or now)),
            "server_total_ms": _ms(now - self._arrival(end, now)),
        }

    def _arrival(self, second: float, default: float) -> float:
        """When the audio of this second came."""
        i = bisect_left(self._came, (second,))
        return self._came[i][1] if i < len(self._came) else default


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 2)
