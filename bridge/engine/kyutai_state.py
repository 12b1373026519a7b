"""The state of a row before its first block, and how a row gets it.

`moshi.run_inference` feeds its first frame twice, because LMGen's step 0 takes initial tokens in
the place of what it is given. That step, and those of the silent prefix that some models want,
are the same for every call. They are computed once for all; what they leave behind in row 0 is
kept, and copied into each row that a call begins on.

Every tensor that a streaming module of moshi has for its rows is found by looking, none is named
here: a state that a later moshi adds is either understood (its rows are where the others have
theirs) or stops the loading.

Now and then moshi puts a new tensor in the place of one. A CUDA graph writes where a tensor was,
so it is put back (`RowState.pin`) at the end of each step, with the new one's values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from moshi.modules.streaming import StreamingModule
from moshi.modules.transformer import RingKVCache
from moshi.utils.compile import CUDAGraphed

_PER_STEP = {"exec_mask"}  # said anew before each step
_SHARED = {"initial"}  # of LMGen: the same for all rows


@dataclass(slots=True)
class _Cell:
    """One tensor of a streaming state. `tensor` as it was found."""

    owner: Any
    name: str
    dim: int  # of the rows
    tensor: torch.Tensor
    template: torch.Tensor | None = None  # None: not needed in a fresh row
    positions: int | None = None  # of a ring: only so many have been written

    @property
    def current(self) -> torch.Tensor:
        found = getattr(self.owner, self.name)
        assert isinstance(found, torch.Tensor)
        return found

    def pin(self) -> None:
        """Put `tensor` back where another is now, with its values."""
        current = self.current
        if current is not self.tensor:
            self.tensor.copy_(current)
            setattr(self.owner, self.name, self.tensor)

    def take(self) -> None:
        """Row 0's value, now, is what fresh rows begin with."""
        if isinstance(self.owner, RingKVCache) and self.name == "cache":
            self.positions = min(int(self.owner.end_offset[0]), self.owner.capacity)
        self.template = None
        if self.positions != 0:
            self.template = self._written().narrow(self.dim, 0, 1).clone()

    def restore(self, rows: torch.Tensor) -> None:
        """`rows` bool[slots]: these begin anew."""
        if self.template is None:
            return
        tensor = self._written()
        shape = [1] * tensor.dim()
        shape[self.dim] = -1
        tensor.copy_(torch.where(rows.view(shape), self.template, tensor))

    def _written(self) -> torch.Tensor:
        """Of a ring [2, rows, heads, capacity, dim] the positions that are not empty."""
        if self.positions is None:
            return self.tensor
        return self.tensor[:, :, :, : self.positions]


def _cells(owner: Any, slots: int) -> Iterator[_Cell]:
    for name, value in vars(owner).items():
        if name in _PER_STEP or name in _SHARED:
            continue
        if isinstance(value, RingKVCache):
            yield from _cells(value, slots)
        elif isinstance(value, torch.Tensor):
            dim = 1 if isinstance(owner, RingKVCache) and name == "cache" else 0
            if value.dim() <= dim or value.shape[dim] != slots:
                raise RuntimeError(
                    f"this moshi keeps a state that is not known here: {type(owner).__name__}."
                    f"{name}, {list(value.shape)}; use moshi 0.2.13"
                )
            yield _Cell(owner, name, dim, value)


class RowState:
    """All that `modules`, which are streaming, keep for `slots` rows.

    `unused`: names of what they have and no step reads, so that it need not be restored.
    """

    def __init__(
        self,
        modules: Sequence[StreamingModule[Any]],
        slots: int,
        *,
        unused: Collection[str] = (),
    ) -> None:
        states = [state for module in modules for state in module.get_streaming_state().values()]
        self._slots = slots
        self._cells = [cell for state in states for cell in _cells(state, slots)]
        self._used = [cell for cell in self._cells if cell.name not in unused]
        disable = self._cells[0].tensor.device.type != "cuda"
        self._graphed = CUDAGraphed(self._restore, disable=disable)

    @property
    def slot_bytes(self) -> int:
        """Of the device's memory, per slot."""
        return sum(cell.tensor.nbytes for cell in self._cells) // self._slots

    def take(self) -> None:
        """Row 0, as it is now, is how rows begin."""
        self.pin()
        for cell in self._cells:
            cell.take()

    def pin(self) -> None:
        """Every tensor is where it was at first."""
        for cell in self._cells:
            cell.pin()

    def put_back(self) -> None:
        """As `pin`, but what the others hold is lost: rows must begin anew."""
        for cell in self._cells:
            setattr(cell.owner, cell.name, cell.tensor)

    def restore(self, rows: torch.Tensor) -> None:
        """`rows` bool[slots] on the device: these begin anew, nothing of others changes."""
        self.pin()  # or what is written would be read by nobody
        self._graphed(rows)

    def _restore(self, rows: torch.Tensor) -> None:
        for cell in self._used:
            cell.restore(rows)
