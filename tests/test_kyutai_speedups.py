"""Each speed-up says what moshi's own way says, and can be left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("moshi", reason="moshi is not installed: pip install 'callscribe[kyutai]'")

import torch  # noqa: E402

from bridge.config_media import EngineSettings, Speedup  # noqa: E402
from bridge.engine import kyutai, kyutai_load, kyutai_speedups  # noqa: E402
from bridge.engine.checkpoint import find  # noqa: E402
from bridge.engine.kyutai import KyutaiRows  # noqa: E402
from bridge.engine.kyutai_measure import RawStep  # noqa: E402
from bridge.engine.kyutai_random import write  # noqa: E402
from bridge.engine.kyutai_speedups import ALL, Speedups  # noqa: E402
from bridge.errors import EngineUnavailable  # noqa: E402
from tests.kyutai_reference import (  # noqa: E402
    Board,
    Call,
    Oracle,
    Reference,
    agrees,
    assert_agree,
)
from tests.replayed import Recording, ReplayedGraphs  # noqa: E402

HEADS = 4
POOL = [(seed, 15 + 11 * (seed % 8)) for seed in range(10)]
Load = Callable[..., KyutaiRows]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), heads=True)


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As kyutai/stt-2.6b-en: a prefix of 12.5 frames, no heads."""
    stt = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}
    return write(tmp_path_factory.mktemp("prefixed"), heads=False, seed=1, stt_config=stt)


@pytest.fixture(scope="module")
def oracles(plain: Path, prefixed: Path) -> dict[str, Oracle]:
    return {
        "plain": Oracle(Reference(plain, heads=HEADS)),
        "prefixed": Oracle(Reference(prefixed, heads=0)),
    }


@pytest.fixture
def load(plain: Path, prefixed: Path) -> Iterator[Load]:
    made: list[KyutaiRows] = []

    def make(which: str, slots: int, speedups: Iterable[str] = ALL) -> KyutaiRows:
        found = find(str({"plain": plain, "prefixed": prefixed}[which]))
        made.append(
            kyutai_load.load(found, slots=slots, device="cpu", threads=1, speedups=list(speedups))
        )
        return made[-1]

    yield make
    for rows in made:
        rows.close()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is recorded and replayed, as by a GPU."""
    monkeypatch.setattr(kyutai, "graphs_for", lambda device: ReplayedGraphs)


def test_the_names_are_the_settings() -> None:
    assert set(get_args(Speedup)) == set(ALL)
    assert set(EngineSettings().speedups) == set(ALL)


@pytest.mark.parametrize("which", ["plain", "prefixed"])
@pytest.mark.parametrize("names", [(), *((name,) for name in ALL if name != "graph")])
def test_each_says_what_the_reference_says(
    which: str, names: tuple[str, ...], load: Load, oracles: dict[str, Oracle]
) -> None:
    oracle, pool = oracles[which], POOL[7:] + POOL[:2]
    board = Board(load(which, 3, names), seed=1)
    calls = board.play(*(oracle.audio(*name) for name in pool))
    assert_agree(calls, [oracle.said(*name) for name in pool])


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("which", ["plain", "prefixed"])
def test_a_step_that_is_replayed_says_what_the_reference_says(
    which: str, slots: int, load: Load, oracles: dict[str, Oracle], graphs: None
) -> None:
    """Nothing that a step does may depend on what Python knows of the last one, or wait."""
    oracle, pool = oracles[which], POOL[7:] + POOL[:2]
    rows = load(which, slots)
    made: Any = rows._graphs
    made.ran.clear()
    board = Board(rows, seed=2)
    calls = board.play(*(oracle.audio(*name) for name in pool))
    assert_agree(calls, [oracle.said(*name) for name in pool])
    assert len(made.ran) == board.steps
    assert set(made.ran) == ({8, 16, 24} if which == "plain" else {16, 24})  # a prefix is heard


def test_a_step_without_the_other_speedups_is_a_graph_too(
    load: Load, oracles: dict[str, Oracle], graphs: None
) -> None:
    rows = load("plain", 3, ["graph"])
    assert rows._graphs is not None and rows._speedups.reaches == (24,)
    calls = Board(rows).play(*(oracles["plain"].audio(*name) for name in POOL[7:]))
    assert_agree(calls, [oracles["plain"].said(*name) for name in POOL[7:]])


def test_what_waits_for_the_device_is_no_graph() -> None:
    values = torch.arange(3.0)
    for waits in (
        lambda: values.sum().item(),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: torch.tensor([1.0]) + values,
        lambda: bool(values.any()),
    ):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            with Recording():
                waits()


def wrong(step: Callable[[int], None], variants: Iterable[int]) -> ReplayedGraphs:
    """Graphs of which one repeats what another does."""
    made = ReplayedGraphs(step, variants)
    made._graphs[24] = made._graphs[8]
    return made


def unable(step: Callable[[int], None], variants: Iterable[int]) -> ReplayedGraphs:
    step(24)
    raise RuntimeError("CUDA error: operation not permitted\nmore about it")


def without_memory(step: Callable[[int], None], variants: Iterable[int]) -> ReplayedGraphs:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("make", "why"), [(unable, "CUDA error: operation not permitted"), (wrong, "it says something")]
)
def test_graphs_that_fail_or_lie_are_done_without(
    make: object,
    why: str,
    load: Load,
    oracles: dict[str, Oracle],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kyutai, "graphs_for", lambda device: make)
    rows = load("plain", 2)
    assert rows._graphs is None
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"a step cannot be one CUDA graph here, and takes longer: {why}"
    )
    calls = Board(rows).play(*(oracles["plain"].audio(*name) for name in POOL[8:]))
    assert_agree(calls, [oracles["plain"].said(*name) for name in POOL[8:]])


def test_graphs_that_find_no_memory_are_no_reason_to_do_without(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kyutai, "graphs_for", lambda device: without_memory)
    with pytest.raises(EngineUnavailable, match=r"^cpu has not enough memory for .* with 2 slots"):
        load("plain", 2)


def test_only_so_much_of_a_ring_is_read_as_is_needed(load: Load) -> None:
    rows = load("plain", 3)
    asked: list[int] = []
    ask = rows._speedups.reach_for
    rows._speedups.reach_for = lambda frames: asked.append(ask(frames)) or asked[-1]  # type: ignore
    board = Board(rows)
    long, short = (Call(np.zeros(1920 * 40, np.float32)) for _ in range(2))
    board.on = [long, short, None]
    for _ in range(8):
        board.step(0)
    board.step(1)  # the other one waits
    for _ in range(20):
        board.step(0)
    assert asked == [8] * 7 + [16, 8] + [16] * 7 + [24] * 13


def test_a_reach_that_is_too_short_is_seen(
    load: Load, oracles: dict[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the tests above could not fail."""
    monkeypatch.setattr(Speedups, "reach_for", lambda self, frames: 8)
    (call,) = Board(load("plain", 1)).play(oracles["plain"].audio(*POOL[7]))
    with pytest.raises(AssertionError):
        agrees(call, oracles["plain"].said(*POOL[7]))


@pytest.mark.parametrize(
    ("context", "reaches"),
    [(24, (8, 16, 24)), (375, (48, 96, 192, 375)), (750, (96, 192, 376, 750))],
)
def test_reaches_are_few(
    context: int, reaches: tuple[int, ...], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load("plain", 1)
    monkeypatch.setattr(rows._gen.lm_model, "context", context)
    monkeypatch.setattr(kyutai_speedups, "SharedAttention", lambda transformer: None)
    assert Speedups(rows._mimi, rows._gen.lm_model, ["attention"]).reaches == reaches


def test_what_is_not_known_is_not_sped_up(load: Load) -> None:
    rows = load("plain", 1, [])
    rows._gen.lm_model.transformer.layers[1].self_attn.kv_repeat = 2
    with pytest.raises(EngineUnavailable) as refused:
        Speedups(rows._mimi, rows._gen.lm_model, ["attention"])
    assert str(refused.value) == (
        "this model's attention is of another kind: take attention out of engine.speedups"
    )
    rows._mimi.quantizer = torch.nn.Identity()
    with pytest.raises(EngineUnavailable, match="quantiser is of another kind: take codes out of"):
        Speedups(rows._mimi, rows._gen.lm_model, ["codes"])


def done_by(run: Callable[[], None]) -> Recording:
    with torch.inference_mode(), Recording() as recording:
        run()
    return recording


def test_there_are_fewer_operations_than_moshis(load: Load) -> None:
    """On a GPU each costs as much as the sums of a small batch."""
    rows = load("plain", 2, ["attention", "codes"])
    raw = RawStep(rows)
    ours, moshis = done_by(lambda: rows._run(8)), done_by(raw)
    assert ours.work < 0.8 * moshis.work


def test_moshis_own_step_is_not_sped_up(load: Load) -> None:
    """And leaves the speed-ups as they were."""
    raws = []
    for names in ((), ALL):
        rows = load("plain", 2, names)
        before = done_by(lambda: rows._run(8))  # noqa: B023 - called at once
        noise = torch.rand(2, 1, 1920)
        with rows.moshis_own() as (mimi, gen), Recording() as recording:
            gen.step_with_extra_heads(mimi.encode(noise))
        raws.append([func for func, *_ in recording.done])
        after = done_by(lambda: rows._run(8))  # noqa: B023
        assert [func for func, *_ in after.done] == [func for func, *_ in before.done]
    assert raws[0] == raws[1]
