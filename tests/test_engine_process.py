"""A model of rows in a process of its own: real processes, small models (`row_models`)."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.engine import process, process_child
from bridge.engine.process import ProcessRows, StepFailed
from bridge.engine.rows import ModelFacts, RowArrays, arrays, size_of
from bridge.errors import EngineUnavailable
from tests import row_models
from tests.waiting import until

ROOT = Path(__file__).parents[1]
PATIENCE = 30.0  # seconds, on a machine that does much else
SHAPE: dict[str, Any] = {"slots": 5, "block": 48, "heads": 4}
KILLED = "the engine's process ended: killed by signal 9"
CLOSED = "the engine is closed"


def rows(function: str, **how: Any) -> ProcessRows:
    options = how.pop("options", {})
    how = {"load_timeout": PATIENCE, "step_timeout": PATIENCE, "name": "test", **how}
    return ProcessRows(f"tests.row_models:{function}", options, **how)


def refusal(function: str, **how: Any) -> str:
    """The sentence of a load that fails."""
    with pytest.raises(EngineUnavailable) as raised:
        rows(function, **how)
    return str(raised.value)


def failure(model: ProcessRows) -> str:
    """The sentence of a step that fails."""
    with pytest.raises(StepFailed) as raised:
        model.step(model.arrays)
    return str(raised.value)


def provoke(model: ProcessRows) -> None:
    """Let the next step do what the model is for."""
    model.arrays.pcm[0, 0] = 1.0


def gone(pid: int) -> bool:
    """Wait until a process has ended, whoever its parent is."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        return bool(poll.poll(PATIENCE * 1000))
    finally:
        os.close(fd)


def vanished(pid: int) -> bool:
    """Not even a zombie is left."""
    return not Path(f"/proc/{pid}").exists()


def children() -> set[int]:
    """Our own, zombies too."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def held() -> set[tuple[str, object]]:
    """What could be left behind: descriptors, processes, shared memory, threads."""
    gc.collect()
    descriptors = set(os.listdir("/proc/self/fd"))
    shared = Path("/proc/self/maps").read_text().count("memfd:callscribe")
    threads = {thread.ident for thread in threading.enumerate()}
    return {
        *(("descriptor", number) for number in descriptors),
        *(("process", pid) for pid in children()),
        *(("memory", number) for number in range(shared)),
        *(("thread", ident) for ident in threads),
    }


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = held()
    yield
    assert held() <= before


# -- loading ------------------------------------------------------------------------------------


def test_facts_and_progress_arrive() -> None:
    lines: list[str] = []
    facts: dict[str, Any] = {
        **SHAPE,
        "name": "ünï",
        "tokenizer": "/t",
        "languages": ("en", "fr"),
        "prefix": 24000,
    }
    with closing(rows("folding", options=facts, progress=lines.append)) as model:
        assert model.facts == ModelFacts(delay=0.5, **facts)
        assert model.arrays.pcm.shape == (5, 48)
        assert model.arrays.pauses.shape == (5, 4)
        assert children() >= {model.pid}
    assert lines == ["reading the weights", "warming up [31m"]


def test_progress_is_logged_when_nobody_asks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rows("folding", name="kyutai").close()
    assert caplog.messages == ["kyutai: reading the weights", "kyutai: warming up [31m"]


def test_the_process_is_a_plain_one() -> None:
    """It has imported nothing of the bridge that it does not need."""
    lines: list[str] = []
    rows("describing", progress=lines.append).close()
    assert lines == [
        "bridge bridge.engine bridge.engine.rows bridge.errors",
        "not set",
        "session True",
    ]


def test_blas_threads_are_set_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    lines: list[str] = []
    rows("describing", progress=lines.append).close()
    rows("describing", progress=lines.append, blas_threads=3).close()
    assert [lines[1], lines[4]] == ["not set", "3"]


def test_the_target_is_found_wherever_we_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_your_own.py").write_text("from tests.row_models import noop\n")
    monkeypatch.syspath_prepend(tmp_path)
    how: dict[str, Any] = {"load_timeout": PATIENCE, "step_timeout": PATIENCE, "name": "test"}
    with closing(ProcessRows("of_your_own:noop", {"slots": 3}, **how)) as model:
        model.step(model.arrays)
        assert model.facts.slots == 3


def test_what_lies_in_the_working_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('this is not for you')\n")
    monkeypatch.chdir(tmp_path)
    rows("noop").close()


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        ("refusing", {}, "the weights are not there; run 'callscribe fetch'"),
        ("breaking", {}, "KeyError: 'lm.weight'"),
        ("dying", {}, "the engine's process ended while it loaded: killed by signal 9"),
        (
            "nothing",
            {},
            "'tests.row_models:nothing' cannot be imported: "
            "module 'tests.row_models' has no attribute 'nothing'",
        ),
        (
            "noop",
            {"slots": 0},
            "the engine's model cannot be: 0 slots, blocks of 8 samples, 0 heads",
        ),
        (
            "noop",
            {"slots": 200_000, "block": 1920, "heads": 4},
            "the engine's model cannot be: 200000 slots, blocks of 1920 samples, 4 heads",
        ),
    ],
)
def test_a_load_that_fails_says_why(function: str, options: dict[str, Any], sentence: str) -> None:
    assert refusal(function, options=options) == sentence


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(EngineUnavailable, match="^'no.such:thing' cannot be imported: No module"):
        ProcessRows("no.such:thing", {}, load_timeout=PATIENCE, step_timeout=1, name="test")


def test_options_that_are_no_json_start_nothing() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        rows("noop", options={"model": object()})


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_descriptors_that_cannot_be_had_cost_the_start() -> None:
    with no_more_descriptors():
        assert refusal("noop") == "the engine's process cannot be had: Too many open files"


def test_shared_memory_that_cannot_be_had_costs_the_start() -> None:
    with ExitStack() as stack:
        said = refusal("folding", progress=lambda line: exhaust(stack))
    assert said == "the engine's process cannot be had: Too many open files"


def exhaust(stack: ExitStack) -> None:
    stack.enter_context(no_more_descriptors())


def test_an_interpreter_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    said = "the engine's process cannot be had: No such file or directory"
    assert refusal("noop") == said


def test_a_load_that_hangs_is_ended() -> None:
    lines: list[str] = []
    said = refusal("hanging", load_timeout=1.5, progress=lines.append)
    assert said == "the engine said nothing for 1.5 s while it loaded, and was ended"
    assert lines == ["asking the hub"]


def test_each_line_of_progress_starts_the_deadline_anew() -> None:
    began = time.monotonic()
    rows("noop").close()
    usual = time.monotonic() - began
    deadline = max(0.4, 5 * usual)  # that starting Python on this machine alone does not pass
    options = {"lines": 4, "pause": 0.4 * deadline}
    rows("slow", load_timeout=deadline, options=options).close()


def test_a_progress_callable_that_raises_ends_the_load() -> None:
    def no(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows("hanging", progress=no)


# -- steps --------------------------------------------------------------------------------------


def fill(into: RowArrays, random: np.random.Generator) -> None:
    """A step's inputs."""
    into.pcm[:] = random.standard_normal(into.pcm.shape, np.float32)
    into.active[:] = random.random(len(into.active)) < 0.7
    into.fresh[:] = into.active & (random.random(len(into.active)) < 0.02)


def same(one: RowArrays, other: RowArrays) -> bool:
    return all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes()
        for name in RowArrays.__slots__
    )


def test_ten_thousand_steps_give_what_they_give_in_process() -> None:
    here = row_models.Folding(SHAPE)
    expected = arrays(**SHAPE)
    random, again = np.random.default_rng(4), np.random.default_rng(4)
    with closing(rows("folding", options=SHAPE)) as model:
        shared = model.arrays
        for _ in range(10_000):
            fill(shared, random)
            fill(expected, again)
            model.step(shared)
            here.step(expected)
            assert same(shared, expected)
        assert len(np.unique(shared.tokens)) == 5


def test_two_engines_do_not_mix() -> None:
    models = [rows("folding", options={**SHAPE, "slots": n}) for n in (2, 3)]
    here = [row_models.Folding({**SHAPE, "slots": n}) for n in (2, 3)]
    expected = [arrays(**{**SHAPE, "slots": n}) for n in (2, 3)]
    random = np.random.default_rng(5)
    for _ in range(500):
        one = int(random.integers(2))
        fill(expected[one], random)
        for name in ("pcm", "active", "fresh"):
            getattr(models[one].arrays, name)[:] = getattr(expected[one], name)
        models[one].step(models[one].arrays)
        here[one].step(expected[one])
        assert all(same(models[n].arrays, expected[n]) for n in range(2))
    models[0].close()
    models[1].step(models[1].arrays)
    models[1].close()


def test_a_step_takes_the_shared_arrays_only() -> None:
    with closing(rows("noop")) as model:
        with pytest.raises(AssertionError, match="^a step takes the shared arrays$"):
            model.step(arrays(2, 8, 0))
        model.step(model.arrays)


def test_what_a_model_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(rows("printing")) as model:
        provoke(model)
        for _ in range(3):
            model.step(model.arrays)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("printed while loading\n") == 1
    for text in ("printed in a step\n", "written by a library\n", "\r 50 %"):
        assert err.count(text) == 3


def test_progress_after_the_load_is_no_answer() -> None:
    with closing(rows("chatting")) as model:
        provoke(model)
        for _ in range(3):
            model.step(model.arrays)


def test_what_was_loaded_is_no_garbage() -> None:
    with closing(rows("frozen")) as model:
        provoke(model)
        model.step(model.arrays)
        frozen, watched = model.arrays.tokens
        assert frozen > 1000 > watched


def test_the_process_outlives_the_thread_that_made_it() -> None:
    """Linux sends the parent-death signal for a thread: an executor's may end long before."""
    with ThreadPoolExecutor(1) as executor:
        model = executor.submit(rows, "folding", options=SHAPE).result()
    with closing(model):
        assert not vanished(model.pid)
        model.step(model.arrays)


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("CUDA error: an illegal memory access", ": CUDA error: an illegal memory access"),
        ("two\n\nlines\t\x1b[31m\x00\u202eand \ud800 more", ": two lines [31m and more"),
        ("", ""),
        ("long " * 1000, ": " + "long " * 97 + "l"),
        ("ü" * 900, ": " + "ü" * 486),
    ],
    ids=["plain", "control characters", "empty", "long", "not ASCII"],
)
def test_a_step_that_raises_says_why(
    message: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """E7."""
    with closing(rows("failing", options={"message": message})) as model:
        model.step(model.arrays)
        provoke(model)
        said = failure(model)
        assert said == f"the engine's step failed: RuntimeError{sentence}"
        assert failure(model) == said, "it stays dead"
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("status", [0, 9, 70])
def test_a_process_that_leaves_in_a_step(status: int) -> None:
    with closing(rows("leaving", options={"status": status})) as model:
        provoke(model)
        assert failure(model) == f"the engine's process ended: exit status {status}"


async def inside(model: ProcessRows) -> asyncio.Task[None]:
    """A step that is under way in another thread, as in the bridge."""
    provoke(model)
    task = asyncio.create_task(asyncio.to_thread(model.step, model.arrays))
    shared = model.arrays.tokens
    await until(lambda: shared[0] == row_models.INSIDE, PATIENCE)
    return task


async def test_killed_in_the_middle_of_a_step() -> None:
    with closing(rows("blocking")) as model:
        task = await inside(model)
        os.kill(model.pid, signal.SIGKILL)
        with pytest.raises(StepFailed, match=f"^{KILLED}$"):
            await task


def test_killed_between_steps() -> None:
    with closing(rows("noop")) as model:
        model.step(model.arrays)
        os.kill(model.pid, signal.SIGKILL)
        assert failure(model) == KILLED
        assert failure(model) == KILLED


def test_killed_and_gone_between_steps() -> None:
    with closing(rows("noop")) as model:
        os.kill(model.pid, signal.SIGKILL)
        assert gone(model.pid)
        assert failure(model) == KILLED


def test_terminated_like_any_process() -> None:
    with closing(rows("noop")) as model:
        os.kill(model.pid, signal.SIGTERM)
        assert failure(model) == "the engine's process ended: killed by signal 15"


def test_a_process_that_hangs_is_ended() -> None:
    with closing(rows("noop", step_timeout=0.3)) as model:
        os.kill(model.pid, signal.SIGSTOP)
        said = "the engine's process did not come back within 0.3 s and was ended"
        assert failure(model) == said
        assert gone(model.pid)
        assert failure(model) == said


def test_an_interrupt_is_not_its_business() -> None:
    with closing(rows("noop")) as model:
        os.kill(model.pid, signal.SIGINT)
        for _ in range(3):
            model.step(model.arrays)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["fork", "exec"])
def test_what_the_process_has_started_ends_with_it(kind: str) -> None:
    lines: list[str] = []
    with closing(rows("starting", options={"kind": kind}, progress=lines.append)) as model:
        provoke(model)
        assert failure(model) == "the engine's process ended: exit status 9"
    assert gone(int(lines[0]))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_end_is_noticed_when_somebody_else_holds_the_socket() -> None:
    """What has gone into a session of its own is not ours to end."""
    lines: list[str] = []
    with closing(rows("starting", options={"kind": "session"}, progress=lines.append)) as model:
        provoke(model)
        try:
            assert failure(model) == "the engine's process ended: exit status 9"
        finally:
            os.kill(int(lines[0]), signal.SIGKILL)


# -- the end ------------------------------------------------------------------------------------


def test_close_ends_the_process_at_once_and_twice() -> None:
    model = rows("noop")
    pid = model.pid
    model.close()
    assert vanished(pid)
    model.close()
    assert failure(model) == CLOSED
    assert model.arrays.pcm.shape == (0, 8)


def test_close_lets_the_model_close(tmp_path: Path) -> None:
    rows("tidy", options={"path": str(tmp_path / "closed")}).close()
    assert (tmp_path / "closed").exists()


async def test_close_ends_a_step_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is told at once, whatever time the process is given."""
    monkeypatch.setattr(process, "GRACE", PATIENCE)
    model = rows("blocking")
    task = await inside(model)
    closes = asyncio.gather(asyncio.to_thread(model.close), asyncio.to_thread(model.close))
    with pytest.raises(StepFailed, match=f"^{CLOSED}$"):
        await task
    assert not closes.done()
    os.kill(model.pid, signal.SIGKILL)
    await closes
    assert vanished(model.pid)


async def test_close_ends_a_process_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.1)
    model = rows("blocking")
    task = await inside(model)
    await asyncio.to_thread(model.close)
    with pytest.raises(StepFailed, match=f"^{CLOSED}$"):
        await task
    assert vanished(model.pid)


def test_close_ends_a_process_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.1)
    model = rows("noop")
    os.kill(model.pid, signal.SIGSTOP)
    model.close()
    assert vanished(model.pid)


def test_arrays_that_somebody_still_holds_stay_good() -> None:
    model = rows("folding", options=SHAPE)
    kept = model.arrays
    kept.pcm[:] = 0.5
    model.close()
    assert kept.pcm.sum() == 0.5 * 5 * 48  # the fixture sees the memory go with `kept`


def test_a_model_that_is_dropped_ends_its_process() -> None:
    """A start that was cancelled must not keep the device's memory for ever."""
    model = rows("noop")
    pid = model.pid
    [thread] = [thread for thread in threading.enumerate() if thread.name == "test process"]
    del model
    assert gone(pid)
    thread.join(PATIENCE)


def test_fifty_rounds_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in turn by close, by death, by a failed step and by a failed load."""

    def round_(number: int) -> None:
        if number % 5 == 4:
            assert refusal("breaking") == "KeyError: 'lm.weight'"
            return
        with closing(rows("failing", options={"message": "x"})) as model:
            model.step(model.arrays)
            match number % 5:
                case 1:
                    os.kill(model.pid, signal.SIGKILL)
                case 2:
                    provoke(model)
                    failure(model)

    before = held()
    with ThreadPoolExecutor(3) as executor:
        list(executor.map(round_, range(50)))
    assert held() <= before


HOST = """
import os, sys, threading
from bridge.engine.process import ProcessRows
from tests.row_models import INSIDE
how = {"load_timeout": 60, "step_timeout": 60, "name": "test"}
model = ProcessRows("tests.row_models:blocking", {}, **how)
if sys.argv[1:]:
    model.arrays.pcm[0, 0] = 1.0
    threading.Thread(target=model.step, args=(model.arrays,)).start()
    while model.arrays.tokens[0] != INSIDE:
        os.sched_yield()
print(model.pid, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("step", [["step"], []], ids=["in a step", "between steps"])
def test_the_process_ends_with_its_host(step: list[str]) -> None:
    command = [sys.executable, "-c", HOST, *step]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        assert not vanished(pid)
        host.kill()
        assert gone(pid)


# -- the child alone ----------------------------------------------------------------------------


class Alone:
    """The process without its host: packets as they are."""

    def __init__(self, parent: int = 0) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE)
        command = [sys.executable, "-m", process_child.__name__]
        with theirs:
            command += [str(theirs.fileno()), str(parent or os.getpid())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)

    def start(self, function: str, **options: Any) -> None:
        target = f"tests.row_models:{function}"
        said = {"target": target, "options": options, "path": sys.path}
        self.sock.send(json.dumps(said).encode())

    def share(self) -> RowArrays:
        """Of the two slots of 8 samples that these models have."""
        assert set(self.heard()) == {"facts"}
        fd = os.memfd_create("test")
        os.truncate(fd, size_of(2, 8, 0))
        memory = mmap.mmap(fd, 0)
        socket.send_fds(self.sock, [process_child.MEMORY], [fd])
        os.close(fd)
        assert self.heard() == {"mapped": True}
        return arrays(2, 8, 0, memoryview(memory))

    def heard(self) -> Any:
        return json.loads(self.sock.recv(process_child.PACKET))

    def step(self) -> bytes:
        self.sock.send(process_child.STEP)
        return self.sock.recv(process_child.PACKET)

    def status(self) -> int:
        return self.process.wait(PATIENCE)


@pytest.fixture
def alone() -> Iterator[Alone]:
    child = Alone()
    yield child
    child.sock.close()
    child.process.kill()
    child.process.wait()


def test_a_failed_step_ends_the_process_with_status_70(alone: Alone) -> None:
    """E7."""
    alone.start("failing", message="CUDA error")
    shared = alone.share()
    assert alone.step() == process_child.DONE
    shared.pcm[0, 0] = 1.0
    assert alone.step() == b"RuntimeError: CUDA error"
    assert alone.status() == 70
    assert alone.sock.recv(1) == b""


def test_a_failed_load_ends_the_process_with_status_3(alone: Alone) -> None:
    alone.start("breaking")
    assert alone.heard() == {"error": "KeyError: 'lm.weight'"}
    assert alone.status() == 3


@pytest.mark.parametrize("stage", ["before the start", "after the facts", "after a step"])
def test_the_process_ends_with_its_socket(alone: Alone, stage: str) -> None:
    if stage != "before the start":
        alone.start("noop")
    if stage == "after the facts":
        alone.heard()
    if stage == "after a step":
        alone.share()
        assert alone.step() == process_child.DONE
    alone.sock.close()
    assert alone.status() == 0


def test_an_answer_that_nobody_takes_is_no_error(alone: Alone) -> None:
    """The host has closed its end in the middle of a step."""
    alone.start("noop")
    alone.share()
    alone.sock.send(process_child.STEP)
    alone.sock.close()
    assert alone.status() == 0


def test_a_process_whose_host_is_gone_already_ends() -> None:
    child = Alone(parent=1)
    with child.sock:
        assert child.status() == 1
