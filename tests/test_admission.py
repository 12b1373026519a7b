"""Who gets a slot: reservations, limits, and slots kept for some. Time is virtual."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge import announced
from bridge.admission import Admission, Gate, Limit, trunk_of
from bridge.errors import Busy
from bridge.line import Line
from bridge.switchboard import Switchboard
from bridge.turns import TurnRules
from bridge.types import Announcement, CallInfo, LegName, Refused
from tests.fakes import Counts, Events, FakeLease, FakeRecogniser

U = [f"00000000-0000-4000-8000-{i:012d}" for i in range(60)]
TTL = 30.0


class Engine(FakeRecogniser):
    rate, block = 8000, 640

    @property
    def used(self) -> int:
        return len([lease for lease in self.leases if not lease.evicted])

    def end(self, lease: FakeLease) -> None:
        lease.evicted = True
        lease.done()


@dataclass
class Board:
    """A switchboard at 100.0 s with an engine of some slots."""

    slots: int = 2
    limits: tuple[Limit, ...] = ()
    max_calls: int = 2000
    objection: Busy | None = None
    now: float = 100.0
    events: Events = field(default_factory=Events)

    def __post_init__(self) -> None:
        self.engine = Engine(self.slots)
        self.counts = Counts()
        self.board = Switchboard(
            self.engine,
            Admission(limits=self.limits, max_calls=self.max_calls, announce_ttl=TTL),
            TurnRules(),
            publish=self.events,
            count=self.counts,
            clock=lambda: self.now,
            wall=lambda: self.now,
            objection=lambda: self.objection,
        )

    def reserve(
        self, n: int, call: str = "", leg: LegName = "caller", channel: str = "", **extra: str
    ) -> None:
        info = CallInfo("", channel=channel, extra=extra)
        self.board.announce(Announcement(U[n], call, leg, info), self.now, reserve=True)

    def refused(self, n: int, **about: str) -> str:
        """Why there is no reservation for it."""
        with pytest.raises(Busy) as e:
            self.reserve(n, **about)  # type: ignore[arg-type]
        assert U[n] not in self.board.announced
        return e.value.reason

    def open(self, n: int) -> Line:
        return self.board.opened(U[n], "audiosocket", lambda: None, lambda: 0.0, self.now)

    def come(self, n: int) -> str:
        """A leg comes. Why it was refused; empty if it was not."""
        before = len(self.events.bodies(Refused))
        self.open(n)
        last = self.events.bodies(Refused)[before:]
        return last[0].reason if last and isinstance(last[0], Refused) else ""

    def leave(self, n: int) -> None:
        """Its peer hangs up, and the engine has said its last."""
        line, _ = self.board._lines[U[n]]
        self.board.closed(line, "hangup")
        for lease in self.engine.leases:
            if lease.finished and not lease.evicted:
                self.engine.end(lease)

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.board.expire(self.now)

    @property
    def reserved(self) -> int:
        return self.board.gate.reserved


# -- reservations ---------------------------------------------------------------------------------


def test_a_reserved_slot_is_kept_from_whoever_comes_without_one() -> None:
    b = Board(slots=2)
    b.reserve(1)
    assert b.come(2) == ""
    assert b.come(3) == "busy"
    assert b.refused(4) == "busy"
    assert b.come(1) == ""
    assert (b.engine.used, b.reserved) == (2, 0)
    assert b.board.gate.counters == {"made": 1, "used": 1, "refused": 1}


def test_a_reservation_that_nobody_comes_for_expires_with_its_announcement() -> None:
    b = Board(slots=1)
    b.reserve(1)
    b.later(TTL - 0.1)
    assert b.come(2) == "busy"
    b.later(0.1)
    assert (b.reserved, b.come(3)) == (0, "")
    assert b.board.gate.counters["released"] == 1


def test_a_reservation_goes_when_its_announcement_is_pushed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announced, "MAX_ANNOUNCED", 1)
    b = Board(slots=2)
    b.reserve(1)
    b.board.announce(Announcement(U[2]), b.now)
    assert (U[1] in b.board.announced, b.reserved) == (False, 0)


def test_it_can_be_given_back_by_its_uuid_or_by_its_call() -> None:
    b = Board(slots=2)
    b.reserve(1, call="c-1"), b.reserve(2, call="c-1", leg="callee")
    assert b.board.announced.withdraw(U[1]) and b.reserved == 1
    assert b.board.announced.withdraw("c-1") and b.reserved == 0
    assert not b.board.announced.withdraw("c-1")
    assert (b.come(3), b.come(4)) == ("", "")


def test_announcing_without_a_reservation_asks_for_no_room() -> None:
    b = Board(slots=1)
    b.reserve(1)
    b.board.announce(Announcement(U[2]), b.now)
    assert (b.reserved, b.come(2), b.come(1)) == (1, "busy", "")


def test_announced_again_it_is_still_one_reservation() -> None:
    b = Board(slots=2)
    b.reserve(1)
    b.later(20.0)
    b.board.announce(Announcement(U[1]), b.now)
    b.later(20.0)
    assert b.reserved == 1
    b.later(10.0)
    assert b.reserved == 0


def test_who_is_up_already_needs_none() -> None:
    b = Board(slots=1)
    b.open(1)
    b.reserve(1)
    assert b.reserved == 0


def test_a_full_engine_an_engine_that_loads_and_one_that_is_slow_say_why() -> None:
    b = Board(slots=1)
    b.open(1)
    assert b.refused(2) == "busy"
    b.leave(1)
    b.objection = Busy("overload", "too slow")
    assert b.refused(2) == "overload"
    b.objection = None
    b.engine.ready = False
    assert b.refused(2) == "not ready"
    b.engine.ready = True
    b.reserve(2)
    b.board.draining = True
    assert b.come(2) == "draining"
    assert b.reserved == 0


def test_calls_that_are_reserved_for_count_for_the_most_calls() -> None:
    b = Board(slots=9, max_calls=2)
    b.reserve(1, call="c-1"), b.reserve(2, call="c-1", leg="callee"), b.reserve(3)
    assert b.refused(4) == "limit"
    assert b.come(4) == "limit"
    assert (b.come(1), b.come(2), b.come(3)) == ("", "", "")


# -- limits ---------------------------------------------------------------------------------------

ACME = Limit("acme", trunk="PJSIP/acme", max=1)
GOLD = Limit("gold", tenant="gold*", reserve=1)


def test_a_trunk_has_so_many_calls_and_the_refusal_names_its_limit() -> None:
    b = Board(slots=9, limits=(ACME,))
    b.reserve(1, channel="PJSIP/acme-00000001")
    assert b.refused(2, channel="PJSIP/acme-00000002") == "limit:acme"
    b.board.announce(Announcement(U[3], info=CallInfo("", channel="PJSIP/acme-00000003")), b.now)
    assert b.come(3) == "limit:acme"
    assert (b.come(4), b.come(1)) == ("", "")
    assert b.board.gate.calls() == {"acme": 1}
    assert b.board.gate.refused == {"acme": 2}
    b.leave(1)
    b.reserve(5, trunk="PJSIP/acme")
    assert ("call_refused", "limit:acme") in b.counts.seen


def test_two_legs_are_one_call_of_a_limit() -> None:
    b = Board(slots=9, limits=(ACME,))
    b.reserve(1, call="c-1", trunk="PJSIP/acme")
    b.reserve(2, call="c-1", leg="callee", trunk="PJSIP/acme")
    assert (b.come(1), b.come(2)) == ("", "")
    assert b.refused(3, trunk="PJSIP/acme") == "limit:acme"
    b.leave(1), b.leave(2)
    b.reserve(3, trunk="PJSIP/acme")


def test_slots_kept_for_some_are_not_for_others() -> None:
    b = Board(slots=2, limits=(GOLD,))
    assert b.come(1) == ""
    assert b.come(2) == "busy"
    assert b.refused(3) == "busy"
    b.reserve(4, tenant="gold-1")
    assert b.come(4) == ""
    b.leave(1)
    assert b.come(5) == ""  # one of theirs is in use: that was what had been kept


def test_they_may_have_more_than_what_is_kept() -> None:
    b = Board(slots=2, limits=(GOLD,))
    b.reserve(1, tenant="gold-1"), b.reserve(2, tenant="gold-2")
    assert (b.come(1), b.come(2)) == ("", "")
    assert b.refused(3, tenant="gold-3") == "busy"


def test_nothing_is_kept_from_a_leg_that_the_engine_gave_up() -> None:
    b = Board(slots=1, limits=(ACME,))
    b.reserve(1, trunk="PJSIP/acme")
    b.open(1)
    b.board.calls[U[1]].end()
    assert b.board.gate.calls() == {"acme": 0}


@pytest.mark.parametrize(
    ("info", "trunk"),
    [
        (CallInfo("", channel="PJSIP/acme-0000001f"), "PJSIP/acme"),
        (CallInfo("", channel="PJSIP/my-trunk-0000001f"), "PJSIP/my-trunk"),
        (CallInfo("", channel="PJSIP/a-1", extra={"trunk": "t"}), "t"),
        (CallInfo("", channel="b0d4cbba"), ""),
        (CallInfo(""), ""),
    ],
)
def test_a_trunk_is_what_is_said_or_the_channels_endpoint(info: CallInfo, trunk: str) -> None:
    assert trunk_of(info) == trunk


def test_a_limit_without_patterns_is_for_all_and_with_both_for_both() -> None:
    gold = CallInfo("", extra={"tenant": "gold", "trunk": "t"})
    assert Limit("all").matches(CallInfo(""))
    assert Limit("x", trunk="t", tenant="g*").matches(gold)
    assert not Limit("x", trunk="u", tenant="g*").matches(gold)
    assert not Limit("x", tenant="GOLD").matches(gold)


# -- anything in any order ------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """No slot is ever lost, promised twice, or taken from who was promised it."""

    def __init__(self) -> None:
        super().__init__()
        self.b = Board(slots=4, limits=(GOLD, Limit("two", trunk="t", max=2)))
        self.next = 0
        self.promised: dict[int, float] = {}
        self.up: list[int] = []

    def fresh(self) -> int:
        self.next += 1
        if self.next >= len(U):
            U.append(f"00000000-0000-4000-8000-{self.next:012d}")
        return self.next

    @rule(tenant=st.sampled_from(["", "gold"]), trunk=st.sampled_from(["", "t"]))
    def reserve(self, tenant: str, trunk: str) -> None:
        n = self.fresh()
        try:
            self.b.reserve(n, tenant=tenant, trunk=trunk)
        except Busy:
            return
        self.promised[n] = self.b.now + TTL

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def who_was_promised_comes(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(sorted(self.promised)))
        del self.promised[n]
        assert self.b.come(n) == ""
        self.up.append(n)

    @rule()
    def somebody_comes(self) -> None:
        n = self.fresh()
        if self.b.come(n) == "":
            self.up.append(n)

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def somebody_leaves(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(self.up))
        self.up.remove(n)
        self.b.leave(n)

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def somebody_is_withdrawn(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(sorted(self.promised)))
        del self.promised[n]
        self.b.board.announced.withdraw(U[n])

    @rule(seconds=st.floats(0.1, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.b.later(seconds)
        self.promised = {n: until for n, until in self.promised.items() if until > self.b.now}

    @invariant()
    def nothing_is_lost(self) -> None:
        gate: Gate = self.b.board.gate
        assert (self.b.engine.used, gate.reserved) == (len(self.up), len(self.promised))
        assert self.b.engine.used + gate.reserved <= 4
        assert gate.calls()["two"] <= 2


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_announced_again_while_the_engine_is_full() -> None:
    b = Board(slots=1)
    b.reserve(1)
    b.reserve(1)
    assert b.reserved == 1 and b.board.gate.counters["made"] == 1


def test_a_second_leg_counts_for_its_calls_limits() -> None:
    b = Board(slots=4, limits=(Limit("acme", tenant="acme", reserve=2),))
    b.reserve(1, call="c", tenant="acme")
    b.reserve(2, call="c", leg="callee")
    assert b.board.gate._kept(b.board.gate._claim("x", CallInfo(""))) == 2
