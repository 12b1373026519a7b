"""Which recogniser is used, and the sentence that says why."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.config import EngineSettings
from bridge.engine import checkpoint, choice, device
from bridge.engine.choice import build, choose
from bridge.engine.device import Gpu, NoGpu
from bridge.errors import EngineUnavailable

pytest.importorskip("safetensors", reason="needs pip install 'callscribe[kyutai]'")

import tiny_checkpoint

GIB = 2**30
H200 = Gpu(0, "NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0))
AUTO = "engine.kind is auto, and "
MISSING = f"{AUTO}for kyutai something is missing: "
NO_MOSHI = "moshi is not installed (pip install 'callscribe[kyutai]')"


needs_moshi = pytest.mark.skipif(
    importlib.util.find_spec("moshi") is None, reason="needs pip install 'callscribe[kyutai]'"
)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus", lambda: (H200,))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> tuple[Gpu, ...]:
        raise NoGpu("there is no NVIDIA driver")

    monkeypatch.setattr(device, "gpus", none)


@pytest.fixture
def no_moshi(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "moshi" else real(name)
    )


def answer(why: str | None) -> Callable[..., None]:
    """A hub that has the model, or says this."""

    def ask(model: str, revision: str | None = None) -> None:
        if why is not None:
            raise EngineUnavailable(f"{model} {revision}: {why}")

    return ask


def test_a_kind_that_is_named_is_taken() -> None:
    assert choose(EngineSettings(kind="tones")).why == 'engine.kind is "tones"'
    chosen = choose(EngineSettings(kind="kyutai"))
    assert (chosen.kind, chosen.target) == ("kyutai", "bridge.engine.kyutai_engine:make")
    own = choose(EngineSettings(kind="my.engine:make"))
    assert (own.target, own.why) == ("my.engine:make", "engine.kind names a function of your own")


@needs_moshi
def test_kyutai_on_a_gpu_with_a_model_in_a_directory(tmp_path: Path) -> None:
    folder = tiny_checkpoint.write(tmp_path)
    chosen = choose(EngineSettings(model=str(folder)))
    assert chosen.kind == "kyutai"
    assert chosen.why == f"{AUTO}there is a GPU (NVIDIA H200, 140 GiB) and a model in {folder}"


@needs_moshi
def test_a_model_that_is_incomplete_is_as_good_as_none(tmp_path: Path) -> None:
    folder = tiny_checkpoint.write(tmp_path)
    (folder / "model.safetensors").unlink()
    chosen = choose(EngineSettings(model=str(folder)))
    assert chosen.kind == "pocketsphinx"
    assert chosen.why == (
        f"{MISSING}{folder}/model.safetensors is missing: copy it there; all of a model's files "
        "belong into one directory"
    )


@needs_moshi
def test_a_model_that_is_cached_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(checkpoint, "ask", lambda *asked: pytest.fail("the hub was asked"))
    monkeypatch.setattr(checkpoint, "cached", lambda model, revision: revision == "v2")
    monkeypatch.setattr(checkpoint, "find", lambda *given, **more: found.append((given, more)))
    chosen = choose(EngineSettings(revision="v2"))
    assert chosen.kind == "kyutai"
    assert chosen.why.endswith(" and kyutai/stt-1b-en_fr-candle on this machine")
    assert found == [(("kyutai/stt-1b-en_fr-candle", "v2"), {"download": False})]


@needs_moshi
def test_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "cached", lambda model, revision: False)
    monkeypatch.setattr(checkpoint, "ask", answer(None))
    chosen = choose(EngineSettings(model="kyutai/stt-2.6b-en"))
    assert chosen.kind == "kyutai"
    assert chosen.why.endswith(" and kyutai/stt-2.6b-en on the hub, from where it is fetched")


@needs_moshi
def test_a_hub_that_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "cached", lambda model, revision: False)
    monkeypatch.setattr(checkpoint, "ask", answer("cannot be reached"))
    chosen = choose(EngineSettings(model="kyutai/a", revision="v2"))
    assert (chosen.kind, chosen.why) == (
        "pocketsphinx",
        f"{MISSING}kyutai/a v2: cannot be reached",
    )


@needs_moshi
def test_without_a_gpu_the_hub_is_not_asked(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "ask", lambda *asked: pytest.fail("the hub was asked"))
    chosen = choose(EngineSettings())
    assert (chosen.kind, chosen.why) == ("pocketsphinx", f"{MISSING}there is no NVIDIA driver")


def test_all_that_is_missing_is_said_at_once(no_gpu: None, no_moshi: None) -> None:
    assert choose(EngineSettings()).why == f"{MISSING}there is no NVIDIA driver; {NO_MOSHI}"


def test_a_gpu_without_moshi(no_moshi: None) -> None:
    chosen = choose(EngineSettings())
    assert (chosen.kind, chosen.why) == ("pocketsphinx", f"{MISSING}{NO_MOSHI}")


@needs_moshi
@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("cpu", 'engine.device is "cpu"'),
        ("cuda:1", "engine.device is 'cuda:1', and there is one GPU, counted from cuda:0"),
    ],
)
def test_a_device_that_is_no_gpu_here(setting: str, why: str) -> None:
    chosen = choose(EngineSettings(device=setting))
    assert (chosen.kind, chosen.why) == ("pocketsphinx", f"{MISSING}{why}")


def test_what_was_chosen_is_built_without_choosing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(slots=2)
    chosen = choice.Choice("tones", "bridge.engine.tones:make", "because")
    monkeypatch.setattr(choice, "choose", lambda settings: pytest.fail("chosen again"))
    assert build(settings, chosen).name == "tones"


def test_a_function_that_is_not_there() -> None:
    with pytest.raises(EngineUnavailable) as e:
        build(EngineSettings(kind="bridge.engine.tones:nothing"))
    assert str(e.value) == (
        "engine.kind = 'bridge.engine.tones:nothing' cannot be imported: module "
        "'bridge.engine.tones' has no attribute 'nothing'"
    )


@needs_moshi
def test_choosing_imports_nothing_heavy(tmp_path: Path) -> None:
    """Not even when Kyutai is chosen: torch belongs into the engine's own process."""
    folder = tiny_checkpoint.write(tmp_path)
    code = (
        "import sys; from bridge.config import EngineSettings\n"
        "from bridge.engine import choice, device\n"
        "device.gpus = lambda: (device.Gpu(0, 'a GPU', 1, 1, (9, 0)),)\n"
        f"assert choice.choose(EngineSettings(model={str(folder)!r})).kind == 'kyutai'\n"
        "heavy = {'torch', 'moshi', 'huggingface_hub', 'requests', 'sentencepiece'}\n"
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    root = str(Path(choice.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "\n", "")
