"""The demonstration's call through a real Asterisk: a private one, on loopback, for its duration.

It is an installed Asterisk, or the laboratory's (`make asterisk-lab`), with a configuration in a
directory of its own made from the repository's asterisk/ samples, and free ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import os
import secrets
import shutil
import socket
import tempfile
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import bridge
from bridge.errors import BridgeError
from bridge.recording import read_recording

SAMPLES = Path(bridge.__file__).parent.parent / "asterisk"
LAB = Path(os.environ.get("CALLSCRIBE_LAB", "/var/lib/callscribe-lab"))
BOOT, CLI = 20.0, 5.0  # s
MODULES = """app_chanspy app_dial app_originate app_playback app_stack app_userevent bridge_simple
chan_audiosocket codec_resample codec_ulaw format_wav func_channel func_global func_logic func_shell
func_uuid pbx_config res_audiosocket res_clioriginate res_timing_timerfd""".split()
EMPTY = "acl ccss cdr cel features pjproject rtp udptl".split()

FILES = {
    "asterisk": """[directories]
astetcdir => {home}
astmoddir => {modules}
astvarlibdir => {home}
astdbdir => {home}
astkeydir => {home}
astdatadir => /usr/share/asterisk
astagidir => {home}
astspooldir => {home}
astrundir => {home}
astlogdir => {home}
""",
    "extensions": """#include "sample-extensions.conf"
[globals](+)
CALLSCRIBE=127.0.0.1:{port}
[demo]
exten => call,1,Answer()
 same => n,Gosub(callscribe-dial,s,1(Local/callee@demo))
 same => n,Hangup()
exten => _calle[re],1,Answer()
 same => n,Playback({home}/${{EXTEN}})
 same => n,Hangup()
""",
    "manager": """#include "sample-manager.conf"
[general](+)
port = {ami}
[callscribe](+)
secret = {secret}
""",
    "modules": "[modules]\nautoload = no\n" + "".join(f"load = {name}.so\n" for name in MODULES),
    "logger": "[general]\n[logfiles]\nmessages => warning,error\n",
    "indications": "[general]\ncountry = us\n[us]\n",
    **dict.fromkeys(EMPTY, ""),
}


@dataclass(frozen=True, slots=True)
class Installation:
    """An Asterisk: in `root`, entered by chroot unless it is ``/``."""

    root: Path

    @property
    def modules(self) -> str:
        """Its module directory, as it sees it."""
        found = next(self.root.glob("usr/lib*/**/asterisk/modules/chan_audiosocket.so"), None)
        if found is None:
            raise BridgeError("this Asterisk has no chan_audiosocket.so: install all its modules")
        return "/" + str(found.parent.relative_to(self.root))

    def command(self, *args: str) -> list[str]:
        """To run `asterisk` with these arguments."""
        return [*(() if self.root == Path("/") else ("chroot", str(self.root))), "asterisk", *args]


def find() -> Installation:
    """An installed Asterisk, else the laboratory's. Raises `BridgeError`."""
    if not (SAMPLES / "extensions.conf").exists():
        raise BridgeError(f"the dialplan samples are not in {SAMPLES}: run this in a checkout")
    if shutil.which("asterisk"):
        return Installation(Path("/"))
    if (LAB / "usr/sbin/asterisk").exists():
        if os.geteuid() != 0:
            raise BridgeError(
                "the Asterisk of the laboratory needs root: sudo make demo ASTERISK=1"
            )
        return Installation(LAB)
    raise BridgeError(
        "no Asterisk here: install one, or run `sudo make asterisk-lab` for one in a directory"
    )


@dataclass(frozen=True, slots=True)
class Account:
    """Of the private Asterisk's manager interface."""

    port: int
    secret: str


def new_account() -> Account:
    """A free port and a random secret."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return Account(sock.getsockname()[1], secrets.token_hex(16))


class Asterisk:
    """One that is running."""

    def __init__(self, installation: Installation, home: str) -> None:
        self._installation = installation
        self._config = f"{home}/asterisk.conf"

    async def cli(self, command: str) -> str:
        """What a console command prints."""
        process = await asyncio.create_subprocess_exec(
            *self._installation.command("-C", self._config, "-rx", command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(CLI):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return ""
        return output.decode("utf-8", "replace")

    async def place_call(self) -> None:
        """The recording's caller calls its callee."""
        await self.cli("channel originate Local/caller@demo/n extension call@demo")

    async def version(self) -> str:
        """Such as "Asterisk 22.10.1"."""
        return " ".join((await self.cli("core show version")).split()[:2])


@contextlib.asynccontextmanager
async def running(
    installation: Installation, port: int, account: Account
) -> AsyncIterator[Asterisk]:
    """A private Asterisk that sends AudioSocket to `port`. Raises `BridgeError`."""
    outside = Path(tempfile.mkdtemp(prefix="callscribe-demo-", dir=installation.root / "tmp"))
    home = "/" + str(outside.relative_to(installation.root))
    process: asyncio.subprocess.Process | None = None
    try:
        await asyncio.to_thread(_configure, outside, home, installation.modules, port, account)
        process = await asyncio.create_subprocess_exec(
            *installation.command("-f", "-C", f"{home}/asterisk.conf"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        asterisk = Asterisk(installation, home)
        await _booted(asterisk, process)
        yield asterisk
    finally:
        if process is not None and process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLI):
                    await process.wait()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        shutil.rmtree(outside, ignore_errors=True)


async def _booted(asterisk: Asterisk, process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BOOT):
            while process.returncode is None:
                if "fully booted" in await asterisk.cli("core waitfullybooted"):
                    return
                await asyncio.sleep(0.1)
    raise BridgeError(f"the Asterisk did not start within {BOOT:.0f} s")


def _configure(outside: Path, home: str, modules: str, port: int, account: Account) -> None:
    values = {
        "home": home,
        "modules": modules,
        "port": port,
        "ami": account.port,
        "secret": account.secret,
    }
    for name, text in FILES.items():
        (outside / f"{name}.conf").write_text(text.format(**values))
    for sample in ("extensions", "manager"):
        shutil.copy(SAMPLES / f"{sample}.conf", outside / f"sample-{sample}.conf")
    with importlib.resources.as_file(
        importlib.resources.files("bridge") / "samples" / "call.wav"
    ) as recording:
        parties = zip(("caller", "callee"), read_recording(recording), strict=True)
        for name, (samples, rate) in parties:
            with wave.open(str(outside / f"{name}.wav"), "wb") as out:
                out.setnchannels(1)
                out.setsampwidth(2)
                out.setframerate(rate)
                out.writeframes(samples.astype("<i2").tobytes())
