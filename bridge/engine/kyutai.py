"""Kyutai's streaming speech-to-text on torch and moshi: many calls, each a row of one batch.

The only modules that know torch and moshi are this one and `kyutai_*.py` beside it; they know
nothing of calls and words, and run in a process of their own (`bridge/engine/process.py`).

A step is what `moshi.run_inference` does for one call, for all rows at once: Mimi makes codes of
a frame of 80 ms, LMGen makes a token of the codes. Rows that are not active stay where they are
(moshi's exec mask). Rows that begin get the state that every call has before its first frame
(`kyutai_state.py`). Nothing here is done row by row in Python, and there is one copy to the
device and one back.

When the prefix is not a whole number of frames (24,000 samples are 12.5) a model's frame begins
in the middle of a block: the rest of the block before is carried over, per row.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace

import numpy as np
import torch
from moshi.models.compression import MimiModel
from moshi.models.lm import LMGen, LMModel
from moshi.utils.compile import no_compile

from bridge.engine.kyutai_state import RowState
from bridge.engine.rows import ModelFacts, RowArrays, arrays
from bridge.errors import EngineUnavailable

WARM_UP = 4  # steps: torch.compile works on the first, moshi captures CUDA graphs on the second
MASKS = 2  # columns of the input beside the samples: active, fresh
OUTPUTS = 3  # columns of the output before the pauses: token, its probability, the block's norm
# Weights of which a step reads nothing, or a row: tables of tokens, and what only decodes.
_UNREAD = re.compile(r"^(text_)?emb\.|embedding_sum$|output_proj\.weight$")


class KyutaiRows:
    """A `RowModel`. Takes `mimi` (float32) and `lm` over; Mimi's decoder is thrown away.

    `facts.slots`, `.prefix`, `.heads`, `.rate` and `.block` are what the models are run with.
    `compiled`: let torch.compile make moshi's norms, rotations and gates; it needs a compiler.
    """

    def __init__(
        self, mimi: MimiModel, lm: LMModel, facts: ModelFacts, *, compiled: bool = False
    ) -> None:
        self._device = lm.device
        self._compiled = compiled
        self._closed = False
        self._probability = torch.zeros(0)
        self._some_stay = True  # in the last step not all rows were active
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
            self._state = RowState([mimi, self._gen, lm], facts.slots)
            self._make_buffers(facts)
            self._begin(facts)
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
        self._rest = facts.prefix % facts.block
        self._carry = torch.zeros(facts.slots, self._rest, device=self._device)
        self._noise = torch.rand(facts.slots, 1, facts.block, device=self._device) * 0.2 - 0.1

    def _begin(self, facts: ModelFacts) -> None:
        """All rows through LMGen's initial step and the whole frames of the silent prefix."""
        lm = self._gen.lm_model
        nothing = torch.zeros(facts.slots, lm.n_q, 1, dtype=torch.long, device=self._device)
        self._gen.step(nothing)  # hears initial tokens, not these
        silence = torch.zeros(facts.slots, 1, facts.block, device=self._device)
        for _ in range(facts.prefix // facts.block):
            self._gen.step(self._mimi.encode(silence))

    def _warm_up(self) -> None:
        """Everything that a step may do, until nothing is compiled or captured any more."""
        trial = arrays(self.facts.slots, self.facts.block, self.facts.heads)
        trial.pcm[:] = np.random.default_rng(0).uniform(-0.1, 0.1, trial.pcm.shape)
        trial.active[:] = True
        for attempt in range(2 * WARM_UP):
            trial.fresh[:] = attempt == 0 or attempt >= WARM_UP
            self.step(trial)
            if attempt == 0:
                self._state.settle()
        if not np.isfinite(trial.probability).all():
            raise EngineUnavailable(
                f"the weights of {self.facts.name} give no numbers in {self.facts.dtype} (NaN): "
                "fetch them again, or set another engine.dtype"
            )

    def step(self, arrays: RowArrays) -> None:
        """See `RowModel.step`."""
        self._some_stay = not arrays.active.all()
        with torch.inference_mode(), self._compiling():
            pcm, active, fresh = self._take_in(arrays)
            if arrays.fresh.any():
                self._state.restore(fresh)
                self._carry.masked_fill_(fresh[:, None], 0.0)  # the prefix is silence
            self._mimi.set_exec_mask(active)
            self._gen.set_exec_mask(active)
            codes = self._mimi.encode(self._frames(pcm, active)[:, None])
            said = self._gen.step_with_extra_heads(codes)
            assert said is not None  # only without support_out_of_sync
            tokens, heads = said
            columns = [tokens[:, 0], self._probability, _norm(pcm)]
            if heads:  # of each its class 0, as Kyutai's own server takes it
                columns.append(torch.cat(heads, dim=2)[:, 0, :: heads[0].shape[2]])
            self._host_out.copy_(torch.cat(columns, dim=1))  # waits for the device
        self._give_out(arrays)

    def _take_in(self, arrays: RowArrays) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Samples [slots, block] in [-1, 1], active [slots], fresh [slots], on the device.

        A NaN or an infinity is a click, as if the sample were 0: kept, it would live on in the
        rings, and a row's next call would hear it (0 × NaN is NaN under the attention's mask).
        """
        block = self.facts.block
        host = self._host_in.numpy()
        host[:, :block] = arrays.pcm
        host[:, block] = arrays.active
        host[:, block + 1] = arrays.fresh
        taken = self._device_in
        if taken is not self._host_in:
            taken.copy_(self._host_in, non_blocking=True)
        pcm = torch.nan_to_num(taken[:, :block], nan=0.0, posinf=0.0, neginf=0.0)
        return pcm.clamp_(-1.0, 1.0), taken[:, block] > 0, taken[:, block + 1] > 0

    def _frames(self, pcm: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """What Mimi hears next: the blocks, shifted by the part of a frame that is the prefix's."""
        if not self._rest:
            return pcm
        kept = pcm.shape[1] - self._rest
        frames = torch.cat([self._carry, pcm[:, :kept]], dim=1)
        self._carry.copy_(torch.where(active[:, None], pcm[:, kept:], self._carry))
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

    def raw_step(self) -> None:
        """moshi's own part of a step and nothing else, with all rows: what ours is measured by.

        The rows hear noise, always the same. Returns when the device is done.
        """
        with torch.inference_mode(), self._compiling():
            if self._some_stay:
                self._some_stay = False
                everyone = torch.ones(len(self._noise), dtype=torch.bool, device=self._device)
                self._mimi.set_exec_mask(everyone)
                self._gen.set_exec_mask(everyone)
            self._gen.on_text_logits_hook = None
            self._gen.step_with_extra_heads(self._mimi.encode(self._noise))
            self._gen.on_text_logits_hook = self._on_logits
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

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
        self.closing.close()
        del self._mimi, self._gen, self._state, self._host_in, self._device_in, self._host_out
        del self._noise, self._carry, self._probability
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


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
