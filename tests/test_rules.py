"""Which rules are fired by what is said: by table, and for any text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.rules import MAX_CALL_RULES, MAX_EARLY, MAX_WORDS, Rulebook
from bridge.rules_text import Pattern, phrase, tokens
from bridge.rules_types import Place, Rule
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegName,
    Partial,
    Refused,
    Started,
    Word,
)

CALL = CallInfo(
    "c-1", "audiosocket", "PJSIP/trunk-0000002a", caller="5550100", callee="200",
    context="from-trunk", exten="200",
)  # fmt: skip


def words(text: str, confidence: float = 0.9) -> tuple[Word, ...]:
    return tuple(
        Word(word, float(n), n + 0.5, confidence) for n, word in enumerate(text.split(" ")) if word
    )


def final(text: str, turn: int = 0, confidence: float = 0.9) -> Final:
    return Final(turn, text, words(text, confidence))


def partial(text: str, turn: int = 0, confidence: float = 0.9) -> Partial:
    return Partial(turn, text, words(text, confidence))


def event(body: EventBody, leg: LegName | None = "caller", call: CallInfo = CALL) -> CallEvent:
    return CallEvent(call, 7, 1_700_000_000.0, leg, body)


def rule(*said: str, name: str = "r", regex: str = "", **more: Any) -> Rule:
    pattern = Pattern(regex) if regex else None
    return Rule(name, tuple(phrase(text) for text in said), pattern, **more)


def fired(given: Rule, *bodies: EventBody, leg: LegName = "caller") -> list[str]:
    """The words that fired it, per event that did."""
    book = Rulebook([given])
    firings = [firing for body in bodies for firing in book.hear(event(body, leg))]
    assert all(firing.rule is given for firing in firings)
    return [" ".join(word.text for word in firing.words) for firing in firings]


# -- words and phrases ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "text", "heard"),
    [
        ("manager", "i want the Manager!", "Manager!"),
        ("Manager", "the managers", None),  # not a part of a word
        ("manager", "the manager's voice", "manager's"),
        ("speak to somebody", "may I speak, to somebody?", "speak, to somebody?"),
        ("speak to somebody", "speak somebody", None),
        ("don't", "I DON’T know", "DON’T"),
        ("heure", "à quelle l'heure", "l'heure"),
        ("ÉTÉ", "cet été-là", "été-là"),
        ("straße", "die STRASSE", "STRASSE"),
        ("twenty one", "twenty-one", "twenty-one"),
        ("42", "it is ４２", "４２"),  # noqa: RUF001 - full width
        ("a a b", "a a a b", "a a b"),
    ],
)
def test_words_are_found_whatever_their_case_and_punctuation(
    said: str, text: str, heard: str | None
) -> None:
    assert fired(rule(said), final(text)) == ([heard] if heard else [])


def test_any_of_the_words_fires_the_longest_where_two_begin_together() -> None:
    said = ("john", "john smith", "jane")
    assert fired(rule(*said), final("hello john smith")) == ["john smith"]
    assert fired(rule(*said), final("jane")) == ["jane"]


def test_a_phrase_may_go_on_in_the_next_final_of_a_turn() -> None:
    assert fired(rule("speak to somebody"), final("may i speak to"), final("somebody now")) == [
        "speak to somebody"
    ]


def test_a_phrase_does_not_go_on_in_the_next_turn() -> None:
    bodies = final("may i speak to"), EndOfTurn(0, "…", 0, 1, "pause"), final("somebody", turn=1)
    assert fired(rule("speak to somebody"), *bodies) == []


def test_legs_are_heard_apart() -> None:
    book = Rulebook([rule("speak to somebody")])
    assert not book.hear(event(final("speak to"), "caller"))
    assert not book.hear(event(final("somebody"), "callee"))
    assert book.hear(event(final("somebody"), "caller"))


# -- once, and every time ------------------------------------------------------------------------


def test_once_is_once_a_call_on_both_legs() -> None:
    book = Rulebook([rule("help")])
    assert book.hear(event(final("help"), "caller"))
    assert not book.hear(event(final("help", turn=1), "caller"))
    assert not book.hear(event(final("help"), "callee"))
    assert book.hear(event(final("help"), call=replace(CALL, id="c-2")))


def test_every_time_is_once_a_final() -> None:
    every = rule("help", once=False)
    bodies = final("help"), final("yes"), final("help help"), final("help", turn=1)
    assert fired(every, *bodies) == ["help", "help", "help"]


def test_a_partial_fires_sooner_and_its_final_not_again() -> None:
    for once in (True, False):
        said = rule("help me", on="partial", once=once)
        bodies = partial("help"), partial("help me"), partial("help me please")
        assert fired(said, *bodies, final("help me please")) == ["help me"]


@pytest.mark.parametrize("once", [True, False])
def test_a_partial_that_is_revised_does_not_fire_twice(once: bool) -> None:
    said = rule("help", on="partial", once=once)
    bodies = partial("help"), partial("hell"), partial("oh help"), final("oh help")
    assert fired(said, *bodies) == ["help"]


def test_a_second_time_in_one_turn_is_a_second_time() -> None:
    said = rule("help", on="partial", once=False)
    bodies = partial("help"), final("help"), partial("help"), final("please help")
    assert fired(said, *bodies) == ["help", "help"]


def test_a_rule_on_partials_hears_finals_too() -> None:
    assert fired(rule("help", on="partial"), final("help")) == ["help"]


def test_a_rule_on_finals_waits_for_the_final() -> None:
    assert fired(rule("help"), partial("help"), final("hello")) == []


def test_a_phrase_may_begin_in_a_final_and_end_in_a_partial() -> None:
    said = rule("speak to somebody", on="partial", once=False)
    bodies = final("speak"), partial("to some"), partial("to somebody"), final("to somebody")
    assert fired(said, *bodies) == ["speak to somebody"]


# -- conditions ----------------------------------------------------------------------------------


def test_the_leg() -> None:
    assert fired(rule("yes", leg="callee"), final("yes"), leg="callee") == ["yes"]
    assert fired(rule("yes", leg="callee"), final("yes"), leg="caller") == []


@pytest.mark.parametrize("regex", ["", "yes (please)"])
def test_every_word_must_be_sure(regex: str) -> None:
    sure = rule(*([] if regex else ["yes please"]), regex=regex, min_confidence=0.8)
    half = words("yes", 0.95) + words("please", 0.5)
    assert fired(sure, Final(0, "yes please", half)) == []
    nan = words("yes", 0.95) + words("please", float("nan"))
    assert fired(sure, Final(0, "yes please", nan)) == []
    assert fired(sure, final("yes please", confidence=0.8)) == ["yes please"]


def test_an_unsure_partial_waits_for_a_final_that_is_sure() -> None:
    sure = rule("yes", on="partial", min_confidence=0.8)
    assert fired(sure, partial("yes", confidence=0.4), final("yes")) == ["yes"]


@pytest.mark.parametrize(
    ("place", "holds"),
    [
        (Place(), True),
        (Place(ingress="audio*", context="from-*", endpoint="PJSIP/trunk"), True),
        (Place(exten="_2XX", callee="200", caller="_555X."), True),
        (Place(exten="_3XX"), False),
        (Place(endpoint="PJSIP/alice"), False),
        (Place(context="from-trunk", caller="1"), False),
        (Place(ingress="rtp"), False),
    ],
)
def test_where_the_call_is(place: Place, holds: bool) -> None:
    assert bool(fired(rule("help", place=place), final("help"))) == holds


# -- patterns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("regex", "text", "heard", "matched"),
    [
        (r"card (number|nummer)", "my Card number, please", "Card number,", "number"),
        (r"\bext(ension)? (?P<n>\d+)", "Extension 204", "Extension 204", "ension"),
        (r"order \d+", "order 17", "order 17", "order 17"),
        (r"[0-9]{4}", "code12345 x", "code12345", "1234"),
        (r"^yes$", "oh yes", None, None),
    ],
)
def test_patterns(regex: str, text: str, heard: str | None, matched: str | None) -> None:
    book = Rulebook([rule(regex=regex)])
    firings = book.hear(event(final(text)))
    assert [firing.matched for firing in firings] == ([matched] if heard else [])
    assert fired(rule(regex=regex), final(text)) == ([heard] if heard else [])


def test_a_pattern_goes_over_finals_and_fires_once_per_saying() -> None:
    said = rule(regex=r"pin \d \d", on="partial", once=False)
    bodies = final("my pin"), partial("1"), partial("1 2"), final("1 2"), final("pin 3 4")
    assert fired(said, *bodies) == ["pin 1 2", "pin 3 4"]


@pytest.mark.parametrize(
    ("regex", "sentence"),
    [
        ("(", "regex: missing ): ("),
        (r"(a)\1", "regex: invalid escape sequence"),
        ("(?=a)b", "regex: invalid perl operator"),
        ("((x{100}){100}){100}", "regex: invalid repetition size"),
        ("a*", "regex: it matches where nothing is said"),
        ("x" * 501, "regex: longer than 500 characters"),
    ],
)
def test_a_pattern_that_cannot_be_had_says_why(regex: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence.replace("(", r"\(").replace(")", r"\)")):
        Pattern(regex)


def test_no_pattern_can_hold_up_a_call() -> None:
    """Python's own engine would need 2**30 steps at thirty letters; this one is not its."""
    assert fired(rule(regex=r"(a+)+(b|c)+d"), final("a" * 199), final("a" * 199)) == []


# -- bounds and ends -----------------------------------------------------------------------------


def test_a_calls_memory_goes_with_it() -> None:
    book = Rulebook([rule("help")])
    book.hear(event(final("no")))
    assert book.calls == 1
    book.hear(event(Ended("hangup", 1.0, {}), None))
    assert book.calls == 0
    book.hear(event(Refused("busy"), None))
    assert book.calls == 0


def test_a_turn_without_end_begins_anew() -> None:
    book = Rulebook([rule("help", once=False)])
    for _ in range(40):
        book.hear(event(final(" ".join(["no"] * 50))))
    (call,) = book._calls.values()
    (turn,) = call.turns.values()
    assert len(turn.said) <= MAX_WORDS + 50
    assert book.hear(event(final("help")))


def test_a_word_of_absurd_length_is_no_word() -> None:
    assert fired(rule("a"), final("a-" * 200)) == []


def test_rules_of_one_call() -> None:
    book = Rulebook([rule("help", name="all")])
    book.hear(event(Started(), None))
    assert book.add("c-1", rule("stop", name="own")) == ["own"]
    assert [f.rule.name for f in book.hear(event(final("help stop")))] == ["all", "own"]
    other = replace(CALL, id="c-2")
    assert [f.rule.name for f in book.hear(event(final("help stop"), call=other))] == ["all"]
    for name in ("all", "own"):
        with pytest.raises(ValueError, match=f"^name: there is a rule '{name}' already$"):
            book.add("c-1", rule("x", name=name))


def test_a_call_has_so_many_rules_of_its_own() -> None:
    book = Rulebook([])
    for n in range(MAX_CALL_RULES):
        book.add("c-1", rule("x", name=f"r{n}"))
    with pytest.raises(ValueError, match="no more are taken"):
        book.add("c-1", rule("x", name="one-more"))


def test_rules_of_calls_to_come_wait_for_them_and_not_without_end() -> None:
    book = Rulebook([])
    for n in range(MAX_EARLY + 1):
        book.add(f"c-{n}", rule("help"), up=False)
    assert book.calls == MAX_EARLY
    first, second = replace(CALL, id="c-0"), replace(CALL, id="c-1")
    for call in (first, second):
        book.hear(event(Started(), None, call))
    assert not book.hear(event(final("help"), call=first))
    assert book.hear(event(final("help"), call=second))
    book.hear(event(Refused("busy"), None, replace(CALL, id="c-2")))
    assert book.calls == MAX_EARLY - 1


# -- any text ------------------------------------------------------------------------------------

said_words = st.lists(st.sampled_from(["a", "b", "A,", "b-a", "c", "…"]), max_size=6)


@given(st.lists(said_words, max_size=5), st.sampled_from(["a b", "a", "b a b"]))
def test_a_rule_is_fired_as_a_search_of_the_whole_turn_would(
    said: list[list[str]], wanted: str
) -> None:
    """However a turn is cut into finals: as often as there are finals that bring a match."""
    target = phrase(wanted)
    expected, whole, busy = 0, [], 0
    for part in said:
        since = len(whole)
        whole += [token for word in part for token in tokens(word)]
        news = False
        for start in range(len(whole) - len(target) + 1):
            end = start + len(target)
            if end > since and start >= busy and tuple(whole[start:end]) == target:
                busy, news = end, True
        expected += news
    bodies = [Final(0, " ".join(p), tuple(Word(w, 0, 0, 1) for w in p)) for p in said]
    assert len(fired(rule(wanted, once=False), *bodies)) == expected


@given(st.lists(said_words, max_size=8), st.booleans())
def test_partials_never_fire_more_often_than_words_are_ever_said(
    guesses: list[list[str]], once: bool
) -> None:
    """Whatever partials guess: at most one firing more than the most that one of them has."""
    bodies = [Partial(0, " ".join(g), tuple(Word(w, 0, 0, 1) for w in g)) for g in guesses]
    most = max((sum(tokens(w).count("a") for w in guess) for guess in guesses), default=0)
    assert len(fired(rule("a", on="partial", once=once), *bodies)) <= (1 if once else most)


@given(st.text(), st.text())
def test_any_text_is_heard(text: str, other: str) -> None:
    book = Rulebook([rule("a b", once=False), rule(name="p", regex=r"\w+ \d", once=False)])
    for body in (partial(text), final(text), partial(other), final(other)):
        for firing in book.hear(event(body)):
            assert firing.words and all(word.text in text + other for word in firing.words)


# -- what a turn remembers, and for how long ------------------------------------------------------


def test_a_turn_of_long_words_begins_anew() -> None:
    book = Rulebook([rule(regex="help", once=False)])
    for _ in range(60):
        book.hear(event(final("n" * 199 + " " + "o" * 199)))
    assert book.hear(event(final("help")))


def test_a_pattern_that_is_said_twice_in_one_final_fires_once() -> None:
    assert fired(rule(regex="help", once=False), final("help help"), final("yes")) == ["help"]


def test_a_pattern_fires_each_time_that_it_is_said() -> None:
    assert fired(rule(regex="help", once=False), *[final("help")] * 5) == ["help"] * 5


def test_a_word_beside_a_match_is_none_of_its_words() -> None:
    assert fired(rule(regex=" please"), final("yes please now")) == ["please"]


def test_a_rule_that_does_not_hold_here_is_not_spent() -> None:
    book = Rulebook([rule("help", place=Place(callee="200"))])
    assert not book.hear(event(final("help"), call=replace(CALL, callee="")))
    assert book.hear(event(final("help", turn=1)))


def test_another_rule_of_the_name_fires_in_the_same_turn() -> None:
    book = Rulebook([])
    book.hear(event(Started(), None))
    for _ in range(2):
        book.add("c-1", rule("help", name="own", once=False))
        assert book.hear(event(final("help")))
        assert book.remove("c-1", "own")


# -- rules of calls to come -----------------------------------------------------------------------


def test_a_call_that_goes_on_after_a_crash_has_its_rules() -> None:
    book = Rulebook([])
    book.add("c-1", rule("help", name="own"), up=False)
    assert book.hear(event(final("help")))  # without a Started


def test_a_call_whose_id_was_taken_has_its_rules() -> None:
    book = Rulebook([])
    book.add("c-1", rule("help", name="own"), up=False)
    other = replace(CALL, id="8068a190", extra={"call": "c-1"})
    book.hear(event(Started(), None, call=other))
    assert book.hear(event(final("help"), call=other))


def test_rules_of_a_call_that_will_not_come_are_nobodys() -> None:
    book = Rulebook([])
    for name in ("c-1", "c-2"):
        book.add(name, rule("help", name="own"), up=False)
    assert book.early
    book.expect({"c-2"})
    assert book.calls == 1
    book.hear(event(Started(), None))
    assert not book.hear(event(final("help")))
