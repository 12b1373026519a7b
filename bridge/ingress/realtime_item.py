"""An item of an OpenAI Realtime session: what one commit takes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bridge.types import Word


@dataclass(slots=True)
class Item:
    """`since`, `until`: seconds of the session's audio. `wanted`: the client has not cleared it."""

    id: str
    since: float
    until: float = 0.0
    words: list[Word] = field(default_factory=list)
    wanted: bool = True

    def shown(self) -> dict[str, Any]:
        """As `conversation.item.added` has it, before it is transcribed."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }

    def completed(self, *, logprobs: bool) -> dict[str, Any]:
        """What `….completed` says of it. A token of ours is a word, and its text is all of it."""
        length = round(max(0.0, self.until - self.since), 3)
        said: dict[str, Any] = {
            "transcript": " ".join(word.text for word in self.words),
            "usage": {"type": "duration", "seconds": length},
        }
        if logprobs:
            said["logprobs"] = [_logprob(word) for word in self.words]
        return said


def _logprob(word: Word) -> dict[str, Any]:
    value = math.log(max(word.confidence, 1e-9))
    return {"token": word.text, "bytes": list(word.text.encode()), "logprob": round(value, 4)}
