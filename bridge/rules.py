"""Which rules a call's events fire. Pure: events in, firings out; nothing is done here.

Theory of operation. Per leg there is one *turn*: the words of its finals so far. A rule is said so
many times in a turn, and has fired so many times; it fires when it has been said more often. So a
partial that comes again, grows or is revised fires nothing twice, whatever its times and numbers
of words do, and a final fires only what its partials had not. What a phrase needs may lie in two
finals, but not in two turns, and matches of one rule do not overlap.

Words are looked up by their first token, so the cost of an event does not grow with the number of
rules; patterns are searched for one by one. Partials, of which there are many, are read only where
a rule is for them. A turn that grows beyond `MAX_WORDS` or `MAX_TEXT`
begins anew.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TypeAlias

from bridge.rules_text import Phrase, tokens
from bridge.rules_types import Firing, Rule
from bridge.types import CallEvent, CallInfo, Ended, Final, LegName, Partial, Refused, Word

MAX_WORDS = 1000  # of one turn; two minutes of the fastest speaker have 700
MAX_TEXT = 8000  # characters of one turn
MAX_WORD = 200  # characters of one word; what is longer is none
MAX_CALL_RULES = 32  # rules of one call alone
MAX_EARLY = 1000  # calls that have rules and have not begun; the oldest goes first


class Index:
    """Rules by the first token of their phrases; among those, the longer ones first."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.empty = not rules
        self.patterned = tuple(rule for rule in rules if rule.pattern is not None)
        self.longest = max((len(p) for rule in rules for p in rule.phrases), default=0)
        firsts: defaultdict[str, list[tuple[Rule, Phrase]]] = defaultdict(list)
        for rule in rules:
            for phrase in rule.phrases:
                firsts[phrase[0]].append((rule, phrase))
        for found in firsts.values():
            found.sort(key=lambda pair: -len(pair[1]))
        self._firsts = dict(firsts)

    def matches(self, said: Sequence[str], since: int) -> Iterator[tuple[Rule, int, int]]:
        """Rules, and which tokens are their phrase's; those that end beyond token `since`."""
        for start in range(max(0, since - self.longest + 1), len(said)):
            for rule, phrase in self._firsts.get(said[start], ()):
                end = start + len(phrase)
                if end > since and tuple(said[start:end]) == phrase:
                    yield rule, start, end


class _Rules:
    """Rules as finals need them, and as partials do."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.all = tuple(rules)
        self.final = Index(rules)
        self.partial = Index([rule for rule in rules if rule.on == "partial"])


@dataclass(slots=True)
class _Turn:
    """One leg's turn: tokens and whose they are, and what has been found, by rule."""

    number: int = -1
    said: list[str] = field(default_factory=list)
    owners: list[Word] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    size: int = 0  # characters
    busy: dict[str, int] = field(default_factory=dict)  # the token where the next may begin
    found: dict[str, int] = field(default_factory=dict)  # in finals
    fired: dict[str, int] = field(default_factory=dict)

    def full(self) -> bool:
        return len(self.words) > MAX_WORDS or self.size > MAX_TEXT


@dataclass(slots=True)
class _Call:
    """What is remembered of one call; goes with its end."""

    own: _Rules = field(default_factory=_Rules)
    done: set[str] = field(default_factory=set)  # rules with `once` that have fired
    turns: dict[tuple[LegName, bool], _Turn] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Match:
    number: int  # the how manieth of the turn, from 1
    matched: str
    words: tuple[Word, ...]


_Matches: TypeAlias = dict[str, tuple[Rule, list[_Match]]]  # by the rule's name


class Rulebook:
    """All rules, those of single calls too, and what has been said in every call that is up."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = _Rules(rules)
        self._calls: dict[str, _Call] = {}
        self._early: OrderedDict[str, _Call] = OrderedDict()

    @property
    def calls(self) -> int:
        """Calls that are remembered."""
        return len(self._calls) + len(self._early)

    def add(self, call_id: str, rule: Rule, *, up: bool = True) -> list[str]:
        """A rule for one call, `up` or to come. The names of all its own. Raises ValueError."""
        calls = self._calls if up else self._early
        call = calls.get(call_id) or _Call()
        if any(rule.name == other.name for other in (*self._rules.all, *call.own.all)):
            raise ValueError(f"name: there is a rule {rule.name!r} already")
        if len(call.own.all) >= MAX_CALL_RULES:
            raise ValueError(f"this call has {MAX_CALL_RULES} rules of its own; no more are taken")
        call.own = _Rules((*call.own.all, rule))
        calls[call_id] = call
        while len(self._early) > MAX_EARLY:
            self._early.popitem(last=False)
        return [other.name for other in call.own.all]

    def of(self, call_id: str) -> tuple[list[Rule], list[str]]:
        """The call's own rules; and which of all its rules have fired and will not again."""
        call = self._calls.get(call_id) or self._early.get(call_id) or _Call()
        return list(call.own.all), sorted(call.done)

    def remove(self, call_id: str, name: str) -> bool:
        """Take one of the call's own rules away. False if it has none of this name."""
        call = self._calls.get(call_id) or self._early.get(call_id) or _Call()
        left = [rule for rule in call.own.all if rule.name != name]
        if len(left) == len(call.own.all):
            return False
        call.own = _Rules(left)
        call.done.discard(name)  # another one of this name is another rule
        for turn in call.turns.values():
            for counts in (turn.busy, turn.found, turn.fired):
                counts.pop(name, None)
        return True

    @property
    def early(self) -> bool:
        """Are there rules of calls that have not begun?"""
        return bool(self._early)

    def expect(self, calls: Collection[str]) -> None:
        """These are to come: rules for any others that have not begun are for nobody."""
        for call_id in [id for id in self._early if id not in calls]:
            del self._early[call_id]

    def _begin(self, call: CallInfo) -> None:
        """Has a call begun that has rules? Under another id too, where its own was taken."""
        early = self._early.pop(call.id, None)
        if early is None and "call" in call.extra and call.id not in self._calls:
            early = self._early.pop(call.extra["call"], None)
        if early is not None:
            self._calls[call.id] = early

    def hear(self, event: CallEvent) -> list[Firing]:
        """What this event fires: at most one firing of a rule."""
        if self._early:
            self._begin(event.call)
        match event.body:
            case Ended() | Refused():
                self._calls.pop(event.call.id, None)
                self._early.pop(event.call.id, None)
            case Partial() | Final() if event.leg is not None:
                call = self._calls.get(event.call.id)
                if call is None:
                    if not self._rules.all:
                        return []
                    call = self._calls[event.call.id] = _Call()
                firings: list[Firing] = []
                for own, rules in ((False, self._rules), (True, call.own)):
                    index = rules.final if isinstance(event.body, Final) else rules.partial
                    if not index.empty:
                        firings += _hear(index, call, own, event, event.leg, event.body)
                return firings
        return []


def _hear(
    index: Index, call: _Call, own: bool, event: CallEvent, leg: LegName, body: Partial | Final
) -> Iterator[Firing]:
    turn = call.turns.get((leg, own))
    if turn is None or turn.number != body.turn or turn.full():
        turn = call.turns[leg, own] = _Turn(body.turn)
    final = isinstance(body, Final)
    words = [word for word in body.words[:MAX_WORDS] if len(word.text) <= MAX_WORD]
    matches: _Matches = {}
    may = partial(_may, call, leg)
    _find_phrases(index, turn, words, final, may, matches)
    _find_patterns([r for r in index.patterned if may(r)], turn, words, matches)
    if final:
        turn.words += words
        turn.size += sum(len(word.text) + 1 for word in words)
    for name, (rule, of_rule) in matches.items():
        news = [match for match in of_rule if match.number > turn.fired.get(name, 0)]
        if not news:
            continue
        turn.fired[name] = of_rule[-1].number
        if rule.place.holds(event.call):
            if rule.once:
                call.done.add(name)
            yield Firing(rule, event, news[0].matched, news[0].words)


def _may(call: _Call, leg: LegName, rule: Rule) -> bool:
    return rule.leg in ("any", leg) and not (rule.once and rule.name in call.done)


def _find_phrases(
    index: Index,
    turn: _Turn,
    words: Sequence[Word],
    final: bool,
    may: Callable[[Rule], bool],
    matches: _Matches,
) -> None:
    """Phrases that end in `words`, which follow the turn's finals."""
    since = len(turn.said)
    said, owners = turn.said, turn.owners
    if not final:  # a guess, of which nothing may stay; a phrase can begin before it
        first = max(0, since - index.longest)
        said, owners, since = said[first:], owners[first:], since - first
    shift = len(turn.said) - since
    for word in words:
        for token in tokens(word.text):
            said.append(token)
            owners.append(word)
    busy = turn.busy if final else dict(turn.busy)
    counts = turn.found if final else dict(turn.found)
    for rule, start, end in index.matches(said, since):
        name = rule.name
        if start + shift < busy.get(name, 0) or not may(rule):
            continue
        of_match = _distinct(owners[start:end])
        if not _sure(rule, of_match):
            continue
        busy[name] = end + shift
        counts[name] = counts.get(name, 0) + 1
        match = _Match(counts[name], " ".join(said[start:end]), of_match)
        matches.setdefault(name, (rule, []))[1].append(match)


def _find_patterns(
    rules: Sequence[Rule], turn: _Turn, words: Sequence[Word], matches: _Matches
) -> None:
    """Patterns in the whole turn: its finals, and `words` after them."""
    if not rules:
        return
    whole = [*turn.words, *words]
    ends = list(accumulate(len(word.text) + 1 for word in whole))  # and the space after it
    text = " ".join(word.text for word in whole)[: 2 * MAX_TEXT]
    for rule in rules:
        assert rule.pattern is not None
        number = 0
        for start, end, matched in rule.pattern.find(text):
            of_match = tuple(
                word
                for word, past in zip(whole, ends, strict=True)
                if past - 1 - len(word.text) < end and past - 1 > start
            )
            if _sure(rule, of_match):
                number += 1
                match = _Match(number, matched, of_match)
                matches.setdefault(rule.name, (rule, []))[1].append(match)


def _distinct(owners: Iterable[Word]) -> tuple[Word, ...]:
    """Words in their order, each once: one word may be several tokens."""
    distinct: list[Word] = []
    for word in owners:
        if not distinct or distinct[-1] is not word:
            distinct.append(word)
    return tuple(distinct)


def _sure(rule: Rule, words: Sequence[Word]) -> bool:
    """A confidence that is no number is none."""
    return not rule.min_confidence or all(w.confidence >= rule.min_confidence for w in words)
