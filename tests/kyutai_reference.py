"""What `moshi.run_inference` does with one call, alone: the oracle for the rows of a batch.

The loop is its `InferenceState.run` with what it prints given back instead
(`test_the_reference_is_what_run_inference_does` runs the two side by side), on models that moshi
loads by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from moshi.models import loaders
from moshi.models.lm import LMGen
from moshi.quantization.core_vq import EuclideanCodebook
from moshi.utils.compile import no_compile

from bridge.engine.kyutai import KyutaiRows
from bridge.engine.kyutai_random import sound
from bridge.engine.rows import RowArrays, arrays

FRAME = 1920  # samples
CLOSE = 1e-5  # of float32 probabilities, between batch sizes
Audio = npt.NDArray[np.float32]
TIE = 5e-6
"""Relative difference of two distances, or logits, that the order of a float32 sum may turn round.

Between batch sizes Mimi's latents were seen to differ by 1.2e-6 of their size: a matrix product
adds up in another order. The oracle and the batch are both right then.
"""


@dataclass(frozen=True)
class Said:
    """What a call heard said, a row per frame of its audio (the silent prefix is left out).

    `codes` [n, books], `tokens` [n], `probability` [n] of the token, `pauses` [n, heads], `logits`
    [n, text_card] that the token is the greatest of.
    `closest` [n]: of all decisions up to here, how far, relatively, the closest one was from going
    the other way.
    """

    codes: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32]
    pauses: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    closest: npt.NDArray[np.float32]

    def tied(self, frame: int) -> bool:
        """Whether a decision up to `frame` could have gone either way."""
        return bool(self.closest[frame] < TIE)


class Reference:
    """A checkpoint as moshi loads it. `heads`: of the weights, whose configuration has none."""

    def __init__(
        self,
        directory: Path,
        *,
        heads: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        mimi_config = directory / "mimi.json"
        self.info = loaders.CheckpointInfo.from_hf_repo(
            "",
            moshi_weights=directory / "model.safetensors",
            mimi_weights=directory / "mimi.safetensors",
            tokenizer=directory / "tokenizer.model",
            config_path=directory / "config.json",
            mimi_config_path=mimi_config if mimi_config.exists() else None,
        )
        extra = {"extra_heads_num_heads": heads} if heads else {}
        self.mimi: Any = self.info.get_mimi(device)
        self.lm: Any = self.info.get_moshi(device, dtype, lm_kwargs_overrides=extra)
        self.device = device
        self.prefix = int(self.info.stt_config["audio_silence_prefix_seconds"] * 24000)

    def compiling(self) -> AbstractContextManager[None]:
        """On a CPU moshi would compile its last norm, which takes a compiler and a minute."""
        return no_compile() if self.device == "cpu" else nullcontext()

    def hear(self, audio: Audio) -> Said:
        """float32[samples] at 24 kHz in [-1, 1]; a last frame that is not whole is left out."""
        padded = np.concatenate([np.zeros(self.prefix, np.float32), audio])
        pcm = torch.from_numpy(padded).to(self.device)[None, None]
        whole = pcm.shape[2] // FRAME * FRAME
        chunks = pcm[:, :, :whole].chunk(whole // FRAME, dim=2)
        frames: list[list[Any]] = []
        logits: list[torch.Tensor] = []
        gen = LMGen(
            self.lm, condition_tensors={}, on_text_logits_hook=logits.append,
            **self.info.lm_gen_config,
        )  # fmt: skip
        closest, first = 1.0, True
        with torch.no_grad(), self.compiling(), self.mimi.streaming(1), gen.streaming(1):
            for chunk in chunks:
                with _margins() as margins:
                    codes = self.mimi.encode(chunk)
                if first:
                    # As run_inference: step 0 hears initial tokens instead of the first frame.
                    gen.step(codes)
                    first = False
                said = gen.step_with_extra_heads(codes)
                assert said is not None
                tokens, heads = said
                values = logits[-1][0, 0, 0].float()
                best, second = values.topk(2).values
                closest = min(closest, *margins, float((best - second) / values.std()))
                frames.append([
                    codes[0, :, 0].cpu().numpy(), int(tokens[0, 0, 0]),
                    float(values.softmax(-1).max()), [float(head[0, 0, 0]) for head in heads],
                    values.cpu().numpy(), closest,
                ])  # fmt: skip
                logits.clear()
        columns = zip(*frames[self.prefix // FRAME :], strict=True)
        kinds = (np.int64, np.int64, *[np.float32] * 4)
        return Said(*(np.array(c, kind) for c, kind in zip(columns, kinds, strict=True)))


@contextmanager
def _margins() -> Iterator[list[float]]:
    """How clear each choice of the books was: of one row, between its two nearest entries."""
    margins: list[float] = []
    quantise = EuclideanCodebook._quantize

    def watched(self: EuclideanCodebook, x: torch.Tensor) -> torch.Tensor:
        near = torch.cdist(x[None], self.embedding[None])[0].topk(2, dim=-1, largest=False).values
        margins.append(float(((near[:, 1] - near[:, 0]) / near[:, 1]).min()))
        return quantise(self, x)

    with mock.patch.object(EuclideanCodebook, "_quantize", watched):
        yield margins


class Oracle:
    """What the reference says of calls that are named by a seed and a length in frames."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._said: dict[tuple[int, int], Said] = {}

    def audio(self, seed: int, frames: int) -> Audio:
        return sound(frames * FRAME / 24000, seed)

    def said(self, seed: int, frames: int) -> Said:
        key = seed, frames
        if key not in self._said:
            self._said[key] = self.reference.hear(self.audio(seed, frames))
        return self._said[key]


@dataclass
class Call:
    """Audio on a row, and what came of it so far."""

    audio: Audio
    blocks: int = 0
    tokens: list[int] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    pauses: list[list[float]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.blocks == len(self.audio) // FRAME

    def next_block(self) -> Audio:
        self.blocks += 1
        return self.audio[(self.blocks - 1) * FRAME : self.blocks * FRAME]


class Board:
    """Rows, and the calls on them. What lies in rows that are not active is rubbish."""

    def __init__(self, rows: KyutaiRows, seed: int = 0) -> None:
        self.rows = rows
        self.arrays: RowArrays = arrays(rows.facts.slots, FRAME, rows.facts.heads)
        self.on: list[Call | None] = [None] * rows.facts.slots
        self.dice = np.random.default_rng(seed)
        self.steps = 0

    def step(self, *active: int) -> None:
        """One block further on these rows; a call's first one makes the row fresh."""
        dice, a = self.dice, self.arrays
        a.pcm[:] = dice.choice(np.array([0, 1, -7, 1e30, np.nan, np.inf], np.float32), a.pcm.shape)
        a.active[:] = a.fresh[:] = False
        for row in active:
            call = self.on[row]
            assert call is not None
            a.active[row], a.fresh[row] = True, call.blocks == 0
            a.pcm[row] = call.next_block()
        self.rows.step(a)
        self.steps += 1
        for row in active:
            call = self.on[row]
            assert call is not None
            call.tokens.append(int(a.tokens[row]))
            call.probability.append(float(a.probability[row]))
            call.pauses.append([float(p) for p in a.pauses[row]])

    def play(self, *audios: Audio, arrive: float = 0.3, pause: float = 0.3) -> list[Call]:
        """Calls that come when a row is free, and whose blocks come when they come."""
        calls = [Call(audio) for audio in audios]
        waiting = calls[::-1]
        while waiting or any(self.on):
            for row, call in enumerate(self.on):
                if call is not None and call.over:
                    self.on[row] = call = None
                if call is None and waiting and self.dice.random() < arrive:
                    self.on[row] = waiting.pop()
            ready = [row for row, call in enumerate(self.on) if call is not None]
            active = [row for row in ready if self.dice.random() >= pause]
            if active:
                self.step(*active)
        return calls


def agrees(call: Call, said: Said) -> bool:
    """Token for token. False: they part after a tie, which float32 may decide either way."""
    tokens = np.array(call.tokens)
    same = tokens == said.tokens[: len(tokens)]
    assert len(tokens) and len(tokens) <= len(said.tokens)
    until = len(tokens) if same.all() else int(same.argmin())
    np.testing.assert_allclose(call.probability[:until], said.probability[:until], atol=CLOSE)
    np.testing.assert_allclose(call.pauses[:until], said.pauses[:until], atol=CLOSE)
    assert same.all() or said.tied(until), f"other tokens from frame {until} on"
    return bool(same.all())


def assert_agree(calls: list[Call], said: list[Said]) -> None:
    parted = [not agrees(*pair) for pair in zip(calls, said, strict=True)]
    assert sum(parted) <= len(parted) // 20, "too many ties to be any"


def forced(rows: KyutaiRows, said: Sequence[Said]) -> npt.NDArray[np.float32]:
    """Logits [calls, frames, text_card] of rows that are made to hear the reference's codes and to
    say its tokens, so that one difference does not lead to others. A call per row, each two frames
    after the one before. The model must have no prefix.
    """
    count, frames = len(said), min(len(s.tokens) for s in said)
    board = Board(rows)
    found = np.zeros((count, frames, said[0].logits.shape[1]), np.float32)
    seen: list[torch.Tensor] = []
    gen, heard = rows._gen, rows._on_logits
    device = gen.lm_model.device

    def logits(values: torch.Tensor) -> None:
        seen.append(values[:, 0, 0].float().cpu())
        heard(values)

    for step in range(frames + 2 * (count - 1)):
        at = [(row, step - 2 * row) for row in range(count) if 0 <= step - 2 * row < frames]
        codes = torch.zeros(rows.facts.slots, said[0].codes.shape[1], 1, dtype=torch.long)
        tokens = torch.zeros(rows.facts.slots, dtype=torch.long)
        for row, frame in at:
            codes[row, :, 0] = torch.from_numpy(said[row].codes[frame])
            tokens[row] = int(said[row].tokens[frame])
            if not frame:
                board.on[row] = Call(np.zeros(frames * FRAME, np.float32))
        wanted = tokens.to(device)
        gen.on_text_logits_hook = logits
        gen.on_text_hook = lambda chosen, wanted=wanted: chosen.copy_(wanted)
        with mock.patch.object(rows._mimi, "encode", lambda pcm, codes=codes: codes.to(device)):
            board.step(*(row for row, _ in at))
        for row, frame in at:
            found[row, frame] = seen[-1][row].numpy()
    gen.on_text_logits_hook, gen.on_text_hook = heard, None
    return found


def assert_close_in_bfloat16(found: npt.NDArray[np.float32], said: Sequence[Said]) -> None:
    """What `forced` found, against the reference's logits, both of a model in bfloat16.

    A matrix product over another number of rows adds up in another order, and where its sum lies
    near the middle of two bfloat16 numbers (which are 0.8 % apart), one run rounds up and the other
    down. With random weights, one row against eight, on a CPU, this was seen to move logits by
    0.0003, 0.006 and 0.013 of their standard deviation on average with 2, 16 and 48 layers; 0, 0.3
    and 2.8 % of the tokens were others, each the second best by less than 0.16 deviations. The
    bounds are four times what 48 layers need. A ring, position or state that is wrong moves logits
    by whole deviations.
    """
    frames = found.shape[1]
    logits = np.stack([s.logits[:frames] for s in said])
    deviation = logits.std(axis=2, keepdims=True)
    moved = np.abs(found - logits) / deviation
    assert moved.mean(axis=2).max() < 0.05
    tokens = np.stack([s.tokens[:frames] for s in said])
    others = found.argmax(axis=2) != tokens
    assert others.mean() < 0.1
    best = logits.max(axis=2, keepdims=True)
    behind = (best - np.take_along_axis(logits, found.argmax(axis=2)[..., None], 2)) / deviation
    assert behind.max() < 0.6
