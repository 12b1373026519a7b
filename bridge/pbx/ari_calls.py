"""Which calls are tapped, and which of their channels is which leg. Pure.

A call is tapped because a rule says so or because somebody asked. It has an *anchor*, the channel
that was asked for; the other leg is whoever the anchor talks with, once that one has answered. If
the anchor hangs up first, the other leg becomes the anchor. So after a transfer the new party is
heard too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from bridge.errors import BridgeError
from bridge.pbx.ari_channels import Channels, Party, is_local
from bridge.pbx.ari_rules import Rule
from bridge.pbx.ari_tap import Failure, Form, Outcome, Piece, Request, Tap
from bridge.pbx.ari_tapped import Alarms, TappedCall, Wanted
from bridge.types import Announcement, CallInfo, LegName

# s from the answer of a channel whose place in a call may not have been told yet: events of several
# channels come in any order, and a Local channel is tapped only where nothing better is
SETTLE = 0.25

# s that a callee's tap waits for the caller's: whose audio comes first opens the call, and the call
# should be known by the caller's channel, whoever has answered first
FIRST = 0.1

NOT_DIALLED = frozenset(("", "s", "h", "i", "t", "T", "o", "a", "e", "failed"))


class TappedCalls:
    """All tapped calls. See `Taps` for the callables."""

    def __init__(
        self,
        channels: Channels,
        form: Form,
        rules: Iterable[Rule],
        announce: Callable[[Announcement], object],
        learn: Callable[[Announcement], object],
        outcome: Callable[[str, str, LegName], Outcome],
        send: Callable[[Request], None],
        *,
        new_uuid: Callable[[], str],
        jitter: Callable[[], float],
        notice: Callable[[str], None],
    ) -> None:
        self.synced = False  # begin nothing before it is known what there is
        self.by_first: dict[str, TappedCall] = {}
        self.by_channel: dict[str, TappedCall] = {}
        self.by_uuid: dict[str, tuple[TappedCall, Tap]] = {}
        self.wanted: dict[str, Wanted] = {}  # by channel, until it is answered
        self.counters: Counter[str] = Counter()
        self.alarms = Alarms()
        self.rules = tuple(rules)
        self.new_uuid = new_uuid
        self.jitter = jitter
        self.notice = notice
        self._channels = channels
        self._form = form
        self._announce = announce
        self._learn = learn
        self._outcome = outcome
        self._send = send
        self._matched: set[str] = set()  # channels that a rule wants
        self._settling: dict[str, float] = {}  # channel → when to wait no longer
        self._settled: deque[tuple[float, str]] = deque()  # the same, in order

    # -- who is wanted ------------------------------------------------------------------------

    def place(self, party: Party) -> None:
        """Does a rule want this channel, where it is in the dialplan now?"""
        channel = party.channel
        if channel.id in self._matched or channel.state == "Down":
            return
        for rule in self.rules:
            if rule.of_place and (party.was_dialled or channel.app == "AppDial2"):
                continue  # what runs no dialplan shows a place where it never is
            if rule.matches(channel):
                self._matched.add(channel.id)
                self.want(channel.id, Wanted(rule.legs, rule=True))
                return

    def want(self, id: str, wanted: Wanted) -> None:
        """From its answer on; what somebody asks for comes before what a rule does."""
        if not wanted.rule or id not in self.wanted:
            self.wanted[id] = wanted

    def touch(self, id: str, now: float) -> None:
        """Something about this channel has changed."""
        party = self._channels.get(id)
        if party is None:
            return
        if any(not rule.of_place for rule in self.rules):
            self.place(party)
        if not self.synced:
            return
        call = self.by_channel.get(id)
        if call is not None and party.channel.consents:
            self._consented(call)
        if party.up and id in self.wanted and not self._wait(party, now):
            self._take(party, self.wanted.pop(id), now)
        if self.by_channel:
            linked = (self.by_channel.get(other) for other in self._channels.linked(id))
            for call in {call.first: call for call in linked if call}.values():
                self._extend(call, now)

    def _wait(self, party: Party, now: float) -> bool:
        """Is it too early to say of which call this channel is a part?"""
        id = party.channel.id
        if not self.wanted[id].rule:
            return False
        if not is_local(party) and (
            not party.was_dialled or self._channels.partner(id) is not None
        ):
            return False
        if id not in self._settling:
            self._settling[id] = now + SETTLE
            self._settled.append((now + SETTLE, id))
        return now < self._settling[id]

    def due(self) -> float | None:
        """When `settle`, or a tap of `alarms`, wants to be looked at."""
        times = [self.alarms.next(), self._settled[0][0] if self._settled else None]
        return min((time for time in times if time is not None), default=None)

    def settle(self, now: float) -> None:
        """Take the channels that have waited long enough."""
        while self._settled and self._settled[0][0] <= now:
            _, id = self._settled.popleft()
            self.touch(id, now)
            self._settling.pop(id, None)

    def _take(self, party: Party, wanted: Wanted, now: float) -> None:
        """A channel that was waited for is up: part of a call that we have, or a call of its own.

        A Local channel is tapped for a rule's sake only if neither of its call's ends is.
        """
        id, asked = party.channel.id, wanted.wish
        call = self.by_channel.get(id) or self.by_first.get(asked.call)
        if call is None:
            call = self.by_channel.get(self._channels.partner(id) or "")
        if call is None:
            if wanted.rule and is_local(party) and self._covered(id):
                return
            call = self.new_call(asked.call or self.new_uuid(), id)
        self.by_channel[id] = call
        if asked.consents or party.channel.consents:
            self._consented(call)
        if asked.leg is not None:
            call.names[id] = asked.leg
            self._add(call, asked.leg, id, now)
            if all(tap.channel != id for tap in call.taps.values()):
                self.counters["bad_requests"] += 1
                self.notice(f"{party.channel.name} is not tapped: its call has a {asked.leg} leg")
        else:
            call.wants |= set(wanted.legs)
            self._extend(call, now)

    def _consented(self, call: TappedCall) -> None:
        """Tell it of legs that are heard; those to come are announced so."""
        if call.consents:
            return
        call.consents = True
        for leg, tap in call.taps.items():
            if tap.live and not tap.adopted and self._outcome(tap.uuid, tap.call, leg) != "ended":
                info = CallInfo(id="", recording_consent=True)
                with suppress(BridgeError, ValueError):  # shutting down: nothing more is recorded
                    self._learn(Announcement(tap.uuid, tap.call, leg, info))

    def new_call(self, name: str, anchor: str) -> TappedCall:
        """A call without taps yet."""
        call = self.by_first[name] = TappedCall(name, name, anchor)
        return call

    def _covered(self, id: str) -> bool:
        half = self._channels.get(self._channels.other_half(id) or "")
        if half is not None and half.dialled_by in self._matched:
            return True
        if half is not None and half.channel.id in self._matched:
            # Of one that nobody dialled (Originate), the half that runs the dialplan: ;2
            if half.channel.name.endswith(";2") and self._channels.partner(id) is None:
                return True
        for other in self._channels.linked(id) - {id}:
            party = self._channels.get(other)
            if other in self.by_channel:
                return True
            if party is not None and not is_local(party) and other in self._matched:
                return True
        return False

    # -- its legs -----------------------------------------------------------------------------

    def _extend(self, call: TappedCall, now: float) -> None:
        """Tap the anchor and whom it talks with, as far as they are wanted."""
        if self._channels.get(call.anchor) is None or not call.wants or not self.synced:
            return
        other = self._channels.partner(call.anchor)
        mine, theirs = self.legs(call, other)
        for leg, id in ((mine, call.anchor), (theirs, other)):
            if id is not None and leg in call.wants:
                self._add(call, leg, id, now)

    def legs(self, call: TappedCall, other: str | None) -> tuple[LegName, LegName]:
        """The names of the anchor and of the other; a name once given stays."""
        known: dict[str, LegName] = {tap.channel: leg for leg, tap in call.taps.items()}
        mine = call.names.get(call.anchor) or known.get(call.anchor)
        if mine is None:
            return self._channels.legs(call.anchor, other)
        return mine, "callee" if mine == "caller" else "caller"

    def _add(self, call: TappedCall, leg: LegName, id: str, now: float) -> None:
        party, before = self._channels.get(id), call.taps.get(leg)
        if party is None or not party.up or self.by_channel.get(id, call) is not call:
            return  # not answered, or heard as part of another call
        if any(tap.channel == id and tap.leg != leg for tap in call.taps.values()):
            return  # under another name
        if before is not None and not self._gives_way(call, before, id):
            return
        self.by_channel[id] = call
        tap = self.new_tap(call, leg, id, now)
        caller = call.taps.get("caller")
        if leg == "callee" and "caller" in call.wants and (caller is None or caller.coming):
            tap.due = now + FIRST
            self.alarms.set(call, tap)
        else:
            self.begin(call, tap, now)

    def _gives_way(self, call: TappedCall, before: Tap, id: str) -> bool:
        """Has the leg that we have become another channel's, as after a transfer?"""
        if before.channel == id:
            return False
        if before.state != "over":
            if self._channels.partner(before.channel) in (None, call.anchor):
                return False
            before.end()
        self.by_uuid.pop(before.uuid, None)
        self.by_channel.pop(before.channel, None)
        return True

    def new_tap(self, call: TappedCall, leg: LegName, id: str, now: float) -> Tap:
        """A tap that has not begun."""

        def outcome(tap: Tap) -> Outcome:
            return "heard" if tap.adopted else self._outcome(tap.uuid, tap.call, leg)

        tap = call.taps[leg] = Tap(id, leg, self._form, self._send, outcome, now)
        return tap

    def adopt(self, id: str, uuid: str, pieces: set[Piece], now: float) -> None:
        """Another process taps this channel: it is not to be tapped twice."""
        partner = self._channels.partner(id)
        call = self.by_channel.get(id) or self.by_channel.get(partner or "")
        call = call or self.new_call(self.new_uuid(), id)
        leg, other = self._channels.legs(id, partner)
        if leg in call.taps:
            leg = other
        tap = self.new_tap(call, leg, id, now)
        tap.adopt(uuid, pieces, now)
        self.by_channel[id] = call
        self.by_uuid[uuid] = (call, tap)
        self.counters["adopted" if tap.state == "up" else "begun_anew"] += 1
        self.alarms.set(call, tap)

    def begin(self, call: TappedCall, tap: Tap, now: float) -> None:
        """An attempt at a tap that waits."""
        party = self._channels.get(tap.channel)
        if party is None or not self.synced:
            return
        self.by_uuid.pop(tap.uuid, None)
        if tap.attempts and not any(other.live for other in call.taps.values()):
            call.id = self.new_uuid()  # a refusal was the one event of a call of the id before
        uuid, tap.call = self.new_uuid(), call.id
        tap.uuid = uuid
        self.by_uuid[uuid] = (call, tap)
        self.counters["attempts"] += 1
        try:
            self._announce(self._announcement(call, tap, party))
        except (BridgeError, ValueError) as e:
            before = tap.standing
            tap.fail(Failure("announce", str(e)), now, self.jitter())
            self.judge(call, tap, before, now)
            return
        tap.begin(uuid, now)
        self.alarms.set(call, tap)

    def _announcement(self, call: TappedCall, tap: Tap, party: Party) -> Announcement:
        channel = party.channel
        dialled = channel.connected if channel.exten in NOT_DIALLED else channel.exten
        is_callee = tap.leg == "callee"
        info = CallInfo(
            id="",
            channel=channel.name,
            uniqueid=channel.id,
            linkedid=self._channels.linkedid(tap.channel),
            caller=channel.connected if is_callee else channel.caller,
            callee=channel.caller if is_callee else dialled,
            context=channel.context,
            exten=channel.exten,
            extra={} if call.id == call.first else {"call": call.first},
            recording_consent=call.consents or channel.consents,
        )
        return Announcement(tap.uuid, call.id, tap.leg, info)

    # -- what becomes of it -------------------------------------------------------------------

    def judge(self, call: TappedCall, tap: Tap, before: object, now: float) -> None:
        """Count and tell what has just come of a tap, whose `standing` was `before`."""
        self.alarms.set(call, tap)
        if tap.standing == before:
            return
        callee = call.taps.get("callee")
        if callee is not None and callee.fresh and tap.leg == "caller" and not tap.coming:
            callee.due = None
            self.begin(call, callee, now)
        why = tap.failure
        if tap.state == "up":
            self.counters["up"] += 1
        elif tap.state in ("waiting", "over") and why is not None:
            self.counters[f"untapped_{why.kind}"] += 1
            if tap.attempts <= 1 or tap.state == "over":  # once, not at every retry
                party = self._channels.get(tap.channel)
                name = party.channel.name if party else tap.channel
                again = "" if tap.state == "over" else "; it is tried again"
                self.notice(f"{name} is not tapped: {why.reason}{again}")

    def hung_up(self, id: str, now: float) -> None:
        """A call's own channel is gone."""
        self.wanted.pop(id, None)
        self._matched.discard(id)
        call = self.by_channel.pop(id, None)
        if call is None:
            return
        call.names.pop(id, None)
        for tap in [tap for tap in call.taps.values() if tap.channel == id]:
            tap.end()
            self.by_uuid.pop(tap.uuid, None)
        if call.anchor == id:
            alive = [t.channel for t in call.taps.values() if t.channel in self.by_channel]
            if not alive:
                self._drop(call)
                return
            call.anchor = alive[0]
        self._extend(call, now)

    def _drop(self, call: TappedCall) -> None:
        self.by_first.pop(call.first, None)
        for id in [id for id, other in self.by_channel.items() if other is call]:
            del self.by_channel[id]

    def clear(self) -> None:
        """End every tap."""
        for call in self.by_first.values():
            for tap in call.taps.values():
                tap.end()
        for table in (self.by_first, self.by_channel, self.by_uuid, self.wanted):
            table.clear()
