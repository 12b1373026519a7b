"""Which calls are recorded, and what is written beside them.

Only calls whose announcement said that those who speak consent to it (``recording_consent`` of POST
/calls, CALLSCRIBE_CONSENT=1 in the dialplan), from the moment that it has.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from bridge.call import MAX_FINALS, Call
from bridge.config import RecordingSettings
from bridge.errors import ConfigError
from bridge.leg import Leg
from bridge.recorder import files
from bridge.recorder.tape import Tape
from bridge.recorder.writer import Writer
from bridge.types import CallEvent, Ended, Final, LegName

ANSWER = 10.0  # s for the disk, of those who ask over HTTP
DAY, SWEEP_EVERY = 86_400.0, 3600.0  # s


T = TypeVar("T")


async def answered(future: Future[T]) -> T:
    """What the writer answers, within `ANSWER` seconds. Raises TimeoutError, OSError."""
    async with asyncio.timeout(ANSWER):
        return await asyncio.wrap_future(future)


class _Recorded:
    """One call that is up."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.deleted = False  # while it is up: nothing more is kept
        self.tapes: dict[LegName, tuple[Tape, float]] = {}  # with the leg's offset
        self.finals: deque[tuple[LegName, Final]] = deque(maxlen=MAX_FINALS)


class Recorder:
    """Everything that [recording] is. Raises `ConfigError` when it cannot work.

    Give it every leg (`leg`) and every event (`put`), and let time pass (`expire`). `wall` is Unix
    time. `counters`: calls (recorded), no_consent, rate_changed, and the writer's.
    """

    def __init__(self, settings: RecordingSettings, wall: Callable[[], float]) -> None:
        if settings.format == "opus" and find_spec("soundfile") is None:
            raise ConfigError(
                ['recording.format = "opus": soundfile is not installed: '
                 "pip install 'callscribe[opus]'"]
            )  # fmt: skip
        self._settings, self._wall = settings, wall
        self._counters: Counter[str] = Counter()
        self._calls: dict[str, _Recorded] = {}
        self._swept = float("-inf")
        directory = Path(settings.directory).expanduser()
        files.prepare(directory)
        self._writer = Writer(directory, settings.format)

    def leg(self, call: Call, leg: Leg) -> None:
        """A leg begins: from now on its frames are seen, and kept when they may be."""
        recorded = self._calls.setdefault(call.id, _Recorded(call))
        if recorded.deleted:
            return
        free = not self._settings.require_consent
        leg.tape = tape = Tape(
            lambda piece: self._writer.put(call.id, leg.name, piece),
            lambda: free or call.info.recording_consent,
            self._counters,
        )
        recorded.tapes[leg.name] = tape, leg.offset

    def put(self, event: CallEvent) -> None:
        """An event of a call, redacted as the settings say; `Ended` finishes its recording."""
        recorded = self._calls.get(event.call.id)
        if recorded is None:
            return
        if isinstance(event.body, Final) and event.leg is not None and self._settings.transcript:
            recorded.finals.append((event.leg, event.body))
        if isinstance(event.body, Ended):
            del self._calls[event.call.id]
            self._over(recorded, event.body)

    def _over(self, recorded: _Recorded, ended: Ended) -> None:
        for tape, _ in recorded.tapes.values():
            tape.stop()
        if recorded.deleted:
            return
        if any(tape.used for tape, _ in recorded.tapes.values()):
            self._counters["calls"] += 1
            self._writer.finish(recorded.call.id, self._about(recorded, ended))
        elif self._settings.require_consent and not recorded.call.info.recording_consent:
            self._counters["no_consent"] += 1

    def _about(self, recorded: _Recorded, ended: Ended) -> Mapping[str, object]:
        call = recorded.call
        about: dict[str, object] = {
            "call_id": call.id,
            "started": call.began_at,
            "seconds": round(ended.seconds, 3),
            "consent": call.info.recording_consent,
            "legs": {
                name: {
                    "start": round(offset + tape.start, 3),  # on the call's clock
                    "concealed": [[round(a, 3), round(b, 3)] for a, b in tape.concealed],
                }
                for name, (tape, offset) in recorded.tapes.items()
                if tape.used
            },
        }
        if self._settings.transcript:
            about["finals"] = [
                {"leg": leg, "turn": final.turn, "text": final.text,
                 "start": round(final.words[0].start, 3), "end": round(final.words[-1].end, 3)}
                for leg, final in recorded.finals
            ]  # fmt: skip
        return about

    def expire(self, now: float) -> None:
        """Let time pass: at the start, and every hour, what is too old goes. `now` of any clock."""
        if self._settings.retention_days and now - self._swept >= SWEEP_EVERY:
            self._swept = now
            self._writer.sweep(self._wall() - self._settings.retention_days * DAY)

    def delete(self, call_id: str) -> Future[bool]:
        """Delete a call's recordings; of one that is up, nothing more is kept."""
        recorded = self._calls.get(call_id)
        if recorded is not None:
            recorded.deleted = True
            for tape, _ in recorded.tapes.values():
                tape.stop()
        return self._writer.delete(call_id)

    def find(self, call_id: str, leg: str) -> Future[Path | None]:
        """The file of a leg of a call that is over."""
        return self._writer.find(call_id, leg)

    @property
    def counters(self) -> Counter[str]:
        """What became of calls and files."""
        return self._counters + self._writer.counters.copy()

    @property
    def queued(self) -> int:
        """Bytes that wait for the disk."""
        return self._writer.queued

    def close(self, timeout: float) -> bool:
        """Write what is queued. Blocks, for at most `timeout` seconds. False if it was too much."""
        return self._writer.close(timeout)
