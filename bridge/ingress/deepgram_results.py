"""What Deepgram's clients are told: results, and what a channel has been told so far. Pure."""

from __future__ import annotations

import string
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bridge.ingress.pcm import confidence_of, seconds
from bridge.types import Word

MODEL = {"name": "callscribe", "version": "1", "arch": "callscribe"}
MODEL_ID = "00000000-0000-4000-8000-000000000000"
PUNCTUATION = string.punctuation + "…«»“”¿¡"


@dataclass(slots=True)
class Channel:
    """What was told of one channel. Seconds."""

    since: float = 0.0  # what is said from here on is in no final result
    listened: float = 0.0
    last_end: float = 0.0  # of its last word
    paused: bool = False
    speaking: bool = False  # since the last turn's end
    open: bool = False  # an utterance whose end was not told
    asked: deque[bool] = field(default_factory=deque)  # by Finalize; by us
    held: dict[str, Any] | None = None  # the last final of a Finalize under way


def results(words: Sequence[Word], since: float, end: float, *, punctuate: bool) -> dict[str, Any]:
    """A ``Results`` of what lies between two seconds of a channel, an interim one."""
    shown = [_shown(word) for word in words]
    said = "punctuated_word" if punctuate else "word"
    alternative = {
        "transcript": " ".join(word[said] for word in shown),
        "confidence": confidence_of(words),
        "words": shown,
    }
    return {
        "type": "Results",
        "start": seconds(since),
        "duration": seconds(end - since),
        "is_final": False,
        "speech_final": False,
        "from_finalize": False,
        "channel": {"alternatives": [alternative]},
    }


def iso(at: float) -> str:
    """Unix time as ISO 8601."""
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _shown(word: Word) -> dict[str, Any]:
    bare = word.text.strip(PUNCTUATION).lower()
    return {
        "word": bare or word.text,
        "start": seconds(word.start),
        "end": seconds(word.end),
        "confidence": round(word.confidence, 3),
        "punctuated_word": word.text,
    }
