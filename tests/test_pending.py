from typing import get_args

from bridge.egress.pending import RANKS, Agenda, Backlog, Pending, Row
from bridge.types import CallEvent, CallInfo, Ended, EventBody, Final, Partial, Pressed, Started


def row(body: EventBody, seq: int, since: float = 0.0, call: str = "a") -> Row:
    return Row(CallEvent(CallInfo(id=call), seq, 0.0, "caller", body), since)


def add(pending: Pending, *rows: Row) -> None:
    for one in rows:
        pending.add(pending.backlog(one.event.call.id), one)


def test_the_head_is_the_first_that_came() -> None:
    pending = Pending()
    first, second = row(Started(), 0), row(Final(0, "", ()), 1)
    add(pending, first, second)
    backlog = pending.backlog("a")
    assert backlog.head is first
    pending.remove(backlog, first)
    assert backlog.head is second
    pending.remove(backlog, second)
    assert backlog.head is None and len(pending) == 0


def test_a_call_is_forgotten_when_it_is_over_and_nothing_is_left() -> None:
    pending = Pending()
    last = row(Ended("hangup", 0, {}), 0)
    add(pending, last)
    backlog = pending.backlog("a")
    pending.remove(backlog, last)
    assert pending.find("a") is backlog  # more may come
    assert not pending.tidy(backlog)
    backlog.over = True
    assert pending.tidy(backlog)
    assert pending.find("a") is None and pending.calls == 0


def test_a_call_with_rows_on_the_disk_is_not_forgotten() -> None:
    pending = Pending()
    backlog = pending.backlog("a")
    backlog.over, backlog.disk = True, 1
    assert not pending.tidy(backlog)
    backlog.disk, backlog.loading = 0, True
    assert not pending.tidy(backlog)
    backlog.loading = False
    assert pending.tidy(backlog)


def test_a_row_that_comes_late_takes_its_place() -> None:
    pending = Pending()
    rows = [row(Final(0, "", ()), seq) for seq in (5, 2, 9, 3)]
    add(pending, *rows)
    assert list(pending.backlog("a").rows) == [2, 3, 5, 9]


def test_victims_by_rank_then_age_and_never_flying() -> None:
    pending = Pending()
    end = row(Ended("hangup", 0, {}), 9, call="old")
    final = row(Final(0, "", ()), 5)
    digits = row(Pressed("1", 0), 3), row(Pressed("2", 0), 4, call="b")
    partial = row(Partial(0, "", ()), 6, call="b")
    add(pending, end, final, *digits, partial)
    order = []
    digits[0].flying = True
    while (found := pending.victim(3)) is not None:
        order.append(found[1])
        pending.remove(*found)
    assert order == [partial, digits[1], final, end]


def test_every_kind_of_event_has_a_rank() -> None:
    assert set(RANKS) == set(get_args(EventBody))


def test_a_victim_is_never_worth_more_than_the_newcomer() -> None:
    pending = Pending()
    add(pending, row(Final(0, "", ()), 0))
    assert pending.victim(RANKS[Partial]) is None
    assert pending.victim(RANKS[Started]) is None
    assert pending.victim(RANKS[Final]) is not None


def test_oldest_over_all_ranks() -> None:
    pending = Pending()
    assert pending.oldest is None
    add(pending, row(Partial(0, "", ()), 0, 5.0), row(Final(0, "", ()), 1, 3.0))
    assert pending.oldest == 3.0
    assert pending.clear() == 2
    assert pending.oldest is None and pending.calls == 0


def test_partials_due_are_the_old_ones() -> None:
    pending = Pending()
    old, flying, young = (
        row(Partial(0, "", ()), seq, since, call)
        for seq, since, call in ((0, 1.0, "a"), (0, 1.5, "b"), (0, 3.0, "c"))
    )
    flying.flying = True
    add(pending, old, flying, young, row(Final(0, "", ()), 1, 0.0))
    assert [one for _, one in pending.partials_due(12.0, 10.0)] == [old]
    assert pending.partials_due(10.9, 10.0) == []


def backlog(name: str) -> Backlog:
    found = Backlog(name)
    found.rows[0] = row(Started(), 0, call=name)
    return found


def test_the_agenda_takes_turns() -> None:
    agenda = Agenda()
    a, b, c = map(backlog, "abc")
    for one, due in ((a, 2.0), (b, 1.0), (c, 1.0)):
        agenda.add(one, due)
    assert agenda.due == 1.0
    assert [agenda.take(1.5), agenda.take(1.5), agenda.take(1.5)] == [b, c, None]
    assert agenda.take(2.0) is a
    assert agenda.due is None


def test_only_the_last_entry_of_a_call_counts() -> None:
    agenda = Agenda()
    a = backlog("a")
    agenda.add(a, 1.0)
    agenda.add(a, 5.0)
    assert agenda.take(4.0) is None
    assert agenda.take(5.0) is a
    agenda.add(a, 6.0)
    a.rows.clear()
    assert agenda.take(6.0) is None and a.ticket == 0


def test_hurry_moves_all_but_wishes() -> None:
    agenda = Agenda()
    a, b, c = map(backlog, "abc")
    b.wish = True
    for one, due in ((a, 50.0), (b, 40.0), (c, 3.0)):
        agenda.add(one, due)
    agenda.hurry(10.0)
    assert [agenda.take(10.0) for _ in "abc"] == [c, a, None]
    assert agenda.due == 40.0
