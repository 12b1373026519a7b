"""One turn, and then the dialplan goes on: what is told, and when the line ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from bridge.line import Line
from bridge.listening import DRAIN, LATE
from bridge.switchboard import Admission, Switchboard
from bridge.turns import TurnRules
from bridge.types import (
    Announcement,
    CallInfo,
    Ended,
    EndOfTurn,
    Final,
    Frame,
    Heard,
    Listen,
    Listened,
    Refused,
    Word,
)
from tests.fakes import Counts, Events, FakeLease, FakeRecogniser

UUID = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"


class Engine(FakeRecogniser):
    rate, block = 8000, 640

    def language(self, text: str) -> str:
        return "en" if "yes" in text else ""


@dataclass
class Board:
    """A switchboard whose lines that are to end wait for `let_go`."""

    slots: int = 4
    now: float = 100.0
    events: Events = field(default_factory=Events)
    hung_up: list[str] = field(default_factory=list)
    parting: list[tuple[CallInfo, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Engine(self.slots)
        self.board = Switchboard(
            self.engine,
            Admission(join_wait=2.0),
            TurnRules(),
            publish=self.events,
            count=Counts(),
            clock=lambda: self.now,
            wall=lambda: self.now,
            part=lambda call, hang_up: self.parting.append((call, hang_up)),
        )

    def open(self, uuid: str = UUID) -> Line:
        began = self.now
        return self.board.opened(
            uuid, "audiosocket", lambda: self.hung_up.append(uuid), lambda: began, self.now
        )

    def announce(self, seconds: float = 10.0, begin: float = 4.0, uuid: str = UUID) -> None:
        told = Announcement(uuid, info=CallInfo("", channel="C/1"), listen=Listen(seconds, begin))
        self.board.announce(told, self.now)

    def listen(self, seconds: float = 10.0, begin: float = 4.0) -> Line:
        self.announce(seconds, begin)
        line = self.open()
        line.audio(Frame(np.zeros(640, np.int16), 8000, 0))
        return line

    @property
    def lease(self) -> FakeLease:
        return self.engine.leases[-1]

    def says(self, *words: str, pause: float = 0.0, at: float = 1.0) -> None:
        found = tuple(Word(word, at, at + 0.2, 0.8) for word in words)
        self.lease.heard(Heard(found, pause=pause, at=at + (0.9 if pause else 0.2)))

    def done(self) -> None:
        self.lease.evicted = True
        self.lease.done()

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.board.expire(self.now)

    def results(self) -> list[object]:
        return self.events.bodies(Listened)

    def kinds(self) -> list[type]:
        return [type(event.body) for event in self.events]

    def let_go(self) -> None:
        for _, hang_up in self.parting:
            hang_up()


def test_a_turn_is_the_result_and_the_line_ends_after_it_was_told() -> None:
    b = Board()
    b.listen()
    b.says("oh", "yes", pause=1.0)
    assert b.results() == [Listened("heard", "oh yes", pytest.approx(0.8), "en")]
    assert b.kinds()[-3:] == [Final, EndOfTurn, Listened]
    assert (b.hung_up, [call.channel for call, _ in b.parting]) == ([], ["C/1"])
    assert b.lease.finished  # nothing more is heard meanwhile
    b.let_go()
    assert b.hung_up == [UUID]


def test_what_is_said_after_the_turn_changes_nothing() -> None:
    b = Board()
    b.listen()
    b.says("yes", pause=1.0)
    b.says("no", at=2.5)
    b.done()
    b.later(20.0)
    assert [r.text for r in b.results() if isinstance(r, Listened)] == ["yes"]
    (ended,) = b.events.bodies(Ended)
    assert isinstance(ended, Ended) and ended.reason == "heard"
    assert (len(b.parting), len(b.board.listening)) == (1, 0)


def test_a_turn_of_several_finals_is_told_whole() -> None:
    b = Board()
    b.listen()
    b.lease.heard(Heard((Word("one", 0.0, 0.2, 1.0), Word("two", 15.1, 15.2, 0.5)), at=15.2))
    b.says("yes", at=16.0, pause=1.0)
    assert b.results() == [Listened("heard", "one two yes", pytest.approx(2.3 / 3), "en")]


def test_time_that_is_over_cuts_the_speaker_and_waits_for_the_engines_last_words() -> None:
    b = Board()
    b.listen(seconds=3.0)
    b.says("well", at=1.0)
    b.later(3.0)
    assert b.lease.finished and not b.results()
    b.says("yes", at=2.8)
    b.done()
    (result,) = b.results()
    assert isinstance(result, Listened)
    assert (result.status, result.text) == ("timeout", "well yes")
    assert b.kinds()[-2:] == [Listened, Ended]
    assert len(b.parting) == 1


def test_an_engine_that_never_says_its_last_holds_nobody_up() -> None:
    b = Board()
    b.listen(seconds=3.0)
    b.later(3.0)
    b.later(DRAIN - 0.1)
    assert not b.results()
    b.later(0.1)
    assert b.results() == [Listened("silence")]
    assert len(b.parting) == 1


def test_silence_is_known_when_the_engine_has_listened_to_it() -> None:
    b = Board()
    b.listen(begin=4.0)
    b.lease.heard(Heard(at=3.9, settled=3.4))
    b.later(4.1)
    assert not b.lease.finished  # a word may be on its way
    b.lease.heard(Heard(at=4.5, settled=4.0))
    b.later(0.1)
    assert b.lease.finished
    b.done()
    assert b.results() == [Listened("silence")]


def test_an_engine_that_is_behind_does_not_make_silence_longer_for_ever() -> None:
    b = Board()
    b.listen(begin=4.0)
    b.later(4.0 + LATE - 0.1)
    assert not b.lease.finished
    b.later(0.1)
    assert b.lease.finished


def test_who_has_begun_in_time_may_go_on() -> None:
    b = Board()
    b.listen(begin=4.0)
    b.lease.heard(Heard(tentative=(Word("ye", 3.5, 3.9, 0.5),), at=4.0))
    b.later(9.0)
    assert not b.lease.finished


@pytest.mark.parametrize("reason", ["hangup", "eof", "reset"])
def test_who_hangs_up_is_told_so_and_nobody_is_hung_up_on(reason: str) -> None:
    b = Board()
    line = b.listen()
    b.says("yes", at=1.0)
    b.board.closed(line, reason)
    b.done()
    (result,) = b.results()
    assert isinstance(result, Listened)
    assert (result.status, result.text, b.parting) == ("hangup", "yes", [])


def test_call_control_ends_it() -> None:
    b = Board()
    b.listen()
    assert b.board.hang_up(UUID)
    b.done()
    assert b.results() == [Listened("ended")]


def test_an_engine_that_gives_the_leg_up() -> None:
    b = Board()
    b.listen()
    b.done()
    assert b.results() == [Listened("unavailable")]
    assert b.kinds()[-1] is Ended


def test_it_can_be_known_after_the_socket_and_after_the_wait() -> None:
    for wait in (1.0, 3.0):
        b = Board()
        b.open()
        b.later(wait)
        b.announce()
        b.says("yes", pause=1.0)
        assert [r.status for r in b.results() if isinstance(r, Listened)] == ["heard"], wait
        assert b.events[-1].call.listening and b.parting[0][0].listening


def test_one_leg_of_two_is_listened_to() -> None:
    b = Board()
    b.board.announce(Announcement(UUID, "c-1", "caller", listen=Listen(9.0, 9.0)), b.now)
    b.board.announce(Announcement(OTHER, "c-1", "callee"), b.now)
    b.open(), b.open(OTHER)
    b.says("not", "mine", pause=1.0)  # the callee
    assert b.results() == []
    b.engine.leases[0].heard(Heard((Word("yes", 1.0, 1.2, 1.0),), pause=1.0, at=2.0))
    assert len(b.results()) == 1
    b.let_go()
    assert b.hung_up == [UUID]


def test_a_refusal_is_told_before_the_line_ends() -> None:
    b = Board(slots=0)
    b.announce()
    b.open()
    (event,) = b.events
    assert (event.body, event.call.listening) == (Refused("busy"), True)
    assert b.hung_up == []
    b.let_go()
    assert b.hung_up == [UUID]


def test_a_sink_that_fails_does_not_hold_the_dialplan_up() -> None:
    b = Board()
    b.listen()

    def fail(event: object) -> None:
        if isinstance(getattr(event, "body", None), Listened):
            raise RuntimeError

    b.board._publish = fail
    with pytest.raises(RuntimeError):
        b.says("yes", pause=1.0)
    assert len(b.parting) == 1


async def test_announced_again_what_was_heard_stays() -> None:
    b = Board()
    b.listen()
    words = Word("one", 0.0, 0.2, 1.0), Word("two", 15.1, 15.2, 0.5)
    b.lease.heard(Heard(words, at=15.2))
    b.announce(10.0, 4.0)
    b.says("yes", at=16.0, pause=1.0)
    assert [result.text for result in b.results()] == ["one two yes"]


async def test_a_leg_that_joins_later_has_a_clock_of_its_own() -> None:
    b = Board()
    b.board.announce(Announcement(UUID, "c-1", "caller"), b.now)
    b.open()
    b.later(60.0)
    b.board.announce(Announcement(OTHER, "c-1", "callee", listen=Listen(20.0, 4.0)), b.now)
    line = b.open(OTHER)
    line.audio(Frame(np.zeros(640, np.int16), 8000, 0))
    b.lease.heard(Heard(at=3.9, settled=3.4))
    b.later(4.1)
    assert not b.lease.finished
