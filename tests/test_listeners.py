"""Listening sockets: opened here, or handed over by systemd or by our parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bridge.config import Address, from_dict
from bridge.errors import BridgeError
from bridge.listeners import environment, inherited, listen, open_all, wanted
from tests.serving import (
    GOODBYE,
    PATIENCE,
    ROOT,
    Peer,
    children_of,
    command,
    free_port,
    write_config,
)

LOOPBACK = Address("127.0.0.1", 0)


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("CALLSCRIBE_SOCKETS", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def two() -> Iterator[dict[str, socket.socket]]:
    opened = open_all({"audiosocket": LOOPBACK, "http": LOOPBACK})
    yield opened
    for sock in opened.values():
        sock.close()


# -- opened here ---------------------------------------------------------------------------------


def test_what_the_configuration_wants() -> None:
    assert wanted(from_dict({})) == {"http": Address("127.0.0.1", 8001)}
    both = from_dict({"audiosocket": {"listen": "127.0.0.1:1"}, "http": {"listen": "[::1]:2"}})
    assert wanted(both) == {"audiosocket": ("127.0.0.1", 1), "http": ("::1", 2)}


def test_a_port_in_use_names_key_address_and_remedy() -> None:
    with listen(LOOPBACK, "http") as first:
        taken = Address("127.0.0.1", port_of(first))
        with pytest.raises(BridgeError) as e:
            listen(taken, "audiosocket")
    assert str(e.value) == (
        f"audiosocket.listen = {taken}: Address already in use; another program has this port"
    )


def test_an_address_that_is_not_ours_says_so() -> None:
    with pytest.raises(BridgeError) as e:
        listen(Address("192.0.2.1", 0), "http")  # RFC 5737: nobody's
    assert str(e.value) == (
        "http.listen = 192.0.2.1:0: Cannot assign requested address; choose another address"
    )


def test_a_name_that_does_not_resolve_says_so() -> None:
    with pytest.raises(BridgeError, match=r"^http\.listen = no host:1: "):
        listen(Address("no host", 1), "http")


def test_one_that_fails_closes_those_before_it() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BridgeError):
        open_all({"http": LOOPBACK, "audiosocket": Address("192.0.2.1", 0)})
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_listener_is_inherited_by_no_one_and_can_be_had_again_at_once() -> None:
    with listen(LOOPBACK, "http") as sock:
        assert not sock.get_inheritable()
        port = port_of(sock)
        with socket.create_connection(sock.getsockname()):
            sock.accept()[0].close()  # our side closes first: TIME_WAIT
    with listen(Address("127.0.0.1", port), "http"):
        pass


def test_callers_wait_in_the_kernel_by_the_hundred() -> None:
    """Whoever connects while nobody accepts must not be refused."""
    with listen(LOOPBACK, "audiosocket") as sock, contextlib.ExitStack() as peers:
        for _ in range(400):
            peer = peers.enter_context(socket.create_connection(sock.getsockname(), timeout=5))
            peer.sendall(b"\x01\x00\x10" + bytes(16))
        for _ in range(400):
            accepted, _ = sock.accept()
            with accepted:
                assert accepted.recv(100) == b"\x01\x00\x10" + bytes(16)


# -- handed over ---------------------------------------------------------------------------------


def test_nothing_is_inherited_without_being_told(clean: pytest.MonkeyPatch) -> None:
    assert inherited() == {}


def test_what_is_meant_for_another_process_is_left_alone(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("LISTEN_PID", str(os.getpid() + 1))
    clean.setenv("LISTEN_FDS", "2")
    assert inherited() == {}
    assert os.environ["LISTEN_FDS"] == "2"


def test_the_parents_sockets_by_number(
    clean: pytest.MonkeyPatch, two: dict[str, socket.socket]
) -> None:
    passed = {name: socket.socket(fileno=os.dup(sock.fileno())) for name, sock in two.items()}
    for name, value in environment(passed).items():
        clean.setenv(name, value)
    for sock in passed.values():
        sock.detach()
    adopted = inherited()
    try:
        assert {n: port_of(s) for n, s in adopted.items()} == {
            n: port_of(s) for n, s in two.items()
        }
        assert "CALLSCRIBE_SOCKETS" not in os.environ  # a child of ours must not take them
        assert not any(sock.get_inheritable() for sock in adopted.values())
    finally:
        for sock in adopted.values():
            sock.close()


AS_SYSTEMD = """
import json, os, sys
first, second, names, *args = sys.argv[1:]
high = [os.dup2(int(fd), 100 + i) for i, fd in enumerate((first, second))]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, *args])
"""
TELL = """
import json, os
from bridge.errors import BridgeError
from bridge.listeners import inherited
try:
    got = {name: sock.getsockname()[1] for name, sock in inherited().items()}
except BridgeError as e:
    got = str(e)
print(json.dumps([got, sorted(k for k in os.environ if k.startswith("LISTEN_"))]))
"""


async def as_systemd(
    two: Mapping[str, socket.socket], names: str, *args: str
) -> asyncio.subprocess.Process:
    """Run Python with these sockets as descriptors 3 and 4 (sd_listen_fds(3))."""
    numbers = [str(sock.fileno()) for sock in two.values()]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AS_SYSTEMD, *numbers, names, *args),
        cwd=ROOT,
        pass_fds=[sock.fileno() for sock in two.values()],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "names",
    [
        "audiosocket:http",
        "callscribe-audiosocket.socket:callscribe-http.socket",  # the units' names
    ],
)
async def test_sockets_from_systemd(two: dict[str, socket.socket], names: str) -> None:
    process = await as_systemd(two, names, "-c", TELL)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    adopted, left = json.loads(out)
    assert adopted == {name: port_of(sock) for name, sock in two.items()}
    assert left == []


@pytest.mark.parametrize("names", ["audiosocket:audiosocket", "audiosocket", "unknown:http"])
async def test_sockets_of_other_names_are_an_error(
    two: dict[str, socket.socket], names: str
) -> None:
    process = await as_systemd(two, names, "-c", TELL)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    shown = ", ".join(map(repr, names.split(":")))
    assert json.loads(out)[0] == (
        f"systemd passes sockets named {shown}; give each .socket unit one of these: "
        "FileDescriptorName=audiosocket, FileDescriptorName=http, FileDescriptorName=websocket"
    )


async def test_serve_on_systemds_sockets_is_one_process(
    two: dict[str, socket.socket], tmp_path: Path
) -> None:
    """A stop leaves the port open: callers of the next start wait in the kernel."""
    write_config(
        tmp_path / "bridge.toml",
        {
            "engine": {"kind": "tones", "slots": 2},
            "audiosocket": {"keepalive": "off", "listen": f"127.0.0.1:{free_port()}"},
            "service": {"drain_timeout": 0.0},
        },
    )
    config = str(tmp_path / "bridge.toml")
    process = await as_systemd(two, "audiosocket:http", "-m", "bridge", "serve", "-c", config)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while b": ready:" not in (await process.stderr.readline()):
                pass
        assert children_of(process.pid) == set()
        process.send_signal(signal.SIGHUP)  # would end a process that does not expect it
        async with asyncio.timeout(PATIENCE):
            while b"SIGHUP" not in (await process.stderr.readline()):
                pass
        async with Peer(port_of(two["audiosocket"])) as peer:
            await peer.hello()
            async with asyncio.timeout(PATIENCE):
                while b"call.started" not in (await process.stderr.readline()):
                    pass
            process.terminate()
            assert await peer.goodbye() == GOODBYE
        await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 0
        async with Peer(port_of(two["audiosocket"])) as waits:
            await waits.hello()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_wrong_name_from_systemd_stops_the_start(two: dict[str, socket.socket]) -> None:
    process = await as_systemd(two, "a:b", "-m", "bridge", "serve")
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert err.startswith(b"callscribe: systemd passes sockets named 'a', 'b'; ")


async def test_listen_pid_of_another_is_no_activation(tmp_path: Path) -> None:
    """As in a shell that systemd started with sockets for somebody else."""
    config = tmp_path / "bridge.toml"
    address = f"192.0.2.1:{free_port()}"
    write_config(config, {"http": {"listen": address, "allow_insecure": True}})
    async with command("serve", "-c", str(config), LISTEN_PID="1", LISTEN_FDS="2") as bridge:
        assert await bridge.exited() == 1
    assert "Cannot assign requested address" in bridge.lines[-1]
