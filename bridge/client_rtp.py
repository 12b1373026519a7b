"""`callscribe call` over RTP: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from bridge.announcing import BridgeApi
from bridge.caller import Clock, LoopClock, pace_of
from bridge.capture import is_capture
from bridge.config import parse_address
from bridge.errors import BridgeError
from bridge.rtp_call import Call, Outcome, Player, Ports, captured, recorded
from bridge.rtp_caller import RtpResult
from bridge.rtp_script import form, impairments

CAPTURES_TO = "http://127.0.0.1:8001"  # where a bridge hands out ports
SCHEMES = ("rtp", "http", "https")
OPTIONS = ("codec", "ptime", "loss", "jitter", "reorder", "dup", "seed", "token")
MAX_STAGGER = 3600  # s
LISTED = 4  # legs; the result of more of them is a sum
ENDS = {"us": "played to the end", "peer": "ended by the bridge", "error": "failed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What only RTP has. None: not given."""
    add = parser.add_argument_group(
        "RTP",
        "--to http://host:port asks a bridge for a port for each leg, and in the end what it has "
        "heard; rtp://host:port[,port] sends to ports that were announced already.",
    ).add_argument
    add("--token", help="the bridge's http.token (default: BRIDGE_HTTP__TOKEN of the environment)")
    add("--codec", help="pcmu (default), pcma, g722, l16/16000 …; of a capture: what its unknown "
        "payload types are")  # fmt: skip
    add("--ptime", type=float, help="ms of audio in a packet, 10 to 60 (default: 20)")
    add("--loss", type=float, help="percent of packets that are never sent")
    add("--jitter", type=float, help="ms: each packet is late by 0 to so much, for itself, so that "
        "packets overtake each other")  # fmt: skip
    add("--reorder", type=float, help="percent held back until up to three later ones have gone")
    add("--dup", type=float, help="percent sent twice, the second time up to 50 ms later")
    add("--seed", type=int, help="the same seed, the same losses (default: 1)")


def is_rtp(args: argparse.Namespace) -> bool:
    """Is this call one over RTP? Raises `BridgeError` for what AudioSocket cannot do."""
    capture = is_capture(args.file)
    if (capture and args.to is None) or (args.to or "").partition("://")[0] in SCHEMES:
        return True
    if capture:
        raise BridgeError(f"{args.file}: is a capture of RTP: --to http://host:port or rtp://…")
    for name in OPTIONS:
        if getattr(args, name) is not None:
            raise BridgeError(f"{name}: only RTP has it: --to http://host:port or rtp://host:port")
    return False


def parse_ports(to: str) -> Ports:
    """``rtp://host:port`` or ``rtp://host:port,port``. Raises `BridgeError`."""
    rest = to.partition("://")[2].rstrip("/")
    host, _, ports = rest.rpartition(":")
    try:
        found = [parse_address(f"{host}:{port}") for port in ports.split(",")]
        if any(address.port == 0 for address in found):
            raise ValueError
    except ValueError:
        raise BridgeError(
            f"to: expected rtp://host:port, or rtp://host:port,port for two legs, not {to!r}"
        ) from None
    return Ports(found[0].host, [address.port for address in found])


async def call_rtp(
    args: argparse.Namespace,
    digits: Sequence[tuple[float, str]] = (),
    on_sent: Callable[[int, float], None] | None = None,
    clock: Clock | None = None,
) -> list[Outcome]:
    """Play what `args` say. Raises `BridgeError` before anything is sent."""
    if args.fast:
        raise BridgeError("fast: nobody says over RTP what is too fast; use --speed 5")
    if not 0 <= args.stagger <= MAX_STAGGER:
        raise BridgeError(f"stagger: expected 0 to {MAX_STAGGER} seconds, not {args.stagger}")
    to = args.to or CAPTURES_TO
    asked = not to.startswith("rtp")
    target = BridgeApi(to, args.token) if asked else parse_ports(to)
    calls = await asyncio.to_thread(_calls, args, digits, asked)
    pace = pace_of(True, args.speed)
    return await Player(target, pace, clock or LoopClock(), on_sent).play(calls, args.uuid)


def _calls(
    args: argparse.Namespace, digits: Sequence[tuple[float, str]], asked: bool
) -> list[Call]:
    network = impairments(
        args.loss or 0.0,
        args.jitter or 0.0,
        args.reorder or 0.0,
        args.dup or 0.0,
        1 if args.seed is None else args.seed,
    )
    if not is_capture(args.file):
        how = form(args.codec or "pcmu", 20 if args.ptime is None else args.ptime)
        return recorded(
            args.file,
            how,
            network,
            legs=args.legs,
            stagger=args.stagger,
            channel=args.channel,
            digits=digits,
            linger=args.linger,
        )
    given = {
        "legs": args.legs != 1, "channel": args.channel is not None, "digit": bool(digits),
        "linger": args.linger != 0, "ptime": args.ptime is not None,
    }  # fmt: skip
    for name in (name for name, is_given in given.items() if is_given):
        raise BridgeError(f"{name}: a capture is played as it is; leave --{name} out")
    if args.codec:
        form(args.codec)  # is it one?
    return captured(args.file, network, args.codec or "", announced=asked)


# -- what is printed -------------------------------------------------------------------------------


def failed(outcomes: Sequence[Outcome]) -> bool:
    """Did any leg fail?"""
    return any(leg.failed for outcome in outcomes for leg in outcome.legs)


def summary_rtp(outcomes: Sequence[Outcome]) -> str:
    """A line per leg, what the bridge says of it, and the conversation; of many legs the sums."""
    legs = [leg for outcome in outcomes for leg in outcome.legs]
    if len(legs) > LISTED:
        return _sums(outcomes, legs)
    lines = []
    for outcome in outcomes:
        for leg in outcome.legs:
            lines.append(_line(leg))
            counts = _counts(outcome.heard, leg.leg)
            if counts:
                lines.append(_heard(counts))
        if outcome.text:
            lines.append(outcome.text)
    return "\n".join(lines)


def _line(leg: RtpResult) -> str:
    where = f" to {leg.to}" if leg.to else ""
    text = (
        f"{leg.uuid}  {leg.leg}{where}: {ENDS[leg.ended_by]}, {leg.seconds:.1f} s, "
        f"{leg.packets_sent} packets sent"
    )
    if leg.lost or leg.twice or leg.held_back:
        text += (
            f" (of {leg.packets_of}; by our doing {leg.lost} lost, {leg.twice} twice, "
            f"{leg.held_back} held back)"
        )
    return text + (f": {leg.error}" if leg.error else "")


def _counts(heard: Mapping[str, object] | None, leg: str) -> Mapping[str, object]:
    """A leg's counts as GET /calls/{id} has them; empty where it has not."""
    legs = heard.get("legs") if heard is not None else None
    counts = legs.get(leg) if isinstance(legs, dict) else None
    return counts if isinstance(counts, dict) else {}


def _number(counts: Mapping[str, object], key: str) -> float:
    value = counts.get(key)
    return value if isinstance(value, int | float) else 0.0


def _heard(counts: Mapping[str, object]) -> str:
    whole = {
        key: int(_number(counts, key))
        for key in ("words", "packets_lost", "packets_late", "packets_duplicate")
    }
    return (
        f"  the bridge: {whole['words']} words in {_number(counts, 'seconds'):.1f} s, packets "
        f"{whole['packets_lost']} lost, {whole['packets_late']} late, "
        f"{whole['packets_duplicate']} duplicate, jitter {1000 * _number(counts, 'jitter'):.1f} "
        f"ms, {_number(counts, 'concealed'):.2f} s concealed"
    )


def _sums(outcomes: Sequence[Outcome], legs: Sequence[RtpResult]) -> str:
    ends = Counter(ENDS[leg.ended_by] for leg in legs)
    lines = [
        f"{len(legs)} legs, {sum(leg.packets_sent for leg in legs)} packets sent, "
        f"{sum(leg.lost for leg in legs)} lost by our doing: "
        + ", ".join(f"{count} {end}" for end, count in ends.most_common())
    ]
    heard = [_counts(each.heard, leg.leg) for each in outcomes for leg in each.legs if each.heard]
    if heard:
        words, lost = (
            int(sum(_number(counts, key) for counts in heard)) for key in ("words", "packets_lost")
        )
        lines.append(f"  the bridge: {words} words, {lost} packets lost on {len(heard)} legs")
    errors = Counter(leg.error for leg in legs if leg.error)
    return "\n".join(lines + [f"  {count} x {error}" for error, count in errors.most_common()])
