"""Stop and go: what is said and pressed in a pause reaches nobody, and times stay true."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.resample import Bank
from bridge.call import Call
from bridge.config import EngineSettings
from bridge.engine import tones
from bridge.engine.tones import encode, text_of
from bridge.leg import Leg
from bridge.pausing import APART, GUARD, PATIENCE, Keypad, Pausing
from bridge.turns import TurnRules
from bridge.types import (
    CallInfo,
    EndOfTurn,
    EventBody,
    Final,
    Frame,
    Heard,
    LegName,
    Partial,
    Paused,
    Pressed,
    Resumed,
    Word,
)
from tests.fakes import Events, FakeLease, FakeRecogniser
from tests.waiting import until


class Same(FakeRecogniser):
    """At 8 kHz: blocks are the line's own samples, and nothing is delayed."""

    rate, block = 8000, 640


class Subject:
    """A call of some legs at 8 kHz; `speak` is a second of somebody's voice."""

    def __init__(self, *legs: LegName, digits: str = "*7") -> None:
        self.events = Events()
        self.engine = Same()
        self.call = Call(
            CallInfo("c-1"),
            publish=self.events,
            over=lambda call: None,
            wall=lambda: 0.0,
            now=0.0,
            pause_digits=digits,
        )
        self.clock: dict[LegName, int] = {}
        for name in legs or ("caller",):
            self.join(name)

    def join(self, name: LegName) -> None:
        self.call.add_leg(name, self.engine, TurnRules(), now=0.0, bank=Bank(1))
        self.clock[name] = 0

    def speak(self, seconds: float = 1.0, name: LegName = "caller", value: int = 8192) -> None:
        for _ in range(round(seconds / 0.02)):
            frame = Frame(np.full(160, value, np.int16), 8000, self.clock[name])
            self.call.legs[name].on_frame(frame)
            self.clock[name] += 160

    def press(self, digits: str, name: LegName = "caller") -> None:
        for digit in digits:
            self.call.legs[name].on_digit(digit)

    def lease(self, name: LegName = "caller") -> FakeLease:
        return self.engine.leases[list(self.call.legs).index(name)]

    def heard(self, name: LegName = "caller") -> list[float]:
        """Which tenths of a second had sound in them."""
        sound = np.concatenate([np.zeros(0, np.float32), *self.lease(name).blocks])
        return [i / 10 for i in range(len(sound) // 800) if sound[800 * i : 800 * i + 800].any()]

    def said(self, *kinds: type) -> list[EventBody]:
        return [event.body for event in self.events if isinstance(event.body, kinds)]


def tenths(first: float, last: float) -> list[float]:
    return [i / 10 for i in range(round(first * 10), round(last * 10))]


# -- audio ----------------------------------------------------------------------------------------


def test_what_is_said_in_a_pause_is_silence_of_the_same_length() -> None:
    s = Subject()
    s.speak()
    s.call.pause(None, "http")
    s.speak()
    s.call.resume(None, "http")
    s.speak()
    # The first 0.2 s after a pause were on their way when it ended.
    assert s.heard() == tenths(0.0, 1.0) + tenths(2.2, 2.9)
    counts = s.call.legs["caller"].counts()
    assert (counts.seconds, counts.paused) == (3.0, pytest.approx(1.2))
    assert (counts.silence_inserted, counts.frames, counts.blocks_dropped) == (0.0, 150, 0)


def test_a_hole_in_a_pause_is_no_loss() -> None:
    s = Subject()
    s.speak()
    s.call.pause(None, "http")
    s.clock["caller"] += 8000
    s.speak(0.02)
    counts = s.call.legs["caller"].counts()
    assert (counts.silence_inserted, counts.paused) == (0.0, pytest.approx(1.02))


@pytest.mark.parametrize("hole", [13, 3600])
def test_a_long_hole_in_a_pause_costs_little_and_times_stay_right(hole: int) -> None:
    s = Subject()
    s.speak()
    s.call.pause(None, "http")
    s.clock["caller"] += 8000 * hole
    s.speak()
    s.call.resume(None, "http")
    s.speak()
    counts = s.call.legs["caller"].counts()
    assert counts.seconds == hole + 3.0
    assert (counts.silence_inserted, counts.paused) == (0.0, pytest.approx(hole + 1.2))
    pushed = len(s.lease().blocks) * 0.08
    assert pushed < 3.0 + 12.1
    s.lease().heard(Heard((Word("hello", pushed - 0.5, pushed - 0.3, 1.0),), at=pushed))
    s.lease().done()
    (final,) = s.said(Final)
    assert isinstance(final, Final)
    assert final.words[0].start == pytest.approx(hole + 2.5, abs=0.09)
    assert [round(e.at, 2) for e in s.said(Resumed) if isinstance(e, Resumed)] == [hole + 2.0]


@given(st.floats(0, 3), st.floats(0.01, 3), st.integers(1, 480), st.integers(0, 3000))
def test_only_what_is_outside_is_heard(begin: float, long: float, n: int, at: int) -> None:
    """Whatever the frames' length: not a sample of the pause, and every sample outside."""
    pausing = Pausing()
    start = at / 1000
    samples = np.arange(1, n + 1, dtype=np.int16)
    if begin <= start < begin + long:
        pausing.begin(begin, "http")
        assert not pausing.heard(samples, start, 8000).any()
    elif start >= begin + long:
        pausing.begin(begin, "http")
        pausing.end(begin + long)
        heard = pausing.heard(samples, start, 8000)
        deaf = round((begin + long + GUARD - start) * 8000)
        assert not heard[: max(0, deaf)].any()
        assert (heard[max(0, deaf) :] == samples[max(0, deaf) :]).all()
    else:
        assert pausing.heard(samples, start, 8000) is samples
    assert (samples == np.arange(1, n + 1)).all()  # the frame is the caller's own


# -- words ----------------------------------------------------------------------------------------


def word(text: str, start: float, end: float) -> Word:
    return Word(text, start, end, 0.9)


def test_what_was_said_before_is_final_before_the_pause_is_told() -> None:
    s = Subject()
    s.speak()
    s.lease().heard(Heard((word("my", 0.1, 0.3),), at=1.0, settled=0.5))
    s.call.pause("caller", "ami")
    assert not s.said(Paused)  # "card" is still in the engine
    s.speak(0.5)
    s.lease().heard(Heard((word("card", 0.7, 0.9),), at=1.5, settled=1.0))
    final, ended, paused = s.said(Final, EndOfTurn, Paused)
    assert isinstance(final, Final) and final.text == "my card"
    assert isinstance(ended, EndOfTurn) and (ended.text, ended.reason) == ("my card", "paused")
    assert paused == Paused(1.0, "ami")
    s.speak(0.5)
    s.call.resume("caller", "http")
    s.lease().heard(Heard((word("thanks", 2.3, 2.5),), pause=1.0, at=4.0))
    assert s.said(Resumed) == [Resumed(2.0, "http")]
    assert s.said(Final, EndOfTurn)[2:] == [
        Final(1, "thanks", (word("thanks", 2.3, 2.5),)),
        EndOfTurn(1, "thanks", 2.3, 2.5, "pause"),
    ]


def test_a_guess_that_stays_one_is_not_waited_for_for_ever() -> None:
    s = Subject()
    s.speak()
    s.call.pause(None, "http")
    guess = (word("card", 0.8, 0.9),)
    s.lease().heard(Heard(tentative=guess, at=1.0 + PATIENCE - 0.1))
    assert not s.said(Paused)
    s.lease().heard(Heard(tentative=guess, at=1.0 + PATIENCE))
    assert s.said(Partial, Paused)[-1] == Paused(1.0, "http")


def test_a_pause_is_told_once_however_often_it_is_wished_for() -> None:
    s = Subject()
    s.call.pause(None, "http")
    s.call.pause("caller", "ami")
    s.speak()
    s.lease().heard(Heard(at=1.0))
    s.call.resume(None, "http"), s.call.resume(None, "http")
    assert s.said(Paused, Resumed) == [Paused(0.0, "http"), Resumed(1.0, "http")]


def test_a_call_that_ends_in_a_pause_has_told_it() -> None:
    s = Subject()
    s.speak()
    s.lease().heard(Heard((word("my", 0.1, 0.3),), at=0.5, settled=0.4))
    s.call.pause(None, "http")
    leg: Leg = s.call.legs["caller"]
    leg.finish("hangup")
    s.lease().done()
    assert [type(body) for body in s.said(Final, EndOfTurn, Paused)] == [Final, EndOfTurn, Paused]
    leg.pause("http"), leg.resume("http")
    assert len(s.said(Paused, Resumed)) == 1


# -- legs -----------------------------------------------------------------------------------------


def test_one_leg_pauses_and_the_other_is_heard() -> None:
    s = Subject("caller", "callee")
    s.call.pause("callee", "http")
    s.speak(name="caller"), s.speak(name="callee")
    assert (s.heard("caller"), s.heard("callee")) == (tenths(0.0, 0.9), [])


def test_a_leg_that_joins_a_paused_call_is_paused_too() -> None:
    s = Subject("caller")
    s.call.pause(None, "http")
    s.join("callee")
    s.speak(name="callee")
    assert s.heard("callee") == []
    s.call.resume(None, "http")
    s.speak(name="callee")
    assert s.heard("callee") == tenths(1.2, 2.0)


# -- digits ---------------------------------------------------------------------------------------


def digits(s: Subject) -> str:
    return "".join(b.digit for b in s.said(Pressed) if isinstance(b, Pressed))


def test_digits_begin_and_end_a_pause_of_the_whole_call() -> None:
    s = Subject("caller", "callee")
    s.speak(), s.speak(name="callee")
    s.press("*7", "callee")
    assert all(leg.paused for leg in s.call.legs.values())
    s.press("4111111111111111#", "caller")
    s.press("5")
    assert digits(s) == "*7"
    s.press("*7", "callee")
    assert not any(leg.paused for leg in s.call.legs.values())
    s.press("1")
    assert digits(s) == "*7*71"
    assert {body.by for body in s.said(Paused, Resumed) if isinstance(body, Paused)} == {"dtmf"}


def test_without_the_setting_digits_are_digits() -> None:
    s = Subject(digits="")
    s.press("*7")
    assert digits(s) == "*7" and not s.call.legs["caller"].paused
    s.call.pause(None, "http")
    s.press("*7")
    assert digits(s) == "*7" and s.call.legs["caller"].paused


@pytest.mark.parametrize(
    ("presses", "complete"),
    [
        ([("*", 0.0), ("7", 1.0)], [False, True]),
        ([("*", 0.0), ("7", APART + 0.1)], [False, False]),
        ([("*", 0.0), ("*", 0.5), ("7", 1.0)], [False, False, True]),
        ([("*", 0.0), ("6", 0.5), ("7", 1.0)], [False, False, False]),
        ([("*", 0.0), ("7", 0.5), ("7", 1.0)], [False, True, False]),
    ],
)
def test_a_sequence_is_pressed_in_a_row(
    presses: list[tuple[str, float]], complete: list[bool]
) -> None:
    keypad = Keypad("*7")
    assert [keypad.press(digit, at) for digit, at in presses] == complete


# -- with an engine -------------------------------------------------------------------------------


async def test_words_after_a_pause_have_their_true_times_and_none_from_it_is_heard() -> None:
    engine = tones.make(EngineSettings(kind="tones", slots=1))
    await engine.start()
    told: list[EventBody] = []
    leg = Leg(
        "caller", engine, TurnRules(partials=False),
        tell=lambda leg, body: told.append(body), over=lambda leg: told.append(Pressed("0", 0.0)),
    )  # fmt: skip
    quiet = np.zeros(4000, np.int16)
    audio = np.concatenate([encode([1, 2, 3]), encode([66] * 10), quiet, encode([4, 5])])
    try:
        for at in range(0, len(audio), 160):
            if at == 9600:
                leg.pause("http")
            if at == 9600 + 32000:
                leg.resume("http")
            leg.on_frame(Frame(audio[at : at + 160], 8000, at))
        leg.finish("hangup")
        await until(lambda: isinstance(told[-1], Pressed) if told else False, 30.0)
    finally:
        await engine.close()
    words = [w for body in told if isinstance(body, Final) for w in body.words]
    assert [w.text for w in words] == [text_of(i) for i in (1, 2, 3, 4, 5)]
    starts = [0.0, 0.4, 0.8, 5.7, 6.1]
    assert [w.start for w in words] == pytest.approx(starts, abs=0.08)
    assert [b for b in told if isinstance(b, Paused | Resumed)] == [
        Paused(pytest.approx(1.2), "http"),
        Resumed(pytest.approx(5.2), "http"),
    ]


def test_words_that_are_not_settled_are_waited_for() -> None:
    pausing = Pausing()
    pausing.begin(1.0, "http")
    assert not pausing.due(1.5, 0.9, guessing=False)
    assert pausing.due(1.5, 1.0, guessing=False)


def test_a_pause_before_any_audio_is_told_at_once() -> None:
    s = Subject()
    s.call.pause(None, "http")
    assert s.said(Paused) == [Paused(0.0, "http")]


def test_a_sequence_is_pressed_anew_each_time() -> None:
    keypad = Keypad("**")
    assert [keypad.press("*", at / 10) for at in range(4)] == [False, True, False, True]
    keypad = Keypad("123")
    assert [keypad.press(digit, 2.0 * i) for i, digit in enumerate("123")] == [False, False, True]


def paused_and_stopped() -> Subject:
    """A second of talk, a pause, and ten seconds in which nothing comes."""
    s = Subject()
    s.speak()
    s.call.pause(None, "http")
    for i in range(201):
        s.call.legs["caller"].on_time(1.0 + i * 0.05)
    return s


def test_a_sender_that_stops_in_a_pause_is_not_heard_too_soon() -> None:
    """What was said just before the pause's end comes after it."""
    s = paused_and_stopped()
    s.call.resume(None, "http")
    (resumed,) = s.said(Resumed)
    assert isinstance(resumed, Resumed) and resumed.at == pytest.approx(11.0, abs=0.2)
    s.clock["caller"] = round((resumed.at - 0.1) * 8000)
    s.speak(0.6)
    assert min(t for t in s.heard() if t > 1) >= round(resumed.at + GUARD, 1) - 0.11


def test_silence_of_a_sender_that_stops_in_a_pause_is_no_loss() -> None:
    s = paused_and_stopped()
    s.clock["caller"] = 8000 * 11
    s.speak(1.0)
    counts = s.call.legs["caller"].counts()
    assert (counts.silence_inserted, counts.paused) == (0.0, pytest.approx(11.0))
