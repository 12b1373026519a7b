"""Names and rows as SQLite takes them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii

import orjson


def key(text: str) -> str:
    """A call's or a sink's name in ASCII: every string has one, a broken one too."""
    return encode_basestring_ascii(text)[1:-1]


def rows(values: Sequence[Sequence[object]]) -> str:
    """Rows of plain values as one parameter, for ``json_each``: a statement for all of them.

    `executemany` gives up the interpreter's lock and asks for it again at every row; beside a busy
    event loop each time can cost the 5 ms of a switch, and a commit of twenty rows half a second.
    """
    return orjson.dumps(values).decode()


def name(text: str) -> str:
    """The name that has this `key`."""
    return str(json.loads(f'"{text}"'))
