"""Whose rows are whose: one file under lock per process that has the outbox open.

While a fresh worker takes over, two processes deliver from one file, each its own calls. What is a
dead process's is told by the kernel, which lets go of its lock, not by a clock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path


class Owner:
    """This process's name in the file, an integer; its lock is held until `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.id = secrets.randbits(53) + 1  # 0 is nobody
        self._fd = os.open(self._file(self.id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def _file(self, owner: int) -> Path:
        return self._path.with_name(f"{self._path.name}.owner-{owner}")

    def alive(self, owner: int) -> bool:
        """Does the process of that name still run?"""
        if owner == self.id:
            return True
        try:
            fd = os.open(self._file(owner), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def forget(self, owner: int) -> None:
        """Remove what a process that is gone has left."""
        with suppress(OSError):
            os.unlink(self._file(owner))

    def release(self) -> None:
        """From now on we are gone. Idempotent."""
        if self._fd >= 0:
            self.forget(self.id)
            os.close(self._fd)
            self._fd = -1
