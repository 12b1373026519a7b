"""What is found in words, and what is left alone. No event, no time."""

from __future__ import annotations

import pytest

from bridge.redact.kinds import KINDS
from bridge.redact.scan import Scan, scan
from bridge.redact.spoken import runs, tokens

ALL = frozenset(KINDS) - {"number"}


def look(text: str, kinds=ALL) -> Scan:
    return scan(text.split(), kinds, ("US", "FR"))


def shown(text: str, kinds=ALL) -> str:
    """The text, each row of words of a kind as that kind."""
    out: list[str] = []
    before = None
    for word, kind in zip(text.split(), look(text, kinds).labels, strict=True):
        if kind is None:
            out.append(word)
        elif kind != before:
            out.append(f"[{kind}]")
        before = kind
    return " ".join(out)


CARDS = [
    "4111 1111 1111 1111",
    "4111111111111111",
    "4111-1111-1111-1111",
    "4111.1111.1111.1111,",
    "4111, 1111, 1111, 1111.",
    "3782 822463 10005",
    "5555 5555 5555 4444",
    "four one one one one one one one one one one one one one one one",
    "Four, one-one-one, one one one one uh one one one one um one one one one.",
    "four one double one one one double one double one double one double one double one",
    "five five double five double five double five double five double five double four double four",
    "forty one eleven eleven eleven eleven eleven eleven eleven",
    "three seven eight two eight two two four six three one oh oh oh five",
    "quatre un un un un un un un un un un un un un un un",
    "quarante et un onze onze onze onze onze onze onze",
    "Quarante-et-un onze onze, onze onze onze onze onze",
    "4111 one one one one 1111 onze onze",
    "4111 1111 1111 1111",
    "\uff14111 1111 1111 1111",  # full width
    "4242 4242 4242 4242",
]


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_found(card):
    assert shown(f"it's {card} thanks") == "it's [card] thanks"


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("4111 1111 1111 1111 12 27", "[card] 12 27"),
        ("4111 1111 1111 1111 expires twelve twenty seven", "[card] expires twelve twenty seven"),
        ("room 12 4111 1111 1111 1111", "room 12 [card]"),
        ("41111111111111111227", "[card]"),  # with its expiry date in one
        ("forty four one one one one one one one one one one one one one one one", "[card]"),
    ],
)
def test_a_card_is_found_among_other_digits(text, out):
    assert shown(text) == out


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("mail john.miller@example.com.", "mail [email]"),
        ("mail John.Miller+x@mail.example.co.uk, please", "mail [email] please"),
        ("it is john dot miller at example dot com thanks", "it is [email] thanks"),
        ("it is j dot smith at g mail dot com", "it [email]"),  # "is j" could be one word
        ("is j o h n at example dot c o m", "[email]"),
        ("to john underscore miller at my company dot co dot uk please", "to [email] please"),
        ("john forty two at example dot org", "[email]"),
        ("jean tiret bas dupont arobase exemple point fr merci", "[email] merci"),
        ("jean point dupont @ exemple point fr", "[email]"),
        ("john@ example.com", "[email]"),
        ("john at example dash mail dot com", "[email]"),
    ],
)
def test_an_address_is_found(text, out):
    assert shown(text) == out


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("call 212-555-0123 now", "call [phone] now"),
        ("call (212) 555-0123.", "call [phone]"),
        ("call two one two five five five oh one two three now", "call [phone] now"),
        ("appelez le zéro six douze trente-quatre cinquante-six soixante-dix-huit merci",
         "appelez le [phone] merci"),
        ("06 12 34 56 78 merci", "[phone] merci"),
        ("06.12.34.56.78 merci", "[phone] merci"),
        ("+33 6 12 34 56 78 merci", "[phone] merci"),
        ("call plus one two one two five five five oh one two three", "call plus [phone]"),
        ("212-555-0123 and 212 555 0199 bye", "[phone] and [phone] bye"),
        ("card 4111 1111 1111 1111 and 212 555 0199 bye", "card [card] and [phone] bye"),
        ("it's 123-45-6789 bye", "it's [ssn] bye"),
        ("one two three, four five, six seven eight nine bye", "[ssn] bye"),
        ("my social security number: 5 1 123 45 6789 bye", "my social security number: [ssn] bye"),
    ],
)  # fmt: skip
def test_phones_and_social_security_numbers_are_found(text, out):
    assert shown(text) == out


NEAR_MISSES = [
    "at 12:30 or nine fifteen",
    "on 2024-01-15 12 of us came",  # 202 401 1512 would be a telephone
    "1,234,567.50 dollars",
    "four hundred twenty five dollars and ten cents",
    "quatre mille deux cent vingt-cinq euros",
    "75008 Paris, 90210 and 20001-1234",
    "order 1234567890123456 please",  # no Luhn
    "order 4111 1111 1111 1112 please",
    "order one two three four five six seven eight nine oh one two three four five six please",
    "order 123456789 please",
    "number 000-12-3456 or 666-12-3456 please",  # never given out as social security numbers
    "in nineteen eighty four or 2024",
    "version 3.5 dot release",
    "meet me at the station",
    "look at this point",
    "look at the picture dot",
    "oh oh double trouble",
    "gate 4, seat 11, row 1, bag 11",
    "555 0123 please",
]


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_what_only_looks_like_one_is_left_alone(text):
    assert shown(text) == text


def test_only_what_is_asked_for_is_found():
    text = "4111 1111 1111 1111 is it or john@example.com or 123-45-6789 or 212-555-0123 bye"
    kept = text.split()
    for kind in ALL:
        labels = look(text, frozenset([kind])).labels
        assert {label for label in labels if label} == {kind}
        assert len(kept) - sum(map(bool, labels)) >= 9
    assert not any(look(text, frozenset()).labels)


def test_any_long_number_can_be_asked_for():
    kinds = frozenset(["number"])
    assert shown("order 4111 1111 1111 1112 please", kinds) == "order [number] please"
    assert shown("in 75008 Paris", kinds) == "in 75008 Paris"
    assert shown("4111 1111 1111 1111", frozenset(["card", "number"])) == "[card]"


# -- what may go on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "open", "weak"),
    [
        ("hello there", 2, 1),  # any word may begin an address
        ("my card is 4111 1111", 3, 2),
        ("my card is 4111", 4, 2),  # four digits are not much, at the end of a turn
        ("my card is 4111 1111 uh", 3, 3),
        ("my card is 4111 1111 thanks", 6, 3),
        ("my card is double", 4, 3),
        ("four one one one two double", 0, 0),
        ("mail john dot", 1, 1),
        ("mail john dot miller", 1, 1),
        ("mail john at", 1, 1),
        ("mail john at example", 1, 1),
        ("mail john at example dot", 1, 1),
        ("mail john at example dot com", 6, 1),  # what follows is found all the same
        ("spelt j o h n", 1, 0),
        ("vis-à-vis in the U.S.", 4, 2),
        ("look at the big picture", 5, 4),
    ],
)
def test_how_much_is_open(text, open, weak):
    found = look(text)
    assert (found.open, found.weak) == (open, weak)


def test_digits_before_the_longest_card_are_decided():
    text = " ".join(["7"] * 40)
    assert look(text, frozenset(["card"])).open == 40 - 18


def test_without_addresses_only_digits_wait():
    assert look("hello there", frozenset(["card"])).weak == 2
    assert look("hello there 4", frozenset(["card"])).weak == 2
    assert look("john dot", frozenset(["card"])).open == 2


# -- digits in words -----------------------------------------------------------------------------


def digits(text: str, together: bool = True) -> list[str]:
    said = runs(tokens(text.split()), together=together)
    return ["".join(group.digits for group in run.groups) for run in said]


@pytest.mark.parametrize(
    ("text", "together", "apart"),
    [
        ("quatre-vingt-dix-sept", "97", "420107"),
        ("quatre vingts", "80", "420"),
        ("soixante et onze", "71", "6011"),
        ("soixante-dix", "70", "6010"),
        ("soixante dix huit", "78", "60108"),
        ("vingt quatre vingt deux", "2082", "204202"),
        ("sixty eleven", "6011", "6011"),  # two pairs, in English
        ("triple oh seven", "7", "7"),
        ("triple zero seven", "0007", "0007"),
        ("double 7 niner", "779", "779"),
        ("oh four two", "042", "042"),
        ("septante-deux", "72", "702"),
    ],
)
def test_numbers_are_read_in_two_ways(text, together, apart):
    assert digits(text)[-1] == together
    assert digits(text, together=False)[-1] == apart


def test_fillers_are_passed_over_but_not_many():
    assert digits("4 uh um dash 1") == ["41"]
    assert digits("4 uh um dash um 1") == ["4", "1"]
    assert digits("4 of 1") == ["4", "1"]


@pytest.mark.parametrize(
    "text",
    [
        "3528 0000 0000 0007 99", "3000 0000 0000 04 77", "2200 0000 0000 0004 99",
        "4,111,111,111,111,111", "4111111111111111.12", "4111111111111111,12",
        "4111111111111111's", "4111111111111111/123", "card:4111111111111111",
        "4111/1111/1111/1111", "4111_1111_1111_1111", "4111111111111111\u200b",
    ],
)  # fmt: skip
def test_a_card_in_any_form(text: str) -> None:
    assert shown(text, frozenset(["card"])).startswith("[card]")


def test_amounts_dates_and_a_long_telephone_number_are_what_they_are() -> None:
    assert shown("12,500.50 on 2026-12-01", frozenset(["card", "number"])) == (
        "12,500.50 on 2026-12-01"
    )
    assert shown("call +442079460958 now", frozenset(["card", "phone"])) == "call [phone] now"
    assert shown("call +44 20 7946 0958 now") == "call [phone] now"


def test_six_digits_are_a_number() -> None:
    assert shown("pin 123456 please", frozenset(["number"])) == "pin [number] please"


def test_what_a_number_is_may_have_been_said_long_before() -> None:
    text = "my social security number that you asked me for is 5 1 123 45 6789 bye"
    assert "[ssn]" in shown(text)
