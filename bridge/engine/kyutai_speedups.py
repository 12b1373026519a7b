"""What is done in another way than moshi does it, because it is faster and says the same.

``attention``  what layers have in common is made once a step, and of rings only so much is read as
               has been written (`kyutai_attention.py`)
``products``   on a CPU, products of few rows the other way round (`kyutai_products.py`)
``codes``      the quantiser's nearest entries by one product a book (`kyutai_codes.py`)
``graph``      on a GPU, a step is one CUDA graph (`kyutai_graph.py`)

Each can be left out (`engine.speedups`). None changes what rows say, but for ties that the order of
a float's sums decides, as the size of a batch does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel

from bridge.engine.kyutai_attention import POSITIONS, SharedAttention
from bridge.engine.kyutai_codes import DirectCodes
from bridge.engine.kyutai_products import TurnedProducts

ALL = "attention", "codes", "graph", "products"
PARTS = 8, 4, 2, 1  # of the context that a step may be made for
WHOLE = 8  # frames; a reach is a whole number of these


class Speedups:
    """Those of `names`, in two models that are streaming.

    A step may look back over one of `reaches` frames of the language model's context; each is a
    CUDA graph, so that there are few.
    """

    def __init__(self, mimi: MimiModel, lm: LMModel, names: Collection[str]) -> None:
        self._attention: list[tuple[SharedAttention, int]] = []  # and its steps in a frame
        self._others: list[DirectCodes | TurnedProducts] = []
        if "codes" in names:
            self._others.append(DirectCodes(mimi, lm))
        if "products" in names and lm.device.type == "cpu":
            self._others.append(TurnedProducts([mimi, lm]))
        context = lm.context
        assert context is not None
        self.reaches: tuple[int, ...] = (context,)
        if "attention" in names:
            encoder = cast(Any, mimi.encoder_transformer).transformer
            stride = round(mimi.encoder_frame_rate / mimi.frame_rate)
            self._attention = [
                (SharedAttention(lm.transformer), 1),
                (SharedAttention(encoder), stride),
            ]
            sizes = {-(-context // (part * WHOLE)) * WHOLE for part in PARTS}
            self.reaches = *sorted(size for size in sizes if size < context), context

    @property
    def unused(self) -> Collection[str]:
        """Names of state that no step reads."""
        return POSITIONS if self._attention else ()

    def reach_for(self, frames: int) -> int:
        """The least of `reaches` that is enough for so many; at most the context."""
        return next((reach for reach in self.reaches if reach >= frames), self.reaches[-1])

    def reach(self, frames: int | None) -> None:
        """In the next step no active row has more than so many behind it. None: it may."""
        for attention, stride in self._attention:
            wanted = attention.context if frames is None else frames * stride
            attention.reach = min(attention.context, wanted)

    def settle(self) -> None:
        """Rows are where calls begin."""
        for attention, _ in self._attention:
            attention.tell_layers()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """moshi's own ways meanwhile."""
        with ExitStack() as stack:
            for speedup in (*(attention for attention, _ in self._attention), *self._others):
                stack.enter_context(speedup.aside())
            yield
