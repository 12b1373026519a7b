"""E-mail addresses, written or spoken: john.miller@example.com, "john dot miller at example …".

Words become letters of a small alphabet, in which addresses are a regular expression: ``w`` a
word, ``l`` a letter, ``d`` digits, ``.`` a dot, ``-`` what else joins, ``@`` an at; ``:`` and ``~``
are dots and dashes inside a word ("U.S.", "vis-à-vis"), with which no address begins. Where an
address's first word begins, speech does not say ("mail john miller at"): only what is joined to
it, or spelt, belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge.redact.spoken import folded, number_word

_CLASSES = {
    "@": "@", "at": "@", "arobase": "@", "arrobase": "@", "arobas": "@",
    ".": ".", "dot": ".", "point": ".", "period": ".",
    "_": "-", "-": "-", "+": "-", "dash": "-", "hyphen": "-", "underscore": "-", "tiret": "-",
    "plus": "-", "minus": "-",
}  # fmt: skip
_ATOM = re.compile(r"[^\W_]+|[@._+-]|.", re.S)
_SPELT = "[ld]{1,32}"
_DOT = "[.:]"
_JOIN = "[.:~-]{1,2}"
_UNIT = f"(?:{_SPELT}w?[ld]{{0,8}}|w[ld]{{0,8}})"
_LOCAL = f"{_UNIT}(?:{_JOIN}{_UNIT}){{0,8}}"
_LABEL = f"(?:{_SPELT}w?[ld]{{0,8}}|w{{1,3}}[ld]{{0,8}})"
_LABELS = f"{_LABEL}(?:{_JOIN}{_LABEL}){{0,6}}"
_TOP = "(?:l{2,6}|w)"
_ADDRESS = re.compile(f"{_LOCAL}@{{1,2}}{_LABELS}?{_DOT}{_TOP}(?:{_DOT}{_TOP}){{0,3}}(?:{_JOIN}$)?")
# Not after "at" and three words: that is how people talk.
_BEGUN = re.compile(f"{_LOCAL}(?:[.-]{{1,2}}|@{{1,2}}(?:(?!w{{3}}){_LABELS}(?:{_JOIN})?)?)$")
_LETTERS = "[ld]{0,16}[lw][ld]{0,8}"
_JOINED = re.compile(f"{_LETTERS}(?:[.-]{{1,2}}{_LETTERS})+$|[ld]*l[ld]*l[ld]*l[ld]*$")
_WORD = re.compile(f"{_LOCAL}$")


class Atoms:
    """Words in the small alphabet, and which word each letter of it came from."""

    def __init__(self, words: Sequence[str]) -> None:
        classes: list[str] = []
        self._words: list[int] = []
        for i, word in enumerate(words):
            text = folded(word).strip(",;:!?\"'()<>[]").rstrip(".")
            text = re.sub("['\u2019]", "", text)  # d'accord is a word, not a letter and a word
            atoms = _ATOM.findall(text or word)
            for atom in atoms:
                classes.append(_class(atom, classes[-1:], alone=len(atoms) == 1))
                self._words.append(i)
        self.text = "".join(classes)
        found = [match.span() for match in _ADDRESS.finditer(self.text)]
        self.found = [(self._words[i], self._words[j - 1]) for i, j in found]
        """Addresses, as first and last word."""
        self._after = found[-1][1] if found else 0

    def open(self) -> int | None:
        """The first word of what is an address begun, if there is one at the end."""
        for pattern in (_BEGUN, _JOINED):
            match = pattern.search(self.text, self._after)
            if match is not None and set(match[0]) & set("wl"):  # "3." is no address
                return self._words[match.start()]
        return None

    def weak(self) -> int | None:
        """The first word of what could be one, because any word could."""
        if self._after == len(self.text) and self.found:  # ".uk" may follow
            return self.found[-1][0]
        match = _WORD.search(self.text, self._after)
        return None if match is None else self._words[match.start()]


def _class(atom: str, before: list[str], *, alone: bool) -> str:
    """`before`: the class before it, if any. `alone`: it is a word of its own."""
    if atom == "bas" and before == ["-"]:  # tiret bas: an underscore
        return "-"
    if atom in _CLASSES:
        which = _CLASSES[atom]
        return which if alone else {".": ":", "-": "~"}.get(which, which)
    if not atom[0].isalnum():
        return " "
    if atom.isdigit() or number_word(atom):
        return "d"
    return "l" if len(atom) == 1 else "w"
