"""The product's first minute: `callscribe demo`, as somebody who has just installed it sees it."""

from __future__ import annotations

import asyncio
import io
import os
import re
import sys
import uuid

import pytest

from bridge import client, demo
from bridge.accuracy import word_errors
from bridge.caller import LegResult
from bridge.errors import BridgeError
from bridge.types import CallEvent, CallInfo, Ended, Final, LegCounts, Partial, Started, Word
from tests.serving import MARK, ROOT, marked

LIMIT = 110.0  # s; the call is 31 s long and is played in real time


async def test_the_demonstration() -> None:
    mark = uuid.uuid4().hex
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "bridge", "demo"),
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), LIMIT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    text = out.decode()
    assert (process.returncode, err.decode()) == (0, ""), text
    assert marked(mark) == set()  # the recogniser's processes have ended too
    for leg, said in demo.reference().items():
        finals = re.findall(rf"^ *\d+\.\d\d  {leg} +(.*)$", text, re.MULTILINE)
        wrong, total = word_errors(said, " ".join(finals))
        assert wrong <= 0.2 * total, text
        line = rf"^  {leg}: \d+ words, \d+ of {total} right; .*, 0 blocks dropped, "
        assert re.search(line, text, re.MULTILINE), text
    assert re.search(r"^call [0-9a-f-]{36}: 3\d\.\d s, \d+ turns$", text, re.MULTILINE), text
    assert re.search(r"^  from a word's end to its event: p50 \d\.\d\d s, p95 ", text, re.MULTILINE)


# -- its parts -----------------------------------------------------------------------------------

CALL = CallInfo(id="c-1")
WORDS = (Word("hello", 1.0, 1.4, 0.9), Word("there", 1.5, 1.9, 0.9))


def event(body: object, at: float = 0.0) -> CallEvent:
    leg = None if isinstance(body, Started | Ended) else "caller"
    return CallEvent(CALL, 0, 100.0 + at, leg, body)  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_partial_is_replaced_in_place_on_a_terminal() -> None:
    out = Terminal()
    screen = demo.Screen(out)
    await screen.deliver(event(Partial(0, "hell", WORDS[:1])))
    await screen.deliver(event(Final(0, "hello\x1b[2J there", WORDS)))
    shown = out.getvalue()
    assert shown.count("\n") == 1
    assert "hell\r" in shown
    assert "hello\\x1b[2J there\n" in shown  # what was said moves no cursor


async def test_a_long_partial_keeps_to_one_row() -> None:
    out = Terminal()
    text = "word " * 200 + "newest"
    await demo.Screen(out).deliver(event(Partial(0, text, WORDS)))
    row = re.sub(r"\x1b\[[0-9;]*[mK]", "", out.getvalue()).rstrip("\r")
    assert row.endswith("newest")
    assert len(row) < 200


async def test_a_file_gets_finals_only() -> None:
    out = io.StringIO()
    screen = demo.Screen(out)
    await screen.deliver(event(Partial(0, "hello", WORDS[:1])))
    await screen.deliver(event(Final(0, "hello there", WORDS)))
    assert out.getvalue() == "  1.00  caller  hello there\n"
    assert not screen.ended.is_set()
    await screen.deliver(event(Ended("eof", 2.0, {})))
    assert screen.ended.is_set()


def test_the_summary_counts_each_word_once() -> None:
    summary = demo.Summary()
    assert summary.lines({}) == ["the call did not end"]
    summary.hear(event(Started()))
    summary.hear(event(Partial(0, "hello", WORDS[:1]), at=1.9))  # 0.5 s after its end
    summary.hear(event(Final(0, "hello there", WORDS), at=2.4))  # so is "there"
    summary.hear(event(Ended("eof", 2.5, {"caller": LegCounts(2.5, 125, 2)})))
    assert summary.lines({"caller": "hello their"}) == [
        "call c-1: 2.5 s, 0 turns",
        "  caller: 2 words, 1 of 2 right; 125 frames, 0 blocks dropped, "
        "0.00 s of silence filled in",
        "  from a word's end to its event: p50 0.50 s, p95 0.50 s",
    ]


def test_progress_on_a_terminal_and_in_a_file() -> None:
    terminal, file = Terminal(), io.StringIO()
    for done in range(3):
        demo.progress_bar(terminal, "recogniser", done, 2)
        demo.progress_bar(file, "recogniser", done, 2)
    assert terminal.getvalue().count("\r") == 3
    assert terminal.getvalue().endswith("2/2\n")
    assert file.getvalue() == "recogniser: 2 of 2 ready\n"


async def test_a_recogniser_that_never_finishes_is_a_sentence() -> None:
    with pytest.raises(BridgeError, match="the recogniser has not finished .* after the recording"):
        await demo._ended(demo.Screen(io.StringIO()), 0.01)


async def test_a_call_that_cannot_be_played_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Announces:
        def announce(self, announcement: object) -> float:
            return 30.0

    async def fails(*args: object, **kwargs: object) -> list[LegResult]:
        return [LegResult("u", ended_by="refused", error="the bridge refused the call")]

    monkeypatch.setattr(client, "call", fails)
    with pytest.raises(BridgeError, match="the call could not be played: the bridge refused"):
        await demo._play(Announces(), 9, io.StringIO())  # type: ignore[arg-type]
