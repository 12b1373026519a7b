"""Doctor and ARI: reach it, log in, and see whether what taps need is there.

Nothing is changed that lasts. Our application's own name is only looked at, never taken: a bridge
that runs has it, and Asterisk would give it to us. The right to write is tried by deleting a
channel that is not there. [all seen with Asterisk 22.10.1]
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

from bridge.config import AmiSettings, AriSettings, Settings
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.errors import DeliveryError
from bridge.pbx import ari_events
from bridge.pbx.ami import AmiLink
from bridge.pbx.ari_http import AriHttp, AriRefused, make_tls
from bridge.taps import address

SUBJECT = "ARI"
MODULES = {
    "res_stasis_snoop": "no channel can be listened to",
    "res_ari_channels": "no channel can be listened to",
    "res_ari_bridges": "it cannot be found out who talks with whom",
    "res_ari_applications": "we cannot subscribe to channels",
    "app_stasis": "no channel can be listened to",
}
DIALPLAN = {"chan_audiosocket": "Dial(AudioSocket/…) of [{context}] does not work"}
MEDIA = {
    "audiosocket": {"chan_audiosocket": 'ari.form = "external_media" does not work'},
    "rtp": {"chan_rtp": 'ari.encapsulation = "rtp" does not work'},
}
OPTIONAL = {"app_userevent": "the dialplan cannot ask for a tap by UserEvent(CallscribeTap)"}


async def check(settings: Settings) -> list[Finding]:
    """Every finding about ARI. Takes at most about ari.timeout per step."""
    ari = settings.ari
    if ari is None:
        return [ok(SUBJECT, "there is no [ari] section: nothing to look at")]
    async with AriHttp(ari, make_tls(ari)) as http:
        missing = await _reach(http, ari)
        if missing is not None:
            return [missing]
        look = _Look(http, ari)
        findings = [await look.version(), await look.rights(), await look.name()]
        findings += await look.modules()
        findings += await look.address(_arrival(settings, ari))
        if ari.form == "dialplan":
            findings.append(await _context(ari.context, settings.ami))
        return findings


def _arrival(settings: Settings, ari: AriSettings) -> str:
    """Where Asterisk sends the audio."""
    if ari.encapsulation == "rtp" and settings.rtp is not None:
        return f"{settings.rtp.address}, ports {settings.rtp.ports}"
    return address(ari, settings.audiosocket)


async def _reach(http: AriHttp, ari: AriSettings) -> Finding | None:
    """None when ARI is there and knows us. Its events need the same as everything else.

    Asked with a name of the moment, so that nobody's application is taken.
    """
    try:
        events = await http.listen(f"{ari.app}-doctor-{uuid4().hex[:8]}")
    except AriRefused as e:
        return failed(SUBJECT, str(e))
    except DeliveryError as e:
        advice = "" if "?" in str(e) else "check ari.url, and firewalls in between"
        return failed(SUBJECT, str(e), advice)
    await events.close()
    return None


class _Look:
    """The steps of a session that has reached ARI."""

    def __init__(self, http: AriHttp, ari: AriSettings) -> None:
        self._http, self._ari = http, ari

    async def _object(self, path: str, **params: str) -> Mapping[str, Any]:
        status, text = await self._http.ask("GET", path, params)
        return ari_events.answer(text) if status == 200 else {}

    async def version(self) -> Finding:
        """Who answers there."""
        system = (await self._object("/asterisk/info")).get("system")
        version = system.get("version", "") if isinstance(system, dict) else ""
        version = str(version) or "of an unknown version"
        found = f"at {self._http.where} as {self._ari.username!r}, Asterisk {version}"
        return ok(SUBJECT, f"{found}; its events can be had")

    async def rights(self) -> Finding:
        """May our user make channels and bridges?"""
        status, text = await self._http.ask("DELETE", f"/channels/{uuid4()}")
        if status == 403:
            return failed(
                "ARI rights",
                "our user may only read: no call can be tapped",
                f"set read_only = no in [{self._ari.username}] in ari.conf, then: "
                "asterisk -rx 'module reload res_ari'",
            )
        if status != 404:
            why = text if status == 0 else f"Asterisk answered {status}"
            return warning("ARI rights", f"cannot be told: {why}", "see Asterisk's log")
        return ok("ARI rights", "our user may make channels and bridges")

    async def name(self) -> Finding:
        """Is somebody connected under our application's name?"""
        app = self._ari.app
        status, _ = await self._http.ask("GET", f"/applications/{app}")
        if status == 200:
            found = f"the application {app!r} is connected: a callscribe that runs, or somebody"
            return ok("ARI application", f"{found} else with this name (then change ari.app)")
        return ok("ARI application", f"the application {app!r} is free: no callscribe is connected")

    async def modules(self) -> list[Finding]:
        """Are the modules loaded that taps need?"""
        dialplan = self._ari.form == "dialplan"
        needed = {**MODULES, **(DIALPLAN if dialplan else MEDIA[self._ari.encapsulation])}
        findings = []
        for module, without in {**needed, **OPTIONAL}.items():
            status, _ = await self._http.ask("GET", f"/asterisk/modules/{module}.so")
            if status != 404:
                continue
            found = f"{module} is not loaded: {without.format(context=self._ari.context)}"
            load = f"add load = {module}.so to modules.conf, or install it with Asterisk's packages"
            report = warning if module in OPTIONAL else failed
            findings.append(report("ARI modules", found, load))
        return findings or [ok("ARI modules", f"{', '.join([*needed, *OPTIONAL])} are loaded")]

    async def address(self, listen: str) -> list[Finding]:
        """Does what we listen on agree with where Asterisk sends the audio?"""
        if self._ari.form != "dialplan":
            return [ok("ARI audio", f"Asterisk is told to send what it hears to {listen}")]
        answer = await self._object("/asterisk/variable", variable="CALLSCRIBE")
        told = str(answer.get("value", ""))
        if not told:
            found = "the dialplan's global variable CALLSCRIBE is empty: no audio can come"
            advice = f"set it in [globals] in extensions.conf: CALLSCRIBE={listen}"
            return [failed("ARI audio", found, advice)]
        if told.rpartition(":")[2] != listen.rpartition(":")[2]:
            found = f"the dialplan's CALLSCRIBE is {told}, and the bridge listens on {listen}"
            advice = "correct it in [globals] in extensions.conf, or audiosocket.listen"
            return [warning("ARI audio", found, advice)]
        return [ok("ARI audio", f"the dialplan sends what is heard to {told}")]


async def _context(name: str, ami: AmiSettings | None) -> Finding:
    """Is the context there? ARI cannot tell; AMI can, with the function DIALPLAN_EXISTS."""
    there = await _exists(name, ami) if ami is not None else ""
    if there == "1":
        return ok("ARI dialplan", f"the context [{name}] takes UUIDs")
    if there == "0":
        return failed(
            "ARI dialplan",
            f"there is no context [{name}] that takes a UUID: no audio can come",
            "add [callscribe-snoop] of asterisk/extensions.conf to the dialplan, then: "
            "asterisk -rx 'dialplan reload'",
        )
    look = f"asterisk -rx 'dialplan show {name}'"
    return ok("ARI dialplan", f"whether [{name}] is there can only be seen with {look}")


async def _exists(name: str, settings: AmiSettings) -> str:
    """As DIALPLAN_EXISTS says it: 0 or 1; empty where that cannot be asked."""
    link = AmiLink(settings, lambda announcement: None)
    await link.start()
    try:
        with suppress(DeliveryError, TimeoutError):
            async with asyncio.timeout(settings.timeout):
                await link.up()
                variable = f"DIALPLAN_EXISTS({name},{uuid4()},1)"
                answer = await link.action("Getvar", [("Variable", variable)])
                return answer.get("value", "")
    finally:
        await link.close()
    return ""
