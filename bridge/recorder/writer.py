"""The thread that writes. Media never waits for a disk: its queue is bounded, too much is lost.

Everything that touches the directory happens here, in order, so that a call's deletion comes after
what was written of it. What fails costs its file, which ends there and is kept.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bridge.recorder import files, sound
from bridge.recorder.tape import Piece

MAX_QUEUED = 32 * 1024 * 1024  # bytes of audio: half a minute of a thousand legs at 8 kHz

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _Recording:
    """One call's folder and open files. `broken`: legs of which nothing more is written."""

    folder: Path | None = None
    sounds: dict[str, sound.Sound] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # why


class Writer:
    """Jobs and audio in, files out. `counters`: lost (pieces), failed (files), finished,
    deleted, expired, not_deleted, errors."""

    def __init__(self, directory: Path, format: str, limit: int = MAX_QUEUED) -> None:
        self.counters: Counter[str] = Counter()
        self.queued = 0  # bytes
        self._directory, self._format, self._limit = directory, format, limit
        self._queue: deque[tuple[int, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._calls: dict[str, _Recording] = {}
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    # -- on the event loop's thread --------------------------------------------------------------

    def put(self, call_id: str, leg: str, piece: Piece) -> None:
        """Audio of a leg. Never waits; what does not fit is lost, and silence in the file."""
        size = piece.samples.nbytes
        with self._changed:
            if self._closing or self.queued + size > self._limit:
                self.counters["lost"] += 1
                return
            self.queued += size
            self._add(size, lambda: self._write(call_id, leg, piece))

    def finish(self, call_id: str, about: Mapping[str, object]) -> None:
        """The call is over. `about` goes beside it, with what each leg's file came to."""
        with self._changed:
            self._add(0, lambda: self._finish(call_id, about))

    def sweep(self, before: float) -> None:
        """Delete what is older (`files.sweep`)."""
        with self._changed:
            self._add(0, lambda: self._sweep(before))

    def delete(self, call_id: str) -> Future[bool]:
        """Delete what there is of a call, also what is being written: whether there was any."""
        return self._ask(lambda: self._delete(call_id))

    def find(self, call_id: str, leg: str) -> Future[Path | None]:
        """The file of a leg of a call that is over."""
        return self._ask(lambda: files.sound(self._directory, call_id, leg))

    def _ask(self, job: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()

        def run() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(job())
            except OSError as e:
                answer.set_exception(e)

        with self._changed:
            self._add(0, run)
        return answer

    def _add(self, size: int, job: Callable[[], None]) -> None:
        self._queue.append((size, job))
        self._changed.notify()

    def close(self, timeout: float) -> bool:
        """Write what is queued, for at most `timeout` seconds. False if something was left."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- on its own ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                size, job = self._queue.popleft()
            try:
                job()
            except Exception as e:  # costs this job
                self.counters["errors"] += 1
                log.error("recording: %s: %s", type(e).__name__, getattr(e, "strerror", ""))
            finally:
                with self._changed:
                    self.queued -= size

    def _write(self, call_id: str, leg: str, piece: Piece) -> None:
        call = self._calls.setdefault(call_id, _Recording())
        if leg in call.broken:
            return
        try:
            if call.folder is None:
                call.folder = files.create(self._directory, call_id)
            if leg not in call.sounds:
                call.sounds[leg] = sound.create(call.folder, leg, piece.rate, self._format)
            call.sounds[leg].write(piece.at, piece.samples)
        except Exception as e:  # the disk's, or the library's that writes Opus
            self._failed(call, call_id, leg, e)

    def _failed(self, call: _Recording, call_id: str, leg: str, error: Exception) -> None:
        self.counters["failed"] += 1
        why = getattr(error, "strerror", None) or type(error).__name__
        call.broken[leg] = why
        log.error("call %r: its %s is not recorded any more: %s", call_id, leg, why)

    def _finish(self, call_id: str, about: Mapping[str, object]) -> None:
        call = self._calls.pop(call_id, None)
        if call is None or call.folder is None:
            return
        if not call.sounds:  # nothing could be written
            files.remove(call.folder)
            return
        legs = about.get("legs")
        told = dict(legs) if isinstance(legs, Mapping) else {}
        for leg, file in call.sounds.items():
            try:
                file.close()
            except Exception as e:
                self._failed(call, call_id, leg, e)
            told[leg] = {**told.get(leg, {}), "samples": file.frames, "cut": leg in call.broken}
        try:
            text = json.dumps({**about, "legs": told}, ensure_ascii=False, indent=1) + "\n"
            path = call.folder / "call.json"
            path.touch(mode=0o600)
            path.write_text(text.encode("utf-8", "replace").decode(), "utf-8")
        except OSError as e:  # a full disk: what was heard is worth more than what is said of it
            self._failed(call, call_id, "call.json", e)
        files.finished(call.folder)
        self.counters["finished"] += 1

    def _delete(self, call_id: str) -> bool:
        call = self._calls.pop(call_id, None)
        folders = files.of_call(self._directory, call_id)
        if call is not None and call.folder is not None:
            for file in call.sounds.values():
                with suppress(Exception):  # whatever it lacks, it is deleted
                    file.close()
        folders += files.unfinished(self._directory, call_id)
        kept = [folder for folder in folders if not files.remove(folder)]
        self.counters["not_deleted"] += len(kept)
        self.counters["deleted"] += len(folders) - len(kept)
        if kept:
            raise OSError(39, f"{len(kept)} folders hold files that are not ours")
        return bool(folders)

    def _sweep(self, before: float) -> None:
        deleted, failed = files.sweep(self._directory, before)
        self.counters["expired"] += deleted
        self.counters["not_deleted"] += failed
        if failed:
            log.error("recording: %d old recordings could not be deleted", failed)
