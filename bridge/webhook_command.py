"""`callscribe webhook`: a secret for an endpoint, and whether a message is genuine."""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import sys
import time
from pathlib import Path

from bridge.egress.signature import TOLERANCE, check_secret, verify
from bridge.errors import BridgeError

SECRET = "CALLSCRIBE_WEBHOOK_SECRET"  # not on the command line, where every user can read it
HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
MOST = 1 << 20  # bytes of a body


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it can do."""
    commands = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    commands.add_parser("secret", help="make a random secret")
    check = commands.add_parser(
        "verify", help="is this message from callscribe, whole and new?",
        epilog=f"The secret is in the environment: {SECRET}, or in --secret-file.",
    )  # fmt: skip
    check.add_argument("body", nargs="?", default="-", metavar="FILE", help="body (-: stdin)")
    check.add_argument(
        "-H", "--header", action="append", default=[], metavar="'NAME: VALUE'",
        help=f"headers as they came; {', '.join(HEADERS)} are needed",
    )  # fmt: skip
    check.add_argument("--secret-file", type=Path, metavar="FILE", help="secrets, one a line")
    check.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="S", help="seconds of age (300)"
    )


def run(args: argparse.Namespace) -> int:
    """Its exit status; 1: the message is not to be believed."""
    if args.what == "secret":
        print("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
        return 0
    keys, headers, body = _keys(args.secret_file), _headers(args.header), _body(args.body)
    name, signed, signatures = (headers[header] for header in HEADERS)
    try:
        verify(keys, name, signed, signatures, body, now=time.time(), tolerance=args.tolerance)
    except ValueError as error:
        print(f"not genuine: {error}")
        return 1
    print(f"genuine: {_type(body)}, signed {time.time() - int(signed):.0f} s ago")
    return 0


def _keys(path: Path | None) -> list[bytes]:
    try:
        text = os.environ.get(SECRET, "") if path is None else path.read_text("utf-8")
    except OSError as error:
        raise BridgeError(f"{path}: {error.strerror}") from None
    if not text.split():
        raise BridgeError(f"no secret: set {SECRET}, or name a --secret-file")
    try:
        return [check_secret(secret) for secret in text.split()]
    except ValueError as error:
        raise BridgeError(str(error)) from None


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BridgeError(f"-H {line!r}: expected 'name: value'")
        headers[name.strip().lower()] = value.strip()
    missing = [name for name in HEADERS if name not in headers]
    if missing:
        raise BridgeError(f"the message has no {missing[0]}; give it with -H '{missing[0]}: …'")
    return headers


def _body(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(MOST)
        with open(name, "rb") as file:
            return file.read(MOST)
    except OSError as error:
        raise BridgeError(f"{name}: {error.strerror}") from None


def _type(body: bytes) -> str:
    """What the message says it is, if it says so in letters."""
    try:
        told = json.loads(body)
    except ValueError:
        return "not JSON"
    first = told[0] if isinstance(told, list) and told else told
    found = first.get("type") if isinstance(first, dict) else None
    more = f" and {len(told) - 1} more" if isinstance(told, list) and len(told) > 1 else ""
    return (found if isinstance(found, str) and found.isprintable() else "no type") + more
