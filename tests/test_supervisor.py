"""`callscribe serve` as real processes: starts, stops, deaths, and calls that outlive them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bridge import supervisor
from bridge.config import Address
from bridge.errors import BridgeError
from bridge.listeners import listen
from tests.serving import (
    GOODBYE,
    PATIENCE,
    Peer,
    command,
    free_port,
    refused,
    serving,
    write_config,
)
from tests.waiting import until


async def test_a_whole_life(tmp_path: Path) -> None:
    async with serving(tmp_path) as bridge:
        assert (await bridge.ready())[0] == 200
        async with Peer(bridge.audiosocket) as peer:
            await peer.hello()
            await peer.speak([1, 2, 3])
            peer.hang_up()
            await bridge.heard(peer, [1, 2, 3])
            assert await peer.to_eof() == b""
        bridge.process.terminate()
        assert await bridge.exited() == 0


async def test_draining_lets_calls_end_and_takes_no_more(tmp_path: Path) -> None:
    """C9."""
    async with serving(tmp_path) as bridge, Peer(bridge.audiosocket) as peer:
        await peer.hello()
        await peer.speak([10, 11])
        await bridge.logged("type=call.started")
        bridge.process.terminate()
        await bridge.logged("draining: 1 calls")
        status, body = await bridge.ready()
        assert (status, json.loads(body)["reasons"]) == (503, ["draining"])
        assert await refused(bridge.audiosocket) == GOODBYE
        await peer.speak([12, 13])
        peer.hang_up()
        await bridge.heard(peer, [10, 11, 12, 13])
        assert await bridge.exited() == 0
        assert bridge.count("type=call.ended") == 1
        assert bridge.count("type=call.started") == 1  # the refused one made no call


async def test_calls_that_do_not_end_are_ended(tmp_path: Path) -> None:
    changes = {"drain_timeout": 0.2}
    async with serving(tmp_path, service=changes) as bridge, Peer(bridge.audiosocket) as peer:
        await peer.hello()
        await peer.speak([20, 21])
        await bridge.logged("type=call.started")
        bridge.process.terminate()
        assert await peer.goodbye() == GOODBYE
        await bridge.heard(peer, [20, 21])
        assert await bridge.exited() == 0


async def test_a_second_sigterm_does_not_wait_for_calls(tmp_path: Path) -> None:
    changes = {"drain_timeout": 10_000.0}
    async with serving(tmp_path, service=changes) as bridge, Peer(bridge.audiosocket) as peer:
        await peer.hello()
        await bridge.logged("type=call.started")
        bridge.process.terminate()
        await bridge.logged("draining")
        bridge.process.terminate()
        assert (await peer.to_eof())[:3] == GOODBYE
        assert await bridge.exited() == 0


class Hammer:
    """Connects all the while: no connect may ever be refused."""

    def __init__(self, port: int) -> None:
        self.connects = 0
        self.failures: list[OSError] = []
        self._port = port
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            with socket.socket() as sock:
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, ("127.0.0.1", self._port))
                    self.connects += 1
                except OSError as e:
                    self.failures.append(e)
            try:  # a hundred a second: it is the bridge that should be busy
                await asyncio.wait_for(self._stop.wait(), 0.01)
            except TimeoutError:
                continue

    async def stop(self) -> None:
        self._stop.set()
        await self._task
        assert self.connects > 0
        assert self.failures == []


async def test_a_killed_worker_costs_its_own_calls_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as bridge:
        hammer = Hammer(bridge.audiosocket)
        before = bridge.worker()
        async with Peer(bridge.audiosocket) as unlucky:
            await unlucky.hello()
            await bridge.logged("type=call.started")
            os.kill(before, signal.SIGKILL)
            assert await unlucky.to_eof() == b""
        peers = [Peer(bridge.audiosocket) for _ in range(5)]
        for i, peer in enumerate(peers):  # nobody is there: all of it waits in the kernel
            await peer.__aenter__()
            await peer.hello()
            await peer.speak(range(10 * i, 10 * i + 10))
            if i % 2:
                peer.hang_up()
        await bridge.logged("the worker died (status -9)")
        await bridge.logged(": ready:", times=2)
        for i, peer in enumerate(peers):
            if not i % 2:
                peer.hang_up()
            await bridge.heard(peer, range(10 * i, 10 * i + 10))
            await peer.__aexit__()
        assert bridge.worker() != before
        await hammer.stop()
        bridge.process.terminate()
        assert await bridge.exited() == 0


async def test_sighup_hands_over_without_a_word_lost(tmp_path: Path) -> None:
    # The second peer is connected and silent while the fresh worker starts, which takes seconds.
    async with serving(tmp_path, audiosocket={"uuid_deadline": 30.0}) as bridge:
        hammer = Hammer(bridge.audiosocket)
        old = bridge.worker()
        async with Peer(bridge.audiosocket) as first, Peer(bridge.audiosocket) as second:
            await first.hello()
            await first.speak([1, 2])
            await bridge.logged("type=call.started")
            bridge.process.send_signal(signal.SIGHUP)
            await bridge.logged("takes over from")
            await bridge.logged("draining: 1 calls")
            assert len(bridge.workers()) == 2
            await second.hello()
            await second.speak([3, 4])
            second.hang_up()
            await bridge.heard(second, [3, 4])
            status, _ = await bridge.ready()
            assert status == 200  # the fresh one's answer: the old one is draining
            await first.speak([5, 6])
            first.hang_up()
            await bridge.heard(first, [1, 2, 5, 6])
        await bridge.logged("stopped")
        await until(lambda: old not in bridge.workers(), PATIENCE)
        assert len(bridge.workers()) == 1
        await hammer.stop()
        bridge.process.terminate()
        assert await bridge.exited() == 0
        assert bridge.count("the worker died") == 0


async def test_many_sighups_leave_one_worker_that_serves(tmp_path: Path) -> None:
    async with serving(tmp_path) as bridge:
        for _ in range(5):
            bridge.process.send_signal(signal.SIGHUP)
        await bridge.logged("takes over from")
        bridge.process.send_signal(signal.SIGHUP)
        await bridge.logged("takes over from", times=2)
        await until(lambda: len(bridge.workers()) == 1, PATIENCE)
        async with Peer(bridge.audiosocket) as peer:
            await peer.hello()
            await peer.speak([5])
            peer.hang_up()
            await bridge.heard(peer, [5])
        bridge.process.terminate()
        assert await bridge.exited() == 0


async def test_sighup_with_a_bad_configuration_keeps_the_old_worker(tmp_path: Path) -> None:
    """C11."""
    async with serving(tmp_path) as bridge:
        old = bridge.worker()
        (tmp_path / "bridge.toml").write_text("[engine]\nslots = 0\n")
        bridge.process.send_signal(signal.SIGHUP)
        await bridge.logged("the fresh worker failed; the old one stays")
        assert bridge.count("engine.slots: expected 1 to 100000") == 1
        async with Peer(bridge.audiosocket) as peer:
            await peer.hello()
            await peer.speak([9])
            peer.hang_up()
            await bridge.heard(peer, [9])
        assert bridge.worker() == old
        bridge.process.terminate()
        assert await bridge.exited() == 0


async def test_a_killed_parent_is_followed_by_its_worker_when_calls_are_over(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as bridge, Peer(bridge.audiosocket) as peer:
        await peer.hello()
        await peer.speak([30])
        await bridge.logged("type=call.started")
        bridge.process.kill()
        await bridge.logged("draining: 1 calls")
        await peer.speak([31])
        peer.hang_up()
        await bridge.heard(peer, [30, 31])
        assert await bridge.exited() == -signal.SIGKILL


ENGINE_THAT_HANGS = """
import threading
from bridge.engine import tones
from bridge.engine.batcher import Batcher, BatchRules

def make(settings):
    def load():
        print("loading", file=__import__("sys").stderr, flush=True)
        threading.Event().wait()
    return Batcher("hanging", load, rate=24000, block=1920, rules=BatchRules())
"""


async def test_an_engine_that_hangs_does_not_stop_the_stop(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(ENGINE_THAT_HANGS)
    ports = free_port(), free_port()
    write_config(
        tmp_path / "bridge.toml",
        {
            "engine": {"kind": "hanging:make"},
            "audiosocket": {"listen": f"127.0.0.1:{ports[0]}"},
            "http": {"listen": f"127.0.0.1:{ports[1]}"},
        },
    )
    config = str(tmp_path / "bridge.toml")
    async with command("serve", "-c", config, PYTHONPATH=str(tmp_path)) as bridge:
        await bridge.logged("loading")
        bridge.process.terminate()
        assert await bridge.exited() == 0


async def test_every_wrong_key_has_a_line(tmp_path: Path) -> None:
    (tmp_path / "bridge.toml").write_text('[engine]\nslots = 0\n[ami]\nuser = "x"\n')
    async with command("serve", "-c", str(tmp_path / "bridge.toml")) as bridge:
        assert await bridge.exited() == 2
    assert bridge.lines == [
        'callscribe: engine.slots: expected 1 to 100000 or "auto", not 0',
        "callscribe: ami.username: is missing",
        "callscribe: ami.secret: is missing",
        "callscribe: ami.user: is not a setting (deployment/bridge.toml shows them all)",
    ]


async def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with listen(Address("127.0.0.1", 0), "other") as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        write_config(tmp_path / "bridge.toml", {"http": {"listen": address}})
        async with command("serve", "-c", str(tmp_path / "bridge.toml")) as bridge:
            assert await bridge.exited() == 1
    assert bridge.lines == [
        f"callscribe: http.listen = {address}: Address already in use; "
        "another program has this port"
    ]


async def test_an_engine_that_cannot_be_had_stops_the_start(tmp_path: Path) -> None:
    write_config(
        tmp_path / "bridge.toml",
        {"engine": {"kind": "nowhere:make"}, "http": {"listen": f"127.0.0.1:{free_port()}"}},
    )
    async with command("serve", "-c", str(tmp_path / "bridge.toml")) as bridge:
        assert await bridge.exited() == 1
    assert bridge.lines[-1] == (
        "callscribe: engine.kind = 'nowhere:make' cannot be imported: No module named 'nowhere'"
    )


async def test_the_worker_is_not_for_people() -> None:
    async with command("worker") as bridge:
        assert await bridge.exited() == 1
    assert bridge.lines == ["callscribe: this command is run by: callscribe serve"]


# -- the parent alone, with workers that are a few lines of shell --------------------------------

READY = "echo ready > /proc/self/fd/$CALLSCRIBE_READY_FD"
STAYS = "exec sleep 600 2>/dev/null"


class Parent:
    """A `Supervisor` in this process. `calm()` ends it and gives its status."""

    def __init__(self, script: str, sock: socket.socket) -> None:
        command = ["/bin/sh", "-c", script]
        self.port: int = sock.getsockname()[1]
        self.supervisor = supervisor.Supervisor(command, {"audiosocket": sock})
        self.task = asyncio.create_task(self.supervisor.run())

    async def status(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.task

    async def stop(self) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return await self.status()

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self.supervisor._workers]

    async def ready(self) -> int:
        """The process whose turn it is, once it is ready."""
        await until(lambda: (w := self.supervisor._worker) and w.alive and w.ready, PATIENCE)
        assert self.supervisor._worker is not None
        return self.supervisor._worker.process.pid


@pytest.fixture
async def parent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[str], Parent]]:
    monkeypatch.setattr(supervisor, "PATIENCE", 0.1)
    monkeypatch.setattr(supervisor, "RESTART_FIRST", 0.005)
    monkeypatch.setattr(supervisor, "RESTART_MOST", 0.05)
    monkeypatch.setattr(supervisor, "LOOK_EVERY", 0.01)
    made: list[Parent] = []
    with listen(Address("127.0.0.1", 0), "test") as sock:

        def begin(script: str) -> Parent:
            made.append(Parent(script, sock))
            return made[-1]

        yield begin
        for each in made:
            while not each.task.done():
                each.supervisor._stop()
                for worker in each.supervisor._workers:
                    worker.signal(signal.SIGKILL)
                await asyncio.sleep(0)


Begin = Callable[[str], Parent]


@pytest.mark.parametrize(("script", "status"), [("exit 2", 2), ("exit 7", 7), ("kill -9 $$", 1)])
async def test_a_worker_that_never_starts_ends_the_parent(
    parent: Begin, script: str, status: int
) -> None:
    assert await parent(script).status() == status


async def test_a_worker_that_cannot_be_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with listen(Address("127.0.0.1", 0), "test") as sock:
        parent = supervisor.Supervisor(["/nonexistent"], {"audiosocket": sock})
        with pytest.raises(BridgeError, match="no worker process can be started"):
            await parent.run()
    assert "a worker process cannot be started: No such file or directory" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("trap", "status"), [("", 0), ("trap 'exit 0' TERM;", 0),
                                              ("trap 'exit 5' TERM;", 1)])  # fmt: skip
async def test_the_worker_says_how_the_stop_went(
    parent: Begin, number: signal.Signals, trap: str, status: int
) -> None:
    begun = parent(f"{trap} {READY}; while :; do sleep 0.01; done")
    await begun.ready()
    os.kill(os.getpid(), number)
    assert await begun.status() == status


@pytest.mark.parametrize("status", [1, 2, 3])
async def test_a_crash_loop_is_answered_with_hang_ups(
    parent: Begin, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Workers that die while they load must not keep callers waiting for ever; nor must a
    configuration that was broken later on close the port."""
    broken = tmp_path / "broken"
    begun = parent(f"[ -e {broken} ] && sleep 0.01 && exit {status}; {READY}; {STAYS}")
    first = await begun.ready()
    hammer = Hammer(begun.port)
    broken.touch()
    os.kill(first, signal.SIGKILL)
    await until(lambda: "calls are refused" in caplog.text, PATIENCE)
    await until(lambda: caplog.text.count("the worker died") > 2, PATIENCE)
    assert await refused(begun.port) == GOODBYE
    broken.unlink()
    second = await begun.ready()
    assert second != first
    assert not begun.supervisor._refusing  # at once: the next caller is the worker's
    await hammer.stop()
    assert await begun.stop() == 0
    assert caplog.text.count("calls are refused") == 1


async def test_a_refused_peer_that_stays_is_closed(
    parent: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LINGER", 0.1)
    monkeypatch.setattr(supervisor, "GOODBYES", 1)
    begun = parent(f"[ -e {tmp_path}/broken ] && exit 1; {READY}; {STAYS}")
    first = await begun.ready()
    (tmp_path / "broken").touch()
    os.kill(first, signal.SIGKILL)
    await until(lambda: begun.supervisor._refusing, PATIENCE)
    async with Peer(begun.port) as stays, Peer(begun.port) as too_many:
        assert await stays.to_eof() == GOODBYE
        assert await too_many.to_eof() in (b"", GOODBYE)
    await until(lambda: begun.supervisor._goodbyes == 0)


async def test_a_fresh_worker_that_dies_is_replaced_while_the_old_one_still_drains(
    parent: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    begun = parent(f"trap '' USR1; {READY}; {STAYS}")  # a call of the old one never ends
    old = await begun.ready()
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: len(begun.pids()) == 2 and begun.supervisor._coming is None, PATIENCE)
    fresh = await begun.ready()
    assert fresh != old
    os.kill(fresh, signal.SIGKILL)
    await until(lambda: fresh not in begun.pids() and len(begun.pids()) == 2, PATIENCE)
    newest = await begun.ready()
    assert set(begun.pids()) == {old, newest}
    assert await begun.stop() == 0
    assert begun.pids() == []


async def test_an_old_worker_that_dies_while_the_fresh_one_loads_has_one_successor(
    parent: Begin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go = tmp_path / "go"
    go.touch()
    begun = parent(f"until [ -e {go} ]; do sleep 0.01; done; {READY}; {STAYS}")
    old = await begun.ready()
    go.unlink()
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: begun.supervisor._coming, PATIENCE)
    os.kill(old, signal.SIGKILL)
    await until(lambda: not begun.supervisor._coming, PATIENCE)
    go.touch()
    await begun.ready()
    assert len(begun.pids()) == 1
    assert await begun.stop() == 0


async def test_a_retired_worker_that_still_has_calls_does_not_close_the_port_silently(
    parent: Begin, tmp_path: Path
) -> None:
    """The stop waits for the last call; until then the parent answers for the worker."""
    go = tmp_path / "go"
    wait = f"until [ -e {go} ]; do sleep 0.01; done"
    begun = parent(f"trap '' USR1; trap '{wait}; exit' TERM; {READY}; while :; do sleep 0.01; done")
    await begun.ready()
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: len(begun.pids()) == 2 and begun.supervisor._coming is None, PATIENCE)
    fresh = await begun.ready()
    os.kill(os.getpid(), signal.SIGTERM)
    await until(begun.supervisor._stopping.is_set)
    os.kill(fresh, signal.SIGKILL)
    assert await refused(begun.port) == GOODBYE
    assert not begun.task.done()
    go.touch()
    assert await begun.status() == 1  # it was killed
