"""`callscribe outbox`: what waits for its sink, and what was given up, in the outbox's file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bridge.egress.log import escape
from bridge.egress.store_letters import Letter, Letters, Waiting, opened
from bridge.errors import BridgeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it can do."""
    commands = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    shown = commands.add_parser("list", help="what waits per sink, and dead letters")
    shown.add_argument("--limit", type=int, default=20, metavar="N", help="dead letters (20)")
    retry = commands.add_parser("retry", help="deliver dead letters after all")
    drop = commands.add_parser("drop", help="delete dead letters")
    drop.add_argument(
        "--pending", action="store_true",
        help="what waits for a sink that is configured no more (needs --sink)",
    )  # fmt: skip
    for sub in (shown, retry, drop):
        where = sub.add_mutually_exclusive_group()
        where.add_argument("-c", "--config", metavar="FILE", help="TOML file that names the outbox")
        where.add_argument("--path", type=Path, metavar="FILE", help="the outbox's file itself")
        sub.add_argument("--sink", default="", metavar="NAME", help="of this sink only")
    for sub in (retry, drop):
        sub.add_argument("--all", action="store_true", help="all of them")
        sub.add_argument("id", type=int, nargs="*", metavar="ID", help="as list shows it")


def run(args: argparse.Namespace) -> int:
    """Its exit status."""
    with opened(_path(args)) as letters:
        if args.what == "list":
            _list(letters, args.sink, args.limit)
            return 0
        if not (args.id or args.sink or args.all):
            raise BridgeError("say which: IDs, --sink NAME, or --all")
        if args.what == "drop" and args.pending:
            return _drop_pending(letters, args.sink)
        change = letters.retry if args.what == "retry" else letters.drop
        found = change(args.id, args.sink)
        done = "will be tried again" if args.what == "retry" else "deleted"
        print(f"{found} dead letters {done}")
        return 0 if found else 1


def _path(args: argparse.Namespace) -> Path:
    if args.path is not None:
        return Path(args.path)
    from bridge import config  # the settings' library takes a while to import

    path = config.load(args.config).outbox.path
    if not path:
        raise BridgeError("outbox.path is not set: there is no file, everything is in memory")
    return Path(path)


def _drop_pending(letters: Letters, sink: str) -> int:
    if not sink:
        raise BridgeError("--pending needs --sink NAME")
    print(f"{letters.drop_pending(sink)} events deleted")
    return 0


def _list(letters: Letters, sink: str, limit: int) -> None:
    for row in letters.waiting():
        if sink in ("", row.sink):
            print(_waiting(row))
    dead = letters.dead(sink, limit)
    if dead:
        print("\ndead letters, the newest first:")
    for letter in dead:
        print(_letter(letter))


def _waiting(row: Waiting) -> str:
    since = f", the oldest of {_time(row.oldest)}" if row.rows else ""
    return (
        f"{escape(row.sink)}: {row.rows} events of {row.calls} calls wait{since}; "
        f"{row.dead} dead letters"
    )


def _letter(letter: Letter) -> str:
    return (
        f"{letter.id:>8}  {_time(letter.at)}  {escape(letter.sink)}  "
        f"{letter.type or 'unreadable'}  call={escape(letter.call)} seq={letter.seq}  "
        f"{letter.attempts} attempts: {escape(letter.error)}"
    )


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
