"""`callscribe outbox`, on a file that a bridge has left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.egress.store import Store
from bridge.egress.store_types import Adopt, Adopted, Dead, Done, Keep, Op, StoreLimits
from bridge.types import CallEvent, CallInfo, Final


def keep(sink: str, call: str, seq: int) -> Keep:
    said = Final(0, "my pin is one two three", ())
    return Keep(sink, CallEvent(CallInfo(call), seq, 1e9 + seq, "caller", said), 2, False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "outbox.db"
    store = Store(path, StoreLimits())
    ops: list[Op] = [keep("hook", f"c-{n}", 0) for n in range(3)]
    ops += [keep("ami", "evil\ncall", 5), keep("hook", "c-0", 1), keep("hook", "c-0", 2)]
    store.apply(ops)
    store.apply([Dead("hook", "c-0", 1, "example.net answered 422"), Done("hook", "c-0", 0)])
    store.apply([Dead("ami", "evil\ncall", 5, "No such command\r\nAction: Originate")])
    store.close()
    return path


def asked(path: Path, *args: str) -> int:
    return main(["outbox", args[0], "--path", str(path), *args[1:]])


def left(path: Path) -> tuple[int, int]:
    store = Store(path, StoreLimits())
    store.open()
    store.close()
    return store.rows - store.dead, store.dead


def test_list_says_what_waits_and_what_is_dead_and_nothing_that_was_said(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(path, "list") == 0
    out = capsys.readouterr().out
    assert "ami: 0 events of 0 calls wait; 1 dead letters" in out
    assert re.search(r"hook: 3 events of 3 calls wait, the oldest of 2001-.*; 1 dead letters", out)
    assert "hook  transcript.final  call=c-0 seq=1  1 attempts: example.net answered 422" in out
    assert "call=evil\\ncall seq=5  1 attempts: No such command\\r\\nAction: Originate" in out
    assert "pin" not in out
    assert asked(path, "list", "--sink", "ami") == 0
    assert "hook" not in capsys.readouterr().out


def test_retry_gives_them_to_whoever_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(path, "retry", "--sink", "hook") == 0
    assert capsys.readouterr().out == "1 dead letters will be tried again\n"
    assert left(path) == (4, 1)
    store = Store(path, StoreLimits())
    (told,) = store.apply([Adopt()])
    assert isinstance(told, Adopted)
    (found,) = [b for b in told.backlogs if b.call == "c-0"]
    assert (found.rows, found.last, found.attempts) == (2, 0, 0)
    store.close()
    assert asked(path, "retry", "--sink", "hook") == 1  # there are none


def test_drop_by_id_and_all(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked(path, "list", "--sink", "hook")
    (number,) = re.findall(r"^ +(\d+)  ", capsys.readouterr().out, re.M)
    assert asked(path, "drop", number) == 0 and left(path) == (3, 1)
    assert asked(path, "drop", "--all") == 0 and left(path) == (3, 0)


def test_what_waits_for_a_sink_of_the_past_can_be_dropped(path: Path) -> None:
    assert asked(path, "drop", "--pending", "--sink", "hook") == 0
    assert left(path) == (0, 2)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["drop"], "say which: IDs, --sink NAME, or --all"),
        (["drop", "--all", "--pending"], "--pending needs --sink NAME"),
    ],
)
def test_nothing_is_dropped_by_mistake(
    path: Path, args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(path, *args) == 1
    assert capsys.readouterr().err == f"callscribe: {sentence}\n"
    assert left(path) == (3, 2)


def test_where_the_file_is(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    (tmp_path / "bridge.toml").write_text(f'[outbox]\npath = "{path}"\n')
    assert main(["outbox", "list", "-c", str(tmp_path / "bridge.toml")]) == 0
    assert main(["outbox", "list"]) == 1
    assert "outbox.path is not set" in capsys.readouterr().err
    assert main(["outbox", "list", "--path", str(tmp_path / "none.db")]) == 1
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "other.db").write_bytes(b"holiday pictures " * 100)
    assert main(["outbox", "list", "--path", str(tmp_path / "other.db")]) == 1
    assert "file is not a database" in capsys.readouterr().err
