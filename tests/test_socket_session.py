"""A leg of a WebSocket: what it is given at once, what is kept for it, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from bridge.auth import Identity
from bridge.ingress.media_socket import LegAsked, LegEnded, MediaSocket
from bridge.line import Line
from bridge.socket_session import BEHIND, HOLD, KEPT, Session, SocketLeg
from bridge.socket_user import Kind
from bridge.types import Frame, Heard

RATE = 8000


class Peer:
    """A connection, a protocol and a line that remember."""

    def __init__(self, *, paced: bool = True) -> None:
        self.log: list[str] = []
        self.given = 0.0  # s
        self.waits = False
        self.leg = None
        connection = self
        self.session = Session(
            cast(Any, connection),
            Kind("pcm", "", paced=paced),
            Identity("loopback", "loopback"),
            cast(MediaSocket, self),
            self._ended,
        )
        self.it = SocketLeg(self.session, "caller", 0.0, self._end, lambda n: None)
        self.session.legs["caller"] = self.it
        self.it.line = cast(Line, self)

    def _ended(self, session: Session, reason: str) -> None: ...

    def _end(self, leg: SocketLeg, reason: str) -> None:
        self.log.append(f"ended {reason}")

    # the connection
    def hold(self, until: float) -> None:
        assert until == HOLD
        self.waits = True

    def release(self) -> None:
        self.waits = False

    def flush(self) -> None: ...

    # the protocol
    goodbye = None

    def heard(self, leg: str, heard: Heard) -> None: ...

    def finalised(self, leg: str) -> None: ...

    # the line
    def audio(self, frame: Frame) -> int:
        assert round(self.given * RATE) == frame.start
        self.given += len(frame.samples) / RATE
        return 0

    def finalise(self, done: Callable[[], None]) -> None:
        self.log.append(f"asked at {self.given:g}")

    def comes(self, seconds: float, since: float = 0.0) -> None:
        samples = np.zeros(round(seconds * RATE), np.int16)
        self.it.audio(Frame(samples, RATE, round(since * RATE)), 0.0)

    def listens(self, at: float) -> None:
        self.it.heard(Heard(at=at))


def test_a_long_message_is_given_as_fast_as_it_is_heard() -> None:
    peer = Peer()
    peer.comes(20)
    assert BEHIND < peer.given <= BEHIND + 1 and peer.waits
    peer.listens(10)
    assert 13 < peer.given <= 14 and peer.waits
    peer.listens(17.5)
    assert peer.given == 20 and peer.waits
    peer.listens(19)
    assert not peer.waits


def test_what_comes_behind_audio_waits_for_its_turn() -> None:
    peer = Peer()
    peer.comes(10)
    peer.it.then(LegAsked("caller"))
    peer.comes(2, since=10)
    peer.it.then(LegEnded("caller", "hangup"))
    assert peer.log == []
    peer.listens(7)
    assert peer.log == ["asked at 10"]
    peer.session.over = True  # the client is gone; what it said is heard all the same
    peer.listens(10)
    assert (peer.given, peer.log) == (12, ["asked at 10", "ended hangup"])


def test_a_carrier_is_never_made_to_wait() -> None:
    peer = Peer(paced=False)
    peer.comes(20)
    assert peer.given == 20 and not peer.waits


def test_what_is_kept_has_a_bound() -> None:
    """Beyond it the leg's own queue decides what is lost, and counts it."""
    peer = Peer()
    peer.comes(KEPT + 50)
    assert 50 <= peer.given <= 51


def test_the_leg_began_when_its_first_sample_was_said() -> None:
    peer = Peer()
    peer.comes(2)
    assert peer.it.origin == -2
