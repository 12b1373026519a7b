"""A process with a real outbox on a real file, to be killed at any moment (tests/test_kill.py).

`main` forks a child per line of standard input, so that twenty lives cost one start of Python. A
child makes calls, goes on with those that the child before it has left, and, when told that it is
the last, ends when everything has been delivered.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from bridge.config import WebhookSettings
from bridge.egress import retry
from bridge.egress.outbox import Outbox
from bridge.egress.shelf import Shelves
from bridge.egress.store_types import StoreLimits
from bridge.egress.webhook import Webhook
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EventBody,
    Final,
    LeftCall,
    Partial,
    Started,
    Word,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LENGTH = 14  # events of a call
AT_ONCE = 6  # calls
BEGAN = time.time()  # of all children
PACE = 0.004  # seconds between two rounds of events


def body(seq: int, run: int = 0) -> EventBody:
    """What every call says at this number; in another life it says it in other words."""
    words = (Word(f"word{run}", seq, seq + 1, 1.0),)
    if seq == 0:
        return Started()
    if seq == LENGTH - 1:
        return Ended("hangup", float(seq), {})
    return Partial(seq // 3, f"guess {seq}", words) if seq % 3 else Final(seq // 3 - 1, "x", words)


class Caller:
    def __init__(self, shelves: Shelves, outbox: Outbox, run: int) -> None:
        self.next: dict[str, int] = {}
        self._shelves, self._outbox, self._run = shelves, outbox, run
        self._made = 0
        shelves.on_calls = self.left

    def left(self, calls: tuple[LeftCall, ...], over: tuple[str, ...]) -> None:
        self.next |= {call.info.id: call.next for call in calls}

    def round(self, *, more: bool) -> None:
        """One event of each call."""
        while more and len(self.next) < AT_ONCE:
            self.next[f"{self._run}-{self._made}"] = 0
            self._made += 1
        for call, seq in list(self.next.items()):
            event = CallEvent(
                CallInfo(call), seq, BEGAN + seq / 100, "caller", body(seq, self._run)
            )
            self._shelves.publish(event, self._outbox.put)
            self.next[call] += 1
            if seq == LENGTH - 1:
                del self.next[call]


async def live(path: str, url: str, batch: bool, run: int, last: bool) -> None:
    shelves = Shelves(Path(path), StoreLimits())
    hook = Webhook(WebhookSettings(url=url, secret=SECRET, name="hook", batch=batch))
    outbox = Outbox(hook, limit=40, schedule=[0.0, 0.01, 0.02], shelf=shelves.shelf("hook"))
    caller = Caller(shelves, outbox, run)
    await shelves.start()
    await outbox.start()
    while not last or caller.next or outbox.queued:
        caller.round(more=not last)
        await asyncio.sleep(PACE)
    await outbox.close(5.0)
    await shelves.close(5.0)


def main() -> None:
    retry.PROBE = 0.05
    path, url, way = sys.argv[1:]
    for line in sys.stdin:
        run, last = line.split()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                asyncio.run(live(path, url, way == "batch", int(run), last == "last"))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
