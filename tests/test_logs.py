"""Log lines: one line each, whatever is in them."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import LogSettings
from bridge.logs import Json, OneLine, escaped, set_up


def record(message: str, *args: object, failed: bool = False) -> logging.LogRecord:
    error = None
    if failed:
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            error = sys.exc_info()
    made = logging.LogRecord("bridge.x", logging.WARNING, "x.py", 1, message, args, error)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


def test_a_line_of_text() -> None:
    line = OneLine().format(record("call %s: %d events", "c-1", 3))
    assert line == "2023-11-14T22:13:20.250Z WARNING bridge.x: call c-1: 3 events"


def test_a_line_of_json() -> None:
    assert json.loads(Json().format(record("call %s", "c-1"))) == {
        "time": 1_700_000_000.25, "level": "warning", "logger": "bridge.x", "message": "call c-1",
    }  # fmt: skip


@pytest.mark.parametrize("formatter", [OneLine(), Json()])
def test_a_traceback_stays_on_its_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record("it failed", failed=True))
    assert len(line.splitlines()) == 1
    assert "ValueError: first\\nsecond" in line
    assert "it failed" in line


@given(st.text(alphabet=st.characters()))
def test_nobody_can_forge_a_line_or_move_the_cursor(text: str) -> None:
    """Whatever a peer puts into a value, surrogates too, the line is one and can be written."""
    for formatter in (OneLine(), Json()):
        line = formatter.format(record("said %s", text))
        assert len(line.splitlines()) == 1
        assert line.isprintable()
        line.encode("utf-8")


def test_escaped() -> None:
    assert escaped("a\r\nb\x1b[2J\u2028\u202e\ud800 é ü") == (
        "a\\r\\nb\\x1b[2J\\u2028\\u202e\\ud800 é ü"
    )


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging is global: what `set_up` changes is put back."""
    root = logging.getLogger()
    names = ("aiohttp.access", "asyncio", "panoramisk")
    before = root.level, list(root.handlers), [logging.getLogger(n).level for n in names]
    root.handlers = []
    yield
    root.setLevel(before[0])
    root.handlers = before[1]
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("restored")
def test_set_up_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    set_up(LogSettings(level="warning"))
    log = logging.getLogger("bridge.test")
    log.info("not shown")
    log.warning("shown %r", "a\nb")
    logging.getLogger("asyncio").info("not shown either")
    assert out.getvalue().endswith(" WARNING bridge.test: shown 'a\\nb'\n")
    assert out.getvalue().count("\n") == 1


@pytest.mark.usefixtures("restored")
def test_set_up_json(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    set_up(LogSettings(level="debug", format="json"))
    logging.getLogger("bridge.test").debug("shown")
    logging.getLogger("asyncio").info("noise")
    assert json.loads(out.getvalue())["message"] == "shown"
