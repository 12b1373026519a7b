"""Tell the log: one line per event on the ``callscribe.events`` logger.

What was said is left out unless asked for. Nothing of a call can end the line or forge a field:
control characters, and the blanks in names, are always escaped.
"""

from __future__ import annotations

import logging

from bridge.contract import event_type
from bridge.types import CallEvent, Ended, EndOfTurn, Final, Partial, Refused, RuleFired

log = logging.getLogger("callscribe.events")


def escape(text: str) -> str:
    """``\\n`` for a newline, and so on for all that is not printable, and for the backslash."""
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text
    )


def line(event: CallEvent, *, transcripts: bool) -> str:
    """``call=… seq=3 leg=caller type=transcript.final words=4``, with ``text="…"`` if wanted."""
    parts = [f"call={_name(event.call.id)}", f"seq={event.seq}", f"leg={event.leg or '-'}"]
    parts.append(f"type={event_type(event)}")
    match event.body:
        case Partial() | Final() as body:
            parts.append(f"words={len(body.words)}")
        case EndOfTurn() as body:
            parts += [f"words={len(body.text.split())}", f"reason={_name(body.reason)}"]
        case Ended() as body:
            words = sum(leg.words for leg in body.legs.values())
            parts += [f"words={words}", f"reason={_name(body.reason)}"]
        case Refused(reason=reason):
            parts.append(f"reason={_name(reason)}")
        case RuleFired() as body:
            parts += [f"rule={_name(body.rule)}", f"action={body.action}"]
            parts += [f"outcome={body.outcome}", f"words={len(body.words)}"]
    if event.gap_before:
        parts.append(f"gap_before={event.gap_before}")
    if transcripts and isinstance(event.body, Partial | Final | EndOfTurn | RuleFired):
        parts.append('text="' + escape(event.body.text).replace('"', '\\"') + '"')
    return " ".join(parts)


def _name(text: str) -> str:
    return escape(text).replace(" ", "\\x20")


class LogEgress:
    """An egress that cannot fail. `transcripts`: also log what is said."""

    def __init__(self, *, transcripts: bool = False) -> None:
        self.name = "log"
        self._transcripts = transcripts

    async def start(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def deliver(self, event: CallEvent) -> None:
        log.info("%s", line(event, transcripts=self._transcripts))
