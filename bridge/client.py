"""`callscribe call`: plays a recording or a capture into a bridge as one or many calls would."""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bridge.caller import (
    Clock,
    LegResult,
    LoopClock,
    checked_uuid,
    pace_of,
    play,
    play_audiosocket,
)
from bridge.client_rtp import CAPTURES_TO, call_rtp, failed, is_rtp, summary_rtp
from bridge.client_rtp import add_arguments as add_rtp_arguments
from bridge.config import Address, parse_address
from bridge.errors import BridgeError
from bridge.recording import read_recording
from bridge.script import make_script

__all__ = ["LegResult", "add_arguments", "call", "play_audiosocket", "read_recording", "run"]

DEFAULT_TARGET = "audiosocket://127.0.0.1:9092"
MAX_LEGS = 10_000
MAX_STAGGER = 3600  # seconds
LISTED = 4  # legs; the result of more of them is a sum


def parse_target(to: str) -> Address:
    """``audiosocket://host:port``. Raises `BridgeError` with what was expected."""
    scheme, mark, rest = to.partition("://")
    try:
        if scheme != "audiosocket" or not mark:
            raise ValueError
        return parse_address(rest.rstrip("/"))
    except ValueError:
        raise BridgeError(
            f"to: expected audiosocket://host:port, such as {DEFAULT_TARGET}, rtp://host:port or "
            f"http://host:port, not {to!r}"
        ) from None


async def call(
    path: str | Path,
    to: str,
    *,
    legs: int = 1,
    stagger: float = 0.02,
    uuids: Sequence[str] | None = None,
    realtime: bool = True,
    speed: float = 1.0,
    channel: int | None = None,
    digits: Sequence[tuple[float, str]] = (),
    linger: float = 0.0,
    on_sent: Callable[[int, float], None] | None = None,
    clock: Clock | None = None,
) -> list[LegResult]:
    """Play a recording into a bridge on `legs` connections, starting `stagger` seconds apart.

    Of a stereo recording the left channel is the caller's leg and the right one the callee's:
    both start together, and legs take the channels in turn (so there are at least two). `uuids`
    are as many as legs. `on_sent` gets (leg, seconds sent). Raises `BridgeError` before anything
    is sent: unreadable recording, wrong arguments.
    """
    target, pace = parse_target(to), pace_of(realtime, speed)
    if not 0 <= stagger <= MAX_STAGGER:
        raise BridgeError(f"stagger: expected 0 to {MAX_STAGGER} seconds, not {stagger}")
    recording = await asyncio.to_thread(read_recording, path, channel=channel)
    scripts = [await asyncio.to_thread(make_script, *each, digits, linger) for each in recording]
    names = _names(max(legs, len(scripts)), legs, uuids)
    timer = clock or LoopClock()
    start = timer.now()

    async def leg(i: int) -> LegResult:
        await timer.sleep_until(start + stagger * (i // len(scripts)))
        sent = functools.partial(on_sent, i) if on_sent else None
        return await play(scripts[i % len(scripts)], target, names[i], pace, sent, timer)

    return await asyncio.gather(*(leg(i) for i in range(len(names))))


def _names(count: int, legs: int, given: Sequence[str] | None) -> list[str]:
    if not 1 <= legs <= MAX_LEGS:
        raise BridgeError(f"legs: expected 1 to {MAX_LEGS}, not {legs}")
    if given is not None and len(given) != count:
        raise BridgeError(f"uuid: {count} legs need {count} UUIDs, not {len(given)}")
    return [checked_uuid(text) for text in (given if given is not None else [None] * count)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` reads."""
    add = parser.add_argument
    add("file", help="recording: .wav, .ulaw, .alaw or .sln; of stereo, left is the caller; or a "
        "capture (.pcap, .pcapng), of which every RTP stream is a leg")  # fmt: skip
    add("--to", help=f"the bridge (default: {DEFAULT_TARGET}; of a capture {CAPTURES_TO}), or "
        "rtp://host:port")  # fmt: skip
    add("--legs", type=int, default=1, help="connections at once; stereo: taking turns")
    add("--stagger", type=float, default=0.02, help="seconds between calls (default: %(default)s)")
    add("--channel", type=int, help="only this channel of the recording, from 0")
    add("--uuid", action="append", help="the leg's UUID (default: random); once per leg")
    add("--digit", action="append", default=[], help="SECONDS:DIGIT, a key pressed then")
    add("--linger", type=float, default=0.0, help="seconds of silence before hanging up")
    add("--speed", type=float, default=1.0, help="pace (default: 1, as people speak)")
    add("--fast", action="store_true", help="as fast as the bridge reads, not as people speak")
    add_rtp_arguments(parser)


async def run(args: argparse.Namespace) -> int:
    """The exit status: 1 when a leg failed, 2 when there was nothing to call with or whom."""
    progress = _Progress() if sys.stderr.isatty() else None
    try:
        text, wrong = await _played(args, progress)
    except BridgeError as e:
        print(f"callscribe call: {e}", file=sys.stderr)
        return 2
    finally:
        if progress is not None:
            progress.clear()
    print(text)
    return int(wrong)


async def _played(
    args: argparse.Namespace, progress: Callable[[int, float], None] | None
) -> tuple[str, bool]:
    """What to print, and whether a leg failed."""
    digits = [_digit(text) for text in args.digit]
    if is_rtp(args):
        outcomes = await call_rtp(args, digits, progress)
        return summary_rtp(outcomes), failed(outcomes)
    results = await call(
        args.file,
        args.to or DEFAULT_TARGET,
        legs=args.legs,
        stagger=args.stagger,
        uuids=args.uuid,
        realtime=not args.fast,
        speed=args.speed,
        channel=args.channel,
        digits=digits,
        linger=args.linger,
        on_sent=progress,
    )
    return summary(results), any(result.failed for result in results)


def _digit(text: str) -> tuple[float, str]:
    seconds, _, digit = text.partition(":")
    try:
        return float(seconds), digit
    except ValueError:
        raise BridgeError(f"digit: expected SECONDS:DIGIT, such as 2.5:1, not {text!r}") from None


class _Progress:
    """One line on a terminal, rewritten for every second of the leg that is furthest."""

    def __init__(self) -> None:
        self._legs: set[int] = set()
        self._shown = -1

    def __call__(self, leg: int, seconds: float) -> None:
        self._legs.add(leg)
        if int(seconds) > self._shown:
            self._shown = int(seconds)
            print(
                f"\r{self._shown} s, legs: {len(self._legs)} ", end="", file=sys.stderr, flush=True
            )

    def clear(self) -> None:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def summary(results: Sequence[LegResult]) -> str:
    """A line per leg, or for many legs their sums, and each kind of failure once."""
    if len(results) <= LISTED:
        return "\n".join(_line(result) for result in results)
    ends = Counter(_ENDS[result.ended_by] for result in results)
    lines = [
        f"{len(results)} legs, {sum(result.seconds for result in results):.1f} s of audio sent, "
        f"{sum(result.bytes_received for result in results)} bytes received: "
        + ", ".join(f"{count} {end}" for end, count in ends.most_common())
    ]
    errors = Counter(result.error for result in results if result.error)
    return "\n".join(lines + [f"  {count} x {error}" for error, count in errors.most_common()])


_ENDS = {
    "us": "played to the end",
    "peer": "ended by the bridge",
    "refused": "refused",
    "error": "failed",
}


def _line(result: LegResult) -> str:
    return (
        f"{result.uuid}  {_ENDS[result.ended_by]}, {result.seconds:.1f} s of audio sent, "
        f"{result.bytes_received} bytes received" + (f": {result.error}" if result.error else "")
    )
