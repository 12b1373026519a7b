"""The commands: serve, demo, call, doctor, bench, outbox, webhook."""

from __future__ import annotations

import os

# A BLAS thread per core spins for every small product: one thread saves a whole core. Before numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import sys
from collections.abc import Callable

from bridge import __version__
from bridge.errors import BridgeError, ConfigError

EXIT_FAILED, EXIT_USAGE = 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status: 0 fine, 1 failed, 2 wrong usage or configuration."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except ConfigError as e:
        for problem in e.problems:
            print(f"callscribe: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except BridgeError as e:
        print(f"callscribe: {e}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:  # the reader of our output has gone: not our failure
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="callscribe", description="Live phone calls in, words out to call control."
    )
    parser.add_argument("--version", action="version", version=f"callscribe {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    serve = command("serve", _serve, "Run the bridge.")
    serve.add_argument("-c", "--config", metavar="FILE", help="TOML file (deployment/bridge.toml)")
    worker = commands.add_parser("worker")  # the process that `serve` holds the sockets for
    worker.set_defaults(run=_worker)
    worker.add_argument("-c", "--config", metavar="FILE")

    demo = command("demo", _demo, "Place a recorded call into a bridge and print what is heard.")
    demo.add_argument("--asterisk", action="store_true", help="send the call through an Asterisk")

    from bridge import bench, client

    call = command("call", _call, "Play a recording into a bridge as a call would.")
    client.add_arguments(call)

    from bridge import latency, mic

    mic.add_arguments(command("mic", _mic, "Speak into a microphone and read what is heard."))
    latency.add_arguments(
        command("latency", _latency, "Measure how long after it was said a word comes.")
    )

    doctor = command("doctor", _doctor, "Check configuration, ports, Asterisk, webhooks, engine.")
    doctor.add_argument("-c", "--config", metavar="FILE", help="TOML file (deployment/bridge.toml)")

    bench.add_arguments(command("bench", _bench, "Measure; BENCHMARKS.md says what."))

    from bridge import key_command

    key_command.add_arguments(command("key", key_command.run, "Keys that open WebSockets."))

    from bridge import outbox_command, webhook_command

    outbox = command("outbox", _outbox, "What waits for its sink; dead letters.")
    outbox_command.add_arguments(outbox)
    webhook = command("webhook", _webhook, "Help with webhooks.")
    webhook_command.add_arguments(webhook)
    return parser


def _serve(args: argparse.Namespace) -> int:
    from bridge import config, listeners, logs, supervisor, worker

    settings = config.load(args.config)
    logs.set_up(settings.log)
    wanted = listeners.wanted(settings)
    sockets = listeners.inherited()
    missing = {name: address for name, address in wanted.items() if name not in sockets}
    if sockets and "audiosocket" not in missing:
        # systemd holds the sockets and restarts us: no second parent is needed.
        sockets |= listeners.open_all(missing)
        worker.leave(worker.run(settings, sockets))
    sockets |= listeners.open_all(missing)
    try:
        return supervisor.serve(args.config, sockets)
    finally:
        for sock in sockets.values():
            sock.close()


def _worker(args: argparse.Namespace) -> int:
    from bridge import config, listeners, logs, worker

    settings = config.load(args.config)
    logs.set_up(settings.log)
    sockets = listeners.inherited()
    if not sockets:
        raise BridgeError("this command is run by: callscribe serve")
    worker.die_with_parent()
    try:
        worker.leave(worker.run(settings, sockets))
    finally:
        for sock in sockets.values():
            sock.close()


def _demo(args: argparse.Namespace) -> int:
    from bridge import demo

    return asyncio.run(demo.run(asterisk=args.asterisk))


def _call(args: argparse.Namespace) -> int:
    from bridge import client

    return asyncio.run(client.run(args))


def _mic(args: argparse.Namespace) -> int:
    from bridge import mic

    return mic.run(args)


def _latency(args: argparse.Namespace) -> int:
    from bridge import latency

    return latency.run(args)


def _doctor(args: argparse.Namespace) -> int:
    from bridge import doctor

    return asyncio.run(doctor.run(args.config))


def _bench(args: argparse.Namespace) -> int:
    from bridge import bench

    return bench.run(args)


def _outbox(args: argparse.Namespace) -> int:
    from bridge import outbox_command

    return outbox_command.run(args)


def _webhook(args: argparse.Namespace) -> int:
    from bridge import webhook_command

    return webhook_command.run(args)
