"""The ARI link against a small Asterisk on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_ari import OURS, FakeAri, World

from bridge.config import AriSettings
from bridge.errors import DeliveryError
from bridge.pbx import ari, ari_tap
from bridge.pbx.ari import AriLink, backoff
from bridge.pbx.ari_events import PLACES, TYPES, Wish
from bridge.pbx.ari_tap import Outcome
from bridge.pbx.ari_taps import NoChannel
from bridge.types import Announcement, LegName
from tests.waiting import until

EVERY_CALL = [{"endpoint": "*"}]


def settings(url: str, **changes: Any) -> AriSettings:
    values = {"url": url, "username": "callscribe", "password": "s3cret", "timeout": 10, **changes}
    return AriSettings(**values)


class Board:
    """A switchboard that takes everything."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.announced: list[Announcement] = []
        self.error: Exception | None = None

    def announce(self, announcement: Announcement) -> None:
        if self.error is not None:
            raise self.error
        self.announced.append(announcement)

    def outcome(self, uuid: str, call: str, leg: LegName) -> Outcome:
        return "heard" if uuid in self.world.heard else "pending"


@asynccontextmanager
async def linked(fake: FakeAri, url: str = "", **changes: Any) -> AsyncIterator[AriLink]:
    board = Board(fake.world)
    link = AriLink(
        settings(url or fake.url, **changes),
        board.announce,
        board.outcome,
        jitter=lambda: 0.0,
    )
    link.board = board  # type: ignore[attr-defined]
    before = asyncio.all_tasks()
    await link.start()
    try:
        yield link
    finally:
        await link.close()
        assert not [task for task in asyncio.all_tasks() - before if task.get_name() == "ari"]


@asynccontextmanager
async def up(**changes: Any) -> AsyncIterator[tuple[FakeAri, AriLink]]:
    async with FakeAri() as fake, linked(fake, **changes) as link:
        await asyncio.wait_for(link.up(), 10)
        yield fake, link


def board(link: AriLink) -> Board:
    found = link.board  # type: ignore[attr-defined]
    assert isinstance(found, Board)
    return found


async def until_heard(link: AriLink, legs: int) -> None:
    await until(lambda: link.taps.states()["up"] == legs)


# -- coming up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("taps", "more"), [([], []), ([{"context": "x"}], [PLACES])])
async def test_it_subscribes_filters_and_lists(taps: list[Any], more: list[str]) -> None:
    async with up(taps=taps) as (fake, link):
        asked = [(method, path, params) for method, path, params in fake.world.asked]
        assert asked == [
            ("POST", "/applications/callscribe/subscription", {"eventSource": "channel:,bridge:"}),
            ("PUT", "/applications/callscribe/eventFilter", {}),
            ("GET", "/channels", {}),
            ("GET", "/bridges", {}),
        ]
        (wanted,) = fake.bodies
        assert wanted == {"allowed": [{"type": kind} for kind in [*TYPES, *more]]}
        assert (link.state, link.last_error) == ("up", "")


async def test_a_call_is_heard_and_nothing_is_left_of_it() -> None:
    async with up(taps=EVERY_CALL) as (fake, link):
        caller, callee = fake.world.talk()
        fake.tell()
        await until_heard(link, 2)
        assert {a.leg: a.info.uniqueid for a in board(link).announced} == {
            "caller": caller, "callee": callee,
        }  # fmt: skip
        fake.world.hang_up(caller)
        fake.world.hang_up(callee)
        fake.tell()
        await until(lambda: not fake.world.channels and link.taps.describe() == [])
        assert link.counters["errors"] == link.counters["bad_events"] == 0


async def test_an_id_with_odd_characters_arrives_as_it_is() -> None:
    async with up(taps=EVERY_CALL) as (fake, link):
        fake.world.new("PJSIP/alice-00000001", id="a/b?c#d%2F é")
        fake.tell()
        await until_heard(link, 1)


async def test_a_tap_may_be_asked_for() -> None:
    async with up() as (fake, link):
        a = fake.world.new("PJSIP/alice-00000001")
        fake.tell()
        await until(lambda: len(link.taps.channels) == 1)
        call = link.tap("PJSIP/alice-00000001", Wish("c1", "callee"))
        await until_heard(link, 1)
        (announced,) = board(link).announced
        assert (call, announced.call, announced.leg, announced.info.uniqueid) == (
            "c1", "c1", "callee", a,
        )  # fmt: skip
        with pytest.raises(NoChannel):
            link.tap("PJSIP/nobody")


# -- not coming up --------------------------------------------------------------------------------


async def test_a_wrong_password_is_final_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeAri() as fake, linked(fake, password="wr0ng") as link:
        with pytest.raises(DeliveryError, match=r"refused the ARI user 'callscribe'") as e:
            await asyncio.wait_for(link.up(), 10)
        assert e.value.gone and link.state == "refused"
        with pytest.raises(DeliveryError, match=r"correct ari\.username and ari\.password") as e:
            link.tap("PJSIP/alice-00000001")
        assert e.value.gone
        assert fake.connections == 1
    assert "wr0ng" not in caplog.text


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, r"^127\.0\.0\.1:\d+ has no ARI at the path of ari\.url: is enabled = yes in"),
        (503, r"^127\.0\.0\.1:\d+ answered 503 where ARI's events should begin$"),
    ],
)
async def test_what_may_pass_is_told_and_tried_again(status: int, sentence: str) -> None:
    async with FakeAri() as fake:
        fake.status = status
        async with linked(fake) as link:
            await until(lambda: link.counters["reconnects"] > 1)
            assert re.search(sentence, link.last_error), link.last_error
            fake.status = 0
            await asyncio.wait_for(link.up(), 10)


async def test_nobody_listens_there(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeAri() as fake:
        await fake.stop()
        async with linked(fake) as link:
            await until(lambda: link.counters["reconnects"] > 2)
            assert link.last_error == (
                f"cannot connect to 127.0.0.1:{fake.port}: Connection refused; is Asterisk running "
                "there, with enabled = yes and a bindaddr in http.conf?"
            )
            with pytest.raises(DeliveryError, match="^ARI is (down|connecting): cannot connect to"):
                link.tap("PJSIP/alice-00000001")
            await fake.listen()
            await asyncio.wait_for(link.up(), 10)
    assert caplog.text.count("cannot connect") == 1  # once, not at every retry


async def test_tls_where_there_is_none() -> None:
    async with FakeAri() as fake, linked(fake, fake.url.replace("http:", "https:")) as link:
        await until(lambda: link.counters["reconnects"] > 0)
        assert link.last_error.startswith(f"TLS with 127.0.0.1:{fake.port} failed: does this port")


@pytest.mark.parametrize("answer", [b"", b"220 mail.example ESMTP\r\n"])
async def test_what_is_no_http_server(answer: bytes) -> None:
    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FakeAri() as fake, linked(fake, f"http://127.0.0.1:{port}/ari") as link:
        await until(lambda: link.counters["reconnects"] > 0)
        assert link.last_error.startswith(f"127.0.0.1:{port} ")
        assert "before it answered" in link.last_error or "not answer in HTTP" in link.last_error
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("part", "status", "sentence"),
    [
        ("subscription", 403, "ARI does not let us subscribe to channels: 403 as the test wants it;"
         " our user needs read_only = no in ari.conf"),
        ("subscription", 500,
         "ARI does not let us subscribe to channels: 500 as the test wants it"),
        ("/channels", 500, "ARI does not list the channels: 500"),
        ("/bridges", 500, "ARI does not list the bridges: 500"),
    ],
)  # fmt: skip
async def test_without_subscription_and_listing_it_is_not_up(
    part: str, status: int, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeAri() as fake:
        fake.world.errors = {part: status}
        async with linked(fake) as link:
            await asyncio.wait_for(link.up(), 10)
        assert fake.connections == 2
    assert sentence in [record.getMessage().removeprefix("ARI: ") for record in caplog.records]


async def test_an_asterisk_without_filters_does_too() -> None:
    async with FakeAri() as fake:
        fake.world.errors = {"eventFilter": 404}
        async with linked(fake) as link:
            await asyncio.wait_for(link.up(), 10)
            assert link.counters["unfiltered"] == 1 and fake.connections == 1


# -- going and coming -----------------------------------------------------------------------------


async def test_a_lost_connection_is_made_again_and_what_was_missed_found_out() -> None:
    async with up(taps=EVERY_CALL) as (fake, link):
        a, _ = fake.world.talk()
        fake.tell()
        await until_heard(link, 2)
        await fake.stop()
        await until(lambda: link.state == "down")
        fake.world.hang_up(a)
        c, d = fake.world.talk("PJSIP/carol", "PJSIP/dave")
        fake.world.events.clear()
        await fake.listen()
        await asyncio.wait_for(link.up(), 10)
        await until_heard(link, 3)
        assert {a.info.uniqueid for a in board(link).announced} >= {c, d}


async def test_a_silent_peer_is_given_up() -> None:
    async with up(ping_interval=0.05) as (fake, link):
        await fake.until(lambda: fake.pings > 1)
        assert link.counters["reconnects"] == 0
        fake.pongs = False
        await until(lambda: link.counters["reconnects"] > 0)


async def test_a_quiet_asterisk_is_no_silent_one() -> None:
    """The time that a request may take is none for the events to come."""
    async with up(timeout=0.5, ping_interval=0.2) as (fake, link):
        await fake.until(lambda: fake.pings > 4)
        assert (link.state, fake.connections) == ("up", 1)


async def test_a_request_without_an_answer_costs_its_attempt() -> None:
    async with up(timeout=0.1, taps=EVERY_CALL) as (fake, link):
        fake.silent = {"/continue"}
        fake.world.new("PJSIP/alice-00000001")
        fake.tell()
        await until(lambda: link.counters["untapped_no_answer"] > 0)
        (call,) = link.taps.describe()
        assert f"127.0.0.1:{fake.port} did not answer within 0.1 s" in str(call["legs"])
        assert link.state == "up"


async def test_another_client_takes_the_name_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ari, "LOOK", 0.01)
    async with up() as (fake, link):
        async with linked(fake) as other:
            await asyncio.wait_for(other.up(), 10)
            await until(lambda: link.state == "replaced")
            looks = len(fake.world.asked)
            await fake.until(lambda: len(fake.world.asked) > looks + 1)  # and finds it taken
            assert other.state == "up" and fake.connections == 2
        await asyncio.wait_for(link.up(), 10)
        assert fake.connections == 3
    assert "another client has connected as 'callscribe'" in caplog.text


async def test_close_removes_what_we_made_and_leave_does_not_where_it_can_stay() -> None:
    for leave, stays in ((False, True), (True, True), (True, False)):
        async with up(taps=EVERY_CALL) as (fake, link):
            assert link.taps.stays
            link.taps.stays = stays
            fake.world.talk()
            fake.tell()
            await until_heard(link, 2)
            await link.close(leave=leave)
            ours = [id for id in fake.world.channels if OURS.fullmatch(id)]
            left = leave and stays
            assert len(ours) == (2 if left else 0)
            assert len(fake.world.channels) == (4 if left else 2)
            with pytest.raises(DeliveryError, match="the ARI link is closed"):
                link.tap("PJSIP/alice-00000000")
            with pytest.raises(DeliveryError):
                await link.up()
            await link.close()  # twice is no error


async def test_close_while_connecting_leaves_nothing_behind() -> None:
    async with FakeAri() as fake:
        fake.silent = {"/channels"}
        async with linked(fake):
            await fake.until(lambda: ("GET", "/channels", {}) in fake.world.asked)
        await fake.until(lambda: not fake.sockets)


async def test_close_does_not_wait_for_an_asterisk_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ari, "GOODBYE", 0.05)
    async with up(taps=EVERY_CALL) as (fake, link):
        fake.world.talk()
        fake.tell()
        await until_heard(link, 2)
        fake.silent = {"/channels/callscribe-s-"}
        await link.close()
        assert link.state == "down"


# -- what must not end it -------------------------------------------------------------------------


async def test_an_event_that_makes_no_sense_costs_itself(caplog: pytest.LogCaptureFixture) -> None:
    async with up(taps=EVERY_CALL) as (fake, link):
        fake.send("{")
        fake.send(json.dumps({"type": "ChannelCreated", "channel": {}}))
        fake.world.new("PJSIP/alice-00000001")
        fake.tell()
        await until_heard(link, 1)
        assert link.counters["bad_events"] == 2 and fake.connections == 1
    assert "ARI: ARI's ChannelCreated makes no sense: there is no id" in caplog.text


async def test_a_fault_of_ours_costs_the_event(caplog: pytest.LogCaptureFixture) -> None:
    async with up(taps=EVERY_CALL) as (fake, link):
        board(link).error = RuntimeError("a fault")
        fake.world.new("PJSIP/alice-00000001")
        fake.tell()
        await until(lambda: link.counters["errors"] == 1)
        board(link).error = None
        fake.world.new("PJSIP/bob-00000002")
        fake.tell()
        await until_heard(link, 1)
        assert fake.connections == 1
    assert "an event of ARI could not be handled" in caplog.text
    caplog.clear()  # the traceback was wanted


async def test_an_event_that_is_too_long_costs_the_connection() -> None:
    async with up() as (fake, link):
        fake.send(json.dumps({"type": "x" * 2_000_000}))
        await until(lambda: link.counters["reconnects"] > 0)
        await asyncio.wait_for(link.up(), 10)


async def test_many_calls_at_once_use_few_connections() -> None:
    async with up(taps=EVERY_CALL) as (fake, link):
        for _ in range(50):
            fake.world.talk()
        fake.tell()
        await until_heard(link, 100)
        assert link.counters["attempts"] == 100
        for id in list(fake.world.channels):
            if not OURS.fullmatch(id):
                fake.world.hang_up(id)
        fake.tell()
        await until(lambda: not fake.world.channels and link.taps.describe() == [])


async def test_what_failed_is_tried_again_by_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ari_tap, "BACKOFF", (0.01, 0.01))
    async with up(taps=EVERY_CALL) as (fake, link):
        fake.world.errors = {"/snoop/": 500}
        fake.world.new("PJSIP/alice-00000001")
        fake.tell()
        await until_heard(link, 1)
        assert link.counters["untapped_error"] == 1


@pytest.mark.parametrize(
    ("failures", "jitter", "expected"),
    [(0, 1.0, 0.5), (1, 1.0, 1.0), (6, 1.0, 30.0), (1000, 1.0, 30.0), (3, 0.0, 0.0)],
)
def test_backoff_doubles_up_to_a_span(failures: int, jitter: float, expected: float) -> None:
    assert backoff(failures, jitter) == expected


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
