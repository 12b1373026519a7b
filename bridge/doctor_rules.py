"""Doctor and [[rule]]: may our user do what the rules do, and is there where they send calls?

At Asterisk ListCommands names the actions that this user may run, and only these; the dialplan's
function DIALPLAN_EXISTS, where it is loaded, knows the places. At FreeSWITCH it is tried on a
channel that there is not. Nothing is done to any call. [Asterisk: seen, 22.10.1]
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from uuid import uuid4

from bridge.config import AmiSettings, EslSettings, Settings
from bridge.config_rules import Action, CallWebhook, HangUp, Redirect
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.errors import DeliveryError
from bridge.pbx.ami import AmiLink
from bridge.pbx.esl import EslLink
from bridge.rules_actions import AMI_ACTIONS, AMI_RIGHTS


async def check(settings: Settings) -> list[Finding]:
    """Every finding about rules; none where there are none."""
    if not settings.rule:
        return []
    actions = [action for rule in settings.rule for action in rule.actions]
    dry = settings.rules.dry_run or all(rule.dry_run for rule in settings.rule)
    many = f"{len(settings.rule)} rule{'s' if len(settings.rule) > 1 else ''}"
    findings = [ok("rules", many + (", all of them dry runs" if dry else ""))]
    if settings.ami is not None and any(map(_at_ami, actions)):
        findings += await _asterisk(settings.ami, actions)
    if settings.esl is not None:
        findings += await _freeswitch(settings.esl, actions)
    return findings


def _at_ami(action: Action) -> bool:
    return not isinstance(action, CallWebhook) and not (
        isinstance(action, HangUp) and action.target == "bridge"
    )


async def _asterisk(ami: AmiSettings, actions: list[Action]) -> list[Finding]:
    link = AmiLink(ami, lambda announcement: None)
    await link.start()
    try:
        async with asyncio.timeout(ami.timeout):
            await link.up()
        known = await link.action("ListCommands", [])
        return [*_rights(ami, actions, known), *[f async for f in _places(link, actions)]]
    except (DeliveryError, TimeoutError):
        return [warning("rules", "could not be tested at Asterisk, see AMI above")]
    finally:
        await link.close()


def _rights(ami: AmiSettings, actions: list[Action], known: Mapping[str, str]) -> Iterator[Finding]:
    needed = dict.fromkeys(AMI_ACTIONS[action.do] for action in actions if _at_ami(action))
    missing = [name for name in needed if not known.get(name)]
    for name in missing:
        right = AMI_RIGHTS.get(name, "call")
        yield failed(
            "rules",
            f"may not {name}, which a rule needs",
            f"in manager.conf, section [{ami.username}], add {right} to the line write = …, then: "
            "asterisk -rx 'manager reload'"
            + ("; and load app_mixmonitor.so" if "MixMonitor" in name else ""),
        )
    if needed and not missing:
        yield ok("rules", f"may {', '.join(needed)}")


async def _places(link: AmiLink, actions: list[Action]) -> AsyncIterator[Finding]:
    for place in dict.fromkeys(
        f"{a.context},{a.exten},{a.priority}" for a in actions if isinstance(a, Redirect)
    ):
        answer = await link.action("Getvar", [("Variable", f"DIALPLAN_EXISTS({place})")])
        match answer.get("value", ""):
            case "1":
                yield ok("rules", f"the dialplan has {place}")
            case "0":
                yield failed(
                    "rules",
                    f"the dialplan has no {place}, where a rule sends calls",
                    "correct the rule, or add it to extensions.conf and run: "
                    "asterisk -rx 'dialplan reload'",
                )
            case _:
                yield warning(
                    "rules",
                    f"whether the dialplan has {place} cannot be seen",
                    "load func_dialplan.so to know",
                )


async def _freeswitch(esl: EslSettings, actions: list[Action]) -> list[Finding]:
    commands = {
        "redirect": "uuid_transfer {} s XML none",
        "hangup": "uuid_kill {}",
        "record": "uuid_record {} stop all",
        "stop_record": "uuid_record {} stop all",
    }
    needed = dict.fromkeys(commands[a.do] for a in actions if a.do in commands and _at_ami(a))
    link = EslLink(esl)
    findings = []
    await link.start()
    try:
        async with asyncio.timeout(esl.timeout):
            await link.up()
        for command in needed:
            name = command.partition(" ")[0]
            try:
                await link.api(command.format(uuid4()))
            except DeliveryError as e:
                if not e.permanent:
                    raise
                if "denied" in str(e):
                    advice = f"add {name} to esl-allowed-api of the user"
                    findings.append(failed("rules", f"may not {name}, which a rule needs", advice))
                else:  # no such channel
                    findings.append(ok("rules", f"may {name}"))
        return findings
    except (DeliveryError, TimeoutError):
        return [warning("rules", "could not be tested at FreeSWITCH, see ESL above")]
    finally:
        await link.close()
