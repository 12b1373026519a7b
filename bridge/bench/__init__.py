"""`callscribe bench`: what BENCHMARKS.md reports."""

from __future__ import annotations

import argparse
import pathlib
from typing import get_args

from bridge.config_media import Speedup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benches and their options."""
    benches = parser.add_subparsers(title="benches", required=True, metavar="BENCH", dest="bench")
    media = benches.add_parser("media", help="legs a core, with an engine of no cost")
    media.add_argument("--ingress", choices=["audiosocket", "rtp", "twilio"], default="audiosocket")
    media.add_argument("--legs", type=int, nargs="*", help="rungs of the ladder (default: climb)")
    media.add_argument("--seconds", type=float, default=8.0, help="measured per rung")
    media.add_argument(
        "--keepalive", choices=["continuous", "1s", "off"], default="continuous",
        help="silence sent back to Asterisk",
    )  # fmt: skip
    media.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    media.add_argument("--only", choices=["ours", "naive"], help="of us and the fifty plain lines")
    strays = benches.add_parser("strays", help="RTP legs among packets of strangers")
    strays.add_argument("--rate", type=int, default=50_000, help="stray packets a second")
    strays.add_argument("--seconds", type=float, default=5.0, help="measured per phase")
    strays.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    strays.add_argument("--no-filter", action="store_true", help="as on a kernel without BPF")
    churn = benches.add_parser("churn", help="calls opened and closed: does memory grow?")
    churn.add_argument("--ingress", choices=["audiosocket", "rtp"], default="audiosocket")
    churn.add_argument("--calls", type=int, default=10_000)
    outbox = benches.add_parser("outbox", help="events on the disk, words to a webhook")
    outbox.add_argument("--legs", type=int, default=400)
    outbox.add_argument("--seconds", type=float, default=10.0, help="measured per row")
    outbox.add_argument("--commits", type=int, default=500, help="measured per row")
    outbox.add_argument("--burst", type=int, default=10_000, help="events at once")
    outbox.add_argument("--beside", type=int, default=400, help="legs with 2,500 events a second")
    outbox.add_argument("--folder", type=pathlib.Path, help="where the file is made")
    _engine_arguments(benches.add_parser("engine", help="batch steps of the Kyutai engine"))


def _engine_arguments(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--random-weights", choices=["tiny", "1b", "2.6b"], default="tiny")
    weights.add_argument("--model", help="a checkpoint's directory or hub name")
    parser.add_argument("--slots", type=int, nargs="*", help="rungs (default: by the device)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--speedups", nargs="*", default=list(get_args(Speedup)), choices=get_args(Speedup),
        help="ways that are faster than moshi's own (default: all; none: --speedups)",
    )  # fmt: skip
    parser.add_argument("--coalesce", type=float, default=0.0, help="seconds, engine.coalesce")
    parser.add_argument("--steps", type=int, default=60, help="measured per rung")
    parser.add_argument("--live", type=float, default=4.0, help="seconds of live calls per rung")
    parser.add_argument("--fill", type=int, help="steps before, to fill rings (default on a GPU)")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.png")


def run(args: argparse.Namespace) -> int:
    """Run the chosen bench; its exit status."""
    if args.bench == "engine":
        from bridge.bench import engine

        return engine.run(args)
    if args.bench == "outbox":
        from bridge.bench import outbox

        return outbox.run(args)
    if args.bench == "churn":
        from bridge.bench import churn

        return churn.run(args.calls, args.ingress)
    if args.bench == "strays":
        from bridge.bench import rtp

        return rtp.run_strays(args)
    from bridge.bench import media

    return media.run(args)
