"""Kyutai models of random weights: small checkpoints for tests, true sizes for benchmarks.

What they say means nothing, but it depends on what they hear, now and as far back as the context
goes, as with the real ones. That takes care: a Mimi of random weights falls onto one or two codes
per book unless its books are made of latents that it really has, and a test that compares tokens
which never change could not fail.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import sentencepiece
import torch
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel
from moshi.quantization.core_vq import VectorQuantization
from moshi.quantization.vq import SplitResidualVectorQuantizer
from moshi.utils.compile import no_compile
from safetensors.torch import save_file

from bridge.engine.checkpoint import read_config
from bridge.engine.kyutai import KyutaiRows
from bridge.engine.kyutai_load import Slots, resolve_device, resolve_dtype, rows_of
from bridge.engine.kyutai_speedups import ALL

RATE = 24000

# As kyutai/stt-1b-en_fr says it; the Depformer's keys are there, too, and have no effect.
_CONFIG: dict[str, Any] = {
    "card": 2048,
    "n_q": 32,
    "dep_q": 0,
    "delays": [0] * 33,
    "dim": 2048,
    "text_card": 8000,
    "existing_text_padding_id": 3,
    "num_heads": 16,
    "num_layers": 16,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 750,
    "max_period": 100000.0,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_dim_feedforward": None,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "conditioners": {},
    "cross_attention": False,
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "model_type": "stt",
    "moshi_name": "model.safetensors",
    "mimi_name": "mimi.safetensors",
    "tokenizer_name": "tokenizer.model",
}

_SIZES: dict[str, dict[str, Any]] = {
    "1b": {},
    "2.6b": {
        "text_card": 4000,
        "num_heads": 32,
        "num_layers": 48,
        "context": 375,
        "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    },
    "tiny": {
        "card": 64,
        "n_q": 8,
        "delays": [0] * 9,
        "dim": 64,
        "text_card": 160,
        "num_heads": 4,
        "num_layers": 2,
        "context": 24,
        "mimi_config_name": "mimi.json",
    },
}
_HEADS = 4, 6  # pause heads of the 1B, classes of each


def config(size: str, **changes: Any) -> dict[str, Any]:
    """The `config.json` of a model of this size: ``tiny``, ``1b`` or ``2.6b``."""
    return copy.deepcopy(_CONFIG | _SIZES[size] | changes)


def mimi_config(size: str) -> dict[str, Any]:
    """Mimi's own configuration. The tiny one has frames of 1920 samples, as the real one."""
    made: dict[str, Any] = copy.deepcopy(loaders._mimi_config)
    if size == "tiny":
        made["seanet"].update(n_filters=4, dimension=32)
        made["transformer"].update(
            d_model=32,
            num_heads=4,
            num_layers=2,
            context=20,
            dim_feedforward=64,
            input_dimension=32,
            output_dimensions=[32],
        )
        made["quantizer"].update(
            dimension=16, n_q=8, bins=64, input_dimension=32, output_dimension=32
        )
    return made


def sound(seconds: float, seed: int) -> npt.NDArray[np.float32]:
    """Noises, voices, tones and silences of 0.05 to 0.4 s at many levels, at 24 kHz in [-1, 1]."""
    rng = np.random.default_rng(seed)
    pieces: list[npt.NDArray[np.float64]] = []
    left = round(seconds * RATE)
    while left > 0:
        count = min(left, int(rng.uniform(0.05, 0.4) * RATE))
        pieces.append(10 ** rng.uniform(-2.5, -0.3) * np.hanning(count) * _piece(rng, count))
        left -= count
    return np.clip(np.concatenate(pieces), -1, 1).astype(np.float32)


def _piece(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    time = np.arange(count) / RATE
    match int(rng.integers(4)):
        case 0:
            return rng.normal(0, 0.3, count)
        case 1:
            partials = np.arange(1, 12)
            turns = np.outer(time, partials * rng.uniform(80, 300)) + rng.uniform(0, 1, 11)
            voice: npt.NDArray[np.float64] = np.sin(2 * np.pi * turns) @ (0.3 / partials)
            return voice
        case 2:
            tone: npt.NDArray[np.float64] = np.sin(2 * np.pi * rng.uniform(100, 3500) * time)
            return tone
        case _:
            return np.zeros(count)


def write(
    directory: Path,
    size: str = "tiny",
    *,
    seed: int = 0,
    heads: bool = True,
    device: str = "cpu",
    **changes: Any,
) -> Path:
    """A checkpoint in the published format, made on `device`. Returns `directory`.

    `changes`: to its `config.json`. As published, `heads` show in the weights alone.
    """
    raw = config(size, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    mimi, lm = _models(size, raw, heads=heads, seed=seed, device=device)
    save_file(_published(lm, torch.bfloat16), directory / raw["moshi_name"])
    save_file(_published(mimi, torch.float32), directory / raw["mimi_name"])
    (directory / raw["tokenizer_name"]).write_bytes(_tokenizer(raw["text_card"], seed))
    (directory / "config.json").write_text(json.dumps(raw))
    if "mimi_config_name" in raw:
        (directory / raw["mimi_config_name"]).write_text(json.dumps(mimi_config(size)))
    return directory


def random_rows(
    size: str,
    slots: Slots,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    speedups: Collection[str] = ALL,
) -> KyutaiRows:
    """Rows of a model of this size whose weights are made in memory. For measuring."""
    where = resolve_device(device)
    raw = config(size)
    shape = read_config(raw, mimi_config(size))
    heads = size != "2.6b"  # has none as published
    mimi, lm = _models(
        size, raw, heads=heads, seed=seed, device=where, dtype=resolve_dtype(dtype, where)
    )
    with ExitStack() as kept:
        folder = kept.enter_context(TemporaryDirectory(prefix="callscribe-random-"))
        tokenizer = Path(folder, raw["tokenizer_name"])
        tokenizer.write_bytes(_tokenizer(raw["text_card"], seed))
        rows = rows_of(
            mimi, lm, shape, name=f"random {size}", tokenizer=str(tokenizer), slots=slots,
            speedups=speedups,
        )  # fmt: skip
        rows.closing.callback(kept.pop_all().close)
    return rows


def _published(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights by the names that the published files have; moshi knows both."""
    return {
        name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0", "out_proj"): (
            value.to(dtype).contiguous()
        )
        for name, value in model.state_dict().items()
    }


def _models(
    size: str,
    raw: dict[str, Any],
    *,
    heads: bool,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[MimiModel, LMModel]:
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad(), no_compile():
        mimi = loaders.get_mimi(None, mimi_config(size), device, num_codebooks=raw["n_q"])
        _randomise(mimi, generator, gain=1.5)  # ELUs take as much away
        _fill_books(mimi, generator, seconds=60 if size == "tiny" else 8)
        kwargs = {k: v for k, v in raw.items() if k not in _NOT_OF_THE_LM}
        if heads:
            kwargs |= {"extra_heads_num_heads": _HEADS[0], "extra_heads_dim": _HEADS[1]}
        lm = loaders.get_moshi_lm(None, kwargs, "meta", dtype).to_empty(device=device)
        _randomise(lm, generator, gain=1.0)
        lm.text_linear.weight[lm.text_padding_token_id] *= 8  # often the greatest, as it should
        lm.text_linear.weight[lm.end_of_text_padding_id] *= 5
    return mimi, lm


_NOT_OF_THE_LM = {
    "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "model_type",
    "lm_gen_config", "stt_config",
}  # fmt: skip


def _randomise(model: torch.nn.Module, generator: torch.Generator, gain: float) -> None:
    """Weights that keep what goes through them at its level, times `gain`."""
    for name, weight in model.named_parameters():
        if name.endswith("scale"):
            weight.fill_(0.5)  # published: 0.01, and training makes more of it
        elif name.endswith("alpha") or (name.endswith("weight") and weight.dim() == 1):
            weight.fill_(1.0)
        elif name.endswith("bias"):
            weight.normal_(0, 0.02, generator=generator)
        elif "emb." in name:
            weight.normal_(0, 0.3, generator=generator)
        else:
            weight.normal_(0, gain / weight[0].numel() ** 0.5, generator=generator)


def _fill_books(mimi: MimiModel, generator: torch.Generator, seconds: float) -> None:
    """Residual quantisation with books that are made of what there is to quantise."""
    device = generator.device
    audio = torch.from_numpy(sound(seconds, seed=1)).to(device)
    latents = mimi._encode_to_unquantized_latent(audio[None, None])
    books = cast(SplitResidualVectorQuantizer, mimi.quantizer)
    for quantizer in (books.rvq_first, books.rvq_rest):
        left = quantizer.input_proj(latents)[0].T
        for layer in quantizer.vq.layers:
            book = cast(VectorQuantization, layer)._codebook
            shape = book.embedding_sum.shape
            picks = torch.randint(len(left), (shape[0],), generator=generator, device=device)
            jitter = torch.randn(shape, generator=generator, device=device)
            entries = left[picks] + 0.2 * left.std() * jitter
            book.embedding_sum.copy_(entries)
            book.cluster_usage.fill_(1.0)
            book._initialized.fill_(1.0)
            left = left - entries[torch.cdist(left, entries).argmin(dim=-1)]


def _tokenizer(pieces: int, seed: int) -> bytes:
    """A SentencePiece model of so many pieces; 0 is <unk> and 3 the padding, as in Kyutai's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(seed, count=2 * pieces + 500),
        model_writer=model,
        vocab_size=pieces,
        pad_id=3,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _sentences(seed: int, count: int) -> Iterator[str]:
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er")]
    dice = random.Random(seed)
    for _ in range(count):
        words = ("".join(dice.choices(syllables, k=dice.randint(1, 3))) for _ in range(6))
        yield " ".join(words) + dice.choice(".?!")
