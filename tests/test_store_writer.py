"""The writer's thread: group commit, the bound, and every way in which a file can fail."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.egress import store_schema
from bridge.egress.shelf import Shelves
from bridge.egress.store import Store
from bridge.egress.store_types import (
    Await,
    Done,
    Keep,
    Load,
    Loaded,
    Note,
    Op,
    Renewed,
    Result,
    Safe,
    StoreLimits,
)
from bridge.egress.store_writer import GATHER, StoreWriter, spacing
from bridge.errors import BridgeError
from bridge.types import CallEvent, CallInfo, EventBody, Final, Refused, Started
from tests.waiting import until


def event(seq: int, call: str = "a", body: EventBody | None = None) -> CallEvent:
    return CallEvent(CallInfo(call), seq, 100.0, "caller", body or Final(seq, "hi", ()))


def keep(seq: int, call: str = "a") -> Keep:
    return Keep("hook", event(seq, call), 2, False)


class Told(list[Result]):
    """What the writer has answered."""

    def safe(self, *, stored: bool = True) -> list[int]:
        return [r.seq for r in self if isinstance(r, Safe) and r.stored is stored]


@asynccontextmanager
async def writing(path: Path, **options: Any) -> AsyncIterator[tuple[StoreWriter, Told]]:
    told = Told()
    options = {"gather": 0.0, "retry": 0.01} | options
    writer = StoreWriter(Store(path, StoreLimits()), told.extend, **options)
    writer.start()
    try:
        yield writer, told
    finally:
        await writer.close(10.0)
        assert not any(thread.name == "outbox store" for thread in threading.enumerate())


def rows(path: Path) -> list[int]:
    with sqlite3.connect(path) as db:
        found = [row[0] for row in db.execute("SELECT seq FROM event ORDER BY id")]
    db.close()
    return found


def files(folder: Path, word: str) -> list[str]:
    return [path.name for path in folder.iterdir() if word in path.name]


@pytest.mark.parametrize(
    ("pace", "wait"), [(0.0, 5), (2999.0, 5), (6000.0, 10), (9000.0, 15), (90_000.0, 15)]
)
def test_the_more_is_asked_the_fewer_commits(pace: float, wait: int) -> None:
    assert spacing(GATHER, pace) == pytest.approx(wait / 1000)
    assert spacing(0.0, pace) == 0.0 and spacing(60.0, 0.0) == 60.0


async def test_the_writer_knows_how_much_is_asked(tmp_path: Path) -> None:
    async with writing(tmp_path / "o.db", gather=0.001) as (writer, told):
        for seq in range(3000):
            writer.put(keep(seq))
        await until(lambda: len(told.safe()) == 3000)
        assert writer._pace > 50  # of 3,000 in a commit or a few


async def test_what_is_asked_is_done_and_told(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    async with writing(path) as (writer, told):
        ops: list[Op] = [Note(event(0)), keep(0), Await("hook", "a", 1), Load("hook", "a", -1, 5)]
        assert [writer.put(op) for op in ops] == ["waits"] * 4
        await until(lambda: any(isinstance(r, Loaded) for r in told))
        assert told.safe() == [1, 0] and rows(path) == [0]
    assert writer.put(keep(9)) == "no"


async def test_many_events_share_a_commit(tmp_path: Path) -> None:
    async with writing(tmp_path / "o.db", gather=0.02) as (writer, told):
        writer.put(keep(0))
        await until(lambda: told.safe())
        for seq in range(1, 1001):
            writer.put(keep(seq))
        await until(lambda: len(told.safe()) == 1001)
        assert writer.counters["commits"] < 20


async def test_what_belongs_together_is_in_one_commit(tmp_path: Path) -> None:
    """An event's number and the event itself: one without the other would be an event lost."""
    async with writing(tmp_path / "o.db") as (writer, told):
        batches: list[list[Op]] = []
        real = writer.store.apply
        writer.store.apply = lambda ops: (batches.append(list(ops)), real(ops))[1]  # type: ignore[func-returns-value, method-assign] # fmt: skip
        both: list[Op] = [Note(event(7)), keep(7)]
        with writer.together():
            writer.put(both[0])
            for seq in range(3):  # the thread writes whatever else there is meanwhile
                writer._waiting.append((keep(seq),))
                writer._some.set()
                await until(lambda: seq in told.safe())  # noqa: B023
            assert not any(op in batch for batch in batches for op in both)
            writer.put(both[1])
        await until(lambda: 7 in told.safe())
        assert [op for op in batches[-1] if op in both] == both


async def test_close_writes_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    async with writing(path, gather=60.0) as (writer, told):
        writer.put(keep(0))
        await until(lambda: told.safe())
        writer.put(keep(1))
        assert await writer.close(10.0)
    assert rows(path) == [0, 1] and files(tmp_path, "owner") == []


async def test_the_bound_costs_the_disk_copy_and_is_counted(tmp_path: Path) -> None:
    async with writing(tmp_path / "o.db", most=5) as (writer, told):
        held = threading.Event()
        real = writer.store.apply
        writer.store.apply = lambda ops: (held.wait(10), real(ops))[1]  # type: ignore[method-assign]
        writer.put(keep(0))
        await until(lambda: not writer.waiting)
        taken = [writer.put(keep(seq)) for seq in range(1, 9)]
        assert taken == ["waits"] * 5 + ["no"] * 3 and writer.counters["unstored"] == 3
        assert writer.put(Done("hook", "a", 0)) == "waits"  # or it would come again
        held.set()
        await until(lambda: told.safe() == list(range(6)))


async def test_a_locked_file_stops_nobody_and_is_written_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_schema, "PATIENCE", 0.0)
    path = tmp_path / "o.db"
    store_schema.connect(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    async with writing(path) as (writer, told):
        writer.put(keep(0))
        writer.put(Await("hook", "a", 1))
        await until(lambda: sorted(told.safe(stored=False)) == [0, 1])
        assert writer.trouble == "another program has the file locked"
        assert writer.put(keep(2)) == "late"
        other.close()
        await until(lambda: not writer.trouble)
        await until(lambda: told.safe() == [0, 2])
        assert writer.put(keep(3)) == "waits"
    assert rows(path) == [0, 2, 3]
    assert caplog.messages == [
        f"outbox: {path} cannot be written: another program has the file locked; calls go on, and "
        "what is said is kept in memory only",
        f"outbox: {path} can be written again",
    ]


async def test_a_full_disk_is_said_once_and_then_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "o.db"
    async with writing(path) as (writer, told):
        writer.put(keep(0))
        await until(lambda: told.safe())
        assert writer.store._db is not None
        pages = writer.store._db.execute("PRAGMA page_count").fetchone()[0]
        # SQLite's own limit gives SQLITE_FULL, as write(2)'s ENOSPC does.
        real = store_schema.connect

        def small(where: Path) -> sqlite3.Connection:
            db = real(where)
            db.execute(f"PRAGMA max_page_count = {pages}")
            return db

        writer.store._db.execute(f"PRAGMA max_page_count = {pages}")
        import bridge.egress.store as module

        module.connect = small
        try:
            big = Final(0, "x" * 100_000, ())
            writer.put(Keep("hook", event(1, body=big), 2, False))
            await until(lambda: told.safe(stored=False) and writer.counters["failures"] > 2)
            assert writer.trouble == "the disk is full"
        finally:
            module.connect = real
        await until(lambda: told.safe() == [0, 1])
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert rows(path) == [0, 1]


async def test_a_file_that_breaks_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "o.db"
    async with writing(path) as (writer, told):
        writer.put(keep(0))
        await until(lambda: told.safe())
        writer.store.abandon()
        path.write_bytes(b"scribbled over" * 1000)
        writer.put(keep(1))
        await until(lambda: 1 in told.safe())
        (aside,) = [name for name in files(tmp_path, "broken") if name[-4:] not in ("-wal", "-shm")]
        assert Renewed(aside) in told and writer.counters["set_aside"] == 1
        assert not writer.trouble
    assert rows(path) == [1]
    assert f"it is kept as {aside} and a new one is begun" in caplog.text


async def test_one_that_cannot_be_written_does_not_cost_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "o.db"
    async with writing(path, gather=0.05) as (writer, told):
        for seq in (0, 7, 1):
            body = Refused(object()) if seq == 7 else None  # type: ignore[arg-type]
            writer.put(Keep("hook", event(seq, body=body), 2, False))
        await until(lambda: told.safe() == [0, 1] and told.safe(stored=False) == [7])
    assert rows(path) == [0, 1]
    assert caplog.messages == ["outbox: Keep: TypeError"]


async def test_a_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    shelves = Shelves(tmp_path / "nowhere" / "o.db", StoreLimits())
    with pytest.raises(BridgeError, match="outbox.path: there is no directory .*nowhere"):
        await shelves.start()
    await shelves.close(1.0)


async def test_events_of_a_sink_that_is_configured_no_more_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "o.db"
    first = Shelves(path, StoreLimits())
    await first.start()
    first.shelf("crm").keep(event(0, body=Started()), 1, ends=False)
    await first.close(5.0)
    second = Shelves(path, StoreLimits())
    await second.start()
    assert caplog.messages[-1] == (
        "outbox: events are kept for 'crm', which is configured no more; "
        "see: callscribe outbox list"
    )
    assert second.room and second.state == "ok"
    await second.close(5.0)


def test_two_sinks_of_one_name_have_a_shelf_each(tmp_path: Path) -> None:
    shelves = Shelves(tmp_path / "o.db", StoreLimits())
    made: Callable[[str], Any] = shelves.shelf
    assert made("ami")._sink == "ami" and made("ami")._sink == "ami'"


async def test_what_waited_while_the_file_could_not_be_written_is_written_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one batch takes: nobody has to ask for the rest."""
    monkeypatch.setattr(store_schema, "PATIENCE", 0.01)
    path = tmp_path / "o.db"
    async with writing(path, most=10) as (writer, told):
        writer.put(keep(0))
        await until(lambda: told.safe() == [0])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        seq = 0
        while writer.put(Done("hook", "a", seq)) != "no":
            seq += 1
            await asyncio.sleep(0.001)
        other.execute("ROLLBACK")
        other.close()
        await until(lambda: writer.waiting == 0)
        assert writer.put(keep(seq)) != "no"
        await until(lambda: seq in told.safe())


async def test_a_page_that_cannot_be_loaded_is_answered(tmp_path: Path) -> None:
    async with writing(tmp_path / "o.db") as (writer, told):
        writer.put(Load("hook", "a", "nonsense", 1))  # type: ignore[arg-type]
        writer.put(Load("hook", "a", object(), 1))  # type: ignore[arg-type]
        await until(lambda: sum(isinstance(r, Loaded) for r in told) == 2)
        assert Loaded("hook", "a", (), True) in told
