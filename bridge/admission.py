"""Who may have a slot: rules, limits, and slots kept for those who were promised one. Pure.

A *claim* is one leg's right to a slot: first a reservation, made when call control announced the
leg and good for as long as the announcement, then a leg. Whoever has no reservation gets what is
left when all reservations are honoured, and what each [[limit]] with `reserve` keeps for its own
calls. A reservation holds nothing but a number, and it goes with its announcement: no slot can be
lost to one that nobody came for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from bridge.errors import Busy
from bridge.interfaces import Recogniser
from bridge.types import CallInfo


@dataclass(frozen=True, slots=True)
class Limit:
    """One of [[limit]]: calls of a trunk or a tenant. None of both: all calls.

    `max`: calls of it at once, those reserved for included; None: any number. `reserve`: slots
    that only its calls get.
    """

    name: str
    trunk: str = ""  # with * and ?, as a file name
    tenant: str = ""
    max: int | None = None
    reserve: int = 0

    def matches(self, info: CallInfo) -> bool:
        """Is this one of its calls?"""
        return _like(trunk_of(info), self.trunk) and _like(
            info.extra.get("tenant", ""), self.tenant
        )


def _like(text: str, pattern: str) -> bool:
    return not pattern or fnmatchcase(text, pattern)


def trunk_of(info: CallInfo) -> str:
    """What the announcement says, or the channel's endpoint: ``PJSIP/acme`` of PJSIP/acme-0000001f.

    What stands behind the last hyphen of a channel's name is its number.
    """
    return info.extra.get("trunk", "") or info.channel.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Admission:
    """Rules of [audiosocket], [calls] and [[limit]] that decide who gets a leg."""

    mode: Literal["open", "announced"] = "open"
    join_wait: float = 0.0  # s; 0: nobody will say more about a UUID
    max_calls: int = 2000
    max_seconds: float = 4 * 3600
    announce_ttl: float = 30.0
    keep_ended: int = 200
    pause_digits: str = ""
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)  # two legs' claims are never the same
class Claim:
    """One leg's right to a slot, reserved or used. `limits`: names of those that it counts for."""

    call: str
    limits: frozenset[str]


class Gate:
    """Lets legs in. `objection()` is what the engine has against any new leg, or None.

    `counters`: reservations ``made``, ``used``, ``released``, ``refused``. `refused`: by limit.
    """

    def __init__(
        self,
        rules: Admission,
        recogniser: Recogniser,
        objection: Callable[[], Busy | None] = lambda: None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.refused: Counter[str] = Counter({limit.name: 0 for limit in rules.limits})
        self._rules = rules
        self._recogniser = recogniser
        self._objection = objection
        self._reserved: dict[str, Claim] = {}  # by UUID
        self._used: set[Claim] = set()  # of legs

    @property
    def reserved(self) -> int:
        """Slots promised to legs that have not come."""
        return len(self._reserved)

    def calls(self) -> dict[str, int]:
        """Calls that count for each limit, those reserved for included."""
        return {limit.name: len(self._calls_of(limit.name)) for limit in self._rules.limits}

    # -- reservations --------------------------------------------------------------------------

    def reserve(self, uuid: str, call: str, info: CallInfo) -> None:
        """Keep a slot for this UUID until `admit` or `release`. Idempotent. Raises `Busy`."""
        if uuid in self._reserved:
            return
        try:
            if not self._recogniser.ready:
                raise Busy("not ready", "the engine is loading")
            if (objection := self._objection()) is not None:
                raise objection
            claim = self._claim(call, info)
            self._check(claim)
            self._check_slots(claim)
        except Busy:
            self.counters["refused"] += 1
            raise
        self._reserved[uuid] = claim
        self.counters["made"] += 1

    def release(self, uuid: str) -> None:
        """Nobody comes for it. Idempotent."""
        if self._reserved.pop(uuid, None) is not None:
            self.counters["released"] += 1

    # -- legs ----------------------------------------------------------------------------------

    def admit(self, uuid: str, call: str, info: CallInfo) -> Claim:
        """The leg has come; its claim stands until `leave`. Raises `Busy` without a reservation."""
        claim = self._reserved.pop(uuid, None)
        if claim is not None:  # checked then; and what is left of the engine is its own to say
            self.counters["used"] += 1
        else:
            claim = self._claim(call, info)
            self._check(claim)
            if self._kept(claim):
                self._check_slots(claim)
        self._used.add(claim)
        return claim

    def leave(self, claim: Claim) -> None:
        """The leg is over, or did not come to be. Idempotent."""
        self._used.discard(claim)

    def _claim(self, call: str, info: CallInfo) -> Claim:
        """A second leg counts for the limits of its call's first: they are one call."""
        for claim in (*self._used, *self._reserved.values()):
            if claim.call == call:
                return Claim(call, claim.limits)
        return Claim(call, frozenset(x.name for x in self._rules.limits if x.matches(info)))

    def _calls_of(self, name: str) -> set[str]:
        claims = (*self._used, *self._reserved.values())
        return {claim.call for claim in claims if name in claim.limits}

    def _check(self, claim: Claim) -> None:
        """Is there a call more in [calls] max and the limits? Raises `Busy`."""
        known = {c.call for c in (*self._used, *self._reserved.values())} - {claim.call}
        if len(known) >= self._rules.max_calls:
            raise Busy("limit", f"{self._rules.max_calls} calls are up, or reserved")
        for limit in self._rules.limits:
            if limit.name in claim.limits and limit.max is not None:
                others = self._calls_of(limit.name) - {claim.call}
                if len(others) >= limit.max:
                    self.refused[limit.name] += 1
                    raise Busy(
                        f"limit:{limit.name}",
                        f"the limit {limit.name} of {limit.max} calls is reached",
                    )

    def _kept(self, claim: Claim) -> int:
        """Free slots that others were promised."""
        return len(self._reserved) + sum(
            max(0, limit.reserve - self._slots_of(limit.name))
            for limit in self._rules.limits
            if limit.name not in claim.limits
        )

    def _check_slots(self, claim: Claim) -> None:
        slots, used, kept = self._recogniser.slots, self._recogniser.used, self._kept(claim)
        if used + kept >= slots:
            told = f", and {kept} are kept for others" if kept else ""
            raise Busy("busy", f"{used} of the engine's {slots} slots are taken{told}")

    def _slots_of(self, name: str) -> int:
        claims = (*self._used, *self._reserved.values())
        return sum(name in claim.limits for claim in claims)
