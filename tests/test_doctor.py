"""`callscribe doctor` against a scripted Asterisk, real sockets and web servers on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import socket
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from aiohttp import web
from fake_ami import FakeAmi, Pairs, Received

from bridge import cli, config, doctor, doctor_ami, doctor_local, doctor_versions, doctor_webhook
from bridge.config import Address, AmiSettings, EngineSettings, Settings, WebhookSettings
from bridge.doctor_report import Finding, Report, failed, ok, warning
from bridge.engine import device

SECRET = "whsec_" + "b2xk" * 8
AMI_SECRET = "s3cret"
VERSION = "22.10.1+dfsg+~cs6.17.60671434-1"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: what doctor says of one is in test_doctor_kyutai."""

    def none() -> tuple[device.Gpu, ...]:
        raise device.NoGpu("there is no NVIDIA driver")

    monkeypatch.setattr(device, "gpus", none)


def only(findings: Sequence[Finding], status: str) -> list[Finding]:
    return [finding for finding in findings if finding.status == status]


def about(findings: Sequence[Finding], subject: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.subject == subject)
    return finding


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def taken() -> Iterator[int]:
    """A port that somebody listens on who never answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


# -- lines --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_aligned_and_plain() -> None:
    out = io.StringIO()
    report = Report(out)
    report.add(ok("a", "fine"), warning("AMI read dialplan", "odd", "do this"), failed("b", "bad"))
    assert report.failures == 1
    assert out.getvalue().splitlines() == [
        "ok       a                  fine",
        "warning  AMI read dialplan  odd -- do this",
        "failed   b                  bad",
    ]


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    Report(coloured).add(failed("a", "bad"))
    assert coloured.getvalue() == "\x1b[31mfailed \x1b[0m  a                  bad\n"
    monkeypatch.setenv("NO_COLOR", "1")
    Report(plain).add(failed("a", "bad"))
    assert "\x1b" not in plain.getvalue()


def test_nothing_found_ends_a_line_or_speaks_to_the_terminal() -> None:
    out = io.StringIO()
    Report(out).add(ok("a", "evil\r\nok \x1b]0;title\x07\x9b2J\u2028x"))
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue()


# -- configuration, and the whole of it ---------------------------------------------------------


async def run(text: str, folder: Path) -> tuple[int, list[str]]:
    path = folder / "bridge.toml"
    path.write_text(text)
    out = io.StringIO()
    status = await doctor.run(str(path), out)
    assert AMI_SECRET not in out.getvalue() and SECRET not in out.getvalue()
    return status, out.getvalue().splitlines()


async def test_every_problem_of_the_configuration_is_a_line(tmp_path: Path) -> None:
    status, lines = await run('[http]\nlisten = "x"\n[calls]\nmaximum = 3\n', tmp_path)
    assert status == 2
    assert sorted(line.split()[:3] for line in lines) == [
        ["failed", "configuration", "calls.maximum:"],
        ["failed", "configuration", "http.listen:"],
    ]


def test_the_command_prints_and_returns_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nothing.toml"
    assert cli.main(["doctor", "-c", str(missing)]) == 2
    assert capsys.readouterr().out == (
        f"failed   configuration      {missing}: cannot be read: No such file or directory\n"
    )


def whole(ami: int, hook: str) -> str:
    return f"""
[engine]
kind = "tones"
[audiosocket]
listen = "127.0.0.1:{free_port()}"
[http]
listen = "127.0.0.1:{free_port()}"
[ami]
port = {ami}
username = "callscribe"
secret = "{AMI_SECRET}"
[[webhook]]
url = "{hook}"
secret = "{SECRET}"
"""


async def test_all_is_well(tmp_path: Path) -> None:
    async with Asterisk() as fake, receiver(204) as (url, got):
        status, lines = await run(whole(fake.port, url), tmp_path)
    assert status == 0
    assert [line for line in lines if line.startswith("failed")] == []
    assert len(got) == 1
    for subject in (
        "configuration", "http", "audiosocket", "engine", "open files", "uvloop", "keepalive",
        "admission", "AMI", "AMI write user", "AMI read user", "AMI write call",
        "AMI read dialplan", "Asterisk", "webhook:127.0.0.1",
    ):  # fmt: skip
        assert any(line[9:].startswith(subject) for line in lines), subject


async def test_one_failure_is_exit_status_1(tmp_path: Path) -> None:
    async with Asterisk() as fake, receiver(500) as (url, _):
        status, lines = await run(whole(fake.port, url), tmp_path)
    assert status == 1
    (line,) = (line for line in lines if line.startswith("failed"))
    assert line.startswith("failed   webhook:127.0.0.1  answered 500")


async def test_without_ami_or_webhook_nobody_is_told(tmp_path: Path) -> None:
    text = f'[engine]\nkind = "tones"\n[http]\nlisten = "127.0.0.1:{free_port()}"\n'
    status, lines = await run(text, tmp_path)
    assert status == 0
    assert any(line.startswith("warning  events") for line in lines)
    assert any(line.startswith("ok       AMI  ") for line in lines)
    assert any("no [audiosocket] section: no call can come in" in line for line in lines)


# -- ports --------------------------------------------------------------------------------------


def listening(http: int, audiosocket: int) -> Settings:
    return config.from_dict(
        {
            "http": {"listen": f"127.0.0.1:{http}"},
            "audiosocket": {"listen": f"127.0.0.1:{audiosocket}"},
        }
    )


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A server that answers the end of a request's head with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def info(body: object) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(body).encode()


async def test_free_ports_are_free_again_afterwards() -> None:
    settings = listening(free_port(), free_port())
    for _ in range(2):
        findings = await doctor_local.ports(settings)
        assert [f.status for f in findings] == ["ok", "ok"]
        assert findings[0].found == f"{settings.http.listen} can be listened on"


async def test_a_callscribe_that_runs_already_is_fine() -> None:
    answer = info({"name": "callscribe", "version": "9.9"})
    async with answering(answer) as http:
        with taken() as audiosocket:
            findings = await doctor_local.ports(listening(http, audiosocket))
    assert [f.status for f in findings] == ["ok", "ok"]
    assert "is in use by a callscribe 9.9 that is running already" in findings[0].found
    assert "as far as can be told by the callscribe 9.9" in findings[1].found


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense", info({"name": "nginx"}), info(["callscribe"]), info({})],
)
async def test_another_program_is_not(answer: bytes) -> None:
    async with answering(answer) as http:
        with taken() as audiosocket:
            findings = await doctor_local.ports(listening(http, audiosocket))
    assert [f.status for f in findings] == ["failed", "failed"]
    assert findings[0].found == (
        f"127.0.0.1:{http} is in use by another program, or by a callscribe that does not answer"
    )
    assert f"ss -ltnp 'sport = :{audiosocket}'" in findings[1].advice


async def test_a_program_that_says_nothing_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_local, "ANSWER", 0.05)
    with taken() as http:
        findings = await doctor_local.ports(listening(http, free_port()))
    assert [f.status for f in findings] == ["failed", "ok"]


async def test_an_address_that_is_not_ours() -> None:
    settings = config.from_dict({"http": {"listen": "192.0.2.1:8001", "allow_insecure": True}})
    (finding,) = await doctor_local.ports(settings)
    assert finding.status == "failed"
    assert finding.found.startswith("http.listen = 192.0.2.1:8001: ")


async def test_two_listeners_on_one_port() -> None:
    port = free_port()
    first, second = await doctor_local.ports(listening(port, port))
    assert first.status == "ok"
    assert second.status == "failed"
    assert second.found == f"audiosocket.listen and http.listen are both 127.0.0.1:{port}"


# -- engine -------------------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


async def test_pocketsphinx_as_it_is_installed() -> None:
    (finding,) = await doctor_local.engine(EngineSettings(slots=3))
    assert finding.status == "ok"
    assert finding.found.startswith("pocketsphinx, 3 slots: engine.kind is auto, and for kyutai ")
    assert "there is no NVIDIA driver" in finding.found


async def test_pocketsphinx_that_cannot_be_imported() -> None:
    (finding,) = await doctor_local.engine(
        EngineSettings(slots=3), python("raise ImportError('libsphinx.so')")
    )
    assert finding.status == "failed"
    assert finding.found == "pocketsphinx cannot be imported: ImportError: libsphinx.so"


async def test_pocketsphinx_without_its_model(tmp_path: Path) -> None:
    for name in doctor_local.MODEL[1:]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    probe = python(f"print({str(tmp_path)!r})")
    (finding,) = await doctor_local.engine(EngineSettings(slots=3), probe)
    assert finding.status == "failed"
    assert f"without its model: {doctor_local.MODEL[0]} not in" in finding.found
    (tmp_path / doctor_local.MODEL[0]).touch()
    (finding,) = await doctor_local.engine(EngineSettings(slots=3), probe)
    assert finding.status == "ok"


async def test_an_import_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_local, "IMPORT", 0.05)
    probe = python("import sys; sys.stdin = open(0); import signal; signal.pause()")
    (finding,) = await doctor_local.engine(EngineSettings(slots=3), probe)
    assert finding.status == "warning"
    assert "takes longer than 0.05 s" in finding.found


async def test_tones_hear_no_speech() -> None:
    (finding,) = await doctor_local.engine(EngineSettings(kind="tones", slots=2))
    assert finding.status == "warning"
    assert finding.found.startswith("tones, 2 slots: ")
    assert "hears no speech" in finding.found


async def test_an_engine_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_engine")
    monkeypatch.setitem(sys.modules, "own_engine", module)

    def broken(settings: EngineSettings) -> None:
        raise RuntimeError("no GPU")

    module.make = broken  # type: ignore[attr-defined]
    (finding,) = await doctor_local.engine(EngineSettings(kind="own_engine:make"))
    assert finding.status == "failed"
    assert finding.found == "engine.kind = 'own_engine:make' cannot be made: RuntimeError: no GPU"
    (finding,) = await doctor_local.engine(EngineSettings(kind="own_engine:nothing"))
    assert finding.status == "failed"
    assert "cannot be imported" in finding.found


# -- limits and settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "status"),
    [(1024, "warning"), (519, "warning"), (520, "ok"), (resource.RLIM_INFINITY, "ok")],
)
def test_open_files(limit: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    connections = 100 if limit != 1024 else 4096
    settings = config.from_dict({"audiosocket": {"max_connections": connections}})
    finding = doctor_local.open_files(settings)
    assert finding.status == status
    assert ("LimitNOFILE" in finding.advice) == (status == "warning")


def test_uvloop_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (None, object()):
        monkeypatch.setattr("importlib.util.find_spec", lambda _, spec=there: spec)
        finding = doctor_local.loop()
        assert finding.status == "ok"
        assert ("not installed" in finding.found) == (there is None)


def test_keepalive_off_has_a_catch() -> None:
    for keepalive, status in (("continuous", "ok"), ("1s", "ok"), ("off", "warning")):
        settings = config.from_dict({"audiosocket": {"keepalive": keepalive}})
        finding = about(doctor_local.audiosocket(settings.audiosocket), "keepalive")
        assert finding.status == status
        assert ("2 s" in finding.found and "#2089" in finding.found) == (status == "warning")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "ok"),
        ({"listen": "0.0.0.0:9092"}, "warning"),
        ({"listen": "0.0.0.0:9092", "allow": ["10.0.0.0/8"]}, "ok"),
        ({"listen": "0.0.0.0:9092", "admission": "announced"}, "ok"),
    ],
)
def test_open_admission_from_the_network(changes: dict[str, Any], status: str) -> None:
    settings = config.from_dict(
        {"audiosocket": {"allow_insecure": True, **changes}, "http": {"token": "a token of tests"}}
    )
    finding = about(doctor_local.audiosocket(settings.audiosocket), "admission")
    assert finding.status == status
    assert ("no authentication" in finding.found) == (status == "warning")


# -- AMI ----------------------------------------------------------------------------------------


class Asterisk(FakeAmi):
    """One that has global variables and functions, and keeps events from who may not read them."""

    def __init__(self) -> None:
        super().__init__()
        self.unread: set[str] = set()  # events, or names of variables, that do not reach us
        self.globals: dict[str, str] = {}
        self.modules = {"res_audiosocket", "chan_audiosocket", "app_audiosocket", "app_chanspy"}
        self.functions: dict[str, str] = {
            "VERSION(ASTERISK_VERSION)": VERSION,
            "UUID()": "9ba29aa1-271f-454e-9086-3a3714a27a7e",
        }
        self.ifmodule = True

    def deny(self, *actions: str) -> None:
        self.errors |= dict.fromkeys(actions, "Permission denied")

    def emit(self, *headers: tuple[str, str]) -> None:
        told = dict(headers)
        if not self.unread & {told["Event"], told.get("Variable", "")}:
            super().emit(*headers)

    def _do_getvar(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        name = action.get("Variable")
        value = self.functions.get(name) or self.globals.get(name, "")
        if name.startswith("IFMODULE(") and self.ifmodule:
            value = "1" if name[9:].removesuffix(".so)") in self.modules else "0"
        return [("Response", "Success"), ("Variable", name), ("Value", value)]

    def _do_setvar(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        assert not action.get("Channel")
        name, value = action.get("Variable"), action.get("Value")
        self.globals[name] = value
        self.emit(("Event", "VarSet"), ("Channel", "none"), ("Variable", name), ("Value", value))
        return [("Response", "Success"), ("Message", "Variable Set")]

    def _do_modulecheck(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        if action.get("Module") in self.modules:
            return [("Response", "Success")]
        return [("Response", "Error"), ("Message", "Module not loaded")]

    def _do_coresettings(self, writer: asyncio.StreamWriter, action: Received) -> Pairs:
        return [("Response", "Success"), ("AsteriskVersion", "20.5.0")]


def ami(port: int, **changes: Any) -> AmiSettings:
    values = {"port": port, "username": "callscribe", "secret": AMI_SECRET, "timeout": 10}
    return AmiSettings(**(values | changes))


async def examine(
    prepare: Callable[[Asterisk], object] = lambda fake: None, **changes: Any
) -> tuple[list[Finding], Asterisk]:
    async with Asterisk() as fake:
        prepare(fake)
        findings = await doctor_ami.check(ami(fake.port, **changes))
        await fake.until(lambda: fake.sessions == 0)
    assert not any(AMI_SECRET in f"{finding}" for finding in findings)
    return findings, fake


async def test_everything_is_permitted() -> None:
    findings, fake = await examine(join_variables=["CALLSCRIBE_ID", "OTHER_ID"])
    assert only(findings, "failed") == only(findings, "warning") == []
    assert about(findings, "AMI").found == (
        f"logged in at 127.0.0.1:{fake.port} as 'callscribe', AMI 11.0.0"
    )
    read = about(findings, "AMI read dialplan")
    assert read.found == "the event VarSet of CALLSCRIBE_ID, OTHER_ID arrives"
    assert fake.globals == {"CALLSCRIBE_ID": "", "OTHER_ID": ""}  # nothing that means anything
    (event,) = fake.named("UserEvent")
    assert event.get("UserEvent") == "CallscribeLeg"  # an eventfilter lets nothing else through
    assert len(fake.named("Login")) == len(fake.named("Logoff")) == 1


async def test_write_user_is_missing() -> None:
    findings, _ = await examine(lambda fake: fake.deny("UserEvent"))
    assert about(findings, "AMI write user").status == "failed"
    assert about(findings, "AMI write user").advice == (
        "in manager.conf, section [callscribe], add user to the line write = …, then: "
        "asterisk -rx 'manager reload'"
    )
    assert about(findings, "AMI read user").status == "warning"
    assert about(findings, "AMI read dialplan").status == "ok"


async def test_read_user_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_ami, "ECHO", 0.05)
    findings, _ = await examine(lambda fake: fake.unread.add("UserEvent"))
    (finding,) = only(findings, "failed")
    assert finding.subject == "AMI read user"
    assert "section [callscribe], add user to the line read = …" in finding.advice
    assert "eventfilter(name(UserEvent),header(UserEvent),method(exact)) = CallscribeLeg" in (
        finding.advice
    )


async def test_write_call_is_missing() -> None:
    findings, fake = await examine(lambda fake: fake.deny("Setvar", "Getvar"))
    (finding,) = only(findings, "failed")
    assert finding.subject == "AMI write call"
    assert "add call to the line write = …" in finding.advice
    assert about(findings, "AMI read dialplan").status == "warning"
    assert "cannot be tested without write = call" in about(findings, "AMI read dialplan").found
    assert any("may not look at the dialplan" in f.found for f in findings)


async def test_write_call_is_not_needed() -> None:
    findings, _ = await examine(
        lambda fake: fake.deny("Setvar"), set_variables=False, join_variables=[]
    )
    assert only(findings, "failed") == only(findings, "warning") == []
    assert "AMI read dialplan" not in [finding.subject for finding in findings]


async def test_read_dialplan_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_ami, "ECHO", 0.05)
    findings, _ = await examine(lambda fake: fake.unread.add("VarSet"))
    (finding,) = only(findings, "failed")
    assert finding.subject == "AMI read dialplan"
    assert "add dialplan to the line read = …" in finding.advice
    assert "eventfilter(name(VarSet),header(Variable),method(exact)) = CALLSCRIBE_ID" in (
        finding.advice
    )


async def test_a_filter_holds_back_one_of_two_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_ami, "ECHO", 0.05)
    findings, _ = await examine(
        lambda fake: fake.unread.add("SECOND"), join_variables=["FIRST", "SECOND"]
    )
    (finding,) = only(findings, "failed")
    assert finding.found.startswith("the event VarSet of SECOND does not arrive")
    assert finding.advice == (
        "if there are eventfilter lines, one must be: "
        "eventfilter(name(VarSet),header(Variable),method(exact)) = SECOND"
    )


async def test_no_variable_of_somebody_elses_is_overwritten() -> None:
    findings, fake = await examine(lambda fake: fake.globals.update(CALLSCRIBE_ID="x"))
    assert about(findings, "AMI read dialplan").status == "warning"
    assert "remove CALLSCRIBE_ID from [globals]" in about(findings, "AMI read dialplan").advice
    assert fake.globals == {"CALLSCRIBE_ID": "x"}


async def test_asterisk_goes_away_meanwhile() -> None:
    findings, fake = await examine(lambda fake: fake.drop_on.add("Setvar"))
    (finding,) = only(findings, "failed")
    assert finding.subject == "AMI"
    assert "connection" in finding.found
    assert about(findings[1:], "AMI read user").status == "ok"  # what was found remains
    assert fake.connections == 1


@pytest.mark.parametrize(
    ("prepare", "changes", "found", "advice"),
    [
        (lambda fake: None, {"secret": "wrong"}, "refused the AMI user 'callscribe'", ""),
        (
            lambda fake: setattr(fake, "login_error", "Asterisk is shutting down"),
            {},
            "Asterisk is shutting down",
            "wait until it has restarted",
        ),
        (
            lambda fake: fake.silent.add("Challenge"),
            {"timeout": 0.3},
            "did not answer within 0.3 s",
            "set ami.tls = true",
        ),
        (lambda fake: None, {"tls": True}, "does this port speak TLS (tlsenable, 5039)", ""),
        (
            lambda fake: setattr(fake, "banner", b"SSH-2.0-OpenSSH_9.2\r\n"),
            {},
            "is not an Asterisk Manager",
            "",
        ),
        (
            lambda fake: setattr(fake, "login_error", "Permission denied"),
            {},
            "Asterisk refused Login",
            "see Asterisk's log",
        ),
    ],
)
async def test_no_log_in(
    prepare: Callable[[Asterisk], object], changes: dict[str, Any], found: str, advice: str
) -> None:
    (finding,), fake = await examine(prepare, **changes)
    assert (finding.status, finding.subject) == ("failed", "AMI")
    assert found in finding.found
    assert advice in finding.advice if advice else not finding.advice
    assert fake.connections == 1


async def test_nobody_listens() -> None:
    (finding,) = await doctor_ami.check(ami(free_port()))
    assert finding.status == "failed"
    assert "Connection refused; is Asterisk running there" in finding.found


# -- Asterisk itself ----------------------------------------------------------------------------


def texts(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{f.status} {f.found}" for f in findings if f.subject == "Asterisk")


async def test_version_and_modules_as_the_dialplan_knows_them() -> None:
    findings, fake = await examine()
    assert texts(findings).splitlines() == [
        f"ok {VERSION}, AudioSocket with digits, a kind per rate",
        "ok res_audiosocket, chan_audiosocket, app_audiosocket, app_chanspy are loaded",
        "ok the dialplan function UUID() is there",
    ]
    assert not fake.named("ModuleCheck") and not fake.named("CoreSettings")


async def test_version_and_modules_as_actions_tell_them() -> None:
    def prepare(fake: Asterisk) -> None:
        fake.functions.clear()
        fake.ifmodule = False
        fake.modules -= {"chan_audiosocket", "app_chanspy", "app_audiosocket"}

    findings, fake = await examine(prepare)
    asked = [action.get("Variable") for action in fake.named("Getvar")]
    assert len([name for name in asked if name.startswith("IFMODULE(")]) == 1
    assert "warning 20.5.0 labels audio of every rate as 8000 Hz" in texts(findings)
    assert "failed chan_audiosocket is not loaded" in texts(findings)
    assert "ok app_audiosocket is not loaded" in texts(findings)
    assert "warning app_chanspy is not loaded" in texts(findings)
    assert "warning the dialplan function UUID() is not there" in texts(findings)
    assert "may not look" not in texts(findings)


async def test_version_and_modules_that_are_not_for_us() -> None:
    def prepare(fake: Asterisk) -> None:
        fake.functions.pop("VERSION(ASTERISK_VERSION)")
        fake.ifmodule = False
        fake.deny("ModuleCheck", "CoreSettings")

    findings, _ = await examine(prepare)
    assert only(findings, "failed") == only(findings, "warning") == []
    assert "its version cannot be seen" in texts(findings)
    assert "may not look whether res_audiosocket, chan_audiosocket" in texts(findings)


@pytest.mark.parametrize(("port", "count"), [(9092, 0), (9093, 1)])
async def test_where_the_dialplan_calls_us(port: int, count: int) -> None:
    async with Asterisk() as fake:
        fake.globals["CALLSCRIBE"] = "192.0.2.7:9092"
        findings = await doctor_ami.check(ami(fake.port), listen=Address("0.0.0.0", port))
    assert len(only(findings, "warning")) == count
    assert ("the dialplan's CALLSCRIBE is 192.0.2.7:9092" in texts(findings)) == bool(count)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (VERSION, (22, 10)),
        ("Asterisk 18.9.0", (18, 9)),
        ("certified-20.7-cert3", (20, 7)),
        ("GIT-22-1a2b3c4d5e", None),
        ("", None),
        ("x 22.1", None),
    ],
)
def test_parse(text: str, version: tuple[int, int] | None) -> None:
    assert doctor_versions.parse(text) == version


@pytest.mark.parametrize(
    ("text", "digits", "rates"),
    [
        ("18.26.4", False, False),
        ("20.13.0", False, False),
        ("20.14.0", True, False),
        ("20.17.0", True, True),
        ("21.9.0", True, False),
        ("21.12.0", True, True),
        ("22.3.0", False, False),
        ("22.4.0", True, False),
        ("22.6.0", True, False),
        ("22.7.0", True, True),
        ("23.0.0", True, False),
        ("23.1.0", True, True),
        ("24.0.0", True, True),
    ],
)
def test_what_a_version_sends(text: str, digits: bool, rates: bool) -> None:
    findings = doctor_versions.audiosocket(text, None)
    words = "\n".join(finding.found for finding in findings)
    assert ("sends no digits" not in words) == digits
    assert ("labels audio of every rate" not in words) == rates
    configured = doctor_versions.audiosocket(text, 16000)
    assert not any("labels audio" in finding.found for finding in configured)


@pytest.mark.parametrize(
    ("text", "drops"),
    [("22.8.2", True), ("22.9.0", False), ("21.12.0", True), ("23.3.0", False), ("24.0", False)],
)
def test_a_version_that_drops_calls(text: str, drops: bool) -> None:
    findings = doctor_versions.audiosocket(text, None)
    assert any("temporarily unavailable" in f.found for f in findings) == drops


def test_a_version_without_a_number() -> None:
    (finding,) = doctor_versions.audiosocket("GIT-master-1a2b3c", None)
    assert finding.status == "ok"
    assert "not known" in finding.found


# -- webhooks -----------------------------------------------------------------------------------


@asynccontextmanager
async def receiver(status: int) -> AsyncIterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """An endpoint that answers this status, and what it got: headers and body."""
    got: list[tuple[dict[str, str], bytes]] = []

    async def take(request: web.BaseRequest) -> web.Response:
        got.append((dict(request.headers), await request.read()))
        return web.Response(status=status, headers={"location": "/elsewhere"})

    runner = web.ServerRunner(web.Server(take), shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/path?key=value", got
    finally:
        await runner.cleanup()


async def probe(url: str, **changes: Any) -> Finding:
    values = {"url": url, "secret": SECRET, "name": "hook"}
    (finding,) = await doctor_webhook.check(WebhookSettings(**(values | changes)))
    assert finding.subject == "hook"
    for hidden in (SECRET, "/path", "key=value"):
        assert hidden not in f"{finding}"
    return finding


async def test_one_signed_event() -> None:
    async with receiver(202) as (url, got):
        finding = await probe(url)
    assert finding.status == "ok"
    ((headers, body),) = got
    event = standardwebhooks.Webhook(SECRET).verify(
        body.decode(), {name.lower(): value for name, value in headers.items()}
    )
    assert event["type"] == "callscribe.test"
    assert event["data"] == {}


@pytest.mark.parametrize(
    ("status", "found", "advice"),
    [
        (301, "it redirects", "put the address it redirects to"),
        (401, "it refuses the signature", "compare the webhook's secret with the receiver's"),
        (403, "it refuses the signature", "compare the webhook's secret with the receiver's"),
        (404, "it has nothing at that path", "correct the path"),
        (405, "it takes no POST", "correct the path"),
        (410, "it wants no more events", "remove this webhook"),
        (422, "it does not take an event of type callscribe.test", "have it answer 2xx"),
        (429, "too many requests", "raise the receiver's limit"),
        (500, "it has failed", "see the receiver's log"),
        (503, "it has failed", "see the receiver's log"),
    ],
)
async def test_a_receiver_that_says_no(status: int, found: str, advice: str) -> None:
    async with receiver(status) as (url, got):
        finding = await probe(url)
    assert len(got) == 1  # never a second try
    assert finding.status == "failed"
    assert finding.found.startswith(f"answered {status}: ")
    assert found in finding.found
    assert advice in finding.advice


async def test_no_receiver() -> None:
    finding = await probe(f"http://127.0.0.1:{free_port()}/path?key=value")
    assert finding.status == "failed"
    assert "cannot be reached" in finding.found
    assert finding.advice.startswith("start the receiver")


async def test_a_receiver_without_an_answer() -> None:
    with taken() as port:
        finding = await probe(f"http://127.0.0.1:{port}/path?key=value", timeout=0.05)
    assert finding.found == f"127.0.0.1:{port} did not answer within 0.05 s"
    assert finding.advice.startswith("is a firewall in between?")


async def test_a_receiver_without_tls() -> None:
    async with receiver(200) as (url, got):
        finding = await probe(url.replace("http:", "https:"))
    assert got == []
    assert "no TLS there" in finding.found
    assert "http://" in finding.advice


async def test_a_name_that_nobody_knows() -> None:
    finding = await probe("https://callscribe.invalid/path?key=value")
    assert finding.found == "callscribe.invalid: the name cannot be resolved"
    assert finding.advice.startswith("correct the host")
