"""How much of what is allowed: connections, new connections a second, failures. Pure.

Every table has a bound. `now` is any clock in seconds; a step backwards never locks anybody out
for longer than the wait that was meant.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from bridge.auth_types import Denied, Identity

T = TypeVar("T")

REMEMBERED = 10_000  # identities with a rate, addresses with failures


@dataclass(frozen=True, slots=True)
class Limit:
    """Of one identity. `connections` at once; `rate` new ones a second, 0: as many as come."""

    connections: int
    rate: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Buckets:
    """Token buckets by name: `burst` at once, then `rate` a second.

    At most `REMEMBERED`; then the one that was used longest ago is forgotten, which is the
    fullest of those that have the same rate.
    """

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, name: str, rate: float, burst: float, now: float) -> float:
        """Seconds until a token is there; 0: now. Takes none."""
        bucket = self._buckets.get(name)
        if bucket is None:
            return 0.0
        tokens = min(burst, bucket.tokens + max(0.0, now - bucket.at) * rate)
        return max(0.0, (1.0 - tokens) / rate)

    def take(self, name: str, rate: float, burst: float, now: float) -> None:
        """Take a token, if there is one."""
        bucket = self._buckets.setdefault(name, _Bucket(burst, now))
        self._buckets.move_to_end(name)
        bucket.tokens += max(0.0, now - bucket.at) * rate
        bucket.tokens = max(0.0, min(burst, bucket.tokens) - 1.0)
        bucket.at = now
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)


class Connections:
    """Live connections, by identity and by address."""

    def __init__(self, per_address: int) -> None:
        self._per_address = per_address
        self._identities: Counter[Identity] = Counter()
        self._addresses: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._identities.total()

    def check(self, identity: Identity, host: str, most: int) -> None:
        """Room for one more? Raises `Denied`."""
        if self._identities[identity] >= most:
            raise Denied(
                429,
                f"{identity.name} has its {most} connections; close one, or raise max_connections",
                reason="key_connections",
                retry_after=1.0,
            )
        if self._addresses[host] >= self._per_address:
            raise Denied(
                429,
                f"there are {self._per_address} connections from your address; close one, or "
                "raise max_connections_per_address",
                reason="address_connections",
                retry_after=1.0,
            )

    def opened(self, identity: Identity, host: str) -> None:
        """One more."""
        self._identities[identity] += 1
        self._addresses[host] += 1

    def closed(self, identity: Identity, host: str) -> None:
        """One less; one that was never opened changes nothing."""
        _less(self._identities, identity)
        _less(self._addresses, host)


def _less(table: Counter[T], name: T) -> None:
    if table[name] > 1:
        table[name] -= 1
    else:  # a counter keeps zeros, and negative numbers
        del table[name]


@dataclass(slots=True)
class _Failing:
    count: float  # of failures; fades with time
    at: float
    blocked: float | None = None  # since when


class Failures:
    """Wrong credentials, by address: more than `most` within a minute, and it has to wait."""

    def __init__(self, most: int, block: float) -> None:
        self._most, self._block = most, block  # failures, 0: any number; seconds
        self._table: OrderedDict[str, _Failing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def wait(self, host: str, now: float) -> float:
        """Seconds that this address has to wait; 0: none."""
        entry = self._table.get(host)
        if entry is None or entry.blocked is None:
            return 0.0
        since = now - entry.blocked
        if 0 <= since < self._block:
            return self._block - since
        del self._table[host]
        return 0.0

    def failed(self, host: str, now: float) -> bool:
        """One failure more; True: it was one too many, and the wait begins."""
        if not self._most:
            return False
        entry = self._table.setdefault(host, _Failing(0.0, now))
        self._table.move_to_end(host)
        faded = max(0.0, now - entry.at) * self._most / 60
        entry.count = max(0.0, entry.count - faded) + 1
        entry.at = now
        if len(self._table) > REMEMBERED:
            self._table.popitem(last=False)
        if entry.count > self._most and entry.blocked is None:
            entry.blocked = now
            return True
        return False
