"""Which line belongs to which call, and who may have one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge import announced as announced_module
from bridge import joining
from bridge import line as line_module
from bridge.errors import Busy
from bridge.line import Line
from bridge.switchboard import Admission, Switchboard
from bridge.turns import TurnRules
from bridge.types import (
    Announcement,
    CallEvent,
    CallInfo,
    Ended,
    Final,
    Frame,
    Heard,
    LegCounts,
    LegName,
    Pressed,
    Refused,
    Started,
    Word,
)
from tests.fakes import Counts, Events, FakeLease, FakeRecogniser

U = [f"00000000-0000-4000-8000-{i:012d}" for i in range(40)]


class Engine(FakeRecogniser):
    """Slots that come back when a lease is done, as an engine's do."""

    rate = 8000
    block = 640

    @property
    def used(self) -> int:
        return len([lease for lease in self.leases if not lease.evicted])

    def end(self, lease: FakeLease) -> None:
        lease.evicted = True
        lease.done()


class Board:
    """A switchboard at 12:00:00 = 100.0 s, its events, and who was hung up."""

    def __init__(self, slots: int = 4, **rules: object) -> None:
        self.now = 100.0
        self.events = Events()
        self.counts = Counts()
        self.engine = Engine(slots)
        self.hung_up: list[str] = []
        self.board = Switchboard(
            self.engine,
            Admission(**rules),  # type: ignore[arg-type]
            TurnRules(),
            publish=self.events,
            count=self.counts,
            clock=lambda: self.now,
            wall=lambda: 1_700_000_000.0 + self.now,
        )

    def open(self, uuid: str) -> Line:
        def hang_up() -> None:
            self.hung_up.append(uuid)

        began = self.now
        return self.board.opened(uuid, "audiosocket", hang_up, lambda: began, self.now)

    def announce(self, uuid: str, call: str = "", leg: LegName = "caller", **info: str) -> float:
        told = Announcement(uuid, call, leg, CallInfo(id="", **info))  # type: ignore[arg-type]
        return self.board.announce(told, self.now)

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.board.expire(self.now)

    def close(self, line: Line, reason: str = "hangup") -> None:
        """The peer is gone, and the engine has said its last."""
        self.board.closed(line, reason)
        for lease in self.engine.leases:
            if lease.finished and not lease.evicted:
                self.engine.end(lease)

    def told(self) -> list[tuple[str, str]]:
        return [(event.call.id, type(event.body).__name__) for event in self.events]

    def refused(self) -> list[tuple[str, str]]:
        return [(e.call.id, e.body.reason) for e in self.events if isinstance(e.body, Refused)]

    def counted(self, name: str) -> list[tuple[object, ...]]:
        return [entry[1:] for entry in self.counts.seen if entry[0] == name]


def frame(start: int, n: int = 160, rate: int = 8000) -> Frame:
    return Frame(np.full(n, 8192, np.int16), rate, start)


def announced(**rules: object) -> Board:
    return Board(**{"mode": "announced", "join_wait": 2.0, **rules})  # type: ignore[arg-type]


# -- what the transport knows -------------------------------------------------------------------


def lossy(lost: int) -> Callable[[LegCounts], LegCounts]:
    return lambda counts: replace(counts, packets_lost=lost, jitter=0.5)


def test_what_a_transport_lost_is_counted_with_its_leg_and_in_the_end() -> None:
    b = Board(keep_ended=1)
    lines = []
    for n, leg in enumerate(("caller", "callee")):
        b.announce(U[n], call="c-1", leg=leg)  # type: ignore[arg-type]
        lines.append(b.board.opened(U[n], "rtp", lambda: None, lambda: 0.0, b.now, lossy(10 + n)))
        lines[n].audio(frame(0))
    call = b.board.calls["c-1"]
    counts = b.board.counts(call)
    assert [(name, c.frames, c.packets_lost) for name, c in counts.items()] == [
        ("caller", 1, 10), ("callee", 1, 11),
    ]  # fmt: skip
    for line in lines:
        b.close(line)
    (ended,) = b.events.bodies(Ended)
    assert isinstance(ended, Ended)
    assert ended.legs == b.board.counts(call)
    assert {name: c.packets_lost for name, c in ended.legs.items()} == {"caller": 10, "callee": 11}
    # A call by AudioSocket, which loses nothing; the one before is forgotten.
    b.close(b.open(U[5]))
    assert b.board.ended.keys() == b.board._counted.keys() == {U[5]}
    assert b.board.counts(b.board.ended[U[5]])["caller"].packets_lost == 0


def test_a_uuid_is_taken_while_it_has_a_line_and_an_announcement_can_be_taken_back() -> None:
    b = announced()
    assert not b.board.taken(U[1])
    waiting = b.open(U[1])
    assert b.board.taken(U[1])
    b.announce(U[1])
    assert b.board.taken(U[1])
    b.close(waiting)
    assert not b.board.taken(U[1])
    b.announce(U[2])
    b.board.announced.forget(U[2])
    b.board.announced.forget(U[2])
    assert U[2] not in b.board.announced
    b.open(U[2])
    b.later(3.0)
    assert b.hung_up == [U[2]]


# -- open mode --------------------------------------------------------------------------------


def test_open_without_anybody_to_ask_is_a_call_at_once() -> None:
    b = Board()
    line = b.open(U[1])
    assert b.told() == [(U[1], "Started")]
    assert (b.events[0].call.ingress, b.board.lines, b.board.waiting) == ("audiosocket", 1, 0)
    line.audio(frame(0))
    b.close(line)
    assert b.told() == [(U[1], "Started"), (U[1], "Ended")]
    assert (b.board.calls, b.board.lines, b.engine.used, b.hung_up) == ({}, 0, 0, [])
    assert b.counted("call_started") == [("audiosocket",)]
    assert b.counted("call_ended") == [("hangup", 0.02)]
    assert (b.board.total_ended, b.board.totals["frames"]) == (1, 1)
    assert b.board.find(U[1]) is b.board.ended[U[1]]


def test_an_announcement_before_the_socket_says_what_the_call_is() -> None:
    b = Board(join_wait=2.0)
    assert b.announce(U[1], call="c-7", channel="PJSIP/1", caller="100") == 30.0
    assert U[1] in b.board.announced
    b.open(U[1])
    assert U[1] not in b.board.announced
    info = b.events[0].call
    assert (info.id, info.channel, info.caller) == ("c-7", "PJSIP/1", "100")
    assert info.ingress == "audiosocket"


def test_an_announcement_after_the_socket_ends_the_wait() -> None:
    b = Board(join_wait=2.0)
    b.open(U[1])
    assert (b.told(), b.board.waiting) == ([], 1)
    b.later(1.0)
    b.announce(U[1], call="c-7")
    assert (b.told(), b.board.waiting) == ([("c-7", "Started")], 0)


def test_in_open_mode_a_wait_that_is_over_is_a_call() -> None:
    b = Board(join_wait=2.0)
    b.open(U[1])
    b.later(1.9)
    assert b.told() == []
    b.later(0.1)
    assert (b.told(), b.board.waiting) == ([(U[1], "Started")], 0)


def test_in_open_mode_what_was_said_by_one_who_did_not_wait_is_heard() -> None:
    b = Board(join_wait=2.0)
    line = b.open(U[1])
    line.audio(frame(0, 640))
    b.close(line)
    assert len(b.engine.leases[0].blocks) == 1
    assert b.told() == [(U[1], "Started"), (U[1], "Ended")]


# -- announced mode -----------------------------------------------------------------------------


def test_a_uuid_that_nobody_announced_is_hung_up_without_an_event_or_a_slot() -> None:
    b = announced()
    line = b.open(U[1])
    line.audio(frame(0, 640))
    b.later(2.0)
    assert (b.hung_up, list(b.events), b.engine.leases, b.board.waiting) == ([U[1]], [], [], 0)
    assert b.counted("call_refused") == [("unannounced",)]
    b.close(line)
    assert list(b.events) == []


def test_without_a_wait_a_guess_is_refused_at_once() -> None:
    b = announced(join_wait=0.0)
    for uuid in U[:20]:
        b.open(uuid)
    assert (b.hung_up, list(b.events), b.engine.leases) == (U[:20], [], [])


def test_a_guess_that_hangs_up_itself_is_nothing() -> None:
    b = announced()
    b.close(b.open(U[1]))
    assert (list(b.events), b.board.waiting, b.engine.leases) == ([], 0, [])


def test_an_announcement_opens_one_line() -> None:
    b = announced(join_wait=0.0)
    b.announce(U[1])
    b.close(b.open(U[1]))
    assert len(b.board.ended) == 1
    b.open(U[1])
    assert b.hung_up == [U[1]]
    assert len(b.events) == 2


def test_an_announcement_expires() -> None:
    b = announced(join_wait=0.0)
    b.announce(U[1])
    b.later(15.0)
    b.announce(U[2])
    b.later(15.0)
    assert (U[1] in b.board.announced, U[2] in b.board.announced) == (False, True)
    assert b.counted("dropped") == [("announcements", "expired")]
    b.open(U[1])
    assert b.hung_up == [U[1]]


def test_announcing_again_keeps_it_for_longer() -> None:
    b = announced()
    b.announce(U[1])
    b.later(20.0)
    b.announce(U[2]), b.announce(U[1])
    b.later(29.0)
    assert U[1] in b.board.announced and U[2] in b.board.announced
    b.later(1.0)
    assert U[1] not in b.board.announced and U[2] not in b.board.announced


def test_announcements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announced_module, "MAX_ANNOUNCED", 3)
    b = announced()
    for uuid in U[:5]:
        b.announce(uuid)
    assert [uuid in b.board.announced for uuid in U[:5]] == [False, False, True, True, True]
    assert b.counted("dropped") == [("announcements", "full")] * 2


@pytest.mark.parametrize(
    "garbage", ["", "x", U[1].upper().replace("0", "A"), U[1][:-1], U[1] + "\n", f"{{{U[1]}}}"]
)
def test_garbage_is_no_announcement(garbage: str) -> None:
    b = announced()
    with pytest.raises(ValueError, match="^a UUID has the form 123e4567-e89b"):
        b.announce(garbage)
    assert garbage not in b.board.announced


def test_two_announcements_of_one_uuid_know_more_than_one() -> None:
    """A VarSet and a UserEvent, say, in either order."""
    b = announced()
    b.announce(U[1], call="c-7", leg="callee", caller="100")
    b.announce(U[1], channel="PJSIP/1")
    b.open(U[1])
    started = b.events[0].call
    assert (started.id, started.caller, started.channel) == ("c-7", "100", "PJSIP/1")
    assert set(b.board.calls["c-7"].legs) == {"callee"}


# -- two legs -----------------------------------------------------------------------------------


def two_legs(b: Board) -> tuple[Line, Line]:
    b.announce(U[1], call="c-7", channel="PJSIP/1")
    b.announce(U[2], call="c-7", leg="callee", channel="PJSIP/2", uniqueid="9.2")
    return b.open(U[1]), b.open(U[2])


def test_two_uuids_of_one_call_are_its_legs() -> None:
    b = announced()
    caller, callee = two_legs(b)
    assert (b.told(), b.board.lines) == ([("c-7", "Started")], 2)
    b.engine.leases[1].heard(Heard((Word("hi", 0.0, 0.1, 1.0),), pause=1.0, at=0.2))
    b.close(caller)
    assert b.told()[1:] == [("c-7", "Final")]
    assert b.events[1].leg == "callee"
    b.close(callee)
    assert b.told()[-1] == ("c-7", "Ended")
    assert b.board.lines == b.engine.used == 0


def test_a_second_leg_adds_its_channel_and_changes_nothing() -> None:
    b = announced()
    two_legs(b)
    info = b.board.calls["c-7"].info
    assert (info.channel, info.uniqueid) == ("PJSIP/1", "")
    assert info.extra == {"callee_channel": "PJSIP/2", "callee_uniqueid": "9.2"}


def test_a_callee_who_is_heard_first_gives_way_to_the_callers_channel() -> None:
    """Variables are set on the call's channel: the one whose dialplan goes on is the caller's."""
    b = announced()
    b.announce(U[2], call="c-7", leg="callee", channel="PJSIP/2", uniqueid="9.2")
    b.open(U[2])
    assert b.board.calls["c-7"].info.channel == "PJSIP/2"
    b.announce(U[1], call="c-7", leg="caller", channel="PJSIP/1", uniqueid="9.1")
    b.open(U[1])
    info = b.board.calls["c-7"].info
    assert (info.channel, info.uniqueid) == ("PJSIP/1", "9.1")
    assert info.extra == {"callee_channel": "PJSIP/2", "callee_uniqueid": "9.2"}
    b.announce(U[2], call="c-7", leg="callee", channel="PJSIP/2", uniqueid="9.2")
    assert b.board.calls["c-7"].info == info, "told again, late: nothing new"


def test_a_late_announcement_only_adds() -> None:
    b = Board()
    b.open(U[1])
    assert b.announce(U[1], call="another", channel="PJSIP/1") == 0.0
    assert set(b.board.calls) == {U[1]}
    assert b.board.calls[U[1]].info.channel == "PJSIP/1"
    assert U[1] not in b.board.announced


def test_a_late_announcement_of_the_second_leg_is_about_the_second_leg() -> None:
    b = announced()
    two_legs(b)
    b.announce(U[2], channel="PJSIP/2", uniqueid="9.3")
    b.announce(U[1], uniqueid="9.1")
    info = b.board.calls["c-7"].info
    assert (info.channel, info.uniqueid) == ("PJSIP/1", "9.1")
    assert info.extra["callee_uniqueid"] == "9.3"


def test_a_second_leg_that_waited_longer_than_the_first() -> None:
    b = announced()
    line = b.open(U[2])
    line.audio(frame(0, 640))
    b.now += 1.0
    b.announce(U[1], call="c-7")
    b.open(U[1])
    b.announce(U[2], call="c-7", leg="callee")
    line.digit("1")
    (pressed,) = b.events.bodies(Pressed)
    assert isinstance(pressed, Pressed) and pressed.at == 0.0


def test_a_leg_that_comes_when_its_call_is_over_is_a_call_of_its_own() -> None:
    b = announced()
    b.announce(U[1], call="c-7")
    b.close(b.open(U[1]))
    b.announce(U[2], call="c-7", leg="callee")
    b.open(U[2])
    assert b.told()[2:] == [(U[2], "Started")]
    assert b.events[2].call.extra == {"call": "c-7"}


def test_a_second_line_for_a_leg_that_is_taken_is_a_call_of_its_own() -> None:
    b = announced()
    b.announce(U[1], call="c-7"), b.announce(U[2], call="c-7")
    b.open(U[1]), b.open(U[2])
    assert b.told() == [("c-7", "Started"), (U[2], "Started")]
    assert b.events[1].seq == 0


# -- what waits is kept ---------------------------------------------------------------------------


def test_what_was_said_while_waiting_is_heard_in_order() -> None:
    b = Board(join_wait=2.0)
    line = b.open(U[1])
    line.audio(frame(0, 640))
    line.digit("7")
    line.audio(frame(640, 640))
    b.announce(U[1])
    lease = b.engine.leases[0]
    assert [float(block[0]) for block in lease.blocks] == [0.25, 0.25]
    assert b.events.bodies(Pressed) == [Pressed("7", 0.08)]
    line.audio(frame(1280, 640))
    assert len(lease.blocks) == 3


def test_what_is_kept_is_bounded_in_seconds_and_times_stay_true() -> None:
    b = Board(join_wait=10.0)
    line = b.open(U[1])
    lost = sum(line.audio(frame(160 * i)) for i in range(1000))  # 20 s
    assert lost == 1000 - 12 * 50 - 1
    b.announce(U[1])
    call = b.board.calls[U[1]]
    assert call.legs["caller"].counts().seconds == 20.0
    assert call.legs["caller"].counts().silence_inserted == pytest.approx(lost * 0.02)


def test_what_is_kept_is_bounded_in_pieces() -> None:
    """Frames of nothing, and digits, cost memory too."""
    b = Board(join_wait=10.0)
    line = b.open(U[1])
    for _ in range(line_module.MAX_PIECES + 5):
        line.digit("1")
    lost = sum(line.audio(frame(0, 0)) for _ in range(line_module.MAX_PIECES + 7))
    assert (lost, line.lost) == (7, line_module.MAX_PIECES + 5)
    b.announce(U[1])
    assert b.counted("dropped") == [("events", "waiting", line_module.MAX_PIECES + 5)]
    assert b.events.bodies(Pressed) == []


def test_seconds_are_seconds_at_any_rate() -> None:
    b = Board(join_wait=10.0)
    line = b.open(U[1])
    assert line.audio(frame(192_000, 3840, rate=192_000)) == 0
    assert line.audio(frame(8000 * 12, 160)) == 0
    assert line.audio(frame(8000 * 14, 160)) == 1


# -- refusals ---------------------------------------------------------------------------------


def test_a_call_too_many_is_refused_at_once_with_the_reason() -> None:
    """Told in the same breath, and hung up."""
    b = Board(slots=1)
    b.open(U[1])
    b.open(U[2])
    assert b.told() == [(U[1], "Started"), (U[2], "Refused")]
    refused = b.events[1]
    assert (refused.body, refused.seq, refused.leg) == (Refused("busy"), 0, None)
    assert refused.call.ingress == "audiosocket"
    assert (b.hung_up, b.engine.used, set(b.board.calls)) == ([U[2]], 1, {U[1]})
    assert b.counted("call_refused") == [("busy",)]


def test_the_engines_own_reason_is_told() -> None:
    b = Board()

    def lease(*_: object) -> FakeLease:
        raise Busy("not ready", "the engine is not ready")

    b.engine.lease = lease  # type: ignore[method-assign]
    b.open(U[1])
    assert b.refused() == [(U[1], "not ready")]


def test_the_limit_of_calls_counts_calls_and_not_legs() -> None:
    b = announced(max_calls=1)
    two_legs(b)
    b.announce(U[3])
    b.open(U[3])
    assert b.refused() == [(U[3], "limit")]
    assert b.hung_up == [U[3]]


def test_draining_takes_nobody() -> None:
    b = Board(join_wait=2.0)
    waiting = b.open(U[1])
    b.announce(U[2])
    b.board.draining = True
    b.open(U[2])
    b.later(2.0)
    assert b.refused() == [(U[2], "draining"), (U[1], "draining")]
    assert waiting.closed == "draining"
    with pytest.raises(Busy, match="^the bridge is shutting down$") as e:
        b.announce(U[3])
    assert e.value.reason == "draining"


def test_a_duplicate_does_not_touch_the_call_that_is_there() -> None:
    """Its id is that call's: an event of the duplicate would be taken for one of the call's."""
    b = Board()
    line = b.open(U[1])
    line.digit("1")
    copy = b.open(U[1])
    copy.audio(frame(0, 640))
    b.close(copy, "eof")
    line.digit("2")
    assert [e.seq for e in b.events] == [0, 1, 2]
    assert (b.hung_up, b.board.lines) == ([U[1]], 1)
    assert b.counted("call_refused") == [("duplicate",)]
    assert b.engine.leases[0].blocks == []


def test_a_duplicate_of_one_who_waits() -> None:
    b = Board(join_wait=2.0)
    line = b.open(U[1])
    b.close(b.open(U[1]))
    assert (b.hung_up, b.board.waiting) == ([U[1]], 1)
    b.announce(U[1])
    assert line.leg is not None


def test_a_second_leg_that_is_refused_does_not_end_its_call_for_anybody() -> None:
    b = Board(mode="announced", slots=1)
    caller, _ = two_legs(b)
    assert b.refused() == [(U[2], "busy")]
    assert b.events[1].call.extra["call"] == "c-7"
    assert b.events[1].call.channel == "PJSIP/2"
    b.close(caller)
    assert [(e.call.id, e.seq) for e in b.events if e.call.id == "c-7"] == [("c-7", 0), ("c-7", 1)]


def test_no_id_has_two_events_of_one_number() -> None:
    """A UUID that comes again, refused or taken, is another call to whoever reads events."""
    b = Board(slots=1, keep_ended=0)
    first = b.open(U[1])
    for _ in range(3):
        b.close(b.open(U[2]))
    b.close(first)
    b.close(b.open(U[2]))
    b.close(b.open(U[1]))
    numbers = [(e.call.id, e.seq) for e in b.events]
    assert len(set(numbers)) == len(numbers)
    assert b.refused() == [(U[2], "busy"), (f"{U[2]}-2", "busy"), (f"{U[2]}-3", "busy")]
    assert b.told()[-4:] == [
        (f"{U[2]}-4", "Started"), (f"{U[2]}-4", "Ended"),
        (f"{U[1]}-2", "Started"), (f"{U[1]}-2", "Ended"),
    ]  # fmt: skip
    assert b.events[-1].call.extra == {"call": U[1]}


def test_ids_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MAX_IDS", 3)
    b = Board(slots=0)
    for uuid in [*U[:5], U[0], U[4]]:
        b.open(uuid)
    assert [i for i, _ in b.refused()] == [*U[:5], U[0], f"{U[4]}-2"]


def test_only_the_last_ended_calls_are_kept() -> None:
    b = Board(keep_ended=2)
    for uuid in U[:4]:
        b.close(b.open(uuid))
    assert list(b.board.ended) == U[2:4]
    assert (b.board.find(U[0]), b.board.total_ended) == (None, 4)


# -- ends that are not the peer's ------------------------------------------------------------------


def test_hang_up_ends_every_line_of_the_call() -> None:
    b = announced(slots=4)
    two_legs(b)
    b.announce(U[3])
    b.open(U[3])
    assert b.board.hang_up("c-7")
    assert (b.hung_up, b.board.lines) == ([U[1], U[2]], 1)
    assert [lease.finished for lease in b.engine.leases] == [True, True, False]
    b.engine.leases[0].heard(Heard((Word("bye", 0.0, 0.1, 1.0),), at=0.2))
    b.engine.end(b.engine.leases[0])
    b.engine.end(b.engine.leases[1])
    (ended,) = b.events.bodies(Ended)
    assert isinstance(ended, Ended) and ended.reason == "bridge"
    assert len(b.events.bodies(Final)) == 1, "the last words are heard"
    assert not b.board.hang_up("c-7")


def test_a_call_that_is_too_long_is_hung_up() -> None:
    b = Board(max_seconds=60.0)
    b.open(U[1])
    b.later(30.0)
    b.open(U[2])
    b.later(30.0)
    assert b.hung_up == []
    b.later(0.1)
    assert b.hung_up == [U[1]]


def test_a_leg_that_the_engine_gives_up_is_hung_up() -> None:
    """Or its peer would talk to nobody, on a line that no call knows."""
    b = announced()
    caller, callee = two_legs(b)
    b.engine.end(b.engine.leases[0])
    assert (b.hung_up, b.board.lines) == ([U[1]], 1)
    assert "c-7" in b.board.calls, "the other leg goes on"
    caller.digit("1")
    caller.audio(frame(0))
    b.close(caller)
    b.close(callee)
    assert b.hung_up == [U[1]]
    assert b.told() == [("c-7", "Started"), ("c-7", "Ended")]
    assert (b.board.lines, b.board.calls) == (0, {})


def test_closing_twice_is_closing_once() -> None:
    b = Board()
    line = b.open(U[1])
    b.close(line)
    again = b.open(U[1])
    b.close(line, "eof")
    assert b.board.lines == 1, "a line of the same UUID that came later stays"
    assert again.closed == ""


def test_latency_is_measured_from_the_lines_first_sample() -> None:
    b = Board()
    b.open(U[1])
    b.now += 1.5
    b.engine.leases[0].heard(Heard((Word("hi", 0.8, 1.0, 1.0),), pause=1.0, at=1.2))
    assert b.counted("word_latency") == [("final", 0.5)]


# -- everything at once ---------------------------------------------------------------------------


class Everything(RuleBasedStateMachine):
    """Random peers, call control and engine: whatever happens, the books balance."""

    mode = "open"

    def __init__(self) -> None:
        super().__init__()
        self.b = Board(
            slots=3, mode=self.mode, join_wait=2.0, max_calls=4, max_seconds=30.0, keep_ended=2
        )
        self.open: list[Line] = []
        self.spoken = 0

    def some(self, i: int) -> Line:
        return self.open[i % len(self.open)]

    @rule(i=st.integers(0, 5))
    def peer_opens(self, i: int) -> None:
        line = self.b.open(U[i])
        if line.closed:
            assert self.b.hung_up[-1] == U[i]
        else:
            self.open.append(line)

    @rule(i=st.integers(0, 5), call=st.sampled_from(["", "a", "b"]),
          leg=st.sampled_from(["caller", "callee"]))  # fmt: skip
    def control_announces(self, i: int, call: str, leg: LegName) -> None:
        if self.b.board.draining:
            with pytest.raises(Busy):
                self.b.announce(U[i], call, leg)
        else:
            self.b.announce(U[i], call, leg)
            self.forget_hung_up()

    @precondition(lambda self: self.open)
    @rule(i=st.integers(0, 50), n=st.integers(0, 400), gap=st.integers(0, 200))
    def peer_speaks(self, i: int, n: int, gap: int) -> None:
        self.spoken += gap + n
        self.some(i).audio(frame(self.spoken - n, n))

    @precondition(lambda self: self.open)
    @rule(i=st.integers(0, 50))
    def peer_presses(self, i: int) -> None:
        self.some(i).digit("1")

    @precondition(lambda self: self.open)
    @rule(i=st.integers(0, 50), reason=st.sampled_from(["hangup", "eof"]))
    def peer_goes(self, i: int, reason: str) -> None:
        line = self.open.pop(i % len(self.open))
        self.b.board.closed(line, reason)

    def held(self) -> list[FakeLease]:
        return [lease for lease in self.b.engine.leases if not lease.evicted]

    @precondition(lambda self: self.held())
    @rule(i=st.integers(0, 50), pause=st.sampled_from([0.0, 1.0]))
    def engine_hears(self, i: int, pause: float) -> None:
        lease = self.held()[i % len(self.held())]
        at = len(lease.blocks) * 0.08
        lease.heard(Heard((Word("w", at, at + 0.08, 1.0),), pause=pause, at=at + 0.08))

    @rule()
    def engine_says_its_last(self) -> None:
        for lease in self.held():
            if lease.finished:
                self.b.engine.end(lease)

    @precondition(lambda self: self.held())
    @rule(i=st.integers(0, 50))
    def engine_gives_up(self, i: int) -> None:
        self.b.engine.end(self.held()[i % len(self.held())])
        self.forget_hung_up()

    @rule(seconds=st.sampled_from([0.05, 1.0, 2.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.b.later(seconds)
        self.forget_hung_up()

    @precondition(lambda self: self.b.board.calls)
    @rule(i=st.integers(0, 50))
    def control_hangs_up(self, i: int) -> None:
        calls = list(self.b.board.calls)
        assert self.b.board.hang_up(calls[i % len(calls)])
        self.forget_hung_up()

    @rule()
    def bridge_drains(self) -> None:
        self.b.board.draining = True

    def forget_hung_up(self) -> None:
        """The transport tells nothing more of a connection that we hung up."""
        self.open = [line for line in self.open if not line.closed]

    @invariant()
    def books_balance(self) -> None:
        by_call: dict[str, list[CallEvent]] = {}
        for event in self.b.events:
            by_call.setdefault(event.call.id, []).append(event)
        board = self.b.board
        for call_id, events in by_call.items():
            assert [e.seq for e in events] == list(range(len(events)))
            kinds = [type(e.body) for e in events]
            if kinds[0] is Refused:
                assert len(kinds) == 1
                continue
            assert kinds[0] is Started and kinds.count(Started) == 1
            assert Refused not in kinds
            assert kinds.count(Ended) == (call_id not in board.calls)
            assert Ended not in kinds[:-1]
        assert board.lines + board.waiting == len(self.open)
        assert board.lines <= self.b.engine.used <= 3
        assert len(board.calls) <= 4
        assert len(board.ended) <= 2

    def teardown(self) -> None:
        for line in list(self.open):
            self.b.board.closed(line, "eof")
        self.open = []
        self.engine_says_its_last()
        self.books_balance()
        board = self.b.board
        assert (board.calls, board.lines, board.waiting, self.b.engine.used) == ({}, 0, 0, 0)
        kinds = Counter(entry[0] for entry in self.b.counts.seen)
        assert kinds["call_started"] == kinds["call_ended"] == board.total_ended


class EverythingAnnounced(Everything):
    """The same where nobody gets in uninvited."""

    mode = "announced"


quick = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOpen = Everything.TestCase
TestOpen.settings = quick
TestAnnounced = EverythingAnnounced.TestCase
TestAnnounced.settings = quick
