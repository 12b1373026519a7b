"""Which sink gets what: one redacting stream for all sinks that want the same redacted."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from importlib.util import find_spec

from bridge.call import MAX_FINALS, Call
from bridge.config import RedactionSettings, Settings
from bridge.errors import ConfigError
from bridge.redact.kinds import Kind
from bridge.redact.scan import scan
from bridge.redact.stream import RedactStream
from bridge.types import (
    CallEvent,
    EndOfTurn,
    Final,
    LegName,
    Listened,
    Partial,
    Pressed,
    RuleFired,
)

log = logging.getLogger(__name__)

WARM = "212 555 0123 or 123-45-6789".split()  # so that every library is loaded

Put = Callable[[CallEvent], None]


class Redaction:
    """Between `Sinks.publish` and the sinks' queues. `clock` as the server's.

    What fails costs the event that it failed at, and what waited of its call, never a word in the
    clear: what was said and pressed is dropped and counted, or left out where the rest of the event
    is needed, and other events go out as they are.
    """

    def __init__(self, settings: RedactionSettings, clock: Callable[[], float]) -> None:
        self.errors = 0
        self._settings, self._clock = settings, clock
        self._plain: list[Put] = []
        self._streams: dict[frozenset[Kind], tuple[RedactStream, list[Put]]] = {}

    def add(self, kinds: Collection[Kind], put: Put) -> None:
        """A sink, and what it must not be told."""
        wanted = frozenset(kinds)
        if not wanted:
            self._plain.append(put)
            return
        if wanted not in self._streams:
            stream = RedactStream(wanted, self._settings.regions, self._settings.hold)
            self._streams[wanted] = stream, []
            scan(WARM, wanted, self._settings.regions)  # so that no call waits for libraries
        self._streams[wanted][1].append(put)

    def publish(self, event: CallEvent) -> None:
        """An event to all sinks: at once, or as soon as it is known what may not go out."""
        for put in self._plain:
            put(event)
        for stream, puts in self._streams.values():
            try:
                out = stream.put(event, self._clock())
            except Exception as e:
                out = self._failed(stream, event, e)
            _give(out, puts)

    def expire(self) -> None:
        """Let time pass."""
        for stream, puts in self._streams.values():
            _give(stream.expire(self._clock(), self._fault), puts)

    def _failed(self, stream: RedactStream, event: CallEvent, error: Exception) -> list[CallEvent]:
        self._fault(event.call.id, error)
        stream.forget(event.call.id)
        match event.body:
            case Partial() | Final() | EndOfTurn() | Pressed():
                return []
            case Listened():  # a dialplan waits for it
                return [replace(event, body=replace(event.body, text=""))]
            case RuleFired():
                return [replace(event, body=replace(event.body, matched="", text="", words=()))]
        return [event]

    def _fault(self, call_id: str, error: Exception) -> None:
        self.errors += 1
        kind = type(error).__name__  # its text may hold what was said
        log.error("redaction failed in call %r: %s", call_id, kind)

    @property
    def counters(self) -> Counter[str]:
        """What was masked and withheld, of all streams together."""
        total: Counter[str] = Counter(errors=self.errors)
        for stream, _ in self._streams.values():
            total += stream.counters
        return total

    @property
    def held(self) -> int:
        """Events that wait to be known."""
        return sum(stream.held for stream, _ in self._streams.values())


def _give(events: Iterable[CallEvent], puts: Iterable[Put]) -> None:
    for event in events:
        for put in puts:
            put(event)


class ShownFinals:
    """What HTTP shows of calls, where that is redacted: a sink that remembers.

    A call's finals are kept as long as `find` knows the call.
    """

    def __init__(self, find: Callable[[str], Call | None]) -> None:
        self._find = find
        self._finals: OrderedDict[str, deque[tuple[LegName, Final]]] = OrderedDict()

    def put(self, event: CallEvent) -> None:
        """One event, redacted."""
        if event.leg is None or not isinstance(event.body, Final):
            return
        if event.call.id not in self._finals:
            self._tidy()
            self._finals[event.call.id] = deque(maxlen=MAX_FINALS)
        self._finals[event.call.id].append((event.leg, event.body))

    def of(self, call: Call) -> Iterable[tuple[LegName, Final]]:
        """A call's finals, in order of their events."""
        return self._finals.get(call.id, ())

    def _tidy(self) -> None:
        for call_id in [id for id in self._finals if self._find(id) is None]:
            del self._finals[call_id]


def check(settings: Settings) -> None:
    """Raises `ConfigError` where something is to be redacted and its libraries are not there."""
    recording = settings.recording if settings.recording.enabled else None
    links = (settings.ami, settings.esl, recording, *settings.webhook)
    wanted = [section.redact for section in (settings.log, settings.http, *links) if section]
    missing = [name for name in ("stdnum", "phonenumbers") if find_spec(name) is None]
    if missing and any(wanted):
        raise ConfigError(
            [f"redact: {' and '.join(missing)} not installed: pip install 'callscribe[redact]'"]
        )
    if any("phone" in kinds for kinds in wanted):
        import phonenumbers

        for region in settings.redaction.regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ConfigError([f"redaction.regions: {region!r} is no country with telephones"])
