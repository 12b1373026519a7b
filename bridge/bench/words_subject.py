"""The whole bridge as it is measured with words: legs, turns, outbox, webhook, in one process.

As bridge/bench/subject.py, with an engine that hears a word of its own making in every leg at a
steady rate. A word's text is the moment of its making, which the receiver subtracts.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable

from bridge.bench.stamps import Stamps
from bridge.bench.subject import NullLease, NullRecogniser, main
from bridge.config import from_dict
from bridge.server import Server
from bridge.types import Block, Heard, Word

BLOCK = 0.08  # s


class _Lease(NullLease):
    __slots__ = ("_blocks", "_every", "_heard")

    def __init__(
        self, stamps: Stamps, heard: Callable[[Heard], None], done: Callable[[], None], every: int
    ) -> None:
        super().__init__(stamps, done)
        self._heard, self._every, self._blocks = heard, every, 0

    def push(self, block: Block) -> None:
        super().push(block)
        self._blocks += 1
        if self._every and (self._blocks + self._leg) % self._every == 0:
            asyncio.get_running_loop().call_soon(self._say, self._blocks * BLOCK)

    def _say(self, at: float) -> None:
        """A word, after which the speaker seems to pause: so each is a final."""
        word = Word(repr(time.monotonic()), at - BLOCK, at, 0.9)
        self._heard(Heard((word,), pause=1.0, at=at))


class _Recogniser(NullRecogniser):
    def __init__(self, stamps: Stamps, every: int) -> None:
        super().__init__(stamps)
        self._every = every

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> NullLease:
        """Always free."""
        return _Lease(self._stamps, heard, done, self._every)


async def serve_words(sock: socket.socket, stamps: Stamps, how: str) -> None:
    """`how`: JSON with ``url``, ``secret``, ``batch``, ``path``, ``every`` (blocks a word)."""
    told = json.loads(how)
    hook = {
        "url": told["url"],
        "secret": told["secret"],
        "batch": told["batch"],
        "events": ["transcript.final"],
        "queue": 100_000,
    }
    settings = from_dict(
        {
            "audiosocket": {"keepalive": "1s", "max_connections": 100_000,
                            "max_connections_per_address": 100_000, "uuid_deadline": 60},
            "calls": {"max": 100_000},
            "log": {"level": "error"},
            "outbox": {"path": told["path"]},
            "webhook": [hook] if told["every"] else [],
        }
    )  # fmt: skip
    server = Server(settings, _Recogniser(stamps, told["every"]))
    await server.start({"audiosocket": sock})


if __name__ == "__main__":
    main({"ours": serve_words}, sys.argv[1:])
