"""How many words were recognised right. Pure."""

from __future__ import annotations

import re


def normalised(text: str) -> str:
    """Lower case, words and apostrophes only."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """(substituted + deleted + inserted words, words of the reference), as in word error rate."""
    want, got = normalised(reference).split(), normalised(heard).split()
    row = list(range(len(got) + 1))
    for i, word in enumerate(want, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other)),
            )
    return row[-1], len(want)
