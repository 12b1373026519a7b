"""`callscribe key`: what it prints can be pasted, and opens."""

from __future__ import annotations

import io
import re
import tomllib

import pytest

from bridge import cli
from bridge.auth import Auth, Pair, Secret
from bridge.config import from_dict
from tests.knocks import NOW, knock


def test_a_new_key_opens_with_what_is_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "new", "dialer"]) == 0
    first, _, toml = capsys.readouterr().out.partition("\n\n")
    key = first.rpartition(" ")[2]
    assert first == f"The key, which is shown this once: {key}"
    assert re.fullmatch(r"cs_[\w-]{43}", key) and key not in toml
    settings = from_dict(tomllib.loads(toml)).websocket
    assert settings is not None
    assert Auth(settings).check(knock(), [Secret(key, "")], NOW).name == "dialer"


def test_a_new_key_of_two_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "new", "dialer", "--id", "wk-1"]) == 0
    first, _, toml = capsys.readouterr().out.partition("\n\n")
    settings = from_dict(tomllib.loads(toml)).websocket
    assert settings is not None
    pair = Pair("wk-1", first.rpartition(" ")[2], "")
    assert Auth(settings).check(knock(), [pair], NOW).name == "dialer"


def test_no_two_keys_are_alike(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        cli.main(["key", "new", "dialer"])
    one, other = re.findall("cs_.*", capsys.readouterr().out)
    assert one != other


def test_the_hash_of_a_key_that_exists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a" * 20 + "\r\n"))
    assert cli.main(["key", "hash"]) == 0
    assert capsys.readouterr().out == (
        'sha256 = "42492da06234ad0ac76f5d5debdb6d1ae027cffbe746a1c13b89bb8bc0139137"\n'
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["new", 'dia"ler'], "NAME: expected 1 to 64 letters, digits and ._-, not 'dia\"ler'"),
        (["new", "a" * 65], f"NAME: expected 1 to 64 letters, digits and ._-, not '{'a' * 65}'"),
        (["new", "a", "--id", "a:b"],
         "--id: expected 1 to 128 letters, digits and ._@-, not 'a:b'"),
        (["hash"], "a key has at least 16 characters: callscribe key new NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert cli.main(["key", *arguments]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"callscribe: {sentence}\n")
