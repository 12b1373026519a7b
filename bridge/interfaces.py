"""The places to extend: Ingress, Recogniser / BatchModel, Egress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
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
    upsampling: Upsampling
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

    def lease(self, heard: Callable[[Heard], None], done: Callable[[], None]) -> Lease:
        """A fresh slot. Raises `Busy` when there is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input: a row per slot.

    `pcm`: float32[slots, block]; rows that are not active hold zeros. `active`: bool[slots]; the
    state of other rows must not move. `fresh`: bool[slots]; reset these rows before the step.
    """

    pcm: npt.NDArray[np.float32]
    active: npt.NDArray[np.bool_]
    fresh: npt.NDArray[np.bool_]


class BatchModel(Protocol):
    """A batched streaming model. Blocking; made and called on one thread only."""

    slots: int
    rate: int  # Hz
    block: int  # samples
    delay: float  # seconds from the end of a word to its output

    def step(self, batch: Batch) -> Sequence[Heard]:
        """One block further for every active row. One `Heard` per slot; others are ignored.

        Word times and `at` are seconds since the row's fresh step. Any exception means that the
        model is lost and must be made anew.
        """


class Egress(Protocol):
    """One way of telling call control."""

    name: str

    async def deliver(self, event: CallEvent) -> None:
        """Hand over one event. Raises `DeliveryError` to be called again later."""

    async def start(self) -> None:
        """Connect, if that takes anything."""

    async def close(self) -> None:
        """Let go of connections."""
