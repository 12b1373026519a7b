"""Models of rows for the tests of `bridge.engine.process`, made in its process. Numpy only."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from bridge.engine.rows import ModelFacts, RowArrays
from bridge.errors import EngineUnavailable

INSIDE = -7  # in `tokens[0]`: the step has begun, and will not end

Progress = Callable[[str], None]
Options = dict[str, Any]


class Noop:
    """Its facts are the options; a step does nothing."""

    def __init__(self, options: Options) -> None:
        plain = {"name": "noop", "slots": 2, "block": 8, "tokenizer": "", "delay": 0.5}
        self.facts = ModelFacts(**{**plain, **options})

    def step(self, arrays: RowArrays) -> None:
        pass

    def close(self) -> None:
        pass


class Folding(Noop):
    """Every output depends on all audio that the row has heard since it was fresh."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._state = np.zeros(self.facts.slots, np.float64)
        self._steps = np.zeros(self.facts.slots, np.int64)

    def step(self, arrays: RowArrays) -> None:
        self._state[arrays.fresh] = 0.0
        self._steps[arrays.fresh] = 0
        on = arrays.active
        pcm = arrays.pcm[on].astype(np.float64)
        weights = np.arange(1, pcm.shape[1] + 1)
        self._state[on] = (self._state[on] * 0.9 + pcm @ weights) % 1000.0
        self._steps[on] += 1
        arrays.tokens[on] = (self._state[on] * 7).astype(np.int32) + self._steps[on]
        arrays.probability[on] = self._state[on] / 1000.0
        arrays.pauses[on] = np.sin(self._state[on])[:, None] + np.arange(self.facts.heads)
        arrays.energy[on] = (pcm**2).mean(axis=1)


def noop(options: Options, progress: Progress) -> Noop:
    return Noop(options)


def folding(options: Options, progress: Progress) -> Folding:
    progress("reading the weights")
    progress("warming\nup\x1b[31m")
    return Folding(options)


class _Tidy(Noop):
    def __init__(self, path: str) -> None:
        super().__init__({})
        self._path = path

    def close(self) -> None:
        with open(self._path, "x"):
            pass


def tidy(options: Options, progress: Progress) -> Noop:
    """Options: the `path` of a file that appears when it is closed."""
    return _Tidy(options["path"])


class _Odd(Noop):
    """Two slots; `what` is done in a step whose first sample is not 0."""

    def __init__(self, what: Callable[[RowArrays], None]) -> None:
        super().__init__({})
        self._what = what

    def step(self, arrays: RowArrays) -> None:
        if arrays.pcm[0, 0]:
            self._what(arrays)


def blocking(options: Options, progress: Progress) -> Noop:
    def block(arrays: RowArrays) -> None:
        arrays.tokens[0] = INSIDE
        while True:
            signal.pause()

    return _Odd(block)


def failing(options: Options, progress: Progress) -> Noop:
    """Options: the `message` of the exception."""

    def fail(arrays: RowArrays) -> None:
        raise RuntimeError(options["message"])

    return _Odd(fail)


def leaving(options: Options, progress: Progress) -> Noop:
    """Options: the exit `status`."""
    return _Odd(lambda arrays: os._exit(options["status"]))


def printing(options: Options, progress: Progress) -> Noop:
    def say(arrays: RowArrays) -> None:
        print("printed in a step")
        sys.stderr.write("\r 50 %")
        os.write(1, b"written by a library\n")

    print("printed while loading")
    return _Odd(say)


def chatting(options: Options, progress: Progress) -> Noop:
    """`progress` is called in a step too, which must not be taken for an answer."""
    return _Odd(lambda arrays: progress("too late"))


def frozen(options: Options, progress: Progress) -> Noop:
    def count(arrays: RowArrays) -> None:
        arrays.tokens[:] = gc.get_freeze_count(), gc.get_objects().__len__()

    return _Odd(count)


def starting(options: Options, progress: Progress) -> Noop:
    """Starts a process that would outlive it, and keeps the socket to the host open as well.

    Options: `kind`, how; `progress` gets its number.
    """
    if options["kind"] == "exec":
        pid = subprocess.Popen(["sleep", "1000"]).pid
    else:
        pid = os.fork()
        if not pid:
            if options["kind"] == "session":
                os.setsid()
            while True:
                signal.pause()
    progress(str(pid))
    return _Odd(lambda arrays: os._exit(9))


def describing(options: Options, progress: Progress) -> Noop:
    """What its process is like, as lines of progress."""
    progress(" ".join(sorted(m for m in sys.modules if m.split(".")[0] == "bridge")))
    progress(os.environ.get("OPENBLAS_NUM_THREADS", "not set"))
    progress(f"session {os.getsid(0) == os.getpid()}")
    return Noop({})


def refusing(options: Options, progress: Progress) -> Noop:
    raise EngineUnavailable("the weights are not there; run\n'callscribe fetch'")


def breaking(options: Options, progress: Progress) -> Noop:
    raise KeyError("lm.weight")


def dying(options: Options, progress: Progress) -> Noop:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hanging(options: Options, progress: Progress) -> Noop:
    progress("asking the hub")
    threading.Event().wait()
    raise AssertionError


def slow(options: Options, progress: Progress) -> Noop:
    """Says `lines` lines, and is silent for `pause` seconds after each."""
    for line in range(options["lines"]):
        progress(str(line))
        threading.Event().wait(options["pause"])
    return Noop({})
