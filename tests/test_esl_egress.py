"""Events as FreeSWITCH is told them: CUSTOM events and channel variables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_esl import FakeEsl, Reader
from hypothesis import HealthCheck, given
from hypothesis import settings as unhurried
from hypothesis import strategies as st

from bridge import contract
from bridge.config import EslSettings
from bridge.egress.esl import SUBCLASS, EslEgress, channel_of, headers
from bridge.errors import DeliveryError
from bridge.interfaces import Egress
from bridge.pbx.esl import EslLink
from bridge.pbx.esl_text import encode_command
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    Listened,
    Partial,
    Paused,
    Pressed,
    Refused,
    Resumed,
    RuleFired,
    Started,
    Word,
)

UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
CALL = CallInfo("c-1", "rtp", UUID, "", "", "alice", "100")
WORDS = (Word("it's", 0.5, 0.9, 0.9), Word("John's", 1.0, 1.456, 0.5))
FINAL = Final(2, "it's John's", WORDS, "en")
EVERY: dict[str, EventBody] = {
    "started": Started(),
    "partial": Partial(1, "it", WORDS[:1]),
    "final": FINAL,
    "turn": EndOfTurn(2, "it's John's", 0.5, 1.456, "pause"),
    "dtmf": Pressed("#", 3.25),
    "paused": Paused(1.0, "http"),
    "resumed": Resumed(2.0, "dtmf"),
    "listened": Listened("heard", "yes", 0.9, "en"),
    "ended": Ended("hangup", 12.0, {}),
    "refused": Refused("not ready"),
    "rule": RuleFired("vip", "redirect", "done", "", 2, 4, "john s", "John's", WORDS[1:]),
}


def event(body: EventBody, call: CallInfo = CALL, gap_before: int = 0) -> CallEvent:
    return CallEvent(call, 5, 1_700_000_000.0, "caller", body, gap_before)


class RecordingLink:
    """Takes everything, or refuses some by name."""

    def __init__(self, **errors: DeliveryError) -> None:
        self.errors = errors
        self.sent: list[tuple[Any, ...]] = []

    async def event(
        self, subclass: str, headers: Sequence[tuple[str, str]], body: bytes = b""
    ) -> None:
        self._take("event", subclass, dict(headers), body)

    async def setvar(self, channel: str, name: str, value: str) -> None:
        self._take("setvar", channel, name, value)

    def _take(self, what: str, *arguments: object) -> None:
        self.sent.append((what, *arguments))
        if what in self.errors:
            raise self.errors[what]


def settings(port: int = 8021, **changes: Any) -> EslSettings:
    return EslSettings(**{"port": port, "password": "s3cret", **changes})


async def sent(body: EventBody, call: CallInfo = CALL, **changes: Any) -> list[tuple[Any, ...]]:
    link = RecordingLink()
    await EslEgress(link, settings(**changes)).deliver(event(body, call))
    return link.sent


# -- the event ------------------------------------------------------------------------------------


def test_a_final_has_all_headers_in_their_order() -> None:
    assert headers(event(FINAL, gap_before=3)) == [
        ("Call-ID", "c-1"),
        ("Channel-UUID", UUID),
        ("Leg", "caller"),
        ("Seq", "5"),
        ("Turn", "2"),
        ("Type", "final"),
        ("Start", "0.50"),
        ("End", "1.46"),
        ("Confidence", "0.70"),
        ("Language", "en"),
        ("Gap-Before", "3"),
        ("Text", "it's John's"),
    ]


async def test_the_body_is_what_a_callback_says() -> None:
    *_, (what, subclass, _, body) = await sent(FINAL)
    assert (what, subclass) == ("event", SUBCLASS)
    assert json.loads(body) == contract.to_json(event(FINAL))


@pytest.mark.parametrize("kind", EVERY)
async def test_only_the_configured_types_are_sent(kind: str) -> None:
    only = await sent(EVERY[kind], events=[kind], set_variables=False)
    assert [one[2]["Type"] for one in only] == [kind]
    others = [other for other in EVERY if other != kind]
    assert await sent(EVERY[kind], events=others, set_variables=False) == []


async def test_dtmf_is_not_told_unless_asked_for() -> None:
    assert await sent(Pressed("1", 0.0)) == []


# -- the channel ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "uniqueid", "found"),
    [
        (UUID, "", UUID),
        (UUID.upper(), "", UUID.upper()),
        ("sofia/internal/1000", UUID, UUID),
        ("PJSIP/a-00000001", "1700000000.17", ""),
        ("", "", ""),
        (f"{UUID} x", "", ""),
    ],
)
async def test_the_channel_is_the_uuid_that_was_announced(
    channel: str, uniqueid: str, found: str
) -> None:
    call = CallInfo("c-1", channel=channel, uniqueid=uniqueid)
    assert channel_of(call) == found
    assert dict(headers(event(FINAL, call))).get("Channel-UUID", "") == found
    names = [one[0] for one in await sent(FINAL, call)]
    assert names == (["setvar", "event"] if found else ["event"])


@pytest.mark.parametrize(
    ("body", "variable", "value"),
    [
        (FINAL, "CALLSCRIBE_TEXT", "it's John's"),
        (Started(), "CALLSCRIBE_STATUS", "started"),
        (Ended("hangup", 1.0, {}), "CALLSCRIBE_STATUS", "ended"),
        (Refused("not ready"), "CALLSCRIBE_STATUS", "refused:not ready"),
    ],
)
async def test_a_variable_is_set_before_its_event(
    body: EventBody, variable: str, value: str
) -> None:
    first, second = await sent(body)
    assert first == ("setvar", UUID, variable, value) and second[0] == "event"


async def test_no_variables_when_switched_off() -> None:
    assert [one[0] for one in await sent(FINAL, set_variables=False)] == ["event"]
    assert [one[0] for one in await sent(FINAL, events=[])] == ["setvar"]


# -- when FreeSWITCH will not ---------------------------------------------------------------------


async def test_a_caller_who_hung_up_is_no_error() -> None:
    gone = DeliveryError("FreeSWITCH refused uuid_setvar: -ERR No such channel!", permanent=True)
    link = RecordingLink(setvar=gone)
    egress = EslEgress(link, settings())
    await egress.deliver(event(FINAL))
    assert [one[0] for one in link.sent] == ["setvar", "event"]
    assert egress.counters == {"hung_up": 1, "events": 1}


async def test_a_variable_that_is_refused_does_not_cost_the_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = RecordingLink(setvar=DeliveryError("refused: -ERR permission denied", permanent=True))
    egress = EslEgress(link, settings())
    await egress.deliver(event(FINAL))
    assert egress.counters == {"variable_errors": 1, "events": 1}
    assert "CALLSCRIBE_TEXT is not set" in caplog.text
    assert "John" not in caplog.text  # nobody's words in a log


@pytest.mark.parametrize("which", ["setvar", "event"])
async def test_what_may_pass_is_raised_to_be_tried_again(which: str) -> None:
    link = RecordingLink(**{which: DeliveryError("the event socket is down")})
    egress = EslEgress(link, settings())
    with pytest.raises(DeliveryError, match="the event socket is down"):
        await egress.deliver(event(FINAL))
    first = list(link.sent)
    link.sent.clear()
    link.errors = {}
    await egress.deliver(event(FINAL))
    assert first == link.sent[: len(first)]  # the same Seq


# -- over the wire --------------------------------------------------------------------------------


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[FakeEsl, Egress]]:
    async with FakeEsl() as fake:
        link = EslLink(settings(fake.port), jitter=lambda: 0.0)
        await link.start()
        await asyncio.wait_for(link.up(), 10)
        fake.channels = {UUID}
        try:
            yield fake, EslEgress(link, settings(fake.port))
        finally:
            await link.close()


POISON = "it's\r\n\r\napi fsctl shutdown\n\nUnique-ID: x\n\nunload mod_event_socket 'now'\0\n\nexit"


async def test_a_poisoned_text_and_a_poisoned_call_stay_one_event_and_one_variable() -> None:
    async with wired() as (fake, egress):
        call = CallInfo(f"c{POISON}", channel=UUID, caller=POISON, extra={POISON: POISON})
        await egress.deliver(event(Final(1, POISON, WORDS), call))
        await egress.deliver(event(Started(), call))
        names = [command.name for command in fake.commands]
        assert names == ["auth", *["uuid_setvar", "sendevent"] * 2]
        assert not fake.unloaded and not fake.queued
        assert fake.variables[UUID, "CALLSCRIBE_TEXT"] == (
            "it's api fsctl shutdown Unique-ID x unload mod event socket 'now' exit"
        )
        _, body = fake.fired[0]
        assert json.loads(body)["data"]["text"] == POISON


async def test_an_event_goes_to_those_who_listen_and_not_to_the_channel() -> None:
    async with wired() as (fake, egress):
        await egress.deliver(event(FINAL))
        (fired, _) = fake.fired[0]
        assert ("Channel-UUID", UUID) in fired and not fake.queued
        assert fake.variables == {(UUID, "CALLSCRIBE_TEXT"): "it's John's"}


async def test_a_long_text_is_whole_in_the_body() -> None:
    text = " ".join(f"wörd{n}" for n in range(2000))
    async with wired() as (fake, egress):
        await egress.deliver(event(EndOfTurn(1, text, 0.0, 60.0, "pause")))
        ((fired, body),) = fake.fired
        assert json.loads(body)["data"]["text"] == text
        assert text.startswith(dict(fired)["Text"]) and len(dict(fired)["Text"]) > 4000


@unhurried(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=200) | st.text(alphabet="\r\n\0 '\\ab:-", max_size=60))
def test_whatever_is_said_is_one_event(text: str) -> None:
    """The whole way: what FreeSWITCH's reader makes of it, and the words behind it."""
    said = event(Final(1, text, WORDS), CallInfo(text or "c", caller=text))
    wire = encode_command("sendevent CUSTOM", headers(said), contract.body(said))
    (command,) = Reader().feed(wire)
    expected = text.encode("utf-8", "replace").decode()
    assert json.loads(command.body)["data"]["text"] == expected
    names = [key for key, _ in command.headers]
    assert set(names) <= {"Call-ID", "Leg", "Seq", "Turn", "Type", "Start", "End", "Confidence",
                          "Text", "Content-Length"}  # fmt: skip
    assert len(names) == len(set(names))


async def test_start_and_close_are_the_links_business() -> None:
    link = RecordingLink()
    egress = EslEgress(link, settings())
    await egress.start()
    await egress.close()
    assert link.sent == [] and egress.name == "esl"
