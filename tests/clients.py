"""What the tests of the client protocols share: speech as bytes, a protocol by hand, fuzz."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridge.ingress.media_socket import (
    LegBegan,
    LegEnded,
    MediaSocket,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
)
from bridge.types import CallEvent, CallInfo, Ended, EventBody, Heard, Word
from tests.sockets import at_rate, speech


def pcm16(words: Sequence[int], rate: int = 24000) -> bytes:
    """Words of the tones engine, and the silence that ends their turn."""
    return at_rate(speech(words), rate).tobytes()


def float32(words: Sequence[int], rate: int = 24000) -> bytes:
    return (at_rate(speech(words), rate) / np.float32(32768)).astype("<f4").tobytes()


class ByHand:
    """A protocol without a bridge. `sent`: what it has said so far, parsed."""

    def __init__(self, make: Callable[[Opening, SocketRules, float], MediaSocket], **query: str):
        self.now = 100.0
        self.rules = SocketRules(clock=lambda: self.now, step=lambda: 0.012)
        self.it = make(Opening("/", query, id="11111111-2222-4333-8444-555555555555"),
                       self.rules, self.now)  # fmt: skip
        self.events: list[SocketEvent] = []

    def _took(self, events: Sequence[SocketEvent]) -> list[SocketEvent]:
        self.events += events
        return list(events)

    def text(self, message: Any) -> list[SocketEvent]:
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self._took(self.it.text(raw, self.now))

    def binary(self, message: bytes) -> list[SocketEvent]:
        return self._took(self.it.binary(message, self.now))

    def wait(self, seconds: float) -> list[SocketEvent]:
        self.now += seconds
        return self._took(self.it.expire(self.now)) if self.now >= self.it.next_at else []

    def tell(self, body: EventBody, leg: Any = "caller") -> None:
        info = CallInfo("11111111-2222-4333-8444-555555555555")
        self.it.told(leg, CallEvent(info, 0, 1_700_000_000.0, leg, body))

    def hear(self, *words: str, pause: float = 0.0, at: float = 1.0, leg: Any = "caller") -> None:
        """Each word takes half a second, the last ends at `at`."""
        start = at - len(words) / 2
        said = tuple(Word(w, start + i / 2, start + i / 2 + 0.5, 0.9) for i, w in enumerate(words))
        self.it.heard(leg, Heard(said, (), pause, at))

    def over(self) -> None:
        self.tell(Ended("hangup", 1.0, {}))

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.it.messages()]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                               max_size=3),
    max_leaves=8,
)  # fmt: skip


def mutated(messages: Sequence[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """Text messages: valid ones, valid ones with a value replaced, and nonsense."""

    def spoilt(pair: tuple[dict[str, Any], int, Any]) -> bytes:
        message, which, value = pair
        names = list(message)
        return json.dumps({**message, names[which % len(names)]: value}).encode()

    valid = st.sampled_from(messages).map(lambda m: json.dumps(m).encode())
    changed = st.tuples(st.sampled_from(messages), st.integers(0, 9), JSON).map(spoilt)
    return valid | changed | JSON.map(lambda j: json.dumps(j).encode()) | st.binary(max_size=40)


def survives(hand: ByHand, messages: Sequence[tuple[str, bytes]]) -> None:
    """Nothing but events or `SocketError`, and every leg that begins ends, once, after `eof`."""
    try:
        for kind, message in messages:
            if kind == "wait":
                hand.wait(len(message))
            elif kind == "text":
                hand.text(message)
            else:
                hand.binary(message)
            if hand.it.goodbye is not None:
                break
    except SocketError as e:
        assert str(e) and 1000 <= e.code < 5000
    hand.events += hand.it.eof("eof")
    began = sum(isinstance(event, LegBegan) for event in hand.events)
    assert began == sum(isinstance(event, LegEnded) for event in hand.events)
    assert hand.it.eof("eof") == []
    hand.it.messages()


def said_at_random(texts: st.SearchStrategy[bytes]) -> Any:
    """For `survives`."""
    one = st.tuples(st.just("text"), texts) | st.tuples(
        st.sampled_from(["binary", "wait"]), st.binary(max_size=40)
    )
    return st.lists(one, max_size=12)
