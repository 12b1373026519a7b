"""Rows of a batch hear what each call would hear alone, token for token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("moshi", reason="moshi is not installed: pip install 'callscribe[kyutai]'")

import torch  # noqa: E402
from moshi.models import loaders  # noqa: E402
from moshi.models.lm import LMGen  # noqa: E402
from moshi.run_inference import InferenceState  # noqa: E402
from moshi.utils.compile import no_compile  # noqa: E402

from bridge.engine import kyutai_load  # noqa: E402
from bridge.engine.checkpoint import find, read_config, state_bytes  # noqa: E402
from bridge.engine.kyutai import KyutaiRows, drop_decoder  # noqa: E402
from bridge.engine.kyutai_measure import RawStep  # noqa: E402
from bridge.engine.kyutai_random import (  # noqa: E402
    config,
    mimi_config,
    random_rows,
    sound,
    write,
)
from bridge.engine.kyutai_state import RowState  # noqa: E402
from bridge.errors import EngineUnavailable  # noqa: E402
from tests.kyutai_reference import (  # noqa: E402
    FRAME,
    Audio,
    Board,
    Call,
    Oracle,
    Reference,
    agrees,
    assert_agree,
    assert_close_in_bfloat16,
    forced,
)

CONTEXT = 24  # steps, of the tiny model; of its Mimi 10
HEADS = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Layers this small only get slower with more, the more so on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As kyutai/stt-1b-en_fr-candle: pause heads, no prefix."""
    return write(tmp_path_factory.mktemp("plain"), heads=True)


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As kyutai/stt-2.6b-en: a prefix of 12.5 frames, no heads."""
    stt = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}
    return write(tmp_path_factory.mktemp("prefixed"), heads=False, seed=1, stt_config=stt)


@pytest.fixture(scope="module")
def oracle(plain: Path) -> Oracle:
    return Oracle(Reference(plain, heads=HEADS))


@pytest.fixture(scope="module")
def prefixed_oracle(prefixed: Path) -> Oracle:
    return Oracle(Reference(prefixed, heads=0))


Load = Callable[..., KyutaiRows]


@pytest.fixture
def load() -> Iterator[Load]:
    made: list[KyutaiRows] = []

    def make(directory: Path, slots: int) -> KyutaiRows:
        made.append(kyutai_load.load(find(str(directory)), slots=slots, device="cpu", threads=1))
        return made[-1]

    yield make
    for rows in made:
        rows.close()


# -- the test tests something ---------------------------------------------------------------------


def test_what_is_said_depends_on_what_is_heard(oracle: Oracle) -> None:
    said = [oracle.said(seed, frames) for seed, frames in POOL]
    codes = np.concatenate([s.codes for s in said])
    tokens = np.concatenate([s.tokens for s in said])
    for book in codes.T:
        counts = np.bincount(book, minlength=64)
        assert (counts > 0).sum() > 40
        assert counts.max() < len(codes) / 4
    assert len(set(tokens)) > 60
    assert 0.2 < (tokens == 3).mean() < 0.6
    assert 0.1 < (tokens == 0).mean() < 0.4


def test_what_is_said_depends_on_all_of_the_context(oracle: Oracle) -> None:
    """Or rings that are wrong in places would pass."""
    audio = oracle.audio(*POOL[0])
    said = oracle.said(*POOL[0])
    far = 12  # frames: Mimi's two layers see 2 × 10, the model's two layers more than we have
    early = audio.copy()
    early[: FRAME // 2] = 0.3
    other = oracle.reference.hear(early)
    assert (other.codes[:far] != said.codes[:far]).any(axis=1).all()
    assert (other.tokens[far:] != said.tokens[far:]).any()


def test_the_reference_is_what_run_inference_does(oracle: Oracle, plain: Path) -> None:
    seed, frames = POOL[1]
    sampled: list[int] = []
    reference = oracle.reference
    state = InferenceState(
        reference.info, reference.mimi, reference.info.get_text_tokenizer(), reference.lm,
        1, 1.0, "cpu", on_text_hook=lambda tokens: sampled.append(int(tokens[0])),
        **reference.info.lm_gen_config,
    )  # fmt: skip
    with torch.no_grad(), no_compile():
        state.run(torch.from_numpy(oracle.audio(seed, frames))[None, None])
    reference.mimi._stop_streaming()
    state.lm_gen._stop_streaming()
    reference.lm._stop_streaming()
    assert sampled[1 : frames + 1] == list(oracle.said(seed, frames).tokens)


# -- exactness ------------------------------------------------------------------------------------

POOL = [(seed, 15 + 11 * (seed % 8)) for seed in range(10)]  # 15…92 frames: rings wrap 4 times


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_a_call_hears_on_a_row_what_it_hears_alone(
    plain: Path, oracle: Oracle, load: Load, slots: int
) -> None:
    names = (POOL * 2)[: 2 + 4 * slots]
    board = Board(load(plain, slots), seed=slots)
    calls = board.play(*(oracle.audio(*name) for name in names))
    assert_agree(calls, [oracle.said(*name) for name in names])
    assert board.steps < sum(frames for _, frames in names) or slots == 1, "never two at once"


@pytest.mark.parametrize("slots", [1, 3])
def test_a_prefix_that_ends_within_a_frame_is_heard_before_each_call(
    prefixed: Path, prefixed_oracle: Oracle, load: Load, slots: int
) -> None:
    names = [POOL[i] for i in (8, 9, 3, 0, 1, 2)[: 2 * slots]]
    rows = load(prefixed, slots)
    assert (rows.facts.prefix, rows.facts.prefix % FRAME, rows.facts.heads) == (24000, 960, 0)
    calls = Board(rows).play(*(prefixed_oracle.audio(*name) for name in names))
    assert_agree(calls, [prefixed_oracle.said(*name) for name in names])


def test_a_burst_is_heard_as_if_it_had_come_slowly(plain: Path, oracle: Oracle, load: Load) -> None:
    board = Board(load(plain, 3))
    board.on = [Call(oracle.audio(*name)) for name in POOL[4:7]]
    calls = [call for call in board.on if call]
    for rows in ([0], [1, 2], [0], [2], [0, 1, 2]):  # each a while, the others wait
        for _ in range(1 if len(rows) == 3 else 14):
            board.step(*rows)
    assert [len(call.tokens) for call in calls] == [29, 15, 29]
    assert_agree(calls, [oracle.said(*name) for name in POOL[4:7]])


def test_a_call_longer_than_any_context_costs_no_more_and_stays_exact(
    plain: Path, oracle: Oracle, load: Load
) -> None:
    frames = 20 * CONTEXT
    rows = load(plain, 1)
    state = rows._state
    before = state.slot_bytes, [cell.current.shape for cell in state._cells]
    board = Board(rows)
    (call,) = board.play(oracle.audio(99, frames), pause=0.0)
    assert (state.slot_bytes, [cell.current.shape for cell in state._cells]) == before
    assert len(call.tokens) == frames
    agrees(call, oracle.said(99, frames))  # of so many decisions one may be a tie


NEIGHBOURS: dict[str, Audio] = {
    "noise": np.random.default_rng(1).normal(0, 0.5, 40 * FRAME).astype(np.float32),
    "NaN": np.full(40 * FRAME, np.nan, np.float32),
    "infinity": np.full(40 * FRAME, -np.inf, np.float32),
    "huge": np.full(40 * FRAME, 3e38, np.float32),
    "digital zero": np.zeros(40 * FRAME, np.float32),
    "DC": np.full(40 * FRAME, 0.9, np.float32),
    "clipping": np.sign(np.sin(np.arange(40 * FRAME) / 9)).astype(np.float32),
}


def test_whatever_the_others_hear_is_theirs_alone(plain: Path, oracle: Oracle, load: Load) -> None:
    """And it does not outlive them: the calls that follow on their rows are right, too."""
    board = Board(load(plain, 1 + len(NEIGHBOURS)))
    victim = Call(oracle.audio(*POOL[5]))
    bad = [Call(audio) for audio in NEIGHBOURS.values()]
    board.on = [victim, *bad]
    for _ in range(40):
        board.step(*range(len(board.on)))
    agrees(victim, oracle.said(*POOL[5]))
    for call in bad:
        assert np.isfinite(call.probability).all() and np.isfinite(call.pauses).all()
    board.on[1:] = [None] * len(bad)
    names = POOL[8:] * 4
    after = board.play(*(oracle.audio(*name) for name in names))
    assert_agree(after, [oracle.said(*name) for name in names])


def test_samples_that_are_no_numbers_are_clicks_and_those_beyond_are_clipped(
    plain: Path, oracle: Oracle, load: Load
) -> None:
    audio = oracle.audio(*POOL[3])[: 12 * FRAME]
    dice = np.random.default_rng(0)
    bad, mended = audio.copy(), audio.copy()
    for value, instead in ((np.nan, 0), (np.inf, 0), (-np.inf, 0), (1.5, 1), (-3e38, -1)):
        at = dice.integers(0, len(audio), 30)
        bad[at], mended[at] = value, instead
    (call,) = Board(load(plain, 1)).play(bad)
    agrees(call, oracle.reference.hear(mended))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_the_references_when_its_codes_and_tokens_are_given(
    plain: Path, dtype: str
) -> None:
    """What tests/gpu asks of the true sizes, where bfloat16 does not give equal tokens."""
    reference = Reference(plain, heads=HEADS, dtype=getattr(torch, dtype))
    said = [reference.hear(sound(3 * CONTEXT * FRAME / 24000, seed)) for seed in range(3)]
    rows = kyutai_load.load(find(str(plain)), slots=4, device="cpu", dtype=dtype, threads=1)
    found = forced(rows, said)
    rows.close()
    assert_close_in_bfloat16(found, said)
    if dtype == "float32":
        np.testing.assert_allclose(found, np.stack([s.logits for s in said]), atol=1e-3)


# -- the state of a row ---------------------------------------------------------------------------


def state_of(reference: Reference, frames: int) -> dict[str, torch.Tensor]:
    """What the reference has before its first frame of a call, after `frames` of prefix."""
    gen = LMGen(reference.lm, condition_tensors={}, **reference.info.lm_gen_config)
    silence = torch.zeros(1, 1, FRAME)
    codes = torch.zeros(1, reference.lm.n_q, 1, dtype=torch.long)
    with torch.no_grad(), no_compile(), reference.mimi.streaming(1), gen.streaming(1):
        chunks = [reference.mimi.encode(silence) for _ in range(frames)]
        for chunk in [*chunks[:1], *chunks] or [codes]:
            gen.step(chunk)
        return tensors(reference.mimi, gen, reference.lm)


def tensors(*modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of every state, a row's ring only as far as it is written."""
    found: dict[str, torch.Tensor] = {}
    for i, module in enumerate(modules):
        for name, state in module.get_streaming_state().items():  # type: ignore[operator]
            if name.startswith("decoder") or name.startswith("upsample"):
                continue
            for key, value in vars(state).items():
                if isinstance(value, torch.Tensor):
                    found[f"{i} {name}.{key}"] = value.clone()
                elif key == "kv_cache":
                    end = int(value.end_offset[0])
                    found[f"{i} {name}.end"] = value.end_offset.clone()
                    found[f"{i} {name}.ring"] = value.cache[:, :, :, :end].clone()
    return found


@pytest.mark.parametrize("which", ["plain", "prefixed"])
def test_a_fresh_row_is_where_the_reference_is_before_its_first_block(
    which: str, request: pytest.FixtureRequest, load: Load
) -> None:
    directory: Path = request.getfixturevalue(which)
    frames, heads = (0, HEADS) if which == "plain" else (12, 0)
    rows = load(directory, 1)
    Board(rows).play(sound(3.0, seed=1))
    with torch.inference_mode():
        rows._state.restore(torch.ones(1, dtype=torch.bool))
    ours = tensors(rows._mimi, rows._gen, rows._gen.lm_model)
    theirs = state_of(Reference(directory, heads=heads), frames)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name == "1 .cache":  # of codes it holds those to come, which the next step overwrites
            assert torch.equal(ours[name][:, 0, 1 - frames % 2], value[:, 0, 1 - frames % 2])
        else:
            assert torch.allclose(ours[name], value, atol=1e-5), name


def test_a_row_that_is_not_active_does_not_move(plain: Path, oracle: Oracle, load: Load) -> None:
    board = Board(load(plain, 2))
    board.on = [Call(oracle.audio(*name)) for name in POOL[8:]]
    board.step(0, 1)
    cells = board.rows._state._cells
    before = [cell.current.select(cell.dim, 0).clone() for cell in cells]
    board.step(1)
    for cell, was in zip(cells, before, strict=True):
        now = cell.current.select(cell.dim, 0).clone()
        if cell.dim == 1:  # a ring: but for the place that its next step writes first
            width = 2 if cell.owner.capacity != CONTEXT else 1
            at = width * (2 if width == 1 else 1)  # Mimi has no initial step
            places = torch.arange(at, at + width) % cell.owner.capacity
            now[:, :, places] = was[:, :, places] = 0
        assert torch.equal(now, was), cell.name


@pytest.mark.parametrize("size", ["tiny", "1b", "2.6b"])
def test_a_slot_takes_what_the_arithmetic_says(size: str) -> None:
    raw, mimi_raw = config(size), mimi_config(size)
    shape = read_config(raw, mimi_raw)
    mimi = loaders.get_mimi(None, mimi_raw, num_codebooks=raw["n_q"]).to("meta")
    drop_decoder(mimi)
    unwanted = ("name", "model_type", "lm_gen_config", "stt_config")
    kwargs = {k: v for k, v in raw.items() if not k.endswith(unwanted)}
    lm = loaders.get_moshi_lm(None, kwargs, "meta", torch.bfloat16)
    gen = LMGen(lm, condition_tensors={})
    with mimi.streaming(1), gen.streaming(1):
        counted = RowState([mimi, gen, lm], 1).slot_bytes
    assert counted == state_bytes(shape, "bfloat16")


def test_a_state_that_a_later_moshi_adds_stops_the_loading(plain: Path, load: Load) -> None:
    rows = load(plain, 2)
    state = rows._mimi._streaming_state
    assert state is not None
    state.novelty = torch.zeros(3)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"not known here: _MimiState.novelty, \[3\]; use moshi"):
        RowState([rows._mimi], 2)


def test_a_state_that_moves_is_put_back_and_leaks_nothing(
    plain: Path, oracle: Oracle, load: Load
) -> None:
    board = Board(load(plain, 1))
    state = board.rows._gen.lm_model.transformer._streaming_state
    assert state is not None
    board.play(oracle.audio(*POOL[8]))
    was, state.offsets = state.offsets, state.offsets.clone()
    (call,) = board.play(oracle.audio(*POOL[9]))
    assert state.offsets is was
    agrees(call, oracle.said(*POOL[9]))


# -- what a step gives ----------------------------------------------------------------------------


def test_energy_is_the_variance_of_the_block(plain: Path, load: Load) -> None:
    board = Board(load(plain, 2))
    square = np.tile(np.array([0.5, -0.5], np.float32), FRAME // 2)
    board.on = [Call(square + 0.25), Call(np.full(FRAME, 0.5, np.float32))]
    board.step(0, 1)
    assert board.arrays.energy == pytest.approx([0.25, 0.0], abs=1e-6)


@pytest.mark.parametrize("where", ["text_linear", "emb.0"])
def test_a_broken_model_says_so_by_its_probability(plain: Path, load: Load, where: str) -> None:
    board = Board(load(plain, 2))
    with torch.inference_mode():
        board.rows._gen.lm_model.get_parameter(f"{where}.weight").fill_(torch.nan)
    board.on[1] = Call(np.zeros(FRAME, np.float32))
    board.step(1)
    assert np.isnan(board.arrays.probability[1])


def test_a_raw_step_moves_all_rows_and_leaves_nothing_to_the_calls_after(
    plain: Path, oracle: Oracle, load: Load
) -> None:
    board = Board(load(plain, 2))
    board.on[0] = Call(oracle.audio(*POOL[8]))
    board.step(0)
    raw_step = RawStep(board.rows)
    moved = board.rows._gen._streaming_state
    assert moved is not None
    before = moved.offsets.clone()
    for _ in range(3):
        raw_step()
    assert torch.equal(moved.offsets, before + 3)
    board.on = [None, None]
    calls = board.play(oracle.audio(*POOL[8]), oracle.audio(*POOL[9]))
    assert_agree(calls, [oracle.said(*POOL[8]), oracle.said(*POOL[9])])


# -- loading --------------------------------------------------------------------------------------


def test_facts_are_those_of_the_checkpoint(plain: Path, prefixed: Path, load: Load) -> None:
    facts = load(plain, 2).facts
    assert (facts.name, facts.slots, facts.heads) == (str(plain), 2, HEADS)
    assert (facts.tokenizer, facts.delay, facts.prefix) == (str(plain / "tokenizer.model"), 0.5, 0)
    assert (facts.rate, facts.block, facts.padding, facts.boundary) == (24000, 1920, 3, 0)
    assert (facts.device, facts.dtype) == ("cpu", "float32")
    assert facts.slot_bytes == state_bytes(find(str(plain)).shape, "float32")
    facts = load(prefixed, 1).facts
    assert (facts.delay, facts.prefix, facts.heads) == (2.5, 24000, 0)


def test_the_engines_process_makes_rows_of_its_options(plain: Path) -> None:
    told: list[str] = []
    options = {
        "model": str(plain), "revision": None, "device": "cpu", "dtype": "bfloat16",
        "slots": "auto", "reserve_gb": 0.5, "threads": 1, "speedups": ["codes"],
    }  # fmt: skip
    rows = kyutai_load.make(options, told.append)
    try:
        assert (rows.facts.slots, rows.facts.dtype) == (kyutai_load.CPU_SLOTS, "bfloat16")
        assert told == [
            "reading Mimi to cpu",
            f"reading the weights of {plain}",
            "making 4 slots and warming up",
        ]
        Board(rows).play(sound(1.0, seed=1))
    finally:
        rows.close()
        rows.close()


def test_random_rows_run_and_take_their_tokenizer_with_them() -> None:
    rows = random_rows("tiny", 2, device="cpu")
    try:
        assert (rows.facts.heads, rows.facts.delay) == (HEADS, 0.5)
        assert Path(rows.facts.tokenizer).exists()
        assert 100_000 < rows.weight_bytes < 1_000_000
        calls = Board(rows).play(sound(2.0, seed=1))
        assert len(set(calls[0].tokens)) > 5
    finally:
        rows.close()
    assert not Path(rows.facts.tokenizer).parent.exists()
    with pytest.raises(EngineUnavailable, match=r"^1000000000 slots of random tiny on cpu take "):
        random_rows("tiny", 10**9, device="cpu")


def test_weights_that_are_no_numbers_are_refused(plain: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["out_norm.alpha"][0, 0, 3] = torch.nan
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(EngineUnavailable) as refused:
        kyutai_load.load(find(str(tmp_path)), slots=1, device="cpu", threads=1)
    assert str(refused.value) == (
        f"the weights of {tmp_path} give no numbers in float32 (NaN): "
        "fetch them again, or set another engine.dtype"
    )


@pytest.mark.parametrize(
    ("device", "built", "seen", "sentence"),
    [
        ("cuda", None, 0, "engine.device is cuda and this torch was built without CUDA: "
         'install one with it (https://pytorch.org), or set engine.device = "cpu"'),
        ("cuda", "12.8", 0, "engine.device is cuda and torch sees no GPU: "
         'look at nvidia-smi, or set engine.device = "cpu"'),
        ("cuda:2", "12.8", 2, "engine.device is cuda:2 and torch sees 2 GPUs: "
         'look at nvidia-smi, or set engine.device = "cpu"'),
    ],
)  # fmt: skip
def test_a_gpu_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, built: str | None, seen: int, sentence: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(EngineUnavailable) as refused:
        kyutai_load.resolve_device(device)
    assert str(refused.value) == sentence


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for seen, device, dtype in ((0, "cpu", torch.float32), (2, "cuda:0", torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        where = kyutai_load.resolve_device("auto")
        assert where == torch.device(device)
        assert kyutai_load.resolve_dtype("auto", where) == dtype
        assert kyutai_load.resolve_dtype("float16", where) == torch.float16


def test_auto_fills_what_is_free_but_for_the_reserve() -> None:
    fit = kyutai_load.fitting_slots
    assert fit("auto", 100, 1050, 200, "x") == 8
    assert fit("auto", 100, 1050, 200, "x", most=4) == 4
    assert fit(10, 100, 1050, 200, "x") == 10  # who names a number has thought of the rest


@pytest.mark.parametrize(
    ("slots", "free", "sentence"),
    [
        (64, 5.5, "64 slots of stt-1b on cuda:0 take 6.40 GB and 5.50 GB is free: "
         '55 fit; set engine.slots = 55, or "auto"'),
        (1, 0.05, "no slot of stt-1b on cuda:0 fits: one takes 0.10 GB and 0.05 GB is free; "
         "stop what else uses the memory, or take a smaller engine.model"),
        ("auto", 1.05, "no slot of stt-1b on cuda:0 fits: one takes 0.10 GB and 1.05 GB is free "
         "beside the reserve of 2.00 GB; "
         "stop what else uses the memory, or take a smaller engine.model"),
    ],
)  # fmt: skip
def test_too_little_memory_is_told(slots: kyutai_load.Slots, free: float, sentence: str) -> None:
    with pytest.raises(EngineUnavailable) as refused:
        kyutai_load.fitting_slots(slots, 10**8, int(free * 1e9), 2 * 10**9, "stt-1b on cuda:0")
    assert str(refused.value) == sentence


def test_memory_that_runs_out_on_the_way_is_told(
    monkeypatch: pytest.MonkeyPatch, plain: Path, load: Load
) -> None:
    def no_room(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(kyutai_load, "KyutaiRows", no_room)
    with pytest.raises(EngineUnavailable) as refused:
        load(plain, 2)
    assert str(refused.value) == (
        f"cpu has not enough memory for {plain} with 2 slots: set fewer engine.slots, stop what "
        "else uses the memory, or take a smaller engine.model"
    )


def test_torch_that_cannot_compile_is_told_and_costs_only_speed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(function: object) -> object:
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nmore")

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.delenv("NO_TORCH_COMPILE", raising=False)
    assert kyutai_load._can_compile(torch.device("cpu")) is False
    assert caplog.messages == []
    assert kyutai_load._can_compile(torch.device("cuda", 0)) is False
    assert caplog.messages == [
        "torch cannot compile here, and steps take a little longer: install a C compiler and "
        "Python's headers (Failed to find C compiler. Please specify via CC)"
    ]


# -- slow -----------------------------------------------------------------------------------------


@pytest.mark.soak
def test_rows_that_are_used_a_thousand_times(plain: Path, oracle: Oracle, load: Load) -> None:
    names = [(seed % 40, 3 + 7 * (seed % 9)) for seed in range(1000)]
    calls = Board(load(plain, 4)).play(*(oracle.audio(*name) for name in names), arrive=0.6)
    assert_agree(calls, [oracle.said(*name) for name in names])


@pytest.mark.soak
def test_a_call_of_ten_thousand_steps(plain: Path, oracle: Oracle, load: Load) -> None:
    board = Board(load(plain, 2))
    (call,) = board.play(oracle.audio(7, 10_000), pause=0.0)
    offsets = board.rows._gen._streaming_state
    assert offsets is not None and 10_001 in offsets.offsets.tolist()
    agrees(call, oracle.said(7, 10_000))
    assert len(set(call.tokens[-500:])) > 30
