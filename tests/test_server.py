"""One worker's server in this process: admission, readiness, draining, floods, a stalled engine."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import gc
import json
import os
import resource
import termios
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge import server as server_module
from bridge.config import Address, from_dict
from bridge.engine.batcher import Batcher, BatchRules
from bridge.engine.tones import TonesModel, text_of
from bridge.errors import EngineUnavailable
from bridge.interfaces import Recogniser
from bridge.listeners import open_all
from bridge.server import Server
from bridge.types import CallEvent, Ended, Final, Heard, Refused, Started
from tests.fakes import FakeRecogniser
from tests.serving import GOODBYE, Peer, http, refused, said
from tests.waiting import until


class Sink:
    """An egress that remembers."""

    name = "sink"

    def __init__(self) -> None:
        self.events: list[CallEvent] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def deliver(self, event: CallEvent) -> None:
        self.events.append(event)

    def finals(self, call: str) -> list[Final]:
        return [e.body for e in self.events if e.call.id == call and isinstance(e.body, Final)]

    def text(self, call: str) -> str:
        return " ".join(final.text for final in self.finals(call))

    def ended(self, call: str) -> Ended | None:
        bodies = (e.body for e in self.events if e.call.id == call)
        return next((body for body in bodies if isinstance(body, Ended)), None)


class SlowEngine(FakeRecogniser):
    """Loads until told otherwise; a lease is done when its audio is."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.ready = False
        self.go = asyncio.Event()
        self.fails = fails

    async def start(self) -> None:
        await self.go.wait()
        if self.fails:
            raise EngineUnavailable("no model")
        self.ready = True

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> Any:
        lease = super().lease(heard, done)
        lease.finish = lambda: asyncio.get_running_loop().call_soon(done)  # type: ignore[method-assign]
        return lease


class Up:
    """A server that runs, its ports and what its sink was told."""

    def __init__(self, server: Server, sink: Sink, audiosocket: int, http_port: int) -> None:
        self.server = server
        self.sink = sink
        self.audiosocket = audiosocket
        self.http_port = http_port

    async def get(self, path: str) -> tuple[int, Any]:
        status, text = await http(self.http_port, path)
        return status, json.loads(text)

    async def readiness(self) -> tuple[int, list[str]]:
        status, body = await self.get("/readyz")
        return status, body["reasons"]

    async def metric(self, name: str, **labels: str) -> float:
        """A value of a scrape, its name without the prefix."""
        _, text = await http(self.http_port, "/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"callscribe_{name}" and sample.labels == labels:
                    return float(sample.value)
        raise AssertionError(f"no {name}{labels} in the scrape")


Begin = Callable[..., Awaitable[Up]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Starts servers: `begin(recogniser, wait=False, section={"key": value})`."""
    stack = contextlib.AsyncExitStack()

    async def start(
        recogniser: Recogniser | None = None,
        *,
        wait: bool = True,
        **sections: Mapping[str, object],
    ) -> Up:
        given: dict[str, Any] = {
            "engine": {"kind": "tones", "slots": 8},
            "audiosocket": {"keepalive": "off"},
            "http": {"token": "a secret word"},
            "service": {"drain_timeout": 5.0},
        }
        for name, keys in sections.items():
            tables = isinstance(keys, list)  # [[limit]]
            given[name] = keys if tables else {**given.get(name, {}), **keys}
        sink = Sink()
        local = Address("127.0.0.1", 0)
        sockets = open_all({"audiosocket": local, "http": local})
        server = Server(from_dict(given), recogniser, [sink])
        for sock in sockets.values():
            stack.callback(sock.close)
        stack.push_async_callback(server.close)
        ports = [sock.getsockname()[1] for sock in sockets.values()]
        task = asyncio.create_task(server.start(sockets))
        stack.push_async_callback(_over, task)
        if wait:
            await task
        else:
            await until(lambda: server.port is not None)
        return Up(server, sink, *ports)

    async with stack:
        yield start


async def _over(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# -- loading -------------------------------------------------------------------------------------


async def test_callers_wait_while_the_engine_loads(begin: Begin) -> None:
    engine = SlowEngine()
    up = await begin(engine, wait=False)
    assert await up.readiness() == (503, ["the engine is loading"])
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await peer.speak([1, 2])
        assert (await http(up.http_port, "/healthz"))[0] == 200
        assert await up.readiness() == (503, ["the engine is loading"])
        assert await up.metric("connections") == 0  # not even accepted
        engine.go.set()
        await until(lambda: engine.leases)
        await until(lambda: len(engine.leases[0].blocks) == 10)  # all of 0.8 s
    assert await up.readiness() == (200, [])
    await until(lambda: up.sink.ended(peer.id))


async def test_callers_are_refused_when_loading_takes_long(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "ENGINE_WAIT", 0.02)
    engine = SlowEngine()
    up = await begin(engine, wait=False)
    assert await refused(up.audiosocket) == GOODBYE
    assert up.sink.events == []
    engine.go.set()
    await until(lambda: up.server.loaded)
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await until(lambda: engine.leases)


async def test_an_engine_that_cannot_load_is_the_starters_problem(begin: Begin) -> None:
    engine = SlowEngine(fails=True)
    engine.go.set()
    with pytest.raises(EngineUnavailable, match="no model"):
        await begin(engine)


async def test_a_stop_while_loading(begin: Begin) -> None:
    """Callers that wait in the kernel stay there: whoever has the socket next takes them."""
    up = await begin(SlowEngine(), wait=False)
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await up.server.drain()
        assert up.server.port is not None
        assert up.server.port.counters["accepted"] == 0
        await up.server.close()


async def test_an_engine_that_is_down(begin: Begin) -> None:
    engine = SlowEngine()
    engine.go.set()
    up = await begin(engine)
    engine.ready = False
    assert await up.readiness() == (503, ["the engine is down"])
    assert await up.metric("ready") == 0
    engine.ready = True
    assert await up.readiness() == (200, [])
    assert await up.metric("ready") == 1


async def test_an_engine_that_lost_its_model_refuses_with_a_reason(begin: Begin) -> None:
    up = await begin()
    assert isinstance(up.server.recogniser, Batcher)
    up.server.recogniser._model = None
    assert await refused(up.audiosocket) == GOODBYE
    await until(lambda: up.sink.events)
    assert up.sink.events[0].body == Refused("not ready")


# -- draining and closing ------------------------------------------------------------------------


async def test_calls_that_remain_are_hung_up_and_their_last_words_told(begin: Begin) -> None:
    up = await begin(service={"drain_timeout": 0.05})
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await peer.speak([5, 6])
        await until(lambda: _seconds(up) >= 0.8)
        draining = asyncio.create_task(up.server.drain())
        await until(lambda: up.server.draining)
        assert await up.readiness() == (503, ["draining"])
        assert await refused(up.audiosocket) == GOODBYE
        assert await peer.goodbye() == GOODBYE
        await draining
        await up.server.close()
    assert up.sink.text(peer.id) == said([5, 6])
    ended = up.sink.ended(peer.id)
    assert ended is not None
    assert ended.reason == "bridge"


async def test_hurrying_cuts_the_drain_short(begin: Begin) -> None:
    up = await begin(service={"drain_timeout": 10_000.0})
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await until(lambda: up.server.switchboard.calls)
        draining = asyncio.create_task(up.server.drain())
        await until(lambda: up.server.draining)
        up.server.hurry()
        await draining
        await up.server.close()
        assert (await peer.to_eof())[:3] == GOODBYE
    assert not up.server.switchboard.calls


async def test_a_connection_from_before_the_handover_is_still_a_call(begin: Begin) -> None:
    """It was accepted here, so the fresh worker will never see it."""
    up = await begin()
    async with Peer(up.audiosocket) as peer:
        assert up.server.port is not None
        await until(lambda: up.server.port.connections)  # type: ignore[union-attr]
        draining = asyncio.create_task(up.server.drain(handover=True))
        await until(lambda: up.server.draining)
        await peer.hello()
        await peer.speak([7, 8])
        peer.hang_up()
        await draining
        assert up.sink.text(peer.id) == said([7, 8])
        accepted = up.server.port.counters["accepted"]
        async with Peer(up.audiosocket) as next_one:  # waits for the fresh worker
            await next_one.hello()
            await up.server.close()
        assert up.server.port.counters["accepted"] == accepted


async def test_the_end_waits_for_peers_to_close(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset, which unread audio would make of a close, hangs the channel up."""
    monkeypatch.setattr(server_module, "GOODBYE_WAIT", 10.0)
    up = await begin()
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await until(lambda: up.server.switchboard.calls)
        closing = asyncio.create_task(up.server.close())
        for _ in range(5):
            await peer.speak([1])
            await http(up.http_port, "/healthz")  # some turns of the loop
        assert not closing.done()
        assert await peer.goodbye() == GOODBYE
        await closing


async def test_nothing_is_left_behind(begin: Begin) -> None:
    def inventory() -> tuple[int, int, int]:
        gc.collect()
        descriptors = len(os.listdir("/proc/self/fd"))
        return len(asyncio.all_tasks()), descriptors, threading.active_count()

    before = inventory()
    local = Address("127.0.0.1", 0)
    sockets = open_all({"audiosocket": local, "http": local})
    settings = from_dict({"engine": {"kind": "tones"}, "audiosocket": {"keepalive": "off"}})
    server = Server(settings)
    await server.start(sockets)
    async with Peer(sockets["audiosocket"].getsockname()[1]) as peer:
        await peer.hello()
        await peer.speak([1])
        await until(lambda: server.switchboard.calls)
        closing = asyncio.create_task(server.close())
        assert await peer.goodbye() == GOODBYE
        await closing
    await server.close()  # twice is once
    for sock in sockets.values():
        sock.close()
    await until(lambda: inventory() == before)


# -- announced calls and hanging up --------------------------------------------------------------


async def test_an_announced_call_from_post_to_delete(begin: Begin) -> None:
    up = await begin(audiosocket={"admission": "announced", "join_wait": 0.05})
    port = up.http_port
    id = str(uuid.uuid4())
    status, _ = await http(port, "/calls", "POST", uuid=id, call="c-1", caller="alice")
    assert status == 201
    assert (await http(port, "/calls", "POST", uuid=id))[0] == 409
    async with Peer(up.audiosocket) as peer:
        peer.id = id
        await peer.hello()
        await peer.speak([1, 2, 3])
        await until(lambda: _seconds(up) >= 1.2)
        _, found = await up.get("/calls/c-1")
        assert (found["caller"], found["ended"]) == ("alice", False)
        assert (await http(port, "/calls/c-1", "DELETE"))[0] == 204
        assert await peer.goodbye() == GOODBYE
    await until(lambda: up.sink.ended("c-1"))
    assert up.sink.text("c-1") == said([1, 2, 3])
    assert await http(port, "/calls/c-1/text") == (200, f"caller: {said([1, 2, 3])}\n")
    assert (await http(port, "/calls/c-1", "DELETE"))[0] == 404


async def test_guesses_at_uuids_make_no_calls(begin: Begin) -> None:
    """An unknown UUID, and one that was used, are closed without a slot and without events."""
    up = await begin(audiosocket={"admission": "announced", "join_wait": 0.05})
    assert await refused(up.audiosocket) == GOODBYE
    id = str(uuid.uuid4())
    await http(up.http_port, "/calls", "POST", uuid=id)
    for n in range(2):
        async with Peer(up.audiosocket) as peer:
            peer.id = id
            await peer.hello()
            if n:
                assert await peer.goodbye() == GOODBYE
            else:
                peer.hang_up()
                await until(lambda: up.sink.ended(id))
    assert up.server.recogniser.used == 0
    assert [e.call.id for e in up.sink.events if isinstance(e.body, Started)] == [id]
    assert await up.metric("calls_refused_total", reason="unannounced") == 2


async def test_a_scrape_shows_calls_frames_and_slots(begin: Begin) -> None:
    up = await begin()
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await peer.speak([1, 2])  # 0.8 s
        await until(lambda: up.sink.finals(peer.id))
        assert await up.metric("calls") == await up.metric("legs") == 1
        assert await up.metric("connections") == 1
        assert await up.metric("slots", state="used") == 1
        assert await up.metric("slots", state="free") == 7
        assert await up.metric("frames_total") > 0
        peer.hang_up()
        await until(lambda: up.sink.ended(peer.id))
    frames = sum(leg.frames for leg in up.sink.ended(peer.id).legs.values())  # type: ignore[union-attr]
    assert await up.metric("calls") == 0
    assert await up.metric("frames_total") == frames
    assert await up.metric("slots", state="used") == 0
    assert await up.metric("audiosocket_total", what="accepted") == 1
    assert (await up.get("/"))[1]["engine"] == "tones"


async def test_one_call_too_many_costs_only_itself(begin: Begin) -> None:
    """E3."""
    up = await begin(engine={"slots": 1})
    async with Peer(up.audiosocket) as peer:
        await peer.hello()
        await until(lambda: up.server.switchboard.calls)
        assert await refused(up.audiosocket) == GOODBYE
        await peer.speak([9])
        peer.hang_up()
        await until(lambda: up.sink.ended(peer.id))
    assert up.sink.text(peer.id) == said([9])
    assert [e.body for e in up.sink.events if isinstance(e.body, Refused)] == [Refused("busy")]


# -- floods and stalls ---------------------------------------------------------------------------

LORISES = 500


async def test_slow_lorises_disturb_nobody(begin: Begin) -> None:
    """A byte of a header and no more, from 500 sockets, around a call that goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    try:
        async with contextlib.AsyncExitStack() as stack:
            up = await begin(audiosocket={"uuid_deadline": 0.3})
            victim = await stack.enter_async_context(Peer(up.audiosocket))
            await victim.hello()
            words = list(range(20))
            for i in range(LORISES):
                loris = await stack.enter_async_context(Peer(up.audiosocket))
                await loris._send(b"\x01")
                if i % 25 == 0:
                    await victim.speak([words[i // 25]])
            counters = up.server.port.counters  # type: ignore[union-attr]
            await until(lambda: counters["accepted"] == LORISES + 1)
            await until(lambda: up.server.port.connections < LORISES or _all_told(up))  # type: ignore[union-attr]
            victim.hang_up()
            await until(lambda: up.sink.ended(victim.id))
            assert up.sink.text(victim.id) == said(words)
            told = await up.metric("connections_refused_total", reason="deadline")
            assert told == LORISES
            assert sum(isinstance(e.body, Started) for e in up.sink.events) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _all_told(up: Up) -> bool:
    assert up.server.port is not None
    idle = [c for c in up.server.port._connections.values() if c.ingress is None]
    return len(idle) == LORISES


class Stalling(TonesModel):
    """Stands still while `gate` is shut."""

    gate = threading.Event()
    stalled = threading.Event()

    def step(self) -> dict[int, Heard]:
        if not self.gate.is_set():
            self.stalled.set()
            assert self.gate.wait(60)
        return super().step()


async def test_a_stalled_engine_does_not_stall_the_sockets(begin: Begin) -> None:
    """Asterisk takes a full socket for a dead peer; old audio goes, and is counted."""
    Stalling.gate.clear()
    engine = Batcher("stalling", lambda: Stalling(2), rate=24000, block=1920, rules=BatchRules())
    up = await begin(engine)
    words = [(3 * i) % 256 for i in range(150)]  # 60 s
    try:
        async with Peer(up.audiosocket) as peer:
            await peer.hello()
            await peer.speak(words)  # returns when it is all in a kernel buffer or read
            await until(Stalling.stalled.is_set)
            (connection,) = up.server.port._connections.values()  # type: ignore[union-attr]
            await until(lambda: _unread(connection.sock) == 0)
            await until(lambda: _seconds(up) >= 60)
            dropped = await up.metric("blocks_dropped_total")
            assert dropped >= 750 - 125 - 1  # one is being stepped
            assert await up.readiness() == (200, [])  # the loop is alive meanwhile
            Stalling.gate.set()
            peer.hang_up()
            await until(lambda: up.sink.ended(peer.id))
    finally:
        Stalling.gate.set()
    heard = [word for final in up.sink.finals(peer.id) for word in final.words]
    tail = [word for word in heard if word.start > 40]
    assert [w.text for w in tail] == [text_of(word) for word in words[-len(tail) :]]
    assert len(tail) >= 15  # of the newest 10 s, which silence since then has shortened
    for word, true in zip(reversed(tail), range(149, 0, -1), strict=False):
        assert abs(word.start - 0.4 * true) <= 0.081  # dropped blocks count, too


def _unread(sock: Any) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, size)
    return size[0]


def _seconds(up: Up) -> float:
    return sum(
        leg.counts().seconds
        for call in up.server.switchboard.calls.values()
        for leg in call.legs.values()
    )
