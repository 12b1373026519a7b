"""Rules of a server: words in at a socket, actions out at a switch, and what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fake_ami import FakeAmi
from fake_esl import FakeEsl
from prometheus_client.parser import text_string_to_metric_families

from bridge.config import Address, from_dict
from bridge.engine.tones import text_of
from bridge.listeners import open_all
from bridge.server import Server
from bridge.types import Announcement, CallEvent, CallInfo, Ended, Final, RuleFired
from tests.serving import TOKEN, Peer
from tests.waiting import until

CHANNEL = "PJSIP/alice-00000001"
UUID = "8068a190-1efb-4a9f-af3c-8e234e010031"
ASKS, LATER = [7, 77, 177], [8, 9]
ALL = ["setvar", "redirect", "hangup", "record", "stop_record", "userevent", "webhook"]
SECRET = "whsec_" + "BQ" * 21 + "A="
MOVE = {"do": "redirect", "context": "callscribe-operator"}
SET = {"do": "setvar", "variable": "CALLSCRIBE_WANTS"}


def rule(*actions: dict[str, object], word: int = 77, **more: object) -> dict[str, object]:
    return {"name": "r", "words": [text_of(word)], "actions": list(actions), **more}


class Sink:
    """An egress that remembers."""

    name = "sink"

    def __init__(self) -> None:
        self.events: list[CallEvent] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def deliver(self, event: CallEvent) -> None:
        self.events.append(event)

    def fired(self) -> list[RuleFired]:
        return [e.body for e in self.events if isinstance(e.body, RuleFired)]

    def outcomes(self) -> list[tuple[str, str]]:
        return [(body.action, body.outcome) for body in self.fired()]

    def ended(self) -> bool:
        return any(isinstance(e.body, Ended) for e in self.events)


class Up:
    """A server with a call, and what stands around it."""

    def __init__(self, server: Server, sink: Sink, peer: Peer, ports: tuple[int, int]) -> None:
        self.server, self.sink, self.peer = server, sink, peer
        self.audiosocket, self.http = ports

    async def says(self, words: list[int]) -> None:
        """A final's words: a pause follows."""
        await self.peer.speak(words)
        await self.peer.be_quiet()

    async def post(self, path: str, body: object, token: str = TOKEN) -> tuple[int, Any]:
        return await self.ask("POST", path, body, token)

    async def ask(
        self, method: str, path: str, body: object = b"", token: str = TOKEN
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        head, _, text = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(text or b"null")

    def metric(self, **labels: str) -> float:
        text = self.server.metrics.exposition()[0].decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "callscribe_rules_fired_total" and sample.labels == labels
        )


Begin = Callable[..., Awaitable[Up]]


@pytest.fixture
async def ami() -> AsyncIterator[FakeAmi]:
    async with FakeAmi() as fake:
        fake.channels.add(CHANNEL)
        yield fake


@pytest.fixture
async def begin(ami: FakeAmi) -> AsyncIterator[Begin]:
    """`begin(rule, …, rules={…}, channel="…", section={…})`: a server, and a call that is up."""
    stack = contextlib.AsyncExitStack()

    async def start(
        *given: dict[str, object], channel: str = CHANNEL, rules: object = None, **sections: Any
    ) -> Up:
        allowed = {"allow_actions": ALL, "allow_contexts": ["callscribe-operator"]}
        sink, local = Sink(), Address("127.0.0.1", 0)
        sockets = open_all({"audiosocket": local, "http": local})
        account = {"port": ami.port, "username": "callscribe", "secret": "s3cret", "timeout": 5.0}
        sections = {
            "engine": {"kind": "tones", "slots": 4},
            "audiosocket": {"keepalive": "off"},
            "http": {"token": TOKEN},
            "service": {"flush_timeout": 0.2},
            "ami": account,
            "rules": {**allowed, "recordings": "/rec", **(rules or {})},  # type: ignore[dict-item]
            "rule": list(given),
            **sections,
        }
        server = Server(from_dict(sections), None, [sink])
        for sock in sockets.values():
            stack.callback(sock.close)
        stack.push_async_callback(server.close)
        audiosocket, http = (sock.getsockname()[1] for sock in sockets.values())
        await server.start(sockets)
        if server.link is not None:
            await server.link.up()
        if server.esl is not None:
            await server.esl.up()
        peer = await stack.enter_async_context(Peer(audiosocket))
        info = CallInfo("", channel=channel, context="from-trunk")
        server.switchboard.announce(Announcement(peer.id, "c-1", info=info), server.clock())
        await peer.hello()
        return Up(server, sink, peer, (audiosocket, http))

    async with stack:
        yield start


# -- what is done --------------------------------------------------------------------------------


async def test_a_variable_is_set_and_then_the_channel_moved(begin: Begin, ami: FakeAmi) -> None:
    up = await begin(rule(SET, MOVE))
    await up.says(ASKS)
    await until(lambda: len(up.sink.fired()) == 2)
    rules = [a.get("Action") for a in ami.actions if a.get("Variable") == "CALLSCRIBE_WANTS"]
    rules += [a.get("Action") for a in ami.named("Redirect")]
    assert rules == ["Setvar", "Redirect"]
    assert ami.variables[CHANNEL, "CALLSCRIBE_WANTS"] == text_of(77)
    assert ami.named("Redirect")[0].get("Context") == "callscribe-operator"
    first, second = up.sink.fired()
    (final,) = [e for e in up.sink.events if isinstance(e.body, Final)]
    assert (first.rule, first.action, first.outcome, first.reason) == ("r", "setvar", "done", "")
    assert (first.matched, first.text, first.cause) == (text_of(77), text_of(77), final.seq)
    assert second.action == "redirect"
    assert up.metric(action="redirect", outcome="done") == 1
    assert up.metric(action="redirect", outcome="failed") == 0


async def test_its_events_are_numbered_and_told_to_asterisk(begin: Begin, ami: FakeAmi) -> None:
    up = await begin(rule({"do": "userevent", "event": "Wanted"}))
    await up.says(ASKS)
    up.peer.hang_up()
    await until(up.sink.ended)
    assert up.sink.outcomes() == [("userevent", "done")]
    last = -1
    for event in up.sink.events:
        assert event.seq - event.gap_before - 1 == last
        last = event.seq
    own = [a for a in ami.named("UserEvent") if a.get("UserEvent") == "Wanted"]
    assert [a.get("Rule") for a in own] == ["r"]
    await ami.until(lambda: any(a.get("Type") == "rule" for a in ami.named("UserEvent")))
    (told,) = [a for a in ami.named("UserEvent") if a.get("Type") == "rule"]
    assert (told.get("Rule"), told.get("Rule-Action"), told.get("Outcome")) == (
        "r",
        "userevent",
        "done",
    )


async def test_only_the_bridges_side_is_hung_up(begin: Begin, ami: FakeAmi) -> None:
    up = await begin(rule({"do": "hangup", "target": "bridge"}))
    await up.says(ASKS)
    assert b"\x00\x00\x00" in await up.peer.goodbye()
    await until(up.sink.ended)
    assert up.sink.outcomes() == [("hangup", "done")]
    assert not ami.named("Hangup")


async def test_the_webhook_that_is_named_is_told_whatever_it_asks_for(begin: Begin) -> None:
    secret = "whsec_" + "BQ" * 21 + "A="
    hooks = [
        {"url": "http://127.0.0.1:9/", "secret": secret, "name": name, "events": ["call.ended"]}
        for name in ("crm", "erp")
    ]
    up = await begin(rule({"do": "webhook", "webhook": "crm"}), webhook=hooks)
    await up.says(ASKS)
    await until(lambda: up.sink.outcomes() == [("webhook", "done")])
    queued = {box.name: box.queued for box in up.server.sinks.outboxes}
    assert (queued["crm"], queued["erp"]) == (1, 0)


async def test_a_dry_run_only_tells(begin: Begin, ami: FakeAmi) -> None:
    up = await begin(rule(SET, MOVE, dry_run=True))
    await up.says(ASKS)
    await until(lambda: len(up.sink.fired()) == 2)
    assert up.sink.outcomes() == [("setvar", "dry_run"), ("redirect", "dry_run")]
    assert not ami.named("Redirect") and (CHANNEL, "CALLSCRIBE_WANTS") not in ami.variables


async def test_all_rules_run_dry(begin: Begin, ami: FakeAmi) -> None:
    up = await begin(rule(MOVE), rules={"dry_run": True})
    await up.says(ASKS)
    await until(lambda: up.sink.outcomes() == [("redirect", "dry_run")])
    assert not ami.named("Redirect")


async def test_a_freeswitch_channel_is_moved_over_its_socket(begin: Begin, ami: FakeAmi) -> None:
    async with FakeEsl() as esl:
        esl.channels.add(UUID)
        section = {"port": esl.port, "password": esl.password}
        up = await begin(rule(SET, {"do": "record"}, MOVE), channel=UUID, esl=section)
        await up.says(ASKS)
        await until(lambda: len(up.sink.fired()) == 3)
        assert esl.variables[UUID, "CALLSCRIBE_WANTS"] == text_of(77)
        lines = [command.line for command in esl.commands]
        assert f"api uuid_transfer {UUID} s XML callscribe-operator" in lines
        assert f"api uuid_record {UUID} start /rec/c-1.wav" in lines
        assert {body.outcome for body in up.sink.fired()} == {"done"}
        assert not ami.named("Redirect")


# -- what cannot be done -------------------------------------------------------------------------


async def test_a_channel_that_is_gone_is_a_failure_and_the_call_goes_on(
    begin: Begin, ami: FakeAmi
) -> None:
    ami.channels.clear()
    up = await begin(rule(SET, MOVE))
    await up.says(ASKS)
    await until(lambda: len(up.sink.fired()) == 2)
    assert [(b.outcome, b.reason) for b in up.sink.fired()] == [
        ("failed", "Asterisk refused Setvar: No such channel"),
        ("failed", "setvar before it failed"),
    ]
    await up.says(LATER)
    await until(lambda: sum(isinstance(e.body, Final) for e in up.sink.events) == 2)
    assert up.metric(action="setvar", outcome="failed") == 1


async def test_a_right_that_is_missing_is_named(begin: Begin, ami: FakeAmi) -> None:
    ami.errors = {"MixMonitor": "Permission denied"}
    up = await begin(rule({"do": "record"}))
    await up.says(ASKS)
    await until(lambda: bool(up.sink.fired()))
    assert up.sink.fired()[0].reason == (
        "Asterisk refused MixMonitor: Permission denied; in manager.conf, MixMonitor needs "
        "write = system"
    )


async def test_a_call_without_a_channel(begin: Begin) -> None:
    up = await begin(rule(MOVE), channel="")
    await up.says(ASKS)
    await until(lambda: bool(up.sink.fired()))
    assert up.sink.fired()[0].reason.startswith("the channel is not known: nobody announced it")


async def test_asterisk_that_does_not_answer_costs_the_action(begin: Begin, ami: FakeAmi) -> None:
    ami.silent = {"Redirect"}
    account = {"port": ami.port, "username": "callscribe", "secret": "s3cret", "timeout": 0.2}
    up = await begin(rule(MOVE), ami=account)
    await up.says(ASKS)
    await until(lambda: bool(up.sink.fired()))
    assert "did not answer Redirect within 0.2 s" in up.sink.fired()[0].reason


async def test_a_calls_end_waits_for_what_is_being_done(begin: Begin, ami: FakeAmi) -> None:
    ami.silent = {"Redirect"}
    up = await begin(rule(MOVE))
    await up.says(ASKS)
    await ami.until(lambda: ami.named("Redirect"))
    up.peer.hang_up()
    await until(lambda: up.server.recogniser.used == 0)
    assert not up.sink.ended()
    ami.answer_all()
    await until(up.sink.ended)
    assert up.sink.outcomes() == [("redirect", "done")]
    assert isinstance(up.sink.events[-1].body, Ended)


async def test_closing_does_not_wait(begin: Begin, ami: FakeAmi) -> None:
    ami.silent = {"Redirect"}
    up = await begin(rule(MOVE))
    await up.says(ASKS)
    await ami.until(lambda: ami.named("Redirect"))
    await up.server.close()
    assert up.sink.ended() and not up.sink.fired()


async def test_firings_beyond_the_queue_are_told_as_failed(begin: Begin, ami: FakeAmi) -> None:
    ami.silent = {"Redirect"}
    second = {**rule(SET, word=177), "name": "second"}
    up = await begin(rule(MOVE), second, rules={"queue": 1})
    await up.says(ASKS)
    await until(lambda: bool(up.sink.fired()))
    (failed,) = up.sink.fired()
    assert (failed.rule, failed.outcome) == ("second", "failed")
    assert failed.reason == "too many firings wait (rules.queue)"
    ami.answer_all()
    await until(lambda: len(up.sink.fired()) == 2)


async def test_a_fault_of_rules_costs_no_call(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    up = await begin(rule(MOVE))

    def broken(event: CallEvent) -> list[Any]:
        raise RuntimeError("a fault")

    monkeypatch.setattr(up.server.rules._book, "hear", broken)
    await up.says(ASKS)
    await until(lambda: any(isinstance(e.body, Final) for e in up.sink.events))
    assert up.server.rules.errors > 0 and "rules failed at an event" in caplog.text


# -- rules of one call ---------------------------------------------------------------------------


async def test_a_rule_for_one_call(begin: Begin, ami: FakeAmi) -> None:
    up = await begin()
    await until(lambda: "c-1" in up.server.switchboard.calls)
    body = {**rule(MOVE), "name": "own"}
    assert await up.post("/calls/c-1/rules", body) == (201, {"call_id": "c-1", "rules": ["own"]})
    status, answer = await up.post("/calls/c-1/rules", body)
    assert (status, answer["error"]) == (409, "name: there is a rule 'own' already")
    await up.says(ASKS)
    await until(lambda: up.sink.outcomes() == [("redirect", "done")])
    assert len(ami.named("Redirect")) == 1


async def test_a_rule_for_a_call_that_is_announced(begin: Begin) -> None:
    """By the call's id, and by the UUID of a leg of it."""
    up = await begin()
    async with Peer(up.audiosocket) as peer:
        later = Announcement(peer.id, "c-2", info=CallInfo("", channel=CHANNEL))
        up.server.switchboard.announce(later, up.server.clock())
        assert (await up.post("/calls/c-2/rules", rule(SET)))[0] == 201
        by_uuid = {**rule(MOVE), "name": "by-uuid"}
        status, answer = await up.post(f"/calls/{peer.id}/rules", by_uuid)
        assert (status, answer["rules"]) == (201, ["r", "by-uuid"])
        await peer.hello()
        await peer.speak(ASKS)
        await peer.be_quiet()
        await until(lambda: up.sink.outcomes() == [("setvar", "done"), ("redirect", "done")])


async def test_rules_go_with_the_announcement(begin: Begin) -> None:
    up = await begin()
    up.server.switchboard.announce(Announcement(UUID, "c-2"), up.server.clock())
    assert (await up.post("/calls/c-2/rules", rule(MOVE)))[0] == 201
    assert (await up.ask("DELETE", "/calls/c-2"))[0] == 204
    await until(lambda: up.server.rules._book._early == {})


async def test_a_webhook_is_not_told_of_a_dry_run(begin: Begin) -> None:
    hook = {"url": "http://127.0.0.1:9/", "secret": SECRET, "name": "crm", "events": ["call.ended"]}
    up = await begin(rule({"do": "webhook", "webhook": "crm"}, dry_run=True), webhook=[hook])
    await up.says(ASKS)
    await until(lambda: up.sink.outcomes() == [("webhook", "dry_run")])
    (crm,) = [box for box in up.server.sinks.outboxes if box.name == "crm"]
    assert crm.queued == 0


async def test_a_callee_alone_is_the_calls_own_channel(begin: Begin, ami: FakeAmi) -> None:
    up = await begin(rule(MOVE, leg="callee"))
    async with Peer(up.audiosocket) as peer:
        lone = Announcement(peer.id, "c-2", "callee", CallInfo("", channel=CHANNEL))
        up.server.switchboard.announce(lone, up.server.clock())
        await peer.hello()
        await peer.speak(ASKS)
        await peer.be_quiet()
        await until(lambda: up.sink.outcomes() == [("redirect", "done")])
    assert ami.named("Redirect")[0].get("channel") == CHANNEL


async def test_the_rules_of_a_call_are_listed_as_they_were_given(begin: Begin) -> None:
    up = await begin({**rule(SET), "name": "everywhere"})
    await until(lambda: "c-1" in up.server.switchboard.calls)
    plain = {**rule(MOVE), "name": "own"}
    full = {
        "name": "full",
        "regex": "man(ager)",
        "leg": "callee",
        "on": "partial",
        "min_confidence": 0.5,
        "once": False,
        "dry_run": True,
        "when": {"callee": "_2XX"},
        "actions": [{**SET, "value": "x", "target": "call"}, {"do": "hangup"}],
    }
    for body in (plain, full):
        assert (await up.post("/calls/c-1/rules", body))[0] == 201
    found = {"call_id": "c-1", "rules": [plain, full], "spent": []}
    assert await up.ask("GET", "/calls/c-1/rules") == (200, found)
    await up.says(ASKS)
    await until(lambda: len(up.sink.fired()) == 2)
    assert (await up.ask("GET", "/calls/c-1/rules"))[1]["spent"] == ["everywhere", "own"]


async def test_a_rule_that_is_taken_away_fires_no_more(begin: Begin, ami: FakeAmi) -> None:
    up = await begin()
    await until(lambda: "c-1" in up.server.switchboard.calls)
    for name in ("own", "other"):
        assert (await up.post("/calls/c-1/rules", {**rule(MOVE), "name": name}))[0] == 201
    assert await up.ask("DELETE", "/calls/c-1/rules/own") == (204, None)
    status, answer = await up.ask("DELETE", "/calls/c-1/rules/own")
    assert (status, answer["error"]) == (404, "the call has no rule of its own of this name")
    await up.says(ASKS)
    await until(lambda: len(up.sink.fired()) == 1)
    assert [body.rule for body in up.sink.fired()] == ["other"]
    assert (await up.ask("DELETE", "/calls/c-1/rules/other"))[0] == 204
    assert (await up.post("/calls/c-1/rules", {**rule(SET), "name": "other"}))[0] == 201
    await up.says(ASKS)  # a rule of a name that has fired is another rule
    await until(lambda: up.sink.outcomes() == [("redirect", "done"), ("setvar", "done")])


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", "/r")])
async def test_rules_of_a_call_that_is_not_there(begin: Begin, method: str, path: str) -> None:
    up = await begin()
    status, answer = await up.ask(method, f"/calls/nobody/rules{path}")
    sentence = "no call with this id is up or announced; GET /calls lists the calls"
    assert (status, answer["error"]) == (404, sentence)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({**rule(MOVE), "name": "r"}, 404, "no call with this id is up or announced"),
        (b"nonsense", 400, "the body is not JSON, for example {\"name\": \"stop\""),
        ([1], 400, "the body is not a JSON object"),
        ({"name": "x", "words": ["a"]}, 400, "actions: is missing"),
        (rule({**MOVE, "context": "elsewhere"}), 400, "rule 'r': may not redirect to elsewhere"),
        (rule({"do": "webhook", "webhook": "x"}), 400, "rule 'r': there is no webhook 'x'"),
        ({**rule(MOVE), "words": None, "regex": "("}, 400, "regex: missing ): ("),
    ],
)  # fmt: skip
async def test_a_rule_that_is_not_taken_says_why(
    begin: Begin, body: object, status: int, sentence: str
) -> None:
    up = await begin()
    found, answer = await up.post("/calls/nobody/rules", body)
    assert found == status and sentence in answer["error"]
    assert (await up.post("/calls/nobody/rules", body, "wrong"))[0] == 401
