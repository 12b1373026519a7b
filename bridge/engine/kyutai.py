"""Kyutai's streaming speech-to-text on torch and moshi: many calls, each a row of one batch.

The only modules that know torch and moshi are this one and `kyutai_*.py` beside it; they know
nothing of calls and words, and run in a process of their own (`bridge/engine/process.py`).

A step is what `moshi.run_inference` does for one call, for all rows at once: Mimi makes codes of
a frame of 80 ms, LMGen makes a token of the codes. Rows that are not active stay where they are
(moshi's exec mask, of which all modules have the same one here). Rows that begin get the state that
every call has before its first frame (`kyutai_state.py`). Nothing here is done row by row in
Python, and there is one copy to the device and one back. Between them a step works on tensors that
stay where they are: on a GPU it is one CUDA graph (`kyutai_graph.py`), replayed.

When the prefix is not a whole number of frames (24,000 samples are 12.5) a model's frame begins
in the middle of a block: the rest of the block before is carried over, per row.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from moshi.models.compression import MimiModel
from moshi.models.lm import LMGen, LMModel
from moshi.modules.streaming import StreamingModule
from moshi.utils.compile import no_compile, no_cuda_graph

from bridge.engine.kyutai_graph import MakeGraphs, StepGraphs, graphs_for
from bridge.engine.kyutai_speedups import ALL, Speedups
from bridge.engine.kyutai_state import RowState
from bridge.engine.rows import ModelFacts, RowArrays, arrays
from bridge.errors import EngineUnavailable

log = logging.getLogger(__name__)

WARM_UP = 4  # steps: torch.compile works on the first, moshi captures CUDA graphs on the second
TRIAL = 12  # steps that a graph must say as they are said without it
MASKS = 2  # columns of the input beside the samples: active, fresh
OUTPUTS = 3  # columns of the output before the pauses: token, its probability, the block's norm
# Weights of which a step reads nothing, or a row: tables of tokens, and what only decodes.
_UNREAD = re.compile(r"^(text_)?emb\.|embedding_sum$|output_proj\.weight$")


class KyutaiRows:
    """A `RowModel`. Takes `mimi` (float32) and `lm` over; Mimi's decoder is thrown away.

    `facts.slots`, `.prefix`, `.heads`, `.rate` and `.block` are what the models are run with.
    `compiled`: let torch.compile make moshi's norms, rotations and gates; it needs a compiler.
    `speedups`: see `kyutai_speedups`; rows say the same without them.
    """

    def __init__(
        self,
        mimi: MimiModel,
        lm: LMModel,
        facts: ModelFacts,
        *,
        compiled: bool = False,
        speedups: Collection[str] = ALL,
    ) -> None:
        self._device = lm.device
        self._compiled = compiled
        self._closed = False
        self._probability = torch.zeros(0)
        self._graphs: StepGraphs | None = None
        self._make_graphs = graphs_for(self._device) if "graph" in speedups else None
        self.closing = ExitStack()  # what ends with the rows
        drop_decoder(mimi)
        with torch.inference_mode(), self._compiling():
            self._gen = LMGen(
                lm,
                use_sampling=False,
                temp=0.0,
                temp_text=0.0,
                condition_tensors={},
                on_text_logits_hook=self._on_logits,
                support_out_of_sync=True,
            )
            self._mimi = mimi
            self.closing.enter_context(mimi.streaming(facts.slots))
            self.closing.enter_context(self._gen.streaming(facts.slots))
            models: list[StreamingModule[Any]] = [mimi, self._gen, lm]
            self._active = _one_exec_mask(models)
            self._speedups = Speedups(mimi, lm, speedups)
            self._state = RowState(models, facts.slots, unused=self._speedups.unused)
            self._make_buffers(facts)
            self._begin(facts)
            self._speedups.settle()
            self._state.take()
        self.facts = replace(facts, slot_bytes=self._state.slot_bytes)
        self._warm_up()

    def _make_buffers(self, facts: ModelFacts) -> None:
        """Host memory that both copies of a step go through, pinned when there is a GPU."""
        pin = self._device.type == "cuda"
        columns = facts.block + MASKS
        self._host_in = torch.zeros(facts.slots, columns, pin_memory=pin)
        self._device_in = self._host_in.to(self._device)  # on a CPU the same memory
        self._host_out = torch.zeros(facts.slots, OUTPUTS + facts.heads, pin_memory=pin)
        self._device_out = self._host_out.to(self._device)
        self._rest = facts.prefix % facts.block
        self._carry = torch.zeros(facts.slots, self._rest, device=self._device)
        self._begun = 1 + facts.prefix // facts.block  # steps of LMGen before a call's first
        self._heard = np.full(facts.slots, self._begun)  # steps of each row

    def _begin(self, facts: ModelFacts) -> None:
        """All rows through LMGen's initial step and the whole frames of the silent prefix."""
        lm = self._gen.lm_model
        nothing = torch.zeros(facts.slots, lm.n_q, 1, dtype=torch.long, device=self._device)
        silence = torch.zeros(facts.slots, 1, facts.block, device=self._device)
        with self._parts():
            self._gen.step(nothing)  # hears initial tokens, not these
            for _ in range(facts.prefix // facts.block):
                self._gen.step(self._mimi.encode(silence))

    def _parts(self) -> AbstractContextManager[None]:
        """moshi's own CUDA graphs, of parts of a step: not where the whole of it is one.

        They would take memory, and each its own.
        """
        return nullcontext() if self._make_graphs is None else no_cuda_graph()

    def _warm_up(self) -> None:
        """Everything that a step may do, until nothing is compiled or captured any more."""
        trial = self._noise()
        for attempt in range(2 * WARM_UP):
            trial.fresh[:] = attempt == 0 or attempt >= WARM_UP
            self.step(trial)
        if not np.isfinite(trial.probability).all():
            raise EngineUnavailable(
                f"the weights of {self.facts.name} give no numbers in {self.facts.dtype} (NaN): "
                "fetch them again, or set another engine.dtype"
            )
        if self._make_graphs is not None:
            self._capture(self._make_graphs)

    def _noise(self) -> RowArrays:
        trial = arrays(self.facts.slots, self.facts.block, self.facts.heads)
        trial.pcm[:] = np.random.default_rng(0).uniform(-0.1, 0.1, trial.pcm.shape)
        trial.active[:] = True
        return trial

    def _capture(self, make: MakeGraphs) -> None:
        """Make the graphs, and keep them if they say what is said without them."""
        expected = self._tried()
        try:
            with torch.inference_mode(), self._compiling():
                self._graphs = make(self._run, self._speedups.reaches)
            why = "" if np.array_equal(self._tried(), expected) else "it says something else"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:
            why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        if why:
            log.warning("a step cannot be one CUDA graph here, and takes longer: %s", why)
            self._graphs = self._make_graphs = None
            self._state.put_back()
            self._warm_up()

    def _tried(self) -> npt.NDArray[np.int32]:
        """Tokens [TRIAL, slots] of noise, through all variants of a step; the rows are ragged."""
        trial, dice, said = self._noise(), np.random.default_rng(1), []
        for attempt in range(TRIAL):
            trial.fresh[:] = attempt == 0
            trial.active[:] = trial.fresh | (dice.random(self.facts.slots) < 0.8)
            reaches = [reach for reach in self._speedups.reaches if reach >= self._needed(trial)]
            self._step(trial, reaches[attempt % len(reaches)])
            said.append(np.where(trial.active, trial.tokens, -1))
        return np.array(said)

    def step(self, arrays: RowArrays) -> None:
        """See `RowModel.step`."""
        self._step(arrays, self._speedups.reach_for(self._needed(arrays)))

    def _needed(self, arrays: RowArrays) -> int:
        """So many frames back an active row may look in this step."""
        heard = np.where(arrays.fresh, self._begun, self._heard)
        return int(heard.max(where=arrays.active, initial=0)) + 1

    def _step(self, arrays: RowArrays, reach: int) -> None:
        with torch.inference_mode(), self._compiling():
            self._take_in(arrays)
            if arrays.fresh.any():
                fresh = self._device_in[:, self.facts.block + 1] > 0
                self._state.restore(fresh)
                self._carry.masked_fill_(fresh[:, None], 0.0)  # the prefix is silence
            if self._graphs is not None:
                self._graphs.run(reach)
            else:
                self._run(reach)
            if self._device_out is not self._host_out:
                self._host_out.copy_(self._device_out)  # waits for the device
        self._heard[arrays.fresh] = self._begun
        self._heard += arrays.active
        self._give_out(arrays)

    def _take_in(self, arrays: RowArrays) -> None:
        block = self.facts.block
        host = self._host_in.numpy()
        host[:, :block] = arrays.pcm
        host[:, block] = arrays.active
        host[:, block + 1] = arrays.fresh
        if self._device_in is not self._host_in:
            self._device_in.copy_(self._host_in, non_blocking=True)

    def _run(self, reach: int) -> None:
        """From `_device_in` to `_device_out`: what may be a CUDA graph."""
        fixed = self._make_graphs is None and self._device.type == "cuda"  # in moshi's graphs
        self._speedups.reach(None if fixed else reach)
        pcm = self._samples()
        with self._parts():
            codes = self._mimi.encode(self._frames(pcm)[:, None])
            said = self._gen.step_with_extra_heads(codes)
        assert said is not None  # only without support_out_of_sync
        tokens, heads = said
        columns = [tokens[:, 0], self._probability, _norm(pcm)]
        if heads:  # of each its class 0, as Kyutai's own server takes it
            columns.append(torch.cat(heads, dim=2)[:, 0, :: heads[0].shape[2]])
        self._device_out.copy_(torch.cat(columns, dim=1))
        self._state.pin()

    def _samples(self) -> torch.Tensor:
        """[slots, block] in [-1, 1]; and says who is active.

        A NaN or an infinity is a click, as if the sample were 0: kept, it would live on in the
        rings, and a row's next call would hear it (0 × NaN is NaN under the attention's mask).
        """
        block, taken = self.facts.block, self._device_in
        self._active.copy_(taken[:, block] > 0)
        pcm = torch.nan_to_num(taken[:, :block], nan=0.0, posinf=0.0, neginf=0.0)
        return pcm.clamp_(-1.0, 1.0)

    def _frames(self, pcm: torch.Tensor) -> torch.Tensor:
        """What Mimi hears next: the blocks, shifted by the part of a frame that is the prefix's."""
        if not self._rest:
            return pcm
        kept = pcm.shape[1] - self._rest
        frames = torch.cat([self._carry, pcm[:, :kept]], dim=1)
        self._carry.copy_(torch.where(self._active[:, None], pcm[:, kept:], self._carry))
        return frames

    def _give_out(self, arrays: RowArrays) -> None:
        out = self._host_out.numpy()
        arrays.tokens[:] = out[:, 0]
        arrays.probability[:] = out[:, 1]
        arrays.energy[:] = np.square(out[:, 2]) / self.facts.block
        arrays.pauses[:] = out[:, OUTPUTS:]

    def _on_logits(self, logits: torch.Tensor) -> None:
        """`logits` [slots, 1, 1, text_card]. NaN and infinity make NaN."""
        probabilities = logits[:, 0, 0].softmax(dim=-1, dtype=torch.float32)
        self._probability = probabilities.amax(dim=-1, keepdim=True)  # of the token: the greatest

    @contextmanager
    def moshis_own(self) -> Iterator[tuple[MimiModel, LMGen]]:
        """The models as moshi has them, all rows active. To measure by; rows are rubbish after."""
        with torch.inference_mode(), self._compiling(), self._speedups.aside():
            self._active.fill_(True)
            self._gen.on_text_logits_hook = None
            yield self._mimi, self._gen
            self._gen.on_text_logits_hook = self._on_logits
            self._state.pin()

    @property
    def weight_bytes(self) -> int:
        """Of the weights that a step reads, whatever its rows: what bounds its time from below."""
        tensors = [*self._mimi.state_dict().items(), *self._gen.lm_model.state_dict().items()]
        tensors += [(n, b) for n, b in self._mimi.named_buffers() if n.endswith("_embedding")]
        return sum(tensor.nbytes for name, tensor in tensors if not _UNREAD.search(name))

    def _compiling(self) -> AbstractContextManager[None]:
        return nullcontext() if self._compiled else no_compile()

    def close(self) -> None:
        """See `RowModel.close`."""
        if self._closed:
            return
        self._closed = True
        self._graphs = None
        self.closing.close()
        del self._mimi, self._gen, self._state, self._speedups, self._host_in, self._device_in
        del self._host_out, self._device_out, self._active, self._carry, self._probability
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _one_exec_mask(models: Collection[StreamingModule[Any]]) -> torch.Tensor:
    """bool[slots], in the place of one per module: to say who is active is one copy."""
    states = [state for model in models for state in model.get_streaming_state().values()]
    mask: torch.Tensor = states[0].exec_mask
    for state in states:
        state.exec_mask = mask
    return mask


def _norm(pcm: torch.Tensor) -> torch.Tensor:
    """About each block's mean: an offset (DC) is no sound, and would hide the pauses in it."""
    sound = pcm - pcm.mean(dim=1, keepdim=True)
    norm: torch.Tensor = torch.linalg.vector_norm(sound, dim=1, keepdim=True)
    return norm


def drop_decoder(mimi: MimiModel) -> None:
    """Only the encoder hears; the decoder's ring alone is 8 MB per slot. Idempotent."""
    mimi.decoder = torch.nn.Identity()
    mimi.decoder_transformer = None
    if "upsample" in mimi._modules:
        del mimi.upsample
