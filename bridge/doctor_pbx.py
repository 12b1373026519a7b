"""What doctor can see of Asterisk itself: version, modules, and where its dialplan calls us.

With no more than the bridge's own rights: Getvar (write call) also reads dialplan functions, and
UUID(), VERSION() and IFMODULE() need no channel [seen with Asterisk 22.10.1].
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from bridge import doctor_versions
from bridge.config import Address
from bridge.doctor_report import Finding, failed, ok, warning

MODULES = ("res_audiosocket", "chan_audiosocket", "app_audiosocket", "app_chanspy")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Look:
    """Looks by means of a session (`doctor_ami`).

    `value` reads a global variable or function ("": there is none), `loaded` knows modules; both
    give None where the user may not look. `settings` is the version as CoreSettings has it, or "".
    """

    def __init__(
        self,
        value: Callable[[str], Awaitable[str | None]],
        loaded: Callable[[str], Awaitable[bool | None]],
        settings: Callable[[], Awaitable[str]],
        *,
        listen: Address | None,
        rate: int | None,
    ) -> None:
        self._value, self._loaded, self._settings = value, loaded, settings
        self._listen, self._rate = listen, rate

    async def findings(self) -> list[Finding]:
        """One or more lines per matter."""
        return [*await self._version(), *await self._modules(), *await self._dialplan()]

    async def _version(self) -> list[Finding]:
        version = await self._value("VERSION(ASTERISK_VERSION)") or await self._settings()
        if version:
            return doctor_versions.audiosocket(version, self._rate)
        found = (
            "its version cannot be seen (that needs func_version.so and write = call); before 22.7 "
            "set audiosocket.rate for audio wider than 8000 Hz, before 22.4 it sends no digits"
        )
        return [ok("Asterisk", found)]

    async def _modules(self) -> list[Finding]:
        loaded = {name: await self._loaded(name) for name in MODULES}
        missing = [name for name, there in loaded.items() if there is False]
        findings = [_missing(name) for name in missing]
        if None in loaded.values():
            unseen = ", ".join(name for name, there in loaded.items() if there is None)
            found = f"may not look whether {unseen} are loaded; asterisk -rx 'module show' tells"
            findings.append(ok("Asterisk", found))
        elif not missing:
            findings.append(ok("Asterisk", f"{', '.join(MODULES)} are loaded"))
        return findings

    async def _dialplan(self) -> list[Finding]:
        uuid = await self._value("UUID()")
        if uuid is None:
            return [ok("Asterisk", "may not look at the dialplan (that needs write = call)")]
        there = ok("Asterisk", "the dialplan function UUID() is there")
        findings = [there if _UUID.fullmatch(uuid) else _no_uuid()]
        where = await self._value("CALLSCRIBE")
        if self._listen and where and where.rpartition(":")[2] != str(self._listen.port):
            found = f"the dialplan's CALLSCRIBE is {where}, and the bridge listens on"
            advice = "correct it in [globals] in extensions.conf, or audiosocket.listen"
            findings.append(warning("Asterisk", f"{found} {self._listen}", advice))
        return findings


def _missing(module: str) -> Finding:
    load = f"add load = {module}.so to modules.conf, or install it with Asterisk's packages"
    if module == "app_audiosocket":
        found = "app_audiosocket is not loaded: [callscribe-app] of the samples does not work"
        return ok("Asterisk", f"{found}, the others do")
    if module == "app_chanspy":
        found = "app_chanspy is not loaded: both parties of a call cannot be told apart"
        return warning("Asterisk", found, load)
    return failed("Asterisk", f"{module} is not loaded: Dial(AudioSocket/…) does not work", load)


def _no_uuid() -> Finding:
    return warning(
        "Asterisk",
        "the dialplan function UUID() is not there",
        "load = func_uuid.so in modules.conf; before Asterisk 22.2, 21.7, 20.12 use "
        "${SHELL(head -c 36 /proc/sys/kernel/random/uuid)}, as [callscribe-app] does",
    )
