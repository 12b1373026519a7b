"""Names as SQLite takes them. Pure."""

from __future__ import annotations

import json


def key(text: str) -> str:
    """A call's or a sink's name in ASCII: every string has one, a broken one too."""
    return json.dumps(text)[1:-1]


def name(text: str) -> str:
    """The name that has this `key`."""
    return str(json.loads(f'"{text}"'))
