"""Actions in the words of a switch: whatever was said, it is never one of those words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from fake_ami import Reader
from hypothesis import given
from hypothesis import strategies as st

from bridge.config_rules import (
    Action,
    HangUp,
    RaiseEvent,
    Record,
    Redirect,
    SetVariable,
    StopRecording,
)
from bridge.pbx.ami_text import encode_action
from bridge.pbx.esl_text import encode_command, quoted
from bridge.rules_actions import ami, channels, esl, recording, value
from bridge.rules_text import Pattern
from bridge.rules_types import Firing, Rule
from bridge.types import CallEvent, CallInfo, Final, Word

SET = SetVariable(do="setvar", variable="CALLSCRIBE_WANTS")
MOVE = Redirect(do="redirect", context="callscribe-operator", exten="100", priority="1")
CHANNEL = "PJSIP/a-1"
POISON = "x\r\n\r\nAction: Originate\r\nChannel: y\0${SHELL(id)}`id`,b;c|d&e\u2028"


def firing(text: str, matched: str = "", *, pattern: bool = False, **call: Any) -> Firing:
    info = CallInfo(**{"id": "c-1", "channel": CHANNEL, "uniqueid": "17.8", **call})
    said = (Word(text, 0.0, 1.0, 0.9),)
    rule = Rule("r", pattern=Pattern("x") if pattern else None)
    return Firing(rule, CallEvent(info, 5, 0.0, "caller", Final(2, text, said)), matched, said)


def sent(action: Action, text: str, **call: Any) -> dict[str, str]:
    """The headers that Asterisk reads; there must be one action, and nothing else."""
    told = firing(text, text, **call)
    name, headers = ami(action, told, told.cause.call.channel, "/rec")
    received = Reader().feed(encode_action(name, "id-1", headers))
    assert len(received) == 1 and not received[0].error
    assert [key for key, _ in received[0].headers[:2]] == ["Action", "ActionID"]
    return {key: text for key, text in received[0].headers if key != "ActionID"}


def test_what_asterisk_is_told() -> None:
    assert sent(SET, "Dr. O'Neil, please!") == {
        "Action": "Setvar", "Channel": CHANNEL, "Variable": "CALLSCRIBE_WANTS",
        "Value": "Dr. O'Neil please",
    }  # fmt: skip
    fixed = SetVariable(do="setvar", variable="CALLSCRIBE_WANTS", value="a,b")
    assert sent(fixed, "said")["Value"] == "a,b"
    assert sent(MOVE, "x") == {
        "Action": "Redirect", "Channel": CHANNEL, "Context": "callscribe-operator",
        "Exten": "100", "Priority": "1",
    }  # fmt: skip
    assert sent(HangUp(do="hangup", cause=17), "x") == {
        "Action": "Hangup", "Channel": CHANNEL, "Cause": "17",
    }  # fmt: skip
    assert sent(Record(do="record"), "x") == {
        "Action": "MixMonitor", "Channel": CHANNEL, "File": "/rec/c-1.wav",
    }  # fmt: skip
    assert sent(StopRecording(do="stop_record"), "x") == {
        "Action": "StopMixMonitor", "Channel": CHANNEL,
    }  # fmt: skip
    assert sent(RaiseEvent(do="userevent", event="Wanted"), "one, two") == {
        "Action": "UserEvent", "UserEvent": "Wanted", "CallID": "c-1", "Channel": CHANNEL,
        "Uniqueid": "17.8", "Leg": "caller", "Cause": "5", "Rule": "r", "Matched": "one, two",
        "Text": "one, two",
    }  # fmt: skip


ACTIONS: list[Action] = [
    SET,
    MOVE,
    HangUp(do="hangup"),
    Record(do="record"),
    StopRecording(do="stop_record"),
    RaiseEvent(do="userevent"),
]
KEYS = {
    "Action", "Channel", "Variable", "Value", "Context", "Exten", "Priority", "Cause", "File",
    "UserEvent", "CallID", "Uniqueid", "Linkedid", "Leg", "Rule", "Matched", "Text", "Truncated",
}  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.do)
@given(text=st.text() | st.just(POISON), name=st.text(max_size=60) | st.just(POISON))
def test_no_text_and_no_name_becomes_a_command(action: Action, text: str, name: str) -> None:
    told = sent(action, text, id=name, channel=name, uniqueid=name)
    assert {key.split("-")[0] for key in told} <= KEYS
    quiet = sent(action, "quiet", id="c", channel="c", uniqueid="c")
    fixed = ("Action", "Variable", "Context", "Exten", "Priority", "UserEvent", "Rule", "Leg")
    assert {k: v for k, v in told.items() if k in fixed} == {
        k: v for k, v in quiet.items() if k in fixed
    }
    assert not set(told.get("Value", "")) & set('$`{}[]\\;|&<>"\r\n\0,')


@given(st.text() | st.just("../../etc/passwd") | st.just("a,b(x)|id"), st.text())
def test_a_recording_lies_in_its_directory_and_is_its_calls_own(name: str, other: str) -> None:
    action = Record(do="record", file="{call_id}-x.wav")
    path = recording(action, CallInfo(name), "/rec")
    inside = path.removeprefix("/rec/").removesuffix("-x.wav")
    assert path == f"/rec/{inside}-x.wav" and len(inside) <= 93
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in inside)
    if name != other:
        assert path != recording(action, CallInfo(other), "/rec")


def test_a_pattern_gives_a_variable_what_its_group_matched() -> None:
    assert value(SET, firing("extension 204,", "204", pattern=True)) == "204"
    assert value(SET, firing("extension 204,", "extension")) == "extension 204"


@pytest.mark.parametrize(
    ("leg", "legs", "target", "expected"),
    [
        ("caller", ("caller",), "leg", "Aa"),
        ("caller", ("caller", "callee"), "leg", "Aa"),
        ("callee", ("caller", "callee"), "leg", "Bb"),
        ("callee", ("callee",), "leg", "Aa"),  # the only leg's channel is the call's
        ("callee", ("caller", "callee"), "call", "Aa"),
        (None, ("caller",), "call", "Aa"),
    ],
)
def test_whose_channel(leg: Any, legs: Any, target: str, expected: str) -> None:
    extra = {"callee_channel": "B", "callee_uniqueid": "b"}
    call = CallInfo("c", channel="A", uniqueid="a", extra=extra)
    assert channels(call, legs, leg, target) == tuple(expected)


def test_a_callees_unknown_channel_is_not_the_callers() -> None:
    assert channels(CallInfo("c", channel="A"), ("caller", "callee"), "callee", "leg") == ()


@pytest.mark.parametrize("name", ["/.*/", " ", "", "/PJSIP/", "PJSIP/a b", "a\r\nB: c", "x" * 300])
def test_what_is_no_channels_name_is_none(name: str) -> None:
    assert channels(CallInfo("c", channel=name), ("caller",), "caller", "leg") == ()
    only = CallInfo("c", channel=name, uniqueid="17.8")
    assert channels(only, ("caller",), "caller", "leg") == ("17.8",)


UUID = "8068a190-1efb-4a9f-af3c-8e234e010031"


def test_what_freeswitch_is_told() -> None:
    told = firing("x")
    for action, command in (
        (MOVE, f"uuid_transfer {UUID} 100 XML callscribe-operator"),
        (HangUp(do="hangup", cause=17), f"uuid_kill {UUID} USER_BUSY"),
        (HangUp(do="hangup", cause=99), f"uuid_kill {UUID} NORMAL_CLEARING"),
        (Record(do="record"), f"uuid_record {UUID} start /rec/{told.cause.call.id}.wav"),
        (StopRecording(do="stop_record"), f"uuid_record {UUID} stop all"),
    ):
        assert esl(action, told, UUID, "/rec") == command


@given(st.text() | st.just(POISON))
def test_a_recordings_file_is_one_word_whatever_the_calls_id_is(id: str) -> None:
    told = firing("x")
    told = replace(told, cause=replace(told.cause, call=CallInfo(id)))
    command = esl(Record(do="record"), told, UUID, "/rec")
    assert re.fullmatch(rf"uuid_record {UUID} start /rec/[A-Za-z0-9_-]*\.wav", command)


@given(st.text() | st.just(POISON))
def test_what_was_said_is_one_argument_of_freeswitchs(text: str) -> None:
    said = value(SET, firing(text))
    wire = encode_command(f"api uuid_setvar {UUID} CALLSCRIBE_WANTS {quoted(said)}")
    assert wire.count(b"\n") == 2 and wire.endswith(b"\n\n")
    assert not set(said) & set('$`{}[]\\;|&<>"\r\n\0,')
