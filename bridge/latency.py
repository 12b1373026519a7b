"""`callscribe latency URL`: how long after it was said a word comes, over N streams at once."""

from __future__ import annotations

import argparse
import asyncio
import importlib.resources
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridge.audio.resample import make_resampler
from bridge.errors import BridgeError
from bridge.recording import read_recording
from bridge.socket_client import BLOCK, RATE, stream
from bridge.types import Samples

MOST = 1000  # streams
TAIL = 1.0  # s of silence after the recording: the last words end as a speaker's would


@dataclass
class Stream:
    """One stream: when it began, and how late each word was, in seconds."""

    began: float = 0.0
    late: list[float] = field(default_factory=list)
    error: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument("url", help="ws://127.0.0.1:8080/ws")
    parser.add_argument(
        "-p", "--parallel", type=int, default=1, metavar="N", help="streams at once"
    )
    parser.add_argument("--file", type=Path, help="recording to send (default: the sample call)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of it")
    parser.add_argument("--key", default="", help="API key, sent as Authorization: Bearer")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 when a stream failed."""
    if not 1 <= args.parallel <= MOST:
        raise BridgeError(f"-p: expected 1 to {MOST} streams")
    samples = _recording(args.file, args.seconds)
    streams = asyncio.run(_all(args.url, args.key, samples, args.parallel))
    failed = [s.error for s in streams if s.error]
    for error in sorted(set(failed)):
        print(f"callscribe: {error} ({failed.count(error)} streams)", file=sys.stderr)
    heard = [s for s in streams if s.late]
    print(table(heard, len(samples) / RATE))
    if args.plot is not None and heard:
        _plot(heard, args.plot)
    return 1 if failed or not heard else 0


def table(streams: Sequence[Stream], seconds: float) -> str:
    """First word and every word: from a word's end in the audio to its message."""
    words = [late for s in streams for late in s.late]
    lines = [f"{len(streams)} streams of {seconds:.1f} s, {len(words)} words"]
    rows = [("first word", [s.late[0] for s in streams]), ("every word", words)]
    lines.append(f"{'seconds after its end':22} {'min':>6} {'p50':>6} {'p95':>6} {'max':>6}")
    for name, late in rows:
        if late:
            low, mid, high = np.percentile(late, [0, 50, 95])
            lines.append(f"{name:22} {low:6.2f} {mid:6.2f} {high:6.2f} {max(late):6.2f}")
    return "\n".join(lines)


def _recording(path: Path | None, seconds: float) -> Samples:
    """int16 at 24 kHz, with silence behind it."""
    sample = importlib.resources.files("bridge") / "samples/call.wav"
    with importlib.resources.as_file(sample) as own:
        samples, rate = read_recording(path or own, channel=0)[0]
    samples = samples[_first_sound(samples) :][: round(seconds * rate)]
    if rate != RATE:
        resampler = make_resampler(rate, RATE, BLOCK)
        blocks = [*resampler.feed(samples), *resampler.flush()]
        samples = np.asarray(np.concatenate(blocks) * 32767, np.int16)
    return np.concatenate([samples, np.zeros(round(TAIL * RATE), np.int16)])


def _first_sound(samples: Samples) -> int:
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 500)
    return int(loud[0]) if len(loud) else 0


async def _all(url: str, key: str, samples: Samples, n: int) -> list[Stream]:
    """Streams begin spread over one second, as calls do."""
    streams = [Stream() for _ in range(n)]
    await asyncio.gather(*(_one(url, key, samples, s, i / n) for i, s in enumerate(streams)))
    return streams


async def _one(url: str, key: str, samples: Samples, it: Stream, wait: float) -> None:
    loop = asyncio.get_running_loop()

    async def audio() -> AsyncIterator[bytes]:
        """In real time: a block when its last sample has been said."""
        it.began = loop.time()
        for at in range(0, len(samples), BLOCK):
            await asyncio.sleep(it.began + (at + BLOCK) / RATE - loop.time())
            yield samples[at : at + BLOCK].tobytes()

    def told(message: dict[str, Any]) -> None:
        if message["type"] == "word":
            it.late.append(loop.time() - it.began - float(message["end"]))

    await asyncio.sleep(wait)
    try:
        await stream(url, key, audio(), told)
    except BridgeError as e:
        it.error = str(e)


def _plot(streams: Sequence[Stream], path: Path) -> None:
    """How many words had come by when. Raises `BridgeError` without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise BridgeError("--plot needs matplotlib: pip install 'callscribe[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, late in [
        ("first word", sorted(s.late[0] for s in streams)),
        ("every word", sorted(late for s in streams for late in s.late)),
    ]:
        axes.plot(late, np.linspace(0, 100, len(late)), drawstyle="steps-post", label=name)
    axes.set(xlabel="seconds after the word's end", ylabel="% of words", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
