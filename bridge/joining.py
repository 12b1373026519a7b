"""What is known of one call from several sides, and the ids of calls. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from bridge.call import Call, merged
from bridge.types import Announcement, CallInfo, LegName

MAX_IDS = 10_000  # ids of calls remembered, so that none is used twice


class CallIds:
    """Ids that events have had. `known(id)`: there is a call of that id, or lately was."""

    def __init__(self, known: Callable[[str], bool]) -> None:
        self._known = known
        self._ids: OrderedDict[str, int] = OrderedDict()  # how many calls wanted it

    def named(self, info: CallInfo, uuid: str) -> CallInfo:
        """`info` with an id that no event has had; what it was to be is then ``extra["call"]``.

        Events are numbered by id, refusals too: a sink that tells them apart by id and number
        would take the second call's for the first's.
        """
        if not self._used(info.id):
            return info
        name, n = uuid, self._ids.get(uuid, 1)
        while self._used(name):
            n += 1
            name = f"{uuid}-{n}"
        return replace(info, id=name, extra={**info.extra, "call": info.id})

    def _used(self, call_id: str) -> bool:
        return call_id in self._ids or self._known(call_id)

    def use(self, call_id: str, uuid: str) -> None:
        """A call, or a refusal, has this id now."""
        self._ids.setdefault(call_id, 1)
        if call_id != uuid and uuid in self._ids:  # so that the next search begins there
            self._ids[uuid] += 1
            self._ids.move_to_end(uuid)
        while len(self._ids) > MAX_IDS:
            self._ids.popitem(last=False)


def together(old: Announcement, new: Announcement) -> Announcement:
    """Two announcements of one UUID (a VarSet and a UserEvent, say) know more than one."""
    leg: LegName = new.leg if new.call or not old.call else old.leg
    info = merged(old.info, new.info)
    return Announcement(new.uuid, new.call or old.call, leg, info, new.listen or old.listen)


def learn(call: Call, name: LegName, info: CallInfo) -> None:
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
