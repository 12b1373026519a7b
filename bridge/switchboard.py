"""Which open line belongs to which call, and who may have one. Pure: the time is an argument.

A *line* is one peer's connection that has said its UUID, or the stream at the port that was opened
for its UUID. It waits (its audio kept) until call
control has said what the UUID belongs to, at most `join_wait` seconds; then it becomes a leg of a
call. In `announced` mode a UUID that nobody announced is refused, and one announcement opens one
line. In `open` mode the line becomes a call of its own, named by its UUID.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from bridge.audio.resample import Bank
from bridge.call import Call, merged, refusal
from bridge.errors import Busy
from bridge.interfaces import Recogniser
from bridge.leg import Leg
from bridge.line import SILENCE, Line, Listener
from bridge.turns import TurnRules
from bridge.types import Announcement, CallEvent, CallInfo, Ended, LegCounts, LegName

UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MAX_ANNOUNCED = 10_000  # UUIDs waiting for their socket; the oldest goes first
MAX_IDS = 10_000  # ids of calls remembered, so that none is used twice


@dataclass(frozen=True, slots=True)
class Admission:
    """Rules of [audiosocket] and [calls] that decide who gets a leg."""

    mode: Literal["open", "announced"] = "open"
    join_wait: float = 0.0  # s; 0: nobody will say more about a UUID
    max_calls: int = 2000
    max_seconds: float = 4 * 3600
    announce_ttl: float = 30.0
    keep_ended: int = 200


class Counter(Protocol):
    """What the switchboard counts (see bridge/metrics.py)."""

    def call_started(self, ingress: str) -> None:
        """A call has its first leg."""

    def call_ended(self, reason: str, seconds: float) -> None:
        """A call is over."""

    def call_refused(self, reason: str) -> None:
        """A call was not taken."""

    def dropped(self, what: str, reason: str, n: int = 1) -> None:
        """Something was lost."""

    def word_latency(self, stage: str, seconds: float) -> None:
        """A word ended `seconds` before it was told."""


class Switchboard:
    """All calls. `publish` gets every event of every call."""

    def __init__(
        self,
        recogniser: Recogniser,
        admission: Admission,
        turns: TurnRules,
        *,
        publish: Callable[[CallEvent], None],
        count: Counter,
        clock: Callable[[], float],
        wall: Callable[[], float],
        bank: Bank | None = None,
        on_leg: Callable[[Call, Leg], None] = lambda call, leg: None,
    ) -> None:
        self.calls: dict[str, Call] = {}
        self.ended: OrderedDict[str, Call] = OrderedDict()
        self.draining = False
        self.total_ended = 0  # calls
        self.totals: dict[str, int] = {"frames": 0, "blocks_dropped": 0}  # of ended calls
        self._recogniser = recogniser
        self._admission = admission
        self._turns = turns
        self._publish = publish
        self._count = count
        self._clock = clock
        self._wall = wall
        self._bank = bank
        self._on_leg = on_leg  # told of each leg before its first frame
        self._announced: OrderedDict[str, tuple[Announcement, float]] = OrderedDict()
        self._waiting: dict[str, Line] = {}
        self._lines: dict[str, tuple[Line, Call]] = {}  # by UUID
        self._counted: dict[str, dict[LegName, Line]] = {}  # the lines of each call's legs
        self._ids: OrderedDict[str, int] = OrderedDict()  # had events: how many calls wanted it

    # -- call control --------------------------------------------------------------------------

    def announce(self, announcement: Announcement, now: float) -> float:
        """What a UUID belongs to, before or after its socket. Seconds that it stays valid.

        Raises ValueError for what is not a UUID or is taken, `Busy` while draining.
        """
        uuid = announcement.uuid
        if not UUID_TEXT.fullmatch(uuid):
            raise ValueError("a UUID has the form 123e4567-e89b-12d3-a456-426614174000")
        if self.draining:
            raise Busy("draining", "the bridge is shutting down")
        if uuid in self._lines:  # late: no new call, but we know more about this one
            line, call = self._lines[uuid]
            _learn(call, line.leg.name if line.leg else announcement.leg, announcement.info)
            return 0.0
        before = self._announced.pop(uuid, None)
        if before is not None:
            announcement = _together(before[0], announcement)
        while len(self._announced) >= MAX_ANNOUNCED:
            self._announced.popitem(last=False)
            self._count.dropped("announcements", "full")
        self._announced[uuid] = (announcement, now + self._admission.announce_ttl)
        line_waiting = self._waiting.pop(uuid, None)
        if line_waiting is not None:
            self._admit(line_waiting)
        return self._admission.announce_ttl

    def known(self, uuid: str) -> bool:
        """Has this UUID been announced and not been used?"""
        return uuid in self._announced

    def expected(self, call_id: str) -> bool:
        """Has a leg of this call been announced, and not come yet?"""
        said = (announcement for announcement, _ in self._announced.values())
        return call_id in self._announced or any(leg.call == call_id for leg in said)

    def taken(self, uuid: str) -> bool:
        """Is there a line with this UUID?"""
        return uuid in self._lines or uuid in self._waiting

    def forget(self, uuid: str) -> None:
        """Nobody will come for this UUID any more."""
        self._announced.pop(uuid, None)

    def hang_up(self, call_id: str) -> bool:
        """End every line of a call from our side."""
        if call_id not in self.calls:
            return False
        for line, call in list(self._lines.values()):
            if call.id == call_id:
                line.hang_up()
                self.closed(line, "bridge")
        return True

    # -- lines ---------------------------------------------------------------------------------

    def opened(
        self,
        uuid: str,
        ingress: str,
        hang_up: Callable[[], None],
        origin: Callable[[], float],
        now: float,
        counted: Callable[[LegCounts], LegCounts] = lambda counts: counts,
        listener: Listener | None = None,
        owner: object = None,
    ) -> Line:
        """A peer has said its UUID. The line may be hung up before this returns."""
        line = Line(uuid, ingress, hang_up, origin, now, counted, listener, owner)
        if uuid in self._lines or uuid in self._waiting:
            self._refuse(line, "duplicate")
        elif uuid in self._announced or (
            self._admission.mode == "open" and self._admission.join_wait == 0
        ):
            self._admit(line)
        elif self._admission.join_wait == 0:
            self._refuse(line, "unannounced")
        else:
            self._waiting[uuid] = line
        return line

    def closed(self, line: Line, reason: str) -> None:
        """The peer of a line is gone. Idempotent."""
        if self._waiting.get(line.uuid) is line:
            # Too short to be announced: in open mode what was said is heard all the same.
            del self._waiting[line.uuid]
            if self._admission.mode == "open":
                self._admit(line)
        line.close(reason)
        if self._lines.get(line.uuid, (None,))[0] is line:
            del self._lines[line.uuid]

    def expire(self, now: float) -> None:
        """Let time pass: waits that are over, announcements nobody came for, endless calls, and
        legs whose peers send nothing."""
        for line in [line for line in self._waiting.values() if self._late(line, now)]:
            del self._waiting[line.uuid]
            if self._admission.mode == "open":
                self._admit(line)
            else:
                self._refuse(line, "unannounced")
        while self._announced:
            uuid, (_, until) = next(iter(self._announced.items()))
            if until > now:
                break
            del self._announced[uuid]
            self._count.dropped("announcements", "expired")
        for call in [c for c in self.calls.values() if now - c.began > self._admission.max_seconds]:
            self.hang_up(call.id)
        for line, _ in self._lines.values():
            if line.leg is not None:
                line.leg.on_time(now)
        if self._bank is not None:
            self._bank.run()

    def _late(self, line: Line, now: float) -> bool:
        return now - line.opened >= self._admission.join_wait

    # -- admission -----------------------------------------------------------------------------

    def _admit(self, line: Line) -> None:
        announcement, _ = self._announced.pop(line.uuid, (Announcement(line.uuid), 0.0))
        call_id = announcement.call or line.uuid
        info = replace(announcement.info, id=call_id, ingress=line.ingress)
        if self.draining:
            return self._refuse(line, "draining", info)
        call = self.calls.get(call_id)
        if call is not None and (announcement.leg in call.legs or self._foreign(call, line)):
            call = None  # that leg is over: what comes now is a call of its own
        try:
            if call is not None:
                leg = self._add_leg(call, announcement.leg, line)
                _learn(call, leg.name, announcement.info)
            else:
                call, leg = self._new_call(announcement.leg, line, info)
        except Busy as e:
            return self._refuse(line, e.reason, info)
        self._lines[line.uuid] = (line, call)
        self._counted.setdefault(call.id, {})[leg.name] = line
        self._on_leg(call, leg)
        line.attach(leg)
        if line.lost:
            self._count.dropped("events", "waiting", line.lost)

    def _foreign(self, call: Call, line: Line) -> bool:
        """A peer joins calls of its own, by whatever name; call control joins any."""
        if line.owner is None:
            return False
        return any(other.owner != line.owner for other in self._counted.get(call.id, {}).values())

    def _new_call(self, name: LegName, line: Line, info: CallInfo) -> tuple[Call, Leg]:
        """A call with its first leg. Raises `Busy`."""
        if len(self.calls) >= self._admission.max_calls:
            raise Busy("limit", f"{self._admission.max_calls} calls are up")
        call = Call(
            self._named(info, line),
            publish=self._told,
            over=self._over,
            wall=self._wall,
            now=line.opened,
        )
        leg = self._add_leg(call, name, line)
        self._use(call.id, line.uuid)
        self.calls[call.id] = call
        self._count.call_started(line.ingress)
        return call, leg

    def _add_leg(self, call: Call, name: LegName, line: Line) -> Leg:
        return call.add_leg(
            name,
            self._recogniser,
            self._turns,
            now=line.opened,
            latency=self._latency_of(line),
            over=lambda: self._leg_over(line),
            bank=self._bank,
        )

    def _leg_over(self, line: Line) -> None:
        """A leg has heard its last; unless its peer is gone, nobody would listen any more."""
        if not line.closed:
            line.hang_up()
            self.closed(line, "engine")

    def _named(self, info: CallInfo, line: Line) -> CallInfo:
        """`info` with an id that no event has had; what it was to be is then ``extra["call"]``.

        Events are numbered by id, refusals too: a sink that tells them apart by id and number
        would take the second call's for the first's.
        """
        if not self._used(info.id):
            return info
        name, n = line.uuid, self._ids.get(line.uuid, 1)
        while self._used(name):
            n += 1
            name = f"{line.uuid}-{n}"
        return replace(info, id=name, extra={**info.extra, "call": info.id})

    def _used(self, call_id: str) -> bool:
        return call_id in self._ids or call_id in self.calls or call_id in self.ended

    def _use(self, call_id: str, uuid: str) -> None:
        self._ids.setdefault(call_id, 1)
        if call_id != uuid and uuid in self._ids:  # so that the next search begins there
            self._ids[uuid] += 1
            self._ids.move_to_end(uuid)
        while len(self._ids) > MAX_IDS:
            self._ids.popitem(last=False)

    def _latency_of(self, line: Line) -> Callable[[str, float], None]:
        def observe(stage: str, end: float) -> None:
            line.latency = round(self._clock() - line.origin() - end, 3)
            self._count.word_latency(stage, line.latency)

        return observe

    def _refuse(self, line: Line, reason: str, info: CallInfo | None = None) -> None:
        self._count.call_refused(reason)
        line.closed = reason
        line.hang_up()
        if reason in ("unannounced", "duplicate"):
            return  # guesses at UUIDs make no events, and somebody else's call is not touched
        named = self._named(info or CallInfo(id=line.uuid, ingress=line.ingress), line)
        self._use(named.id, line.uuid)
        self._publish(refusal(named, reason, self._wall()))

    def counts(self, call: Call) -> dict[str, LegCounts]:
        """What the audio of a call's legs has come to, in the engine and on the way there."""
        lines = self._counted.get(call.id, {})
        return {name: _counts(leg, lines.get(name)) for name, leg in call.legs.items()}

    def now(self, call: Call, name: str) -> dict[str, float | None]:
        """A leg's level in dB of full scale, and how late its last word was, in seconds."""
        line = next((ln for leg, ln in self._counted.get(call.id, {}).items() if leg == name), None)
        if line is None:
            return {"level": SILENCE, "latency": None}
        return {"level": line.level(), "latency": line.latency}

    def _told(self, event: CallEvent) -> None:
        """An event of a call goes out; its last one says what its transport lost, too."""
        body = event.body
        if isinstance(body, Ended) and (call := self.calls.get(event.call.id)) is not None:
            event = replace(event, body=replace(body, legs=self.counts(call)))
        self._publish(event)
        for name, line in self._counted.get(event.call.id, {}).items():
            if line.listener is not None and event.leg in (None, name):
                line.listener.told(event)

    def _over(self, call: Call) -> None:
        del self.calls[call.id]
        assert call.ended is not None
        self.total_ended += 1
        for counts in call.ended.legs.values():
            self.totals["frames"] += counts.frames
            self.totals["blocks_dropped"] += counts.blocks_dropped
        self._count.call_ended(call.ended.reason, call.ended.seconds)
        self.ended[call.id] = call
        while len(self.ended) > self._admission.keep_ended:
            self._counted.pop(self.ended.popitem(last=False)[0], None)

    def find(self, call_id: str) -> Call | None:
        """A call that is up, or one of the last that ended."""
        return self.calls.get(call_id) or self.ended.get(call_id)

    @property
    def lines(self) -> int:
        """Lines that are legs."""
        return len(self._lines)

    @property
    def waiting(self) -> int:
        """Lines that wait for an announcement."""
        return len(self._waiting)


def _counts(leg: Leg, line: Line | None) -> LegCounts:
    counts = leg.counts()
    return counts if line is None else line.counted(counts)


def _together(old: Announcement, new: Announcement) -> Announcement:
    """Two announcements of one UUID (a VarSet and a UserEvent, say) know more than one."""
    leg: LegName = new.leg if new.call or not old.call else old.leg
    return Announcement(new.uuid, new.call or old.call, leg, merged(old.info, new.info))


def _learn(call: Call, name: LegName, info: CallInfo) -> None:
    """Channel fields of a call are those of its caller's leg; the other's are in `extra`.

    While there is no caller's leg they are the callee's, and give way to the caller's.
    """
    if name == "callee" and "caller" in call.legs:
        extra = {**info.extra, **_channel("callee", info)}
        call.learn(CallInfo(id="", extra=extra, recording_consent=info.recording_consent))
        return
    known = call.info
    moved = name == "caller" and "callee" in call.legs and info.channel not in ("", known.channel)
    extra = _channel("callee", known) if moved else {}
    call.learn(replace(info, extra={**extra, **info.extra}))


def _channel(name: LegName, info: CallInfo) -> dict[str, str]:
    own = {f"{name}_channel": info.channel, f"{name}_uniqueid": info.uniqueid}
    return {key: value for key, value in own.items() if value}
