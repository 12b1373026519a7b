"""The examples of README, run as they are."""

from __future__ import annotations

import asyncio
import os
import sys
import wave
from pathlib import Path

import pytest

from tests.sockets import PATIENCE, bridge, said, speech

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "deployment/clients").glob("*.py"))
WORDS = [21, 121, 221]


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
async def test_an_example_prints_what_was_said(example: Path, tmp_path: Path) -> None:
    recording = tmp_path / "words.wav"
    with wave.open(str(recording), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(speech(WORDS).tobytes())
    listener = {"listen": "127.0.0.1:0", "patience": 2}
    async with bridge(websocket=listener) as b:
        url = b.url.replace("ws:", "http:") if "openai" in example.name else b.url
        run = await asyncio.create_subprocess_exec(
            sys.executable,
            str(example),
            str(recording),
            url,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(2 * PATIENCE):
            out, _ = await run.communicate()
    assert run.returncode == 0
    assert said(WORDS) in out.decode()


def test_every_example_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for example in EXAMPLES:
        assert f"deployment/clients/{example.name}" in readme
