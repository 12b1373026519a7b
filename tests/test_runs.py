"""Several events in one POST: `batch = true`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from bridge.egress.disk import PAGE
from bridge.egress.outbox import Outbox
from bridge.egress.retry import PROBE
from bridge.egress.runs import MOST
from bridge.egress.webhook import RUN_BYTES, TRIES, Webhook
from bridge.errors import DeliveryError
from bridge.types import CallEvent, CallInfo, Final, Started
from tests.test_disk import path, started  # noqa: F401 - path is a fixture
from tests.test_outbox import END, Line, Sink, down, final, partial, settle
from tests.test_webhook import SECRET, endpoint, event
from tests.waiting import until


class Runs(Sink):
    """Takes runs, of `size` events at the most: each is a hundred bytes with its comma."""

    batch = True

    def __init__(self, answer=None, size: int = MOST) -> None:
        super().__init__(answer)
        self.run_bytes = size * 100
        self.runs: list[list[int]] = []  # as they were asked

    def encode(self, event: CallEvent) -> bytes:
        return bytes(99)

    async def deliver_run(self, events: Sequence[CallEvent], bodies: Sequence[bytes]) -> None:
        assert len(bodies) == len(events)
        if len(events) > 1:
            self.runs.append([event.seq for event in events])
        errors = [error for event in events if (error := self.answer(event))]
        if errors:
            raise errors[0]
        for one in events:
            await self.deliver(one)


async def test_what_waits_for_a_call_goes_together_up_to_its_next_partial() -> None:
    async with Line(Runs()) as line:
        line.put(Started(), final(), partial(1), final(2), final(3))
        line.put(Started(), call="b")
        await settle()
        assert line.sink.runs == [[0, 1, 0], [3, 4]]
        assert [e.call.id for e in line.sink.taken] == ["a", "a", "b", "a", "a", "a"]
        assert [e.seq for e in line.sink.taken if e.call.id == "a"] == [0, 1, 2, 3, 4]


async def test_gaps_inside_a_run_are_told() -> None:
    sink = Runs(down)
    async with Line(sink) as line:
        line.put(Started(), partial(), final(), partial(1), partial(1), final(1))
        sink.answer = lambda event: None
        await line.time.advance(1.0)
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(0, 0), (2, 1), (5, 2)]
        assert sink.runs == [[0, 2, 5]]


async def test_a_run_is_tried_again_as_it_was() -> None:
    sink = Runs(down)
    async with Line(sink) as line:
        line.put(Started(), final())
        await settle()
        line.put(final(), final())
        await line.time.advance(2.0)
        assert sink.runs == [[0, 1]] * 3
        sink.answer = lambda event: None
        await line.time.advance(PROBE)
        assert sink.runs == [[0, 1]] * 4 + [[2, 3]] and sink.seqs == [0, 1, 2, 3]
        assert line.counters == {"delivered": 4, "retries": 3}


async def test_a_run_that_is_refused_is_given_event_by_event() -> None:
    def answer(event: CallEvent) -> Exception | None:
        return DeliveryError("422", permanent=True) if event.seq == 1 else None

    sink = Runs(answer)
    async with Line(sink) as line:
        line.put(Started(), final(), final(), final(), END)
        await settle()
        line.put(Started(), final(), call="b")
        await line.time.advance(1.0)
        assert sink.runs[0] == [0, 1, 2, 3, 4]
        assert [e.seq for e in sink.taken if e.call.id == "a"] == [0, 2, 3, 4]
        assert line.counters["failed_permanent"] == 2 and line.outbox.calls == 1


async def test_a_run_is_no_longer_than_the_sink_takes() -> None:
    async with Line(Runs(size=3)) as line:
        line.put(*[final()] * 7)
        await settle()
        assert line.sink.runs == [[0, 1, 2], [3, 4, 5]] and line.sink.seqs == list(range(7))


async def test_from_the_disk_a_page_goes_at_a_time(path: Path) -> None:  # noqa: F811
    line = await started(Runs(down), path, limit=100)
    line.put(*[final()] * 150)
    await line.wait(5)
    line.sink.answer = lambda event: None
    await line.wait(PROBE)
    assert line.sink.seqs == list(range(150)) and line.writer.store.rows == 0
    assert len([run for run in line.sink.runs if len(run) == PAGE]) >= 2
    await line.end()


def hook(url: str, batch: bool = True) -> Webhook:
    from bridge.config import WebhookSettings

    return Webhook(WebhookSettings(url=url, secret=SECRET, name="hook", batch=batch))


async def test_a_webhook_posts_an_array_under_one_id() -> None:
    async with endpoint(200) as server:
        outbox = Outbox(hook(server.url))
        for seq in range(3):
            outbox.put(event(seq, Final(seq, "é", ())))
        await outbox.start()
        await until(lambda: not outbox.queued)
        await outbox.close(1.0)
    assert server.ids == ["c-1:hook:0-2"]
    assert [told["data"]["seq"] for told in json.loads(server.bodies[0])] == [0, 1, 2]


async def test_without_batch_nothing_changes() -> None:
    async with endpoint(200) as server:
        outbox = Outbox(hook(server.url, batch=False))
        for seq in range(3):
            outbox.put(event(seq))
        await outbox.start()
        await until(lambda: not outbox.queued)
        await outbox.close(1.0)
    assert server.ids == [f"c-1:hook:{seq}" for seq in range(3)]
    assert all(isinstance(json.loads(body), dict) for body in server.bodies)


@pytest.mark.parametrize("one_call", [True, False])
@pytest.mark.parametrize(
    ("text", "posts"), [("x" * 20_000, [3, 3, 3]), ("x" * RUN_BYTES, [1] * 9), ("", [9])]
)
async def test_a_body_has_a_limit(one_call: bool, text: str, posts: list[int]) -> None:
    async with endpoint(200) as server:
        outbox = Outbox(hook(server.url))
        for n in range(9):
            one = event(n if one_call else 0, Final(0, text, ()))
            outbox.put(one if one_call else replace(one, call=CallInfo(f"c-{n}")))
        await outbox.start()
        await until(lambda: not outbox.queued)
        await outbox.close(1.0)
    told = [json.loads(body) for body in server.bodies]
    assert [len(one) if isinstance(one, list) else 1 for one in told] == posts


async def test_calls_share_a_post_under_an_id_of_what_is_in_it() -> None:
    ids = []
    for calls in ("abc", "abd", "abc"):
        async with endpoint(200) as server:
            outbox = Outbox(hook(server.url))
            for name in calls:
                outbox.put(replace(event(5), call=CallInfo(name)))
            await outbox.start()
            await until(lambda: not outbox.queued)  # noqa: B023
            await outbox.close(1.0)
        assert [e["data"]["call_id"] for e in json.loads(server.bodies[0])] == list(calls)
        ids += server.ids
    assert ids[0] == ids[2] != ids[1] and all(name.startswith("a:hook:5:") for name in ids)


async def test_what_calls_shared_is_tried_again_call_by_call() -> None:
    """One of them is to blame, and only that one waits."""
    sink = Runs(lambda event: DeliveryError("500") if event.call.id == "b" else None)
    async with Line(sink) as line:
        line.put(Started(), final(), call="a")
        line.put(Started(), final(), call="b")
        line.put(Started(), call="c")
        await settle()
        assert sink.runs == [[0, 1, 0, 1, 0], [0, 1], [0, 1]]
        assert [e.call.id for e in sink.taken] == ["a", "a", "c"]
        line.put(final(), call="c")
        line.put(final(), call="a")
        await line.time.advance(2.0)
        assert [e.call.id for e in sink.taken][3:] == ["c", "a"]
        assert line.counters["retries"] >= 3


async def test_what_calls_shared_and_the_sink_refuses_is_given_event_by_event() -> None:
    refuse = DeliveryError("422", permanent=True)
    sink = Runs(lambda event: refuse if event.call.id == "b" and event.seq == 1 else None)
    async with Line(sink) as line:
        for call in "abc":
            line.put(Started(), final(), final(), call=call)
        await line.time.advance(1.0)
        taken = [(e.call.id, e.seq) for e in sink.taken]
        assert sorted(taken) == [(c, n) for c in "abc" for n in range(3) if (c, n) != ("b", 1)]
        assert line.counters["failed_permanent"] == 1


async def test_a_failing_sink_is_not_given_more_at_once() -> None:
    sink = Runs(down)
    async with Line(sink) as line:
        line.put(Started(), call="a")
        await settle()
        for call in "bcd":
            line.put(Started(), call=call)
        await line.time.advance(0.5)
        assert sink.runs == []  # one by one


async def test_what_cannot_be_written_costs_nobody_else_anything() -> None:
    class Odd(Runs):
        def encode(self, event: CallEvent) -> bytes:
            if event.call.id == "odd" and event.seq == 1:
                raise OverflowError("year is out of range")
            return super().encode(event)

        async def deliver(self, event: CallEvent) -> None:
            self.encode(event)
            await super().deliver(event)

    async with Line(Odd()) as line:
        line.put(Started(), call="odd")
        for call in ("a", "odd", "b"):
            line.put(final(), final(), call=call)
        await line.time.advance(1.0)
        taken = [(e.call.id, e.seq) for e in line.sink.taken]
        assert taken[0] == ("odd", 0)
        assert sorted(taken[1:]) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
        assert line.counters["errors"] > 0


async def test_no_more_than_a_delivery_holds() -> None:
    async with Line(Runs()) as line:
        for n in range(2 * MOST + 1):
            line.put(Started(), call=f"c-{n}")
        await settle()
        assert [len(run) for run in line.sink.runs] == [MOST, MOST]
        assert len(line.sink.taken) == 2 * MOST + 1


async def test_an_event_that_a_receiver_refuses_costs_only_itself() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=400 if b'"seq":1,' in await request.read() else 200)

    async with endpoint(answer) as server:
        outbox = Outbox(hook(server.url), schedule=[0.0])
        for seq in range(4):
            outbox.put(event(seq))
        await outbox.start()
        await until(lambda: not outbox.queued)
        assert outbox.counters["failed_permanent"] == 1 and outbox.counters["delivered"] == 3
        await outbox.close(1.0)
    assert server.ids.count("c-1:hook:0-3") == TRIES
    assert server.ids.count("c-1:hook:1") == TRIES
    assert [server.ids.count(f"c-1:hook:{seq}") for seq in (0, 2, 3)] == [1, 1, 1]
