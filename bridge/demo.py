"""`callscribe demo`: a recorded call into a bridge, in real time, and what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from bridge import client, demo_asterisk
from bridge.accuracy import normalised, word_errors
from bridge.config import Address, from_dict
from bridge.errors import BridgeError
from bridge.listeners import open_all
from bridge.logs import escaped
from bridge.server import Server
from bridge.types import (
    Announcement,
    CallEvent,
    Ended,
    EndOfTurn,
    Final,
    LegName,
    Partial,
    Started,
)

SLOTS = 2
LEGS: tuple[LegName, LegName] = ("caller", "callee")
RECORDING = 31.0  # s, bridge/samples/call.wav
LOG_IN = 10.0  # s
END_WAIT = 15.0  # s for the last words after the recording
COLOURS = {"caller": "\x1b[36m", "callee": "\x1b[33m"}
BAR = 30  # characters


class Screen:
    """Prints a call: finals stay, the partial in progress is replaced in place.

    An `Egress` that never fails. On anything but a terminal only finals are printed.
    """

    name = "screen"

    def __init__(self, out: TextIO) -> None:
        self.ended = asyncio.Event()
        self.summary = Summary()
        self._out = out
        self._live = out.isatty()

    async def start(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to close."""

    async def deliver(self, event: CallEvent) -> None:
        """Print one event."""
        self.summary.hear(event)
        match event.body:
            case Partial(words=words, text=text) if self._live:
                self._print(event.leg, words[0].start, text, end="\r")
            case Final(words=words, text=text):
                self._print(event.leg, words[0].start, text, end="\n")
            case Ended():
                self.ended.set()
            case _:
                pass

    def _print(self, leg: LegName | None, at: float, text: str, end: str) -> None:
        line = f"{at:6.2f}  {leg or '':7} "
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            shown = escaped(text)
            room = max(10, width - len(line))
            if end == "\r":  # one row: the newest words count
                shown = shown if len(shown) <= room else "…" + shown[1 - room :]
            line = f"\x1b[2K{COLOURS.get(leg or '', '')}{line}\x1b[0m{shown}"
        else:
            line += escaped(text)
        print(line, end=end, file=self._out, flush=True)


@dataclass(slots=True)
class Summary:
    """What a call came to: words, and how late each was told."""

    latencies: list[float] = field(default_factory=list)
    finals: dict[str, list[str]] = field(default_factory=dict)
    turns: int = 0
    ended: Ended | None = None
    call_id: str = ""
    _began: float = 0.0
    _told: dict[LegName | None, int] = field(default_factory=dict)

    def hear(self, event: CallEvent) -> None:
        """One event of the call."""
        match event.body:
            case Started():
                self._began = event.at
                self.call_id = event.call.id
            case Partial(words=words):
                self._time(event, words)
                self._told[event.leg] = len(words)
            case Final(words=words, text=text):
                self._time(event, words)
                self._told[event.leg] = 0
                self.finals.setdefault(event.leg or "", []).append(text)
            case EndOfTurn():
                self.turns += 1
            case Ended() as ended:
                self.ended = ended
            case _:
                pass

    def _time(self, event: CallEvent, words: Sequence[object]) -> None:
        for word in words[self._told.get(event.leg, 0) :]:
            self.latencies.append(event.at - self._began - word.end)  # type: ignore[attr-defined]

    def text(self, leg: str) -> str:
        """Everything that a leg said."""
        return " ".join(self.finals.get(leg, []))

    def lines(self, reference: dict[str, str]) -> list[str]:
        """For people."""
        if self.ended is None:
            return ["the call did not end"]
        lines = [f"call {self.call_id}: {self.ended.seconds:.1f} s, {self.turns} turns"]
        for leg, counts in self.ended.legs.items():
            right = ""
            if leg in reference:
                wrong, total = word_errors(reference[leg], self.text(leg))
                right = f", {max(0, total - wrong)} of {total} right"
            lines.append(
                f"  {leg}: {counts.words} words{right}; {counts.frames} frames, "
                f"{counts.blocks_dropped} blocks dropped, "
                f"{counts.silence_inserted:.2f} s of silence filled in"
            )
        if self.latencies:
            p50, p95 = np.percentile(self.latencies, [50, 95])
            lines.append(f"  from a word's end to its event: p50 {p50:.2f} s, p95 {p95:.2f} s")
        return lines


def progress_bar(out: TextIO, what: str, done: int, of: int) -> None:
    """One row, redrawn in place; on anything but a terminal only the end is said."""
    if out.isatty():
        filled = BAR * done // max(1, of)
        end = "\n" if done >= of else ""
        print(f"\r{what} [{'#' * filled:{BAR}}] {done}/{of}", end=end, file=out, flush=True)
    elif done >= of:
        print(f"{what}: {done} of {of} ready", file=out, flush=True)


async def run(*, asterisk: bool) -> int:
    """The whole demonstration; 0 when every leg was heard."""
    out = sys.stdout
    screen = Screen(out)
    settings: dict[str, object] = {
        "engine": {"kind": "pocketsphinx", "slots": SLOTS},
        "audiosocket": {"listen": "127.0.0.1:0"},
        "log": {"level": "warning"},
    }
    if asterisk:
        installation, account = demo_asterisk.find(), demo_asterisk.new_account()
        settings["ami"] = {
            "port": account.port,
            "username": "callscribe",
            "secret": account.secret,
        }
    sockets = open_all({"audiosocket": Address("127.0.0.1", 0)})
    server = Server(from_dict(settings), sinks=[screen])
    if hasattr(server.recogniser, "progress"):
        server.recogniser.progress = lambda done, of: progress_bar(out, "recogniser", done, of)
    try:
        async with contextlib.AsyncExitStack() as stack:
            port = sockets["audiosocket"].getsockname()[1]
            if asterisk:
                private = demo_asterisk.running(installation, port, account)
                pbx = await stack.enter_async_context(private)
            stack.push_async_callback(_shut, server)  # before the Asterisk goes
            await server.start(sockets)
            if asterisk:
                await _play_through(pbx, server, screen, out)
            else:
                await _play(server, port, out)
                await _ended(screen, END_WAIT)
    finally:
        for sock in sockets.values():
            sock.close()
    print("\n" + "\n".join(screen.summary.lines(reference())), file=out)
    return 0 if all(screen.summary.text(leg) for leg in LEGS) else 1


async def _shut(server: Server) -> None:
    await server.drain()
    await server.close()


async def _play(server: Server, port: int, out: TextIO) -> None:
    names = [str(uuid.uuid4()) for _ in LEGS]
    for name, leg in zip(names, LEGS, strict=True):
        server.announce(Announcement(name, call=names[0], leg=leg))
    print(f"a call of two parties to audiosocket://127.0.0.1:{port}, in real time\n", file=out)
    with importlib.resources.as_file(sample("call.wav")) as recording:
        to = f"audiosocket://127.0.0.1:{port}"
        played = await client.call(recording, to, legs=2, uuids=names)
    for result in played:
        if result.failed:
            raise BridgeError(f"the call could not be played: {result.error}")


async def _play_through(
    pbx: demo_asterisk.Asterisk, server: Server, screen: Screen, out: TextIO
) -> None:
    assert server.link is not None
    async with asyncio.timeout(LOG_IN):
        await server.link.up()
    print(f"a call of two parties through {await pbx.version()}, in real time\n", file=out)
    await pbx.place_call()
    await _ended(screen, RECORDING + END_WAIT)


async def _ended(screen: Screen, patience: float) -> None:
    try:
        async with asyncio.timeout(patience):
            await screen.ended.wait()
    except TimeoutError:
        raise BridgeError(
            f"the recogniser has not finished {END_WAIT:.0f} s after the recording; "
            "is the machine too slow for two legs? callscribe doctor looks"
        ) from None


def sample(name: str) -> importlib.resources.abc.Traversable:
    """A file of bridge/samples."""
    return importlib.resources.files("bridge") / "samples" / name


def reference() -> dict[str, str]:
    """What each leg of the recording says."""
    said: dict[str, list[str]] = {}
    for line in sample("call.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            _, leg, words = line.split(maxsplit=2)
            said.setdefault(leg, []).append(normalised(words))
    return {leg: " ".join(parts) for leg, parts in said.items()}
