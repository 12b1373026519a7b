"""What doctor can see on this machine: ports, the engine, limits, and settings with a catch."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import json
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bridge import doctor_kyutai, listeners
from bridge.config import Address, AudioSocketSettings, EngineSettings, Settings
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.engine.choice import build, choose
from bridge.errors import BridgeError, EngineUnavailable

ANSWER = 2.0  # s that a program on our HTTP port has to say who it is
ANSWER_LIMIT = 64 * 1024  # bytes of that
IMPORT = 4.0  # s; importing pocketsphinx takes 0.2 on an idle machine
HTTP_CONNECTIONS = 256  # bridge.http.service.Limits
OTHER_FILES = 64  # libraries, logs, AMI, webhooks
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

# Imported in a process of its own: only `engine.pocketsphinx_worker` may import it into ours.
PROBE = (sys.executable, "-P", "-c", "import pocketsphinx as p; print(p.get_model_path())")
MODEL = [
    "en-us/cmudict-en-us.dict",
    "en-us/en-us.lm.bin",
    *(
        f"en-us/en-us/{name}"
        for name in "feat.params mdef means noisedict sendump transition_matrices variances".split()
    ),
]


# -- ports --------------------------------------------------------------------------------------


async def ports(settings: Settings) -> list[Finding]:
    """Whether each listener's address can be bound. Binds it for a moment."""
    findings, running, seen = [], "", dict[Address, str]()
    for name, address in listeners.wanted(settings).items():
        twin = seen.setdefault(address, name)
        if twin != name and address.port:
            found = f"{name}.listen and {twin}.listen are both {address}"
            findings.append(failed(name, found, "give each a port of its own"))
            continue
        try:
            listeners.listen(address, name).close()
            findings.append(ok(name, f"{address} can be listened on"))
        except BridgeError as e:
            if not _in_use(e):
                findings.append(failed(name, str(e)))
                continue
            if name == "http":
                running = await _who(address)
            findings.append(_taken(name, address, running))
    return findings


def _in_use(error: BridgeError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


def _taken(name: str, address: Address, running: str) -> Finding:
    if running:
        # AudioSocket has no greeting that would tell a bridge from another program
        how = "is in use, as far as can be told by the" if name != "http" else "is in use by a"
        return ok(name, f"{address} {how} {running} that is running already")
    return failed(
        name,
        f"{address} is in use by another program, or by a callscribe that does not answer",
        f"see which with: ss -ltnp 'sport = :{address.port}'; stop it, or choose another "
        f"address for {name}.listen",
    )


async def _who(address: Address) -> str:
    """``callscribe 1.2`` if that is what answers HTTP there, else empty."""
    answer = b""
    with suppress(OSError, TimeoutError, ValueError, AttributeError):
        async with asyncio.timeout(ANSWER):
            answer = await _get(Address(WILDCARDS.get(address.host, address.host), address.port))
        info = json.loads(answer.partition(b"\r\n\r\n")[2])
        if info.get("name") == "callscribe":
            return f"callscribe {info.get('version', '')}".strip()
    return ""


async def _get(address: Address) -> bytes:
    """The answer to GET /, without a library: nothing but the name in it matters."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while len(answer) < ANSWER_LIMIT and (data := await reader.read(ANSWER_LIMIT)):
            answer += data
        return answer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


# -- engine -------------------------------------------------------------------------------------


async def engine(settings: EngineSettings, probe: Sequence[str] = PROBE) -> list[Finding]:
    """Which recogniser, why, and whether it could be started. Loads no model."""
    choice = await asyncio.to_thread(choose, settings)
    try:
        recogniser = build(settings, choice)
    except EngineUnavailable as e:
        return [failed("engine", str(e), 'install it, or set engine.kind = "auto"')]
    except Exception as e:  # a function of the user's own may raise anything
        found = f"engine.kind = {choice.kind!r} cannot be made: {type(e).__name__}: {e}"
        return [failed("engine", found, "correct that function, or choose another engine")]
    if choice.kind == "pocketsphinx":
        problem = await _pocketsphinx(probe)
        if problem is not None:
            return [problem]
    slots = recogniser.slots or settings.slots  # some engines know only when they are started
    found = f"{recogniser.name}{'' if slots == 'auto' else f', {slots} slots'}: {choice.why}"
    if choice.kind == "tones":
        return [warning("engine", f"{found}; it hears no speech", 'set engine.kind = "auto"')]
    if choice.kind == "kyutai":
        return [ok("engine", found), *await asyncio.to_thread(doctor_kyutai.check, settings)]
    if settings.kind == "auto" and await asyncio.to_thread(doctor_kyutai.unused, settings):
        return [warning("engine", found, "a GPU is there and idle")]
    return [ok("engine", found)]


async def _pocketsphinx(probe: Sequence[str]) -> Finding | None:
    """What is wrong with the package or its model, or None."""
    process = await asyncio.create_subprocess_exec(
        *probe,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(IMPORT):
            said, complaint = await process.communicate()
    except TimeoutError:
        found = f"importing pocketsphinx takes longer than {IMPORT:g} s"
        return warning("engine", found, "is the machine very busy, or its disk very slow?")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode:
        reason = (complaint.decode("utf-8", "replace").split("\n") or [""])[-2:][0]
        return failed(
            "engine",
            f"pocketsphinx cannot be imported: {reason}",
            "pip install pocketsphinx, or choose another engine.kind",
        )
    return _model(Path(said.decode("utf-8", "replace").strip()))


def _model(folder: Path) -> Finding | None:
    missing = [name for name in MODEL if not (folder / name).is_file()]
    if not missing:
        return None
    return failed(
        "engine",
        f"pocketsphinx is installed without its model: {', '.join(missing)} not in {folder}",
        "pip install --force-reinstall pocketsphinx, and see whether POCKETSPHINX_PATH is set",
    )


# -- limits and settings ------------------------------------------------------------------------


def open_files(settings: Settings) -> Finding:
    """The limit of open files against the connections that the settings allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = settings.audiosocket.max_connections if settings.audiosocket else 0
    need = connections + min(connections, settings.calls.max) + HTTP_CONNECTIONS + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= need:
        limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} at most"
        return ok("open files", f"{limit}; {need} would be enough")
    return warning(
        "open files",
        f"{soft} at most as started from here, and {connections} connections with a recogniser "
        f"each may need {need}",
        "ulimit -n 65536 before serve (the systemd unit has LimitNOFILE=65536), or lower "
        "audiosocket.max_connections",
    )


def loop() -> Finding:
    """uvloop, or not."""
    if importlib.util.find_spec("uvloop"):
        return ok("uvloop", "installed")
    found = "not installed: works without; with it (pip install 'callscribe[fast]') a core carries"
    return ok("uvloop", f"{found} about twice the legs")


def audiosocket(settings: AudioSocketSettings | None) -> list[Finding]:
    """Settings that are allowed and have a catch."""
    if settings is None:
        found = "there is no [audiosocket] section: no call can come in"
        return [warning("audiosocket", found, "add the section, an empty one will do")]
    return [_keepalive(settings.keepalive), _admission(settings)]


def _keepalive(keepalive: str) -> Finding:
    if keepalive != "off":
        return ok("keepalive", keepalive)
    return warning(
        "keepalive",
        "off: Asterisk ends a call on which both sides are silent for 2 s, and may send no audio "
        "to a bridge that says nothing (asterisk#2089)",
        'set audiosocket.keepalive = "continuous"',
    )


def _admission(settings: AudioSocketSettings) -> Finding:
    if settings.admission == "announced" or settings.listen.loopback:
        reach = "loopback only" if settings.listen.loopback else "from the network"
        return ok("admission", f"{settings.admission}, {reach}")
    if settings.allow:
        return ok("admission", f"open, to {', '.join(settings.allow)} only")
    return warning(
        "admission",
        f"open: AudioSocket has no authentication, and whoever reaches {settings.listen} can take "
        "slots",
        'set audiosocket.admission = "announced", or name the PBX in audiosocket.allow',
    )
