"""The commands as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import __version__, cli
from bridge.egress.signature import check_secret
from bridge.errors import BridgeError, ConfigError
from tests.serving import command


def status_of(*args: str) -> int:
    """Exit status, of argparse's own exits too."""
    try:
        return cli.main(list(args))
    except SystemExit as e:
        assert isinstance(e.code, int)
        return e.code


def test_help_names_the_commands_and_hides_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    out = capsys.readouterr().out
    for name in ("serve", "demo", "call", "doctor", "bench", "outbox", "webhook"):
        assert f"    {name} " in out
    assert "worker" not in out


@pytest.mark.parametrize("name", ["serve", "demo", "call", "doctor", "bench", "outbox", "webhook"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(name, "--help") == 0
    assert f"usage: callscribe {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out == f"callscribe {__version__}\n"


@pytest.mark.parametrize("args", [[], ["sreve"], ["serve", "--port", "1"], ["webhook", "x"]])
def test_wrong_usage_is_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*args) == 2
    assert "usage: callscribe" in capsys.readouterr().err


def test_a_webhook_secret_is_one_that_we_take(capsys: pytest.CaptureFixture[str]) -> None:
    secrets = []
    for _ in range(2):
        assert status_of("webhook", "secret") == 0
        secrets.append(capsys.readouterr().out.strip())
        check_secret(secrets[-1])
    assert secrets[0] != secrets[1]


def test_call_of_an_unreadable_file_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("call", str(tmp_path / "none.wav")) == 2
    assert str(tmp_path / "none.wav") in capsys.readouterr().err


def test_a_configuration_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.toml"
    assert status_of("serve", "-c", str(path)) == 2
    said = f"callscribe: {path}: cannot be read: No such file or directory\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError(["a: is wrong", "b: is missing"]), 2, "callscribe: a: is wrong\ncallscribe: "
         "b: is missing\n"),
        (BridgeError("no such luck"), 1, "callscribe: no such luck\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_errors_are_sentences(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_webhook", fail)
    assert status_of("webhook", "secret") == status
    assert capsys.readouterr().err == said


async def test_the_module_runs() -> None:
    async with command("call", "none.wav") as process:
        assert await process.exited() == 2
    assert len(process.lines) == 1
    assert process.lines[0].startswith("callscribe call: none.wav")
