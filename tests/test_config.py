"""Settings: one readable line per wrong key, environment over file, secrets never shown."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import pytest

from bridge.config import Address, Settings, from_dict, load, parse_address
from bridge.errors import ConfigError

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CANARY = "hunter2-canary"
AMI = {"username": "callscribe", "secret": CANARY}
UNKNOWN = "is not a setting (deployment/bridge.toml shows them all)"

MINIMAL = """
[engine]
kind = "auto"
slots = 8
[audiosocket]
listen = "127.0.0.1:9092"
[http]
listen = "127.0.0.1:8001"
[ami]
host = "127.0.0.1"
port = 5038
username = "callscribe"
secret = "s3cret"
[[webhook]]
url = "http://127.0.0.1:9000/hook"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        monkeypatch.delenv(name)


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as e:
        from_dict(data)
    assert str(e.value) == "\n".join(e.value.problems)
    assert all("\n" not in problem for problem in e.value.problems)
    assert CANARY not in "".join(traceback.format_exception(e.value))
    return e.value.problems


def hook(**more: Any) -> dict[str, Any]:
    return {"webhook": [{"url": "https://example.org/hook", "secret": SECRET, **more}]}


# -- files ------------------------------------------------------------------------------------


def test_the_minimal_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(MINIMAL)
    settings = load(path)
    assert (settings.engine.kind, settings.engine.slots) == ("auto", 8)
    assert settings.audiosocket is not None
    assert settings.audiosocket.listen == Address("127.0.0.1", 9092)
    assert settings.http.listen == ("127.0.0.1", 8001)
    assert settings.ami is not None and settings.ami.secret.get_secret_value() == "s3cret"
    assert settings.webhook[0].url == "http://127.0.0.1:9000/hook"


def test_sections_of_features_that_do_not_exist_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(MINIMAL + '[kafka]\nlisten = "127.0.0.1:8080"\n')
    with pytest.raises(ConfigError) as e:
        load(path)
    assert e.value.problems == [f"kafka: {UNKNOWN}"]


def test_without_a_file_there_are_defaults() -> None:
    settings = load(None)
    assert settings == Settings()
    assert (settings.audiosocket, settings.ami, settings.webhook) == (None, None, [])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as e:
        load(tmp_path / "nothing.toml")
    assert e.value.problems == [
        f"{tmp_path}/nothing.toml: cannot be read: No such file or directory"
    ]


def test_a_file_that_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as e:
        load(tmp_path)
    assert e.value.problems == [f"{tmp_path}: cannot be read: Is a directory"]


@pytest.mark.parametrize("content", [b"[engine\n", b"secret = \xff\xfe", b"a = 1\na = 2\n", b"= 3"])
def test_a_file_that_is_not_toml(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as e:
        load(path)
    (problem,) = e.value.problems
    assert problem.startswith(f"{path}: not TOML: ")


# -- wrong keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"engines": {}}, f"engines: {UNKNOWN}"),
        ({"engine": {"slot": 4}}, f"engine.slot: {UNKNOWN}"),
        (hook(retries=3), f"webhook.0.retries: {UNKNOWN}"),
        ({"ami": {"username": "x"}}, "ami.secret: is missing"),
        ({"engine": 3}, "engine: expected a table, such as [engine]"),
        ({"webhook": {"url": "x"}}, "webhook: expected a list; of tables, [[webhook]]"),
        ({"engine": {"kind": "whisper"}},
         "engine: kind: expected auto, kyutai, pocketsphinx, tones or 'module:function', "
         "not 'whisper'"),
        ({"engine": {"slots": "many"}},
         "engine.slots: expected 1 to 100000 or \"auto\", not 'many'"),
        ({"engine": {"slots": 0}}, 'engine.slots: expected 1 to 100000 or "auto", not 0'),
        ({"engine": {"slots": 1.5}}, 'engine.slots: expected 1 to 100000 or "auto", not 1.5'),
        ({"engine": {"slots": True}}, 'engine.slots: expected 1 to 100000 or "auto", not True'),
        ({"engine": {"model": "stt-1b"}},
         'engine.model: expected "owner/name" as on the hub, or a directory such as "/srv/stt-1b" '
         "or \"./stt-1b\", not 'stt-1b'"),
        ({"engine": {"model": "https://huggingface.co/kyutai/stt-1b-en_fr"}},
         'engine.model: expected "owner/name" as on the hub, or a directory such as "/srv/stt-1b" '
         "or \"./stt-1b\", not 'https://huggingface.co/kyutai/stt-1b-en_fr'"),
        ({"engine": {"model": "kyutai/a..b"}},
         'engine.model: expected "owner/name" as on the hub, or a directory such as "/srv/stt-1b" '
         "or \"./stt-1b\", not 'kyutai/a..b'"),
        ({"engine": {"revision": ""}},
         "engine.revision: string should have at least 1 character"),
        ({"engine": {"device": "gpu"}},
         'engine.device: expected "auto", "cuda", "cuda:" and a number, or "cpu", not \'gpu\''),
        ({"engine": {"device": "cuda:"}},
         'engine.device: expected "auto", "cuda", "cuda:" and a number, or "cpu", not \'cuda:\''),
        ({"engine": {"dtype": "int8"}},
         "engine.dtype: input should be 'auto', 'bfloat16', 'float16' or 'float32'"),
        ({"engine": {"replay_seconds": 61}},
         "engine.replay_seconds: input should be less than or equal to 60"),
        ({"engine": {"step_timeout": 0}},
         "engine.step_timeout: input should be greater than or equal to 0.5"),
        ({"engine": {"step_budget": -1}},
         "engine.step_budget: input should be greater than or equal to 0"),
        ({"engine": {"watchdog": -1}},
         "engine.watchdog: input should be greater than or equal to 0"),
        ({"turns": {"threshold": 0}}, "turns.threshold: input should be greater than 0"),
        ({"audiosocket": {"listen": 9092}},
         'audiosocket.listen: expected "host:port", for example "127.0.0.1:9092", not 9092'),
        ({"audiosocket": {"listen": "127.0.0.1"}},
         'audiosocket.listen: expected "host:port", for example "127.0.0.1:9092", '
         "not '127.0.0.1'"),
        ({"audiosocket": {"listen": "127.0.0.1:66000"}},
         "audiosocket.listen: a port is at most 65535, not 66000"),
        ({"audiosocket": {"listen": "0.0.0.0:9092"}},
         "audiosocket: listen = '0.0.0.0:9092' is not loopback and this listener has no TLS; "
         "set allow_insecure = true if the network in between is trusted"),
        ({"http": {"listen": "[::]:8001"}},
         "http: listen = '[::]:8001' is not loopback and this listener has no TLS; "
         "set allow_insecure = true if the network in between is trusted"),
        ({"audiosocket": {"rate": 11025}},
         "audiosocket.rate: expected one of 8000, 12000, 16000, 24000, 32000, 44100, 48000, "
         "96000, 192000, not 11025"),
        ({"audiosocket": {"allow": ["10.0.0.0/8", "home"]}},
         "audiosocket.allow: expected networks such as \"10.0.0.0/8\", not 'home'"),
        ({"audiosocket": {"admission": "announced"}},
         'configuration: audiosocket.admission = "announced" needs http.token (for POST /calls) '
         "or an [ami] section, or nobody can announce a call"),
        ({"ami": AMI | {"host": "10.1.1.1"}},
         "ami: host = '10.1.1.1' is not loopback; set tls = true (port 5039), or "
         "allow_insecure = true if the network in between is trusted"),
        ({"ami": AMI | {"secret": [CANARY]}}, "ami.secret: input should be a valid string"),
        (hook(url="ftp://example.org"), "webhook.0: url: expected https://host/path, with a host"),
        (hook(url=f"ftp://me:{CANARY}@example.org/"),
         "webhook.0: url: expected https://host/path, with a host"),
        (hook(url=f"https://[{CANARY}/"),
         "webhook.0: url: expected https://host/path, with a host"),
        (hook(url=f"https://me:{CANARY}@example.org/"),
         "webhook.0: url: put no user name or password in it; requests are signed instead"),
        (hook(url="http://example.org/"),
         "webhook.0: url: http:// to a host that is not loopback sends transcripts in the clear; "
         "use https://, or set allow_insecure = true if the network in between is trusted"),
        (hook(secret=CANARY),
         "webhook.0: secret: expected whsec_ and 24 to 64 random bytes in base64; make one with: "
         "callscribe webhook secret"),
        (hook(previous_secret=f"whsec_{CANARY}"),
         "webhook.0: secret: expected whsec_ and 24 to 64 random bytes in base64; make one with: "
         "callscribe webhook secret"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_one_line(data: dict[str, Any], problem: str) -> None:
    assert problems(data) == [problem]


def test_every_wrong_key_has_its_line() -> None:
    assert problems({"log": {"level": "loud"}, "calls": {"max": 0}, "x": 1}) == [
        "calls.max: input should be greater than or equal to 1",
        "log.level: input should be 'debug', 'info', 'warning' or 'error'",
        f"x: {UNKNOWN}",
    ]


@pytest.mark.parametrize(
    "data",
    [
        {"audiosocket": {"listen": "0.0.0.0:9092", "allow_insecure": True}},
        {"audiosocket": {"listen": "[::1]:9092"}, "http": {"listen": "localhost:8001"}},
        {"audiosocket": {"admission": "announced"}, "ami": AMI},
        {"audiosocket": {"admission": "announced"}, "http": {"token": CANARY}},
        {"ami": AMI | {"host": "10.1.1.1", "tls": True, "port": 5039}},
        hook(url="http://10.1.1.1/", allow_insecure=True, previous_secret=SECRET),
        {"engine": {"kind": "my.engine:make", "slots": "auto"}},
        {"engine": {"kind": "kyutai", "model": "/srv/stt", "device": "cuda:1", "dtype": "float16"}},
        {"engine": {"model": "~/stt", "revision": "refs/pr/1", "step_budget": 0, "threads": 8}},
        {"engine": {"model": "./stt-1b", "watchdog": 0, "replay_seconds": 0, "reserve_gb": 0}},
    ],
)
def test_what_is_right_is_taken(data: dict[str, Any]) -> None:
    assert CANARY not in repr(from_dict(data))


def test_settings_cannot_be_changed() -> None:
    settings = from_dict({})
    with pytest.raises(Exception, match="frozen"):
        settings.engine.kind = "tones"


# -- environment ------------------------------------------------------------------------------


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(MINIMAL)
    monkeypatch.setenv("BRIDGE_AMI__SECRET", "from the environment")
    monkeypatch.setenv("BRIDGE_AUDIOSOCKET__LISTEN", "127.0.0.1:9093")
    monkeypatch.setenv("BRIDGE_ENGINE__SLOTS", "4")
    monkeypatch.setenv("bridge_turns__partials", "false")
    settings = load(path)
    assert settings.ami is not None and settings.audiosocket is not None
    assert settings.ami.secret.get_secret_value() == "from the environment"
    assert settings.ami.username == "callscribe"
    assert settings.audiosocket.listen.port == 9093
    assert (settings.engine.slots, settings.turns.partials) == (4, False)


@pytest.mark.parametrize("value", ["123456", "true", "null", '{"a": 1}', "[1]", '"quoted"', ""])
def test_a_secret_in_the_environment_is_taken_as_it_is(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers make fine passwords; nothing may take them for JSON."""
    monkeypatch.setenv("BRIDGE_AMI__SECRET", value)
    settings = from_dict({"ami": {"username": "u"}})
    assert settings.ami is not None
    assert settings.ami.secret.get_secret_value() == value


def test_a_section_may_come_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_AMI__USERNAME", "u")
    monkeypatch.setenv("BRIDGE_AMI__SECRET", "s")
    monkeypatch.setenv("BRIDGE_AMI__EVENTS", '["final"]')
    settings = load(None)
    assert settings.ami is not None
    assert (settings.ami.username, settings.ami.events) == ("u", ["final"])


def test_webhooks_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_WEBHOOK", f'[{{"url": "https://x/", "secret": "{SECRET}"}}]')
    assert load(None).webhook[0].url == "https://x/"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("BRIDGE_ENGINE__SLOT", "4", f"engine.slot: {UNKNOWN}"),
        ("BRIDGE_ENGINE__SLOTS", "four",
         "engine.slots: expected 1 to 100000 or \"auto\", not 'four'"),
        ("BRIDGE_AMII__SECRET", CANARY, f"BRIDGE_AMII__SECRET: {UNKNOWN}"),
        ("BRIDGE_WEBHOOK", CANARY,
         'environment: error parsing value for field "webhook" from source "EnvSettingsSource"; '
         'lists and tables are written as JSON there: ["10.0.0.0/8"]'),
        ("BRIDGE_AUDIOSOCKET__ALLOW", CANARY,
         'environment: error parsing value for field "audiosocket" from source '
         '"EnvSettingsSource"; lists and tables are written as JSON there: ["10.0.0.0/8"]'),
        ("BRIDGE_AMI", CANARY, "ami: expected a table, such as [ami]"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_one_line(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert problems({}) == [problem]


def test_variables_that_kubernetes_makes_for_a_service_called_bridge_are_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("BRIDGE_SERVICE_HOST", "BRIDGE_PORT", "BRIDGE_PORT_9092_TCP_ADDR"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:9092")
    assert load(None) == Settings()


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:9092", Address("127.0.0.1", 9092), True),
        ("127.9.9.9:1", Address("127.9.9.9", 1), True),
        ("[::1]:0", Address("::1", 0), True),
        ("localhost:80", Address("localhost", 80), True),
        ("0.0.0.0:80", Address("0.0.0.0", 80), False),
        ("[::]:80", Address("::", 80), False),
        ("bridge.example:80", Address("bridge.example", 80), False),
    ],
)
def test_addresses(text: str, address: Address, loopback: bool) -> None:
    assert parse_address(text) == address
    assert str(address) == text
    assert address.loopback is loopback
    assert parse_address(address) is address


@pytest.mark.parametrize("text", ["", ":", ":80", "host", "host:", "host:-1", "host:8o", "host:²"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match='^expected "host:port", for example "127.0.0.1:9092"'):
        parse_address(text)


def test_two_webhooks_need_names_of_their_own() -> None:
    hooks = [{"url": f"https://example.org/{i}", "secret": SECRET} for i in range(2)]
    with pytest.raises(ConfigError) as e:
        from_dict({"webhook": hooks})
    assert "two are called 'example.org'; give each a name of its own" in str(e.value)
    hooks[1]["name"] = "second"
    assert len(from_dict({"webhook": hooks}).webhook) == 2


def test_an_empty_token_is_no_token() -> None:
    with pytest.raises(ConfigError, match="http.token: "):
        from_dict({"http": {"token": ""}})
