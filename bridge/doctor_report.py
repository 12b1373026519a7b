"""What a check of `callscribe doctor` found, and how it is shown: one line each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TextIO, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "failed"]

COLOURS: dict[Status, str] = {"ok": "\x1b[32m", "warning": "\x1b[33m", "failed": "\x1b[31m"}
PLAIN = "\x1b[0m"
SUBJECT = 17  # columns; as wide as our own subjects, a webhook's name may be wider


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` is what to do about it; empty where all is well, or where `found` says it."""

    status: Status
    subject: str
    found: str
    advice: str = ""


def ok(subject: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", subject, found)


def warning(subject: str, found: str, advice: str = "") -> Finding:
    """The bridge works, but not as well or as safely as it could."""
    return Finding("warning", subject, found, advice)


def failed(subject: str, found: str, advice: str = "") -> Finding:
    """The bridge will not do what the configuration asks for."""
    return Finding("failed", subject, found, advice)


class Report:
    """Writes findings as they come. `failures` counts those that failed."""

    def __init__(self, out: TextIO) -> None:
        self.failures = 0
        self._out = out
        self._coloured = out.isatty() and "NO_COLOR" not in os.environ

    def add(self, *findings: Finding) -> None:
        """One line per finding."""
        for finding in findings:
            self.failures += finding.status == "failed"
            self._out.write(f"{self._line(finding)}\n")
        self._out.flush()

    def _line(self, finding: Finding) -> str:
        status = f"{finding.status:<7}"
        if self._coloured:
            status = f"{COLOURS[finding.status]}{status}{PLAIN}"
        advice = f" -- {finding.advice}" if finding.advice else ""
        rest = f"{finding.subject:<{SUBJECT}}  {finding.found}{advice}"
        return f"{status}  {_printable(rest)}"


def _printable(text: str) -> str:
    """One line that leaves a terminal alone, whatever Asterisk or a name server put into it."""
    return "".join(c if c.isprintable() else " " for c in text)
