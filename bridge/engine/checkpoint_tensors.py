"""The tensors of a checkpoint: those a configuration asks for, and those a file has. Pure.

A file of weights is safetensors: 8 bytes with the length of a header, the header in JSON, the
values. Reading the header alone tells a truncated or a wrong file from a right one in a
millisecond, where loading two gigabytes would end in a page of keys.

The names are those that the published files have. moshi's modules call two of them otherwise and
map them when it loads (`StreamingMultiheadAttention._load_hook`); `torch_key` is that map. That
the files have the fused ones follows from their sizes: the header is part of a file, and what
`expected` gives for kyutai/stt-1b-en_fr-candle, kyutai/stt-2.6b-en and their Mimi makes files of
exactly the 1,978,522,200, 5,234,275,128 and 384,644,900 bytes that the published ones have (the
tests count). So nothing has to be renamed to load a -candle repository with moshi.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from bridge.engine.checkpoint_config import LmShape, MimiShape, TransformerShape
from bridge.errors import EngineUnavailable

BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
         "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}  # fmt: skip
FLOATS = {"F16", "BF16", "F32", "F64"}
MAX_HEADER = 100_000_000  # bytes; the format's own limit

Shape: TypeAlias = tuple[int, ...]


class Tensor(NamedTuple):
    """`dtype` as safetensors spells it."""

    dtype: str
    shape: Shape


class Conv(NamedTuple):
    """One of Mimi's convolutions. `every`: input samples of the model per sample of its output."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    every: int

    @property
    def kept(self) -> int:
        """Samples per channel that it remembers from one step to the next."""
        return (self.kernel - 1) * self.dilation + 1 - self.stride


# -- what a file has ------------------------------------------------------------------------------


def read_header(file: BinaryIO, size: int, name: str) -> dict[str, Tensor]:
    """Of a safetensors file of `size` bytes. Raises `EngineUnavailable`."""
    start = file.read(8)
    if start == b"version ":
        raise EngineUnavailable(f"{name} is a pointer of Git LFS, not the file: run git lfs pull")
    length = int.from_bytes(start, "little")
    if size < 8 or not 2 <= length <= MAX_HEADER:
        raise EngineUnavailable(f"{name} is no safetensors file; {_AGAIN}")
    if size < 8 + length:
        raise _incomplete(name, size, 8 + length)
    try:
        header = json.loads(file.read(length))
        tensors = {k: _tensor(v) for k, v in header.items() if k != "__metadata__"}
        end = max((v["data_offsets"][1] for k, v in header.items() if k in tensors), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        raise EngineUnavailable(f"{name} is no safetensors file; {_AGAIN}") from None
    if size < 8 + length + end:
        raise _incomplete(name, size, 8 + length + end)
    if sum(map(_bytes, tensors.values())) != end or size != 8 + length + end:
        raise EngineUnavailable(f"{name} is damaged: its header and its size differ; {_AGAIN}")
    return tensors


_AGAIN = "remove it and fetch it again"


def _tensor(entry: Any) -> Tensor:
    tensor = Tensor(entry["dtype"], tuple(entry["shape"]))
    begin, end = entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*tensor.shape, begin)):
        raise ValueError
    if end - begin != _bytes(tensor):
        raise ValueError
    return tensor


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * BYTES[tensor.dtype]


def _incomplete(name: str, size: int, whole: int) -> EngineUnavailable:
    return EngineUnavailable(
        f"{name} is incomplete: {size:,} of at least {whole:,} bytes; {_AGAIN}"
    )


def pause_heads(tensors: Mapping[str, Tensor]) -> int:
    """How many ``extra_heads.N.weight`` there are, counted from 0."""
    return next(n for n in range(len(tensors) + 1) if f"extra_heads.{n}.weight" not in tensors)


def compare(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], name: str) -> None:
    """Raises `EngineUnavailable` unless they are the same. Names may be moshi's or the files'."""
    found = {torch_key(key): tensor for key, tensor in tensors.items()}
    wanted = {torch_key(key): shape for key, shape in expected.items()}
    end = "it does not belong to this config.json; fetch the whole model again"
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise EngineUnavailable(f"{name} lacks {_some(missing)}; {end}")
    strange = sorted(found.keys() - wanted.keys())
    if strange:
        raise EngineUnavailable(f"{name} has {_some(strange)} too many; {end}")
    for key, tensor in found.items():
        if tensor.shape != wanted[key]:
            shapes = f"{list(tensor.shape)}, not {list(wanted[key])}"
            raise EngineUnavailable(f"{name}: {key} is {shapes}; {end}")
        if tensor.dtype not in FLOATS:
            raise EngineUnavailable(
                f"{name}: {key} is of type {tensor.dtype}: quantised weights cannot be run here; "
                "use the bfloat16 ones"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def torch_key(name: str) -> str:
    """What moshi's modules call the tensor that a file calls `name`."""
    name = re.sub(r"\bself_attn\.in_proj(_|\.)weight$", "self_attn.in_projs.0.weight", name)
    name = re.sub(r"\bself_attn\.out_proj\.weight$", "self_attn.out_projs.0.weight", name)
    book, dot, last = name.rpartition("._codebook.")
    return f"{book}{dot}{_OLD_NAMES.get(last, last)}" if dot else name


_OLD_NAMES = {  # moshi, quantization/core_vq.py
    "inited": "_initialized", "cluster_size": "cluster_usage", "embed_avg": "embedding_sum",
    "embed_sum": "embedding_sum",
}  # fmt: skip


# -- what a configuration asks for ----------------------------------------------------------------


def lm_tensors(lm: LmShape, heads: int) -> dict[str, Shape]:
    """Those of moshi's LMModel without a Depformer, with so many pause heads."""
    dim = lm.transformer.dim
    shapes: dict[str, Shape] = {f"emb.{q}.weight": (lm.card + 1, dim) for q in range(lm.n_q)}
    shapes["text_emb.weight"] = (lm.text_card + 1, dim)
    shapes["text_linear.weight"] = (lm.text_card_out, dim)
    if lm.bias:
        shapes["text_linear.bias"] = (lm.text_card_out,)
    if lm.depformer_in:
        shapes["depformer_in.0.weight"] = (lm.depformer_in, dim)
    shapes |= _norm("out_norm", lm.transformer)
    shapes |= dict(_transformer("transformer", lm.transformer))
    return shapes | {f"extra_heads.{n}.weight": (lm.head_dim, dim) for n in range(heads)}


def _norm(name: str, shape: TransformerShape) -> dict[str, Shape]:
    if shape.norm.startswith("rms_norm"):
        return {f"{name}.alpha": (1, 1, shape.dim)}
    return {f"{name}.weight": (shape.dim,), f"{name}.bias": (shape.dim,)}


def _transformer(prefix: str, shape: TransformerShape) -> Iterator[tuple[str, Shape]]:
    dim, hidden = shape.dim, shape.hidden
    for n in range(shape.layers):
        layer = f"{prefix}.layers.{n}"
        yield f"{layer}.self_attn.in_proj_weight", (dim + 2 * shape.kv_dim, dim)
        yield f"{layer}.self_attn.out_proj.weight", (dim, dim)
        yield from _norm(f"{layer}.norm1", shape).items()
        yield from _norm(f"{layer}.norm2", shape).items()
        if shape.gated:
            yield f"{layer}.gating.linear_in.weight", (2 * hidden, dim)
            yield f"{layer}.gating.linear_out.weight", (dim, hidden)
        else:
            yield f"{layer}.linear1.weight", (hidden, dim)
            yield f"{layer}.linear2.weight", (dim, hidden)
        if shape.scaled:
            yield f"{layer}.layer_scale_1.scale", (dim,)
            yield f"{layer}.layer_scale_2.scale", (dim,)


def mimi_tensors(mimi: MimiShape, *, decoder: bool = True) -> dict[str, Shape]:
    """Those of moshi's MimiModel. `decoder`: also of the half that makes sound of codes."""
    dim, step = mimi.seanet.dim, mimi.stride
    shapes = dict(_convs(encoder_convs(mimi)))
    shapes |= dict(_ends("encoder_transformer", mimi))
    shapes |= dict(_books("quantizer.rvq_first", 1, mimi))
    shapes |= dict(_books("quantizer.rvq_rest", mimi.books - 1, mimi))
    shapes["downsample.conv.conv.conv.weight"] = (dim, dim, 2 * step)
    if decoder:
        shapes |= dict(_decoder(mimi))
        shapes |= dict(_ends("decoder_transformer", mimi))
        shapes["upsample.convtr.convtr.convtr.weight"] = (dim, 1, 2 * step)
    return shapes


def _ends(prefix: str, mimi: MimiShape) -> Iterator[tuple[str, Shape]]:
    inner, outer = mimi.transformer.dim, mimi.seanet.dim
    if inner != outer:
        yield f"{prefix}.input_proj.weight", (inner, outer)
        yield f"{prefix}.output_projs.0.weight", (outer, inner)
    yield from _transformer(f"{prefix}.transformer", mimi.transformer)


def _books(prefix: str, books: int, mimi: MimiShape) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.input_proj.weight", (mimi.book_dim, mimi.seanet.dim, 1)
    yield f"{prefix}.output_proj.weight", (mimi.seanet.dim, mimi.book_dim, 1)
    for n in range(books):
        book = f"{prefix}.vq.layers.{n}._codebook"
        yield f"{book}._initialized", (1,)
        yield f"{book}.cluster_usage", (mimi.bins,)
        yield f"{book}.embedding_sum", (mimi.bins, mimi.book_dim)


def _convs(convs: list[Conv]) -> Iterator[tuple[str, Shape]]:
    for conv in convs:
        yield f"{conv.name}.weight", (conv.outputs, conv.inputs, conv.kernel)
        yield f"{conv.name}.bias", (conv.outputs,)


def encoder_convs(mimi: MimiShape) -> list[Conv]:
    """Of SEANetEncoder, in order: moshi, modules/seanet.py. Between them are ELUs."""
    net, width, every = mimi.seanet, mimi.seanet.filters, 1
    convs = [Conv("encoder.model.0.conv.conv", net.channels, width, net.kernel, 1, 1, 1)]
    place = 1
    for ratio in reversed(net.ratios):
        for n in range(net.blocks):
            convs += _residual(f"encoder.model.{place + n}", net.dilation**n, width, every, mimi)
        place += net.blocks + 1
        every *= ratio
        name = f"encoder.model.{place}.conv.conv"
        convs.append(Conv(name, width, 2 * width, 2 * ratio, ratio, 1, every))
        place, width = place + 1, 2 * width
    name = f"encoder.model.{place + 1}.conv.conv"
    return [*convs, Conv(name, width, net.dim, net.last_kernel, 1, 1, every)]


def _residual(name: str, dilation: int, width: int, every: int, mimi: MimiShape) -> list[Conv]:
    net, inner = mimi.seanet, width // mimi.seanet.compress
    convs = [
        Conv(f"{name}.block.1.conv.conv", width, inner, net.block_kernel, 1, dilation, every),
        Conv(f"{name}.block.3.conv.conv", inner, width, 1, 1, 1, every),
    ]
    if net.shortcut:
        convs.append(Conv(f"{name}.shortcut.conv.conv", width, width, 1, 1, 1, every))
    return convs


def _decoder(mimi: MimiShape) -> Iterator[tuple[str, Shape]]:
    net = mimi.seanet
    width = net.filters << len(net.ratios)
    first = Conv("decoder.model.0.conv.conv", net.dim, width, net.kernel, 1, 1, 1)
    yield from _convs([first])
    place = 2  # 1 is an ELU
    for ratio in net.ratios:
        name = f"decoder.model.{place}.convtr.convtr"
        yield f"{name}.weight", (width, width // 2, 2 * ratio)
        yield f"{name}.bias", (width // 2,)
        width //= 2
        for n in range(net.blocks):
            block = f"decoder.model.{place + 1 + n}"
            yield from _convs(_residual(block, net.dilation**n, width, 1, mimi))
        place += net.blocks + 2
    last = Conv(f"decoder.model.{place}.conv.conv", width, net.channels, net.last_kernel, 1, 1, 1)
    yield from _convs([last])
