"""The tables of the outbox's file, and how a file is opened, checked and, when it is broken, set
aside. WAL with `synchronous=FULL`: what is committed survives the power cut, not only the process.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

VERSION = 1  # of the tables: PRAGMA user_version
APPLICATION = 0x63736F62  # "csob", PRAGMA application_id: file(1) can tell what it is
PATIENCE = 2.0  # seconds for a lock that another process has; the command line holds one for less
CHECKED = 64 << 20  # bytes; a larger file is not read through at the start
BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

SCHEMA = """
CREATE TABLE event (
    id INTEGER PRIMARY KEY, sink TEXT NOT NULL, call TEXT NOT NULL, seq INTEGER NOT NULL,
    rank INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,  -- 0 waits, 1 dead letter
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, at REAL NOT NULL,
    body BLOB NOT NULL, error TEXT NOT NULL DEFAULT '', UNIQUE (sink, call, seq));
CREATE INDEX event_dead ON event (at) WHERE state = 1;
CREATE TABLE backlog (  -- a sink's part of a call, while there is or will be something to give
    sink TEXT NOT NULL, call TEXT NOT NULL, last INTEGER NOT NULL DEFAULT -1,
    owner INTEGER NOT NULL, over INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (sink, call)
) WITHOUT ROWID;
CREATE INDEX backlog_owner ON backlog (owner);
CREATE TABLE call (
    id TEXT PRIMARY KEY, owner INTEGER NOT NULL, next INTEGER NOT NULL, began REAL NOT NULL,
    at REAL NOT NULL, over INTEGER NOT NULL DEFAULT 0, caller_turn INTEGER NOT NULL DEFAULT -1,
    callee_turn INTEGER NOT NULL DEFAULT -1, info BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX call_over ON call (over, at);
CREATE TABLE owner (id INTEGER PRIMARY KEY, pid INTEGER NOT NULL, at REAL NOT NULL);
"""


class BrokenFile(sqlite3.DatabaseError):
    """It is no file of ours, or one that cannot be read any more."""


def connect(path: Path) -> sqlite3.Connection:
    """The file, made if there is none. Raises `BrokenFile`, `sqlite3.Error`, OSError."""
    # Nobody else may read what was said; SQLite gives the file's mode to its -wal and -shm.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        _prepare(db, path)
    except BaseException:
        with suppress(sqlite3.Error):
            db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = FAST")  # what was delivered is not left in free pages
        db.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(
                f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION};"
                f"PRAGMA application_id = {APPLICATION}; COMMIT;"
            )
        elif version != VERSION:
            raise BrokenFile(f"its tables are of version {version}, and this is {VERSION}")
        elif path.stat().st_size <= CHECKED:
            ((found,),) = db.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise BrokenFile(str(found).splitlines()[0])
    except sqlite3.DatabaseError as error:
        if is_broken(error):
            raise BrokenFile(str(error)) from None
        raise


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, so that trying again is pointless."""
    code = getattr(error, "sqlite_errorcode", None)
    # The low byte is the class of an extended code
    return isinstance(error, BrokenFile) or (code is not None and code & 0xFF in BROKEN)


def set_aside(path: Path) -> Path:
    """Rename the file and what SQLite keeps beside it; the new name."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.broken-{stamp}-{os.getpid()}")
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def reason(error: Exception) -> str:
    """What went wrong, for somebody who can change it."""
    if isinstance(error, sqlite3.OperationalError):
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                return "the disk is full"
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return "another program has the file locked"
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return "the file cannot be written"
            case sqlite3.SQLITE_IOERR:
                return "the disk does not read or write"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__
