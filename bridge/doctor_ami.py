"""Doctor and Asterisk's manager: log in, and try each right that the bridge needs.

Asterisk does not say what a user may read, so events of our own are awaited: a CallscribeLeg with
a fresh UUID (a bridge that runs forgets it after calls.announce_ttl), and the VarSet of an *empty*
global variable of each name in ami.join_variables, which no bridge takes for an announcement. They
have the very names that the sample's eventfilter lets through. What is left in Asterisk is a
global variable with nothing in it. [all seen with Asterisk 22.10.1]
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

from bridge.config import Address, AmiSettings
from bridge.doctor_pbx import Look
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.errors import DeliveryError
from bridge.pbx.ami import AmiLink, State

ECHO = 2.0  # s that an event of our own may take; seen: 1 ms
CLOSING = 2.0  # s beyond ami.timeout that a failed attempt takes to end
VARIABLE = "CALLSCRIBE_DOCTOR"  # where no join variable is configured
DENIED = "Permission denied"


class _Denied(Exception):
    """Our user may not run this action."""


class _Link(AmiLink):
    """A session whose events are seen as they are, not only what they announce."""

    def __init__(self, settings: AmiSettings, on_event: Callable[[Any], None]) -> None:
        super().__init__(settings, lambda announcement: None, jitter=lambda: 1.0)
        self.tried = asyncio.Event()  # the first attempt to log in has come to something
        self._on_event = on_event

    def _event(self, event: Any) -> None:
        self._on_event(event)

    def _move(self, state: State, error: str = "") -> None:
        super()._move(state, error)
        if state != "connecting":
            self.tried.set()


class _Awaited:
    """Events that should come, and whether they have. Others are not kept."""

    def __init__(self) -> None:
        self._came: dict[tuple[str, str], asyncio.Event] = {}

    def expect(self, kind: str, what: str) -> asyncio.Event:
        """Set when a UserEvent with this Id, or a VarSet of this variable, has come."""
        return self._came.setdefault((kind, what), asyncio.Event())

    def __call__(self, event: Mapping[str, str]) -> None:
        kind = event.get("event", "")
        what = event.get("id" if kind == "UserEvent" else "variable", "")
        if (kind, what) in self._came:
            self._came[kind, what].set()


async def check(
    settings: AmiSettings, *, listen: Address | None = None, rate: int | None = None
) -> list[Finding]:
    """Every finding about Asterisk. `listen`, `rate`: those of [audiosocket].

    Takes at most about ami.timeout per step, and ends at the first step without an answer.
    """
    awaited = _Awaited()
    link = _Link(settings, awaited)
    await link.start()
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(link.tried.wait(), settings.timeout + CLOSING)
        if link.state != "up":
            return [_not_up(link, settings)]
        session = _Session(link, settings, awaited)
        where = Address(settings.host, settings.port)
        found = f"logged in at {where} as {settings.username!r}, AMI {link.version}"
        findings = [ok("AMI", found)]
        look = Look(session.value, session.loaded, session.version, listen=listen, rate=rate)
        await _steps(findings, session.user_events, session.variables, look.findings)
        return findings
    finally:
        await link.close()


async def _steps(
    findings: list[Finding], *steps: Callable[[], Coroutine[Any, Any, list[Finding]]]
) -> None:
    """Run them in order, as long as Asterisk answers."""
    try:
        for step in steps:
            findings += await step()
    except DeliveryError as e:
        findings.append(failed("AMI", str(e), "see Asterisk's log, and run doctor again"))


def _not_up(link: AmiLink, settings: AmiSettings) -> Finding:
    found = link.last_error or "the log-in has not ended in time"
    if "shutting down" in found:
        return failed("AMI", found, "start Asterisk, or wait until it has restarted")
    if "did not answer" in found or not link.last_error:
        tls = "" if settings.tls else "; on Asterisk's TLS port (5039) set ami.tls = true"
        return failed("AMI", found, f"check ami.host and ami.port, and firewalls in between{tls}")
    if link.state == "refused" or "?" in found or "check ami" in found:
        return failed("AMI", found)  # the sentence says what to do
    return failed("AMI", found, "see Asterisk's log; manager.conf may limit who logs in")


class _Session:
    """The steps of a logged-in session. They raise `DeliveryError` when Asterisk is lost."""

    def __init__(self, link: AmiLink, settings: AmiSettings, awaited: _Awaited) -> None:
        self._link, self._settings, self._awaited = link, settings, awaited
        self._no_ifmodule = False  # asking again would only fill Asterisk's log

    async def _ask(self, name: str, *headers: tuple[str, str]) -> Mapping[str, str]:
        try:
            return await self._link.action(name, headers)
        except DeliveryError as e:
            if DENIED in str(e):
                raise _Denied from None
            raise

    async def value(self, variable: str) -> str | None:
        """A global variable or a function's value, empty where there is none; None: not for us."""
        try:
            return (await self._ask("Getvar", ("Variable", variable))).get("value", "")
        except _Denied:
            return None
        except DeliveryError as e:
            if e.permanent:
                return ""
            raise

    async def loaded(self, module: str) -> bool | None:
        """Whether a module is loaded; None where we may not know.

        The dialplan's IFMODULE needs no more than the bridge has, ModuleCheck needs write system.
        """
        said = "" if self._no_ifmodule else await self.value(f"IFMODULE({module}.so)")
        self._no_ifmodule = not said
        if said:
            return said == "1"
        try:
            await self._ask("ModuleCheck", ("Module", module))
        except _Denied:
            return None
        except DeliveryError as e:
            if e.permanent:
                return False if "not loaded" in str(e) else None
            raise
        return True

    async def version(self) -> str:
        """As CoreSettings says it, which needs write system or reporting; empty without."""
        try:
            return (await self._ask("CoreSettings")).get("asteriskversion", "")
        except _Denied:
            return ""

    def _add(self, right: str, line: str) -> str:
        return (
            f"in manager.conf, section [{self._settings.username}], add {right} to the line "
            f"{line} = …, then: asterisk -rx 'manager reload'"
        )

    # -- write user, read user ------------------------------------------------------------------

    async def user_events(self) -> list[Finding]:
        """Send the event that names a leg, and see whether it comes back."""
        uuid = str(uuid4())
        came = self._awaited.expect("UserEvent", uuid)
        try:
            await self._ask("UserEvent", ("UserEvent", "CallscribeLeg"), ("Id", uuid))
        except _Denied:
            found = "may not send UserEvent: no transcript would reach Asterisk"
            return [
                failed("AMI write user", found, self._add("user", "write")),
                _untested("AMI read user", "UserEvent", "write = user"),
            ]
        sent = ok("AMI write user", "may send UserEvent, how transcripts arrive")
        if not await _all([came]):
            found = "the event CallscribeLeg does not arrive, which names the legs of a call"
            advice = f"{self._add('user', 'read')}; {_filter('UserEvent', 'CallscribeLeg')}"
            return [sent, failed("AMI read user", found, advice)]
        return [sent, ok("AMI read user", "the event CallscribeLeg arrives")]

    # -- write call, read dialplan --------------------------------------------------------------

    async def variables(self) -> list[Finding]:
        """Set a global variable to nothing, and see whether its event comes."""
        taken, came = [], {}
        for name in self._settings.join_variables or [VARIABLE]:
            try:
                if (await self._ask("Getvar", ("Variable", name))).get("value"):
                    taken.append(_global(name))
                    continue
                came[name] = self._awaited.expect("VarSet", name)
                await self._ask("Setvar", ("Variable", name), ("Value", ""))
            except _Denied:
                return [*taken, *self._no_setvar()]
        findings = [*taken, ok("AMI write call", "may set variables")] if came else taken
        if self._settings.join_variables and came:
            findings.append(self._read(came, await _all(list(came.values()))))
        return findings

    def _no_setvar(self) -> list[Finding]:
        right = ok("AMI write call", "may not set variables; ami.set_variables is false")
        if self._settings.set_variables:
            found = "may not set variables: CALLSCRIBE_TEXT and CALLSCRIBE_STATUS would stay empty"
            advice = f"{self._add('call', 'write')}; or set ami.set_variables = false"
            right = failed("AMI write call", found, advice)
        if not self._settings.join_variables:
            return [right]
        return [right, _untested("AMI read dialplan", "VarSet", "write = call")]

    def _read(self, came: Mapping[str, asyncio.Event], complete: bool) -> Finding:
        if complete:
            return ok("AMI read dialplan", f"the event VarSet of {', '.join(came)} arrives")
        missing = [name for name, event in came.items() if not event.is_set()]
        found = (
            f"the event VarSet of {', '.join(missing)} does not arrive, which names the channel "
            "of a call"
        )
        filters = "; ".join(_filter("VarSet", name) for name in missing)
        if len(missing) < len(came):  # others do arrive: only a filter can be what is wrong
            return failed("AMI read dialplan", found, filters)
        return failed("AMI read dialplan", found, f"{self._add('dialplan', 'read')}; {filters}")


async def _all(events: list[asyncio.Event]) -> bool:
    try:
        async with asyncio.timeout(ECHO):
            for event in events:
                await event.wait()
    except TimeoutError:
        return False
    return True


def _untested(subject: str, event: str, right: str) -> Finding:
    found = f"cannot be tested without {right}, which makes the event {event}"
    return warning(subject, found, f"add {right}, and run doctor again")


def _filter(event: str, name: str) -> str:
    header = "UserEvent" if event == "UserEvent" else "Variable"
    return (
        "if there are eventfilter lines, one must be: "
        f"eventfilter(name({event}),header({header}),method(exact)) = {name}"
    )


def _global(name: str) -> Finding:
    return warning(
        "AMI read dialplan",
        f"{name} is also a global variable: a channel that sets none of its own has that value, "
        "so this was not tested",
        f"remove {name} from [globals] in extensions.conf, and from ami.join_variables if it is "
        "not a UUID per call",
    )
