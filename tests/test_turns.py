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
    assert turns.wants_flush, "the lease may have had reasons to wait"
    assert [type(e) for e in turns.hear(Heard(words=(WORLD,), at=2.0, pause=0.9, settled=1.9))] == [
        Partial
    ]
    assert turns.hear(Heard(pause=0.9, at=2.0, settled=2.0)) == [
        Final(0, "hello world", (HELLO, WORLD))
    ]
    assert not turns.wants_flush
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


def test_a_pause_that_stays_high_over_words_was_none() -> None:
    """Heads that are slow to see that somebody speaks: ten words are not ten turns."""
    turns = Turns(TurnRules())
    kinds: list[type] = []
    for i in range(60):
        at = 0.08 * (i + 1)
        said = tuple(
            word(f"w{k}", 0.4 * k, 0.2) for k in range(10) if abs(0.4 * k + 0.64 - at) < 0.04
        )
        kinds += [type(e) for e in turns.hear(Heard(said, (), 1.0, at, at - 0.48))]
    assert kinds.count(EndOfTurn) <= 5
    turns = Turns(TurnRules())
    ends = []
    for i in range(40):  # high until the second word is out
        at = 0.08 * (i + 1)
        said = tuple(
            word(f"w{k}", 0.4 * k, 0.2) for k in range(4) if abs(0.4 * k + 0.64 - at) < 0.04
        )
        pause = 1.0 if at < 1.1 or at > 2.6 else 0.0
        ends += [e for e in turns.hear(Heard(said, (), pause, at, at - 0.48))
                 if isinstance(e, EndOfTurn)]  # fmt: skip
    assert [e.text for e in ends] == ["w0 w1 w2 w3"]


def test_a_dip_of_the_pause_does_not_put_the_turns_end_off() -> None:
    """The flush that follows a dip may be refused, and is asked for again."""
    turns = Turns(TurnRules())
    turns.hear(Heard((HELLO,), (), 0.9, 1.5, 1.5))
    turns.hear(Heard(pause=0.1, at=1.58, settled=1.0))
    wanted = []
    for i in range(4):
        turns.hear(Heard(pause=0.9, at=1.66 + 0.08 * i, settled=1.1 + 0.08 * i))
        wanted.append(turns.wants_flush)
    assert all(wanted)
    assert [type(e) for e in turns.hear(Heard(pause=0.9, at=2.0, settled=2.0))] == [EndOfTurn]
