"""The kernel drops strangers' packets: a classic BPF program for a UDP socket.

A packet that the program refuses wakes nobody, takes no room in the socket's queue and costs this
process nothing, whatever its rate; the socket's counter of drops counts it. Where the kernel does
not take programs, whoever reads the socket has to look at each sender (`attach` says so).

The program sees a datagram from its UDP header on; `NET` reaches back to the IP header (Linux,
Documentation/networking/filter.rst, "Possible load operations"). Every rule is a block of
comparisons, each of which jumps to the next block when it fails.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Rule: TypeAlias = tuple[Network, int | None]
"""Senders that pass: a network, and a port or any."""

SO_ATTACH_FILTER, SO_MEMINFO = 26, 55  # asm-generic/socket.h
MAX_RULES = 250  # BPF_MAXINSNS is 4096, and an IPv6 rule takes up to 16

LOAD_WORD, LOAD_HALF, LOAD_BYTE, AND, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x30, 0x54, 0x15, 0x06
NET = 0xFFF00000  # SKF_NET_OFF
SOURCE_PORT = 0
SENDER = {4: NET + 12, 6: NET + 8}  # offsets of the source address
EVERYTHING, NOTHING = 0xFFFFFFFF, 0
Instruction: TypeAlias = tuple[int, int, int, int]


def program(rules: Sequence[Rule]) -> list[Instruction]:
    """Let pass what any rule names; without rules, nothing. (code, jump if true, if false, k)"""
    code: list[Instruction] = []
    for network, port in rules[:MAX_RULES]:
        code += _block(network, port)
    return [*code, (RETURN, 0, 0, NOTHING)]


def _block(network: Network, port: int | None) -> list[Instruction]:
    """Instructions that end in RETURN when all comparisons hold, and go on behind it if not."""
    steps: list[tuple[int, int, int | None, int]] = [  # load, offset, mask, expected
        (LOAD_BYTE, NET, 0xF0, network.version << 4)
    ]
    address, mask = network.network_address.packed, network.netmask.packed
    for at in range(0, len(address), 4):
        (bits,), (expected,) = (
            struct.unpack_from(">I", mask, at),
            struct.unpack_from(">I", address, at),
        )
        if bits:
            whole = None if bits == 0xFFFFFFFF else bits
            steps.append((LOAD_WORD, SENDER[network.version] + at, whole, expected))
    if port is not None:
        steps.append((LOAD_HALF, SOURCE_PORT, None, port))
    left = sum(2 + (mask is not None) for _, _, mask, _ in steps) + 1
    code: list[Instruction] = []
    for load, offset, bits_of, expected in steps:
        code.append((load, 0, 0, offset))
        if bits_of is not None:
            code.append((AND, 0, 0, bits_of))
        code.append((JUMP_EQUAL, 0, left - len(code) - 1, expected))
    return [*code, (RETURN, 0, 0, EVERYTHING)]


def attach(sock: socket.socket, rules: Sequence[Rule]) -> bool:
    """Filter what the socket receives from now on; False where the kernel cannot.

    What is in its queue already stays there. A new program replaces the one before.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(rules))
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    except OSError:
        return False
    return True


def dropped(sock: socket.socket) -> int:
    """Packets that the kernel dropped: refused by the program, or the queue was full."""
    try:
        return int(struct.unpack_from("=9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[8])
    except (OSError, struct.error):
        return 0
