"""Sound in at a socket, events out: the whole line in one process."""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from bridge.audio.g711 import decode_ulaw, encode_ulaw
from bridge.client import LegResult, play_audiosocket
from bridge.config import Address, EngineSettings, from_dict
from bridge.engine import tones
from bridge.engine.tones import encode, text_of
from bridge.ingress.audiosocket import SILENCE_MESSAGE, AudioSocket, Rules
from bridge.line import Line
from bridge.listeners import listen
from bridge.server import Server
from bridge.switchboard import Admission, Switchboard
from bridge.turns import TurnRules
from bridge.types import (
    Announcement,
    Audio,
    CallEvent,
    Closed,
    Digit,
    Ended,
    EndOfTurn,
    Final,
    IngressEvent,
    Opened,
    Partial,
    Pressed,
    Refused,
    Samples,
    Started,
    Word,
)
from tests.fake_ami import FakeAmi
from tests.fakes import Counts, Events
from tests.waiting import until

PATIENCE = 30.0  # seconds, on a machine that does much else
BLOCK = 0.08
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Sink:
    """An `Egress` that remembers. `ended`: ids of calls that are over."""

    name = "test"

    def __init__(self) -> None:
        self.events: list[CallEvent] = []
        self.ended: set[str] = set()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def deliver(self, event: CallEvent) -> None:
        self.events.append(event)
        if isinstance(event.body, Ended | Refused):
            self.ended.add(event.call.id)

    def of(self, call_id: str) -> list[CallEvent]:
        return [event for event in self.events if event.call.id == call_id]

    def words(self, call_id: str, leg: str = "caller") -> list[Word]:
        finals = [e for e in self.of(call_id) if isinstance(e.body, Final) and e.leg == leg]
        return [word for e in finals for word in e.body.words]  # type: ignore[union-attr]


class Bridge:
    """A server that listens on a free port, and what it said."""

    def __init__(self, **settings: Any) -> None:
        defaults = {
            "engine": {"kind": "tones", "slots": 24},
            "audiosocket": {"listen": "127.0.0.1:0"},
            "service": {"drain_timeout": 0, "flush_timeout": 10},
        }
        self.sink = Sink()
        self.server = Server(from_dict(defaults | settings), sinks=[self.sink])
        self.sock: socket.socket = listen(Address("127.0.0.1", 0), "test")
        self.port: int = self.sock.getsockname()[1]

    async def call(self, samples: Samples, name: str, **options: Any) -> LegResult:
        """Play, hang up, and wait for the call's last event."""
        options = {"realtime": False, **options}
        result = await play_audiosocket(samples, 8000, "127.0.0.1", self.port, uuid=name, **options)
        assert (result.ended_by, result.error) == ("us", "")
        return result

    async def over(self, *calls: str) -> None:
        await until(lambda: self.sink.ended >= set(calls), PATIENCE)


Start = Callable[..., Awaitable[Bridge]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    bridges: list[Bridge] = []

    async def begin(**settings: Any) -> Bridge:
        bridges.append(Bridge(**settings))
        await bridges[-1].server.start({"audiosocket": bridges[-1].sock})
        return bridges[-1]

    yield begin
    for bridge in bridges:
        await bridge.server.close()
        bridge.sock.close()
        board = bridge.server.switchboard
        assert (board.calls, board.waiting, bridge.server.recogniser.used) == ({}, 0, 0)


def name() -> str:
    return str(uuid.uuid4())


def assert_a_call(events: list[CallEvent]) -> Ended:
    """Numbered without gaps, started first, ended last; returns the end."""
    assert [e.seq for e in events] == list(range(len(events)))
    assert [e.gap_before for e in events] == [0] * len(events)
    kinds = [type(e.body) for e in events]
    assert kinds[0] is Started
    assert kinds.count(Started) == kinds.count(Ended) == 1
    ended = events[-1].body
    assert isinstance(ended, Ended)
    return ended


def assert_said(words: list[Word], expected: list[int], step: float = 0.4) -> None:
    """The words, and their times to a block."""
    assert [word.text for word in words] == [text_of(word) for word in expected]
    for i, word in enumerate(words):
        assert word.start == pytest.approx(step * i, abs=BLOCK)
        assert word.end == pytest.approx(step * i + 0.24, abs=BLOCK)


async def test_words_come_out_in_order_with_their_times(start: Start) -> None:
    bridge = await start(turns={"partials": False})
    said, call = [3, 1, 4, 1, 5, 9, 2, 6], name()
    result = await bridge.call(encode(said), call)
    await bridge.over(call)
    ended = assert_a_call(bridge.sink.of(call))
    assert_said(bridge.sink.words(call), said)
    assert ended.reason == "eof"
    counts = ended.legs["caller"]
    assert (counts.words, counts.blocks_dropped, counts.silence_inserted) == (8, 0, 0)
    assert counts.seconds == pytest.approx(result.seconds) == pytest.approx(3.2)
    turns = [e.body for e in bridge.sink.of(call) if isinstance(e.body, EndOfTurn)]
    assert [turn.text for turn in turns] == [" ".join(map(text_of, said))]


async def test_partials_grow_and_finals_repeat_what_they_said(start: Start) -> None:
    bridge = await start()
    call = name()
    pause = np.zeros(8000, np.int16)
    await bridge.call(np.concatenate([encode([1, 2]), pause, encode([3]), pause]), call)
    await bridge.over(call)
    events = bridge.sink.of(call)
    turns = [e.body for e in events if isinstance(e.body, EndOfTurn)]
    assert [(t.turn, t.text, t.reason) for t in turns] == [
        (0, "w001 w002", "pause"), (1, "w003", "pause"),
    ]  # fmt: skip
    finals = [e.body.text for e in events if isinstance(e.body, Final)]
    assert finals == ["w001 w002", "w003"]
    # The outbox may leave out partials that newer ones replaced, but says so.
    seen = -1
    for event in events:
        assert event.seq == seen + 1 + event.gap_before
        seen = event.seq
    assert {e.body.text for e in events if isinstance(e.body, Partial)} <= {
        "w001", "w001 w002", "w003",
    }  # fmt: skip


async def test_words_survive_mu_law(start: Start) -> None:
    bridge = await start(turns={"partials": False})
    said, call = list(range(0, 250, 25)), name()
    await bridge.call(decode_ulaw(encode_ulaw(encode(said))), call)
    await bridge.over(call)
    assert_said(bridge.sink.words(call), said)


async def test_twenty_calls_at_once_hear_each_its_own_words(start: Start) -> None:
    """Every call has words that no other has."""
    bridge = await start(turns={"partials": False})
    calls = {name(): list(range(12 * i, 12 * i + 12)) for i in range(20)}
    await asyncio.gather(*(bridge.call(encode(said), call) for call, said in calls.items()))
    await bridge.over(*calls)
    for call, said in calls.items():
        assert_a_call(bridge.sink.of(call))
        assert_said(bridge.sink.words(call), said)
    assert bridge.server.switchboard.total_ended == 20


async def test_two_legs_of_one_call(start: Start) -> None:
    bridge = await start(turns={"partials": False})
    caller, callee = name(), name()
    for leg_name, leg in ((caller, "caller"), (callee, "callee")):
        bridge.server.announce(Announcement(leg_name, call="c-1", leg=leg))  # type: ignore[arg-type]
    # One leg is held open until the other is there: as fast as this, the call would be over.
    first = await connected(bridge.port, caller)
    with first:
        await until(lambda: "c-1" in bridge.server.switchboard.calls, PATIENCE)
        await bridge.call(encode([9, 8]), callee)
        first.sendall(frames(encode([7, 6])))
        first.shutdown(socket.SHUT_WR)  # closed with silence unread, it would be a reset
        await bridge.over("c-1")
    ended = assert_a_call(bridge.sink.of("c-1"))
    assert set(ended.legs) == {"caller", "callee"}
    assert [w.text for w in bridge.sink.words("c-1", "caller")] == ["w007", "w006"]
    assert [w.text for w in bridge.sink.words("c-1", "callee")] == ["w009", "w008"]


def frames(samples: Samples) -> bytes:
    pieces = samples.astype("<i2").reshape(-1, 160)
    return b"".join(b"\x10\x01\x40" + piece.tobytes() for piece in pieces)


async def connected(port: int, call: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"\x01\x00\x10" + uuid.UUID(call).bytes)
    return sock


async def to_eof(sock: socket.socket) -> bytes:
    """All that the bridge says until its goodbye; then we close too."""
    sock.setblocking(False)
    data = b""
    async with asyncio.timeout(PATIENCE):
        while not data.endswith(b"\x00\x00\x00") or len(data) % len(SILENCE_MESSAGE) != 3:
            more = await asyncio.get_running_loop().sock_recv(sock, 4096)
            assert more, "closed without a goodbye"
            data += more
    return data


async def test_a_call_too_many_is_told_goodbye_and_call_control_why(start: Start) -> None:
    bridge = await start(engine={"kind": "tones", "slots": 1})
    first, second = name(), name()
    with await connected(bridge.port, first) as one:
        await until(lambda: bridge.server.recogniser.used == 1, PATIENCE)
        with await connected(bridge.port, second) as two:
            said = await to_eof(two)
        assert said.replace(SILENCE_MESSAGE, b"") == b"\x00\x00\x00"
        await bridge.over(second)
        (event,) = bridge.sink.of(second)
        assert event.body == Refused("busy")
        one.sendall(frames(encode([42])))
        one.shutdown(socket.SHUT_WR)
        await bridge.over(first)
    assert_said(bridge.sink.words(first), [42])


async def test_nobody_gets_in_uninvited(start: Start) -> None:
    bridge = await start(
        audiosocket={"listen": "127.0.0.1:0", "admission": "announced", "join_wait": 0},
        http={"listen": "127.0.0.1:0", "token": "a long random word"},
    )
    with await connected(bridge.port, name()) as guess:
        assert (await to_eof(guess)).replace(SILENCE_MESSAGE, b"") == b"\x00\x00\x00"
    invited = name()
    bridge.server.announce(Announcement(invited))
    await bridge.call(encode([5]), invited)
    await bridge.over(invited)
    assert {event.call.id for event in bridge.sink.events} == {invited}


async def test_a_turn_ends_though_no_frames_come_any_more(start: Start) -> None:
    """A tap by ChanSpy gets none while its party is silent."""
    bridge = await start(turns={"partials": False})
    call = name()
    with await connected(bridge.port, call) as sock:
        sock.sendall(frames(encode([1, 2])))
        await until(lambda: [e for e in bridge.sink.of(call) if isinstance(e.body, EndOfTurn)], 30)
        sock.sendall(frames(encode([3])))
        sock.shutdown(socket.SHUT_WR)
        await bridge.over(call)
    assert [word.text for word in bridge.sink.words(call)] == ["w001", "w002", "w003"]
    turns = [e.body for e in bridge.sink.of(call) if isinstance(e.body, EndOfTurn)]
    assert [(turn.text, turn.reason) for turn in turns] == [
        ("w001 w002", "pause"), ("w003", "hangup"),
    ]  # fmt: skip


async def test_a_call_that_call_control_ends(start: Start) -> None:
    bridge = await start(turns={"partials": False})
    call = name()
    with await connected(bridge.port, call) as sock:
        sock.sendall(frames(encode([1, 2])))
        await until(
            lambda: (c := bridge.server.switchboard.find(call)) and c.legs["caller"].frames,
            PATIENCE,
        )
        assert bridge.server.switchboard.hang_up(call)
        await to_eof(sock)
        await bridge.over(call)
    assert assert_a_call(bridge.sink.of(call)).reason == "bridge"


# -- sinks ------------------------------------------------------------------------------------


class Endpoint:
    """An HTTP endpoint that takes everything."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def __aenter__(self) -> Endpoint:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.bodies.append(json.loads(await request.read()))
        return web.Response(status=204)


async def test_webhook_and_ami_are_told_the_same_in_the_same_order(start: Start) -> None:
    async with FakeAmi() as ami, Endpoint() as hook:
        bridge = await start(
            audiosocket={"listen": "127.0.0.1:0", "join_wait": 0},
            turns={"partials": False},
            ami={"port": ami.port, "username": "callscribe", "secret": "s3cret",
                 "events": ["started", "final", "turn", "dtmf", "ended"]},
            webhook=[{"url": hook.url, "secret": SECRET}],
        )  # fmt: skip
        call = name()
        ami.channels.add("PJSIP/1-1")
        link = bridge.server.link
        assert link is not None
        await until(lambda: link.state == "up", PATIENCE)
        ami.emit(
            ("Event", "VarSet"), ("Channel", "PJSIP/1-1"), ("Variable", "CALLSCRIBE_ID"),
            ("Value", call), ("Uniqueid", "1.1"), ("Linkedid", "1.1"),
        )  # fmt: skip
        await until(lambda: call in bridge.server.switchboard.announced, PATIENCE)
        await bridge.call(encode([10, 11]), call, digits=[(0.5, "7")])
        await bridge.over(call)
        events = bridge.sink.of(call)
        assert_a_call(events)
        assert events[0].call.channel == "PJSIP/1-1"
        await until(lambda: len(hook.bodies) == len(events), PATIENCE)
        await ami.until(lambda: len(transcripts(ami)) == len(events))
        told = transcripts(ami)
        assert [body["data"]["seq"] for body in hook.bodies] == [e.seq for e in events]
        assert [int(t.get("Seq")) for t in told] == [e.seq for e in events]
        assert {body["data"]["channel"] for body in hook.bodies} == {"PJSIP/1-1"}
        texts = [body["data"].get("text", "") for body in hook.bodies]
        assert texts == [t.get("Text") for t in told]
        assert "w010 w011" in texts
        assert ami.variables["PJSIP/1-1", "CALLSCRIBE_TEXT"] == "w010 w011"


def transcripts(ami: FakeAmi) -> list[Any]:
    return [e for e in ami.named("UserEvent") if e.get("UserEvent") == "Transcript"]


# -- time, as an argument -----------------------------------------------------------------------


class Wire:
    """One peer on a clock of ours: what it sends and when, through ingress and switchboard."""

    def __init__(self, board: Switchboard) -> None:
        self.now = 1000.0
        self.board = board
        self.ingress = AudioSocket(Rules(), self.now)
        self.line: Line | None = None

    def send(self, data: bytes) -> None:
        self._tell(self.ingress.receive(data, self.now))

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.now += 0.02
            self._tell(self.ingress.expire(self.now))

    def speak(self, samples: Samples) -> None:
        for piece in samples.astype("<i2").reshape(-1, 160):
            self.wait(0.02)
            self.send(b"\x10\x01\x40" + piece.tobytes())

    def _tell(self, events: Any) -> None:
        for event in events:
            self._event(event)

    def _event(self, event: IngressEvent) -> None:
        match event:
            case Opened(said):
                self.line = self.board.opened(
                    said, "audiosocket", lambda: None, lambda: self.ingress.origin, self.now
                )
            case Audio(frame) if self.line:
                self.line.audio(frame)
            case Digit(digit) if self.line:
                self.line.digit(digit)
            case Closed(reason) if self.line:
                self.board.closed(self.line, reason)


@pytest.mark.parametrize("gap", [0.1, 0.2, 0.3, 1.0, 5.0])
async def test_a_hole_in_the_audio_does_not_move_the_words_after_it(gap: float) -> None:
    """Asterisk sends no audio while a digit is pressed."""
    engine = tones.make(EngineSettings(kind="tones", slots=2))
    await engine.start()
    events = Events()
    wire = Wire(
        Switchboard(
            engine, Admission(), TurnRules(partials=False),
            publish=events, count=Counts(), clock=lambda: wire.now, wall=lambda: 0.0,
        )
    )  # fmt: skip
    try:
        wire.send(b"\x01\x00\x10" + uuid.uuid4().bytes)
        wire.speak(encode([1, 2, 3]))
        wire.wait(gap)
        wire.send(b"\x03\x00\x015")
        wire.speak(encode([4, 5, 6]))
        wire.send(b"\x00\x00\x00")
        await until(lambda: events and isinstance(events[-1].body, Ended), PATIENCE)
    finally:
        await engine.close()
    words = [w for e in events if isinstance(e.body, Final) for w in e.body.words]
    starts = [0.0, 0.4, 0.8, 1.2 + gap, 1.6 + gap, 2.0 + gap]
    assert [w.text for w in words] == [text_of(i) for i in range(1, 7)]
    # Holes up to 0.16 s are taken for lateness, which they mostly are.
    assert [w.start for w in words] == pytest.approx(starts, abs=BLOCK + (gap <= 0.16) * gap)
    (pressed,) = events.bodies(Pressed)
    assert isinstance(pressed, Pressed)
    assert pressed.at == pytest.approx(1.2 + gap, abs=0.26)
    ended = assert_a_call(events)
    assert ended.seconds == pytest.approx(2.4 + gap, abs=0.16)
