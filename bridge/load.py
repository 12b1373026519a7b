"""How much is asked of this bridge, and how quickly it answers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

WEIGHT = 0.05  # of the newest: an average over the last twenty words or so


@dataclass(slots=True)
class Load:
    """`calls`, taken or not. `latency`: s from a word's end to its ``partial`` and ``final``."""

    calls: int = 0
    refused: int = 0
    latency: dict[str, float] = field(default_factory=dict)

    def word(self, stage: str, seconds: float) -> None:
        """A word was told so many seconds after its end."""
        before = self.latency.get(stage, seconds)
        self.latency[stage] = before + WEIGHT * (seconds - before)

    def milliseconds(self, stage: str) -> float:
        """0 before the first word."""
        return round(1000 * self.latency.get(stage, 0.0), 1)
