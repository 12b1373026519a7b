"""One call: numbers, legs, the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import call as call_module
from bridge.call import Call, merged, refusal
from bridge.errors import Busy
from bridge.turns import TurnRules
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    Final,
    Frame,
    Heard,
    Partial,
    Pressed,
    Refused,
    Started,
    Word,
)
from tests.fakes import Events, FakeLease, FakeRecogniser

RULES = TurnRules()


class Subject:
    """A call on a recogniser without an engine."""

    def __init__(self, slots: int = 4) -> None:
        self.events = Events()
        self.over: list[Call] = []
        self.recogniser = FakeRecogniser(slots)
        self.call = Call(
            CallInfo(id="c-1", ingress="audiosocket", channel="PJSIP/1"),
            publish=self.events,
            over=self.over.append,
            wall=lambda: 1_700_000_000.0,
            now=50.0,
        )

    def lease(self, i: int) -> FakeLease:
        return self.recogniser.leases[i]

    def say(self, i: int, text: str, start: float) -> None:
        heard = Heard((Word(text, start, start + 0.1, 1.0),), pause=1.0, at=start + 0.2)
        self.lease(i).heard(heard)

    def kinds(self) -> list[type]:
        return [type(event.body) for event in self.events]


def assert_numbered(events: list[CallEvent]) -> None:
    assert [event.seq for event in events] == list(range(len(events)))


def test_a_call_of_one_leg() -> None:
    s = Subject()
    leg = s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    s.say(0, "hello", 1.0)
    leg.on_digit("5")
    leg.finish("hangup")
    s.say(0, "bye", 2.0)
    s.lease(0).done()
    assert s.kinds() == [Started, Final, Pressed, Final, EndOfTurn, Ended]
    assert_numbered(s.events)
    assert [e.leg for e in s.events] == [None, *["caller"] * 4, None]
    assert {e.call.id for e in s.events} == {"c-1"}
    assert {e.at for e in s.events} == {1_700_000_000.0}
    assert s.over == [s.call]
    ended = s.call.ended
    assert ended is not None and s.events[-1].body is ended
    assert (ended.reason, ended.legs["caller"].words) == ("hangup", 2)


def test_a_call_of_two_legs_ends_with_the_second() -> None:
    s = Subject()
    caller = s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    callee = s.call.add_leg("callee", s.recogniser, RULES, now=53.5)
    assert s.kinds() == [Started]
    caller.finish("eof")
    s.lease(0).done()
    assert s.call.ended is None
    s.say(1, "still here", 1.0)
    callee.finish("hangup")
    assert s.call.ended is None, "its last words may still come"
    s.lease(1).done()
    assert s.kinds() == [Started, Final, EndOfTurn, Ended]
    assert_numbered(s.events)
    final = s.events[1]
    assert final.leg == "callee" and isinstance(final.body, Final)
    assert final.body.words[0].start == 4.5, "on the call's clock"
    assert s.call.ended is not None
    assert s.call.ended.reason == "eof"
    assert set(s.call.ended.legs) == {"caller", "callee"}


def test_a_leg_that_drains_keeps_the_call() -> None:
    s = Subject()
    caller = s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    callee = s.call.add_leg("callee", s.recogniser, RULES, now=50.0)
    caller.finish("hangup")
    callee.finish("hangup")
    s.lease(1).done()
    assert s.call.ended is None
    s.lease(0).done()
    assert s.call.ended is not None and s.over == [s.call]


def test_the_seconds_of_a_call_reach_to_its_last_audio() -> None:
    s = Subject()
    caller = s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    callee = s.call.add_leg("callee", s.recogniser, RULES, now=52.0)
    caller.on_frame(Frame(np.zeros(20_000, np.int16), 8000, 0))
    callee.on_frame(Frame(np.zeros(8000, np.int16), 8000, 0))
    caller.finish("hangup"), callee.finish("hangup")
    s.lease(0).done(), s.lease(1).done()
    assert s.call.ended is not None
    assert s.call.ended.seconds == pytest.approx(3.0)
    assert [c.seconds for c in s.call.ended.legs.values()] == [2.5, 1.0]


def test_a_leg_is_there_once() -> None:
    s = Subject()
    s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    with pytest.raises(ValueError, match="^the call has had its caller leg$"):
        s.call.add_leg("caller", s.recogniser, RULES, now=51.0)
    s.call.end()
    with pytest.raises(ValueError, match="^the call has had its callee leg$"):
        s.call.add_leg("callee", s.recogniser, RULES, now=51.0)
    assert s.recogniser.used == 0


def test_busy_leaves_no_trace() -> None:
    s = Subject(slots=0)
    with pytest.raises(Busy):
        s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    assert (list(s.events), s.call.legs) == ([], {})


def test_a_leg_says_that_it_is_over_before_the_call_ends() -> None:
    s = Subject()
    seen: list[object] = []
    s.call.add_leg("caller", s.recogniser, RULES, now=50.0, over=lambda: seen.append(s.call.ended))
    s.lease(0).done()
    assert seen == [None]
    assert s.call.ended is not None and s.call.ended.reason == "engine"


def test_nothing_comes_after_the_end() -> None:
    s = Subject()
    leg = s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    s.lease(0).done()
    assert s.kinds() == [Started, Ended]
    leg.on_digit("1")
    s.say(0, "late", 1.0)
    leg.finish("hangup")
    s.lease(0).done()
    s.call.end()
    assert s.kinds() == [Started, Ended]
    assert (s.over, s.call.text()) == ([s.call], "")


def test_end_gives_slots_back_at_once() -> None:
    s = Subject()
    s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    leg = s.call.add_leg("callee", s.recogniser, RULES, now=50.0)
    s.say(1, "hello", 1.0)
    leg.finish("hangup")
    s.call.end()
    s.call.end()
    assert s.recogniser.used == 0
    assert s.kinds() == [Started, Final, Ended]
    assert_numbered(s.events)
    assert s.over == [s.call]


def test_the_text_is_in_order_of_time() -> None:
    s = Subject()
    s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    s.call.add_leg("callee", s.recogniser, RULES, now=51.0)
    s.say(0, "how are you", 3.0)
    s.say(1, "hello", 0.5)
    s.say(0, "hi", 0.5)
    assert s.call.text() == "caller: hi\ncallee: hello\ncaller: how are you\n"


def test_only_the_last_finals_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "MAX_FINALS", 3)
    s = Subject()
    s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    for i in range(5):
        s.say(0, f"w{i}", float(i))
    assert s.call.text() == "caller: w2\ncaller: w3\ncaller: w4\n"


def test_what_is_learnt_shows_in_the_events_that_follow() -> None:
    s = Subject()
    leg = s.call.add_leg("caller", s.recogniser, RULES, now=50.0)
    s.call.learn(CallInfo(id="other", ingress="x", uniqueid="1.2", extra={"queue": "sales"}))
    leg.on_digit("1")
    assert s.events[0].call.uniqueid == ""
    after = s.events[1].call
    assert (after.id, after.ingress, after.channel) == ("c-1", "audiosocket", "PJSIP/1")
    assert (after.uniqueid, after.extra) == ("1.2", {"queue": "sales"})
    assert s.call.id == "c-1"


def test_merged_keeps_what_was_known() -> None:
    old = CallInfo(id="a", channel="c", caller="1", extra={"x": "1", "y": "1"})
    new = CallInfo(id="b", callee="2", caller="3", extra={"y": "2"})
    assert merged(old, new) == CallInfo(
        id="a", channel="c", caller="3", callee="2", extra={"x": "1", "y": "2"}
    )


def test_a_refusal_is_the_only_event() -> None:
    event = refusal(CallInfo(id="x"), "busy", 5.0)
    assert event == CallEvent(CallInfo(id="x"), 0, 5.0, None, Refused("busy"))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), max_size=60))
def test_numbers_have_no_gaps_whatever_happens(acts: list[tuple[int, int]]) -> None:
    """Started first, Ended last and once, nothing after it."""
    s = Subject()
    legs = [s.call.add_leg(name, s.recogniser, RULES, now=50.0) for name in ("caller", "callee")]
    for n, (i, act) in enumerate(acts):
        lease = s.lease(i)
        match act:
            case 0:
                s.say(i, f"w{n}", n * 0.1)
            case 1:
                guess = Word(f"w{n}", n * 0.1, n * 0.1 + 0.1, 0.5)
                lease.heard(Heard(tentative=(guess,), at=n * 0.1))
            case 2:
                legs[i].on_digit("1")
            case 3:
                legs[i].finish("hangup")
            case 4:
                lease.done()
    s.call.end()
    assert_numbered(s.events)
    kinds = s.kinds()
    assert (kinds[0], kinds[-1]) == (Started, Ended)
    assert kinds.count(Started) == kinds.count(Ended) == 1
    assert set(kinds) <= {Started, Ended, Final, Partial, EndOfTurn, Pressed}
    assert len(s.over) == 1
