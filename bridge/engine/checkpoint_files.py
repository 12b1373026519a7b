"""A checkpoint on this machine: its files, checked without torch before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bridge.engine.checkpoint_config import USE, ModelShape, read_config
from bridge.engine.checkpoint_tensors import (
    compare,
    lm_tensors,
    mimi_tensors,
    pause_heads,
    read_header,
)
from bridge.errors import EngineUnavailable

CONFIG = "config.json"
# moshi's names (models/loaders.py) for what a config.json does not name.
DEFAULTS = {
    "moshi_name": "model.safetensors",
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_name": "tokenizer_spm_32k_3.model",
}

Locate: TypeAlias = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Files that belong together, as moshi's `CheckpointInfo.from_hf_repo` takes them.

    `mimi_config`: None for moshi's own Mimi. `raw`: what `config` holds. `heads`: pause heads that
    the weights have, whatever the configuration says.
    """

    name: str
    config: Path
    weights: Path
    mimi: Path
    mimi_config: Path | None
    tokenizer: Path
    raw: Mapping[str, Any]
    shape: ModelShape
    heads: int


def names(raw: Mapping[str, Any], name: str) -> dict[str, str]:
    """File names by their keys in a config.json. Raises `EngineUnavailable`."""
    found = {key: raw.get(key) or default for key, default in DEFAULTS.items()}
    if raw.get("mimi_config_name"):
        found["mimi_config_name"] = raw["mimi_config_name"]
    for key, file in found.items():
        if not isinstance(file, str) or file.startswith("/") or ".." in file.split("/"):
            raise EngineUnavailable(f"{name}: {key}: expected the name of a file, not {file!r}")
    return found


def open_checkpoint(name: str, locate: Locate) -> Checkpoint:
    """`locate` gives the path of a file that it has or fetches. Raises `EngineUnavailable`.

    What the configuration rules out is refused before the weights are asked for.
    """
    config = locate(CONFIG)
    raw = read_json(config)
    files = names(raw, name)
    mimi_config = locate(files["mimi_config_name"]) if "mimi_config_name" in files else None
    shape = read_config(raw, read_json(mimi_config) if mimi_config else None, name=name)
    tokenizer = locate(files["tokenizer_name"])
    _check_tokenizer(tokenizer, shape)
    mimi = locate(files["mimi_name"])
    compare(_header(mimi), mimi_tensors(shape.mimi), _label(mimi))
    weights = locate(files["moshi_name"])
    heads = _check_lm(weights, shape)
    return Checkpoint(name, config, weights, mimi, mimi_config, tokenizer, raw, shape, heads)


def inside(folder: Path) -> Locate:
    """Files of a directory, which are never looked for anywhere else."""

    def locate(file: str) -> Path:
        path = folder / file
        if not folder.is_dir():
            raise EngineUnavailable(f"{folder} is no directory; see engine.model")
        if not path.is_file():
            raise EngineUnavailable(
                f"{path} is missing: copy it there; all of a model's files belong into one "
                "directory"
            )
        return path

    return locate


def read_json(path: Path) -> dict[str, Any]:
    """Raises `EngineUnavailable`."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise EngineUnavailable(f"{path} cannot be read: {e.strerror}") from e
    except (ValueError, RecursionError) as e:  # ValueError: also a text that is not UTF-8
        raise EngineUnavailable(f"{path} is not JSON ({e}); fetch it again") from None
    if not isinstance(found, dict):
        raise EngineUnavailable(f"{path} is not a table of settings; fetch it again")
    return found


def _header(path: Path) -> dict[str, Any]:
    if path.suffix not in (".safetensors", ".sft", ".sfts"):
        raise EngineUnavailable(f"{path}: only safetensors files can be loaded here; {USE}")
    try:
        with path.open("rb") as file:
            return dict(read_header(file, path.stat().st_size, _label(path)))
    except OSError as e:
        raise EngineUnavailable(f"{path} cannot be read: {e.strerror}") from e


def _label(path: Path) -> str:
    """In the hub's cache a name is a link to the file itself, which is what has to be removed."""
    return f"{path.name} ({path.resolve()})" if path.is_symlink() else str(path)


def _check_lm(path: Path, shape: ModelShape) -> int:
    """How many pause heads the file has."""
    tensors = _header(path)
    heads = max(shape.lm.heads, pause_heads(tensors))
    compare(tensors, lm_tensors(shape.lm, heads), _label(path))
    return heads


def _check_tokenizer(path: Path, shape: ModelShape) -> None:
    try:
        pieces = count_pieces(path.read_bytes())
    except OSError as e:
        raise EngineUnavailable(f"{path} cannot be read: {e.strerror}") from e
    except ValueError:
        raise EngineUnavailable(
            f"{_label(path)} is no SentencePiece model, or not the whole of one; fetch it again"
        ) from None
    # A tenth to spare, for models whose last tokens are no pieces; what has to be found is the
    # English tokenizer of 4000 pieces beside the English and French model of 8000.
    if not 0.9 <= pieces / shape.lm.text_card_out <= 1.1:
        raise EngineUnavailable(
            f"{_label(path)} has {pieces} pieces and the model {shape.lm.text_card_out} text "
            "tokens; they do not belong together"
        )


def count_pieces(model: bytes) -> int:
    """Pieces of a SentencePiece model: fields 1 of a protobuf (sentencepiece_model.proto).

    Raises ValueError when it is none, or is cut off.
    """
    pieces, at = 0, 0
    while at < len(model):
        tag, at = _varint(model, at)
        field, kind = tag >> 3, tag & 7
        if kind != 2 or not field:  # every field of a ModelProto is a message
            raise ValueError
        length, at = _varint(model, at)
        at += length
        pieces += field == 1
    if at != len(model) or not pieces:
        raise ValueError
    return pieces


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError
