"""Which open line belongs to which call, and who may have one. Pure: the time is an argument.

A *line* is one peer's connection that has said its UUID. It waits (its audio kept) until call
control has said what the UUID belongs to, at most `join_wait` seconds; then it becomes a leg of a
call. In `announced` mode a UUID that nobody announced is refused, and one announcement opens one
line. In `open` mode the line becomes a call of its own, named by its UUID.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from bridge.call import Call, merged, refusal
from bridge.errors import Busy
from bridge.interfaces import Recogniser
from bridge.leg import Leg
from bridge.turns import TurnRules
from bridge.types import Announcement, CallEvent, CallInfo, Frame, LegName

UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MAX_ANNOUNCED = 10_000  # UUIDs waiting for their socket; the oldest goes first
MAX_HELD = 12.0  # s of audio kept for a line that waits; the oldest goes first


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


class Line:
    """One open connection. `hang_up()` ends it from our side; `origin()`: see `AudioSocket`."""

    __slots__ = ("_held", "closed", "hang_up", "ingress", "leg", "opened", "origin", "uuid")

    def __init__(
        self,
        uuid: str,
        ingress: str,
        hang_up: Callable[[], None],
        origin: Callable[[], float],
        now: float,
    ) -> None:
        self.uuid = uuid
        self.ingress = ingress
        self.hang_up = hang_up
        self.origin = origin
        self.opened = now
        self.closed = ""
        self.leg: Leg | None = None
        self._held: deque[Frame | str] = deque()

    def audio(self, frame: Frame) -> int:
        """To the leg, or kept until there is one. Returns the number of frames lost."""
        if self.leg is not None:
            self.leg.on_frame(frame)
            return 0
        self._held.append(frame)
        lost = 0
        while (frame.start - _start(self._held)) > MAX_HELD * frame.rate:
            self._held.popleft()
            lost += 1
        return lost

    def digit(self, digit: str) -> None:
        """As `audio`."""
        if self.leg is not None:
            self.leg.on_digit(digit)
        else:
            self._held.append(digit)

    def attach(self, leg: Leg) -> None:
        """The line has become a leg: it hears what was kept."""
        self.leg = leg
        held, self._held = self._held, deque()
        for item in held:
            if isinstance(item, str):
                leg.on_digit(item)
            else:
                leg.on_frame(item)
        if self.closed:
            leg.finish(self.closed)

    def close(self, reason: str) -> None:
        """The peer is gone."""
        self.closed = self.closed or reason
        if self.leg is not None:
            self.leg.finish(self.closed)


def _start(held: Iterable[Frame | str]) -> int:
    return next((item.start for item in held if isinstance(item, Frame)), 0)


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
        self._announced: OrderedDict[str, tuple[Announcement, float]] = OrderedDict()
        self._waiting: dict[str, Line] = {}
        self._lines: dict[str, tuple[Line, Call]] = {}  # by UUID

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
            if line.leg is not None:
                call.learn(announcement.info)
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
    ) -> Line:
        """A peer has said its UUID. The line may be hung up before this returns."""
        line = Line(uuid, ingress, hang_up, origin, now)
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
        """Let time pass: waits that are over, announcements nobody came for, endless calls."""
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
        if call_id in self.ended or (call is not None and announcement.leg in call.legs):
            # The leg or the whole call is over: what comes now is a call of its own, and its
            # events are numbered anew, so it needs an id of its own.
            call, call_id = None, self._unused(line.uuid)
            info = replace(info, id=call_id)
        if call is None and len(self.calls) >= self._admission.max_calls:
            return self._refuse(line, "limit", info)
        fresh = call is None
        if call is None:
            call = Call(
                info,
                publish=self._publish,
                over=self._over,
                wall=self._wall,
                now=line.opened,
            )
        else:
            call.learn(_of_second_leg(announcement))
        try:
            leg = call.add_leg(
                announcement.leg,
                self._recogniser,
                self._turns,
                now=line.opened,
                latency=self._latency_of(line),
            )
        except Busy as e:
            return self._refuse(line, e.reason, info)
        if fresh:
            self.calls[call_id] = call
            self._count.call_started(line.ingress)
        self._lines[line.uuid] = (line, call)
        line.attach(leg)

    def _unused(self, uuid: str) -> str:
        ids = (uuid, *(f"{uuid}-{n}" for n in range(2, 10_000)))
        return next(i for i in ids if i not in self.calls and i not in self.ended)

    def _latency_of(self, line: Line) -> Callable[[str, float], None]:
        def observe(stage: str, end: float) -> None:
            self._count.word_latency(stage, self._clock() - line.origin() - end)

        return observe

    def _refuse(self, line: Line, reason: str, info: CallInfo | None = None) -> None:
        self._count.call_refused(reason)
        info = info or CallInfo(id=line.uuid, ingress=line.ingress)
        if reason != "unannounced":  # guesses at UUIDs make no events
            self._publish(refusal(info, reason, self._wall()))
        line.closed = reason
        line.hang_up()

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
            self.ended.popitem(last=False)

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


def _together(old: Announcement, new: Announcement) -> Announcement:
    """Two announcements of one UUID (a VarSet and a UserEvent, say) know more than one."""
    leg: LegName = new.leg if new.call or not old.call else old.leg
    return Announcement(new.uuid, new.call or old.call, leg, merged(old.info, new.info))


def _of_second_leg(announcement: Announcement) -> CallInfo:
    """Channel fields of a call are those of its first leg; a second leg adds its own as extra."""
    info = announcement.info
    prefix = announcement.leg
    extra = {f"{prefix}_channel": info.channel, f"{prefix}_uniqueid": info.uniqueid}
    return CallInfo(id="", extra={**info.extra, **{k: v for k, v in extra.items() if v}})
