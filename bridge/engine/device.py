"""Which GPUs there are, asked of the NVIDIA driver without torch.

The driver is asked in a process of its own: one that hangs is left behind, and ours never has a
CUDA context that a process forked from it could not use. There it is `libcuda.so.1` that answers,
so that `CUDA_VISIBLE_DEVICES` counts and numbers are those that torch uses; how much memory is
free is known to `libnvidia-ml.so.1`. Functions and codes: CUDA driver API and NVML reference.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge.errors import EngineUnavailable

ANSWER = 20.0  # s; without a persistence daemon, a machine of eight GPUs needs about ten
NAME = 128  # bytes of a GPU's name
PCI = 32
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
COMMAND = (sys.executable, "-P", "-m", "bridge.engine.device")

_WRONG = {  # CUresult of cuInit
    34: "libcuda.so.1 is the stub that programs are built with: take it out of LD_LIBRARY_PATH",
    100: "the NVIDIA driver shows no GPU here: see nvidia-smi and CUDA_VISIBLE_DEVICES; containers "
    "need --gpus all, systemd units access to /dev/nvidia*",
    101: "the NVIDIA driver shows no GPU here: CUDA_VISIBLE_DEVICES names one that is not there",
    802: "the GPUs are not ready: is nvidia-fabricmanager running?",
    803: "the NVIDIA driver and its library are of different versions: restart the machine",
    804: "the CUDA compatibility library does not support this GPU: update the NVIDIA driver",
    999: "the NVIDIA driver fails: see nvidia-smi and dmesg; after an update, restart the machine",
}


class NoGpu(EngineUnavailable):
    """There is none that can be used; its text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """`total` and `free` in bytes; all is free where nobody says. `capability`: 8.0 is Ampere."""

    index: int
    name: str
    total: int
    free: int
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}, {self.total / 2**30:.0f} GiB"


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """All that this process may use, at least one; asked once. Raises `NoGpu`."""
    _library("libcuda.so.1")  # without a driver there is no need for a process
    return query(COMMAND)


def pick(device: str) -> Gpu:
    """The one that a setting (``auto``, ``cuda``, ``cuda:1``) means. Raises `NoGpu`."""
    if device == "cpu":
        raise NoGpu('engine.device is "cpu"')
    found = gpus()
    index = int(device.partition(":")[2] or 0)
    if index >= len(found):
        there = "is one GPU" if len(found) == 1 else f"are {len(found)} GPUs"
        raise NoGpu(f"engine.device is {device!r}, and there {there}, counted from cuda:0")
    return found[index]


def resolve(device: str) -> str:
    """The setting as torch understands it: ``cpu`` or ``cuda:0``. Nothing is looked up for cpu."""
    if device == "auto":
        try:
            gpus()
        except NoGpu:
            return "cpu"
        return "cuda:0"
    return "cuda:0" if device == "cuda" else device


def query(command: Sequence[str], timeout: float = ANSWER) -> tuple[Gpu, ...]:
    """Ask in another process. Raises `NoGpu`."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, env=environment
        )
    except OSError as e:
        raise NoGpu(f"no process can be started to ask the NVIDIA driver: {e.strerror}") from e
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _leave(process)
        raise NoGpu(
            f"the NVIDIA driver does not answer within {timeout:g} s: see nvidia-smi and dmesg"
        ) from None
    return _read(said)


def _leave(process: subprocess.Popen[bytes]) -> None:
    """End it, and do not wait: a process inside a driver that hangs cannot be ended."""
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _read(said: bytes) -> tuple[Gpu, ...]:
    try:
        answer = json.loads(said)
    except ValueError:
        raise NoGpu(
            "asking the NVIDIA driver for its GPUs ended the process that asked: see dmesg"
        ) from None
    if "why" in answer:
        raise NoGpu(answer["why"])
    return tuple(Gpu(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in answer["gpus"])


# -- in the other process -------------------------------------------------------------------------


def ask(cuda: Any, nvml: Any) -> list[Gpu]:
    """Of libcuda, and of libnvidia-ml or None. Raises `NoGpu`."""
    _check(cuda, cuda.cuInit(0))
    count = ctypes.c_int()
    _check(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise NoGpu(_WRONG[100])
    return [_gpu(cuda, nvml, index) for index in range(count.value)]


def _gpu(cuda: Any, nvml: Any, index: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(NAME)
    total, pci = ctypes.c_size_t(), ctypes.create_string_buffer(PCI)
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), index))
    _check(cuda, cuda.cuDeviceGetName(name, NAME, device))
    _check(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device))
    _check(cuda, cuda.cuDeviceGetPCIBusId(pci, PCI, device))
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        _check(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        capability.append(value.value)
    free = min(total.value, _free(nvml, pci.value, total.value))
    text = name.value.decode("utf-8", "replace")
    return Gpu(index, text, total.value, free, (capability[0], capability[1]))


def _check(cuda: Any, code: int) -> None:
    if code == 0:
        return
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(name))
    text = (name.value or b"?").decode("ascii", "replace")
    what = _WRONG.get(code, "the NVIDIA driver fails: see nvidia-smi and dmesg")
    raise NoGpu(f"{what} ({text}, {code})")


class _Memory(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def _free(nvml: Any, pci: bytes, total: int) -> int:
    """Bytes; `total` where NVML is not there, or may not tell (as for a part of a GPU, MIG)."""
    handle, memory = ctypes.c_void_p(), _Memory()
    if (
        nvml is None
        or nvml.nvmlInit_v2()
        or nvml.nvmlDeviceGetHandleByPciBusId_v2(pci, ctypes.byref(handle))
        or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    ):
        return total
    return int(memory.free)


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise NoGpu(f"there is no NVIDIA driver ({name} cannot be loaded)") from None


def main() -> None:
    """Print what there is, as JSON."""
    nvml = None
    with suppress(NoGpu):
        nvml = _library("libnvidia-ml.so.1")
    try:
        answer: dict[str, Any] = {
            "gpus": [asdict(gpu) for gpu in ask(_library("libcuda.so.1"), nvml)]
        }
    except NoGpu as e:
        answer = {"why": str(e)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
