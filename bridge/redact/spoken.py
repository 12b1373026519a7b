"""Words → digits, as people read numbers out: "4111", "four one double one", "quarante et un".

How a row of number words is to be understood, nobody can know: "quatre vingt" is 80 or 4 20, "forty
one" 41 or 40 1. So there are two readings, with numbers put together and with each by itself, and
who looks for a card looks in both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ENGLISH = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen".split()
    )
}
_ENGLISH |= {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_ENGLISH |= {"nought": 0, "naught": 0, "niner": 9}
_FRENCH = {
    word: value
    for value, word in enumerate(
        "zero un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze "
        "seize".split()
    )
}
_FRENCH |= {"une": 1, "vingt": 20, "vingts": 20, "trente": 30, "quarante": 40, "cinquante": 50}
_FRENCH |= {"soixante": 60, "septante": 70, "huitante": 80, "octante": 80, "nonante": 90}

_FILLERS = frozenset(
    "uh um uhm er erm hm hmm mm euh heu ben bah dash hyphen tiret minus moins space espace point "
    "dot ok okay".split()
)
_AND = frozenset("and et then puis".split())  # may stand in a number, or between two
_OH = frozenset(("o", "oh"))
_REPEATS = {"double": 2, "triple": 3, "treble": 3}
MAX_FILLERS = 3  # in a row, within one number

_DASH = "-\u2010\u2012\u2013\u2014"
_WRITTEN = re.compile(rf"[+(]*[0-9](?:[{_DASH}.,()]*[0-9])*")
_NO_NUMBER = re.compile(  # a date; an amount of money, or a decimal
    rf"[0-9]{{4}}[{_DASH}][0-9]{{2}}[{_DASH}][0-9]{{2}}"
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+[.,][0-9]{1,2}"
)
# So many digits in one word are no date and no amount, whatever stands between and beside them.
_LONG = re.compile(r"[0-9](?:[^0-9a-z]*[0-9]){11,}")
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_EDGES = ".,;:!?\"'`\u2019\u201c\u201d\u00ab\u00bb#)"

Kind: TypeAlias = Literal["digits", "number", "repeat", "oh", "plus", "and", "filler", "break"]


@dataclass(frozen=True, slots=True)
class Token:
    """A word, or a part of one: ``digits`` as they were written, or a ``number`` under 100."""

    word: int
    kind: Kind
    digits: str = ""
    value: int = -1
    french: bool = False
    sizes: tuple[int, ...] = ()  # of the pieces in which digits were written, 212-555-0123: 3 3 4


@dataclass(frozen=True, slots=True)
class Group:
    """Digits that belong together, and the words `first` to `last` that say them."""

    first: int
    last: int
    digits: str
    plus: bool = False
    joined: bool = True  # to the group before, with nothing such as "and" in between
    sizes: tuple[int, ...] = ()  # as Token's


@dataclass(slots=True)
class Run:
    """Groups that follow each other. `open`: it goes on as far as the words do."""

    groups: list[Group] = field(default_factory=list)
    open: bool = False


def folded(word: str) -> str:
    """Lower case, without accents, full-width digits as digits."""
    if word.isascii():  # nearly all, and much faster
        return word.lower()
    plain = unicodedata.normalize("NFKD", word)
    return "".join(
        str(unicodedata.digit(c)) if c.isdecimal() else c for c in plain if not _mark(c)
    ).lower()


def _mark(character: str) -> bool:
    return unicodedata.combining(character) != 0


def tokens(words: Sequence[str]) -> list[Token]:
    """Every word's tokens: one, but for "quatre-vingt-dix" and the like."""
    return [token for i, word in enumerate(words) for token in _tokens(i, word)]


def _digits(i: int, text: str, *, plus: bool) -> list[Token]:
    pieces = re.findall("[0-9]+", text)
    digits = Token(i, "digits", "".join(pieces), sizes=tuple(map(len, pieces)))
    return [Token(i, "plus"), digits] if plus else [digits]


def _tokens(i: int, word: str) -> list[Token]:
    text = folded(word).translate(_UNSEEN).strip(_EDGES)
    if (long := _LONG.search(text)) is not None:
        return _digits(i, long[0], plus="+" in text[: long.start()])
    if _WRITTEN.fullmatch(text):
        if _NO_NUMBER.fullmatch(text):
            return [Token(i, "break")]
        return _digits(i, text, plus="+" in text)
    parts = [part for part in re.split(f"[{_DASH}]", text) if part]
    found = [_spoken(i, part) for part in parts]
    if not found or (len(found) > 1 and any(token.kind == "break" for token in found)):
        # A dash by itself stands between two digits; "four-digit" is no number.
        return [Token(i, "break" if parts else "filler")]
    return found


def _spoken(i: int, text: str) -> Token:
    for kind, table in _TABLE:
        if text in table:
            return Token(i, kind)
    if text in _REPEATS:
        return Token(i, "repeat", value=_REPEATS[text])
    value = _ENGLISH.get(text, _FRENCH.get(text, -1))
    if value >= 0:
        return Token(i, "number", str(value), value, text in _FRENCH)
    return Token(i, "digits", text) if text.isdigit() else Token(i, "break")


_TABLE: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("filler", _FILLERS), ("and", _AND), ("oh", _OH), ("plus", frozenset(("plus",))),
)  # fmt: skip


def number_word(word: str) -> bool:
    """Whether this word by itself says digits."""
    found = _tokens(0, word)
    return bool(found) and all(token.kind in ("digits", "number") for token in found)


def runs(found: Sequence[Token], *, together: bool) -> list[Run]:
    """The runs of digits in these tokens; `together`: "forty one" is 41, not 40 1."""
    reader = _Reader(found, together)
    i = 0
    while i < len(found):
        i = reader.step(i)
    return reader.end()


class _Reader:
    """The state of one reading."""

    def __init__(self, found: Sequence[Token], together: bool) -> None:
        self._found, self._together = found, together
        self._runs: list[Run] = []
        self._run = Run()
        self._fillers = 0
        self._joined = True
        self._plus = False

    def step(self, i: int) -> int:
        """Read token `i`; the index of the next."""
        token = self._found[i]
        match token.kind:
            case "digits" | "number":
                return self._digits(i, i, 1)
            case "repeat" if self._value(i + 1) or i + 1 == len(self._found):
                return self._repeat(i)
            case "oh" if self._run.groups or self._value(i + 1):
                self._add(i, i, "0", (1,))
            case "plus" if self._value(i + 1):
                self._break()
                self._plus = True
            case "filler" | "and" if self._fillers < MAX_FILLERS:
                self._fillers += 1
                self._joined = self._joined and token.kind == "filler"
            case _:
                self._break()
        return i + 1

    def _repeat(self, i: int) -> int:
        if i + 1 == len(self._found):  # what is doubled has yet to come
            self._run.groups.append(Group(self._found[i].word, self._found[i].word, ""))
            return i + 1
        return self._digits(i, i + 1, self._found[i].value)

    def _digits(self, first: int, i: int, times: int) -> int:
        token = self._found[i]
        digits, after = token.digits, i + 1
        if self._together and token.kind == "number" and times == 1:
            digits, after = self._number(i)
        self._add(first, after - 1, digits * times, token.sizes or (len(digits) * times,))
        return after

    def _add(self, first: int, last: int, digits: str, sizes: tuple[int, ...]) -> None:
        words = self._found[first].word, self._found[last].word
        self._run.groups.append(Group(*words, digits, self._plus, self._joined, sizes))
        self._fillers, self._joined, self._plus = 0, True, False

    def _number(self, i: int) -> tuple[str, int]:
        """The number that begins at token `i`, and the token after it."""
        value, french = self._found[i].value, self._found[i].french
        i += 1
        if french and value == 4 and self._at(i) == 20:
            value, i = 80, i + 1
        if french and value == 10 and self._at(i) in (7, 8, 9):  # dix-sept
            return str(10 + self._at(i)), i + 1
        if value < 20:
            return str(value), i
        j = i + (french and i < len(self._found) and self._found[i].kind == "and")
        more = self._at(j)
        if 1 <= more <= 9 and not (more == 4 and self._at(j + 1) == 20):
            return str(value + more), j + 1
        if french and value in (60, 80) and 10 <= more <= 16:  # soixante-dix …
            unit = self._at(j + 1) if more == 10 else -1
            if unit in (7, 8, 9):
                return str(value + 10 + unit), j + 2
            return str(value + more), j + 1
        return str(value), i

    def _at(self, i: int) -> int:
        """The number that token `i` is, −1 if it is none."""
        return self._found[i].value if self._value(i) == "number" else -1

    def _value(self, i: int) -> str:
        kind = self._found[i].kind if i < len(self._found) else ""
        return kind if kind in ("digits", "number", "oh") else ""

    def _break(self) -> None:
        if self._run.groups:
            self._runs.append(self._run)
        self._run, self._fillers, self._joined, self._plus = Run(), 0, True, False

    def end(self) -> list[Run]:
        self._run.open = True
        self._break()
        return self._runs
