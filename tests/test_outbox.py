import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.egress import outbox as module
from bridge.egress.outbox import PARTIAL_TTL, Outbox, wait_for
from bridge.egress.retry import PROBE, SCHEDULE, TRIP
from bridge.errors import DeliveryError
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegName,
    Partial,
    Pressed,
    Refused,
    Started,
)

CANARY = "my pin is one two three"


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


class Time:
    """A clock that stands still, and the one wait of the dispatcher that hangs on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.until: float | None = None
        self.event = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        self.event, self.until = event, None if seconds is None else self.now + seconds
        await event.wait()

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await settle()
        while self.until is not None and self.until <= end:
            self.now, self.until = max(self.now, self.until), None
            self.event.set()
            await settle()
        self.now = end


class Sink:
    """Answers as told; checks, of every event that it is given, order, bound and gap."""

    name = "sink"

    def __init__(self, answer: Callable[[CallEvent], Exception | None] | None = None) -> None:
        self.answer = answer or (lambda event: None)
        self.clock: Time | None = None
        self.asked: list[tuple[float, CallEvent]] = []
        self.taken: list[CallEvent] = []
        self.last: dict[str, int] = {}
        self.flying: dict[str, CallEvent] = {}
        self.broken: list[str] = []
        self.most = 0
        self.closed = 0
        self.again = False  # after a crash an event may come that has come before

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1

    async def deliver(self, event: CallEvent) -> None:
        call = event.call.id
        if call in self.flying:  # an assertion here would be one more failure to try again after
            self.broken.append(f"two events of call {call} at once")
        before = event.seq - event.gap_before - 1
        if before > self.last.get(call, -1) or (
            before < self.last.get(call, -1) and not self.again
        ):
            self.broken.append(f"{event.seq} - {event.gap_before} after {self.last.get(call)}")
        self.flying[call] = event
        self.most = max(self.most, len(self.flying))
        self.asked.append((self.clock.now if self.clock else 0.0, event))
        try:
            await self.decide(event)
        finally:
            del self.flying[call]
        self.last[call] = event.seq
        self.taken.append(event)

    async def decide(self, event: CallEvent) -> None:
        error = self.answer(event)
        if error is not None:
            raise error

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.asked]

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.taken]


class Held(Sink):
    """Holds every event until told what to do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, asyncio.Future[None]] = {}

    async def decide(self, event: CallEvent) -> None:
        future = asyncio.get_running_loop().create_future()
        self.held[event.call.id] = future
        await future

    async def say(self, call: str, error: Exception | None = None) -> None:
        future = self.held.pop(call)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        await settle()


class Line:
    """An outbox in front of a sink on a clock of its own, and calls that number their events."""

    def __init__(self, sink: Sink, **options: Any) -> None:
        self.time = Time()
        self.sink = sink
        sink.clock = self.time
        options = {"jitter": lambda: 0.5} | options
        self.outbox = Outbox(sink, clock=self.time, wait=self.time.wait, **options)
        self.next: Counter[str] = Counter()

    async def __aenter__(self) -> "Line":
        await self.outbox.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.outbox.close(0.0)
        assert self.sink.broken == []

    def put(self, *bodies: EventBody, call: str = "a", leg: LegName | None = "caller") -> None:
        for body in bodies:
            event = CallEvent(CallInfo(id=call), self.next[call], 0.0, leg, body)
            self.next[call] += 1
            self.outbox.put(event)

    async def drain(self) -> None:
        """Let everything be delivered that needs no time."""
        before = -1
        while self.outbox.queued != before:
            before = self.outbox.queued
            await settle()

    @property
    def counters(self) -> dict[str, int]:
        return {name: count for name, count in self.outbox.counters.items() if count}


def partial(turn: int = 0) -> Partial:
    return Partial(turn, CANARY, ())


def final(turn: int = 0) -> Final:
    return Final(turn, CANARY, ())


END = Ended("hangup", 1.0, {})


def down(event: CallEvent) -> Exception:
    return DeliveryError("example.net answered 500")


# -- the plain way ------------------------------------------------------------------------------


async def test_events_of_a_call_arrive_in_order_and_the_call_is_forgotten() -> None:
    async with Line(Sink()) as line:
        line.put(Started(), partial(), Pressed("1", 0), EndOfTurn(0, "", 0, 1, "pause"), END)
        assert line.outbox.queued == 5 and line.outbox.calls == 1
        await settle()
        assert line.sink.seqs == [0, 1, 2, 3, 4]
        assert all(event.gap_before == 0 for event in line.sink.taken)
        assert line.counters == {"delivered": 5}
        assert line.outbox.queued == line.outbox.calls == 0 and line.outbox.state == "ok"


async def test_what_was_put_before_the_start_is_delivered() -> None:
    line = Line(Sink())
    line.put(Refused("busy"))
    async with line:
        await settle()
        assert line.sink.seqs == [0] and line.outbox.calls == 0


async def test_one_event_of_a_call_and_so_many_calls_at_a_time() -> None:
    sink = Held()
    async with Line(sink, concurrency=3) as line:
        for call in "abcde":
            line.put(Started(), final(), call=call)
        await settle()
        assert sorted(sink.held) == ["a", "b", "c"]
        await sink.say("b")
        assert sorted(sink.held) == ["a", "c", "d"]  # the others' turn before b's second
        for call in "acdebacde":
            await sink.say(call)
        assert sink.most == 3 and len(sink.taken) == 10


async def test_a_call_with_much_to_say_waits_its_turn() -> None:
    sink = Held()
    async with Line(sink, concurrency=1) as line:
        line.put(Started(), final(), final())
        await line.time.advance(1.0)
        line.put(Started(), call="b")
        await line.time.advance(1.0)
        for call in ("a", "b", "a", "a"):
            await sink.say(call)
        assert [event.call.id for event in sink.taken] == ["a", "b", "a", "a"]


async def test_the_age_of_the_oldest() -> None:
    sink = Held()
    async with Line(sink) as line:
        assert line.outbox.oldest == 0.0
        line.put(Started())
        await line.time.advance(4.0)
        line.put(Started(), call="b")
        await line.time.advance(3.0)
        assert line.outbox.oldest == 7.0
        await sink.say("a")
        assert line.outbox.oldest == 3.0


# -- partials -----------------------------------------------------------------------------------


async def test_a_partial_replaces_the_waiting_one_of_its_leg_only() -> None:
    sink = Held()
    async with Line(sink) as line:
        line.put(partial())
        await settle()
        line.put(partial(), partial())
        line.put(partial(), leg="callee")
        line.put(partial(), leg="caller")
        assert line.outbox.queued == 3
        for _ in range(3):
            await sink.say("a")
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(0, 0), (3, 2), (4, 0)]
        assert line.counters == {"delivered": 3, "superseded": 2}


async def test_a_final_replaces_partials_of_its_turn_only() -> None:
    sink = Held()
    async with Line(sink) as line:
        line.put(Started())
        await settle()
        line.put(partial(1))
        line.put(final(1), leg="callee")
        line.put(final(0))
        assert line.outbox.queued == 4
        line.put(final(1))
        assert line.outbox.queued == 4
        for _ in range(4):
            await sink.say("a")
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(0, 0), (2, 1), (3, 0), (4, 0)]


@pytest.mark.parametrize("newer", [partial(), final()])
async def test_a_flying_partial_is_not_tried_again_when_there_is_a_newer(newer: EventBody) -> None:
    sink = Held()
    async with Line(sink) as line:
        line.put(partial())
        await settle()
        line.put(newer)
        await sink.say("a", down(sink.asked[0][1]))
        await sink.say("a")
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(1, 1)]
        assert line.counters == {"superseded": 1, "delivered": 1}


async def test_partials_expire() -> None:
    sink = Held()
    async with Line(sink) as line:
        line.put(Started())
        await settle()
        line.put(partial())
        line.put(final(), leg="callee")
        await line.time.advance(PARTIAL_TTL)
        line.put(END)
        assert line.counters == {"expired": 1} and line.outbox.queued == 3
        for _ in range(3):
            await sink.say("a")
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(0, 0), (2, 1), (3, 0)]


async def test_a_partial_that_expires_as_its_call_ends_does_not_take_the_end_with_it() -> None:
    sink = Held()
    async with Line(sink, concurrency=1) as line:
        line.put(Started(), call="busy")
        await settle()
        line.put(partial())
        line.time.now += PARTIAL_TTL  # and nobody has looked yet
        line.put(END)
        assert line.outbox.calls == 2 and line.counters == {"expired": 1}
        await sink.say("busy")
        await sink.say("a")
        assert sink.taken[-1].body == END and line.outbox.calls == 1


async def test_a_partial_that_fails_holds_up_its_call_until_it_expires_at_most() -> None:
    sink = Sink(lambda event: down(event) if isinstance(event.body, Partial) else None)
    async with Line(sink) as line:
        line.put(partial())
        line.put(final(), leg="callee")
        await line.time.advance(PARTIAL_TTL - 0.01)
        assert sink.times == [0, 0, 1, 6] and sink.taken == []
        await line.time.advance(0.01)
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(1, 1)]
        assert line.counters == {"retries": 3, "expired": 1, "delivered": 1}


# -- failures -----------------------------------------------------------------------------------


async def test_a_lonely_failing_event_follows_the_schedule() -> None:
    sink = Sink(down)
    async with Line(sink) as line:
        line.put(final())
        await line.time.advance(sum(SCHEDULE) - 1)
        waits = [b - a for a, b in zip(sink.times, sink.times[1:], strict=False)]
        hours = [1, 2, 5, 10, 14, 20]
        assert waits == [0, 1, 5, 30, 120, 300, 900, 1800, *(hour * 3600 for hour in hours)]
        assert line.counters == {"retries": 14}
        sink.answer = lambda event: None
        line.put(END)
        await line.time.advance(1)
        assert sink.seqs == [0, 1] and line.outbox.state == "ok"


async def test_after_three_days_an_event_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    assert 74 * 3600 < sum(SCHEDULE) < 76 * 3600
    sink = Sink(down)
    async with Line(sink) as line:
        line.put(final())
        await line.time.advance(sum(SCHEDULE))
        assert line.counters == {"retries": 15, "failed_permanent": 1} and line.outbox.queued == 0
        assert "event 0 of call 'a' is given up: example.net answered 500" in caplog.text
        sink.answer = lambda event: None
        line.put(END)
        await settle()
        await line.time.advance(PROBE)
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(1, 1)]


async def test_jitter_spreads_the_waits() -> None:
    sink = Sink(down)
    async with Line(sink, jitter=lambda: 1.0, schedule=(8.0,)) as line:
        line.put(final())
        await line.time.advance(30)
        assert sink.times == [0, 10, 20, 30]


async def test_a_wish_of_the_sink_wins() -> None:
    sink = Sink(lambda event: DeliveryError("busy", retry_after=42.0))
    async with Line(sink) as line:
        line.put(partial())
        line.put(final(), leg="callee")
        await line.time.advance(41.9)
        assert sink.times == [0.0]  # the partial has expired, and still nothing was said
        sink.answer = lambda event: None
        await line.time.advance(0.1)
        assert sink.times == [0.0, 42.0]
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(1, 1)]


async def test_giving_up_an_event_costs_that_event() -> None:
    sink = Sink(lambda event: DeliveryError("no", permanent=True) if event.seq == 1 else None)
    async with Line(sink) as line:
        line.put(Started(), final(), final(), END)
        await settle()
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(0, 0), (2, 1), (3, 0)]
        assert line.counters == {"delivered": 3, "failed_permanent": 1}
        assert line.outbox.calls == 0 and line.outbox.state == "ok"


async def test_a_call_whose_end_is_given_up_is_forgotten_too() -> None:
    async with Line(Sink(lambda event: DeliveryError("no", permanent=True))) as line:
        line.put(Started(), END)
        await settle()
        assert line.counters == {"failed_permanent": 2} and line.outbox.calls == 0


async def test_gone_means_no_more_of_anything(caplog: pytest.LogCaptureFixture) -> None:
    sink = Held()
    async with Line(sink, concurrency=3) as line:
        for call in "abc":
            line.put(Started(), final(), call=call)
        await settle()
        gone = DeliveryError("example.net answered 410", gone=True)
        await sink.say("a", gone)
        assert line.outbox.state == "gone" and line.outbox.queued == 2
        await sink.say("b", gone)
        await sink.say("c")
        line.put(final(), call="d")
        await settle()
        assert line.counters == {"disabled": 6, "delivered": 1}
        assert line.outbox.queued == line.outbox.calls == 0 and not sink.held
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "example.net answered 410" in caplog.text


async def test_a_sink_that_raises_anything_else_is_logged_without_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[Exception | None] = [ValueError(CANARY), None]
    async with Line(Sink(lambda event: answers.pop(0))) as line:
        line.put(final(), call="the-call")
        await settle()
        assert line.counters == {"errors": 1, "retries": 1, "delivered": 1}
    assert "sink raised ValueError at event 0 (transcript.final) of call 'the-call'" in caplog.text
    assert CANARY not in caplog.text


async def test_a_sink_without_a_deadline_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELIVERY_LIMIT", 0.0)
    sink = Held()
    async with Line(sink) as line:
        line.put(final())
        await settle()
        assert line.outbox.counters["errors"] >= 1 and line.outbox.state in ("failing", "open")


# -- the breaker --------------------------------------------------------------------------------


async def test_a_dead_sink_is_not_hammered_by_a_thousand_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Sink(down)
    async with Line(sink) as line:
        for call in range(1000):
            line.put(final(), call=str(call))
        await settle()
        burst = len(sink.asked)
        assert TRIP <= burst <= 32 and line.outbox.state == "open"
        await line.time.advance(600)
        assert len(sink.asked) == burst + 600 / PROBE
        probes = sink.times[burst:]
        assert probes == [PROBE * n for n in range(1, len(probes) + 1)]
        sink.answer = lambda event: None
        await line.time.advance(PROBE)
        await line.drain()
        assert line.outbox.state == "ok" and line.counters["delivered"] == 1000
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and lines[1] == (
        "sink failed 5 times in a row and is asked once in 10 s from now on: "
        "example.net answered 500"
    )


async def test_a_recovery_ends_everybodys_back_off() -> None:
    sink = Sink(down)
    async with Line(sink) as line:
        line.put(final())
        await line.time.advance(40)
        assert line.outbox.state == "open" and sink.times == [0, 0, 1, 6, 36]
        sink.answer = lambda event: None
        line.put(final(), call="b")
        await line.time.advance(PROBE)
        assert [event.call.id for event in sink.taken] == ["b", "a"]
        assert sink.times[-2:] == [46, 46]


async def test_a_recovery_does_not_cut_a_wish_short() -> None:
    wishing = DeliveryError("busy", retry_after=100.0)
    sink = Sink(lambda event: wishing if event.call.id == "w" else down(event))
    async with Line(sink) as line:
        line.put(final(), call="w")
        await settle()
        for call in range(10):
            line.put(final(), call=str(call))
        await settle()
        assert line.outbox.state == "open"
        sink.answer = lambda event: None
        await line.time.advance(99.0)
        assert len(sink.taken) == 10
        await line.time.advance(1.0)
        assert sink.asked[-1][0] == 100.0 and sink.taken[-1].call.id == "w"


async def test_a_dead_sink_delays_nobody_else() -> None:
    dead = Held()
    async with Line(dead) as slow, Line(Sink()) as quick:
        for line in (slow, quick):
            line.put(Started(), final(), END)
        await settle()
        assert quick.sink.seqs == [0, 1, 2] and dead.taken == []


# -- the bound ----------------------------------------------------------------------------------


async def test_partials_go_first_and_ends_last_when_there_is_no_room() -> None:
    sink = Held()
    async with Line(sink, limit=4, concurrency=1) as line:
        line.put(Started(), call="busy")
        await settle()
        line.put(Started(), final(), partial(1))
        line.put(END, call="b")
        assert line.counters == {"dropped_partial": 1}
        line.put(final(2))
        assert line.counters == {"dropped_partial": 1, "dropped_full": 1}  # Started
        line.put(final(3))
        line.put(partial(4))  # everything is worth more than this newcomer
        assert line.counters == {"dropped_partial": 2, "dropped_full": 2}
        assert line.outbox.queued == 4
        for call in ("busy", "a", "b", "a"):
            await sink.say(call)
        found = [(e.call.id, e.seq, e.gap_before) for e in sink.taken]
        assert found == [("busy", 0, 0), ("a", 3, 3), ("b", 0, 0), ("a", 4, 0)]


async def test_the_back_off_of_a_dropped_head_goes_with_it() -> None:
    sink = Sink(down)
    async with Line(sink, limit=2, schedule=(1000.0,)) as line:
        line.put(Started())
        await settle()
        line.put(final())
        sink.answer = lambda event: None
        line.put(final())
        await settle()
        assert [(e.seq, e.gap_before) for e in sink.taken] == [(1, 1), (2, 0)]


async def test_an_outage_expires_partials_and_keeps_every_final() -> None:
    """Ten minutes, a hundred calls."""
    sink = Sink(down)
    async with Line(sink) as line:
        for _ in range(10):
            for call in map(str, range(100)):
                line.put(partial(), call=call)
                line.put(final(1), call=call, leg="callee")
            await line.time.advance(60)
        sink.answer = lambda event: None
        await line.time.advance(PROBE)
        await line.drain()
        finals = [event for event in sink.taken if isinstance(event.body, Final)]
        assert len(finals) == 1000 and len(sink.taken) <= 1100
        assert line.counters["expired"] + line.counters.get("superseded", 0) >= 900


# -- what a sink does not want --------------------------------------------------------------------


class Picky(Sink):
    def wants(self, event: CallEvent) -> bool:
        if isinstance(event.body, Pressed):
            raise ValueError(CANARY)
        return isinstance(event.body, Final)


async def test_unwanted_events_are_gaps_and_their_end_is_seen() -> None:
    async with Line(Picky()) as line:
        line.put(Started(), partial(), final(), EndOfTurn(0, "", 0, 1, "pause"), final())
        line.put(Started(), END, call="silent")
        await settle()
        assert [(e.seq, e.gap_before) for e in line.sink.taken] == [(2, 2), (4, 1)]
        assert line.outbox.calls == 1
        line.put(END)
        assert line.outbox.calls == 0 and line.counters == {"delivered": 2}


async def test_a_sink_that_cannot_say_what_it_wants_gets_it() -> None:
    async with Line(Picky()) as line:
        line.put(Pressed("1", 0.0))
        await settle()
        assert line.counters == {"errors": 1, "delivered": 1}


# -- the end ------------------------------------------------------------------------------------


async def test_close_flushes_and_tries_waiting_heads_at_once() -> None:
    sink = Sink(down)
    line = Line(sink)
    await line.outbox.start()
    line.put(final(), END)
    await line.time.advance(7)
    sink.answer = lambda event: None
    assert line.outbox.state == "failing" and sink.taken == []
    assert await line.outbox.close(5.0) == 0
    assert sink.seqs == [0, 1] and sink.closed == 1
    line.put(final())
    assert line.counters["dropped_shutdown"] == 1 and line.outbox.queued == 0


async def test_close_does_not_wait_for_what_will_not_come_in_time() -> None:
    line = Line(Sink(down))
    await line.outbox.start()
    for call in map(str, range(50)):
        line.put(final(), call=call)
    await settle()
    assert await line.outbox.close(5.0) == 50  # the clock stands still: there was no wait
    assert line.counters["dropped_shutdown"] == 50


async def test_close_lets_go_of_a_sink_that_hangs() -> None:
    sink = Held()
    line = Line(sink)
    await line.outbox.start()
    line.put(Started(), final())
    await settle()
    closing = asyncio.ensure_future(line.outbox.close(5.0))
    await line.time.advance(4.9)
    assert not closing.done() and sink.closed == 0
    await line.time.advance(0.2)
    assert await closing == 2
    assert sink.closed == 1 and sink.flying == {}
    assert await line.outbox.close(5.0) == 0 and sink.closed == 1


async def test_close_survives_a_sink_that_will_not_be_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(Sink):
        async def decide(self, event: CallEvent) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    line = Line(Stubborn())
    await line.outbox.start()
    line.put(Started(), final())
    await settle()
    assert await line.outbox.close(0.0) == 2
    gc.collect()  # a task that failed says so when it is collected
    assert line.counters == {"dropped_shutdown": 2} and caplog.messages == []


async def test_close_without_start_only_counts() -> None:
    line = Line(Sink())
    line.put(Started())
    assert await line.outbox.close(1.0) == 1
    assert line.sink.closed == 0


async def test_a_sink_that_fails_to_close_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Sink):
        async def close(self) -> None:
            raise OSError(CANARY)

    line = Line(Bad())
    await line.outbox.start()
    assert await line.outbox.close(1.0) == 0
    assert caplog.messages == ["sink raised OSError when it was closed"]


async def test_waiting_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()
    await wait_for(event, 0.0)
    event.set()
    await wait_for(event, None)


# -- any interleaving ---------------------------------------------------------------------------

CALLS = st.sampled_from("abc")
BODIES = st.one_of(
    st.just(Started()),
    st.integers(0, 1).map(partial),
    st.integers(0, 1).map(final),
    st.just(Pressed("1", 0.0)),
)
ANSWERS = st.sampled_from(
    [
        *[None] * 4,
        DeliveryError("500"),
        DeliveryError("500"),
        DeliveryError("429", retry_after=3.0),
        DeliveryError("400", permanent=True),
        ValueError(CANARY),
    ]
)
STEPS = st.one_of(
    st.tuples(st.just("put"), CALLS, BODIES, st.sampled_from(["caller", "callee"])),
    st.tuples(st.just("answer"), CALLS, ANSWERS),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.5, 3.0, 11.0, 60.0])),
)
DROPS = ("superseded", "expired", "dropped_partial", "dropped_full", "failed_permanent")


async def _any_interleaving(steps: list[Any], limit: int) -> None:
    sink = Held()
    async with Line(sink, limit=limit, concurrency=2) as line:
        for step in steps:
            match step:
                case "put", call, body, leg:
                    line.put(body, call=call, leg=leg)
                case "answer", call, answer if call in sink.held:
                    await sink.say(call, answer)
                case "pass", seconds:
                    await line.time.advance(seconds)
            assert line.outbox.queued <= limit and sink.most <= 2
        for call in line.next:
            line.put(END, call=call, leg=None)
        while line.outbox.queued:
            await line.time.advance(3600)
            for call in list(sink.held):
                await sink.say(call)
        counters = line.counters
        lost = sum(counters.get(name, 0) for name in DROPS)
        assert counters.get("delivered", 0) == len(sink.taken)
        assert line.next.total() == len(sink.taken) + lost
        assert line.outbox.calls == 0 and line.outbox.state == "ok"
        if limit > 100:  # nothing but partials is ever lost, unless the sink refused it
            kept = {(e.call.id, e.seq) for e in sink.taken if not isinstance(e.body, Partial)}
            firm = sum(not isinstance(step[2], Partial) for step in steps if step[0] == "put")
            refused = counters.get("failed_permanent", 0)
            assert firm + len(line.next) - refused <= len(kept) <= firm + len(line.next)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from([4, 1000]))
def test_gaps_tell_what_was_not_given_in_any_interleaving(steps: list[Any], limit: int) -> None:
    """The sink itself checks order and `seq - gap_before - 1`; here, that nothing is uncounted."""
    asyncio.run(_any_interleaving(steps, limit))


async def test_a_sink_that_is_cancelled_has_failed() -> None:
    errors = [asyncio.CancelledError()]
    sink = Sink(lambda event: errors.pop() if errors else None)
    async with Line(sink) as line:
        line.put(Started())
        await line.time.advance(2.0)
        assert sink.seqs == [0] and line.counters["retries"] == 1


async def test_a_fault_of_ours_costs_a_second() -> None:
    async with Line(Sink()) as line:
        queue = line.outbox._queue
        following = queue.take

        def once(now: float, runs: object) -> None:
            queue.take = following
            queue._agenda.take(now)
            raise RuntimeError("a fault")

        queue.take = once
        line.put(Started())
        await settle()
        assert line.sink.taken == [] and line.counters["errors"] == 1
        await line.time.advance(1.0)
        assert line.sink.seqs == [0]
