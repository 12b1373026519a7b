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
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from bridge.admission import Admission, Gate
from bridge.announced import Announced
from bridge.audio.resample import Bank
from bridge.call import Call, lost, merged, refusal
from bridge.errors import Busy
from bridge.interfaces import Recogniser
from bridge.joining import CallIds, learn
from bridge.left import LeftCalls
from bridge.leg import Leg
from bridge.line import SILENCE, Line, Listener
from bridge.listening import Listening, Part
from bridge.turns import TurnRules
from bridge.types import Announcement, CallEvent, CallInfo, Ended, LeftCall, LegCounts, LegName

UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

__all__ = ["Admission", "Counter", "Switchboard"]


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
    """All calls. `publish` gets every event of every call.

    `part(call, hang_up)` ends a line from our side, when call control has acknowledged what it was
    told of the call. `objection()` is what the engine has against any new leg.
    """

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
        part: Part = lambda call, hang_up: hang_up(),
        objection: Callable[[], Busy | None] = lambda: None,
        on_leg: Callable[[Call, Leg], None] = lambda call, leg: None,
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        self.gate = Gate(admission, recogniser, objection)
        self.listening = Listening(self.closed, part)
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
        self._part = part
        self._on_leg = on_leg  # told of each leg before its first frame
        self._room = room  # for what a call will say
        self._left = LeftCalls()
        self.announced = Announced(
            admission.announce_ttl, self.gate, lambda why: count.dropped("announcements", why)
        )
        self._waiting: dict[str, Line] = {}
        self._lines: dict[str, tuple[Line, Call]] = {}  # by UUID
        self._counted: dict[str, dict[LegName, Line]] = {}  # the lines of each call's legs
        self._ids = CallIds(lambda id: id in self.calls or id in self.ended)

    # -- call control --------------------------------------------------------------------------

    def announce(self, announcement: Announcement, now: float, *, reserve: bool = False) -> float:
        """What a UUID belongs to, before or after its socket. Seconds that it stays valid.

        `reserve`: keep a slot for it as long. Raises ValueError for what is not a UUID or is taken,
        `Busy` while draining, and where there is no room for a reservation.
        """
        uuid = announcement.uuid
        if not UUID_TEXT.fullmatch(uuid):
            raise ValueError("a UUID has the form 123e4567-e89b-12d3-a456-426614174000")
        if self.draining:
            raise Busy("draining", "the bridge is shutting down")
        if uuid in self._lines:  # late: no new call, but we know more about this one
            line, call = self._lines[uuid]
            learn(call, line.leg.name if line.leg else announcement.leg, announcement.info)
            self._listen(call, line, announcement)
            return 0.0
        if reserve and uuid not in self._waiting:
            self.gate.reserve(uuid, announcement.call or uuid, announcement.info)
        self.announced.add(announcement, now)
        line_waiting = self._waiting.pop(uuid, None)
        if line_waiting is not None:
            self._admit(line_waiting)
        return self.announced.ttl

    def taken(self, uuid: str) -> bool:
        """Is there a line with this UUID?"""
        return uuid in self._lines or uuid in self._waiting

    def hang_up(self, call_id: str) -> bool:
        """End every line of a call from our side."""
        if call_id not in self.calls:
            return False
        for line, call in list(self._lines.values()):
            if call.id == call_id:
                self.closed(line, "bridge")
                self._part(call.info, line.hang_up)
        return True

    def of_channel(self, channel: str) -> list[Call]:
        """Calls that are up and have this channel of Asterisk's, by name or unique id."""
        extra = ("callee_channel", "callee_uniqueid")
        return [
            call
            for call in self.calls.values()
            if channel in (call.info.channel, call.info.uniqueid)
            or channel in [call.info.extra.get(key) for key in extra]
        ]

    def left(self, calls: Iterable[LeftCall], ids: Iterable[str], until: float) -> None:
        """Calls that another process left when it died, and the ids of those that were over."""
        for call_id in ids:
            self._ids.use(call_id, call_id)
        self._left.add(calls, until)

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
        elif (
            uuid in self.announced
            or uuid in self._left
            or (self._admission.mode == "open" and self._admission.join_wait == 0)
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
        self.announced.expire(now)
        self.listening.expire(now)
        for left in self._left.lost(now):
            self._ids.use(left.info.id, left.info.id)
            self._publish(lost(left, self._wall()))
            self._count.call_ended("lost", left.at - left.began)
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
        unheard = Announcement(line.uuid, leg=self._left.leg(line.uuid))
        announcement = self.announced.take(line.uuid) or unheard
        call_id = announcement.call or line.uuid
        info = replace(announcement.info, id=call_id, ingress=line.ingress)
        if announcement.listen is not None:
            info = replace(info, listening=True)
        if self.draining:
            self.gate.release(line.uuid)
            return self._refuse(line, "draining", info)
        call = self.calls.get(call_id)
        if call is not None and (announcement.leg in call.legs or self._foreign(call, line)):
            call = None  # that leg is over: what comes now is a call of its own
        try:
            line.claim = self.gate.admit(line.uuid, call_id, info)
            if call is not None:
                leg = self._add_leg(call, announcement.leg, line)
                learn(call, leg.name, announcement.info)
            else:
                call, leg = self._new_call(announcement.leg, line, info)
        except Busy as e:
            self._leave(line)
            return self._refuse(line, e.reason, info)
        self._lines[line.uuid] = (line, call)
        self._counted.setdefault(call.id, {})[leg.name] = line
        self._on_leg(call, leg)
        line.attach(leg)
        self._listen(call, line, announcement)
        if line.lost:
            self._count.dropped("events", "waiting", line.lost)

    def _foreign(self, call: Call, line: Line) -> bool:
        """A peer joins calls of its own, by whatever name; call control joins any."""
        if line.owner is None:
            return False
        return any(other.owner != line.owner for other in self._counted.get(call.id, {}).values())

    def _new_call(self, name: LegName, line: Line, info: CallInfo) -> tuple[Call, Leg]:
        """A call with its first leg. Raises `Busy`."""
        left = self._left.find(info.id)
        if left is None and not self._room():
            raise Busy("outbox", "the outbox's file is full")
        call = Call(
            self._ids.named(info, line.uuid) if left is None else merged(left.info, info),
            publish=self._told,
            over=self._over,
            wall=self._wall,
            now=line.opened,
            pause_digits=self._admission.pause_digits,
            left=left,
        )
        leg = self._add_leg(call, name, line)
        self._left.back(call.info)
        self._ids.use(call.id, line.uuid)
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
        self._leave(line)
        self.listening.leg_over(line)
        if not line.closed:
            line.hang_up()
            self.closed(line, "engine")

    def _leave(self, line: Line) -> None:
        claim, line.claim = line.claim, None
        if claim is not None:
            self.gate.leave(claim)

    def _listen(self, call: Call, line: Line, announcement: Announcement) -> None:
        if announcement.listen is not None and line.leg is not None:
            self.listening.begin(call, line.leg, line, announcement.listen)

    def _latency_of(self, line: Line) -> Callable[[str, float], None]:
        def observe(stage: str, end: float) -> None:
            line.latency = round(self._clock() - line.origin() - end, 3)
            self._count.word_latency(stage, line.latency)

        return observe

    def _refuse(self, line: Line, reason: str, info: CallInfo | None = None) -> None:
        self._count.call_refused(reason)
        line.closed = reason
        if reason in ("unannounced", "duplicate"):
            line.hang_up()
            return  # guesses at UUIDs make no events, and somebody else's call is not touched
        named = self._ids.named(info or CallInfo(id=line.uuid, ingress=line.ingress), line.uuid)
        self._ids.use(named.id, line.uuid)
        self._publish(refusal(named, reason, self._wall()))
        self._part(named, line.hang_up)

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
        self.listening.told(event)
        for name, line in self._counted.get(event.call.id, {}).items():
            if line.listener is not None and event.leg in (None, name):
                line.listener.told(event)

    def _over(self, call: Call) -> None:
        for line in self._counted.get(call.id, {}).values():
            self._leave(line)  # of legs that were given up
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
