"""What the `config.json` of a Kyutai checkpoint says of the model, checked. Pure.

moshi gives the file's keys to its `LMModel` as they are (moshi 0.2.13, models/loaders.py); the
names here are those keys. What the engine could not run, or what would give other tokens than the
published models do, is refused with a sentence before any weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.errors import EngineUnavailable

RATE = 24_000  # Hz; moshi.run_inference counts the silent prefix in it
USE = "use a model such as kyutai/stt-1b-en_fr-candle"


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """A StreamingTransformer. `hidden`: width of the gate, or of the feed-forward without one."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    context: int  # steps that attention sees: the length of the ring
    hidden: int
    gated: bool
    norm: str  # rms_norm…, layer_norm…
    scaled: bool  # has layer scales

    @property
    def kv_dim(self) -> int:
        """Width of the keys, and of the values."""
        return self.dim // self.heads * self.kv_heads


@dataclass(frozen=True, slots=True)
class LmShape:
    """The language model: codes and text in, text out."""

    transformer: TransformerShape
    n_q: int  # codes per step
    card: int  # of a code
    text_card: int
    text_card_out: int
    bias: bool  # of the output
    depformer_in: int  # width of a projection that moshi makes and never uses; 0: it makes none
    heads: int  # pause heads, as far as the configuration says; the weights may have more
    head_dim: int


@dataclass(frozen=True, slots=True)
class SeanetShape:
    """Mimi's convolutions."""

    channels: int
    dim: int
    filters: int
    blocks: int  # residual blocks per ratio
    ratios: tuple[int, ...]  # of the decoder, from the inside out
    kernel: int
    last_kernel: int
    block_kernel: int
    dilation: int
    compress: int
    shortcut: bool  # a convolution beside each residual block


@dataclass(frozen=True, slots=True)
class MimiShape:
    """Mimi: 80 ms of samples in, one code of each book out."""

    seanet: SeanetShape
    transformer: TransformerShape
    stride: int  # from the convolutions' rate to that of the codes
    books: int
    bins: int
    book_dim: int
    rate: int  # Hz
    block: int  # samples per step


@dataclass(frozen=True, slots=True)
class ModelShape:
    """All of a model that its configuration fixes. `prefix` in samples, `delay` in seconds."""

    lm: LmShape
    mimi: MimiShape
    delay: float
    prefix: int
    padding: int  # ids of the text tokens that are no text
    boundary: int
    languages: tuple[str, ...]  # ISO 639-1; ("",) when nothing tells


# moshi's own Mimi (models/loaders.py), where a checkpoint has no `mimi_config_name`.
MIMI: dict[str, Any] = {
    "sample_rate": RATE,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 512, "n_filters": 64, "n_residual_layers": 1, "compress": 2,
        "dilation_base": 2, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3,
        "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048},
    "transformer": {
        "d_model": 512, "num_heads": 8, "num_layers": 8, "context": 250, "layer_scale": 0.01,
        "gating": "none", "norm": "layer_norm", "dim_feedforward": 2048,
    },
}  # fmt: skip


def read_config(
    config: Mapping[str, Any], mimi: Mapping[str, Any] | None = None, *, name: str = "config.json"
) -> ModelShape:
    """`config`: of the model, `mimi`: of its Mimi. Raises `EngineUnavailable`."""
    found = _Keys(config, name)
    _is_transcriber(found)
    lm = _lm(found)
    stt = found.table("stt_config")
    codec = _mimi(_Keys(MIMI if mimi is None else mimi, f"{name}: Mimi"))
    if lm.n_q > codec.books or lm.card != codec.bins:
        raise EngineUnavailable(
            f"{name}: the model hears {lm.n_q} codes of {lm.card} values and its Mimi makes "
            f"{codec.books} of {codec.bins}; they do not belong together"
        )
    return ModelShape(
        lm,
        codec,
        delay=stt.number("audio_delay_seconds", 0.0),
        prefix=int(stt.number("audio_silence_prefix_seconds", 0.0) * RATE),
        padding=found.whole("existing_text_padding_id", 3, least=0),
        boundary=found.whole("existing_text_end_padding_id", 0, least=0),
        languages=_languages(name, str(config.get("tokenizer_name", "")), lm.text_card),
    )


def _is_transcriber(found: _Keys) -> None:
    kind, speaks = found.get("model_type", "moshi"), found.get("dep_q", 8)
    if kind != "stt" or not isinstance(found.get("stt_config"), Mapping):
        raise found.wrong(f"is no speech-to-text model (model_type is {kind!r}); {USE}")
    if speaks != 0:
        raise found.wrong(
            f"is a model that speaks (dep_q is {speaks!r}), not one that hears; {USE}"
        )
    for key in ("lora_name", "lora", "quantize", "conditioners", "fuser", "cross_attention",
                "demux_second_stream", "demux_second_text_stream", "norm_emb"):  # fmt: skip
        if found.get(key):
            raise found.wrong(f"sets {key}, which this engine cannot run; {USE}")
    if found.get("causal") is not True:
        raise found.wrong(f"is not causal, so it cannot hear a call that goes on; {USE}")


def _lm(found: _Keys) -> LmShape:
    n_q = found.whole("n_q")
    if found.get("delays") != [0] * (n_q + 1):
        raise found.wrong(f"delays: expected {n_q + 1} times 0 (n_q and the text); {USE}")
    text_card = found.whole("text_card")
    forward = int(found.number("hidden_scale", 4.0) * found.whole("dim"))
    multi = found.get("depformer_multi_linear") is True  # then one per code said, and there is none
    return LmShape(
        _transformer(found, found.whole("dim"), forward),
        n_q=n_q,
        card=found.whole("card"),
        text_card=text_card,
        text_card_out=found.whole("text_card_out", text_card),
        bias=found.get("bias_proj") is True,
        depformer_in=0 if multi else found.whole("depformer_dim", 256),
        heads=found.whole("extra_heads_num_heads", 0, least=0),
        head_dim=found.whole("extra_heads_dim", 6),
    )


def _transformer(found: _Keys, dim: int, forward: int) -> TransformerShape:
    heads, repeat = found.whole("num_heads"), found.whole("kv_repeat", 1)
    if dim % heads or heads % repeat:
        raise found.wrong(f"{dim} dimensions cannot be divided among num_heads = {heads}")
    gated = found.get("gating", "none") != "none"
    if gated:  # moshi, modules/gating.py
        forward = 21 * dim // 8 if forward == 4 * dim else 2 * forward // 3
    return TransformerShape(
        layers=found.whole("num_layers"),
        dim=dim,
        heads=heads,
        kv_heads=heads // repeat,
        context=found.whole("context"),
        hidden=forward,
        gated=gated,
        norm=str(found.get("norm", "layer_norm")),
        scaled=found.get("layer_scale") is not None,
    )


def _mimi(found: _Keys) -> MimiShape:
    seanet, books = found.table("seanet"), found.table("quantizer")
    transformer = found.table("transformer")
    ratios = seanet.get("ratios")
    if not (isinstance(ratios, list) and ratios and all(_is_whole(r, 1) for r in ratios)):
        raise seanet.wrong(f"ratios: expected a list of whole numbers, not {ratios!r}")
    rate, frames = found.whole("sample_rate"), found.number("frame_rate")
    block = round(rate / frames) if frames else 0
    stride, rest = divmod(block, math.prod(ratios))
    if rate != RATE or rest or stride < 2:
        raise found.wrong(f"{rate} Hz in frames of {block} samples: expected {RATE} Hz and frames "
                          f"of a multiple of {2 * math.prod(ratios)} samples")  # fmt: skip
    dim = transformer.whole("d_model")
    return MimiShape(
        SeanetShape(
            channels=seanet.whole("channels", 1),
            dim=seanet.whole("dimension"),
            filters=seanet.whole("n_filters"),
            blocks=seanet.whole("n_residual_layers", 3, least=0),
            ratios=tuple(ratios),
            kernel=seanet.whole("kernel_size", 7),
            last_kernel=seanet.whole("last_kernel_size", 7),
            block_kernel=seanet.whole("residual_kernel_size", 3),
            dilation=seanet.whole("dilation_base", 2),
            compress=seanet.whole("compress", 2),
            shortcut=seanet.get("true_skip", True) is not True,
        ),
        _transformer(transformer, dim, transformer.whole("dim_feedforward", 2048)),
        stride=stride,
        books=books.whole("n_q"),
        bins=books.whole("bins"),
        book_dim=books.whole("dimension"),
        rate=rate,
        block=block,
    )


def _languages(name: str, tokenizer: str, text_card: int) -> tuple[str, ...]:
    """From ``tokenizer_en_fr_audio_8000.model``, ``…/stt-2.6b-en-candle``, or the size of text."""
    for pattern, text in ((r"tokenizer_([a-z]{2}(?:_[a-z]{2})*)_audio", tokenizer),
                          (r"stt-[\d.]+b-([a-z]{2}(?:_[a-z]{2})*)(?![a-z])", name)):  # fmt: skip
        match = re.search(pattern, text)
        if match:
            return tuple(match[1].split("_"))
    return {8000: ("en", "fr"), 4000: ("en",)}.get(text_card, ("",))


class _Keys:
    """A table of the configuration whose values are wanted as numbers."""

    def __init__(self, table: Mapping[str, Any], name: str) -> None:
        self._table = table
        self._name = name

    def get(self, key: str, default: Any = None) -> Any:
        return self._table.get(key, default)

    def table(self, key: str) -> _Keys:
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise self.wrong(f"{key}: expected a table, not {value!r}")
        return _Keys(value, f"{self._name}: {key}")

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not _is_whole(value, least):
            raise self.wrong(f"{key}: expected a whole number of at least {least}, not {value!r}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
            raise self.wrong(f"{key}: expected a number, not {value!r}")
        return float(value)

    def wrong(self, what: str) -> EngineUnavailable:
        return EngineUnavailable(f"{self._name}: {what}")


def _is_whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 31
