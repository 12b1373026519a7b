"""`callscribe mic`: speak, and read what is heard. Needs the extra ``mic`` (sounddevice)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any, TextIO

from bridge.errors import BridgeError
from bridge.logs import escaped
from bridge.socket_client import BLOCK, RATE, stream

QUEUE = 125  # blocks, 10 s: a bridge that is further behind than that loses the oldest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument("url", nargs="?", default="ws://127.0.0.1:8080/ws")
    parser.add_argument("--list-devices", action="store_true", help="microphones of this machine")
    parser.add_argument("--device", type=int, metavar="N", help="one of them")
    parser.add_argument("--key", default="", help="API key, sent as Authorization: Bearer")


def run(args: argparse.Namespace) -> int:
    """Until Ctrl-C."""
    sounddevice = _library()
    if args.list_devices:
        return _list(sounddevice)
    screen = Screen(sys.stdout)
    try:
        asyncio.run(_speak(sounddevice, args, screen))
    except KeyboardInterrupt:
        screen.close()
    return 0


def _library() -> Any:
    """Raises `BridgeError` where it, or PortAudio under it, is not installed."""
    try:
        import sounddevice
    except ImportError:
        raise BridgeError("the microphone needs: pip install 'callscribe[mic]'") from None
    except OSError:
        raise BridgeError("the microphone needs PortAudio: apt-get install libportaudio2") from None
    return sounddevice


def _list(sounddevice: Any) -> int:
    found = [
        (number, device)
        for number, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]
    if not found:
        raise BridgeError("this machine has no microphone")
    for number, device in found:
        print(f"{number:3d}  {device['name']}")
    return 0


async def _speak(sounddevice: Any, args: argparse.Namespace, screen: Screen) -> None:
    queue = Blocks(asyncio.get_running_loop())
    try:
        microphone = sounddevice.RawInputStream(
            samplerate=RATE,
            blocksize=BLOCK,
            channels=1,
            dtype="int16",
            device=args.device,
            callback=lambda data, frames, when, status: queue.put(bytes(data)),
        )
    except (sounddevice.PortAudioError, ValueError) as e:
        raise BridgeError(
            f"the microphone cannot be opened: {e}; --list-devices shows what there is"
        ) from None
    with microphone:
        screen.note("listening; Ctrl-C ends")
        await stream(args.url, args.key, queue.read(), screen.told)


class Blocks:
    """From PortAudio's thread to the loop, bounded."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lost = 0
        self._loop = loop
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)

    def put(self, block: bytes) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._put, block)

    def _put(self, block: bytes) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self.lost += 1
        self._queue.put_nowait(block)

    async def read(self) -> AsyncIterator[bytes]:
        """Blocks as they come, for ever."""
        while True:
            yield await self._queue.get()


class Screen:
    """Finals stay, a partial is replaced in place; on anything but a terminal only finals."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()

    def note(self, text: str) -> None:
        """A line of our own."""
        print(text, file=self._out, flush=True)

    def told(self, message: dict[str, Any]) -> None:
        """One message of the bridge."""
        text = escaped(str(message.get("text", "")))
        if message["type"] == "final":
            self._out.write(("\r\x1b[K" if self._live else "") + text + "\n")
        elif message["type"] == "partial" and self._live:
            self._out.write(f"\r\x1b[K\x1b[2m{text[-100:]}\x1b[0m")
        self._out.flush()

    def close(self) -> None:
        """Leave the line."""
        self._out.write("\r\x1b[K" if self._live else "")
        self._out.flush()
