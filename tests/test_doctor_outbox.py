from pathlib import Path

import pytest

from bridge.config import OutboxSettings
from bridge.doctor_outbox import check
from bridge.egress.store import Store
from bridge.egress.store_types import Dead, Keep, Op, StoreLimits
from bridge.types import CallEvent, CallInfo, Started


def judge(path: Path | str) -> tuple[str, str, str]:
    found = check(OutboxSettings(path=str(path)))
    assert found.subject == "outbox"
    return found.status, found.found, found.advice


def test_in_memory_is_said() -> None:
    status, found, _ = judge("")
    assert status == "ok" and "what waits is lost with the process" in found


def test_a_file_that_is_to_be_made_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    assert judge(path) == ("ok", f"{path} will be made", "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    status, found, advice = judge(tmp_path / "nowhere" / "outbox.db")
    assert (status, advice) == ("failed", "make it, or correct the path")
    assert found == f"there is no directory {tmp_path / 'nowhere'}"


def test_a_folder_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.doctor_outbox.os.access", lambda path, mode: False)  # root may all
    status, found, _ = judge(tmp_path / "outbox.db")
    assert (status, found) == ("failed", f"{tmp_path} cannot be written")


def test_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    store = Store(path, StoreLimits())
    event = CallEvent(CallInfo("a"), 0, 0.0, None, Started())
    ops: list[Op] = [Keep(sink, event, 1, False) for sink in ("hook", "ami")]
    store.apply(ops)
    assert judge(path) == ("ok", f"{path}: 2 events wait", "")
    store.apply([Dead("hook", "a", 0, "no")])
    store.close()
    status, found, advice = judge(path)
    assert (status, advice) == ("warning", "see: callscribe outbox list")
    assert found == f"{path}: 1 events wait, 1 were given up"


def test_a_file_of_somebody_elses(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(b"holiday pictures" * 100)
    status, found, _ = judge(path)
    assert status == "failed" and found == f"{path}: file is not a database"
