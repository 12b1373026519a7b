"""Words and pauses → partial, final, end of turn. Pure; one `Turns` per leg.

A *final* closes words as soon as the speaker pauses (or has spoken for `max_final` seconds); an
*end of turn* follows when the pause has lasted `min_pause` seconds since the last word. A model may
know of a pause before it has said all the words in front of it: they are waited for, and wanted
at once (`wants_flush`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridge.types import EndOfTurn, Final, Heard, Partial, TranscriptEvent, Word

MAX_TURN = 120.0  # s; a turn without any pause is cut here, so that its text stays bounded
ROUNDING = 1e-6  # s; times come from several clocks


@dataclass(frozen=True, slots=True)
class TurnRules:
    """Settings of [turns]; see bridge/config.py."""

    threshold: float = 0.6
    hysteresis: float = 0.2
    min_pause: float = 0.6
    max_final: float = 15.0
    partials: bool = True


class Turns:
    """The state of one speaker's turns. Turns count from 0.

    `language` tells the language of a final's text. `wants_flush` says after each `hear` whether
    something in front of the present pause has not been said yet.
    """

    __slots__ = (
        "_finals", "_language", "_open", "_partial", "_paused", "_quiet_from", "_rules", "turn",
        "wants_flush",
    )  # fmt: skip

    def __init__(self, rules: TurnRules, language: Callable[[str], str] = lambda text: "") -> None:
        self.turn = 0
        self.wants_flush = False
        self._quiet_from = 0.0  # how far the model had listened when the pause began
        self._language = language
        self._rules = rules
        self._open: list[Word] = []  # certain, in no final yet
        self._finals: list[Final] = []  # of this turn
        self._partial = ""
        self._paused = False

    def hear(self, heard: Heard) -> list[TranscriptEvent]:
        """One step's words and pause in, what call control should know out."""
        events: list[TranscriptEvent] = []
        self._open.extend(heard.words)
        rules = self._rules
        self._pause(heard)
        quiet = self._paused and heard.settled >= self._quiet_from - ROUNDING
        if self._open and (quiet or self._span() >= rules.max_final):
            events.append(self._final())
        if self._finals and not self._open and self._length() >= MAX_TURN:
            events.append(self._end("length"))  # what is only guessed begins the next
        if rules.partials:
            events.extend(self._news(heard.tentative))
        if self._finals and quiet and not self._open and not heard.tentative:
            if heard.at - self._finals[-1].words[-1].end >= rules.min_pause:
                events.append(self._end("pause"))
        return events

    def _pause(self, heard: Heard) -> None:
        bar = self._rules.threshold - (self._rules.hysteresis if self._paused else 0.0)
        paused = heard.pause >= bar
        if paused and (not self._paused or self._goes_on(heard)):
            self._quiet_from = heard.at
        self.wants_flush = paused and heard.settled < self._quiet_from - ROUNDING
        self._paused = paused

    def _goes_on(self, heard: Heard) -> bool:
        """A word that ends after the pause began: it was none, however sure the model still is."""
        return bool(heard.words) and heard.words[-1].end > self._quiet_from + ROUNDING

    def finish(self, reason: str = "hangup") -> list[TranscriptEvent]:
        """The leg is over or paused, or its peer wants to know: whatever is still open."""
        events: list[TranscriptEvent] = []
        if self._open:
            events.append(self._final())
        if self._finals:
            events.append(self._end(reason))
        return events

    def _span(self) -> float:
        return self._open[-1].end - self._open[0].start

    def _length(self) -> float:
        return self._finals[-1].words[-1].end - self._finals[0].words[0].start

    def _news(self, tentative: tuple[Word, ...]) -> list[TranscriptEvent]:
        words = (*self._open, *tentative)
        text = _text(words)
        if not text or text == self._partial:
            return []
        self._partial = text
        return [Partial(self.turn, text, words)]

    def _final(self) -> Final:
        text = _text(self._open)
        final = Final(self.turn, text, tuple(self._open), self._language(text))
        self._open.clear()
        self._finals.append(final)
        self._partial = ""
        return final

    def _end(self, reason: str) -> EndOfTurn:
        finals, self._finals = self._finals, []
        turn, self.turn = self.turn, self.turn + 1
        return EndOfTurn(
            turn,
            " ".join(final.text for final in finals),
            finals[0].words[0].start,
            finals[-1].words[-1].end,
            reason,
        )


def _text(words: tuple[Word, ...] | list[Word]) -> str:
    return " ".join(word.text for word in words)
