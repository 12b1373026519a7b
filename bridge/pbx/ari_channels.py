"""Which channels there are, and who talks with whom. Pure.

A *party* is a channel that somebody speaks on. Channels that only carry sound about (snoops, media,
announcers) are not kept. A Local channel is two, ``…;1`` and ``…;2``, and what goes into one comes
out of the other; where one leads to somebody, that somebody is the party.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bridge.pbx.ari_events import Bridge, Channel
from bridge.types import LegName

MAX_CHANNELS = 20_000  # kept; more are not looked at
NOT_PARTIES = frozenset(
    "Announcer AudioSocket CBAnn CBRec Message MulticastRTP OutgoingSpoolFailed Recorder Snoop "
    "Surrogate UnicastRTP WebSocket".split()
)
DIALLED = frozenset(("AppDial", "AppQueue", "FollowMe"))  # what a channel runs that was dialled


@dataclass(slots=True)
class Party:
    """A channel and its ties. `stale`: known from before ARI was lost, not seen since."""

    channel: Channel
    dialled_by: str = ""  # channel ids, here and below
    dials: set[str] = field(default_factory=set)
    bridge: str = ""
    stale: bool = False

    @property
    def up(self) -> bool:
        """Answered: before that there is nothing to hear, and a slot would be taken for it."""
        return self.channel.state == "Up"

    @property
    def was_dialled(self) -> bool:
        """Somebody called it, rather than being called by it."""
        return bool(self.dialled_by) or self.channel.app in DIALLED


class Channels:
    """All parties. Ids are Asterisk's, `lost` counts channels that were too many."""

    def __init__(self) -> None:
        self.lost = 0
        self._parties: dict[str, Party] = {}
        self._names: dict[str, str] = {}  # name → id
        self._bridges: dict[str, set[str]] = {}
        # Ids of what was destroyed, and of what changed bridges, while a listing is on its way
        self._gone: set[str] = set()
        self._moved: set[str] = set()
        self._listing = False

    def __len__(self) -> int:
        return len(self._parties)

    def get(self, id: str) -> Party | None:
        """The party of that channel id."""
        return self._parties.get(id)

    def find(self, target: str) -> Party | None:
        """By id or by name."""
        return self._parties.get(target) or self._parties.get(self._names.get(target, ""))

    # -- what happens -------------------------------------------------------------------------

    def see(self, channel: Channel) -> Party | None:
        """A snapshot of a channel, new or known. None for what is no party."""
        if not is_party(channel):
            return None
        party = self._parties.get(channel.id)
        if party is None:
            if len(self._parties) >= MAX_CHANNELS:
                self.lost += 1
                return None
            party = self._parties[channel.id] = Party(channel)
        elif party.channel.name != channel.name:  # a masquerade, as in a transfer
            self._names.pop(party.channel.name, None)
        party.channel = channel
        party.stale = False
        self._names[channel.name] = channel.id
        return party

    def gone(self, id: str) -> None:
        """A channel has been destroyed."""
        if self._listing:
            self._gone.add(id)
        party = self._parties.pop(id, None)
        if party is None:
            return
        if self._names.get(party.channel.name) == id:
            del self._names[party.channel.name]
        self.left(party.bridge, id)
        for other in party.dials:
            if other in self._parties:
                self._parties[other].dialled_by = ""
        if party.dialled_by in self._parties:
            self._parties[party.dialled_by].dials.discard(id)

    def dialled(self, caller: Channel | None, peer: Channel) -> None:
        """`caller` dials `peer`, or is told how that goes."""
        to = self.see(peer)
        by = self.see(caller) if caller else None
        if to is not None and by is not None:
            to.dialled_by = by.channel.id
            by.dials.add(to.channel.id)

    def entered(self, bridge: str, id: str) -> None:
        """A channel is in a bridge now, and in no other."""
        party = self._parties.get(id)
        if party is not None:
            self.left(party.bridge, id)
            party.bridge = bridge
            self._bridges.setdefault(bridge, set()).add(id)

    def left(self, bridge: str, id: str) -> None:
        """A channel is not in that bridge any more."""
        if self._listing:
            self._moved.add(id)
        members = self._bridges.get(bridge)
        if members is not None:
            members.discard(id)
            if not members:
                del self._bridges[bridge]
        party = self._parties.get(id)
        if party is not None and party.bridge == bridge:
            party.bridge = ""

    def expect_listing(self) -> None:
        """ARI is there again: what is known may be old, until `listed`."""
        self._listing = True
        self._gone.clear()
        self._moved.clear()
        self._bridges.clear()
        for party in self._parties.values():
            party.stale, party.bridge = True, ""

    def listed(self, channels: Iterable[Channel], bridges: Iterable[Bridge]) -> list[str]:
        """All channels and bridges that there are; the ids of those that went unseen.

        What was told after the listing was asked for is newer than it.
        """
        for channel in channels:
            known = self._parties.get(channel.id)
            if channel.id not in self._gone and (known is None or known.stale):
                self.see(channel)
        missing = [id for id, party in self._parties.items() if party.stale]
        for id in missing:
            self.gone(id)
        for bridge in (b for b in bridges if b.talks):
            for id in bridge.channels:
                if id in self._parties and id not in self._moved:
                    self.entered(bridge.id, id)
        self._listing = False
        self._gone.clear()
        self._moved.clear()
        return missing

    # -- who is who ---------------------------------------------------------------------------

    def in_order(self) -> list[Party]:
        """All, real ones before Local ones, and older ones first."""
        return sorted(
            self._parties.values(),
            key=lambda party: (is_local(party), party.channel.created, party.channel.id),
        )

    def partner(self, id: str) -> str | None:
        """The channel of the party that this one talks with, None where there is not just one."""
        found, near, seen = None, id, {id}
        while (other := self._opposite(near)) is not None and other not in seen:
            found = other
            half = self.other_half(other)
            if half is None or half in seen:
                break
            seen |= {other, half}
            near = half
        return found

    def _opposite(self, id: str) -> str | None:
        """In the same bridge, or dialled and answered."""
        party = self._parties.get(id)
        if party is None:
            return None
        if party.bridge:
            others = self._bridges[party.bridge] - {id}
            return next(iter(others)) if len(others) == 1 else None
        if party.dialled_by:
            caller = self._parties.get(party.dialled_by)
            return party.dialled_by if caller and not caller.bridge else None
        peers = (self._parties.get(peer) for peer in party.dials)
        up = [peer.channel.id for peer in peers if peer and peer.up and not peer.bridge]
        return up[0] if len(up) == 1 else None

    def other_half(self, id: str) -> str | None:
        """The other end of a Local channel, while there is one."""
        name = self._parties[id].channel.name
        if not name.startswith("Local/") or name[-2:] not in (";1", ";2"):
            return None
        return self._names.get(name[:-1] + ("2" if name[-1] == "1" else "1"))

    def legs(self, id: str, other: str | None) -> tuple[LegName, LegName]:
        """What to call a party and whom it talks with: the one that was dialled is the callee.

        Where that tells nothing (both were, or neither), the younger channel is.
        """
        me, you = self._parties[id], self._parties.get(other or "")
        if you is None or me.was_dialled != you.was_dialled:
            return ("callee", "caller") if me.was_dialled else ("caller", "callee")
        younger = me.channel.created > you.channel.created
        return ("callee", "caller") if younger else ("caller", "callee")

    def linked(self, id: str) -> set[str]:
        """This channel and all that have to do with it: its call, as Asterisk's linkedid."""
        found, ahead = {id}, [id]
        while ahead:
            for other in self._ties(ahead.pop()):
                if other not in found and other in self._parties:
                    found.add(other)
                    ahead.append(other)
        return found

    def _ties(self, id: str) -> Iterator[str]:
        party = self._parties.get(id)
        if party is not None:
            yield from self._bridges.get(party.bridge, ())
            yield from party.dials
            yield party.dialled_by
            yield self.other_half(id) or ""

    def linkedid(self, id: str) -> str:
        """Asterisk's own where ari.conf shows it, else its rule: the id of the oldest channel."""
        linked = [self._parties[other].channel for other in self.linked(id)]
        return self._parties[id].channel.linkedid or min((c.created, c.id) for c in linked)[1]


def is_party(channel: Channel) -> bool:
    """Whether somebody speaks on it."""
    return channel.name.partition("/")[0] not in NOT_PARTIES


def is_local(party: Party) -> bool:
    """Half of a Local channel."""
    return party.channel.name.startswith("Local/")
