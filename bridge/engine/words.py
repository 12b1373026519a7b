"""A step's tokens → words with times and confidences. Pure; arrays over all slots.

**Words.** A model gives one token per step and row: a piece of a word, or *padding* (nothing is
said), or a *boundary* (the next word begins). A word is complete at the first token after its
pieces that is no piece, or at a piece that begins with ``▁`` and with it the next word. It is told
in that very step and never taken back, so a piece without ``▁`` that comes after a padding after
all is a word of its own: waiting for it would hold back the last word before every pause. (Kyutai's
Rust core decides the same way.) So is punctuation that comes alone, as in French before ``?``; and
a lone ``▁`` opens a word that is not told unless text follows.

**Times** are those of the script in Kyutai's delayed-streams-modeling: when frame
f is the newest that the model heard, its token belongs to second f × block − prefix − delay of the
row's audio. A word goes from its first piece to the token after its last. (The script lets the last
word before a pause go on until the next one begins, since it looks for boundaries alone; we cannot
wait for that.) The Rust core's starts are 0.10 s and its ends 0.18 s later: it hears each frame a
step late, counts its delay in whole frames, and begins a word with the boundary before it. We run
the Python loop, for which the script's prefix and delay are written.

**Confidence** is the geometric mean of the pieces' probabilities. Their product would doubt every
long word, and their arithmetic mean would hide the one piece that was guessed.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bridge.engine.pauses import Counts, Mask, Pauses, Speech, Watchdog
from bridge.engine.rows import ModelFacts, RowArrays
from bridge.types import Heard, Word

PATIENCE = 6.0  # s of speech without text, then a row is stuck
MAX_CUT = 1.0  # s; a word that the row's end cut off is no longer, as in Kyutai's script
MAX_PIECES = 128  # of a word; a model that repeats a piece for ever would spell one for ever
ATTENTIVE = 12.0  # s after speech or text in which every step is news; a turn may end after 10
SELDOM = 12  # steps; later it is one step of so many

_Said: TypeAlias = tuple[tuple[Word, ...], tuple[Word, ...]]  # words, guesses

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_TEXT = frozenset(("<unk>", "<s>", "</s>", "<pad>"))
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of such a byte
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class ModelBroken(RuntimeError):
    """The model gives no numbers any more and must be made anew."""


@dataclass(slots=True)
class _Open:
    """A word under way: UTF-8 so far, the sum of its pieces' log probabilities, their number."""

    start: float
    utf8: bytes
    log: float
    pieces: int

    def add(self, utf8: bytes, log: float) -> None:
        self.utf8 += utf8
        self.log += log
        self.pieces += 1

    def word(self, end: float, *, complete: bool) -> tuple[Word, ...]:
        """One word, or none while there is no text."""
        text = _text(self.utf8, complete)
        if not text:
            return ()
        confidence = math.exp(self.log / self.pieces)
        return (Word(text, self.start, end, confidence),)


class WordRows:
    """The words of all rows. `pieces`: the tokenizer's, by id; an empty one gives no text.

    `patience`: seconds of speech without text after which a row is `stuck`, 0 for never.
    """

    def __init__(
        self, facts: ModelFacts, pieces: Sequence[str], *, patience: float = PATIENCE
    ) -> None:
        self._facts = facts
        self._block = facts.block / facts.rate
        self._utf8 = [_utf8_of(piece) for piece in pieces]
        self._begins = [piece.startswith(_SPACE) for piece in pieces]
        # One entry more, for ids that the tokenizer does not know.
        self._is_text = np.array([*map(_has_text, pieces), False], np.bool_)
        self._is_text[[facts.padding, facts.boundary]] = False
        self._steps: Counts = np.zeros(facts.slots, np.int64)  # of the row, since fresh
        self._calm: Counts = np.zeros(facts.slots, np.int64)  # steps since speech or text
        self._attentive = round(ATTENTIVE / self._block)
        self._is_open: Mask = np.zeros(facts.slots, np.bool_)
        self._open: dict[int, _Open] = {}  # by row, as `_is_open` says
        self._speech = Speech(facts.slots, self._block)
        self._pauses = Pauses(facts)
        self._watchdog = Watchdog(facts, patience)

    def hear(self, arrays: RowArrays, ending: Mask) -> dict[int, Heard]:
        """What the step's outputs tell, by row; rows without news are left out.

        `ending`: bool[slots], rows whose last step this is: a word under way is said as it is.
        News are words, guesses, a stuck row, and in the seconds after speech or text also how far
        the row has listened and the pause; in longer silence these come once a second. Times are
        seconds since the row's fresh step. Raises `ModelBroken`.
        """
        active, fresh = arrays.active, arrays.active & arrays.fresh
        _check(arrays)
        if fresh.any():
            self._start(fresh)
        text = active & self._is_text.take(self._known(arrays.tokens))
        speech = self._speech.hear(arrays.energy, active, fresh)
        pause = self._pauses.hear(arrays, active, fresh, text, speech)
        stuck = self._watchdog.hear(active, fresh, text, speech, ending)
        said = self._say(np.flatnonzero(active & (text | self._is_open)), arrays, text, ending)
        self._steps += active
        self._calm += active
        self._calm[text | speech] = 0
        often = (self._calm < self._attentive) | (self._steps % SELDOM == 0)
        news = active & (often | stuck | ending)
        if said:
            news[list(said)] = True
        return self._told(np.flatnonzero(news), said, pause, stuck)

    def _start(self, fresh: Mask) -> None:
        """Rows that begin anew; what was open in them belonged to somebody else."""
        self._steps[fresh] = 0
        self._calm[fresh] = self._attentive
        for row in np.flatnonzero(fresh & self._is_open).tolist():
            del self._open[row]
        self._is_open[fresh] = False

    def _known(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The ids, and for those that are none the last of `_is_text`."""
        unknown = len(self._utf8)
        return np.where((tokens < 0) | (tokens > unknown), np.int32(unknown), tokens)

    def _say(
        self, rows: npt.NDArray[np.intp], arrays: RowArrays, text: Mask, ending: Mask
    ) -> dict[int, _Said]:
        """Words and guesses of the rows that have an open word or a piece."""
        said = {}
        for row, token, p, is_text, ends in zip(
            rows.tolist(), arrays.tokens[rows].tolist(), arrays.probability[rows].tolist(),
            text[rows].tolist(), ending[rows].tolist(), strict=True,
        ):  # fmt: skip
            words: tuple[Word, ...] = ()
            if not is_text or self._begins[token] or self._is_long(row):
                words = self._close(row, self._time(row))
            if is_text:
                self._piece(row, token, p)
            if ends:
                words += self._cut(row)
            said[row] = words, self._guess(row)
        return said

    def _time(self, row: int, ahead: int = 0) -> float:
        """To which second of the row's audio this step's token belongs, or one `ahead` of it."""
        facts = self._facts
        frame = facts.prefix // facts.block + int(self._steps[row]) + ahead
        at = (frame * facts.block - facts.prefix) / facts.rate - facts.delay
        return max(0.0, at)

    def _piece(self, row: int, token: int, probability: float) -> None:
        log = math.log(min(1.0, max(probability, 1e-30)))
        word = self._open.get(row)
        if word is not None:
            word.add(self._utf8[token], log)
            return
        self._open[row] = _Open(self._time(row), self._utf8[token], log, 1)
        self._is_open[row] = True

    def _close(self, row: int, end: float) -> tuple[Word, ...]:
        """The row's open word, complete."""
        word = self._open.pop(row, None)
        if word is None:
            return ()
        self._is_open[row] = False
        return word.word(end, complete=True)

    def _cut(self, row: int) -> tuple[Word, ...]:
        """The row's open word, as far as it came."""
        word = self._open.get(row)
        end = 0.0 if word is None else min(self._time(row, 1), word.start + MAX_CUT)
        return self._close(row, end)

    def _is_long(self, row: int) -> bool:
        word = self._open.get(row)
        return word is not None and word.pieces >= MAX_PIECES

    def _guess(self, row: int) -> tuple[Word, ...]:
        word = self._open.get(row)
        return () if word is None else word.word(self._time(row, 1), complete=False)

    def _told(
        self,
        rows: npt.NDArray[np.intp],
        said: dict[int, _Said],
        pause: npt.NDArray[np.float32],
        stuck: Mask,
    ) -> dict[int, Heard]:
        facts = self._facts
        frames = facts.prefix // facts.block + self._steps[rows]
        at = np.maximum(0.0, (frames * facts.block - facts.prefix) / facts.rate)
        settled = at - facts.delay
        columns = (pause[rows].tolist(), at.tolist(), settled.tolist(), stuck[rows].tolist())
        return {
            row: Heard(*said.get(row, _NOTHING), *rest)
            for row, *rest in zip(rows.tolist(), *columns, strict=True)
        }


_NOTHING: _Said = ((), ())


def _check(arrays: RowArrays) -> None:
    finite = np.isfinite(arrays.probability)
    if arrays.pauses.shape[1]:
        finite &= np.isfinite(arrays.pauses).all(axis=1)
    broken = int(np.count_nonzero(arrays.active & ~finite))
    if broken:
        rows = int(np.count_nonzero(arrays.active))
        raise ModelBroken(f"the model's probabilities are not numbers in {broken} of {rows} rows")


def _has_text(piece: str) -> bool:
    return bool(piece) and piece not in _NO_TEXT


def _utf8_of(piece: str) -> bytes:
    """The bytes that a piece adds: its text, or the one byte of a fallback such as <0xC3>."""
    byte = _BYTE.fullmatch(piece)
    if byte:
        return bytes([int(byte[1], 16)])
    return piece.replace(_SPACE, " ").encode("utf-8")


def _text(utf8: bytes, complete: bool) -> str:
    """What is said so far; a character whose last bytes are still to come is not.

    A byte that is no UTF-8 becomes U+FFFD by itself, as SentencePiece does it. What would move a
    terminal's cursor is left out, and white space is one space.
    """
    text, _ = codecs.utf_8_decode(utf8, "surrogateescape", complete)
    if not text.isprintable():
        text = _CONTROL.sub("", " ".join(_NOT_UTF8.sub("\ufffd", text).split()))
    return " ".join(text.split())
