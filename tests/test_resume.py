"""A call whose worker died comes back or is lost; and a file that is full."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bridge.egress.store import Store
from bridge.egress.store_types import StoreLimits
from bridge.types import (
    CallInfo,
    Ended,
    EndOfTurn,
    Final,
    Heard,
    LeftCall,
    LegName,
    Pressed,
    Word,
)
from tests.serving import PATIENCE, Bridge, Peer, http, said, serving
from tests.test_switchboard import Board, U, announced
from tests.waiting import until

BEGAN = 1_700_000_000.0  # Unix time at 0 of a `Board`
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def left(uuid: str = U[0], **turns: int) -> LeftCall:
    """A call that began at 40 and said its seventh event at 90; the board's clock shows 100."""
    numbers: dict[LegName, int] = {"caller": 2, "callee": -1} | turns  # type: ignore[operator]
    return LeftCall(CallInfo(uuid, caller="+49"), 7, BEGAN + 40, BEGAN + 90, numbers)


def hear(b: Board, text: str, at: float) -> None:
    b.engine.leases[-1].heard(Heard((Word(text, at, at + 0.4, 1.0),), pause=1.0, at=at + 2))


# -- the switchboard ------------------------------------------------------------------------------


def test_numbers_clock_turns_and_caller_go_on() -> None:
    b = Board()
    b.board.left([left()], [], until=130.0)
    line = b.open(U[0])
    hear(b, "again", 1.0)
    line.digit("5")
    b.close(line)
    assert [event.seq for event in b.events] == [7, 8, 9, 10]
    final, turn, digit, end = (event.body for event in b.events)
    assert isinstance(final, Final) and final.turn == 3
    assert isinstance(turn, EndOfTurn) and turn.turn == 3
    assert isinstance(digit, Pressed) and digit.at == 60.0
    assert final.words[0].start == pytest.approx(61.0, abs=0.1)
    assert isinstance(end, Ended) and end.reason == "hangup"
    assert {event.call.caller for event in b.events} == {"+49"}
    b.later(100.0)
    assert len(b.events) == 4  # it is not lost as well


def test_a_call_that_does_not_come_back_is_lost() -> None:
    b = Board()
    b.board.left([left()], [], until=130.0)
    b.later(29.9)
    assert b.told() == []
    b.later(0.1)
    (event,) = b.events
    assert (event.seq, event.body) == (7, Ended("lost", 50.0, {}))
    b.close(b.open(U[0]))  # too late: it is a call of its own, by another id
    assert {call for call, _ in b.told()} == {U[0], f"{U[0]}-2"}


def test_a_uuid_that_was_announced_to_the_dead_worker_is_known() -> None:
    b = announced()
    b.board.left([left()], [], until=130.0)
    line, stranger = b.open(U[0]), b.open(U[1])
    b.later(3.0)
    assert line.leg is not None and stranger.leg is None and b.hung_up == [U[1]]


def test_the_leg_is_the_one_that_spoke() -> None:
    b = Board()
    b.board.left([left(caller=-1, callee=4)], [], until=130.0)
    line = b.open(U[0])
    assert line.leg is not None and line.leg.name == "callee"


def test_both_legs_of_a_call_come_back_when_they_are_announced() -> None:
    b = announced()
    b.board.left([left("the-call", callee=5)], [], until=130.0)
    b.announce(U[3], call="the-call", leg="callee")
    b.announce(U[2], call="the-call", leg="caller")
    b.open(U[3])
    hear(b, "hello", 1.0)
    b.open(U[2])
    hear(b, "hello", 1.0)
    assert [event.seq for event in b.events] == [7, 8, 9, 10]
    assert [event.body.turn for event in b.events if isinstance(event.body, Final)] == [6, 3]
    assert len(b.board.calls) == 1


def test_ids_of_calls_that_were_over_are_not_used_again() -> None:
    b = Board()
    b.board.left([], [U[0]], until=130.0)
    b.open(U[0])
    assert b.told()[0] == (f"{U[0]}-2", "Started")


def test_a_full_file_refuses_new_calls_and_takes_back_old_ones() -> None:
    b = Board()
    b.board._room = lambda: False
    b.board.left([left()], [], until=130.0)
    b.open(U[0])
    b.open(U[1])
    assert b.refused() == [(U[1], "outbox")] and list(b.board.calls) == [U[0]]


# -- the process ----------------------------------------------------------------------------------


class Receiver:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.up = True
        self.news = asyncio.Condition()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        event = json.loads(await request.read())
        async with self.news:
            if self.up:
                self.events.append(event)
            self.news.notify_all()
        return web.Response(status=200 if self.up else 503)

    async def heard(self, kind: str, times: int = 1) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            return [event["data"] for event in self.events if event["type"] == kind]

        async with asyncio.timeout(PATIENCE), self.news:
            await self.news.wait_for(lambda: len(found()) >= times)
        return found()


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.handle), shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield receiver, f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def durable(folder: Path, url: str, resume: float = 30.0) -> AsyncIterator[Bridge]:
    changes = {
        "outbox": {"path": str(folder / "outbox.db"), "resume": resume},
        "[webhook]": {"url": url, "secret": SECRET, "name": "hook"},
    }
    async with serving(folder, **changes) as bridge:
        yield bridge


def kept(folder: Path) -> list[bytes]:
    """What is on the disk."""
    with closing(sqlite3.connect(folder / "outbox.db")) as db:
        return [body for (body,) in db.execute("SELECT body FROM event")]


async def killed(bridge: Bridge) -> None:
    """The worker dies at once, and the next one is ready."""
    os.kill(bridge.worker(), signal.SIGKILL)
    await bridge.logged(": ready:", times=2)


async def test_a_call_that_connects_again_goes_on_where_it_was(tmp_path: Path) -> None:
    async with receiving() as (receiver, url), durable(tmp_path, url) as bridge:
        async with Peer(bridge.audiosocket) as peer:
            await peer.hello()
            await peer.speak([1, 2, 3])
            await receiver.heard("transcript.partial")
            await killed(bridge)
            await peer.to_eof()
        async with Peer(bridge.audiosocket) as again:
            again.id = peer.id
            await again.hello()
            await again.speak([7, 8])
            again.hang_up()
            (end,) = await receiver.heard("call.ended")
        assert end["reason"] in ("hangup", "eof") and end["call_id"] == peer.id
        # What was taken as the worker died comes again, under its number.
        events = {event["data"]["seq"]: event["data"] for event in receiver.events}
        assert {data["call_id"] for data in events.values()} == {peer.id}
        assert [event["type"] for event in receiver.events if event["data"]["seq"] > 0].count(
            "call.started"
        ) == 0
        before = -1
        for data in events.values():
            # And it counts as not given: nobody could note it.
            assert data["seq"] - data.get("gap_before", 0) - 1 <= before < data["seq"]
            before = data["seq"]
        finals = " ".join(data["text"] for data in events.values() if "language" in data)
        assert finals.endswith(said([7, 8])) and finals.count(said([7])) == 1


async def test_a_call_that_does_not_come_back_ends_and_what_waited_is_told(tmp_path: Path) -> None:
    async with receiving() as (receiver, url), durable(tmp_path, url, 0.2) as bridge:
        receiver.up = False
        async with Peer(bridge.audiosocket) as peer:
            await peer.hello()
            await peer.speak([1, 2, 3])
            await until(lambda: any(b'"final"' in body for body in kept(tmp_path)), PATIENCE)
            await killed(bridge)
        receiver.up = True
        (end,) = await receiver.heard("call.ended")
        assert end["reason"] == "lost"
        kinds = [event["type"] for event in receiver.events]
        assert kinds[0] == "call.started" and "transcript.final" in kinds
        _, text = await http(bridge.http, "/metrics")
        assert "callscribe_outbox_up 1.0" in text
        assert 'callscribe_calls_ended_total{reason="lost"} 1.0' in text
        status, text = await http(bridge.http, "/health/status")
        assert json.loads(text)["checks"]["outbox"] == "ok"


async def test_a_full_file_refuses_calls_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    changes = {
        "outbox": {"path": str(path), "max_rows": 1000},
        "[webhook]": {"url": "http://127.0.0.1:9/", "secret": SECRET, "name": "hook"},
    }
    store = Store(path, StoreLimits())
    store.open()
    store.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany(
            "INSERT INTO event (sink, call, seq, rank, state, at, body)"
            " VALUES ('hook', 'x', ?, 2, 1, ?, '')",
            [(n, 4e9) for n in range(1000)],
        )
    async with serving(tmp_path, **changes) as bridge, Peer(bridge.audiosocket) as peer:
        await peer.hello()
        assert await peer.goodbye() == b"\x00\x00\x00"
        await bridge.logged("type=call.refused reason=outbox")
        _, text = await http(bridge.http, "/metrics")
        assert 'callscribe_calls_refused_total{reason="outbox"} 1.0' in text
        assert 'callscribe_outbox_events{state="dead"} 1000.0' in text
        _, text = await http(bridge.http, "/health/status")
        assert json.loads(text)["checks"]["outbox"] == "100% full"
