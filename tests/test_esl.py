"""The event socket link against a scripted FreeSWITCH on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from fake_esl import FakeEsl

from bridge.config import Address, EslSettings, from_dict
from bridge.errors import ConfigError, DeliveryError
from bridge.pbx.esl import IN_FLIGHT, EslLink
from bridge.pbx.esl_connection import UNANSWERED
from bridge.pbx.esl_text import EslMessage

UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
SUBCLASS = "callscribe::transcript"


def settings(port: int = 8021, **changes: Any) -> EslSettings:
    return EslSettings(**{"port": port, "password": "s3cret", "timeout": 10, **changes})


@asynccontextmanager
async def linked(
    port: int, heard: list[EslMessage] | None = None, **changes: Any
) -> AsyncIterator[EslLink]:
    events = [] if heard is None else heard
    link = EslLink(settings(port, **changes), jitter=lambda: 0.0, on_event=events.append)
    before = asyncio.all_tasks()
    await link.start()
    try:
        yield link
    finally:
        await link.close()
        left = asyncio.all_tasks() - before
        assert not [task for task in left if task.get_name() == "esl"]


@asynccontextmanager
async def up(
    heard: list[EslMessage] | None = None, **changes: Any
) -> AsyncIterator[tuple[FakeEsl, EslLink]]:
    async with FakeEsl() as fake, linked(fake.port, heard, **changes) as link:
        await asyncio.wait_for(link.up(), 10)
        yield fake, link


@contextmanager
def impatient(link: EslLink) -> Iterator[None]:
    """Deadlines that pass soon, for what is never answered; log-ins keep their ten seconds."""
    patient = link._settings
    link._settings = patient.model_copy(update={"timeout": 0.05})
    try:
        yield
    finally:
        link._settings = patient


async def until_retried(link: EslLink, times: int = 1) -> None:
    async with asyncio.timeout(10):
        while link.counters["reconnects"] < times:
            await link._moved.wait()


async def answered(link: EslLink) -> None:
    """A round trip, whatever is said."""
    with pytest.raises(DeliveryError):
        await link.setvar(UUID, "X", "y")


# -- settings -------------------------------------------------------------------------------------


PATTERN = "esl.username: string should match pattern '^([A-Za-z0-9._-]+@[A-Za-z0-9._-]+)?$'"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"password": ""}, "esl: password: expected one line of printable characters"),
        ({"password": "a\nexit"}, "esl: password: expected one line of printable characters"),
        (
            {"host": "192.0.2.1"},
            "esl: host = '192.0.2.1' is not loopback and FreeSWITCH's event socket has no TLS; set "
            "allow_insecure = true if the network in between is trusted",
        ),
        ({"username": "callscribe"}, PATTERN),
        ({"username": "a@b\n\napi x"}, PATTERN),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as e:
        from_dict({"esl": {"password": "s3cret", **changes}})
    assert e.value.problems == [sentence]


def test_another_host_is_possible_where_it_is_wanted() -> None:
    assert settings(host="192.0.2.1", allow_insecure=True).host == "192.0.2.1"


# -- logging in -----------------------------------------------------------------------------------


async def test_it_logs_in_and_asks_for_no_events() -> None:
    async with up() as (fake, link):
        assert (link.state, link.last_error) == ("up", "")
        assert [command.line for command in fake.commands] == ["auth s3cret"]


async def test_a_user_of_the_directory_logs_in() -> None:
    async with up(username="callscribe@pbx", password="pw") as (fake, link):
        assert fake.commands[0].line == "userauth callscribe@pbx:pw"
        fake.channels = {UUID}
        await link.setvar(UUID, "CALLSCRIBE_STATUS", "started")


async def test_close_ends_everything() -> None:
    async with FakeEsl() as fake:
        async with linked(fake.port) as link:
            await asyncio.wait_for(link.up(), 10)
        await fake.until(lambda: not fake.sessions)
        with pytest.raises(DeliveryError, match="is down: the event socket link is closed"):
            await link.event(SUBCLASS, [])
        with pytest.raises(DeliveryError):
            await link.up()
        await link.close()  # twice is no error


async def test_close_while_connecting_leaves_no_retry_behind() -> None:
    async with FakeEsl() as fake:
        fake.silent = {"auth"}
        async with linked(fake.port) as link:
            await fake.until(lambda: fake.named("auth"))
        await fake.until(lambda: not fake._writers)
        assert fake.connections == 1 and link.state == "down"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, r"refused us: correct esl\.password, or event_socket\.conf\.xml, and restart"),
        (
            {"username": "callscribe@pbx"},
            r"refused the user 'callscribe@pbx': correct esl\.username and esl\.password, or "
            "esl-password of that user, and restart",
        ),
    ],
)
async def test_a_wrong_password_is_final_and_not_told(
    changes: dict[str, Any], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeEsl() as fake, linked(fake.port, password="wr0ng", **changes) as link:
        with pytest.raises(DeliveryError, match=sentence) as e:
            await asyncio.wait_for(link.up(), 10)
        assert e.value.gone and link.state == "refused"
        with pytest.raises(DeliveryError, match="the event socket is refused") as e:
            await link.event(SUBCLASS, [])
        assert e.value.gone
        await fake.until(lambda: not fake._writers)
        assert fake.connections == 1
        assert "wr0ng" not in caplog.text + link.last_error + str(e.value)


@pytest.mark.parametrize(
    ("greeting", "sentence"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\n", "is not FreeSWITCH's event socket"),
        (
            b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n",
            "ask for the password first",
        ),
        (
            b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n",
            "takes no connections from this machine: see apply-inbound-acl",
        ),
        (b"Content-Length: -1\n\n", "a Content-Length that is no number"),
    ],
)
async def test_another_greeting_is_named(greeting: bytes, sentence: str) -> None:
    async with FakeEsl() as fake:
        fake.greeting = greeting
        async with linked(fake.port) as link:
            await fake.until(lambda: fake.connections >= 2)
            assert sentence in link.last_error and link.state != "refused"
            assert not fake.commands


async def test_another_answer_to_the_log_in_is_tried_again() -> None:
    async with FakeEsl() as fake:
        fake.replies = {"auth": "-ERR command not found"}
        async with linked(fake.port) as link:
            await fake.until(lambda: fake.connections >= 2)
            assert "answered the log-in with '-ERR command not found'" in link.last_error
            fake.replies.clear()
            await asyncio.wait_for(link.up(), 10)


async def test_a_silent_server_is_given_up_in_time() -> None:
    async with FakeEsl() as fake:
        fake.greeting = b""
        async with linked(fake.port, timeout=0.02) as link:
            await fake.until(lambda: fake.connections >= 2)
            assert "did not answer within 0.02 s" in link.last_error


# -- coming back ----------------------------------------------------------------------------------


async def test_nobody_listening_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeEsl()
    await fake.listen()
    await fake.stop()
    async with linked(fake.port) as link:
        await until_retried(link, 5)
        assert "Connection refused; is FreeSWITCH running there" in link.last_error
        with pytest.raises(DeliveryError, match="Connection refused") as e:
            await link.event(SUBCLASS, [])
        assert not e.value.permanent and not e.value.gone
        assert caplog.text.count("Connection refused") == 1  # said once, not at every retry
        await fake.listen()
        await asyncio.wait_for(link.up(), 10)
    await fake.stop()


async def test_a_drop_during_log_in_is_survived() -> None:
    async with FakeEsl() as fake:
        fake.drop_on = {"auth"}
        async with linked(fake.port) as link:
            await asyncio.wait_for(link.up(), 10)
            assert link.counters["reconnects"] == 1


async def test_freeswitch_restarts() -> None:
    async with up() as (fake, link):
        fake.emit_raw(b"Content-Type: text/disconnect-notice\nContent-Length: 3\n\nbye")
        await fake.stop()
        await until_retried(link)
        await fake.listen()
        await asyncio.wait_for(link.up(), 10)
        await link.event(SUBCLASS, [("Seq", "1")])
        assert len(fake.fired) == 1


async def test_a_notice_before_the_end_is_why_it_ended() -> None:
    async with up() as (fake, link):
        fake.silent = {"sendevent"}
        waiting = asyncio.create_task(link.event(SUBCLASS, []))
        await fake.until(lambda: fake.named("sendevent"))
        for writer in list(fake._writers):
            writer.write(b"Content-Type: text/disconnect-notice\nContent-Length: 3\n\nbye")
            writer.close()
        with pytest.raises(DeliveryError, match="^FreeSWITCH said goodbye$") as e:
            await waiting
        assert not e.value.permanent


async def test_two_missing_pongs_end_the_connection() -> None:
    async with up(ping_interval=0.01) as (fake, link):
        await fake.until(lambda: len(fake.named("nolog")) >= 3)
        assert fake.connections == 1
        fake.silent = {"nolog"}
        with impatient(link):
            await until_retried(link)
        assert link.counters["pings_missed"] >= 2
        assert "2 pings in a row were not answered" in link.last_error


async def test_failures_are_forgotten_only_after_a_pong() -> None:
    async with FakeEsl() as fake:
        fake.drop_on = {"auth"}
        async with linked(fake.port, ping_interval=300) as link:
            await asyncio.wait_for(link.up(), 10)
            assert link._failures == 1
        async with linked(fake.port, ping_interval=0.01) as link:
            link._failures = 7
            await fake.until(lambda: len(fake.named("nolog")) >= 2)
            assert link._failures == 0


async def test_a_fault_of_ours_does_not_end_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeEsl() as fake:
        link = EslLink(settings(fake.port), jitter=lambda: 0.0)
        watch, faults = link._watch, iter([ValueError("broken")])

        async def broken(connection: Any) -> None:
            for fault in faults:
                raise fault
            await watch(connection)

        monkeypatch.setattr(link, "_watch", broken)
        await link.start()
        await fake.until(lambda: len(fake.named("auth")) == 2)
        await asyncio.wait_for(link.up(), 10)
        assert link.counters["errors"] == 1
        await link.close()


# -- commands -------------------------------------------------------------------------------------


async def test_an_event_is_fired_with_its_headers_and_its_body() -> None:
    async with up() as (fake, link):
        await link.event(SUBCLASS, [("Leg", "caller"), ("Text", "yes\n\nexit\n\n")], b'{"a":1}\n\n')
        ((headers, body),) = fake.fired
        assert ("Event-Subclass", SUBCLASS) in headers and ("Text", "yes  exit  ") in headers
        assert body == b'{"a":1}\n\n'


async def test_a_variable_is_set_with_quotes_and_all() -> None:
    async with up() as (fake, link):
        fake.channels = {UUID}
        for value in ("it's John's", "", "50 % of 'it' \\n", "x" * 900):
            await link.setvar(UUID, "CALLSCRIBE_TEXT", value)
            assert fake.variables == {(UUID, "CALLSCRIBE_TEXT"): value}


async def test_audio_is_asked_for() -> None:
    async with up() as (fake, link):
        fake.channels = {UUID}
        here, there = Address("192.0.2.1", 0), Address("192.0.2.2", 12000)
        await link.unicast(UUID, here, there)
        await link.unicast(UUID, here, there, native=True)
        first, second = fake.named("sendmsg")
        assert first.line == f"sendmsg {UUID}"
        assert first.headers == [
            ("call-command", "unicast"),
            ("local-ip", "192.0.2.1"),
            ("local-port", "0"),
            ("remote-ip", "192.0.2.2"),
            ("remote-port", "12000"),
            ("transport", "udp"),
        ]
        assert second.headers == [*first.headers, ("flags", "native")]


async def test_what_is_no_channel_is_not_sent() -> None:
    async with up() as (fake, link):
        for channel in ("PJSIP/a-1", f"{UUID} X y\n\nexit"):
            with pytest.raises(DeliveryError, match="is no FreeSWITCH channel's UUID") as e:
                await link.setvar(channel, "X", "y")
            assert e.value.permanent
            with pytest.raises(DeliveryError, match="is no FreeSWITCH channel's UUID"):
                await link.unicast(channel, Address("::1", 0), Address("::1", 1))
        assert [command.name for command in fake.commands] == ["auth"]


async def test_a_command_that_cannot_be_written_costs_only_itself() -> None:
    async with up() as (fake, link):
        with pytest.raises(DeliveryError, match="cannot be a header of ours"):
            await link.event(SUBCLASS, [("Unique-ID", UUID)])
        assert link.state == "up" and not fake.named("sendevent")


@pytest.mark.parametrize(
    ("name", "reply", "sentence"),
    [
        ("uuid_setvar", "", "FreeSWITCH refused uuid_setvar: -ERR No such channel!"),
        ("sendmsg", "", rf"FreeSWITCH refused unicast: -ERR invalid session id \[{UUID}\]"),
        ("sendevent", "-ERR command not found", "refused sendevent: -ERR command not found"),
        ("uuid_setvar", "-ERR permission denied", "the user's esl-allowed-api needs uuid_setvar"),
        ("sendevent", "", None),
    ],
)
async def test_what_freeswitch_refuses_is_final(
    name: str, reply: str, sentence: str | None
) -> None:
    async with up() as (fake, link):
        fake.replies = {name: reply} if reply else {}
        calls = {
            "uuid_setvar": lambda: link.setvar(UUID, "X", "y"),
            "sendmsg": lambda: link.unicast(UUID, Address("::1", 0), Address("::1", 1)),
            "sendevent": lambda: link.event(SUBCLASS, []),
        }
        if sentence is None:
            return await calls[name]()
        with pytest.raises(DeliveryError, match=sentence) as e:
            await calls[name]()
        assert e.value.permanent and link.counters["command_errors"] == 1


async def test_a_user_without_the_right_is_told_which() -> None:
    async with FakeEsl() as fake:
        fake.users = {"callscribe@pbx": ("pw", set())}
        async with linked(fake.port, username="callscribe@pbx", password="pw") as link:
            await asyncio.wait_for(link.up(), 10)
            with pytest.raises(
                DeliveryError, match="permission denied; the user's esl-allowed-api"
            ):
                await link.setvar(UUID, "X", "y")


async def test_replies_go_to_their_commands_in_order() -> None:
    async with up() as (fake, link):
        fake.channels = {UUID}
        other = UUID.replace("7", "8")
        results = await asyncio.gather(
            *(link.setvar(UUID if n % 3 else other, f"V{n}", str(n)) for n in range(50)),
            return_exceptions=True,
        )
        assert [n for n, result in enumerate(results) if result is not None] == list(
            range(0, 50, 3)
        )
        assert fake.variables == {(UUID, f"V{n}"): str(n) for n in range(50) if n % 3}


async def test_a_late_reply_is_not_the_next_commands() -> None:
    async with up(ping_interval=300) as (fake, link):
        fake.channels = {UUID}
        fake.silent = {"sendevent"}
        text = r"did not answer sendevent within 0\.05 s"
        with impatient(link), pytest.raises(DeliveryError, match=text) as e:
            await link.event(SUBCLASS, [])
        assert not e.value.permanent and link.counters["command_timeouts"] == 1
        fake.answer_all()
        await link.setvar(UUID, "X", "y")
        assert link.counters["late_replies"] == 1 and fake.variables == {(UUID, "X"): "y"}


async def test_commands_in_flight_are_bounded_and_wait_in_order() -> None:
    async with up(ping_interval=300) as (fake, link), asyncio.TaskGroup() as group:
        fake.silent = {"sendevent"}
        total = IN_FLIGHT + 20
        for n in range(total):
            group.create_task(link.event(SUBCLASS, [("Seq", str(n))]))
        await fake.until(lambda: len(fake.named("sendevent")) == IN_FLIGHT)
        assert link._connection is not None
        assert len(link._connection._waiting) == IN_FLIGHT
        fake.answer_all()
        await fake.until(lambda: len(fake.named("sendevent")) == total)
        assert [c.get("Seq") for c in fake.named("sendevent")] == [str(n) for n in range(total)]


async def test_a_server_that_answers_nothing_is_not_asked_for_ever() -> None:
    async with up(ping_interval=300) as (fake, link):
        fake.silent = {"sendevent"}
        with impatient(link):
            for _ in range(UNANSWERED // IN_FLIGHT):
                await asyncio.gather(
                    *(link.event(SUBCLASS, []) for _ in range(IN_FLIGHT)), return_exceptions=True
                )
            with pytest.raises(DeliveryError, match="has left 128 commands without an answer") as e:
                await link.event(SUBCLASS, [])
        assert not e.value.permanent


async def test_a_lost_connection_fails_what_waits() -> None:
    async with up() as (fake, link):
        fake.drop_on = {"sendevent"}
        with pytest.raises(DeliveryError, match="closed the connection|broke") as e:
            await link.event(SUBCLASS, [("Seq", "7")])
        assert not e.value.permanent
        await asyncio.wait_for(link.up(), 10)
        await link.event(SUBCLASS, [("Seq", "7")])
        first, second = fake.named("sendevent")
        assert first == second


async def test_nothing_is_written_to_a_server_that_does_not_read() -> None:
    async with up() as (fake, link):
        connection = link._connection
        assert connection is not None
        connection.pause_writing()  # as the transport does when its buffer is full
        with impatient(link), pytest.raises(DeliveryError, match="did not answer"):
            await link.event(SUBCLASS, [])
        connection.resume_writing()
        await link.event(SUBCLASS, [])
        assert len(fake.named("sendevent")) == 1


# -- what comes unasked ---------------------------------------------------------------------------


async def test_events_between_a_command_and_its_reply_are_events() -> None:
    heard: list[EslMessage] = []
    async with up(heard) as (fake, link):
        await link.subscribe(SUBCLASS)
        for n in range(20):  # the event is sent before the reply
            await link.event(SUBCLASS, [("Seq", str(n)), ("Text", "50 % süß")], b"{}\n\n")
        assert [event.headers["seq"] for event in heard] == [str(n) for n in range(20)]
        assert heard[0].headers["text"] == "50 % süß" and heard[0].body == b"{}\n\n"
        assert link.counters["events"] == 20


async def test_a_listener_that_fails_costs_one_event(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeEsl() as fake:

        def fragile(event: EslMessage) -> None:
            raise RuntimeError("a fault of ours")

        link = EslLink(settings(fake.port), jitter=lambda: 0.0, on_event=fragile)
        await link.start()
        await asyncio.wait_for(link.up(), 10)
        await link.subscribe(SUBCLASS)
        await link.event(SUBCLASS, [])
        assert link.state == "up" and link.counters["errors"] == 1
        assert "an event from FreeSWITCH could not be handled" in caplog.text
        await link.close()


async def test_log_lines_and_other_messages_are_counted() -> None:
    async with up() as (fake, link):
        fake.emit_raw(b"Content-Type: log/data\nContent-Length: 4\n\na\n\nb")
        await answered(link)
        assert link.counters["unknown_messages"] == 1 and link.state == "up"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"Content-Type: command/reply\nReply-Text: +OK\n\n", "FreeSWITCH sent a reply to nothing"),
        (
            b"Content-Type: api/response\nContent-Length: x\n\n",
            "a Content-Length that is no number",
        ),
        (b"x" * 100_000, "more than 65536 bytes of headers"),
    ],
)
async def test_a_broken_stream_is_begun_anew(
    data: bytes, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with up(ping_interval=300) as (fake, link):
        fake.emit_raw(data)
        await until_retried(link)
        await asyncio.wait_for(link.up(), 10)
        assert sentence in caplog.text
        await link.event(SUBCLASS, [])
