"""`callscribe bench`: what BENCHMARKS.md reports."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benches and their options."""
    benches = parser.add_subparsers(title="benches", required=True, metavar="BENCH", dest="bench")
    media = benches.add_parser("media", help="AudioSocket legs a core, with an engine of no cost")
    media.add_argument("--legs", type=int, nargs="*", help="rungs of the ladder (default: climb)")
    media.add_argument("--seconds", type=float, default=8.0, help="measured per rung")
    media.add_argument(
        "--keepalive", choices=["continuous", "1s", "off"], default="continuous",
        help="silence sent back to Asterisk",
    )  # fmt: skip
    media.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    media.add_argument("--only", choices=["ours", "naive"], help="of us and the fifty plain lines")
    churn = benches.add_parser("churn", help="calls opened and closed: does memory grow?")
    churn.add_argument("--calls", type=int, default=10_000)


def run(args: argparse.Namespace) -> int:
    """Run the chosen bench; its exit status."""
    if args.bench == "churn":
        from bridge.bench import churn

        return churn.run(args.calls)
    from bridge.bench import media

    return media.run(args)
