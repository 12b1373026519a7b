"""Kyutai checkpoints without torch: files fetched, checked, and counted in bytes of memory."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.engine import checkpoint
from bridge.engine.checkpoint import cached, find, is_directory
from bridge.engine.checkpoint_config import MIMI, read_config
from bridge.engine.checkpoint_files import count_pieces
from bridge.engine.checkpoint_memory import (
    slot_bytes,
    slots_that_fit,
    state_bytes,
    weight_bytes,
    working_bytes,
)
from bridge.engine.checkpoint_tensors import lm_tensors, mimi_tensors, read_header, torch_key
from bridge.errors import EngineUnavailable

pytest.importorskip("huggingface_hub", reason="needs pip install 'callscribe[kyutai]'")
pytest.importorskip("safetensors", reason="needs pip install 'callscribe[kyutai]'")

import fake_hub
import huggingface_hub.constants
import tiny_checkpoint
from fake_hub import FakeHub
from huggingface_hub.utils import reset_sessions
from tiny_checkpoint import MIMI_NAME, PUBLISHED, PUBLISHED_1B, TINY, TINY_MIMI, TOKENIZER_NAME

MODEL = "kyutai/tiny"
USE = "use a model such as kyutai/stt-1b-en_fr-candle"
AGAIN = "remove it and fetch it again"
STRANGERS = "it does not belong to this config.json; fetch the whole model again"


def sentence(call: Callable[[], object]) -> str:
    with pytest.raises(EngineUnavailable) as e:
        call()
    assert "\n" not in str(e.value)
    return str(e.value)


# -- a directory ----------------------------------------------------------------------------------


def test_a_directory_is_found_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_hub", lambda: pytest.fail("the hub was asked for"))
    folder = tiny_checkpoint.write(tmp_path / "model")
    found = find(str(folder))
    assert (found.name, found.config) == (str(folder), folder / "config.json")
    assert (found.weights, found.mimi) == (folder / "model.safetensors", folder / MIMI_NAME)
    assert (found.tokenizer, found.mimi_config) == (folder / TOKENIZER_NAME, folder / "mimi.json")
    assert found.raw == TINY
    lm, mimi = found.shape.lm, found.shape.mimi
    assert (lm.transformer.layers, lm.transformer.dim, lm.transformer.context) == (2, 16, 6)
    assert (lm.n_q, lm.card, lm.text_card, found.heads) == (3, 16, 40, 4)
    assert (mimi.rate, mimi.block, mimi.stride) == (24000, 1920, 2)
    assert (found.shape.delay, found.shape.prefix) == (0.5, 0)
    assert (found.shape.padding, found.shape.boundary) == (3, 0)
    assert found.shape.languages == ("en", "fr")


def test_a_directory_of_the_home_and_one_named_like_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert not is_directory(MODEL)
    tiny_checkpoint.write(tmp_path / MODEL)
    assert is_directory(MODEL)
    assert find(MODEL).weights.resolve() == tmp_path / MODEL / "model.safetensors"
    assert find(f"~/{MODEL}").name == str(tmp_path / MODEL)
    assert find(f"./{MODEL}").heads == 4


def test_weights_without_pause_heads(tmp_path: Path) -> None:
    assert find(str(tiny_checkpoint.write(tmp_path, heads=0))).heads == 0
    assert find(str(tiny_checkpoint.write(tmp_path, heads=4, extra_heads_num_heads=4))).heads == 4


def test_a_silent_prefix_is_in_samples_as_moshi_counts_them() -> None:
    shape = read_config(PUBLISHED)
    assert (shape.delay, shape.prefix) == (2.5, 24000)


@pytest.mark.parametrize(
    ("name", "tokenizer", "text_card", "languages"),
    [
        ("kyutai/stt-1b-en_fr-candle", "tokenizer_en_fr_audio_8000.model", 8000, ("en", "fr")),
        ("/srv/models/best", "tokenizer_en_audio_4000.model", 4000, ("en",)),
        ("kyutai/stt-2.6b-en", "tokenizer.model", 123, ("en",)),
        ("me/stt-1b-en_fr", "tokenizer.model", 123, ("en", "fr")),
        ("/srv/en_fr", "spm.model", 8000, ("en", "fr")),
        ("/srv/english", "spm.model", 4000, ("en",)),
        ("me/stt-1b-entrained", "spm.model", 123, ("",)),
    ],
)
def test_languages(name: str, tokenizer: str, text_card: int, languages: tuple[str, ...]) -> None:
    config = PUBLISHED | {"tokenizer_name": tokenizer, "text_card": text_card}
    assert read_config(config, name=name).languages == languages


# -- wrong, truncated, of something else ----------------------------------------------------------


def cut(file: str, size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_bytes(path.read_bytes()[:size])

    return change


def put(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def without(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def config(**changes: Any) -> Callable[[Path], None]:
    return put("config.json", json.dumps(TINY | changes).encode())


def tensors(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Weights with other tensors; `change` edits them in place."""

    def edit(folder: Path) -> None:
        shape = read_config(TINY, TINY_MIMI)
        made: dict[str, Any] = (
            mimi_tensors(shape.mimi) if file == MIMI_NAME else lm_tensors(shape.lm, 4)
        )
        change(made)
        tiny_checkpoint.save(folder / file, made)

    return edit


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:b9e9\nsize 1978522200\n"
WRONG = [
    (without("config.json"), "{}/config.json is missing: copy it there; all of a model's files "
     "belong into one directory"),
    (without("model.safetensors"), "{}/model.safetensors is missing: copy it there; all of a "
     "model's files belong into one directory"),
    (without("mimi.json"), "{}/mimi.json is missing: copy it there; all of a model's files belong "
     "into one directory"),
    (put("config.json", b"{"), "{}/config.json is not JSON (Expecting property name enclosed in "
     "double quotes: line 1 column 2 (char 1)); fetch it again"),
    (put("config.json", b"[]"), "{}/config.json is not a table of settings; fetch it again"),
    (cut("model.safetensors", 6), "{}/model.safetensors is no safetensors file; " + AGAIN),
    (cut("model.safetensors", 100), "{}/model.safetensors is incomplete: 100 of at least 2,040 "
     "bytes; " + AGAIN),
    (cut("model.safetensors", 3000), "{}/model.safetensors is incomplete: 3,000 of at least 19,736 "
     "bytes; " + AGAIN),
    (cut(MIMI_NAME, 10000), "{}/mimi.safetensors is incomplete: 10,000 of at least 62,358 bytes; "
     + AGAIN),
    (put("model.safetensors", LFS), "{}/model.safetensors is a pointer of Git LFS, not the file: "
     "run git lfs pull"),
    (put("model.safetensors", b"\xff" * 5000), "{}/model.safetensors is no "
     "safetensors file; " + AGAIN),
    (tensors("model.safetensors", lambda t: t.pop("text_linear.weight")),
     "{}/model.safetensors lacks text_linear.weight; " + STRANGERS),
    (tensors("model.safetensors", dict.clear), "{}/model.safetensors lacks emb.0.weight and 17 "
     "more tensors; " + STRANGERS),
    (tensors("model.safetensors", lambda t: t.update({"linears.0.weight": (1,)})),
     "{}/model.safetensors has linears.0.weight too many; " + STRANGERS),
    (tensors("model.safetensors", lambda t: t.update({"emb.2.weight": (17, 15)})),
     "{}/model.safetensors: emb.2.weight is [17, 15], not [17, 16]; " + STRANGERS),
    (tensors("model.safetensors", lambda t: t.pop("extra_heads.1.weight")),
     "{}/model.safetensors has extra_heads.2.weight and 1 more tensors too many; " + STRANGERS),
    (tensors(MIMI_NAME, lambda t: t.pop("quantizer.rvq_rest.vq.layers.2._codebook.cluster_usage")),
     "{}/mimi.safetensors lacks quantizer.rvq_rest.vq.layers.2._codebook.cluster_usage; "
     + STRANGERS),
    (config(extra_heads_num_heads=5), "{}/model.safetensors lacks extra_heads.4.weight; "
     + STRANGERS),
    (config(num_layers=3), "{}/model.safetensors lacks transformer.layers.2.gating.linear_in."
     "weight and 5 more tensors; " + STRANGERS),
    (put(TOKENIZER_NAME, LFS), "{}/tokenizer_en_fr_audio_40.model is no SentencePiece model, or "
     "not the whole of one; fetch it again"),
    (cut(TOKENIZER_NAME, 301), "{}/tokenizer_en_fr_audio_40.model is no SentencePiece model, or "
     "not the whole of one; fetch it again"),
    (put(TOKENIZER_NAME, tiny_checkpoint.tokenizer(20)), "{}/tokenizer_en_fr_audio_40.model has "
     "20 pieces and the model 40 text tokens; they do not belong together"),
    (config(moshi_name="../model.safetensors"), "{}: moshi_name: expected the name of a file, not "
     "'../model.safetensors'"),
    (config(mimi_name="/etc/mimi"), "{}: mimi_name: expected the name of a file, not '/etc/mimi'"),
    (config(moshi_name=TOKENIZER_NAME), "{}/tokenizer_en_fr_audio_40.model: only safetensors files "
     "can be loaded here; " + USE),
]  # fmt: skip


@pytest.mark.parametrize(("change", "problem"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_loaded_is_said_in_one_sentence(
    change: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    folder = tiny_checkpoint.write(tmp_path / "model")
    find(str(folder))
    change(folder)
    assert sentence(lambda: find(str(folder))) == problem.format(folder)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    problem = f"{tmp_path}/nowhere is no directory; see engine.model"
    assert sentence(lambda: find(f"{tmp_path}/nowhere")) == problem
    assert sentence(lambda: find("kyutai/a..b")) == "kyutai/a..b is no directory; see engine.model"


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    import numpy as np

    folder = tiny_checkpoint.write(tmp_path)
    shapes = lm_tensors(read_config(TINY, TINY_MIMI).lm, 4)
    tiny_checkpoint.save(folder / "model.safetensors", shapes, np.int8)
    assert sentence(lambda: find(str(folder))) == (
        f"{folder}/model.safetensors: emb.0.weight is of type I8: quantised weights cannot be run "
        "here; use the bfloat16 ones"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "tts"}, f"is no speech-to-text model (model_type is 'tts'); {USE}"),
        ({"stt_config": None}, f"is no speech-to-text model (model_type is 'stt'); {USE}"),
        ({"dep_q": 8}, f"is a model that speaks (dep_q is 8), not one that hears; {USE}"),
        ({"lora": True}, f"sets lora, which this engine cannot run; {USE}"),
        ({"quantize": True}, f"sets quantize, which this engine cannot run; {USE}"),
        ({"conditioners": {"a": 1}}, f"sets conditioners, which this engine cannot run; {USE}"),
        ({"causal": False}, f"is not causal, so it cannot hear a call that goes on; {USE}"),
        ({"delays": [0, 1, 1, 1]}, f"delays: expected 4 times 0 (n_q and the text); {USE}"),
        ({"dim": "16"}, "dim: expected a whole number of at least 1, not '16'"),
        ({"context": None}, "context: expected a whole number of at least 1, not None"),
        ({"num_layers": True}, "num_layers: expected a whole number of at least 1, not True"),
        ({"num_heads": 3}, "16 dimensions cannot be divided among num_heads = 3"),
        ({"hidden_scale": "4"}, "hidden_scale: expected a number, not '4'"),
        ({"stt_config": {"audio_delay_seconds": -1}},
         "stt_config: audio_delay_seconds: expected a number, not -1"),
        ({"stt_config": {"audio_delay_seconds": math.nan}},
         "stt_config: audio_delay_seconds: expected a number, not nan"),
        ({"card": 17}, "the model hears 3 codes of 17 values and its Mimi makes 4 of 16; they do "
         "not belong together"),
        ({"n_q": 5, "delays": [0] * 6}, "the model hears 5 codes of 16 values and its Mimi makes 4 "
         "of 16; they do not belong together"),
    ],
)  # fmt: skip
def test_a_configuration_that_this_engine_cannot_run(changes: Any, problem: str) -> None:
    assert sentence(lambda: read_config(TINY | changes, TINY_MIMI)) == f"config.json: {problem}"


@pytest.mark.parametrize(
    ("mimi", "problem"),
    [
        ({}, "seanet: expected a table, not None"),
        (TINY_MIMI | {"sample_rate": 16000}, "16000 Hz in frames of 1280 samples: expected 24000 "
         "Hz and frames of a multiple of 1920 samples"),
        (TINY_MIMI | {"frame_rate": 0}, "24000 Hz in frames of 0 samples: expected 24000 Hz and "
         "frames of a multiple of 1920 samples"),
        (tiny_checkpoint.mimi_with(seanet_ratios=[8, 6, 5.0]),
         "seanet: ratios: expected a list of whole numbers, not [8, 6, 5.0]"),
        (tiny_checkpoint.mimi_with(quantizer_bins=0),
         "quantizer: bins: expected a whole number of at least 1, not 0"),
    ],
)  # fmt: skip
def test_a_mimi_that_this_engine_cannot_run(mimi: Mapping[str, Any], problem: str) -> None:
    assert sentence(lambda: read_config(TINY, mimi)) == f"config.json: Mimi: {problem}"


def header(entries: object, values: int = 0) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(values)


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]} | changes}


HEADERS = [
    (b"", "is no safetensors file"),
    (header(b"{}")[:7], "is no safetensors file"),
    ((10**12).to_bytes(8, "little") + b"{}", "is no safetensors file"),
    (header(b"\xff\xfe"), "is no safetensors file"),
    (header(b"[1]"), "is no safetensors file"),
    (header(b"[" * 5000 + b"]" * 5000), "is no safetensors file"),
    (header({"a": 1}), "is no safetensors file"),
    (header(entry(dtype="X9"), 12), "is no safetensors file"),
    (header(entry(dtype=["BF16"]), 12), "is no safetensors file"),
    (header(entry(shape=[-2, -3]), 12), "is no safetensors file"),
    (header(entry(shape=[2, 3.0]), 12), "is no safetensors file"),
    (header(entry(data_offsets=[0, 11]), 12), "is no safetensors file"),
    (header(entry(data_offsets=[-12, 0]), 12), "is no safetensors file"),
    (header(entry(data_offsets=[]), 12), "is no safetensors file"),
    (header(entry(), 11), "is incomplete: 85 of at least 86 bytes"),
    (header(entry(), 13), "is damaged: its header and its size differ"),
    (header(entry() | {"b": entry()["a"]}, 12), "is damaged: its header and its size differ"),
]


@pytest.mark.parametrize(("content", "problem"), HEADERS, ids=range(len(HEADERS)))
def test_a_header_that_is_wrong(content: bytes, problem: str) -> None:
    wrong = sentence(lambda: read_header(io.BytesIO(content), len(content), "weights"))
    assert wrong == f"weights {problem}; {AGAIN}"


def test_a_header_that_is_right() -> None:
    content = header({"__metadata__": {"format": "pt"}} | entry(), 12)
    found = read_header(io.BytesIO(content), len(content), "weights")
    assert found == {"a": ("BF16", (2, 3))}


@given(st.binary(max_size=64), st.booleans())
def test_no_bytes_do_more_than_be_refused(content: bytes, framed: bool) -> None:
    file = header(content) if framed else content
    try:
        read_header(io.BytesIO(file), len(file), "weights")
    except EngineUnavailable:
        pass
    try:
        assert count_pieces(content) > 0
    except ValueError:
        pass


def test_pieces_are_counted_as_sentencepiece_writes_them() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_writer=model, vocab_size=30, minloglevel=2, num_threads=1,
    )  # fmt: skip
    assert count_pieces(model.getvalue()) == 30
    for size in (0, 1, 100, len(model.getvalue()) - 1):
        with pytest.raises(ValueError):
            count_pieces(model.getvalue()[:size])


# -- the published files and moshi's own word -----------------------------------------------------


def file_size(shapes: Mapping[str, tuple[int, ...]], dtype: str, item: int) -> int:
    """Of a safetensors file as the library writes it: sorted, compact, padded to 8 bytes."""
    entries, end = {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name]) * item
        entries[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [end, end + size]}
        end += size
    length = len(json.dumps(entries, separators=(",", ":")))
    return 8 + length + -length % 8 + end


def test_names_and_shapes_are_those_of_the_published_files() -> None:
    """A safetensors file's size depends on the length of every name and number in its header.

    Sizes and SHA-256 of kyutai/stt-1b-en_fr-candle 095e38f6 (b9e97c53…), kyutai/stt-2.6b-en
    a07aec56 (2471add7…) and their Mimi (09b782f0…), as programs pin them that use these models.
    """
    one, two = read_config(PUBLISHED_1B), read_config(PUBLISHED)
    assert file_size(lm_tensors(one.lm, 4), "BF16", 2) == 1_978_522_200
    assert len(lm_tensors(one.lm, 4)) == 135
    assert file_size(lm_tensors(two.lm, 0), "BF16", 2) == 5_234_275_128
    assert file_size(mimi_tensors(one.mimi), "F32", 4) == 384_644_900


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("transformer.layers.11.self_attn.in_proj_weight",
         "transformer.layers.11.self_attn.in_projs.0.weight"),
        ("transformer.layers.0.self_attn.in_proj.weight",
         "transformer.layers.0.self_attn.in_projs.0.weight"),
        ("transformer.layers.0.self_attn.out_proj.weight",
         "transformer.layers.0.self_attn.out_projs.0.weight"),
        ("transformer.layers.0.self_attn.in_projs.0.weight",
         "transformer.layers.0.self_attn.in_projs.0.weight"),
        ("quantizer.rvq_first.vq.layers.0._codebook.embed_sum",
         "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"),
        ("quantizer.rvq_first.vq.layers.0._codebook.inited",
         "quantizer.rvq_first.vq.layers.0._codebook._initialized"),
        ("quantizer.rvq_first.output_proj.weight", "quantizer.rvq_first.output_proj.weight"),
        ("extra_heads.0.weight", "extra_heads.0.weight"),
        ("embed_sum", "embed_sum"),
    ],
)  # fmt: skip
def test_names_that_moshi_calls_otherwise(name: str, key: str) -> None:
    assert torch_key(name) == key
    assert torch_key(key) == key


def test_files_with_the_newer_names_are_right_too(tmp_path: Path) -> None:
    folder = tiny_checkpoint.write(tmp_path)
    shapes = lm_tensors(read_config(TINY, TINY_MIMI).lm, 4)
    tiny_checkpoint.save(
        folder / "model.safetensors", {torch_key(name): shape for name, shape in shapes.items()}
    )
    assert find(str(folder)).heads == 4


LM_CHANGES: list[dict[str, Any]] = [
    {},
    {"extra_heads_num_heads": 4},
    {"depformer_multi_linear": False, "gating": "none", "norm": "layer_norm", "bias_proj": True,
     "layer_scale": 0.1, "text_card_out": 30, "hidden_scale": 4},
    {"kv_repeat": 2, "hidden_scale": 4, "dim": 32},
]  # fmt: skip


@pytest.mark.parametrize("changes", LM_CHANGES, ids=range(len(LM_CHANGES)))
def test_the_language_model_of_moshi_has_these_tensors(changes: dict[str, Any]) -> None:
    torch, loaders = pytest.importorskip("torch"), pytest.importorskip("moshi.models").loaders
    raw = TINY | changes
    extra = {"moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "model_type",
             "lm_gen_config", "stt_config"}  # fmt: skip
    kwargs = {key: value for key, value in raw.items() if key not in extra}
    with torch.device("meta"):
        model = loaders.get_moshi_lm(None, kwargs, "meta", torch.float32)
    lm = read_config(raw, TINY_MIMI).lm
    expected = lm_tensors(lm, lm.heads)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == {torch_key(name): shape for name, shape in expected.items()}
    # moshi takes the names of the published files itself; strict is load_state_dict's default
    model.load_state_dict({n: torch.zeros(s) for n, s in expected.items()}, assign=True)


MIMI_CHANGES: list[dict[str, Any]] = [
    {},
    {"seanet_true_skip": False, "seanet_n_residual_layers": 2, "seanet_ratios": [8, 6, 4, 5],
     "seanet_compress": 1, "transformer_d_model": 12, "transformer_norm": "rms_norm_f32",
     "transformer_gating": "silu", "transformer_layer_scale": None},
]  # fmt: skip


@pytest.mark.parametrize("changes", MIMI_CHANGES, ids=range(len(MIMI_CHANGES)))
def test_the_mimi_of_moshi_has_these_tensors(changes: dict[str, Any]) -> None:
    loaders = pytest.importorskip("moshi.models").loaders
    raw = tiny_checkpoint.mimi_with(
        seanet_causal=True, seanet_activation="ELU", seanet_norm="none",
        seanet_pad_mode="constant", transformer_conv_layout=True, transformer_max_period=10000,
        transformer_positional_embedding="rope", transformer_input_dimension=8,
        transformer_output_dimensions=[8], quantizer_input_dimension=8,
        quantizer_output_dimension=8, **changes,
    )  # fmt: skip
    model = loaders.get_mimi(None, raw, num_codebooks=3)
    expected = mimi_tensors(read_config(TINY, raw).mimi)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == {torch_key(name): shape for name, shape in expected.items()}


def test_the_mimi_that_is_meant_without_a_name_is_moshis_own() -> None:
    loaders = pytest.importorskip("moshi.models").loaders
    for table, values in MIMI.items():
        theirs = loaders._mimi_config[table]
        if isinstance(values, dict):
            assert values == {key: theirs[key] for key in values}
        else:
            assert values == theirs


# -- memory ---------------------------------------------------------------------------------------


def test_a_slot_of_the_published_1b_counted_by_hand() -> None:
    shape = read_config(PUBLISHED_1B)
    ring = 16 * (2 * 750 * 2048 * 2 + 16) + 8  # keys and values, two positions; one more
    tokens = 33 * 2 * 8 + 8
    mimi_ring = 8 * (2 * 250 * 512 * 4 + 16) + 8
    remembered = [  # channels, samples: kernel − stride
        (1, 6), (64, 2), (32, 0), (64, 4), (128, 2), (64, 0), (128, 5), (256, 2), (128, 0),
        (256, 6), (512, 2), (256, 0), (512, 8), (1024, 2), (512, 2),
    ]  # fmt: skip
    convs = sum(channels * samples * 4 + 1 for channels, samples in remembered)
    assert state_bytes(shape, "bfloat16") == ring + tokens + mimi_ring + convs
    assert 106e6 < state_bytes(shape, "bfloat16") < 107e6
    assert 204e6 < state_bytes(shape, "float32") < 206e6
    assert state_bytes(shape, "float16") == state_bytes(shape, "bfloat16")


def test_working_memory_is_a_tenth_of_the_state() -> None:
    for config in (PUBLISHED, PUBLISHED_1B):
        shape = read_config(config)
        state, working = state_bytes(shape, "bfloat16"), working_bytes(shape, "bfloat16")
        assert state / 25 < working < state / 8
        assert slot_bytes(shape, "bfloat16") == state + working


def test_weights_are_counted_without_the_decoder() -> None:
    shape = read_config(PUBLISHED_1B)
    books = 32 * 2048 * 256 * 4
    encoder = sum(map(math.prod, mimi_tensors(shape.mimi, decoder=False).values())) * 4
    whole = sum(map(math.prod, mimi_tensors(shape.mimi).values())) * 4
    assert 150e6 < whole - encoder < 170e6
    lm = 989_253_632  # parameters, pause heads included
    assert weight_bytes(shape, 4, "bfloat16") == 2 * lm + encoder + books
    assert weight_bytes(shape, 4, "float32") == 4 * lm + encoder + books


def test_slots_fill_what_the_reserve_leaves() -> None:
    assert slots_that_fit(1000, slot=100) == 10
    assert slots_that_fit(1000, slot=100, weights=250, reserve=200) == 5
    assert slots_that_fit(1000, slot=100, weights=2000) == 0
    shape = read_config(PUBLISHED_1B)
    fit = slots_that_fit(
        140 * 2**30, slot=slot_bytes(shape, "bfloat16"),
        weights=weight_bytes(shape, 4, "bfloat16"), reserve=2 * 2**30,
    )  # fmt: skip
    assert 1100 < fit < 1400


# -- the hub --------------------------------------------------------------------------------------


TEMPLATE = "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE"
FILES = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, and an empty cache."""
    constants = huggingface_hub.constants
    folder = tiny_checkpoint.write(tmp_path / "published")
    with fake_hub.serve() as hub:
        hub.files[MODEL] = {path.name: path.read_bytes() for path in folder.iterdir()}
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(TEMPLATE, hub.url + FILES)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # its pauses between attempts, which last a second and more
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield hub
        reset_sessions()


def quiet(line: str) -> None:
    """A progress that nobody wants."""


def test_a_model_is_fetched_once_and_then_nobody_is_asked(hub: FakeHub) -> None:
    lines: list[str] = []
    assert not cached(MODEL)
    found = find(MODEL, progress=lines.append)
    assert (found.name, found.heads, found.raw) == (MODEL, 4, TINY)
    assert lines == [
        f"fetching {name} of {MODEL} from {hub.url}"
        for name in ("config.json", "mimi.json", TOKENIZER_NAME, MIMI_NAME, "model.safetensors")
    ]
    assert cached(MODEL)
    hub.requests.clear()
    assert find(MODEL, progress=lines.append) == found
    assert find(MODEL, download=False) == found
    assert (hub.requests, len(lines)) == ([], 5)


def test_all_files_are_of_one_commit(hub: FakeHub) -> None:
    """The model may be published anew between two of them."""
    find(MODEL, progress=quiet)
    assert f"GET /{MODEL}/resolve/main/config.json" in hub.requests
    assert f"GET /{MODEL}/resolve/{hub.commit}/model.safetensors" in hub.requests


def test_a_revision_is_asked_for_and_kept_apart(hub: FakeHub) -> None:
    find(MODEL, "v2", progress=quiet)
    assert hub.requests[0] == f"HEAD /{MODEL}/resolve/v2/config.json"
    assert cached(MODEL, "v2") and not cached(MODEL)


def test_a_model_that_is_half_there_is_not_cached(hub: FakeHub) -> None:
    weights = hub.files[MODEL].pop("model.safetensors")
    problem = sentence(lambda: find(MODEL, progress=quiet))
    assert problem == (
        f"{MODEL} has no model.safetensors: it is no checkpoint for this engine; {USE}"
    )
    assert not cached(MODEL)
    assert sentence(lambda: find(MODEL, download=False)) == (
        f"{MODEL}: model.safetensors is not on this machine"
    )
    hub.files[MODEL]["model.safetensors"] = weights
    assert find(MODEL, progress=quiet).heads == 4


def test_a_wrong_model_is_refused_before_its_weights_are_fetched(hub: FakeHub) -> None:
    hub.files[MODEL]["config.json"] = json.dumps(TINY | {"model_type": "hibiki"}).encode()
    assert sentence(lambda: find(MODEL, progress=quiet)) == (
        f"{MODEL}: is no speech-to-text model (model_type is 'hibiki'); {USE}"
    )
    assert not any("safetensors" in request for request in hub.requests)


def test_a_damaged_file_of_the_cache_is_named_as_what_has_to_be_removed(hub: FakeHub) -> None:
    weights = find(MODEL, progress=quiet).weights
    assert weights.is_symlink()
    weights.resolve().write_bytes(weights.read_bytes()[:-1])
    problem = sentence(lambda: find(MODEL, progress=quiet))
    assert problem.startswith(f"model.safetensors ({weights.resolve()}) is incomplete: ")
    weights.resolve().unlink()
    assert find(MODEL, progress=quiet).heads == 4


def test_mimi_may_be_of_another_model(hub: FakeHub) -> None:
    hub.files["kyutai/mimi"] = {MIMI_NAME: hub.files[MODEL].pop(MIMI_NAME)}
    raw = TINY | {"mimi_name": f"hf://kyutai/mimi/{MIMI_NAME}"}
    hub.files[MODEL]["config.json"] = json.dumps(raw).encode()
    assert "models--kyutai--mimi" in str(find(MODEL, progress=quiet).mimi)
    assert cached(MODEL)


def test_the_token_goes_with_the_request(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    find(MODEL, progress=quiet)
    assert set(hub.tokens) == {"Bearer hf_canary"}


def test_offline_only_the_cache_is_used(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    problem = (
        f"{MODEL}: config.json is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: "
        "unset that, or set engine.model to a directory that has the model"
    )
    assert sentence(lambda: find(MODEL, progress=quiet)) == problem
    assert sentence(lambda: checkpoint.ask(MODEL)) == problem
    assert hub.requests == []


REFUSALS = [
    ((401, "RepoNotFound"), "{url} has no model {model}, or not for everybody: correct "
     "engine.model, or set HF_TOKEN if it is a private one"),
    ((404, "RevisionNotFound"), "{model} has no revision 'v2': correct engine.revision, or leave "
     "it out"),
    ((403, "GatedRepo"), "{model} is only for those who accept its terms: do that on {url}/{model},"
     " and set HF_TOKEN to a token of that account"),
    ((404, "EntryNotFound"), "{model} has no config.json: it is no checkpoint for this engine; "
     + USE),
    ((401, ""), "{url} does not accept the token that HF_TOKEN or its log-in gives"),
    ((503, ""), "{model}: config.json is not on this machine, and {url} cannot be reached (it "
     "answers 503): see the network and HTTPS_PROXY, or set engine.model to a directory that has "
     "the model"),
]  # fmt: skip


@pytest.mark.parametrize(("refusal", "problem"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_the_hub_refuses(hub: FakeHub, refusal: tuple[int, str], problem: str) -> None:
    hub.refusal = refusal
    expected = problem.format(url=hub.url, model=MODEL)
    assert sentence(lambda: find(MODEL, "v2", progress=quiet)) == expected
    if refusal != (401, ""):  # asked for a model, the hub answers so what it does not show
        assert sentence(lambda: checkpoint.ask(MODEL, "v2")) == expected


def test_a_hub_that_cannot_be_reached(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(TEMPLATE, "http://127.0.0.1:1" + FILES)
    problem = (
        f"{MODEL}: config.json is not on this machine, and http://127.0.0.1:1 cannot be reached "
        "(ConnectionError): see the network and HTTPS_PROXY, or set engine.model to a directory "
        "that has the model"
    )
    assert sentence(lambda: find(MODEL, progress=quiet)) == problem
    assert sentence(lambda: checkpoint.ask(MODEL)) == problem


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: FakeHub) -> None:
    hub.files[MODEL]["config.json"] += b" " * 1000
    hub.cut = 400
    problem = sentence(lambda: find(MODEL, progress=quiet))
    assert problem == (
        f"{MODEL}: fetching config.json broke off (ChunkedEncodingError); start again, it goes on "
        "from where it was"
    )
    assert find(MODEL, progress=quiet).raw == TINY


def test_a_full_disk(hub: FakeHub, tmp_path: Path) -> None:
    """`/dev/full` stands where the hub's client writes what it fetches."""
    blobs = tmp_path / "cache" / f"models--{MODEL.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    import hashlib

    etag = hashlib.sha256(hub.files[MODEL]["config.json"]).hexdigest()
    (blobs / f"{etag}.incomplete").symlink_to("/dev/full")
    assert sentence(lambda: find(MODEL, progress=quiet)) == (
        f"the disk with {tmp_path}/cache is full: free some gigabytes for {MODEL}, or set HF_HOME "
        "to a directory on another disk"
    )


def test_a_cache_that_cannot_be_written(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/sys/callscribe")
    problem = sentence(lambda: find(MODEL, progress=quiet))
    assert problem.startswith("/sys/callscribe cannot be written (")
    assert problem.endswith("): set HF_HOME to a directory that can")


def test_a_long_download_says_how_far_it_is(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line per file is not enough for who ends an engine that says nothing for minutes."""
    monkeypatch.setattr(checkpoint, "TELL", 0.01)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
    hub.files[MODEL]["config.json"] += b" " * (8 << 20)
    hub.hold = threading.Event()
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        if "so far" in line:
            assert hub.hold is not None
            hub.hold.set()

    find(MODEL, progress=progress)
    assert hub.hold.is_set()
    assert lines[1] in [f"config.json: {megabytes} MB so far" for megabytes in range(1, 5)]


def test_the_hub_says_that_it_has_a_model(hub: FakeHub) -> None:
    checkpoint.ask(MODEL)
    checkpoint.ask(MODEL, "v2")
    assert hub.requests == [
        f"GET /api/models/{MODEL}",
        f"GET /api/models/{MODEL}/revision/v2",
    ]


def test_the_hub_says_that_a_model_is_not_for_everybody(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    assert sentence(lambda: checkpoint.ask(MODEL)) == REFUSALS[2][1].format(
        url=hub.url, model=MODEL
    )
    monkeypatch.setenv("HF_TOKEN", "hf_of_one_who_may")
    checkpoint.ask(MODEL)


def test_the_hub_has_a_model_of_another_kind(hub: FakeHub) -> None:
    del hub.files[MODEL]["config.json"]
    assert sentence(lambda: checkpoint.ask(MODEL)) == (
        f"{MODEL} has no config.json: it is no checkpoint for this engine; {USE}"
    )


def test_a_hub_that_says_nothing_is_not_waited_for(hub: FakeHub) -> None:
    hub.hold = threading.Event()
    try:
        assert sentence(lambda: checkpoint.ask(MODEL, timeout=0.05)) == (
            f"{MODEL}: config.json is not on this machine, and {hub.url} cannot be reached (no "
            "answer in 0.05 s): see the network and HTTPS_PROXY, or set engine.model to a "
            "directory that has the model"
        )
    finally:
        hub.hold.set()


def test_without_the_hubs_client(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert not cached(MODEL)
    assert sentence(lambda: find(MODEL)) == (
        "huggingface_hub cannot be imported (import of huggingface_hub halted; None in "
        "sys.modules): pip install 'callscribe[kyutai]', or set engine.model to a directory"
    )


def test_the_environment_says_where_the_hub_and_its_cache_are(hub: FakeHub, tmp_path: Path) -> None:
    code = f"from bridge.engine import checkpoint; print(checkpoint.find({MODEL!r}).weights)"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    root = str(Path(checkpoint.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{tmp_path}/home/hub/models--kyutai--tiny/snapshots/")
    assert "it/s" not in run.stderr and "B/s" not in run.stderr, "a bar where nobody looks"
