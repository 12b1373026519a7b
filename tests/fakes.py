"""Stand-ins with no behaviour of their own, for tests of what is around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from bridge.errors import Busy
from bridge.types import Block, CallEvent, Heard


class FakeLease:
    """Keeps what was pushed; the test says what was heard."""

    def __init__(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> None:
        self.heard = heard
        self.done = done
        self.blocks: list[Block] = []
        self.dropped = 0
        self.finished = False
        self.evicted = False
        self.flushes = 0

    def push(self, block: Block) -> None:
        self.blocks.append(block)

    def flush(self) -> None:
        self.flushes += 1

    def finish(self) -> None:
        self.finished = True

    def evict(self) -> None:
        self.evicted = True


class FakeRecogniser:
    """Slots without an engine."""

    name = "fake"
    rate = 24000
    block = 1920
    upsampling = "filter"
    settle = 0.16
    ready = True

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.counters: Counter[str] = Counter()
        self.on_step: Callable[[float, int], None] = lambda seconds, legs: None
        self.leases: list[FakeLease] = []

    @property
    def used(self) -> int:
        return sum(not lease.evicted for lease in self.leases)

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def language(self, text: str) -> str:
        return ""

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> FakeLease:
        if self.used >= self.slots:
            raise Busy()
        lease = FakeLease(heard, done)
        self.leases.append(lease)
        return lease


class Counts:
    """Counts like `bridge.metrics.Metrics`, into a list."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.seen.append((name, *args))


class Events(list[CallEvent]):
    """A publish() that remembers."""

    def __call__(self, event: CallEvent) -> None:
        self.append(event)

    def bodies(self, kind: type) -> list[object]:
        return [event.body for event in self if isinstance(event.body, kind)]
