"""A number in pieces never gets out, nothing else is lost, order stays, nothing waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.redact.kinds import KINDS
from bridge.redact.scan import NEAR
from bridge.redact.stream import KEPT, MAX_HELD, RedactStream
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    Final,
    LegName,
    Listened,
    Partial,
    Pressed,
    RuleFired,
    Started,
    Word,
)

ALL = frozenset(KINDS) - {"number"}
HOLD = 3.0


@dataclass
class Talk:
    """One call's events, each word at a second of its own, put into a stream as they come."""

    kinds: frozenset = ALL
    call: CallInfo = field(default_factory=lambda: CallInfo("c-1"))
    now: float = 0.0
    seq: int = 0
    turn: int = 0
    at: float = 0.0
    out: list[CallEvent] = field(default_factory=list)
    given: list[CallEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream = RedactStream(self.kinds, ("US", "FR"), HOLD)
        self.finals: dict[LegName, list[Final]] = {"caller": [], "callee": []}
        self.turns: dict[LegName, int] = {"caller": 0, "callee": 0}

    def put(self, body: object, leg: LegName | None = "caller") -> CallEvent:
        event = CallEvent(self.call, self.seq, 1000.0 + self.seq, leg, body)
        self.seq += 1
        self.given.append(event)
        self.out += self.stream.put(event, self.now)
        return event

    def final(self, words: str | list[str], leg: LegName = "caller") -> Final:
        texts = words.split() if isinstance(words, str) else words
        said = []
        for text in texts:
            said.append(Word(text, self.at, self.at + 0.5, 0.5))
            self.at += 1.0
        final = Final(self.turns[leg], " ".join(texts), tuple(said), "en")
        self.finals[leg].append(final)
        self.put(final, leg)
        return final

    def turn_ends(self, leg: LegName = "caller") -> None:
        finals, self.finals[leg] = self.finals[leg], []
        if finals:
            text = " ".join(final.text for final in finals)
            end = finals[-1].words[-1].end
            self.put(EndOfTurn(self.turns[leg], text, finals[0].words[0].start, end, "pause"), leg)
            self.turns[leg] += 1

    def end(self) -> None:
        self.put(Ended("hangup", 1.0, {}), None)

    def failed(self, call_id: str, error: Exception) -> None:
        raise AssertionError(call_id) from error

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.out += self.stream.expire(self.now, self.failed)

    def texts(self) -> list[str]:
        return [e.body.text for e in self.out if isinstance(e.body, Final | EndOfTurn)]


# -- canaries ------------------------------------------------------------------------------------

ENGLISH = "zero one two three four five six seven eight nine".split()
FRENCH = "zéro un deux trois quatre cinq six sept huit neuf".split()
SPEECH = (
    "hello well please my card is the number for you yes no bonjour carte je voudrais donner "
    "thanks it's Street mister d'accord, really? hundred merci. café 12:30 $5"
).split()


@st.composite
def cards(draw: st.DrawFn) -> str:
    """A number of a brand, with its check digit."""
    prefix, length = draw(
        st.sampled_from([("4", 16), ("52", 16), ("2221", 16), ("37", 15), ("6011", 16), ("4", 19)])
    )
    rest = draw(st.text("0123456789", min_size=length, max_size=length))[len(prefix) : -1]
    body = prefix + rest
    doubled = [int(c) * (1 + i % 2) for i, c in enumerate(reversed(body + "0"))]
    return body + str(-sum(d // 10 + d % 10 for d in doubled) % 10)


@st.composite
def spoken(draw: st.DrawFn, digits: str) -> list[str]:
    """Digits as words: said, written in pieces, doubled."""
    words: list[str] = []
    style = draw(st.sampled_from(["english", "french", "pieces", "mixed"]))
    i = 0
    while i < len(digits):
        if style == "pieces" or (style == "mixed" and draw(st.booleans())):
            n = draw(st.integers(1, 6))
            words.append(digits[i : i + n] + draw(st.sampled_from(["", "", ",", "-"])))
            i += n
        elif digits[i : i + 1] == digits[i + 1 : i + 2] and draw(st.booleans()):
            words += ["double", ENGLISH[int(digits[i])]]
            i += 2
        else:
            words.append((FRENCH if style == "french" else ENGLISH)[int(digits[i])])
            i += 1
        if i < len(digits) and draw(st.integers(0, 9)) == 0:
            words.append(draw(st.sampled_from(["uh", "euh", "um"])))
    return words


@st.composite
def addresses(draw: st.DrawFn) -> list[str]:
    name = st.sampled_from("john miller jean sandra j q info 42 seven".split())
    local = [draw(st.sampled_from(["john", "sandra", "dupont"]))]
    for _ in range(draw(st.integers(0, 2))):
        local += [draw(st.sampled_from(["dot", "underscore", "point", "dash"])), draw(name)]
    domain = draw(st.sampled_from(["example", "g mail", "my company", "big-company"])).split()
    top = draw(st.sampled_from(["dot com", "point fr", "dot co dot uk", "dot c o m"])).split()
    if draw(st.booleans()):
        return [*local, draw(st.sampled_from(["at", "arobase", "@"])), *domain, *top]
    return ["john.miller@example.com"]


speech = st.lists(st.sampled_from(SPEECH), max_size=8)


@st.composite
def canaries(draw: st.DrawFn) -> tuple[list[str], list[str], list[str]]:
    """(speech before, something that must not get out, speech after)."""
    before, after = draw(speech), draw(speech)
    match draw(st.sampled_from(["card", "ssn", "email"])):
        case "card":  # with other digits right beside it
            near = st.lists(st.sampled_from(["12", "seven", "quatre", "forty"]), max_size=3)
            before, after = before + draw(near), draw(near) + after
            canary = draw(spoken(draw(cards())))
        case "ssn":
            canary = draw(spoken(draw(st.sampled_from(["536904399", "123456780", "219099998"]))))
            before = [*before, "number", "is"]
            if len(canary) == 1:  # nine digits in one are an order's number
                canary = ["536-90-4399"]
        case _:
            before = [*before, "to"]
            canary = draw(addresses())
    return before, canary, after


def cut(words: list[str], cuts: set[int]) -> list[list[str]]:
    edges = sorted({0, len(words), *(c for c in cuts if 0 < c < len(words))})
    return [words[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def left(talk: Talk) -> dict[float, str]:
    """The words that got out as they were, by their times."""
    finals = [event.body for event in talk.out if isinstance(event.body, Final)]
    return {w.start: w.text for final in finals for w in final.words if not w.text.startswith("[")}


@settings(deadline=None, max_examples=200)
@given(canaries(), st.sets(st.integers(1, 60)), st.data())
def test_what_must_not_get_out_does_not_however_it_is_cut(canary, cuts, data):
    before, secret, after = canary
    talk = Talk()
    talk.put(Started(), None)
    words = before + secret + after
    for piece in cut(words, cuts):
        talk.final(piece)
        if data.draw(st.booleans()):
            talk.put(Partial(talk.turn, "4111 1111", (Word("4111", 0, 1, 1),)))
        if data.draw(st.booleans()):
            talk.put(Pressed("4", 0.0))
    talk.turn_ends()
    talk.end()
    got = left(talk)
    first, last = len(before), len(before) + len(secret)
    assert not [got[i] for i in range(first, last) if i in got]
    # Nothing else is lost, but for digits beside a card, which may be taken for a part of it.
    for i, word in enumerate(words):
        if not first <= i < last and word in SPEECH:
            assert got.get(float(i)) == word
    check_order(talk)


def check_order(talk: Talk) -> None:
    """What came out is what was put in, in order, but for partials and digits; texts agree."""
    wanted = [e.seq for e in talk.given if not isinstance(e.body, Partial | Pressed)]
    assert [event.seq for event in talk.out] == wanted
    said: dict[object, list[str]] = {}
    for event in talk.out:
        if isinstance(event.body, Final):
            assert event.body.text == " ".join(word.text for word in event.body.words) != ""
            said.setdefault(event.leg, []).append(event.body.text)
        if isinstance(event.body, EndOfTurn):
            assert event.body.text == " ".join(said.pop(event.leg))
    assert talk.stream.held == 0


@settings(deadline=None, max_examples=100)
@given(cards().flatmap(spoken), st.sets(st.integers(1, 20)), speech)
def test_turns_that_end_within_a_card_let_out_its_first_digits_at_most(card, cuts, after):
    talk = Talk(kinds=frozenset(["card"]))
    talk.final("my card")
    talk.turn_ends()
    for piece in cut(card, cuts):
        talk.final(piece)
        talk.turn_ends("caller")
        talk.final("right", "callee")
        talk.turn_ends("callee")
    talk.final([*after, "bye"])
    talk.turn_ends()
    talk.end()
    heard = " ".join(
        e.body.text for e in talk.out if isinstance(e.body, Final) and e.leg == "caller"
    )
    values = {word: str(i) for words in (ENGLISH, FRENCH) for i, word in enumerate(words)}
    tail = heard.removeprefix("my card")
    got = "".join(
        values.get(w, "".join(c for c in w if c.isdigit()))
        for w in tail.split()[: len(card)]
        if w not in after
    )
    assert len(got) <= 4
    check_order(talk)


# -- what waits, and for how long ----------------------------------------------------------------


def test_what_cannot_be_a_number_goes_out_at_once():
    talk = Talk(kinds=frozenset(["card"]))
    event = talk.put(Started(), None)
    assert talk.out == [event]
    talk.final("hello there")
    assert talk.texts() == ["hello there"]


def test_digits_wait_for_the_next_words():
    talk = Talk(kinds=frozenset(["card"]))
    talk.final("it is 4111 1111")
    talk.turn_ends()
    talk.final("right", "callee")  # and the other leg's words wait behind them: order stays
    assert talk.out == []
    talk.final("1111 1111 thanks")
    assert talk.texts() == ["it is [card]", "it is [card]", "right", "[card] thanks"]


def test_digits_that_were_none_go_out_as_they_were():
    talk = Talk(kinds=frozenset(["card"]))
    first = talk.final("it is 4111 1111")
    talk.final("dollars")
    assert [e.body for e in talk.out][0] is first
    assert talk.texts() == ["it is 4111 1111", "dollars"]


def test_the_end_of_a_turn_lets_out_a_few_digits():
    talk = Talk(kinds=frozenset(["card"]))
    talk.final("I want 12")
    assert talk.out == []
    talk.turn_ends()
    assert talk.texts() == ["I want 12", "I want 12"]


def test_after_the_hold_it_goes_out_but_what_follows_is_still_found():
    talk = Talk(kinds=frozenset(["card"]))
    talk.final("it is 4111 1111")
    talk.turn_ends()
    talk.pass_time(HOLD - 0.1)
    assert talk.out == []
    talk.pass_time(0.2)
    assert talk.texts() == ["it is 4111 1111", "it is 4111 1111"]
    assert talk.stream.counters["late"] == 1
    talk.final("1111 1111")
    talk.final("bye")
    assert talk.texts()[2:] == ["[card]", "bye"]


def test_an_order_number_goes_out_after_the_hold():
    talk = Talk(kinds=frozenset(["card"]))
    talk.final("order 12345678")
    talk.turn_ends()
    talk.pass_time(HOLD)
    assert talk.texts() == ["order 12345678", "order 12345678"]


def test_the_end_of_the_call_lets_everything_out():
    talk = Talk()
    talk.final("it is 4111 1111 1111 1111")
    talk.turn_ends()
    talk.end()
    assert talk.texts() == ["it is [card]"] * 2
    assert isinstance(talk.out[-1].body, Ended)
    assert talk.stream.held == 0
    check_order(talk)


def test_a_word_that_may_begin_an_address_waits_for_the_end_of_the_turn():
    talk = Talk(kinds=frozenset(["email"]))
    talk.final("mail john")
    assert talk.out == []
    talk.turn_ends()
    assert talk.texts() == ["mail john", "mail john"]
    talk.final("dot miller at example dot com")
    talk.turn_ends()
    assert talk.texts()[2:] == ["[email]", "[email]"]


def test_times_stay_and_the_number_of_digits_is_not_told():
    talk = Talk()
    talk.final("it is 4111 1111 1111 1111 thanks")
    talk.end()
    final = talk.out[0].body
    assert isinstance(final, Final)
    assert [(w.text, w.start, w.end) for w in final.words] == [
        ("it", 0.0, 0.5), ("is", 1.0, 1.5), ("[card]", 2.0, 5.5), ("thanks", 6.0, 6.5),
    ]  # fmt: skip
    assert final.language == "en" and final.turn == 0


def test_partials_and_pressed_digits_are_withheld():
    talk = Talk()
    talk.put(Partial(0, "4111", (Word("4111", 0.0, 0.5, 1.0),)))
    talk.put(Pressed("4", 0.0))
    talk.put(Started(), None)
    assert [event.seq for event in talk.out] == [2]
    assert talk.stream.counters == {"partials": 1, "digits": 1}


def test_pressed_digits_stay_where_only_addresses_are_redacted():
    talk = Talk(kinds=frozenset(["email"]))
    talk.put(Pressed("4", 0.0))
    assert [event.body for event in talk.out] == [Pressed("4", 0.0)]


def test_calls_do_not_wait_for_each_other_and_are_forgotten():
    stream = RedactStream(ALL, ("US",), HOLD)
    one, two = Talk(call=CallInfo("one")), Talk(call=CallInfo("two"))
    one.stream = two.stream = stream
    one.final("4111 1111")
    two.final("hello you")
    two.turn_ends()
    assert two.texts() == ["hello you", "hello you"] and one.out == []
    two.end()
    one.end()
    assert stream._calls == {}


def test_a_call_that_waits_too_much_is_let_out():
    talk = Talk(kinds=frozenset(["card"]))
    talk.final("4111 1111")
    for _ in range(MAX_HELD + 1):
        talk.final("ah", "callee")
    assert talk.stream.counters["overflow"] == 1
    assert talk.stream.held == 0


def test_long_calls_cost_no_memory():
    talk = Talk()
    for i in range(300):
        talk.final(f"this is {i} and so on and on")
    leg = talk.stream._calls["c-1"].legs["caller"]
    assert len(leg.words) <= 8 + NEAR + 8
    for _ in range(300):
        talk.final("4 1 uh 1 1")
    assert len(leg.words) <= KEPT + 8
    assert talk.stream.held <= 5


def test_a_rule_tells_that_it_fired_and_not_on_what() -> None:
    talk = Talk()
    talk.final("my card is 4111 1111 1111 1111 goodbye and thanks")
    words = talk.given[0].body.words
    talk.put(RuleFired("card", "setvar", "done", "", 0, 0, "4111 1111", "4111 1111", words))
    talk.turn_ends()
    fired = next(e.body for e in talk.out if isinstance(e.body, RuleFired))
    assert (fired.rule, fired.outcome) == ("card", "done")
    assert (fired.matched, fired.text, fired.words) == ("", "", ())
    assert "4111" not in repr(talk.out)


def test_a_dialplan_that_listens_is_not_told_a_card_either() -> None:
    """Neither in the turn's text nor in what it waits for, and nothing waits for more words."""
    talk = Talk(call=CallInfo("c-1", listening=True))
    talk.final("four one one one one one one one one one one one one one one one")
    talk.put(EndOfTurn(0, "four one one one one …", 0.0, 16.0, "pause"))
    talk.put(Listened("heard", "four one one one one one one one one one one one one one one one"))
    told = next(e.body for e in talk.out if isinstance(e.body, Listened))
    assert (told.status, told.text) == ("heard", "[card]")
