"""Words and pauses → partial, final, end of turn."""

from bridge.turns import MAX_TURN, TurnRules, Turns
from bridge.types import EndOfTurn, Final, Heard, Partial, Word


def word(text: str, start: float, length: float = 0.3) -> Word:
    return Word(text, start, start + length, 0.9)


HELLO, WORLD = word("hello", 1.0), word("world", 1.4)


def test_words_are_told_as_partials_until_a_pause_makes_them_final() -> None:
    turns = Turns(TurnRules())
    assert turns.hear(Heard(words=(HELLO,), at=1.4)) == [Partial(0, "hello", (HELLO,))]
    assert turns.hear(Heard(at=1.48)) == []
    assert turns.hear(Heard(words=(WORLD,), pause=0.9, at=1.8)) == [
        Final(0, "hello world", (HELLO, WORLD))
    ]


def test_the_turn_ends_when_the_pause_has_lasted_since_the_last_word() -> None:
    turns = Turns(TurnRules(min_pause=0.6))
    turns.hear(Heard(words=(HELLO, WORLD), pause=0.9, at=1.8))
    assert turns.hear(Heard(pause=0.9, at=2.29)) == []
    assert turns.hear(Heard(pause=0.9, at=2.31)) == [
        EndOfTurn(0, "hello world", HELLO.start, WORLD.end, "pause")
    ]
    assert turns.hear(Heard(pause=0.9, at=5.0)) == []
    assert turns.turn == 1


def test_a_short_pause_gives_two_finals_of_one_turn() -> None:
    turns = Turns(TurnRules())
    turns.hear(Heard(words=(HELLO,), pause=1.0, at=1.4))
    turns.hear(Heard(pause=0.0, at=1.5))
    events = turns.hear(Heard(words=(WORLD,), pause=1.0, at=2.4))
    assert events == [
        Final(0, "world", (WORLD,)),
        EndOfTurn(0, "hello world", HELLO.start, WORLD.end, "pause"),
    ]


def test_hysteresis_keeps_a_pause_that_wavers() -> None:
    turns = Turns(TurnRules(threshold=0.6, hysteresis=0.2))
    turns.hear(Heard(words=(HELLO,), pause=0.61, at=1.4))
    turns.hear(Heard(pause=0.45, at=1.5))
    assert [type(e) for e in turns.hear(Heard(pause=0.45, at=2.0))] == [EndOfTurn]
    turns.hear(Heard(words=(WORLD,), pause=0.61, at=2.4))
    turns.hear(Heard(pause=0.39, at=2.5))
    assert turns.hear(Heard(pause=0.45, at=3.5)) == []


def test_a_tentative_word_keeps_the_turn_open_and_repeats_nothing() -> None:
    turns = Turns(TurnRules())
    guess = Heard(words=(HELLO,), pause=1.0, at=1.4)
    turns.hear(guess)
    assert turns.hear(Heard(tentative=(WORLD,), pause=1.0, at=3.0)) == [
        Partial(0, "world", (WORLD,))
    ]
    assert turns.hear(Heard(tentative=(WORLD,), pause=1.0, at=3.1)) == []


def test_a_monologue_is_cut_into_finals_and_then_into_turns() -> None:
    turns = Turns(TurnRules(max_final=10.0))
    events = []
    for second in range(int(MAX_TURN) + 30):
        events += turns.hear(Heard(words=(word("and", second, 0.9),), at=second + 1.0))
    finals = [e for e in events if isinstance(e, Final)]
    ends = [e for e in events if isinstance(e, EndOfTurn)]
    assert all(f.words[-1].end - f.words[0].start <= 11 for f in finals)
    assert [e.reason for e in ends] == ["length"]
    said = [w for f in finals for w in f.words]
    assert said == sorted(said, key=lambda w: w.start)
    assert len(set(said)) == len(said)


def test_hanging_up_makes_everything_final() -> None:
    turns = Turns(TurnRules())
    turns.hear(Heard(words=(HELLO,), at=1.4))
    assert turns.finish() == [
        Final(0, "hello", (HELLO,)),
        EndOfTurn(0, "hello", HELLO.start, HELLO.end, "hangup"),
    ]
    assert turns.finish() == []


def test_partials_can_be_off() -> None:
    turns = Turns(TurnRules(partials=False))
    assert turns.hear(Heard(words=(HELLO,), tentative=(WORLD,), at=1.4)) == []


def test_words_in_front_of_a_pause_are_waited_for_and_wanted_at_once() -> None:
    """A model that hears the pause half a second before it has said the last word."""
    turns = Turns(TurnRules())
    turns.hear(Heard(words=(HELLO,), at=1.7, settled=1.2))
    assert not turns.wants_flush
    assert turns.hear(Heard(pause=0.9, at=2.0, settled=1.5)) == []
    assert turns.wants_flush
    assert turns.hear(Heard(pause=0.9, at=2.0, settled=1.6)) == []
    assert not turns.wants_flush, "once for each pause"
    assert [type(e) for e in turns.hear(Heard(words=(WORLD,), at=2.0, pause=0.9, settled=1.9))] == [
        Partial
    ]
    assert turns.hear(Heard(pause=0.9, at=2.0, settled=2.0)) == [
        Final(0, "hello world", (HELLO, WORLD))
    ]
    assert [type(e) for e in turns.hear(Heard(pause=0.9, at=2.4, settled=2.0))] == [EndOfTurn]


def test_a_speaker_who_goes_on_before_the_words_are_out_has_not_paused() -> None:
    turns = Turns(TurnRules())
    turns.hear(Heard(words=(HELLO,), at=1.7, settled=1.2))
    turns.hear(Heard(pause=0.9, at=2.0, settled=1.5))
    assert turns.hear(Heard(pause=0.1, at=2.1, settled=2.1)) == []
    turns.hear(Heard(pause=0.9, at=3.0, settled=2.5))
    assert turns.wants_flush, "a pause of its own"
    assert turns.hear(Heard(pause=0.9, at=3.0, settled=2.9)) == []


def test_an_engine_that_holds_nothing_back_is_never_asked_to_flush() -> None:
    turns = Turns(TurnRules())
    turns.hear(Heard(words=(HELLO,), pause=1.0, at=1.4))
    assert not turns.wants_flush


def test_a_final_says_its_language() -> None:
    turns = Turns(TurnRules(), lambda text: "fr" if "bonjour" in text else "")
    bonjour = word("bonjour", 1.0)
    events = turns.hear(Heard(words=(bonjour,), pause=1.0, at=1.4))
    assert events == [Final(0, "bonjour", (bonjour,), "fr")]
