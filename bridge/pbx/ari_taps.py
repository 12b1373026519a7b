"""Taps on calls: ARI's events go in, requests come out. Pure.

`connected` → (events) → `listed` → events … → `lost`. Nothing is begun before `listed`, because
only the listing shows what is up and what is tapped already. It also shows what a bridge before us
left: what is whole is adopted, what is not is deleted, and no call that waits in our application is
kept there.

ari_events     what ARI says              ari_channels   who talks with whom
ari_rules      calls tapped unasked       ari_calls      which calls are tapped, and their legs
ari_tap        one leg's tap              ari_media      the ways of its audio
here           what happens, and when
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from urllib.parse import quote

from bridge.errors import BridgeError
from bridge.pbx.ari_calls import TappedCalls
from bridge.pbx.ari_channels import Channels, is_party
from bridge.pbx.ari_events import (
    Arrived,
    Asked,
    Bridge,
    Channel,
    Dialled,
    Entered,
    Event,
    Gone,
    Left,
    Placed,
    Seen,
    Wish,
    wish,
)
from bridge.pbx.ari_rules import BOTH, Rule
from bridge.pbx.ari_tap import Failure, Form, Outcome, Piece, Request, delete
from bridge.pbx.ari_tapped import TappedCall, Wanted
from bridge.types import Announcement, LegName

RETRIES = 5  # of a deletion; what is left then goes at the next listing

_SNOOP = re.compile(r"Snoop/(.+)-[0-9a-f]{8}")  # the id of the channel that is snooped on


class NoChannel(BridgeError):
    """There is no such channel to tap."""


class Taps:
    """All taps of one Asterisk. `requests` and `deadline` are to be asked after every call.

    `announce` tells the switchboard what a UUID is (it raises `BridgeError` or ValueError where it
    takes none), `learn` more of one that was announced; `outcome(uuid, call, leg)` says what came
    of it. `jitter` gives numbers in 0…1; `notice` is told, in a sentence, which channel is not
    tapped and why.
    """

    def __init__(
        self,
        form: Form,
        rules: Iterable[Rule],
        announce: Callable[[Announcement], object],
        outcome: Callable[[str, str, LegName], Outcome],
        *,
        new_uuid: Callable[[], str],
        jitter: Callable[[], float],
        notice: Callable[[str], None],
        learn: Callable[[Announcement], object] | None = None,
    ) -> None:
        self.channels = Channels()
        self._form = form
        self._requests: list[Request] = []
        self._deleting: dict[str, int] = {}  # step of a deletion → tries
        self._calls = TappedCalls(
            self.channels, form, rules, announce, learn or announce, outcome,
            self._requests.append, new_uuid=new_uuid, jitter=jitter, notice=notice,
        )  # fmt: skip
        self.counters = self._calls.counters
        self.by_place = any(rule.of_place for rule in self._calls.rules)
        self.stays = form.stays

    # -- ARI comes and goes -------------------------------------------------------------------

    def connected(self) -> None:
        """Events come from now on."""
        self._calls.synced = False
        self.channels.expect_listing()

    def listed(self, channels: Iterable[Channel], bridges: Iterable[Bridge], now: float) -> None:
        """Everything that there is in Asterisk."""
        channels, bridges = list(channels), list(bridges)
        missing = self.channels.listed(channels, bridges)
        self._sort_out(channels, bridges, now)
        self._calls.synced = True
        for id in missing:
            self._calls.hung_up(id, now)
        for channel in channels:
            app, *args = channel.app_data.split(",")
            if (channel.app, app) == ("Stasis", self._form.app) and is_party(channel):
                self._visitor(channel, tuple(args))
        parties = self.channels.in_order()
        for party in parties:
            self._calls.place(party)
        for party in parties:
            self._calls.touch(party.channel.id, now)
        for call in self._calls.by_first.values():
            for tap in call.taps.values():
                if tap.state == "waiting" and tap.due is None:
                    tap.due = now
                    self._calls.alarms.set(call, tap)

    def lost(self, reason: str, now: float) -> None:
        """ARI is gone. What is heard goes on being heard."""
        self._calls.synced = False
        self._requests.clear()
        self._deleting.clear()
        why = Failure("ari_down", f"ARI is down: {reason}")
        for call in self._calls.by_first.values():
            for tap in call.taps.values():
                before = tap.standing
                tap.suspend(why)
                self._calls.judge(call, tap, before, now)

    def stop(self) -> None:
        """Remove whatever we have made."""
        self._calls.synced = False
        self._calls.clear()

    def _sort_out(self, channels: Iterable[Channel], bridges: Iterable[Bridge], now: float) -> None:
        """What of ours is there, of this process and of others."""
        found: dict[str, dict[Piece, Channel | Bridge]] = defaultdict(dict)
        things: list[Channel | Bridge] = [*channels, *bridges]
        for thing in things:
            if ours := self._form.piece(thing.id):
                found[ours[1]][ours[0]] = thing
        for uuid, (call, tap) in list(self._calls.by_uuid.items()):
            if tap.state in ("arriving", "up"):
                before = tap.standing
                tap.found(set(found.pop(uuid, {})), now)
                self._calls.judge(call, tap, before, now)
        for uuid, pieces in found.items():
            target = self._listens_to(pieces)
            if target is not None and uuid not in self._calls.by_uuid:
                self._calls.adopt(target, uuid, set(pieces), now)
                continue
            for piece, thing in pieces.items():
                self._requests.append(delete(piece, thing.id))

    def _listens_to(self, pieces: dict[Piece, Channel | Bridge]) -> str | None:
        """The channel that a whole tap listens to; None where it is not whole."""
        snoop, bridge = pieces.get("s"), pieces.get("b")
        if set(pieces) != set(self._form.pieces()) or not isinstance(snoop, Channel):
            return None
        if isinstance(bridge, Bridge):
            if not {snoop.id, pieces["m"].id} <= set(bridge.channels):
                return None
        elif snoop.app == "Stasis":  # it was never sent on its way
            return None
        spied = _SNOOP.fullmatch(snoop.name)
        return spied[1] if spied and self.channels.get(spied[1]) else None

    # -- what happens -------------------------------------------------------------------------

    def event(self, event: Event, now: float) -> None:
        """Something happened in Asterisk."""
        match event:
            case Seen(channel) | Placed(channel):
                party = self.channels.see(channel)
                # Ring: it is about to begin in the dialplan, just where it shows
                if party is not None and (isinstance(event, Placed) or channel.state == "Ring"):
                    self._calls.place(party)
                self._calls.touch(channel.id, now)
            case Dialled(caller, peer):
                self.channels.dialled(caller, peer)
                self._calls.touch(peer.id, now)
            case Entered(bridge, channel):
                self.channels.see(channel)
                self.channels.entered(bridge, channel.id)
                self._calls.touch(channel.id, now)
            case Left(bridge, channel):
                self.channels.left(bridge, channel.id)
                self._calls.touch(channel.id, now)
            case Gone(id):
                self._gone(id, now)
            case Arrived(channel, args):
                self._arrived(channel, args, now)
            case Asked(target, asked):
                try:
                    self.tap(target, asked, now)
                except BridgeError as e:
                    self._complain(f"a CallscribeTap asks in vain: {e}")

    def _gone(self, id: str, now: float) -> None:
        ours = self._form.piece(id)
        if ours is None:
            self.channels.gone(id)
            self._calls.hung_up(id, now)
        elif ours[1] in self._calls.by_uuid:
            call, tap = self._calls.by_uuid[ours[1]]
            before = tap.standing
            tap.ended(ours[0], now)
            self._calls.judge(call, tap, before, now)

    def unheard(self, uuid: str, now: float) -> None:
        """The leg of this UUID is over on our side, and Asterisk does not know."""
        if uuid in self._calls.by_uuid:
            call, tap = self._calls.by_uuid[uuid]
            before = tap.standing
            tap.unheard(now)
            self._calls.judge(call, tap, before, now)

    def _arrived(self, channel: Channel, args: tuple[str, ...], now: float) -> None:
        ours = self._form.piece(channel.id)
        if is_party(channel):
            self.channels.see(channel)
            self._visitor(channel, args)
            self._calls.touch(channel.id, now)
        if ours is None:
            return
        call, tap = self._calls.by_uuid.get(ours[1], (None, None))
        if call is None or tap is None or not tap.live:
            self._requests.append(delete(ours[0], channel.id))  # too late: nobody waits for it
        else:
            tap.arrived(ours[0], now)
            self._calls.alarms.set(call, tap)

    def _visitor(self, channel: Channel, args: tuple[str, ...]) -> None:
        """A call's own channel is in our application: send it on its way, whatever it wants.

        And at once, because in there the call waits for us. A snoop does not need it there.
        """
        path = f"/channels/{quote(channel.id, safe='')}/continue"
        self._requests.append(Request("", "continue", "POST", path))
        try:
            said = {key: value for key, _, value in (arg.partition("=") for arg in args[1:])}
            if args[:1] != ("tap",) or not said.keys() <= {"call", "leg", "consent"}:
                raise BridgeError(
                    f"expected Stasis({self._form.app},tap) or "
                    f"Stasis({self._form.app},tap,call=…,leg=…)"
                )
            asked = wish(said)
        except BridgeError as e:
            self._complain(f"{channel.name} came by Stasis: {e}")
        else:
            self._calls.want(channel.id, Wanted(_legs(asked), asked))

    def _complain(self, sentence: str) -> None:
        self.counters["bad_requests"] += 1
        self._calls.notice(sentence)

    def answered(self, request: Request, status: int, text: str, now: float) -> None:
        """What ARI said to a request: an HTTP status, or 0 and a sentence where it said nothing."""
        if request.method == "DELETE":
            tries = self._deleting.pop(request.step, 0) + 1
            if status not in (200, 204, 404) and tries < RETRIES and self._calls.synced:
                self._deleting[request.step] = tries
                self._requests.append(request)
        elif request.uuid in self._calls.by_uuid:
            call, tap = self._calls.by_uuid[request.uuid]
            before = tap.standing
            tap.answered(request.step, status, text, now, self._calls.jitter())
            self._calls.judge(call, tap, before, now)

    # -- time, and what to do -----------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `expire` wants to be called next, or None."""
        return self._calls.due()

    def expire(self, now: float) -> None:
        """Let time pass: steps that take too long, retries that are due."""
        self._calls.settle(now)
        while (due := self._calls.alarms.next()) is not None and due <= now:
            call, tap = self._calls.alarms.take()
            if tap.state != "waiting":
                before = tap.standing
                tap.expire(now, self._calls.jitter())
                self._calls.judge(call, tap, before, now)
            elif self._calls.synced:
                self._calls.begin(call, tap, now)

    def requests(self) -> list[Request]:
        """What to ask of ARI now, in this order; empties the list."""
        requests = self._requests.copy()
        self._requests.clear()
        return requests

    # -- call control -------------------------------------------------------------------------

    def tap(self, target: str, asked: Wish, now: float) -> str:
        """Listen to the call of this channel (its id or name). Returns the call's id.

        With a leg: to this channel only, under that name. A channel that is not answered yet is
        heard from then on. Raises `NoChannel`.
        """
        party = self.channels.find(target)
        if party is None:
            raise NoChannel(f"Asterisk has no channel {target[:80]!r}")
        id = party.channel.id
        call = self._calls.by_channel.get(id)
        if call is not None:  # what we ended before is heard again
            call.taps = {leg: tap for leg, tap in call.taps.items() if tap.state != "over"}
        elif not asked.call:
            asked = replace(asked, call=self._calls.new_uuid())
        self._calls.want(id, Wanted(_legs(asked), asked))
        self._calls.touch(id, now)
        call = self._calls.by_channel.get(id)
        return call.id if call is not None else asked.call

    def describe(self) -> list[dict[str, object]]:
        """Every call that is tapped or should be; of a leg that is not heard, why."""
        return [_describe(call) for call in self._calls.by_first.values()]

    def states(self) -> Counter[str]:
        """How many legs wait, are being set up, and are up."""
        found = Counter({"waiting": 0, "setup": 0, "up": 0})
        for call in self._calls.by_first.values():
            for tap in call.taps.values():
                if tap.state != "over":
                    found[tap.state if tap.state in ("waiting", "up") else "setup"] += 1
        return found


def _legs(asked: Wish) -> tuple[LegName, ...]:
    return (asked.leg,) if asked.leg is not None else BOTH


def _describe(call: TappedCall) -> dict[str, object]:
    legs = {
        leg: {
            "channel": tap.channel,
            "state": tap.state,
            "attempts": tap.attempts,
            "reason": tap.failure.reason if tap.failure and tap.state != "up" else "",
        }
        for leg, tap in call.taps.items()
    }
    return {"call": call.id, "anchor": call.anchor, "legs": legs}
