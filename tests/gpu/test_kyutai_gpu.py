"""Rows on a GPU: CUDA graphs, compiled parts and true sizes give what the reference gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("moshi", reason="moshi is not installed: pip install 'callscribe[kyutai]'")

import torch  # noqa: E402
from moshi.utils.compile import no_cuda_graph  # noqa: E402

from bridge.engine import kyutai_load  # noqa: E402
from bridge.engine.checkpoint import find  # noqa: E402
from bridge.engine.kyutai_random import sound, write  # noqa: E402
from bridge.engine.kyutai_speedups import ALL  # noqa: E402
from bridge.errors import EngineUnavailable  # noqa: E402
from tests.kyutai_reference import (  # noqa: E402
    FRAME,
    Board,
    Oracle,
    Reference,
    assert_agree,
    assert_close_in_bfloat16,
    forced,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    # torch and its compiler warn of the card that they find; that is not about us.
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(600),
]

HEADS = 4


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Convolutions in float32 throughout: TF32's ten bits would flip codes between batch sizes."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tiny"), heads=True)


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stt = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}
    return write(tmp_path_factory.mktemp("prefixed"), heads=False, stt_config=stt)


@pytest.mark.parametrize(
    ("slots", "speedups"),
    [(1, ALL), (8, ALL), (8, ()), (8, ("attention",)), (8, ("codes",)), (8, ("graph",))],
)
@pytest.mark.parametrize("which", ["tiny", "prefixed"])
def test_a_call_hears_on_a_row_what_it_hears_alone(
    which: str,
    slots: int,
    speedups: tuple[str, ...],
    request: pytest.FixtureRequest,
    no_tf32: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Token for token, in float32: through CUDA graphs, on rows that are used again and again."""
    directory: Path = request.getfixturevalue(which)
    heads = HEADS if which == "tiny" else 0
    oracle = Oracle(Reference(directory, heads=heads, device="cuda"))
    names = [(seed % 10, 15 + 11 * (seed % 8)) for seed in range(5 * slots)]
    rows = kyutai_load.load(
        find(str(directory)), slots=slots, device="cuda", dtype="float32", speedups=speedups
    )
    assert ("graph" in speedups) == (rows._graphs is not None), caplog.text
    calls = Board(rows).play(*(oracle.audio(*name) for name in names))
    rows.close()
    assert_agree(calls, [oracle.said(*name) for name in names])


@pytest.mark.parametrize("speedups", [ALL, ()])
def test_cuda_graphs_change_nothing(tiny: Path, speedups: tuple[str, ...]) -> None:
    """The step's own one, and moshi's where there is none."""
    heard = []
    for graphs in (True, False):
        kept = [name for name in speedups if graphs or name != "graph"]
        rows = kyutai_load.load(
            find(str(tiny)), slots=4, device="cuda", dtype="float32", speedups=kept
        )
        board = Board(rows, seed=1)
        audios = [sound(3.0, seed) for seed in range(8)]
        with nullcontext() if graphs else no_cuda_graph():
            heard.append(board.play(*audios))
        rows.close()
    for with_graphs, without in zip(*heard, strict=True):
        assert with_graphs.tokens == without.tokens
        assert with_graphs.probability == pytest.approx(without.probability, abs=1e-6)
        assert with_graphs.pauses == pytest.approx(np.array(without.pauses), abs=1e-6)


def test_a_true_size_says_the_same_as_a_graph(tmp_path: Path) -> None:
    """1B in bfloat16, every reach of its context: rows of a graph, and of moshi's own way.

    With random weights a near tie in one step is another text from there on, so that only the
    first steps of each call are compared (see `assert_close_in_bfloat16`); 800 steps more must
    give numbers.
    """
    write(tmp_path, "1b", heads=True, device="cuda")
    audios = [sound(64.0, seed) for seed in range(4)]
    heard = []
    for speedups in (ALL, ()):
        rows = kyutai_load.load(
            find(str(tmp_path)), slots=4, device="cuda", dtype="bfloat16", speedups=speedups
        )
        assert (rows._graphs is not None) == bool(speedups)
        heard.append(Board(rows, seed=1).play(*audios, pause=0.05))
        rows.close()
    for ours, moshis in zip(*heard, strict=True):
        assert np.isfinite(ours.probability).all()
        assert len(ours.tokens) == len(moshis.tokens) == 800
        assert ours.probability[0] == pytest.approx(moshis.probability[0], rel=0.1)


@pytest.mark.parametrize("size", ["1b", "2.6b"])
def test_logits_of_the_true_size_are_the_references(
    size: str, tmp_path: Path, no_tf32: None
) -> None:
    """In bfloat16, 70 steps, 8 calls of 16 slots (see `assert_close_in_bfloat16`).

    Given the reference's codes and tokens: with random weights, one other token is the beginning
    of another text, which says nothing of what is right. And the codes, which Mimi makes in
    float32: of a frame all 32 are the reference's, or a near tie parts the residuals from there
    on. Frames with one such tie were expected in one of 300: of 2048 random entries the nearest two
    lie closer than 1e-6 with a probability of about 1e-4, and there are 32 books.
    """
    heads = HEADS if size == "1b" else 0
    stt = {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0}
    write(tmp_path, size, heads=heads > 0, device="cuda", stt_config=stt)
    reference = Reference(tmp_path, heads=heads, device="cuda", dtype=torch.bfloat16)
    audios = [sound(70 * FRAME / 24000, seed) for seed in range(8)]
    said = [reference.hear(audio) for audio in audios]
    del reference
    # Python has no say in a step that is a graph, and `forced` puts words into its mouth.
    rows = kyutai_load.load(
        find(str(tmp_path)),
        slots=16,
        device="cuda",
        dtype="bfloat16",
        speedups=("attention", "codes"),
    )
    found = forced(rows, said)
    codes = []
    encode = rows._mimi.encode

    def watched(pcm: torch.Tensor) -> torch.Tensor:
        codes.append(encode(pcm))
        return codes[-1]

    with mock.patch.object(rows._mimi, "encode", watched):
        Board(rows).play(*audios[:1], pause=0.0)
    rows.close()
    assert_close_in_bfloat16(found, said)
    ours = torch.stack(codes)[:, :, :, 0].cpu().numpy()  # frames, slots, books
    same = (ours == said[0].codes[:, None]).all(axis=2).mean(axis=0).max()
    assert same >= 0.95


def test_the_device_and_its_memory_are_found() -> None:
    where = kyutai_load.resolve_device("auto")
    assert where == torch.device("cuda", 0)
    assert kyutai_load.resolve_dtype("auto", where) is torch.bfloat16
    total = torch.cuda.get_device_properties(0).total_memory
    assert 0 < kyutai_load.free_bytes(where) <= total


def test_slots_that_cannot_fit_are_refused_before_anything_breaks(tiny: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"^100000000 slots of .* fit; set engine.slots = "):
        kyutai_load.load(find(str(tiny)), slots=100_000_000, device="cuda")
