"""`callscribe doctor`: does what is configured work here? Looks, and changes nothing that lasts.

The checks are in `doctor_local` (ports, engine, limits), `doctor_ami` and `doctor_webhook`; each
gives findings, and here they are run and shown. What waits for others runs at the same time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TextIO

from bridge import (
    config,
    doctor_ami,
    doctor_ari,
    doctor_esl,
    doctor_local,
    doctor_outbox,
    doctor_rules,
    doctor_webhook,
    doctor_websocket,
)
from bridge.config import Settings
from bridge.doctor_report import Finding, Report, failed, ok, warning
from bridge.errors import ConfigError

EXIT_FINE, EXIT_FAILED, EXIT_CONFIG = 0, 1, 2


async def run(config_path: str | None, out: TextIO | None = None) -> int:
    """Check, and write a line per finding to `out` (standard output).

    Its exit status: 0 nothing failed, 1 something did, 2 the configuration is wrong.
    """
    # What parts of the bridge log is in the findings already; without a handler it would be on
    # standard error as well.
    logging.basicConfig(handlers=[logging.NullHandler()])
    report = Report(out or sys.stdout)
    try:
        settings = config.load(config_path)
    except ConfigError as e:
        report.add(*(failed("configuration", problem) for problem in e.problems))
        return EXIT_CONFIG
    report.add(ok("configuration", config_path or "no file given: environment and defaults"))
    await _check(settings, report)
    return EXIT_FAILED if report.failures else EXIT_FINE


async def _check(settings: Settings, report: Report) -> None:
    report.add(*await doctor_local.ports(settings))
    report.add(*await doctor_local.engine(settings.engine))
    report.add(doctor_local.open_files(settings), doctor_local.loop())
    report.add(*doctor_local.audiosocket(settings.audiosocket))
    report.add(doctor_outbox.check(settings.outbox))
    outside = [
        doctor_websocket.check(settings),
        _ami(settings),
        doctor_rules.check(settings),
        _ari(settings),
        _esl(settings),
        *(doctor_webhook.check(hook) for hook in settings.webhook),
    ]
    for findings in await asyncio.gather(*outside):
        report.add(*findings)
    if settings.ami is None and settings.esl is None and not settings.webhook:
        report.add(_nobody())


async def _ari(settings: Settings) -> list[Finding]:
    return [] if settings.ari is None else await doctor_ari.check(settings)


async def _esl(settings: Settings) -> list[Finding]:
    return [] if settings.esl is None else await doctor_esl.check(settings.esl)


async def _ami(settings: Settings) -> list[Finding]:
    if settings.ami is None:
        return [ok("AMI", "there is no [ami] section: nothing to look at")]
    listen = settings.audiosocket.listen if settings.audiosocket else None
    rate = settings.audiosocket.rate if settings.audiosocket else None
    return await doctor_ami.check(settings.ami, listen=listen, rate=rate)


def _nobody() -> Finding:
    return warning(
        "events",
        "nobody is told what callers say: there is neither [ami] nor [esl] nor a [[webhook]]",
        "add one of them, unless GET /calls is how you read it",
    )
