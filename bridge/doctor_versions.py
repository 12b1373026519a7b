"""What AudioSocket is in this version of Asterisk (ChangeLogs of its branches). Pure."""

from __future__ import annotations

import re

from bridge.doctor_report import Finding, ok, warning

# branch → the first minor version of it; branches before the first never, after the last always
DIGITS = {20: 14, 21: 9, 22: 4}
RATES = {20: 17, 21: 12, 22: 7, 23: 1}
HEADERS = {20: 19, 22: 9, 23: 3}  # reading a header survives "temporarily unavailable"

_VERSION = re.compile(r"(?:Asterisk )?(?:certified[-/])?([0-9]{1,3})\.([0-9]{1,3})(?![0-9])")


def parse(text: str) -> tuple[int, int] | None:
    """(22, 10) of ``22.10.1+dfsg``; None of what has no release's number (GIT-22-1a2b3c)."""
    match = _VERSION.match(text.strip())
    return (int(match[1]), int(match[2])) if match else None


def has(version: tuple[int, int], first: dict[int, int]) -> bool:
    """Whether this version has what came with these."""
    branch, minor = version
    return minor >= first[branch] if branch in first else branch > max(first)


def audiosocket(text: str, rate: int | None) -> list[Finding]:
    """What follows from the version for AudioSocket. `rate`: audiosocket.rate, in Hz."""
    version = parse(text)
    if version is None:
        found = f"{text}: no release's number, so what its AudioSocket can do is not known"
        return [ok("Asterisk", found)]
    findings = [ok("Asterisk", f"{text}, AudioSocket with {_abilities(version)}")]
    if not has(version, DIGITS):
        findings.append(_no_digits(text))
    if not has(version, RATES) and rate is None:
        findings.append(_one_kind(text))
    if not has(version, HEADERS):
        found = f"{text} may drop an AudioSocket call with 'temporarily unavailable'"
        findings.append(warning("Asterisk", found, "upgrade to 20.19, 22.9, 23.3 or later"))
    return findings


def _abilities(version: tuple[int, int]) -> str:
    digits = "digits" if has(version, DIGITS) else "no digits"
    rates = "a kind per rate" if has(version, RATES) else "one kind for all rates"
    return f"{digits}, {rates}"


def _no_digits(text: str) -> Finding:
    return warning(
        "Asterisk",
        f"{text} sends no digits over AudioSocket, and no silence timeout of its works",
        "upgrade to 20.14, 21.9, 22.4 or later if pressed digits are wanted",
    )


def _one_kind(text: str) -> Finding:
    return warning(
        "Asterisk",
        f"{text} labels audio of every rate as 8000 Hz (kind 0x10)",
        "fine with c(slin); with wider audio set audiosocket.rate, for example 16000 for c(slin16)",
    )
