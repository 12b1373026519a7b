"""Text as rules read it: tokens, phrases, patterns. Pure; the only owner of re2.

Patterns are RE2's: it searches in time that is linear in the text, whatever the pattern, and has
neither look-around nor backreferences, so that no pattern can hold up the calls (with Python's re,
``(a+)+$`` takes minutes for thirty letters). It is loaded when a rule has a pattern.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import islice
from typing import Any

MAX_PHRASE = 16  # tokens
MAX_PATTERN = 500  # characters
MAX_MATCHES = 32  # of one pattern in one turn; later ones are not looked for
PATTERN_MEMORY = 1 << 20  # bytes; a pattern that needs more is refused

Phrase = tuple[str, ...]


@lru_cache(maxsize=4096)
def tokens(text: str) -> Phrase:
    """Letters and digits of any script between what is neither, in one case: ``don't`` is two."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in plain)
    return tuple(kept.split())


def phrase(text: str) -> Phrase:
    """One of a rule's words. Raises ValueError for one without letters, or too long."""
    found = tokens(text)
    if not found:
        raise ValueError(f"{text[:40]!r} has neither letters nor digits, so it is never said")
    if len(found) > MAX_PHRASE:
        raise ValueError(f"{text[:40]!r}… has more than {MAX_PHRASE} words")
    return found


class Pattern:
    """A regular expression, in any case. Raises ValueError for one that cannot be had."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN:
            raise ValueError(f"regex: longer than {MAX_PATTERN} characters")
        re2 = _re2()
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        options.max_mem = PATTERN_MEMORY
        try:
            self._compiled = re2.compile(text, options)
        except re2.error as e:
            reason = e.args[0].decode("utf-8", "replace") if e.args else "not a pattern"
            raise ValueError(
                f"regex: {reason} (RE2's syntax: no look-around, no backreferences)"
            ) from None
        if self._compiled.search(""):
            raise ValueError("regex: it matches where nothing is said; make a part of it needed")
        self.text = text

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """Where it matches, leftmost first, as characters; and what: its first group if it has one.

        No empty matches.
        """
        found = islice(self._compiled.finditer(text), MAX_MATCHES)
        group = 1 if self._compiled.groups else 0
        return [(*m.span(), m.group(group) or m.group()) for m in found if m.end() > m.start()]


def _re2() -> Any:
    try:
        import re2
    except ImportError:
        raise ValueError(
            "regex: needs google-re2: pip install 'callscribe[rules]'; words need nothing"
        ) from None
    return re2
