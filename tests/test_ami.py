"""The AMI link against a scripted Asterisk on loopback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from fake_ami import FakeAmi

from bridge.config import AmiSettings
from bridge.errors import DeliveryError
from bridge.pbx.ami import IN_FLIGHT, AmiLink, backoff
from bridge.types import Announcement

UUID = "dd2cdbc7-9313-414e-8303-0975dad6d2d7"
VARSET = (("Event", "VarSet"), ("Channel", "PJSIP/a"), ("Variable", "CALLSCRIBE_ID"))


class Heard(list[Announcement]):
    """Announcements, and a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def __call__(self, found: Announcement) -> None:
        self.append(found)
        self._more.set()

    async def until(self, n: int) -> None:
        async with asyncio.timeout(10):
            while len(self) < n:
                self._more.clear()
                await self._more.wait()


def settings(port: int, **changes: Any) -> AmiSettings:
    values = {"port": port, "username": "callscribe", "secret": "s3cret", "timeout": 10, **changes}
    return AmiSettings(**values)


@asynccontextmanager
async def linked(
    port: int, heard: Callable[[Announcement], None] | None = None, **changes: Any
) -> AsyncIterator[AmiLink]:
    announced = Heard() if heard is None else heard
    link = AmiLink(settings(port, **changes), announced, jitter=lambda: 0.0)
    before = asyncio.all_tasks()
    await link.start()
    try:
        yield link
    finally:
        await link.close()
        # what the server runs for us is its own; of the link nothing is left
        left = asyncio.all_tasks() - before
        assert not [task for task in left if task.get_name() == "ami"]


@asynccontextmanager
async def up(heard: Heard | None = None, **changes: Any) -> AsyncIterator[tuple[FakeAmi, AmiLink]]:
    async with FakeAmi() as fake, linked(fake.port, heard, **changes) as link:
        await asyncio.wait_for(link.up(), 10)
        yield fake, link


@contextmanager
def impatient(link: AmiLink) -> Iterator[None]:
    """Deadlines that pass soon, for what is never answered; log-ins keep their ten seconds."""
    patient = link._settings
    link._settings = patient.model_copy(update={"timeout": 0.05})
    try:
        yield
    finally:
        link._settings = patient


async def until_retried(link: AmiLink, times: int = 1) -> None:
    async with asyncio.timeout(10):
        while link.counters["reconnects"] < times:
            await link._moved.wait()


# -- logging in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["md5", "plain"])
async def test_it_logs_in_and_asks_for_few_events(auth: str) -> None:
    async with up(auth=auth) as (fake, link):
        assert (link.state, link.version, link.last_error) == ("up", "11.0.0", "")
        (login,) = fake.named("Login")
        assert login.get("Events") == "user,dialplan"
        assert len(fake.named("Challenge")) == (auth == "md5")
        sent = str([action.headers for action in fake.actions])
        assert ("s3cret" in sent) == (auth == "plain")


async def test_close_logs_off_and_ends_everything() -> None:
    async with FakeAmi() as fake:
        async with linked(fake.port) as link:
            await asyncio.wait_for(link.up(), 10)
        assert fake.named("Logoff") and link.state == "down"
        await fake.until(lambda: not fake.sessions)
        with pytest.raises(DeliveryError, match="the AMI link is closed"):
            await link.action("Ping", [])
        with pytest.raises(DeliveryError):
            await link.up()
        await link.close()  # twice is no error


async def test_close_while_connecting_leaves_no_retry_behind() -> None:
    async with FakeAmi() as fake:
        fake.silent = {"Challenge"}
        async with linked(fake.port) as link:
            await fake.until(lambda: fake.named("Challenge"))
        await fake.until(lambda: not fake.sessions)
        assert fake.connections == 1 and link.state == "down"


async def test_close_does_not_wait_for_a_server_that_is_silent() -> None:
    async with up() as (fake, link):
        fake.silent = {"Logoff"}
        with impatient(link):
            await link.close()
        await fake.until(lambda: not fake.sessions)


async def test_a_wrong_secret_is_final_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeAmi() as fake, linked(fake.port, secret="wr0ng") as link:
        with pytest.raises(DeliveryError, match=r"refused the AMI user 'callscribe'") as e:
            await asyncio.wait_for(link.up(), 10)
        assert e.value.gone and link.state == "refused"
        with pytest.raises(DeliveryError, match=r"correct ami\.username and ami\.secret") as e:
            await link.action("UserEvent", [])
        assert e.value.gone
        await fake.until(lambda: not fake.sessions)
        assert fake.connections == 1
        assert "wr0ng" not in caplog.text + link.last_error + str(e.value)


async def test_a_stopping_asterisk_is_asked_again() -> None:
    async with FakeAmi() as fake:
        fake.login_error = "Asterisk is shutting down"
        async with linked(fake.port) as link:
            await fake.until(lambda: fake.connections >= 3)
            assert link.state != "refused" and "shutting down" in link.last_error
            fake.login_error = ""
            await asyncio.wait_for(link.up(), 10)


async def test_another_server_there_is_named() -> None:
    async with FakeAmi() as fake:
        fake.banner = b"SSH-2.0-OpenSSH_9.6\r\n"
        async with linked(fake.port) as link:
            await fake.until(lambda: fake.connections >= 2)
            assert "is not an Asterisk Manager" in link.last_error


async def test_a_silent_server_is_given_up_in_time() -> None:
    async with FakeAmi() as fake:
        fake.banner = b""
        async with linked(fake.port, timeout=0.02) as link:
            await fake.until(lambda: fake.connections >= 2)
            assert "did not answer within 0.02 s" in link.last_error


async def test_tls_is_spoken_first() -> None:
    async with FakeAmi() as fake, linked(fake.port, tls=True) as link:
        await fake.until(lambda: fake.connections >= 2)
        assert not fake.named("Login") and link.state != "up"
        assert "does this port speak TLS" in link.last_error


# -- coming back ----------------------------------------------------------------------------------


async def test_nobody_listening_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeAmi()
    await fake.listen()
    await fake.stop()
    async with linked(fake.port) as link:
        await until_retried(link, 5)
        assert "Connection refused; is Asterisk running there" in link.last_error
        with pytest.raises(DeliveryError, match="Connection refused") as e:
            await link.action("UserEvent", [])
        assert not e.value.permanent and not e.value.gone
        assert caplog.text.count("Connection refused") == 1  # said once, not at every retry
        await fake.listen()
        await asyncio.wait_for(link.up(), 10)
    await fake.stop()


@pytest.mark.parametrize("during", ["Challenge", "Login"])
async def test_a_drop_during_log_in_is_survived(during: str) -> None:
    async with FakeAmi() as fake:
        fake.drop_on = {during}
        async with linked(fake.port) as link:
            await asyncio.wait_for(link.up(), 10)
            assert link.counters["reconnects"] == 1


async def test_a_drop_in_mid_line_is_survived() -> None:
    heard = Heard()
    async with up(heard) as (fake, link):
        fake.emit_raw(b"Event: VarSet\r\nVariable: CALLSC")
        fake.drop()
        await until_retried(link)
        await asyncio.wait_for(link.up(), 10)
        fake.emit(*VARSET, ("Value", UUID))
        await heard.until(1)
        assert len(fake.named("Login")) == 2  # which asks for its events again


async def test_asterisk_restarts() -> None:
    async with up() as (fake, link):
        await fake.stop()
        await until_retried(link)
        await fake.listen()
        await asyncio.wait_for(link.up(), 10)
        assert (await link.action("Ping", []))["Ping"] == "Pong"


async def test_two_missing_pongs_end_the_connection() -> None:
    async with up(ping_interval=0.01) as (fake, link):
        await fake.until(lambda: len(fake.named("Ping")) >= 3)
        assert fake.connections == 1
        fake.silent = {"Ping"}
        with impatient(link):
            await until_retried(link)
        assert link.counters["pings_missed"] >= 2
        assert "2 pings in a row were not answered" in link.last_error


def test_retries_spread_over_a_doubling_span() -> None:
    assert [backoff(n, 1.0) for n in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff(100_000, 1.0) == 30 and backoff(3, 0.5) == 2 and backoff(3, 0.0) == 0


async def test_failures_are_forgotten_only_after_a_pong() -> None:
    async with FakeAmi() as fake:
        fake.drop_on = {"Login"}
        async with linked(fake.port, ping_interval=300) as link:
            await asyncio.wait_for(link.up(), 10)
            assert link._failures == 1
        async with linked(fake.port, ping_interval=0.01) as link:
            link._failures = 7
            await fake.until(lambda: len(fake.named("Ping")) >= 2)
            assert link._failures == 0


# -- actions --------------------------------------------------------------------------------------


async def test_an_answer_has_its_headers_in_any_case() -> None:
    async with up() as (fake, link):
        answer = await link.action("UserEvent", [("UserEvent", "X")], action_id="mine")
        assert answer["message"] == answer["MESSAGE"] == "Event Sent"
        assert fake.named("UserEvent")[0].get("ActionID") == answer["ActionID"] == "mine"


async def test_an_event_with_our_action_id_is_not_the_response() -> None:
    async with up() as (_, link):
        headers = [("UserEvent", "X"), ("Response", "Error"), ("Message", "spoofed")]
        answer = await link.action("UserEvent", headers)  # the fake sends the event first
        assert answer["Message"] == "Event Sent"
        assert link.counters["events"] == 1


async def test_text_cannot_become_an_action() -> None:
    async with up() as (fake, link):
        evil = "x\r\n\r\nAction: CoreStatus\r\nActionID: smuggled\r\n\r\ny"
        await link.action("UserEvent", [("UserEvent", "X"), ("Text", evil)])
        await link.action("Ping", [])
        assert not fake.named("CoreStatus")
        assert fake.named("UserEvent")[0].get("Text") == evil.replace("\r", " ").replace("\n", " ")


@pytest.mark.parametrize(
    ("message", "permanent"),
    [
        ("No such channel", True),
        ("Permission denied", True),
        ("Asterisk is shutting down", False),
        ("Authentication Required", False),
    ],
)
async def test_a_refusal_is_permanent_unless_it_passes(message: str, permanent: bool) -> None:
    async with up() as (fake, link):
        fake.errors = {"Setvar": message}
        with pytest.raises(DeliveryError, match=f"Asterisk refused Setvar: {message}") as e:
            await link.action("Setvar", [])
        assert e.value.permanent == permanent
        assert ("write = call" in str(e.value)) == (message == "Permission denied")
        assert link.counters["action_errors"] == 1


async def test_an_action_that_cannot_be_written_costs_only_itself() -> None:
    async with up() as (fake, link):
        with pytest.raises(DeliveryError, match="cannot be an AMI header"):
            await link.action("UserEvent", [("Te\nxt", "v")])
        assert link.state == "up" and not fake.named("UserEvent")


async def test_an_unanswered_action_ends_in_time_and_its_late_answer_is_counted() -> None:
    async with up() as (fake, link):
        fake.silent = {"UserEvent"}
        text = r"did not answer UserEvent within 0\.05 s"
        with impatient(link), pytest.raises(DeliveryError, match=text) as e:
            await link.action("UserEvent", [("UserEvent", "X")])
        assert not e.value.permanent and link.counters["action_timeouts"] == 1
        fake.answer_all()
        await link.action("Ping", [])
        assert link.counters["unmatched_responses"] == 1


async def test_a_lost_connection_fails_what_waits_and_a_retry_is_recognisable() -> None:
    async with up() as (fake, link):
        fake.drop_on = {"UserEvent"}
        headers = [("UserEvent", "X"), ("Seq", "7")]
        with pytest.raises(DeliveryError, match="closed the connection|broke") as e:
            await link.action("UserEvent", headers, action_id="call-7")
        assert not e.value.permanent
        await asyncio.wait_for(link.up(), 10)
        await link.action("UserEvent", headers, action_id="call-7")
        first, second = fake.named("UserEvent")
        assert first == second


async def test_actions_in_flight_are_bounded_and_wait_in_order() -> None:
    async with up(ping_interval=300) as (fake, link), asyncio.TaskGroup() as group:
        fake.silent = {"UserEvent"}
        total = IN_FLIGHT + 20
        for n in range(total):
            group.create_task(link.action("UserEvent", [("Seq", str(n))]))
        await fake.until(lambda: len(fake.named("UserEvent")) == IN_FLIGHT)
        assert link._connection is not None
        await link._connection.ask("Ping", [], "beside-the-queue")  # a round trip later: no more
        assert len(fake.named("UserEvent")) == IN_FLIGHT
        fake.answer_all()
        await fake.until(lambda: len(fake.named("UserEvent")) == total)
        assert [a.get("Seq") for a in fake.named("UserEvent")] == [str(n) for n in range(total)]


async def test_the_same_action_id_twice_at_once_is_refused() -> None:
    async with up() as (fake, link), asyncio.TaskGroup() as group:
        fake.silent = {"UserEvent"}
        first = group.create_task(link.action("UserEvent", [], action_id="one"))
        await fake.until(lambda: fake.named("UserEvent"))
        with pytest.raises(DeliveryError, match="still waits: one"):
            await link.action("UserEvent", [], action_id="one")
        fake.answer_all()
        assert (await first)["ActionID"] == "one"


async def test_nothing_is_written_to_a_server_that_does_not_read() -> None:
    async with up() as (fake, link):
        connection = link._connection
        assert connection is not None
        connection.pause_writing()  # as the transport does when its buffer is full
        with impatient(link), pytest.raises(DeliveryError, match="did not answer"):
            await link.action("UserEvent", [])
        connection.resume_writing()
        await link.action("Ping", [])
        assert not fake.named("UserEvent")


# -- events ---------------------------------------------------------------------------------------


async def test_announcements_come_from_variables_and_userevents() -> None:
    heard = Heard()
    async with up(heard, join_variables=["CALLSCRIBE_ID", "SID"]) as (fake, link):
        fake.emit(*VARSET[:2], ("Variable", "SID"), ("Value", UUID.upper()))
        fake.emit(
            ("Event", "UserEvent"),
            ("Channel", "PJSIP/real"),
            ("UserEvent", "CallscribeLeg"),
            ("Id", UUID),
            ("Leg", "callee"),
            ("channel", "PJSIP/evil"),  # the dialplan's own headers follow the snapshot
        )
        await heard.until(2)
        assert [(a.uuid, a.leg, a.info.channel) for a in heard] == [
            (UUID, "caller", "PJSIP/a"),
            (UUID, "callee", "PJSIP/real"),
        ]
        assert link.counters["announcements"] == 2


async def test_a_bad_announcement_is_counted_and_costs_nothing() -> None:
    heard = Heard()
    async with up(heard) as (fake, link):
        fake.emit(*VARSET, ("Value", "no uuid"))
        fake.emit(("Event", "TestEvent"), ("State", "x"))
        fake.emit(("Neither", "event nor response"))
        fake.emit(*VARSET, ("Value", UUID))
        await heard.until(1)
        assert link.counters["bad_announcements"] == 1
        assert link.counters["events"] == 3


async def test_a_listener_that_fails_costs_one_announcement(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = Heard()

    def fragile(found: Announcement) -> None:
        if found.info.channel == "bad":
            raise RuntimeError("a fault of ours")
        heard(found)

    caplog.set_level(logging.ERROR)
    async with FakeAmi() as fake, linked(fake.port, fragile) as link:
        await asyncio.wait_for(link.up(), 10)
        fake.emit(VARSET[0], ("Channel", "bad"), VARSET[2], ("Value", UUID))
        fake.emit(*VARSET, ("Value", UUID))
        await heard.until(1)
        assert link.counters["errors"] == 1 and link.counters["reconnects"] == 0
        assert UUID in caplog.text


async def test_a_flood_of_events_is_read_and_answers_still_come() -> None:
    heard = Heard()
    async with up(heard) as (fake, link):
        noise = b"".join(b"%s: x\r\n" % key for key in (b"Event", b"Channel", b"AppData")) + b"\r\n"
        fake.emit_raw(noise * 20_000)
        fake.emit(*VARSET, ("Value", UUID))
        assert (await link.action("Ping", []))["Ping"] == "Pong"
        assert link.counters["events"] == 20_001 and len(heard) == 1


async def test_an_oversized_event_is_skipped() -> None:
    heard = Heard()
    async with up(heard) as (fake, link):
        fake.emit(("Event", "VarSet"), ("Value", "x" * 300_000))
        fake.emit(*VARSET, ("Value", UUID))
        await heard.until(1)
        assert link.counters["oversized"] == 1 and link.counters["events"] == 1


async def test_a_fault_of_ours_does_not_end_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeAmi() as fake:
        link = AmiLink(settings(fake.port), Heard(), jitter=lambda: 0.0)
        watch, faults = link._watch, iter([ValueError("broken")])

        async def broken(connection: Any) -> None:
            for fault in faults:
                raise fault
            await watch(connection)

        monkeypatch.setattr(link, "_watch", broken)
        await link.start()
        await fake.until(lambda: len(fake.named("Login")) == 2)
        await asyncio.wait_for(link.up(), 10)
        assert link.counters["errors"] == 1
        await link.close()
