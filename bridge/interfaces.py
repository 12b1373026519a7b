"""The places to extend: Ingress, Recogniser / BatchModel, Egress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bridge.types import Block, CallEvent, Heard, IngressEvent

Upsampling: TypeAlias = Literal["filter", "repeat"]


class Ingress(Protocol):
    """One peer's wire protocol, without I/O. Bytes and the time are arguments."""

    def receive(self, data: bytes, now: float) -> Sequence[IngressEvent]:
        """Take bytes as they came. Raises `ProtocolError`, after which it must not be called."""

    def deadline(self) -> float | None:
        """When `expire` wants to be called next, or None."""

    def expire(self, now: float) -> Sequence[IngressEvent]:
        """Let time pass: playout, idle peers, keep-alive."""

    def data_to_send(self) -> Sequence[bytes]:
        """Messages to write, each in one write. Empties the list."""


class Lease(Protocol):
    """One leg's right to one slot. All its engine state dies with it."""

    dropped: int
    """Blocks that the bounded queue lost, oldest first."""

    def push(self, block: Block) -> None:
        """Queue one block. Never blocks; when the queue is full the oldest block is dropped."""

    def flush(self) -> None:
        """The speaker has paused: words that the engine holds back are wanted now."""

    def finish(self) -> None:
        """No more audio: drain the model's delay, then call `done`. Idempotent."""

    def evict(self) -> None:
        """Give the slot back now; neither `heard` nor `done` is called again. Idempotent."""


class Recogniser(Protocol):
    """What a leg talks to. The local batch is one; a cluster or another engine is another.

    `heard` and `done` are called on the event loop's thread, never from inside `lease`, `push`
    or `finish`. Word times are seconds since the lease's first block, and count blocks that
    were dropped.
    """

    name: str
    rate: int  # Hz
    block: int  # samples
    slots: int
    """0 until it is started, where the engine finds out itself."""
    upsampling: Upsampling
    settle: float
    """Seconds of silence after which everything before them has been said; set once it is started.
    """
    counters: Counter[str]
    """What happened to the engine: restarts and the like."""
    on_step: Callable[[float, int], None]
    """Told (seconds, legs) of each batch step, by an engine that steps in batches."""

    @property
    def used(self) -> int:
        """Slots that are leased."""

    @property
    def ready(self) -> bool:
        """True when the engine is loaded and steps."""

    async def start(self) -> None:
        """Load and warm up. Raises `EngineUnavailable`."""

    async def close(self) -> None:
        """Free everything. Leases are evicted."""

    def language(self, text: str) -> str:
        """The language of a final, ISO 639-1; empty when it cannot be told."""

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> Lease:
        """A fresh slot. Raises `Busy` when there is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input: a row per slot. The arrays are the model's own, the same in every step.

    `pcm`: float32[slots, block]; what rows hold that are not active means nothing. `active`:
    bool[slots]; the state of other rows must not move. `fresh`: bool[slots]; reset these rows
    before the step. `ending`: bool[slots]; these rows' last step, whatever is still open is said.
    """

    pcm: npt.NDArray[np.float32]
    active: npt.NDArray[np.bool_]
    fresh: npt.NDArray[np.bool_]
    ending: npt.NDArray[np.bool_]

    @classmethod
    def zeros(cls, slots: int, block: int) -> Batch:
        """Arrays of their own."""
        return cls(
            np.zeros((slots, block), np.float32),
            np.zeros(slots, np.bool_),
            np.zeros(slots, np.bool_),
            np.zeros(slots, np.bool_),
        )


class BatchModel(Protocol):
    """A batched streaming model. Blocking; made and stepped on one thread only."""

    slots: int
    rate: int  # Hz
    block: int  # samples
    delay: float  # seconds from the end of a word to its output
    batch: Batch

    def step(self) -> Mapping[int, Heard]:
        """One block of `batch` further for every active row: what is news, by slot.

        Word times, `at` and `settled` are seconds since the row's fresh step. Any exception means
        that the model is lost and must be made anew.
        """

    def close(self) -> None:
        """Free everything. Idempotent; from any thread, and a step under way fails at once."""


class Egress(Protocol):
    """One way of telling call control."""

    name: str

    async def deliver(self, event: CallEvent) -> None:
        """Hand over one event. Raises `DeliveryError` to be called again later."""

    async def start(self) -> None:
        """Connect, if that takes anything."""

    async def close(self) -> None:
        """Let go of connections."""
