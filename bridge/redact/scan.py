"""A row of words in, what they are out, and from where on that cannot be known yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.redact.emails import Atoms
from bridge.redact.kinds import DIGITS, KINDS, Kind
from bridge.redact.numbers import CARD, find
from bridge.redact.spoken import Run, folded, runs, tokens

FEW = 4  # digits that do not make a number yet; PCI DSS 3.4.1 lets a card's first six be shown
NEAR = 12  # words from "social security" to its digits
_SSN_WORDS = frozenset(("social", "security", "ssn"))
BIGGEST = CARD[1]


@dataclass(frozen=True, slots=True)
class Scan:
    """`labels`: a kind or None per word.

    Words from `open` on may belong to a number or an address that goes on beyond the last word;
    those from `weak` on too, but that would be odd after the end of a turn. Words before `closed`
    have their labels whatever is said from now on, and nobody needs them to label the others.
    """

    labels: tuple[Kind | None, ...]
    open: int
    weak: int
    closed: int


def scan(words: Sequence[str], kinds: frozenset[Kind], regions: Sequence[str] = ("US",)) -> Scan:
    """What these words of one speaker hold. `regions`: whose telephone numbers are known."""
    found: list[set[Kind]] = [set() for _ in words]
    open_, weak = len(words), len(words)
    spans: list[tuple[int, int]] = []  # words that belong together, first and last
    if kinds & DIGITS:
        said = tokens(words)
        for together in (True, False):
            for run in runs(said, together=together):
                _label(run, found, words, kinds, regions)
                spans.append((run.groups[0].first, run.groups[-1].last))
                if run.open:
                    strong, first = _undecided(run)
                    weak = min(weak, first)
                    open_ = min(open_, first) if strong else open_
    if "email" in kinds:
        atoms = Atoms(words)
        spans += atoms.found
        for first, last in atoms.found:
            for word in range(first, last + 1):
                found[word].add("email")
        begun, begins = atoms.open(), atoms.weak()
        open_ = open_ if begun is None else min(open_, begun)
        weak = weak if begins is None else min(weak, begins)
    labels = tuple(next((kind for kind in KINDS if kind in which), None) for which in found)
    weak = min(weak, open_)
    return Scan(labels, open_, weak, _closed(spans, weak))


def _closed(spans: list[tuple[int, int]], weak: int) -> int:
    closed = weak
    for first, last in sorted(spans, key=lambda span: -span[1]):
        if last >= closed:
            closed = min(closed, first)
    return closed


def _label(
    run: Run,
    found: list[set[Kind]],
    words: Sequence[str],
    kinds: frozenset[Kind],
    regions: Sequence[str],
) -> None:
    """Note what a run holds at the words that say it, and at fillers between them."""
    start = run.groups[0].first
    near = {folded(word).strip(".,:") for word in words[max(0, start - NEAR) : start]}
    starts = [group.first for group in run.groups for _ in group.digits]
    ends = [group.last for group in run.groups for _ in group.digits]
    for i, j, kind in find(run, kinds, regions, ssn=bool(near & _SSN_WORDS)):
        for word in range(starts[i], ends[j - 1] + 1):
            found[word].add(kind)


def _undecided(run: Run) -> tuple[bool, int]:
    """Whether an open run is more than a few digits, and the first word that may be a card's."""
    words = [group.first for group in run.groups for _ in group.digits]
    last = run.groups[-1]
    if not last.digits:  # "double", and not yet what
        words.append(last.first)
    return len(words) > FEW, words[max(0, len(words) - BIGGEST + 1)]
