"""Whether a message is genuine: our command and the README's ten lines, held to the oracle."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import standardwebhooks

from bridge.cli import main
from bridge.egress.signature import TOLERANCE, check_secret, sign, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "b2xk" * 8
README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BODY = json.dumps(
    {"type": "transcript.final", "data": {"text": "één"}}, ensure_ascii=False
).encode()

Headers = dict[str, str]


def message(secret: str = SECRET, age: float = 0.0) -> Headers:
    """Signed by the oracle."""
    at = datetime.fromtimestamp(int(time.time() - age), UTC)
    signature = standardwebhooks.Webhook(secret).sign("c-1:hook:3", at, BODY.decode())
    return {
        "webhook-id": "c-1:hook:3",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": signature,
    }


def forged() -> dict[str, tuple[Headers, bytes]]:
    """Messages that nobody should believe."""
    good, other = message(), message(OTHER)
    return {
        "secret": (other, BODY),
        "body": (good, BODY.replace(b"final", b"fatal")),
        "id": (good | {"webhook-id": "c-1:hook:4"}, BODY),
        "time": (good | {"webhook-timestamp": str(int(time.time()) - 9)}, BODY),
        "replay": (message(age=TOLERANCE + 60), BODY),
        "future": (message(age=-TOLERANCE - 60), BODY),
        "cut": (good | {"webhook-signature": good["webhook-signature"][:-4]}, BODY),
        "empty": (good | {"webhook-signature": ""}, BODY),
        "v2": (good | {"webhook-signature": good["webhook-signature"].replace("v1", "v2")}, BODY),
    }


def genuine() -> dict[str, tuple[Headers, bytes]]:
    good, other = message(), message(OTHER)
    both = f"v1a,xxx {other['webhook-signature']} {good['webhook-signature']}"
    return {"plain": (good, BODY), "rotation": (good | {"webhook-signature": both}, BODY)}


# -- the README --------------------


def snippet(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?genuine.*?)```", README, re.S)
    assert found is not None
    assert len([line for line in found[1].splitlines() if line.strip()]) <= 15
    return found[1]


def in_python(headers: Headers, body: bytes) -> bool:
    names: dict[str, Callable[[str, Headers, bytes], bool]] = {}
    exec(snippet("python"), names)
    return names["genuine"](SECRET, headers, body)


def in_node(tmp_path: Path, told: str) -> list[str]:
    program = f"""{snippet("javascript")}
const said = {{}};
for (const [name, [headers, body]] of Object.entries({told}))
  said[name] = genuine({json.dumps(SECRET)}, headers, Buffer.from(body, "hex"));
console.log(JSON.stringify(said));
"""
    (tmp_path / "told.js").write_text(program)
    return ["node", str(tmp_path / "told.js")]


def in_php(tmp_path: Path, told: str) -> list[str]:
    program = f"""<?php
{snippet("php")}
$said = [];
foreach (json_decode('{told}', true) as $name => [$headers, $body])
    $said[$name] = genuine({json.dumps(SECRET)}, $headers, hex2bin($body));
echo json_encode($said);
"""
    (tmp_path / "told.php").write_text(program)
    return ["php", str(tmp_path / "told.php")]


def in_go(tmp_path: Path, told: str) -> list[str]:
    code = snippet("go")
    needed = re.search(r"// imports: (.*)", code)
    assert needed is not None
    imports = "\n".join(f'"{name}"' for name in needed[1].split())
    program = f"""package main
import (
"encoding/hex"
"encoding/json"
{imports}
)
{code}
func main() {{
	var told map[string][2]any
	json.Unmarshal([]byte(`{told}`), &told)
	said := map[string]bool{{}}
	for name, one := range told {{
		header := http.Header{{}}
		for key, value := range one[0].(map[string]any) {{
			header.Set(key, value.(string))
		}}
		body, _ := hex.DecodeString(one[1].(string))
		said[name] = genuine({json.dumps(SECRET)}, header, body)
	}}
	text, _ := json.Marshal(said)
	fmt.Println(string(text))
}}
"""
    (tmp_path / "told.go").write_text(program)
    return ["go", "run", str(tmp_path / "told.go")]


LANGUAGES = {"node": in_node, "php": in_php, "go": in_go}


def test_ten_lines_of_python() -> None:
    assert {name: in_python(*told) for name, told in genuine().items()} == dict.fromkeys(
        genuine(), True
    )
    assert not any(in_python(*told) for told in forged().values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_ten_lines_of_other_languages(language: str, tmp_path: Path) -> None:
    if shutil.which(language) is None:
        pytest.skip(f"{language} is not installed")
    true, false = genuine(), forged()
    told = {name: [headers, body.hex()] for name, (headers, body) in (true | false).items()}
    command = LANGUAGES[language](tmp_path, json.dumps(told))
    done = subprocess.run(command, capture_output=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == dict.fromkeys(true, True) | dict.fromkeys(false, False)


# -- ours --------------------


def test_what_is_genuine_passes() -> None:
    for headers, body in genuine().values():
        verify([check_secret(SECRET)], *headers.values(), body, now=time.time())  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("secret", "no signature fits: another secret, or the body is not what was sent"),
        ("body", "no signature fits: another secret, or the body is not what was sent"),
        ("id", "no signature fits"),
        ("time", "no signature fits"),
        ("replay", r"it is 36\d s old, and 300 s are allowed: a replay, or a clock"),
        ("future", r"it is 3[56]\d s ahead of this clock, and 300 s are allowed"),
        ("cut", "no signature fits"),
        ("empty", "webhook-signature has no v1 signature"),
        ("v2", "webhook-signature has no v1 signature"),
    ],
)
def test_what_is_not_says_why(
    name: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headers, body = forged()[name]
    assert ask(headers, body, tmp_path) == 1
    assert re.match(f"not genuine: {sentence}", capsys.readouterr().out)


def test_a_time_that_is_none() -> None:
    for text in ("", "-1", "1e9", "٣"):
        with pytest.raises(ValueError, match="webhook-timestamp is not a number of seconds"):
            verify([b"x" * 24], "a", text, "v1,x", b"", now=0.0)


# -- the command --------------------


def ask(headers: Headers, body: bytes, folder: Path, *more: str) -> int:
    (folder / "secret").write_text(f"{OTHER[:-8]}b2xkb2xk\n{SECRET}\n" if more else SECRET)
    (folder / "body").write_bytes(body)
    told = [part for name, value in headers.items() for part in ("-H", f"{name.title()}: {value}")]
    return main(
        ["webhook", "verify", str(folder / "body"), "--secret-file", str(folder / "secret"), *told]
    )


def test_the_command_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(message(), BODY, tmp_path) == 0
    assert re.fullmatch(r"genuine: transcript.final, signed \d s ago\n", capsys.readouterr().out)
    many = json.dumps([{"type": "a"}, {"type": "b"}]).encode()
    now = int(time.time())
    signed = sign([check_secret(SECRET)], "x", now, many)
    headers = {"webhook-id": "x", "webhook-timestamp": str(now), "webhook-signature": signed}
    assert ask(headers, many, tmp_path, "two secrets") == 0
    assert capsys.readouterr().out.startswith("genuine: a and 1 more, ")


def test_the_secret_comes_from_the_environment_and_the_body_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(BODY)
    monkeypatch.setenv("CALLSCRIBE_WEBHOOK_SECRET", SECRET)
    told = [part for name, value in message().items() for part in ("-H", f"{name}: {value}")]
    with open(tmp_path / "body") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["webhook", "verify", *told]) == 0
    assert capsys.readouterr().out.startswith("genuine: transcript.final")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "no secret: set CALLSCRIBE_WEBHOOK_SECRET, or name a --secret-file"),
        (["--secret-file", "/nowhere"], "/nowhere: No such file or directory"),
        (["--secret-file", "SECRET", "-H", "nonsense"], "-H 'nonsense': expected 'name: value'"),
        (["--secret-file", "SECRET", "-H", "webhook-id: x"],
         "the message has no webhook-timestamp; give it with -H 'webhook-timestamp: …'"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(
    args: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("CALLSCRIBE_WEBHOOK_SECRET", raising=False)
    (tmp_path / "secret").write_text(SECRET)
    args = [str(tmp_path / "secret") if arg == "SECRET" else arg for arg in args]
    assert main(["webhook", "verify", *args]) == 1
    assert capsys.readouterr().err == f"callscribe: {sentence}\n"
