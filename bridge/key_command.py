"""`callscribe key`: keys for clients. A key is random, so that its plain hash may lie in a file."""

from __future__ import annotations

import argparse
import getpass
import hashlib
import re
import secrets
import sys

from bridge.config_auth import KEY_ID, KEY_NAME, SHORTEST_KEY
from bridge.errors import BridgeError

PREFIX = "cs_"  # so that a key in the wrong place can be searched for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="make a key, and print it once")
    new.add_argument("name", metavar="NAME", help="what logs and metrics call it")
    new.add_argument("--id", metavar="ID", help="a key of two parts, for clients that send two")
    new.set_defaults(key_command=_new)
    given = commands.add_parser("hash", help="read a key, and print its hash")
    given.set_defaults(key_command=_hash)


def run(args: argparse.Namespace) -> int:
    """Exit status."""
    return int(args.key_command(args))


def _new(args: argparse.Namespace) -> int:
    if not re.fullmatch(KEY_NAME, args.name):
        raise BridgeError(f"NAME: expected 1 to 64 letters, digits and ._-, not {args.name!r}")
    if args.id is not None and not re.fullmatch(KEY_ID, args.id):
        raise BridgeError(f"--id: expected 1 to 128 letters, digits and ._@-, not {args.id!r}")
    key = PREFIX + secrets.token_urlsafe(32)
    print(f"The key, which is shown this once: {key}\n")
    print(f'[[websocket.key]]\nname = "{args.name}"')
    if args.id is not None:
        print(f'id = "{args.id}"')
    print(f'sha256 = "{_digest(key)}"')
    return 0


def _hash(args: argparse.Namespace) -> int:
    key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline(8192)
    key = key.rstrip("\r\n")
    if len(key) < SHORTEST_KEY:
        raise BridgeError(f"a key has at least {SHORTEST_KEY} characters: callscribe key new NAME")
    print(f'sha256 = "{_digest(key)}"')
    return 0


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
