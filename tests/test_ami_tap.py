"""A tap that a manager client asks for: what is understood, and what is somebody else's."""

from __future__ import annotations

import logging

import pytest
from panoramisk.message import Message

from bridge import taps
from bridge.config import AmiSettings
from bridge.errors import DeliveryError, ProtocolError
from bridge.pbx.ami import AmiLink
from bridge.pbx.ami_tap import TapAsked, tap_asked
from bridge.pbx.ari_events import Wish

ASKED = {"event": "UserEvent", "userevent": "CallscribeTap", "channel": "PJSIP/alice-00000001"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Wish()),
        ({"call": " c-1 ", "leg": "Callee"}, Wish("c-1", "callee")),
        ({"consent": "1"}, Wish(consents=True)),
        ({"consent": "0"}, Wish()),
        ({"privilege": "user,all", "actionid": "x1", "uniqueid": "1700000000.1"}, Wish()),
    ],
)
def test_what_a_client_asks_for(more: dict[str, str], expected: Wish) -> None:
    assert tap_asked(ASKED | more) == TapAsked("PJSIP/alice-00000001", expected)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "VarSet", "variable": "CallscribeTap"},
        ASKED | {"userevent": "CallscribeTaps"},
        ASKED | {"event": "userevent"},
        # of a dialplan, or of ARI with a source: ARI tells of it
        ASKED | {"channelstate": "6", "uniqueid": "1700000000.1"},
    ],
)
def test_what_is_about_something_else(event: dict[str, str]) -> None:
    assert tap_asked(event) is None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"channel": ""}, "a CallscribeTap without Channel asks for nothing"),
        ({"call": "a b"},
         "a CallscribeTap asks in vain: Call is no id: use ${UNIQUEID} or a UUID"),
        ({"leg": "both"}, "a CallscribeTap asks in vain: Leg is neither caller nor callee"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_sentence(more: dict[str, str], sentence: str) -> None:
    with pytest.raises(ProtocolError) as e:
        tap_asked(ASKED | more)
    assert str(e.value) == sentence


def test_nothing_of_it_can_become_a_line() -> None:
    asked = tap_asked(ASKED | {"channel": "x\r\nAction: Logoff\x00" + 1000 * "y"})
    assert asked is not None
    assert asked.channel.isprintable() and len(asked.channel) <= 256


def link(error: Exception | None = None) -> tuple[AmiLink, list[TapAsked]]:
    taken: list[TapAsked] = []

    def on_tap(asked: TapAsked) -> None:
        taken.append(asked)
        if error is not None:
            raise error

    settings = AmiSettings(username="callscribe", secret="s3cret")  # type: ignore[arg-type]
    return AmiLink(settings, lambda announcement: None, on_tap=on_tap), taken


def test_a_wish_is_handed_on_and_counted() -> None:
    made, taken = link()
    made._event(Message(ASKED))
    made._event(Message(ASKED | {"leg": "both"}))
    assert taken == [TapAsked("PJSIP/alice-00000001", Wish())]
    assert (made.counters["taps_asked"], made.counters["bad_announcements"]) == (1, 1)


@pytest.mark.parametrize(
    ("error", "counter", "text"),
    [
        (DeliveryError("ARI is down"), "bad_taps", "a CallscribeTap asks in vain: ARI is down"),
        (RuntimeError("ours"), "errors", "a CallscribeTap could not be handed on"),
    ],
)
def test_a_wish_in_vain_costs_itself(
    error: Exception, counter: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    made, taken = link(error=error)
    made._event(Message(ASKED))
    assert len(taken) == made.counters[counter] == 1
    assert text in caplog.text


def test_without_ari_nobody_is_asked() -> None:
    assert taps.asked_by_ami(None) is None
    settings = AmiSettings(username="callscribe", secret="s3cret")  # type: ignore[arg-type]
    made = AmiLink(settings, lambda announcement: None)
    made._event(Message(ASKED))
    assert made.counters["taps_asked"] == made.counters["bad_announcements"] == 0
