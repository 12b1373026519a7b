"""Events as Asterisk is told them: UserEvents and channel variables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_ami import FakeAmi
from hypothesis import HealthCheck, given
from hypothesis import settings as unhurried
from hypothesis import strategies as st

from bridge.config import AmiSettings
from bridge.egress.ami import AmiEgress, restricted, transcript, type_of
from bridge.errors import DeliveryError
from bridge.interfaces import Egress
from bridge.pbx.ami import AmiLink
from bridge.types import (
    CallEvent,
    CallInfo,
    Ended,
    EndOfTurn,
    EventBody,
    Final,
    LegName,
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

CALL = CallInfo("c-1", "audiosocket", "PJSIP/a-1", "17.8", "17.7", "alice", "100")
WORDS = (Word("hello", 0.5, 0.9, 0.9), Word("there", 1.0, 1.456, 0.5))
FINAL = Final(2, "hello there", WORDS)
EVERY: list[EventBody] = [
    Started(),
    Partial(1, "he", WORDS[:1]),
    FINAL,
    EndOfTurn(2, "hello there", 0.5, 1.456, "pause"),
    Pressed("#", 3.25),
    Paused(1.0, "ami"),
    Resumed(2.0, "http"),
    Listened("heard", "yes", 0.9, "en"),
    Ended("hangup", 12.0, {}),
    Refused("not ready"),
    RuleFired("operator", "redirect", "failed", "no right", 2, 4, "there", "there", WORDS[1:]),
]
TYPES = [
    "started", "partial", "final", "turn", "dtmf", "paused", "resumed", "listened", "ended",
    "refused", "rule",
]  # fmt: skip


def event(
    body: EventBody,
    call: CallInfo = CALL,
    leg: LegName | None = "caller",
    gap_before: int = 0,
) -> CallEvent:
    return CallEvent(call, 5, 1_700_000_000.0, leg, body, gap_before)


class RecordingLink:
    """Takes every action, or refuses some by name."""

    def __init__(self, **errors: DeliveryError) -> None:
        self.errors = errors
        self.sent: list[tuple[str, list[tuple[str, str]], str | None]] = []

    async def action(
        self, name: str, headers: Sequence[tuple[str, str]], *, action_id: str | None = None
    ) -> Mapping[str, str]:
        self.sent.append((name, list(headers), action_id))
        if name in self.errors:
            raise self.errors[name]
        return {"Response": "Success"}


def settings(port: int = 5038, **changes: Any) -> AmiSettings:
    values = {"port": port, "username": "callscribe", "secret": "s3cret", **changes}
    return AmiSettings(**values)


async def sent(body: EventBody, call: CallInfo = CALL, **changes: Any) -> list[Any]:
    link = RecordingLink()
    await AmiEgress(link, settings(**changes)).deliver(event(body, call))
    return link.sent


# -- the event ------------------------------------------------------------------------------------


def test_a_final_has_all_headers_in_their_order() -> None:
    assert transcript(event(FINAL, gap_before=3)) == [
        ("CallID", "c-1"),
        ("Channel", "PJSIP/a-1"),
        ("Uniqueid", "17.8"),
        ("Linkedid", "17.7"),
        ("Leg", "caller"),
        ("Seq", "5"),
        ("Turn", "2"),
        ("Type", "final"),
        ("Start", "0.50"),
        ("End", "1.46"),
        ("Confidence", "0.70"),
        ("Gap-Before", "3"),
        ("Text", "hello there"),
    ]


def told(body: EventBody) -> dict[str, str]:
    """The headers of an event that names nothing of Asterisk's."""
    return dict(transcript(event(body, CallInfo("c-1"), None)))


def test_other_events_leave_out_what_they_do_not_have() -> None:
    assert told(Started()) == {"CallID": "c-1", "Seq": "5", "Type": "started"}
    turn = {"Turn": "2", "Type": "turn", "Start": "0.50", "End": "1.46", "Text": "hello there"}
    assert told(EVERY[3]) == {"CallID": "c-1", "Seq": "5", **turn, "Reason": "pause"}
    dtmf = {"Type": "dtmf", "Start": "3.25", "Digit": "#"}
    assert told(Pressed("#", 3.25)) == {"CallID": "c-1", "Seq": "5", **dtmf}
    assert told(EVERY[8])["Reason"] == "hangup"
    assert told(EVERY[9])["Reason"] == "not ready"
    rule = {"Rule": "operator", "Rule-Action": "redirect", "Outcome": "failed", "Matched": "there"}
    times = {"Turn": "2", "Type": "rule", "Start": "1.00", "End": "1.46", "Confidence": "0.50"}
    reason = {"Reason": "no right", "Text": "there"}
    assert told(EVERY[10]) == {"CallID": "c-1", "Seq": "5", **times, **rule, **reason}
    assert "Start" not in told(Partial(1, "", ()))


@pytest.mark.parametrize(("body", "kind"), list(zip(EVERY, TYPES, strict=True)))
async def test_only_the_configured_types_are_sent(body: EventBody, kind: str) -> None:
    assert type_of(body) == kind
    only = await sent(body, events=[kind], set_variables=False)
    assert [dict(headers)["Type"] for _, headers, _ in only] == [kind]
    others = [other for other in TYPES if other != kind]
    assert await sent(body, events=others, set_variables=False) == []


async def test_dtmf_is_not_told_unless_asked_for() -> None:
    assert await sent(Pressed("1", 0.0)) == []


# -- variables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "variable", "value"),
    [
        (FINAL, "CALLSCRIBE_TEXT", "hello there"),
        (Started(), "CALLSCRIBE_STATUS", "started"),
        (Ended("hangup", 1.0, {}), "CALLSCRIBE_STATUS", "ended"),
        (Refused("not ready"), "CALLSCRIBE_STATUS", "refused:not ready"),
    ],
)
async def test_a_variable_is_set_before_its_event(
    body: EventBody, variable: str, value: str
) -> None:
    (setvar, headers, _), (userevent, _, _) = await sent(body)
    assert (setvar, userevent) == ("Setvar", "UserEvent")
    assert headers == [("Channel", "PJSIP/a-1"), ("Variable", variable), ("Value", value)]


@pytest.mark.parametrize("body", [EVERY[1], EVERY[3]])
async def test_partials_and_turns_set_nothing(body: EventBody) -> None:
    assert [name for name, _, _ in await sent(body)] == ["UserEvent"]


async def test_variables_do_not_depend_on_the_events_chosen() -> None:
    assert [name for name, _, _ in await sent(FINAL, events=[])] == ["Setvar"]


async def test_no_variables_without_a_channel_or_when_switched_off() -> None:
    assert [name for name, _, _ in await sent(FINAL, CallInfo("c-1"))] == ["UserEvent"]
    assert [name for name, _, _ in await sent(FINAL, set_variables=False)] == ["UserEvent"]


@unhurried(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=1200))
def test_a_variable_carries_nothing_that_means_something(text: str) -> None:
    value = restricted(text)
    assert len(value.encode()) <= 900
    assert not set(value) & set(',"`$(){}[]\\;&|<>:=!%*/^~#@\t\r\n\0\u2028')
    assert value == " ".join(value.split(" ")).strip()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Yes, it's  10.5 - really?", "Yes it's 10.5 - really?"),
        ("l\u2019été, e\u0301t\u00e9", "l'été e\u0301té"),
        ("Да! 東京 हिन्दी", "Да 東京 हिन्दी"),
        ("$(rm -rf) ${SHELL(id)} `x` | y; z & \\n", "rm -rf SHELL id x y z n"),
        ('a"b\nc\0d\x85e', "a b c d e"),
    ],
)
def test_restricted_text(text: str, value: str) -> None:
    assert restricted(text) == value


def test_a_long_variable_is_cut_between_characters() -> None:
    assert restricted("x" + "ü" * 1000) == "x" + "ü" * 449


# -- when Asterisk will not -----------------------------------------------------------------------


async def test_a_caller_who_hung_up_is_no_error() -> None:
    gone = DeliveryError("Asterisk refused Setvar: No such channel", permanent=True)
    link = RecordingLink(Setvar=gone)
    egress = AmiEgress(link, settings())
    await egress.deliver(event(FINAL))
    assert [name for name, _, _ in link.sent] == ["Setvar", "UserEvent"]
    assert egress.counters == {"hung_up": 1, "events": 1}


async def test_a_variable_that_is_refused_does_not_cost_the_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    denied = DeliveryError("Asterisk refused Setvar: Permission denied", permanent=True)
    link = RecordingLink(Setvar=denied)
    egress = AmiEgress(link, settings())
    await egress.deliver(event(FINAL))
    assert link.sent[-1][0] == "UserEvent" and egress.counters["variable_errors"] == 1
    assert "CALLSCRIBE_TEXT is not set" in caplog.text
    assert "hello" not in caplog.text  # nobody's words in a log


@pytest.mark.parametrize("which", ["Setvar", "UserEvent"])
async def test_what_may_pass_is_raised_to_be_tried_again(which: str) -> None:
    link = RecordingLink(**{which: DeliveryError("AMI is down")})
    egress = AmiEgress(link, settings())
    with pytest.raises(DeliveryError, match="AMI is down"):
        await egress.deliver(event(FINAL))
    first = list(link.sent)
    link.sent.clear()
    link.errors = {}
    await egress.deliver(event(FINAL))
    assert first == link.sent[: len(first)]  # the same ActionID and Seq


async def test_action_ids_differ_by_call_seq_and_purpose() -> None:
    ids = [action_id for _, _, action_id in await sent(FINAL)]
    assert ids == ["callscribe-c-1-5-CALLSCRIBE_TEXT", "callscribe-c-1-5"]


# -- for a dialplan that waits --------------------------------------------------------------------

LISTENS = CallInfo("c-1", channel="PJSIP/a-1", listening=True)


async def sent_to_who_listens(body: EventBody) -> list[tuple[str, dict[str, str]]]:
    link = RecordingLink()
    await AmiEgress(link, settings()).deliver(event(body, LISTENS))
    return [(name, dict(headers)) for name, headers, _ in link.sent]


async def test_a_dialplan_that_listens_has_its_variables_once_the_status_last() -> None:
    """What else the call's events would set could meet the next time that it listens."""
    for body in EVERY:
        if not isinstance(body, Listened | Refused):
            assert {name for name, _ in await sent_to_who_listens(body)} <= {"UserEvent"}, body
    found = await sent_to_who_listens(Listened("heard", "yes, $(id)", 0.876, "en"))
    values = [(h["Variable"], h["Value"]) for name, h in found if name == "Setvar"]
    assert values == [
        ("CALLSCRIBE_TEXT", "yes id"),
        ("CALLSCRIBE_CONFIDENCE", "0.88"),
        ("CALLSCRIBE_LANGUAGE", "en"),
        ("CALLSCRIBE_STATUS", "heard"),
    ]
    nothing = await sent_to_who_listens(Listened("silence"))
    assert [h["Value"] for n, h in nothing if n == "Setvar"] == ["", "", "", "silence"]


async def test_a_refusal_by_a_limit_names_it() -> None:
    (_, setvar), _ = await sent_to_who_listens(Refused("limit:my,limit"))
    assert setvar["Value"] == "refused:limit:my limit"


async def test_who_waits_is_told_when_all_is_acknowledged() -> None:
    order: list[str] = []

    class Link(RecordingLink):
        async def action(
            self, name: str, headers: Sequence[tuple[str, str]], *, action_id: str | None = None
        ) -> Mapping[str, str]:
            await asyncio.sleep(0)
            order.append(name)
            return await super().action(name, headers, action_id=action_id)

    egress = AmiEgress(Link(), settings(), told=lambda event: order.append("told"))
    await egress.deliver(event(Listened("heard"), LISTENS))
    assert order == ["Setvar"] * 4 + ["told", "UserEvent"]


async def test_nobody_is_told_of_what_was_not_set_and_nothing_is_set_in_vain() -> None:
    told: list[CallEvent] = []
    broken = RecordingLink(Setvar=DeliveryError("AMI is down"))
    egress = AmiEgress(broken, settings(), told=told.append)
    with pytest.raises(DeliveryError):
        await egress.deliver(event(Listened("heard"), LISTENS))
    assert told == []
    link = RecordingLink()
    late = AmiEgress(link, settings(), wanted=lambda event: False, told=told.append)
    await late.deliver(event(Listened("heard"), LISTENS))
    assert ([name for name, _, _ in link.sent], len(told)) == (["UserEvent"], 1)


# -- over the wire --------------------------------------------------------------------------------


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[FakeAmi, AmiLink, Egress]]:
    async with FakeAmi() as fake:
        link = AmiLink(settings(fake.port), lambda _: None, jitter=lambda: 0.0)
        await link.start()
        await asyncio.wait_for(link.up(), 10)
        try:
            yield fake, link, AmiEgress(link, settings(fake.port))
        finally:
            await link.close()


async def test_a_poisoned_text_and_a_poisoned_call_stay_one_action() -> None:
    poison = "x\r\n\r\nAction: CoreStatus\r\nActionID: smuggled\r\n\r\n"
    async with wired() as (fake, link, egress):
        fake.channels = {"PJSIP/a-1"}
        call = CallInfo(f"c{poison}", channel="PJSIP/a-1", uniqueid=poison)
        await egress.deliver(event(Final(1, poison, WORDS), call))
        await link.action("Ping", [])
        names = [a.get("Action") for a in fake.actions if a.get("Action") not in ("Ping", "Login")]
        assert names == ["Challenge", "Setvar", "UserEvent"]
        text = "x Action CoreStatus ActionID smuggled"
        assert fake.variables == {("PJSIP/a-1", "CALLSCRIBE_TEXT"): text}


async def test_a_long_text_arrives_whole() -> None:
    text = " ".join(f"wörd{n}" for n in range(700))
    async with wired() as (fake, _, egress):
        await egress.deliver(event(EndOfTurn(1, text, 0.0, 60.0, "pause")))
        (got,) = fake.named("UserEvent")
        assert not got.error
        pieces = [value for key, value in got.headers if key.startswith("Text")]
        assert len(pieces) > 5 and "".join(pieces) == text


async def test_an_event_without_an_answer_is_sent_again_as_the_same() -> None:
    async with wired() as (fake, link, egress):
        fake.channels = {"PJSIP/a-1"}
        fake.drop_on = {"UserEvent"}
        with pytest.raises(DeliveryError) as e:
            await egress.deliver(event(FINAL))
        assert not e.value.permanent
        await asyncio.wait_for(link.up(), 10)
        await egress.deliver(event(FINAL))
        first, second = fake.named("UserEvent")
        assert first == second and first.get("ActionID") == "callscribe-c-1-5"


async def test_start_and_close_are_the_links_business() -> None:
    link = RecordingLink()
    egress = AmiEgress(link, settings())
    await egress.start()
    await egress.close()
    assert link.sent == [] and egress.name == "ami"
