"""Listening sockets that outlive the process behind them.

Asterisk closes other calls' descriptors when a connect is refused (a double close, seen on
22.10.1), so the AudioSocket port must be open whatever the bridge does. Sockets come from systemd
(sd_listen_fds(3)) or from our parent, or are opened here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from bridge.config import Address, Settings
from bridge.errors import BridgeError

FIRST_FD = 3  # SD_LISTEN_FDS_START
KNOWN = frozenset({"audiosocket", "http", "websocket"})
SOCKETS = "CALLSCRIBE_SOCKETS"
BACKLOG = 4096  # calls that wait in the kernel while a worker restarts


def wanted(settings: Settings) -> dict[str, Address]:
    """The listeners that the configuration asks for, by their LISTEN_FDNAMES name."""
    listeners = {"http": settings.http.listen}
    if settings.audiosocket is not None:
        listeners["audiosocket"] = settings.audiosocket.listen
    if settings.websocket is not None:
        listeners["websocket"] = settings.websocket.listen
    return listeners


def open_all(addresses: Mapping[str, Address]) -> dict[str, socket.socket]:
    """Bind and listen. Raises `BridgeError` with the address and what to do."""
    opened: dict[str, socket.socket] = {}
    try:
        for name, address in addresses.items():
            opened[name] = listen(address, name)
    except BridgeError:
        for sock in opened.values():
            sock.close()
        raise
    return opened


def listen(address: Address, name: str) -> socket.socket:
    """One listening socket, inheritable by none."""
    try:
        info = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, target = info[0]
        sock = socket.socket(family, kind, proto)
    except OSError as e:
        raise BridgeError(f"{name}.listen = {address}: {e.strerror or e}") from e
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        hint = "another program has this port" if e.errno == 98 else "choose another address"
        raise BridgeError(f"{name}.listen = {address}: {e.strerror}; {hint}") from e
    return sock


def inherited() -> dict[str, socket.socket]:
    """Sockets that systemd or our parent handed to this very process; {} if none."""
    ours = os.environ.pop(SOCKETS, "")
    if ours:
        pairs = (pair.split("=") for pair in ours.split(","))
        return {name: _adopt(int(fd)) for name, fd in pairs}
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(key, None)
    adopted = {
        _our_name(names[i] if i < len(names) else ""): _adopt(FIRST_FD + i) for i in range(count)
    }
    if len(adopted) < count or not KNOWN.issuperset(adopted):
        for sock in adopted.values():
            sock.close()
        raise BridgeError(
            f"systemd passes sockets named {', '.join(map(repr, names))}; give each .socket unit "
            f"one of these: {', '.join(f'FileDescriptorName={name}' for name in sorted(KNOWN))}"
        )
    return adopted


def _our_name(name: str) -> str:
    """FileDescriptorName= is by default the unit's name, ``callscribe-audiosocket.socket``."""
    return name.removesuffix(".socket").removeprefix("callscribe-")


def _adopt(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    return sock


def environment(sockets: Mapping[str, socket.socket]) -> dict[str, str]:
    """For a child that these sockets are passed to (`pass_fds`). Not LISTEN_FDS, because that
    fixes the descriptors' numbers and names the child's process id before there is one."""
    return {SOCKETS: ",".join(f"{name}={sock.fileno()}" for name, sock in sockets.items())}
