"""The file itself: what is kept, in which order it comes back, who may have it, how it breaks."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.egress import store_schema
from bridge.egress.store import Store
from bridge.egress.store_owner import Owner
from bridge.egress.store_schema import BrokenFile, connect, is_broken, reason, set_aside
from bridge.egress.store_types import (
    Adopt,
    Adopted,
    Again,
    Await,
    Bury,
    Dead,
    Done,
    Keep,
    Load,
    Loaded,
    Note,
    Op,
    Over,
    Safe,
    Shed,
    StoreLimits,
    Tidy,
)
from bridge.types import CallEvent, CallInfo, Ended, EventBody, Final, Partial, Pressed, Refused

DAY = 86400.0


def event(seq: int, call: str = "a", body: EventBody | None = None, at: float = 100.0) -> CallEvent:
    return CallEvent(CallInfo(call, caller="+49"), seq, at, "caller", body or Final(seq, "hi", ()))


def keep(*seqs: int, call: str = "a", sink: str = "hook") -> list[Op]:
    return [Keep(sink, event(seq, call), 2, False) for seq in seqs]


class Files:
    """Stores on one file, each as a process of its own would have it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "outbox.db"
        self.now = 1000.0
        self.limits = StoreLimits()
        self.stores: list[Store] = []

    def store(self) -> Store:
        store = Store(self.path, self.limits, wall=lambda: self.now)
        store.open()
        self.stores.append(store)
        return store

    def crash(self, store: Store) -> None:
        """As the kernel leaves it: closed, unlocked, nothing said."""
        store.abandon()
        owner, store._owner = store._owner, None
        assert owner is not None
        owner.forget = lambda owner: None  # type: ignore[method-assign]
        owner.release()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    for store in files.stores:
        store.close()


def load(store: Store, call: str = "a", after: int = -1, limit: int = 10) -> Loaded:
    (told,) = store.apply([Load("hook", call, after, limit)])
    assert isinstance(told, Loaded)
    return told


def seqs(store: Store, call: str = "a") -> list[int]:
    return [row.event.seq for row in load(store, call).rows]


def adopt(store: Store) -> Adopted:
    (told,) = store.apply([Adopt()])
    assert isinstance(told, Adopted)
    return told


# -- kept and done ------------------------------------------------------------------------------


def test_what_is_kept_comes_back_in_order_and_page_by_page(files: Files) -> None:
    store = files.store()
    assert store.apply(keep(0, 1, 2, 3, 4)) == [Safe("hook", "a", n) for n in range(5)]
    told = load(store, limit=2)
    assert [row.event for row in told.rows] == [event(0), event(1)] and told.more
    assert told.rows[0].at == 100.0 and told.rows[0].attempts == 0
    told = load(store, after=1, limit=3)
    assert [row.event.seq for row in told.rows] == [2, 3, 4] and not told.more
    assert store.rows == 5


def test_within_one_commit_everything_is_seen(files: Files) -> None:
    told = files.store().apply([*keep(0, 1), Done("hook", "a", 0), Load("hook", "a", -1, 9)])
    assert isinstance(told[-1], Loaded) and [row.event.seq for row in told[-1].rows] == [1]


def test_an_event_is_kept_once_per_sink(files: Files) -> None:
    store = files.store()
    store.apply([*keep(0), *keep(0), *keep(0, sink="ami")])
    assert store.rows == 2
    store.apply([Done("hook", "a", 0), Done("hook", "a", 7), Done("hook", "nobody", 0)])
    assert store.rows == 1 and seqs(store) == []


def test_a_retry_is_remembered(files: Files) -> None:
    store = files.store()
    store.apply([*keep(0), Again("hook", "a", 0, 3, 1234.5)])
    (row,) = load(store).rows
    assert (row.attempts, row.due) == (3, 1234.5)


def test_a_dead_letter_waits_for_nobody_and_is_kept_a_month(files: Files) -> None:
    store = files.store()
    store.apply([*keep(0, 1), Dead("hook", "a", 0, "example.net answered 400" + "!" * 999)])
    assert seqs(store) == [1] and (store.rows, store.dead) == (2, 1)
    files.now += 30 * DAY - 1
    store.apply([Tidy()])
    assert store.rows == 2
    files.now += 2
    store.apply([Tidy()])
    assert (store.rows, store.dead) == (1, 0) and seqs(store) == [1]


def test_a_sink_that_is_gone_is_buried_alone(files: Files) -> None:
    store = files.store()
    store.apply([*keep(0, 1), *keep(0, sink="ami"), Bury("hook", "answered 410")])
    assert seqs(store) == [] and (store.rows, store.dead) == (3, 2)


def test_names_that_are_no_utf8_are_kept_apart(files: Files) -> None:
    store = files.store()
    names = ["\ud800", "\\ud800", "a'b\"c", "é\0", ""]
    store.apply([op for n in names for op in keep(0, call=n, sink="hook")])
    assert [load(store, n).rows[0].event.call.id for n in names] == names


def test_a_row_that_cannot_be_read_is_a_dead_letter(files: Files) -> None:
    store = files.store()
    store.apply(keep(0, 1, 2))
    with sqlite3.connect(files.path) as db:
        db.execute("UPDATE event SET body = ? WHERE seq = 1", (b"[99,1]",))
    db.close()
    assert seqs(store) == [0, 2] and store.dead == 1
    assert seqs(store) == [0, 2]


def test_a_failure_undoes_the_whole_commit(files: Files) -> None:
    store = files.store()
    store.apply(keep(0))
    broken = Keep("hook", event(2, body=Refused(object())), 3, True)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.apply([*keep(1), broken])
    assert seqs(store) == [0] and store.rows == 1
    store.apply(keep(1))
    assert seqs(store) == [0, 1]


def test_only_its_owner_can_read_the_file(files: Files) -> None:
    store = files.store()
    store.apply(keep(0))
    for path in files.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_what_was_delivered_is_not_left_in_the_file(files: Files) -> None:
    store = files.store()
    secret = Final(0, "four one one one", ())
    store.apply([Keep("hook", event(0, body=secret), 2, False)])
    store.apply([Done("hook", "a", 0)])
    store.close()
    assert b"four one one one" not in files.path.read_bytes()


# -- after a crash ------------------------------------------------------------------------------


def test_what_a_dead_process_left_is_adopted_once(files: Files) -> None:
    first = files.store()
    first.apply([*keep(0, 1, 2), *keep(5, call="b"), Done("hook", "a", 0)])
    first.apply([Again("hook", "a", 1, 2, 1009.0)])
    second = files.store()
    assert adopt(second) == Adopted()  # it is alive
    files.crash(first)
    left = {backlog.call: backlog for backlog in adopt(second).backlogs}
    assert (left["a"].rows, left["a"].last, left["a"].over) == (2, 0, False)
    assert (left["a"].attempts, left["a"].due) == (2, 1009.0)
    assert (left["b"].rows, left["b"].last) == (1, -1)
    assert adopt(second) == Adopted()
    third = files.store()
    assert adopt(third) == Adopted()
    second.close()
    assert len(adopt(third).backlogs) == 2
    (lock,) = files.path.parent.glob("*owner-*")
    assert lock.name == f"outbox.db.owner-{third._owner.id}"  # type: ignore[union-attr]


def test_an_open_call_is_left_with_its_next_number_and_turns(files: Files) -> None:
    first = files.store()
    notes = [
        Note(event(n, body=body, at=50.0 + n))
        for n, body in enumerate([Partial(0, "", ()), Final(0, "", ()), Partial(3, "", ())])
    ]
    first.apply(notes[:2])
    first.apply(notes[2:])
    first.apply([Note(event(0, "over")), Note(event(1, "over", Ended("eof", 1, {})))])
    first.apply([Note(event(0, "no", Refused("busy")))])
    files.crash(first)
    left = adopt(files.store())
    (call,) = left.calls
    assert call.info == CallInfo("a", caller="+49")
    assert (call.next, call.began, call.at) == (3, 50.0, 52.0)
    assert call.turns == {"caller": 3, "callee": -1}
    assert set(left.over) == {"over", "no"}


def test_a_call_that_a_sink_has_had_everything_of_is_forgotten(files: Files) -> None:
    first = files.store()
    ended = Keep("hook", event(1, body=Ended("eof", 1, {})), 3, True)
    first.apply([*keep(0), ended])
    first.apply([Done("hook", "a", 0), Done("hook", "a", 1), Over("hook", "a")])
    first.apply([*keep(0, call="b"), Done("hook", "b", 0)])  # more may come
    files.crash(first)
    (left,) = adopt(files.store()).backlogs
    assert (left.call, left.rows, left.last) == ("b", 0, 0)


def test_a_partial_that_was_given_moves_the_mark(files: Files) -> None:
    first = files.store()
    first.apply(keep(0))
    first.apply([Await("hook", "a", 1), Done("hook", "a", 0), Done("hook", "a", 1, kept=False)])
    files.crash(first)
    (left,) = adopt(files.store()).backlogs
    assert (left.last, left.rows) == (1, 0)


def test_ids_of_calls_are_remembered_for_a_day(files: Files) -> None:
    first = files.store()
    first.apply([Note(event(0, body=Refused("busy"), at=files.now))])
    files.now += DAY + 1
    first.apply([Tidy()])
    files.crash(first)
    assert adopt(files.store()).over == ()


def test_a_lock_says_who_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    one, two = Owner(path), Owner(path)
    assert one.alive(one.id) and one.alive(two.id) and not one.alive(7)
    two.release()
    two.release()
    assert not one.alive(two.id)
    one.release()
    assert list(tmp_path.iterdir()) == []


# -- room ---------------------------------------------------------------------------------------


def test_when_it_is_crowded_digits_of_calls_that_are_over_go_first(files: Files) -> None:
    files.limits = StoreLimits(rows=20)
    store = files.store()
    digits: list[Op] = [Keep("hook", event(n, "old", Pressed("1", 0)), 1, False) for n in range(8)]
    store.apply([*digits, Keep("hook", event(8, "old", Ended("eof", 0, {})), 3, True)])
    store.apply([Keep("hook", event(n, "up", Pressed("1", 0)), 1, False) for n in range(8)])
    assert store.apply([Tidy()]) == [] and store.fill == 0.85
    store.apply(keep(0, 1, call="b"))
    assert store.apply([Tidy()]) == [Shed("hook", "old", tuple(range(8)))]
    assert seqs(store, "old") == [8] and seqs(store, "up") == list(range(8)) and store.rows == 11


def test_what_another_process_writes_counts_too(files: Files) -> None:
    one, other = files.store(), files.store()
    other.apply([*keep(0, 1, 2), Dead("hook", "a", 1, "no")])
    one.apply([*keep(0, call="b"), Tidy()])
    assert (one.rows, one.dead) == (4, 1)


def test_the_size_is_what_is_in_use(files: Files) -> None:
    files.limits = StoreLimits(size=1 << 20)
    store = files.store()
    store.apply(keep(*range(2000)))
    full = store.fill
    assert 0.2 < full < 1
    store.apply([Done("hook", "a", n) for n in range(2000)])
    assert store.fill < 0.2 and store.rows == 0


# -- what breaks --------------------------------------------------------------------------------


def test_a_file_of_somebody_elses_is_broken_and_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(b"these are my holiday pictures\n" * 999)
    with pytest.raises(BrokenFile, match="file is not a database"):
        connect(path)
    aside = set_aside(path)
    assert aside.name.startswith("outbox.db.broken-") and aside.read_bytes().startswith(b"these")
    connect(path).close()


def test_a_page_that_was_overwritten_is_found_at_the_start(files: Files) -> None:
    store = files.store()
    store.apply(keep(*range(500)))
    store.close()
    data = bytearray(files.path.read_bytes())
    data[8192:12288] = b"\xaa" * 4096
    files.path.write_bytes(data)
    with pytest.raises(BrokenFile):
        Store(files.path, StoreLimits()).open()


def test_tables_of_another_version_are_not_touched(files: Files) -> None:
    files.store().close()
    with sqlite3.connect(files.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(BrokenFile, match="its tables are of version 99, and this is 1"):
        Store(files.path, StoreLimits()).open()


def test_a_wal_whose_end_is_torn_costs_only_that_end(files: Files) -> None:
    """A power cut in the middle of a write: its checksum is wrong, what was committed stays."""
    store = files.store()
    store.apply(keep(0))
    wal = Path(f"{files.path}-wal")
    before = wal.stat().st_size
    store.apply(keep(1))
    torn = wal.read_bytes()[: before + 100]
    copy = files.path.with_name("copy.db")
    copy.write_bytes(files.path.read_bytes())
    Path(f"{copy}-wal").write_bytes(torn)
    other = Store(copy, StoreLimits())
    other.open()
    assert seqs(other) == [0]
    other.close()


def test_a_lock_of_another_program_is_told(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_schema, "PATIENCE", 0.0)
    store = files.store()
    other = sqlite3.connect(files.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError) as raised:
        store.apply(keep(0))
    assert reason(raised.value) == "another program has the file locked"
    assert not is_broken(raised.value)
    other.close()
    store.apply(keep(0))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        connect(tmp_path / "nowhere" / "outbox.db")
    assert reason(raised.value) == "No such file or directory"
