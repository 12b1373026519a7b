"""The files that an operator installs, held against the code that they configure."""

import configparser
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel, SecretStr

from bridge import config
from bridge.config import Settings
from bridge.recording import read_recording

ROOT = Path(__file__).parent.parent
DEPLOYMENT = ROOT / "deployment"
SAMPLES = ROOT / "bridge" / "samples"
TOML = (DEPLOYMENT / "bridge.toml").read_text("utf-8")
DOCKERFILE = (DEPLOYMENT / "Dockerfile").read_text("utf-8")
UNITS = ["callscribe.service", "callscribe-audiosocket.socket", "callscribe-http.socket"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        monkeypatch.delenv(name)


# -- bridge.toml --------------------------------------------------------------------------------


# Only one of these can be given: the file shows them all.
ALTERNATIVES = {"websocket.key": ["secret"], "websocket.jwt": ["public_key", "secret"]}


def uncommented() -> dict[str, Any]:
    """The file as it would be with every "#" before a setting or a section taken away."""
    return tomllib.loads(re.sub(r"^#(?=\[|\w+ = )", "", TOML, flags=re.M))


def shown(data: dict[str, Any], section: str) -> dict[str, Any]:
    """The table of a dotted section; the first of those that come several times."""
    for part in section.split("."):
        inner = data[part]
        data = inner[0] if isinstance(inner, list) else inner
    return data


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """("ami", AmiSettings), ("websocket.jwt", JwtSettings) …, also where the section is optional
    or a list."""
    for name, field in model.model_fields.items():
        for section in flat(field.annotation):
            if issubclass(section, BaseModel) and re.search(rf"^#?\[+{prefix}{name}]", TOML, re.M):
                yield prefix + name, section
                yield from sections(section, f"{prefix}{name}.")


def flat(annotation: Any) -> Iterator[type]:
    if get_origin(annotation) in (Union, UnionType, list):
        for inner in get_args(annotation):
            yield from flat(inner)
    elif isinstance(annotation, type):
        yield annotation


SECTIONS = dict(sections(Settings))
SETTINGS = [
    (section, name)
    for section, model in SECTIONS.items()
    for name in model.model_fields
    if f"{section}.{name}" not in SECTIONS
]


def test_the_file_is_a_configuration():
    settings = config.load(DEPLOYMENT / "bridge.toml")
    assert settings == Settings(audiosocket=config.AudioSocketSettings())


def test_uncommented_it_is_one_too():
    data = uncommented()
    for section, names in ALTERNATIVES.items():
        for name in names:
            del shown(data, section)[name]
    settings = config.from_dict(data)
    assert settings.ami is not None and len(settings.webhook) == 1


def test_every_section_is_in_the_file():
    assert {name for name in SECTIONS if "." not in name} == set(Settings.model_fields)


@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_every_setting_is_in_the_file_with_its_default(section, name):
    table = shown(uncommented(), section)
    assert name in table, f"{section}.{name} is missing in deployment/bridge.toml"
    field = SECTIONS[section].model_fields[name]
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None:
        assert re.search(rf"[Ee]xamples?[:;][^=]*(\n#\w+ = .*)*\n#{name} = ", TOML)
    elif isinstance(default, config.Address):
        assert table[name] == str(default)
    else:
        assert table[name] == default and not isinstance(default, SecretStr)


def test_the_file_has_nothing_else():
    assert set(uncommented()) == set(Settings.model_fields)
    for section, model in SECTIONS.items():
        assert set(shown(uncommented(), section)) == set(model.model_fields)


def test_no_comment_is_taken_for_a_setting():
    """Settings are "#name = value", prose "# text": so taking every "#" away is safe."""
    for line in TOML.splitlines():
        assert re.match(r"$|# \S|#$|#?\[\[?[\w.]+\]\]?$|#?\w+ = \S", line), line


# -- systemd ------------------------------------------------------------------------------------


class Unit(configparser.RawConfigParser):
    """A unit file; keys may come several times, and the values are lists."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, delimiters=["="], comment_prefixes=["#"])
        self.values: dict[tuple[str, str], list[str]] = {}
        section = ""
        for line in (DEPLOYMENT / name).read_text("utf-8").splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                self.values.setdefault((section, key), []).append(value)

    def one(self, section: str, key: str) -> str:
        [value] = self.values[section, key]
        return value


@pytest.mark.parametrize("name", ["audiosocket", "http"])
def test_a_socket_is_where_the_settings_say(name):
    unit = Unit(f"callscribe-{name}.socket")
    settings = config.load(DEPLOYMENT / "bridge.toml")
    assert unit.one("Socket", "ListenStream") == str(getattr(settings, name).listen)
    assert unit.one("Socket", "FileDescriptorName") == name
    assert unit.one("Socket", "Service") == "callscribe.service"
    assert unit.one("Socket", "Accept") == "no"
    assert unit.one("Socket", "Backlog") == "4096"
    assert unit.one("Install", "WantedBy") == "sockets.target"


def test_nothing_makes_systemd_close_the_ports():
    for name in ("audiosocket", "http"):
        assert Unit(f"callscribe-{name}.socket").one("Socket", "TriggerLimitIntervalSec") == "0"
    unit = Unit("callscribe.service")
    assert unit.one("Unit", "StartLimitIntervalSec") == "0"
    assert unit.one("Service", "Restart") == "always"


def test_the_service_takes_both_sockets():
    unit = Unit("callscribe.service")
    for section, key in [("Unit", "Requires"), ("Service", "Sockets"), ("Install", "Also")]:
        assert unit.one(section, key).split() == [
            "callscribe-audiosocket.socket",
            "callscribe-http.socket",
        ]


def test_the_service_is_given_time_to_drain():
    unit, service = Unit("callscribe.service"), config.ServiceSettings()
    needed = service.drain_timeout + service.flush_timeout
    assert int(unit.one("Service", "TimeoutStopSec")) >= needed + 5
    assert unit.one("Service", "KillMode") == "mixed"  # or the recognisers would die first
    assert f"--stop-timeout {unit.one('Service', 'TimeoutStopSec')} " in DOCKERFILE


def test_the_service_reads_its_settings_as_a_credential():
    unit = Unit("callscribe.service")
    assert unit.one("Service", "Type") == "notify"
    assert unit.one("Service", "LoadCredential") == "bridge.toml:/etc/callscribe/bridge.toml"
    command = shlex.split(unit.one("Service", "ExecStart"))
    assert command[1:] == ["serve", "-c", "${CREDENTIALS_DIRECTORY}/bridge.toml"]
    assert unit.one("Service", "DynamicUser") == "yes"
    assert unit.one("Service", "LimitNOFILE") == "65536"


def test_the_service_keeps_what_waits(monkeypatch):
    unit = Unit("callscribe.service")
    assert unit.one("Service", "StateDirectory") == "callscribe"
    assert unit.one("Service", "StateDirectoryMode") == "0700"
    [value] = [v for v in unit.values["Service", "Environment"] if v.startswith("BRIDGE_")]
    monkeypatch.setenv(*value.split("=", 1))
    assert config.load(DEPLOYMENT / "bridge.toml").outbox.path == "/var/lib/callscribe/outbox.db"
    monkeypatch.setenv("BRIDGE_OUTBOX__PATH", "")  # credentials.env wins over Environment=
    assert config.load(DEPLOYMENT / "bridge.toml").outbox.path == ""


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )


def test_the_service_is_closed():
    done = systemd_analyze(
        "security", "--offline=true", "--threshold=20", str(DEPLOYMENT / "callscribe.service")
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is older than 250 and cannot judge a file")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    said = re.search(r"exposure level for callscribe.service: ([\d.]+)", done.stdout)
    assert said is not None and float(said[1]) <= 2.0


def test_systemd_understands_every_line(tmp_path):
    for name in UNITS:
        text = (DEPLOYMENT / name).read_text("utf-8")
        # verify wants the command to be there
        (tmp_path / name).write_text(
            re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M)
        )
    done = systemd_analyze("verify", *(str(tmp_path / name) for name in UNITS))
    complaints = [line for line in done.stderr.splitlines() if "callscribe" in line]
    assert complaints == []


# -- container ----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """[("FROM", "python:3.11-slim AS build"), …]; continued lines are one."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ")
    return [
        (word, rest)
        for word, _, rest in (line.partition(" ") for line in text.splitlines())
        if word
    ]


def test_the_image_is_small_and_pinned():
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert bases == ["python:3.11-slim"] * 2
    runs = [rest for word, rest in instructions() if word == "RUN"]
    assert all("--no-cache-dir" in run for run in runs if "pip install" in run)
    final = instructions()[max(i for i, (word, _) in enumerate(instructions()) if word == "FROM") :]
    assert "RUN" not in [word for word, _ in final]  # nothing of the build is left in it


def test_the_image_does_not_run_as_root():
    words = [word for word, _ in instructions()]
    [user] = [rest for word, rest in instructions() if word == "USER"]
    assert int(user.split(":")[0]) > 0  # a number: runAsNonRoot cannot look up names
    assert words.index("USER") < words.index("ENTRYPOINT")


def test_the_image_copies_what_there_is_and_what_is_let_through():
    ignored = (DEPLOYMENT / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    sources = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    assert sources and all(f"!{source}" in ignored for source in sources)
    assert all((ROOT / source).exists() for source in sources if source != "README.md")
    assert "ADD" not in [word for word, _ in instructions()]


def test_the_image_listens_where_it_says(monkeypatch):
    [env] = [rest for word, rest in instructions() if word == "ENV"]
    for name, _, value in (item.partition("=") for item in env.split()):
        if name.startswith("BRIDGE_"):
            monkeypatch.setenv(name, value)
    settings = config.load(DEPLOYMENT / "bridge.toml")
    assert settings.audiosocket is not None
    listen = [settings.audiosocket.listen, settings.http.listen]
    assert {address.host for address in listen} == {"0.0.0.0"}
    [ports] = [rest for word, rest in instructions() if word == "EXPOSE"]
    assert [str(address.port) for address in listen] == ports.split()


def health_check(port: int) -> int:
    [check] = [rest for word, rest in instructions() if word == "HEALTHCHECK"]
    python, dash, code = json.loads(check.partition("CMD ")[2])
    assert (python, dash) == ("python", "-c") and "8001" in code
    command = [sys.executable, dash, code.replace("8001", str(port))]
    return subprocess.run(command, capture_output=True, timeout=30).returncode


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
def test_the_health_check_asks_readyz(status, exit_status):
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert health_check(server.server_port) == exit_status
        thread.join(5)
    assert asked == ["/readyz"]
    assert health_check(server.server_port) != 0  # nobody listens there any more


# -- the demo recording -------------------------------------------------------------------------


def lines() -> list[tuple[float, str, str]]:
    """(start in seconds, party, words)"""
    text = (SAMPLES / "call.txt").read_text("utf-8")
    told = [line.split(" ", 2) for line in text.splitlines() if not line.startswith("#")]
    return [(float(start), party, words) for start, party, words in told]


def loudness(samples: np.ndarray, begin: float, end: float) -> float:
    """RMS of the samples between two times, 8 kHz."""
    part = samples[max(0, round(begin * 8000)) : round(end * 8000)].astype(float)
    return float(np.sqrt(np.mean(part**2)))


def test_the_recording_is_a_telephone_call_of_two():
    (caller, rate), (callee, _) = read_recording(SAMPLES / "call.wav")
    assert rate == 8000 and len(caller) == len(callee) and 25 <= len(caller) / rate <= 35
    assert (SAMPLES / "call.wav").stat().st_size <= 500_000
    assert {party for _, party, _ in lines()} == {"caller", "callee"}


def test_the_text_says_when_who_speaks():
    (caller, _), (callee, _) = read_recording(SAMPLES / "call.wav")
    heard = {"caller": caller, "callee": callee}
    for start, party, words in lines():
        assert loudness(heard[party], start - 0.2, start - 0.02) < 20, words
        assert loudness(heard[party], start, start + 0.3) > 500, words


def test_the_parties_interrupt_each_other_once():
    (caller, _), (callee, _) = read_recording(SAMPLES / "call.wav")
    both = [
        start
        for start, party, _ in lines()
        if loudness(callee if party == "caller" else caller, start, start + 0.3) > 500
    ]
    assert len(both) == 1
