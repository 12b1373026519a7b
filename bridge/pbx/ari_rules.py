"""Which calls are tapped without being asked for. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from bridge.pbx.ari_events import Channel
from bridge.types import LegName

BOTH: tuple[LegName, ...] = ("caller", "callee")

# A channel's name without what makes it unique: PJSIP/trunk-0000002a, Local/1@x-0000002a;2
_UNIQUE = re.compile(r"-[0-9a-f]{8}(;[12])?$")
_CLASSES = {"X": "[0-9]", "Z": "[1-9]", "N": "[2-9]", ".": ".+", "!": ".*", "-": ""}


@dataclass(frozen=True, slots=True)
class Rule:
    """A channel of which all is so; what is empty does not matter.

    `context` and `endpoint` (PJSIP/trunk) take ``*`` and ``?``, `exten` is as in the dialplan.
    """

    context: str = ""
    exten: str = ""
    endpoint: str = ""
    legs: tuple[LegName, ...] = BOTH

    @property
    def of_place(self) -> bool:
        """Whether it asks where in the dialplan a channel is."""
        return bool(self.context or self.exten)

    def matches(self, channel: Channel) -> bool:
        """As the channel is now."""
        return (
            (not self.endpoint or fnmatchcase(endpoint(channel.name), self.endpoint))
            and (not self.context or fnmatchcase(channel.context, self.context))
            and (not self.exten or extension(self.exten, channel.exten))
        )


def endpoint(name: str) -> str:
    """``PJSIP/trunk-0000002a`` → ``PJSIP/trunk``."""
    return _UNIQUE.sub("", name)


def extension(pattern: str, exten: str) -> bool:
    """Whether a dialplan's pattern (``_2XX``, ``_[1-3]Z.``, or an extension itself) takes this.

    As ast_extension_match (main/pbx.c): X, Z and N in either case, dashes count for nothing.
    """
    if not pattern.startswith("_"):
        return pattern == exten
    return _compiled(pattern[1:]).fullmatch(exten.replace("-", "")) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts: list[str] = re.findall(r"\[[^\]]*\]|.", pattern, re.S)
    return re.compile("".join(map(_piece, parts)), re.S)


def _piece(part: str) -> str:
    if len(part) > 1:
        return "[" + "".join(map(re.escape, _members(part[1:-1]))) + "]"
    return _CLASSES.get(part.upper(), re.escape(part))


def _members(inner: str) -> Iterator[str]:
    """The characters of a set; ``1-3`` is three of them. A range the wrong way round is empty."""
    while inner:
        first, last = inner[0], inner[2:3]
        if inner[1:2] == "-" and last:
            yield from map(chr, range(ord(first), ord(last) + 1))
        else:
            yield first
        inner = inner[3:] if inner[1:2] == "-" and last else inner[1:]
    yield "\0"  # no extension has it, and so no set is empty
