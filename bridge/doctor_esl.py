"""Doctor and FreeSWITCH's event socket: log in, and try what the bridge does there.

An event of our own, of a subclass that nobody else has, is fired and awaited; a variable is set on
a channel that there is not. Nothing is left behind.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

from bridge.config import Address, EslSettings
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.errors import DeliveryError
from bridge.pbx.esl import EslLink, State
from bridge.pbx.esl_text import EslMessage

ECHO = 2.0  # s that an event of our own may take
CLOSING = 2.0  # s beyond esl.timeout that a failed attempt takes to end
SUBCLASS = "callscribe::doctor"
WELL_KNOWN = "ClueCon"  # FreeSWITCH's password as it is delivered
DENIED = "permission denied"
NO_CHANNEL = "No such channel"


class _Link(EslLink):
    """A session whose first attempt can be waited for."""

    def __init__(self, settings: EslSettings) -> None:
        super().__init__(settings, jitter=lambda: 1.0, on_event=self._came)
        self.tried = asyncio.Event()
        self.echo = asyncio.Event()
        self.id = str(uuid4())

    def _came(self, event: EslMessage) -> None:
        if event.headers.get("doctor") == self.id:
            self.echo.set()

    def _move(self, state: State, error: str = "") -> None:
        super()._move(state, error)
        if state != "connecting":
            self.tried.set()


async def check(settings: EslSettings) -> list[Finding]:
    """Every finding about FreeSWITCH. Takes at most about esl.timeout per step."""
    link = _Link(settings)
    await link.start()
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(link.tried.wait(), settings.timeout + CLOSING)
        if link.state != "up":
            return [_not_up(link)]
        findings = _logged_in(settings)
        try:
            findings.append(await _events(link))
            findings.append(await _variables(link, settings))
        except DeliveryError as e:
            findings.append(failed("ESL", str(e), "see FreeSWITCH's log, and run doctor again"))
        return findings
    finally:
        await link.close()


def _not_up(link: EslLink) -> Finding:
    found = link.last_error or "the log-in has not ended in time"
    if "did not answer" in found or not link.last_error:
        return failed("ESL", found, "check esl.host and esl.port, and firewalls in between")
    return failed("ESL", found)  # the sentence says what to do


def _logged_in(settings: EslSettings) -> list[Finding]:
    who = f" as {settings.username}" if settings.username else ""
    findings = [ok("ESL", f"logged in at {Address(settings.host, settings.port)}{who}")]
    if settings.password.get_secret_value() == WELL_KNOWN:
        findings.append(
            warning(
                "ESL",
                "the password is the one that every FreeSWITCH is delivered with",
                "set another in event_socket.conf.xml and as esl.password, and see that its "
                "listen-ip is not ::",
            )
        )
    return findings


async def _events(link: _Link) -> Finding:
    """Raises `DeliveryError` when FreeSWITCH is lost."""
    try:
        await link.subscribe(SUBCLASS)
    except DeliveryError as e:
        if not e.permanent:
            raise
        # Its esl-allowed-events; to be told of events is not what the bridge needs.
        await link.event(SUBCLASS, [("Doctor", link.id)])
        return ok("ESL events", "events are taken; this user may not see whether they arrive")
    await link.event(SUBCLASS, [("Doctor", link.id)])
    try:
        await asyncio.wait_for(link.echo.wait(), ECHO)
    except TimeoutError:
        return failed(
            "ESL events",
            f"an event is taken, and does not arrive within {ECHO:g} s: nobody would be told what "
            "callers say",
            "see FreeSWITCH's log; is it overloaded?",
        )
    return ok("ESL events", "events are taken, and arrive")


async def _variables(link: _Link, settings: EslSettings) -> Finding:
    if not settings.set_variables:
        return ok("ESL variables", "esl.set_variables is false")
    try:
        await link.setvar(str(uuid4()), "CALLSCRIBE_STATUS", "doctor")
    except DeliveryError as e:
        if not e.permanent:
            raise
        if NO_CHANNEL in str(e):
            return ok("ESL variables", "uuid_setvar is there, and may be used")
        found = f"{e}: CALLSCRIBE_TEXT and CALLSCRIBE_STATUS would stay empty"
        if DENIED in str(e):
            found = "may not set variables: CALLSCRIBE_TEXT and CALLSCRIBE_STATUS would stay empty"
        return failed(
            "ESL variables",
            found,
            "add uuid_setvar to esl-allowed-api of the user (or load mod_commands), or set "
            "esl.set_variables = false",
        )
    return ok("ESL variables", "uuid_setvar may be used")
