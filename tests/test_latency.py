"""The clients of the plain protocol: `callscribe latency` and `callscribe mic`."""

from __future__ import annotations

import argparse
import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge import latency, mic
from bridge.cli import main
from bridge.errors import BridgeError
from bridge.socket_client import BLOCK, stream
from tests.serving import free_port
from tests.sockets import at_rate, bridge, pieces, said, speech


async def words_of(url: str, key: str = "") -> list[str]:
    """What is heard of a few words, not in real time."""

    async def audio() -> AsyncIterator[bytes]:
        for piece in pieces(at_rate(speech([7, 77]), 24000).tobytes(), 2 * BLOCK):
            yield piece

    heard: list[str] = []
    await stream(url, key, audio(), lambda m: heard.append(m["text"]) if m["type"] == "word" else 0)
    return heard


async def test_a_stream_is_heard_to_its_last_word() -> None:
    async with bridge() as b:
        assert " ".join(await words_of(f"{b.url}/ws")) == said([7, 77])


async def test_a_bridge_that_does_not_want_us_says_why() -> None:
    async with bridge(slots=1) as b:
        with pytest.raises(BridgeError, match="answered 404"):
            await words_of(f"{b.url}/nowhere")
    with pytest.raises(BridgeError, match=r"cannot connect to .* is \[websocket\] there"):
        await words_of(f"ws://127.0.0.1:{free_port()}/ws")


async def test_latency_is_measured_from_the_end_of_each_word(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of the tones engine: its delay is half a second."""
    async with bridge() as b:
        samples = at_rate(speech([7, 77, 177]), 24000)
        streams = await latency._all(f"{b.url}/ws", "", samples, 2)
    assert [len(s.late) for s in streams] == [3, 3] and not any(s.error for s in streams)
    assert all(0 < late for s in streams for late in s.late)
    shown = latency.table(streams, 3.2)
    assert shown.startswith("2 streams of 3.2 s, 6 words") and "first word" in shown
    pytest.importorskip("matplotlib")
    latency._plot(streams, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_commands_say_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert main(["latency", f"ws://127.0.0.1:{port}/ws", "--seconds", "0.1"]) == 1
    assert "cannot connect" in capsys.readouterr().err
    assert main(["latency", "ws://127.0.0.1:1/ws", "-p", "0"]) == 1
    assert "expected 1 to 1000" in capsys.readouterr().err


def test_a_recording_begins_with_its_first_sound() -> None:
    samples = latency._recording(None, 1.0)
    assert len(samples) == 24000 + 24000 or abs(len(samples) - 48000) <= BLOCK
    assert abs(int(samples[:2400].max())) > 300


# -- the microphone --------------------------------------------------------------------------------


class FakeSound:
    """A machine with one microphone, that says what it is given."""

    PortAudioError = OSError

    def __init__(self, data: bytes) -> None:
        self.data = data

    def query_devices(self) -> list[dict[str, Any]]:
        return [
            {"name": "speaker", "max_input_channels": 0},
            {"name": "microphone", "max_input_channels": 1},
        ]

    def RawInputStream(self, **how: Any) -> Any:  # noqa: N802 - the library's name
        assert (how["samplerate"], how["channels"], how["dtype"]) == (24000, 1, "int16")
        if how["device"] == 9:
            raise OSError("Invalid device")
        for piece in pieces(self.data, 2 * BLOCK):
            how["callback"](piece, BLOCK, None, None)
        return SimpleNamespace(__enter__=None)


def test_microphones_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mic, "_library", lambda: FakeSound(b""))
    assert main(["mic", "--list-devices"]) == 0
    assert capsys.readouterr().out == "  1  microphone\n"


async def test_a_device_that_is_none_is_named() -> None:
    args = argparse.Namespace(url="ws://127.0.0.1:1", key="", device=9)
    with pytest.raises(BridgeError, match="Invalid device; --list-devices"):
        await mic._speak(FakeSound(b""), args, mic.Screen(io.StringIO()))


async def test_a_queue_that_is_full_loses_its_oldest() -> None:
    blocks = mic.Blocks(asyncio.get_running_loop())
    for i in range(mic.QUEUE + 3):
        blocks.put(bytes([i % 256]))
    await asyncio.sleep(0)
    assert blocks.lost == 3
    assert await anext(blocks.read()) == b"\x03"


def test_finals_stay_and_control_characters_do_not_reach_the_terminal() -> None:
    out = io.StringIO()
    screen = mic.Screen(out)
    screen.told({"type": "partial", "text": "he"})
    screen.told({"type": "final", "text": "hello\x1b[2J"})
    assert out.getvalue() == "hello\\x1b[2J\n"
