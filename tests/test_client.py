"""The caller's side against a small server that speaks the bridge's side of AudioSocket."""

import argparse
import asyncio
import contextlib
import os
import struct
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from bridge import caller, client
from bridge.caller import LegResult, play_audiosocket
from bridge.client import call, parse_target, summary
from bridge.errors import BridgeError
from bridge.script import KINDS, make_script

ID = "40325ec2-5efd-4bd3-805f-53576e581d13"
RAMP = np.arange(1000, dtype=np.int16)  # 125 ms at 8 kHz: six frames and a quarter
SILENCE = b"\x10\x01\x40" + bytes(320)
HANGUP = b"\0\0\0"


class VirtualClock:
    """Time passes when somebody waits for it. `late`: how much later than asked."""

    def __init__(self, late: float = 0.0) -> None:
        self.time = 100.0
        self.late = late
        self.asked: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep_until(self, when: float) -> None:
        self.asked.append(when - 100.0)
        self.time = max(self.time, when + self.late)
        await asyncio.sleep(0)


@dataclass
class Peer:
    """What the server saw on one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    messages: list[tuple[int, bytes]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def uuid(self) -> str:
        return str(uuid.UUID(bytes=self.messages[0][1]))

    @property
    def audio(self) -> np.ndarray:
        return np.frombuffer(b"".join(b for kind, b in self.messages if kind >= 0x10), "<i2")

    async def read_message(self) -> tuple[int, bytes]:
        kind, size = struct.unpack(">BH", await self.reader.readexactly(3))
        self.messages.append((kind, await self.reader.readexactly(size)))
        return self.messages[-1]

    async def read_to_end(self) -> None:
        while True:
            try:
                await self.read_message()
            except (asyncio.IncompleteReadError, ConnectionError):
                return


class Bridge:
    """A listener on a free port; `behave` is each connection's story after its UUID."""

    def __init__(self, behave: Callable[[Peer], Awaitable[None]] | None = None) -> None:
        self.peers: list[Peer] = []
        self._behave = behave
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Bridge":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"audiosocket://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.wait_for(asyncio.gather(*self._tasks), 5)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            await peer.read_message()
            if self._behave is not None:
                await self._behave(peer)
            await peer.read_to_end()
        finally:
            peer.ended.set()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def by_uuid(self, leg: str) -> Peer:
        [peer] = [peer for peer in self.peers if peer.uuid == leg]
        return peer


async def play(bridge: Bridge, samples=RAMP, rate=8000, **options) -> LegResult:
    options.setdefault("clock", VirtualClock())
    result = await asyncio.wait_for(
        play_audiosocket(samples, rate, "127.0.0.1", bridge.port, **options), 10
    )
    for peer in bridge.peers:
        await asyncio.wait_for(peer.ended.wait(), 5)
    return result


# -- one leg ------------------------------------------------------------------------------------


async def test_says_its_uuid_and_then_the_audio_in_20_ms_frames():
    async with Bridge() as bridge:
        result = await play(bridge, uuid=ID.upper())
    [peer] = bridge.peers
    assert peer.messages[0] == (0x01, uuid.UUID(ID).bytes)
    assert [(kind, len(body)) for kind, body in peer.messages[1:]] == [(0x10, 320)] * 6 + [
        (0x10, 80)
    ]
    assert peer.audio.tolist() == RAMP.tolist()
    assert result == LegResult(ID, 7, 0.125, 0, 0, "us", "")
    assert not result.failed


async def test_every_call_has_its_own_uuid_unless_told():
    async with Bridge() as bridge:
        first, second = await play(bridge), await play(bridge)
    assert first.uuid != second.uuid
    assert [peer.uuid for peer in bridge.peers] == [first.uuid, second.uuid]


@pytest.mark.parametrize(("rate", "kind"), KINDS.items())
async def test_a_frame_is_20_ms_of_the_kind_of_its_rate(rate, kind):
    async with Bridge() as bridge:
        await play(bridge, np.ones(rate // 10, np.int16), rate)
    frames = bridge.peers[0].messages[1:]
    assert frames == [(kind, b"\1\0" * round(rate / 50))] * 5


@pytest.mark.parametrize(
    ("rate", "wire"),
    [(11025, 12000), (22050, 24000), (14000, 16000), (4000, 8000), (176400, 192000)],
)
def test_other_rates_are_resampled_to_the_nearest(rate, wire):
    tone = (10_000 * np.sin(np.arange(rate) * 2 * np.pi * 440 / rate)).astype(np.int16)
    script = make_script(tone, rate)
    assert {message[0] for _, message in script} == {KINDS[wire]}
    heard = np.frombuffer(b"".join(message[3:] for _, message in script), "<i2")
    assert len(heard) == wire  # one second remains one second
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax() == 440 and spectrum[440] / wire * 2 == pytest.approx(10_000, rel=0.02)


def test_resampling_adds_no_padding():
    script = make_script(np.ones(11025 + 100, np.int16), 11025)
    assert sum(len(message) - 3 for _, message in script) == 2 * round(11125 * 12000 / 11025)


def test_resampling_does_not_wrap_around_at_full_scale():
    square = np.where(np.arange(4000) // 400 % 2, 32767, -32768).astype(np.int16)
    script = make_script(square, 10_000)
    heard = np.frombuffer(b"".join(message[3:] for _, message in script), "<i2")
    middle = heard.reshape(10, -1)[:, 50:-50]  # each half wave without its edges
    assert (np.sign(middle).T == [-1, 1] * 5).all()


async def test_keeps_time_by_an_absolute_clock():
    clock = VirtualClock(late=0.007)
    async with Bridge() as bridge:
        await play(bridge, clock=clock)
    assert clock.asked == pytest.approx([0.02 * n for n in range(7)] + [0.125])


async def test_speed_is_a_pace():
    clock = VirtualClock()
    async with Bridge() as bridge:
        await play(bridge, clock=clock, speed=4)
    assert clock.asked == pytest.approx([0.005 * n for n in range(7)] + [0.125 / 4])


async def test_without_realtime_nothing_is_waited_for():
    clock = VirtualClock()
    async with Bridge() as bridge:
        result = await play(bridge, np.ones(800_000, np.int16), realtime=False, clock=clock)
    assert set(clock.asked) == {0.0}
    assert result.seconds == 100 and len(bridge.peers[0].audio) == 800_000


async def test_the_real_clock_waits():
    async with Bridge() as bridge:
        result = await play(bridge, RAMP[:320], clock=None)
    assert result.frames_sent == 2


async def test_digits_come_in_their_place_and_the_call_lasts_for_them():
    async with Bridge() as bridge:
        result = await play(bridge, digits=[(0.2, "#"), (0.03, "5")])
    kinds = [kind for kind, _ in bridge.peers[0].messages]
    assert kinds == [0x01] + [0x10] * 2 + [0x03] + [0x10] * 8 + [0x03]
    assert [body for kind, body in bridge.peers[0].messages if kind == 0x03] == [b"5", b"#"]
    assert result.frames_sent == 10 and result.seconds == 0.2


async def test_lingers_in_silence():
    async with Bridge() as bridge:
        result = await play(bridge, linger=0.075)
    assert bridge.peers[0].audio.tolist() == RAMP.tolist() + [0] * 600
    assert result.seconds == 0.2


async def test_tells_how_far_it_is():
    told: list[float] = []
    async with Bridge() as bridge:
        await play(bridge, on_sent=told.append)
    assert told == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.125])


async def test_an_empty_recording_is_a_short_call():
    async with Bridge() as bridge:
        result = await play(bridge, RAMP[:0])
    assert result.frames_sent == 0 and result.ended_by == "us"


# -- what the bridge sends ----------------------------------------------------------------------


async def test_counts_what_comes_however_it_is_cut():
    sound = b"\x12\0\4\1\0\0\0"
    stream = SILENCE + sound + SILENCE

    async def talk(peer: Peer) -> None:
        for i in range(len(stream)):
            peer.writer.write(stream[i : i + 1])
            await peer.writer.drain()
            await peer.read_message()  # so that each byte is a segment of its own

    async with Bridge(talk) as bridge:
        result = await play(bridge, np.ones(160 * len(stream), np.int16))
    assert (result.bytes_received, result.silence_received) == (len(stream), 2)
    assert result.ended_by == "us" and not result.failed


def hang_up_after(frames: int, *sent: bytes) -> Callable[[Peer], Awaitable[None]]:
    async def behave(peer: Peer) -> None:
        for _ in range(frames):
            await peer.read_message()
        peer.writer.write(b"".join(sent))

    return behave


class WaitingClock(VirtualClock):
    """Lets nobody past `at` seconds before the bridge has answered."""

    def __init__(self, at: float, answered: asyncio.Event) -> None:
        super().__init__()
        self._at, self._answered = at, answered

    async def sleep_until(self, when: float) -> None:
        await super().sleep_until(when)
        if when - 100 >= self._at:
            await self._answered.wait()
            for _ in range(20):  # until the loop has read what came
                await asyncio.sleep(0)


async def answered(
    frames: int, *sent: bytes, close: bool = False, seconds: float = 10.0
) -> tuple[LegResult, Peer]:
    """Plays `seconds`; after some frames the bridge sends something, and only then it goes on."""
    said = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await hang_up_after(frames, *sent)(peer)
        await peer.writer.drain()
        if close:
            peer.writer.close()
        said.set()

    async with Bridge(behave) as bridge:
        clock = WaitingClock(frames * 0.02, said)
        samples = np.ones(round(8000 * seconds), np.int16)
        return await play(bridge, samples, clock=clock), bridge.peers[0]


async def test_the_bridge_may_hang_up():
    result, peer = await answered(200, SILENCE, HANGUP)
    assert (result.ended_by, result.error, result.failed) == ("peer", "", False)
    assert 200 <= result.frames_sent < 210 and result.bytes_received == 326
    assert len(peer.messages) - 1 == result.frames_sent


@pytest.mark.parametrize("before", [b"", SILENCE * 3])
async def test_a_hang_up_at_once_is_a_refusal(before):
    result, _ = await answered(0, before, HANGUP)
    assert result.ended_by == "refused" and result.failed and result.frames_sent <= 1
    assert result.error == ("the bridge refused the call: busy, draining, or UUID not announced")


async def test_a_refusal_may_come_after_the_last_frame():
    result, _ = await answered(0, HANGUP, seconds=0)
    assert result.ended_by == "refused"


async def test_a_bridge_that_has_spoken_does_not_refuse():
    result, _ = await answered(1, b"\x10\0\2\1\1", HANGUP)
    assert (result.ended_by, result.error) == ("peer", "")


async def test_a_bridge_that_goes_away_is_a_failure():
    result, _ = await answered(0, close=True)
    assert result.ended_by == "peer" and result.failed
    assert result.error in (
        "the bridge closed the connection without hanging up; see its log",
        "the bridge went away without hanging up; see its log",  # a reset: it had not read all
    )


@pytest.mark.parametrize("kind", [0x01, 0x02, 0x03, 0xFF, 0x19])
async def test_what_asterisk_would_not_take_ends_the_call(kind):
    result, _ = await answered(2, bytes([kind, 0, 1, 0]), SILENCE)
    assert result.ended_by == "error" and result.failed and result.frames_sent < 10
    assert result.error == f"the bridge sent kind 0x{kind:02x}, which Asterisk does not take"


async def test_audio_of_no_length_ends_the_call():
    result, _ = await answered(2, b"\x10\0\0")
    assert result.error == "the bridge sent audio of no length, which Asterisk does not take"


async def test_what_comes_after_the_end_is_no_message():
    result, _ = await answered(200, HANGUP, b"\x02\0\0", SILENCE)
    assert (result.ended_by, result.error, result.silence_received) == ("peer", "", 0)
    assert result.bytes_received == 3 + 3 + 323


async def test_a_bridge_that_keeps_the_line_open_does_not_keep_us(monkeypatch):
    monkeypatch.setattr(caller, "HANGUP_TIMEOUT", 0)
    go = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.read_to_end()
        await go.wait()

    async with Bridge(behave) as bridge:
        leg = play_audiosocket(RAMP, 8000, "127.0.0.1", bridge.port, clock=VirtualClock())
        result = await asyncio.wait_for(leg, 5)
        go.set()
    assert (result.ended_by, result.error) == ("us", "")


async def test_nobody_listens():
    async with Bridge() as bridge:
        port = bridge.port
    result = await play_audiosocket(RAMP, 8000, "127.0.0.1", port)
    assert result.ended_by == "error" and result.frames_sent == 0
    assert result.error == (
        f"cannot connect to 127.0.0.1:{port}: Connection refused; is the bridge running there?"
    )


async def test_nobody_answers(monkeypatch):
    async def connect(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(caller, "CONNECT_TIMEOUT", 0)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    result = await play_audiosocket(RAMP, 8000, "10.0.0.1", 9092)
    assert result.error.startswith("cannot connect to 10.0.0.1:9092: no answer in 0 s;")


async def test_a_name_that_is_none(monkeypatch):
    async def connect(*_: object) -> None:
        raise OSError(-2, "Name or service not known")  # as getaddrinfo counts its errors

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    result = await play_audiosocket(RAMP, 8000, "nowhere", 9092)
    assert result.error.startswith("cannot connect to nowhere:9092: Name or service not known;")


# -- the connection itself, without a network ---------------------------------------------------


class FakeTransport(asyncio.Transport):
    """Keeps each write; `full_after` writes it asks for a pause."""

    def __init__(self, protocol: asyncio.Protocol, full_after: int) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False
        self._protocol, self._full_after = protocol, full_after

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        assert high == 0

    def write(self, data) -> None:
        self.writes.append(data)
        if len(self.writes) == self._full_after:
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        self._protocol.connection_lost(None)

    def abort(self) -> None:
        self.aborted = True
        self._protocol.connection_lost(None)


@pytest.fixture
async def transports(monkeypatch):
    made: list[FakeTransport] = []
    full_after = [0]

    async def connect(factory, host, port):
        protocol = factory()
        made.append(FakeTransport(protocol, full_after[0]))
        protocol.connection_made(made[-1])
        return made[-1], protocol

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    return made, full_after


async def test_header_and_payload_are_one_write(transports):
    made, _ = transports
    await play_audiosocket(RAMP, 8000, "bridge", 1, clock=VirtualClock())
    assert [len(data) for data in made[0].writes] == [19] + [323] * 6 + [83]


async def test_a_bridge_that_does_not_read_is_given_up(transports, monkeypatch):
    made, full_after = transports
    full_after[0] = 3
    monkeypatch.setattr(caller, "STALL_TIMEOUT", 0)
    result = await play_audiosocket(RAMP, 8000, "bridge", 1, clock=VirtualClock())
    assert (result.ended_by, result.frames_sent) == ("error", 2)
    assert result.error == "the bridge has read nothing for 0 s; it hangs"
    assert made[0].aborted


async def test_a_cancelled_call_leaves_no_connection(transports):
    made, full_after = transports
    full_after[0] = 3
    told = asyncio.Event()
    leg = play_audiosocket(
        RAMP, 8000, "bridge", 1, clock=VirtualClock(), on_sent=lambda _: told.set()
    )
    task = asyncio.create_task(leg)
    await asyncio.wait_for(told.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made[0].aborted


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"uuid": "7"}, "uuid: expected 36 characters as uuidgen prints, not '7'"),
        ({"uuid": ID.replace("-", "")}, "uuid: expected 36 characters as uuidgen prints, not '4"),
        ({"speed": 0}, "speed: expected more than 0 and at most 1000, not 0"),
        ({"speed": float("nan")}, "speed: expected more than 0 and at most 1000, not nan"),
        ({"linger": -1}, "linger: expected 0 to 86400 seconds, not -1"),
        ({"digits": [(1, "12")]}, r"digit '12' at 1 s: expected one of 0-9 \* # A-D"),
        ({"digits": [(1, "x")]}, r"digit 'x' at 1 s: expected one of 0-9 \* # A-D"),
        ({"digits": [(float("nan"), "1")]}, "digit '1' at nan s: expected one of"),
    ],
)
async def test_says_which_argument_makes_no_call(options, sentence):
    with pytest.raises(BridgeError, match="^" + sentence):
        await play_audiosocket(RAMP, 8000, "127.0.0.1", 9, **options)


def test_reads_the_target():
    assert parse_target("audiosocket://127.0.0.1:9092") == ("127.0.0.1", 9092)
    assert parse_target("audiosocket://[::1]:9092/") == ("::1", 9092)


@pytest.mark.parametrize(
    "to", ["127.0.0.1:9092", "http://a:1", "audiosocket://a", "audiosocket://"]
)
def test_says_what_a_target_looks_like(to):
    with pytest.raises(BridgeError) as e:
        parse_target(to)
    assert str(e.value) == (
        "to: expected audiosocket://host:port, such as audiosocket://127.0.0.1:9092, "
        f"rtp://host:port or http://host:port, not {to!r}"
    )


# -- calls --------------------------------------------------------------------------------------


@pytest.fixture
def mono(tmp_path):
    path = tmp_path / "mono.sln"
    path.write_bytes(RAMP.tobytes())
    return path


@pytest.fixture
def stereo(tmp_path):
    audio = np.stack([RAMP, -RAMP], axis=1).tobytes()
    header = struct.pack("<HHIIHH", 1, 2, 8000, 32000, 4, 16)
    path = tmp_path / "stereo.wav"
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(audio)) + b"WAVEfmt " + struct.pack("<I", 16) + header
        + b"data" + struct.pack("<I", len(audio)) + audio
    )  # fmt: skip
    return path


async def call_bridge(bridge: Bridge, path, **options) -> list[LegResult]:
    options.setdefault("clock", VirtualClock())
    results = await asyncio.wait_for(call(path, bridge.url, **options), 10)
    for peer in bridge.peers:
        await asyncio.wait_for(peer.ended.wait(), 5)
    return results


async def test_a_stereo_recording_is_two_legs(stereo):
    async with Bridge() as bridge:
        caller_leg, callee_leg = await call_bridge(bridge, stereo)
    assert bridge.by_uuid(caller_leg.uuid).audio.tolist() == RAMP.tolist()
    assert bridge.by_uuid(callee_leg.uuid).audio.tolist() == (-RAMP).tolist()


async def test_one_channel_of_a_stereo_recording(stereo):
    async with Bridge() as bridge:
        [leg] = await call_bridge(bridge, stereo, channel=1)
    assert bridge.by_uuid(leg.uuid).audio.tolist() == (-RAMP).tolist()


async def test_many_legs_start_one_after_the_other(mono):
    clock = VirtualClock()
    async with Bridge() as bridge:
        results = await call_bridge(bridge, mono, legs=5, stagger=1.0, clock=clock)
    assert len(bridge.peers) == len({leg.uuid for leg in results}) == 5
    assert clock.asked[:5] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all(leg.ended_by == "us" and leg.frames_sent == 7 for leg in results)


async def test_legs_of_a_stereo_recording_take_turns_and_pairs_start_together(stereo):
    clock = VirtualClock()
    names = [str(uuid.uuid4()) for _ in range(4)]
    async with Bridge() as bridge:
        results = await call_bridge(bridge, stereo, legs=4, stagger=1.0, uuids=names, clock=clock)
    assert [leg.uuid for leg in results] == names
    assert [bridge.by_uuid(name).audio[1] for name in names] == [1, -1, 1, -1]
    assert clock.asked[:4] == [0.0, 0.0, 1.0, 1.0]


async def test_one_leg_refused_does_not_touch_the_others(mono):
    async def behave(peer: Peer) -> None:
        if peer.uuid == ID:
            peer.writer.write(HANGUP)

    names = [ID, str(uuid.uuid4())]
    async with Bridge(behave) as bridge:
        first, second = await call_bridge(bridge, mono, legs=2, uuids=names)
    assert (first.ended_by, second.ended_by) == ("refused", "us")


async def test_tells_which_leg_is_how_far(mono):
    told: list[tuple[int, float]] = []
    async with Bridge() as bridge:
        await call_bridge(bridge, mono, legs=2, on_sent=lambda i, s: told.append((i, s)))
    assert {leg for leg, _ in told} == {0, 1} and max(told) == (1, 0.125)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"legs": 0}, "legs: expected 1 to 10000, not 0"),
        ({"legs": 3, "uuids": [ID]}, "uuid: 3 legs need 3 UUIDs, not 1"),
        ({"stagger": float("nan")}, "stagger: expected 0 to 3600 seconds, not nan"),
        ({"channel": 1}, "there is no channel 1"),
    ],
)
async def test_says_which_argument_makes_no_calls(mono, options, sentence):
    with pytest.raises(BridgeError, match=sentence):
        await call(mono, "audiosocket://127.0.0.1:9", **options)


# -- the command --------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    client.add_arguments(parser)
    return parser.parse_args(words)


def test_the_defaults_speak_to_a_bridge_on_this_machine():
    args = arguments("call.wav")
    assert (args.to, args.legs, args.uuid, args.fast) == (None, 1, None, False)
    assert parse_target(client.DEFAULT_TARGET) == ("127.0.0.1", 9092)


async def test_the_command_plays_and_sums_up(mono, capsys):
    async with Bridge() as bridge:
        args = arguments(str(mono), "--to", bridge.url, "--fast", "--uuid", ID, "--digit", "0.1:5")
        assert await asyncio.wait_for(client.run(args), 10) == 0
    assert bridge.peers[0].uuid == ID
    assert (0x03, b"5") in bridge.peers[0].messages
    out, err = capsys.readouterr()
    assert out == f"{ID}  played to the end, 0.1 s of audio sent, 0 bytes received\n"
    assert err == ""  # no terminal, no progress


async def test_the_command_fails_when_a_leg_does(mono, capsys):
    async with Bridge() as bridge:
        url = bridge.url
    assert await client.run(arguments(str(mono), "--to", url)) == 1
    assert (
        "failed, 0.0 s of audio sent, 0 bytes received: cannot connect" in capsys.readouterr().out
    )


async def test_the_command_fails_when_one_leg_of_two_does(mono, capsys):
    async def behave(peer: Peer) -> None:
        if peer.uuid == ID:
            peer.writer.write(HANGUP)

    words = [str(mono), "--fast", "--legs", "2", "--uuid", ID, "--uuid", str(uuid.uuid4())]
    async with Bridge(behave) as bridge:
        args = arguments(*words, "--to", bridge.url)
        assert await asyncio.wait_for(client.run(args), 10) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert "refused" in first and "played to the end" in second


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none.wav"], "none.wav: cannot be read: No such file or directory"),
        ([os.devnull, "--to", "nowhere"], "to: expected audiosocket://host:port"),
        ([os.devnull, "--digit", "x"], "digit: expected SECONDS:DIGIT, such as 2.5:1, not 'x'"),
    ],
)
async def test_the_command_refuses_what_makes_no_call(words, sentence, capsys):
    assert await client.run(arguments(*words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"callscribe call: {sentence}")


async def test_progress_is_for_terminals(mono, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    async with Bridge() as bridge:
        args = arguments(str(mono), "--to", bridge.url, "--fast", "--linger", "1", "--legs", "2")
        assert await asyncio.wait_for(client.run(args), 10) == 0
    err = capsys.readouterr().err
    assert err.startswith("\r0 s, legs: 1 \r1 s, legs: ")
    assert err.endswith("\r\033[K")


def test_many_legs_are_summed_up():
    legs = [LegResult(ID, 50, 1.0, 323, 1)] * 6
    legs += [LegResult(ID, 0, 0.0, 3, 0, "refused", "busy")] * 2
    assert summary(legs) == (
        "8 legs, 6.0 s of audio sent, 1944 bytes received: 6 played to the end, 2 refused\n"
        "  2 x busy"
    )
