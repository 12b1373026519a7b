"""GPUs as the driver tells of them: a driver in C, one in Python, and none."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.engine import device
from bridge.engine.device import COMMAND, Gpu, NoGpu, ask, gpus, pick, query, resolve

GIB = 2**30
H200 = Gpu(0, "NVIDIA H200", 140 * GIB, 100 * GIB, (9, 0))
T4 = Gpu(1, "Tesla T4", 15 * GIB, 15 * GIB, (7, 5))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    gpus.cache_clear()
    yield
    gpus.cache_clear()


def sentence(call: Any) -> str:
    with pytest.raises(NoGpu) as e:
        call()
    return str(e.value)


# -- the driver's functions -----------------------------------------------------------------------


class Cuda:
    """libcuda with some GPUs, in Python: (name, bytes, capability, bus)."""

    def __init__(self, *found: tuple[str, int, tuple[int, int], str], init: int = 0) -> None:
        self.found = found
        self.init = init

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.found)
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = 100 + index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:
        name.value = self.found[handle.value - 100][0].encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, handle: Any) -> int:
        size._obj.value = self.found[handle.value - 100][1]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:
        value._obj.value = self.found[handle.value - 100][2][attribute - device.MAJOR]
        return 0

    def cuDeviceGetPCIBusId(self, bus: Any, size: int, handle: Any) -> int:
        bus.value = self.found[handle.value - 100][3].encode()
        return 0

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = b"CUDA_ERROR_OF_A_TEST"
        return 0


class Nvml:
    """libnvidia-ml: free bytes by bus."""

    def __init__(self, free: dict[str, int], *, init: int = 0) -> None:
        self.free = free
        self.init = init
        self.handles: list[str] = []

    def nvmlInit_v2(self) -> int:
        return self.init

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus: bytes, handle: Any) -> int:
        if bus.decode() not in self.free:
            return 6  # NVML_ERROR_NOT_FOUND
        self.handles.append(bus.decode())
        handle._obj.value = len(self.handles)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.free = self.free[self.handles[handle.value - 1]]
        return 0


TWO = (
    ("NVIDIA H200", 140 * GIB, (9, 0), "0000:01:00.0"),
    ("Tesla T4", 15 * GIB, (7, 5), "0000:81:00.0"),
)


def test_every_gpu_is_told_with_what_is_free_of_it() -> None:
    nvml = Nvml({"0000:01:00.0": 100 * GIB, "0000:81:00.0": 15 * GIB})
    assert ask(Cuda(*TWO), nvml) == [H200, T4]
    assert str(H200) == "NVIDIA H200, 140 GiB"


@pytest.mark.parametrize(
    "nvml", [None, Nvml({}), Nvml({"0000:01:00.0": 1}, init=9), Nvml({"0000:01:00.0": 999 * GIB})]
)
def test_where_nobody_says_all_of_it_is_free(nvml: Nvml | None) -> None:
    (gpu,) = ask(Cuda(TWO[0]), nvml)
    assert gpu.free == gpu.total


def test_no_gpu_behind_a_driver() -> None:
    assert sentence(lambda: ask(Cuda(), None)) == (
        "the NVIDIA driver shows no GPU here: see nvidia-smi and CUDA_VISIBLE_DEVICES; containers "
        "need --gpus all, systemd units access to /dev/nvidia*"
    )


@pytest.mark.parametrize(
    ("code", "begin"),
    [
        (34, "libcuda.so.1 is the stub that programs are built with"),
        (100, "the NVIDIA driver shows no GPU here: see nvidia-smi"),
        (802, "the GPUs are not ready: is nvidia-fabricmanager running?"),
        (803, "the NVIDIA driver and its library are of different versions: restart the machine"),
        (999, "the NVIDIA driver fails: see nvidia-smi and dmesg; after an update, restart"),
        (719, "the NVIDIA driver fails: see nvidia-smi and dmesg"),
    ],
)
def test_an_error_of_the_driver_says_what_to_do(code: int, begin: str) -> None:
    problem = sentence(lambda: ask(Cuda(*TWO, init=code), None))
    assert problem.startswith(begin)
    assert problem.endswith(f" (CUDA_ERROR_OF_A_TEST, {code})")


# -- the other process ----------------------------------------------------------------------------


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_what_the_process_says_is_read() -> None:
    said = json.dumps({"gpus": [dict(index=1, name="Tesla T4", total=15 * GIB, free=15 * GIB,
                                     capability=[7, 5])]})  # fmt: skip
    assert query(python(f"print({said!r})")) == (T4,)
    assert sentence(lambda: query(python('print(\'{"why": "because"}\')'))) == "because"


@pytest.mark.parametrize("code", ["", "print('{')", "import os; os.kill(os.getpid(), 11)"])
def test_a_driver_that_ends_the_process(code: str) -> None:
    assert sentence(lambda: query(python(code))) == (
        "asking the NVIDIA driver for its GPUs ended the process that asked: see dmesg"
    )


def test_a_driver_that_hangs_is_left_behind() -> None:
    hang = python("import signal; signal.pause()")
    assert sentence(lambda: query(hang, timeout=0.05)) == (
        "the NVIDIA driver does not answer within 0.05 s: see nvidia-smi and dmesg"
    )


def test_a_process_that_cannot_be_started() -> None:
    assert sentence(lambda: query(["/nowhere/python"])) == (
        "no process can be started to ask the NVIDIA driver: No such file or directory"
    )


DRIVER = r"""
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return flags == 0 ? atoi(getenv("STUB_INIT")) : 1; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "NVIDIA %d", device);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 33; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
    return 0;
}
int cuDeviceGetPCIBusId(char *bus, int size, int device) {
    snprintf(bus, size, "0000:%02d:00.0", device);
    return 0;
}
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_STUB"; return 0; }
typedef struct { unsigned long long total, free, used; } Memory;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **handle) {
    *handle = strdup(bus);
    return strcmp(bus, "0000:08:00.0") ? 0 : 6;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    memory->free = strcmp(handle, "0000:07:00.0") ? 1 : (unsigned long long)5 << 33;
    return 0;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """libcuda and libnvidia-ml of the real ABI, for processes that are started now."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    made = tmp_path / "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", made, tmp_path / "driver.c"], check=True, timeout=60
    )
    (tmp_path / "libnvidia-ml.so.1").symlink_to(made)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("STUB_INIT", "0")
    return made


def test_the_real_functions_are_called_as_they_want_it(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert query(COMMAND) == (
        Gpu(0, "NVIDIA 7", 7 << 33, 5 << 33, (9, 0)),
        Gpu(1, "NVIDIA 8", 8 << 33, 8 << 33, (9, 0)),
    )
    monkeypatch.setenv("STUB_INIT", "803")
    assert sentence(lambda: query(COMMAND)).endswith("machine (CUDA_ERROR_STUB, 803)")


def test_the_package_is_found_wherever_one_stands(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert len(query(COMMAND)) == 2


# -- the setting ----------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs, and how often was asked for them."""
    asked: list[int] = []

    def answer(command: object) -> tuple[Gpu, ...]:
        asked.append(1)
        return (H200, T4)

    monkeypatch.setattr(device, "_library", lambda name: ctypes.CDLL(None))
    monkeypatch.setattr(device, "query", answer)
    return asked


def test_a_setting_means_one_gpu(two: list[int]) -> None:
    assert (pick("auto"), pick("cuda"), pick("cuda:0")) == (H200, H200, H200)
    assert pick("cuda:1") == T4
    assert [resolve(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    assert two == [1], "the driver is asked once"


def test_a_gpu_that_is_not_there(two: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "engine.device is 'cuda:2', and there are 2 GPUs, counted from cuda:0"
    assert sentence(lambda: pick("cuda:2")) == problem
    monkeypatch.setattr(device, "gpus", lambda: (H200,))
    problem = "engine.device is 'cuda:1', and there is one GPU, counted from cuda:0"
    assert sentence(lambda: pick("cuda:1")) == problem


def test_a_cpu_needs_no_driver(two: list[int]) -> None:
    assert resolve("cpu") == "cpu"
    assert sentence(lambda: pick("cpu")) == 'engine.device is "cpu"'
    assert two == []


def test_without_a_driver_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(device, "query", lambda command: pytest.fail("a process was started"))
    problem = "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    assert sentence(gpus) == problem
    assert sentence(lambda: pick("cuda:3")) == problem
    assert resolve("auto") == "cpu"
    assert resolve("cuda") == "cuda:0"


@pytest.mark.gpu
def test_the_driver_and_torch_say_the_same() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    found = gpus()
    assert len(found) == torch.cuda.device_count()
    for gpu in found:
        theirs = torch.cuda.get_device_properties(gpu.index)
        assert (gpu.name, gpu.total) == (theirs.name, theirs.total_memory)
        assert gpu.capability == (theirs.major, theirs.minor)
        assert 0 < gpu.free <= gpu.total
