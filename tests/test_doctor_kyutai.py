"""What `callscribe doctor` says of Kyutai: the package, the GPU, the model, the slots."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bridge import doctor_kyutai, doctor_local
from bridge.config import EngineSettings
from bridge.doctor_report import Finding, failed, ok, warning
from bridge.engine import checkpoint, device
from bridge.engine.device import Gpu, NoGpu
from bridge.errors import EngineUnavailable

pytest.importorskip("safetensors", reason="needs pip install 'callscribe[kyutai]'")
if importlib.util.find_spec("moshi") is None:
    pytest.skip("needs pip install 'callscribe[kyutai]'", allow_module_level=True)

import tiny_checkpoint

GIB, MB = 2**30, 10**6
H200 = Gpu(0, "NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0))
T4 = Gpu(0, "Tesla T4", 15 * GIB, 15 * GIB, (7, 5))
SIZES = "0 MB each beside 0.0 GB of weights"  # of the tiny one


def has(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> None:
    def answer() -> tuple[Gpu, ...]:
        if gpu is None:
            raise NoGpu("there is no NVIDIA driver")
        return (gpu,)

    monkeypatch.setattr(device, "gpus", answer)


def about(findings: list[Finding], subject: str) -> Finding:
    (found,) = (finding for finding in findings if finding.subject == subject)
    return found


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_checkpoint.write(tmp_path / "model"))


async def test_all_is_well(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, H200)
    findings = await doctor_local.engine(EngineSettings(model=model))
    assert findings[:3] == [
        ok("engine", f"kyutai: engine.kind is auto, and there is a GPU (NVIDIA H200, 140 GiB) and "
           f"a model in {model}"),
        ok("GPU", "NVIDIA H200, 140 GiB, 139 GiB free"),
        ok("model", f"{model}, complete on this machine; words come 0.5 s late; 4 pause heads"),
    ]  # fmt: skip
    assert findings[3].status == "ok"
    assert findings[3].found.endswith(
        f" fit into the 139 GiB that are free, with 2 GiB left; {SIZES}"
    )


async def test_a_number_of_slots(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, H200)
    (*_, slots) = await doctor_local.engine(EngineSettings(kind="kyutai", model=model, slots=64))
    assert slots.status == "ok"
    assert slots.found.startswith("64; ") and slots.found.endswith(f" would fit; {SIZES}")


def test_a_fit_is_what_the_engine_itself_computes(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = checkpoint.find(model).shape
    slot = checkpoint.slot_bytes(shape, "bfloat16")
    weights = checkpoint.weight_bytes(shape, 4, "bfloat16")
    has(monkeypatch, Gpu(0, "G", GIB, GIB, (9, 0)))

    def slots(**settings: object) -> Finding:
        return about(doctor_kyutai.check(EngineSettings(model=model, **settings)), "slots")  # type: ignore[arg-type]

    assert slots(reserve_gb=0).found.startswith(f"{(GIB - weights) // slot} fit into the 1 GiB ")
    assert slots(reserve_gb=0.5).found.startswith(
        f"{(GIB // 2 - weights) // slot} fit into the 1 GiB that are free, with 0.5 GiB left; "
    )
    assert slots(dtype="float32", reserve_gb=0) != slots(reserve_gb=0)


@pytest.mark.parametrize(
    ("slots", "free", "expected"),
    [
        (10_000, 1, failed("slots", f"none fits into 0 GiB; {SIZES}",
                           "take a smaller engine.model")),
        ("auto", 1, failed("slots", f"none fits into 0 GiB; {SIZES}",
                           "take a smaller engine.model")),
        (10_000, 2 * MB, failed("slots", f"10000 do not fit, 12 do into 0 GiB; {SIZES}",
                                'set engine.slots = 12, or "auto"')),
    ],
)  # fmt: skip
def test_slots_that_do_not_fit(
    slots: int, free: int, expected: Finding, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, Gpu(0, "G", free, free, (9, 0)))
    found = about(doctor_kyutai.check(EngineSettings(model=model, slots=slots)), "slots")
    assert found == expected


def test_a_gpu_that_somebody_uses_is_no_failure(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the bridge that doctor is asked about."""
    has(monkeypatch, Gpu(0, "G", 140 * GIB, 1, (9, 0)))
    assert about(doctor_kyutai.check(EngineSettings(model=model)), "slots") == warning(
        "slots",
        f"none fits into the 0 GiB that are free; {SIZES}",
        "another program, perhaps this bridge itself, has the rest: see nvidia-smi",
    )


async def test_a_gpu_that_kyutai_cannot_use_is_worth_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, H200)
    (finding,) = await doctor_local.engine(EngineSettings(model=f"{tmp_path}/nowhere", slots=2))
    assert finding == warning(
        "engine",
        "pocketsphinx, 2 slots: engine.kind is auto, and for kyutai something is missing: "
        f"{tmp_path}/nowhere is no directory; see engine.model",
        "a GPU is there and idle",
    )


def test_a_gpu_without_bfloat16(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, T4)
    found = about(doctor_kyutai.check(EngineSettings(model=model)), "GPU")
    assert found == warning(
        "GPU",
        "Tesla T4, 15 GiB, 15 GiB free; it is slow with bfloat16",
        'set engine.dtype = "float16"',
    )
    half = about(doctor_kyutai.check(EngineSettings(model=model, dtype="float16")), "GPU")
    assert half.status == "ok"


async def test_kyutai_without_a_gpu(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, None)
    settings = EngineSettings(kind="kyutai", model=model)
    findings = await doctor_local.engine(settings)
    assert [finding.status for finding in findings] == ["ok", "warning", "ok"]
    assert findings[1].found == "there is no NVIDIA driver"
    assert "for trying it out only" in findings[1].advice
    (finding,) = await doctor_local.engine(EngineSettings(model=model))
    assert finding.found.endswith("for kyutai something is missing: there is no NVIDIA driver")
    (_, gpu, _) = await doctor_local.engine(settings.model_copy(update={"device": "cuda"}))
    assert gpu == failed("GPU", "there is no NVIDIA driver")


def test_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, H200)
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(checkpoint, "cached", lambda model, revision: False)
    monkeypatch.setattr(checkpoint, "ask", lambda *given: asked.append(given))
    findings = doctor_kyutai.check(EngineSettings(model="kyutai/stt-2.6b-en", revision="v2"))
    assert findings[1:] == [
        ok("model", "kyutai/stt-2.6b-en is on the hub, and is fetched when the bridge is first "
           "started")
    ]  # fmt: skip
    assert asked == [("kyutai/stt-2.6b-en", "v2")]


def test_a_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has(monkeypatch, H200)

    def ask(model: str, revision: str | None) -> None:
        raise EngineUnavailable("the hub cannot be reached")

    monkeypatch.setattr(checkpoint, "cached", lambda model, revision: False)
    monkeypatch.setattr(checkpoint, "ask", ask)
    assert doctor_kyutai.check(EngineSettings())[1:] == [
        failed("model", "the hub cannot be reached")
    ]
    missing = f"{tmp_path}/nowhere is no directory; see engine.model"
    found = doctor_kyutai.check(EngineSettings(model=f"{tmp_path}/nowhere"))
    assert found[1:] == [failed("model", missing)]


def test_a_model_without_pause_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, H200)
    folder = tiny_checkpoint.write(tmp_path, heads=0)
    found = about(doctor_kyutai.check(EngineSettings(model=str(folder))), "model")
    assert found.found == (
        f"{folder}, complete on this machine; words come 0.5 s late; without pause heads, turns "
        "end by the sound alone"
    )


def test_moshi_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor_kyutai.check(EngineSettings(kind="kyutai")) == [
        failed("engine", "moshi, which kyutai runs on, is not installed",
               "pip install 'callscribe[kyutai]'")
    ]  # fmt: skip
