"""A Kyutai checkpoint of a few hundred kilobytes, made without torch: files that fit together.

Its weights say nothing; what is tested with it is everything that comes before they are loaded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bridge.engine.checkpoint_config import read_config
from bridge.engine.checkpoint_tensors import Shape, lm_tensors, mimi_tensors

HEADS = 4
PIECES = 40
MIMI_NAME, TOKENIZER_NAME = "mimi.safetensors", "tokenizer_en_fr_audio_40.model"

# Keys and their order as in the published config.json of kyutai/stt-2.6b-en.
PUBLISHED: dict[str, Any] = {
    "card": 2048, "n_q": 32, "dep_q": 0, "delays": [0] * 33, "dim": 2048, "text_card": 4000,
    "existing_text_padding_id": 3, "num_heads": 32, "num_layers": 48, "hidden_scale": 4.125,
    "causal": True, "layer_scale": None, "context": 375, "max_period": 100000.0, "gating": "silu",
    "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 1024,
    "depformer_num_heads": 16, "depformer_num_layers": 6, "depformer_dim_feedforward": None,
    "depformer_multi_linear": True, "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "conditioners": {}, "cross_attention": False,
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    "model_type": "stt", "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    "tokenizer_name": "tokenizer_en_audio_4000.model",
}  # fmt: skip
PUBLISHED_1B = PUBLISHED | {
    "text_card": 8000, "num_heads": 16, "num_layers": 16, "context": 750,
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "tokenizer_name": "tokenizer_en_fr_audio_8000.model",
}  # fmt: skip
TINY = PUBLISHED_1B | {
    "card": 16, "n_q": 3, "delays": [0] * 4, "dim": 16, "text_card": PIECES, "num_heads": 2,
    "num_layers": 2, "context": 6, "mimi_name": MIMI_NAME, "tokenizer_name": TOKENIZER_NAME,
    "mimi_config_name": "mimi.json",
}  # fmt: skip
TINY_MIMI: dict[str, Any] = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 8, "n_filters": 2, "n_residual_layers": 1, "compress": 2,
        "dilation_base": 2, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3,
        "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {"dimension": 4, "n_q": 4, "bins": 16},
    "transformer": {
        "d_model": 8, "num_heads": 2, "num_layers": 1, "context": 10, "layer_scale": 0.01,
        "gating": "none", "norm": "layer_norm", "dim_feedforward": 16, "causal": True,
    },
}  # fmt: skip


def write(folder: Path, *, heads: int = HEADS, **changes: Any) -> Path:
    """`changes` to its config.json. Returns `folder`."""
    config = TINY | changes
    shape = read_config(TINY, TINY_MIMI)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "model.safetensors", lm_tensors(shape.lm, heads))
    save(folder / MIMI_NAME, mimi_tensors(shape.mimi))
    (folder / TOKENIZER_NAME).write_bytes(tokenizer(PIECES))
    (folder / "mimi.json").write_text(json.dumps(TINY_MIMI))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save(path: Path, shapes: Mapping[str, Shape], dtype: type = np.float16) -> None:
    save_file({name: np.zeros(shape, dtype) for name, shape in shapes.items()}, path)


def tokenizer(pieces: int) -> bytes:
    """A SentencePiece ModelProto: its pieces, and a trainer_spec that says nothing."""
    piece = b"\x0a\x03abc\x15\x00\x00\x00\x00"  # piece: "abc", score: 0.0
    return (b"\x0a" + bytes([len(piece)]) + piece) * pieces + b"\x12\x00"


def mimi_with(**changes: Any) -> dict[str, Any]:
    """`TINY_MIMI` with other ``seanet_…``, ``transformer_…`` and ``quantizer_…`` keys."""
    made = copy.deepcopy(TINY_MIMI)
    for key, value in changes.items():
        table, _, name = key.partition("_")
        made[table][name] = value
    return made
