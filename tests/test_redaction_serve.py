"""Canaries spoken into a running bridge: in no sink, no answer, no metric, no line of the log."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from fake_ami import FakeAmi
from fake_esl import FakeEsl

from bridge.config import Address, from_dict
from bridge.errors import ConfigError
from bridge.listeners import open_all
from bridge.redact.stream import RedactStream
from bridge.redacting import Redaction
from bridge.server import Server
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    Final,
    Heard,
    Listened,
    Pressed,
    RuleFired,
    Word,
)
from tests.fakes import FakeLease, FakeRecogniser
from tests.serving import TOKEN, Peer, free_port, http
from tests.waiting import until

KINDS = ["card", "ssn", "phone", "email"]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOLD = [  # what the engine hears, a row per pause: nothing of the second column may get out
    ("my card is", ""),
    ("", "49927398"),
    ("", "71649"),
    ("", "922"),
    ("expires soon", ""),
    ("and the mail", "wilhelmina dot zzyzx"),
    ("", "at quuxmail dot com"),
    ("then social security", "536-90-4399"),
    ("or call", "212-555-0123"),
    ("goodbye", ""),
]
CANARIES = ["49927398", "71649", "wilhelmina", "zzyzx", "quuxmail", "536-90-4399", "212-555-0123"]
KEPT = "my card is [card] [card] [card] expires soon and the mail [email] [email] then social "
KEPT += "security [ssn] or call [phone] goodbye"


class Hearing(FakeRecogniser):
    """An engine whose hearing the test decides; a lease is done when it is finished."""

    def lease(self, heard, done) -> FakeLease:  # type: ignore[no-untyped-def]
        lease = super().lease(heard, done)
        lease.finish = lambda: (lease.evict(), done())  # type: ignore[method-assign,assignment]
        return lease


@asynccontextmanager
async def receiver(bodies: list[bytes]) -> AsyncIterator[str]:
    async def take(request: web.BaseRequest) -> web.StreamResponse:
        bodies.append(await request.read())
        return web.Response()

    runner = web.ServerRunner(web.Server(take))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    try:
        yield site.name
    finally:
        await runner.cleanup()


def tell(lease: FakeLease) -> None:
    """All that is in TOLD, a final per row, with partials in between."""
    at = 0.0
    for plain, canary in TOLD:
        words = []
        for text in f"{plain} {canary}".split():
            words.append(Word(text, at, at + 0.2, 0.9))
            at += 0.3
        lease.heard(Heard((), tuple(words), 0.0, at))
        lease.heard(Heard(tuple(words), (), 1.0, at))


@pytest.mark.parametrize("redact", [KINDS, []], ids=["on", "off"])
async def test_what_is_redacted_is_nowhere(redact, caplog):
    """Switched off, all of it is everywhere: the same search, so that the test can fail."""
    caplog.set_level(logging.DEBUG)
    posted: list[bytes] = []
    async with contextlib.AsyncExitStack() as stack:
        ami, esl = (
            await stack.enter_async_context(FakeAmi()),
            await stack.enter_async_context(FakeEsl()),
        )
        url = await stack.enter_async_context(receiver(posted))
        local = Address("127.0.0.1", 0)
        sockets = open_all({"audiosocket": local, "http": local})
        for sock in sockets.values():
            stack.callback(sock.close)
        every = ["started", "partial", "final", "turn", "dtmf", "ended", "refused"]
        engine = Hearing()
        server = Server(
            from_dict(
                {
                    "audiosocket": {"keepalive": "off", "admission": "announced"},
                    "http": {"token": TOKEN, "redact": redact},
                    "log": {"transcripts": True, "redact": redact},
                    "ami": {"port": ami.port, "username": "callscribe", "secret": "s3cret",
                            "events": every, "redact": redact},
                    "esl": {"port": esl.port, "password": "s3cret", "events": every,
                            "redact": redact},
                    "webhook": [{"url": url, "secret": SECRET, "redact": redact}],
                }
            ),
            engine,
        )  # fmt: skip
        stack.push_async_callback(server.close)
        await server.start(sockets)
        ports = {name: sock.getsockname()[1] for name, sock in sockets.items()}
        async with Peer(ports["audiosocket"]) as peer:
            channel = str(uuid.uuid4())
            ami.channels.add(channel)
            esl.channels.add(channel)
            status, _ = await http(ports["http"], "/calls", "POST", uuid=peer.id, channel=channel)
            assert status == 201
            await peer.hello()
            await until(lambda: engine.leases)
            server.switchboard.calls[peer.id].legs["caller"].on_digit("4")
            tell(engine.leases[0])
            answers = [
                (await http(ports["http"], f"/calls/{peer.id}{end}"))[1] for end in ("", "/text")
            ]
            peer.hang_up()
            await until(lambda: server.switchboard.ended)
        answers += [
            (await http(ports["http"], f"/calls/{peer.id}{end}"))[1] for end in ("", "/text")
        ]
        answers += [
            (await http(ports["http"], path))[1] for path in ("/metrics", "/calls", "/health")
        ]
        await until(lambda: not any(box.queued for box in server.sinks.outboxes))
        said = [json.loads(body) for body in posted]
    everything = {
        "webhook": b"\n".join(posted).decode(),
        "ami": "\n".join(f"{k}: {v}" for action in ami.actions for k, v in action.headers),
        "esl": "\n".join(
            f"{command.line} {command.headers} {command.body.decode()}" for command in esl.commands
        ),
        "variables": f"{ami.variables} {esl.variables}",
        "http": "\n".join(answers),
        "log": "\n".join(record.getMessage() for record in caplog.records) + caplog.text,
    }
    leaks = {(where, c) for where, text in everything.items() for c in CANARIES if c in text}
    digits = [event for event in said if event["type"] == "dtmf"]
    finals = [event["data"] for event in said if event["type"] == "transcript.final"]
    if not redact:
        assert {where for where, _ in leaks} == set(everything) - {"variables"}
        assert len(digits) == 1
        return
    assert leaks == set() and digits == []
    assert " ".join(final["text"] for final in finals) == KEPT
    assert f"{' '.join(KEPT.split()[:3])}\n" in answers[3]
    seqs = [event["data"]["seq"] - event["data"].get("gap_before", 0) for event in said]
    assert seqs == [0, *(event["data"]["seq"] + 1 for event in said[:-1])]
    assert 'callscribe_redaction_total{what="card"} 3.0' in answers[4]  # one stream for all sinks


async def test_a_pause_lets_out_what_was_no_number():
    now = 100.0
    redaction = Redaction(from_dict({}).redaction, lambda: now)
    out: list[CallEvent] = []
    redaction.add(["card"], out.append)
    word = Word("12345678", 0.0, 1.0, 1.0)
    redaction.publish(CallEvent(CallInfo("c"), 0, 0.0, "caller", Final(0, word.text, (word,))))
    redaction.expire()
    assert (out, redaction.held) == ([], 1)
    now += 3.0
    redaction.expire()
    assert [event.seq for event in out] == [0]


async def test_what_fails_lets_nothing_out_but_the_end(monkeypatch, caplog):
    redaction = Redaction(from_dict({}).redaction, lambda: 0.0)
    out: list[CallEvent] = []
    plain: list[CallEvent] = []
    redaction.add(["card"], out.append)
    redaction.add([], plain.append)

    def fail(*_: object) -> None:
        raise ValueError("4111")

    monkeypatch.setattr("bridge.redact.stream.scan", fail)
    word = Word("4111", 0.0, 1.0, 1.0)
    redaction.publish(CallEvent(CallInfo("c"), 0, 0.0, "caller", Final(0, word.text, (word,))))
    redaction.publish(CallEvent(CallInfo("c"), 1, 0.0, None, Ended("hangup", 1.0, {})))
    assert [event.seq for event in out] == [1]
    assert [event.seq for event in plain] == [0, 1]
    assert redaction.counters["errors"] == 1
    assert "redaction failed in call 'c': ValueError" in caplog.text
    assert "4111" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"log": {"redact": ["card"]}}, "redact: stdnum not installed: pip install"),
        ({"recording": {"enabled": True, "redact": ["card"]}},
         "redact: stdnum not installed: pip install"),
        ({"http": {"redact": ["phone"]}, "redaction": {"regions": ["XX"]}},
         "redaction.regions: 'XX' is no country with telephones"),
    ],
)  # fmt: skip
def test_what_cannot_be_redacted_stops_the_start(settings, sentence, monkeypatch):
    if "stdnum" in sentence:
        monkeypatch.setattr("bridge.redacting.find_spec", lambda name: name != "stdnum" or None)
    with pytest.raises(ConfigError, match=sentence):
        Server(from_dict(settings), FakeRecogniser())


@pytest.mark.parametrize(
    "body",
    [
        Pressed("4", 0.0),
        Listened("heard", "4111"),
        RuleFired("r", "setvar", "done", "", 0, 1, "4111", "4111", (Word("4111", 0, 1, 1.0),)),
    ],
)
def test_a_fault_lets_nothing_out(monkeypatch, body) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("4111")

    redaction, out = Redaction(from_dict({}).redaction, lambda: 0.0), []
    redaction.add(["card"], out.append)
    monkeypatch.setattr("bridge.redact.stream.RedactStream.put", fail)
    redaction.publish(CallEvent(CallInfo("c"), 1, 0.0, "caller", body))
    assert "4" not in repr([event.body for event in out])
    assert len(out) == (0 if isinstance(body, Pressed) else 1)


def test_a_fault_while_time_passes_costs_one_call(monkeypatch) -> None:
    now = 0.0
    redaction, out = Redaction(from_dict({}).redaction, lambda: now), []
    redaction.add(["card"], out.append)
    for call in ("bad", "good"):
        word = Word("4111", 0.0, 1.0, 1.0)
        final = Final(0, word.text, (word,))
        redaction.publish(CallEvent(CallInfo(call), 0, 0.0, "caller", final))
    assert out == [] and redaction.held == 2
    going_out = RedactStream._out

    def fail(self, call):
        if call.queue[0][0].call.id == "bad":
            raise RuntimeError("4111")
        return going_out(self, call)

    monkeypatch.setattr(RedactStream, "_out", fail)
    now = 60.0
    redaction.expire()
    assert [event.call.id for event in out] == ["good"]
    assert redaction.counters["errors"] == 1 and redaction.held == 0
