"""Where recordings lie: names that are safe whatever a call is called, finding, deleting, ageing.

A call's recording is a folder: ``caller.wav``, ``callee.wav`` and ``call.json``. While it is
written its name ends in ``.part``; then the folder is renamed, so that what has its name is whole.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bridge.errors import ConfigError

PART = ".part"
LEGS = ("caller", "callee")
OURS = frozenset(["call.json", *(f"{leg}.{ending}" for leg in LEGS for ending in ("wav", "ogg"))])
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_FOLDER = re.compile(rf"({_PLAIN.pattern}|=[0-9a-f]{{40}})(~[0-9]+)?")


def folder_name(call_id: str) -> str:
    """The id, or its hash where a file name could not be trusted to be made of it.

    Ids come from peers: ``../../etc/cron.d/x``, 64 kB, ``a\\0b``. Two ids never give one name.
    """
    if _PLAIN.fullmatch(call_id) and not call_id.endswith(PART):
        return call_id
    return "=" + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def prepare(directory: Path) -> None:
    """Make the directory, for us alone. Raises `ConfigError` when nothing can be written there."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = directory / f"probe-{os.getpid()}{PART}"
        probe.mkdir(mode=0o700)
        probe.rmdir()
    except OSError as e:
        raise ConfigError([f"recording.directory: {directory}: {e.strerror}"]) from None


def create(directory: Path, call_id: str) -> Path:
    """A new folder for a call, still a part; a second recording of an id is ``id~2``."""
    name = folder_name(call_id)
    for n in range(1, 10_000):
        folder = directory / (name if n == 1 else f"{name}~{n}")
        part = folder.with_name(folder.name + PART)
        if folder.exists():
            continue
        with suppress(FileExistsError):  # another worker's, while it drains
            part.mkdir(mode=0o700)
            return part
    raise FileExistsError(17, "too many recordings of one call id")


def finished(part: Path) -> Path:
    """Rename a folder that is whole. Returns its new path."""
    folder = part.with_name(part.name.removesuffix(PART))
    part.rename(folder)
    return folder


def of_call(directory: Path, call_id: str) -> list[Path]:
    """A call's whole recordings, the newest first."""
    name = folder_name(call_id)
    found = [
        name,
        *(entry.name for entry in _folders(directory) if entry.name.startswith(f"{name}~")),
    ]
    existing = [directory / n for n in dict.fromkeys(found) if not n.endswith(PART)]
    existing = [folder for folder in existing if folder.is_dir() and not folder.is_symlink()]
    return sorted(existing, key=lambda folder: -int(folder.name.partition("~")[2] or 1))


def unfinished(directory: Path, call_id: str) -> list[Path]:
    """Parts of a call: being written, or left by a process that died."""
    name = folder_name(call_id)
    return [
        Path(entry.path)
        for entry in _folders(directory)
        if entry.name.endswith(PART) and entry.name.removesuffix(PART).partition("~")[0] == name
    ]


def sound(directory: Path, call_id: str, leg: str) -> Path | None:
    """The file of one leg of a call's newest recording."""
    if leg not in LEGS:
        return None
    for folder in of_call(directory, call_id):
        for ending in ("wav", "ogg"):
            path = folder / f"{leg}.{ending}"
            if path.is_file() and not path.is_symlink():
                return path
    return None


def remove(folder: Path) -> bool:
    """Delete a recording. What is not ours is left alone, and then its folder is, too: False."""
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def sweep(directory: Path, before: float) -> tuple[int, int]:
    """Delete recordings that nobody wrote to since `before` (Unix time).

    Returns how many were deleted, and how many should have been. Unfinished ones, of a process
    that died, go the same way.
    """
    deleted = failed = 0
    for entry in _folders(directory):
        folder = Path(entry.path)
        with suppress(OSError):  # deleted while we look
            if _newest(folder) >= before:
                continue
            if remove(folder):
                deleted += 1
            else:
                failed += 1
    return deleted, failed


def _folders(directory: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name.removesuffix(PART)
            if _FOLDER.fullmatch(name) and entry.is_dir(follow_symlinks=False):
                yield entry


def _newest(folder: Path) -> float:
    times = [path.stat(follow_symlinks=False).st_mtime for path in (folder, *folder.iterdir())]
    return max(times)
