"""ARI's messages, as Asterisk sends them and as nobody should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import ProtocolError
from bridge.pbx import ari_events
from bridge.pbx.ari_events import (
    PLACES,
    TYPES,
    Arrived,
    Asked,
    Dialled,
    Entered,
    Gone,
    Left,
    Placed,
    Replaced,
    Seen,
    Wish,
    parse,
)

VECTORS = sorted((Path(__file__).parent / "vectors/ari").glob("*.jsonl"))
LINES = [line for path in VECTORS for line in path.read_text().splitlines()]
CHANNEL = {"id": "1700000000.1", "name": "PJSIP/alice-00000001", "state": "Up"}


def message(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


def test_everything_that_asterisk_sent_is_understood() -> None:
    kinds = {json.loads(line)["type"] for line in LINES}
    assert kinds < {*TYPES, PLACES} and len(kinds) == 8
    for line in LINES:
        event = parse(line)
        if json.loads(line)["type"] != "ChannelUserevent":
            assert event is not None


def test_a_channel_is_read_as_asterisk_shows_it() -> None:
    event = parse(next(line for line in LINES if '"Goto"' in line))
    assert isinstance(event, Placed)
    channel = event.channel
    assert (channel.id, channel.linkedid) == (channel.linkedid, channel.id)
    assert (channel.name, channel.state) == ("PJSIP/anonymous-00000000", "Ring")
    assert (channel.context, channel.exten) == ("callscribe-phone", "talk")
    assert (channel.app, channel.app_data) == ("Goto", "ari,call,1")
    assert (channel.caller, channel.connected) == ("alice", "")
    assert channel.created.endswith("+0000")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (message("ChannelCreated", channel=CHANNEL), Seen),
        (message("ChannelStateChange", channel=CHANNEL), Seen),
        (message("ChannelDestroyed", channel=CHANNEL), Gone),
        (message("Dial", peer=CHANNEL), Dialled),
        (message("Dial", caller={}, peer=CHANNEL), Dialled),
        (message("ChannelEnteredBridge", channel=CHANNEL, bridge={"id": "b"}), Entered),
        (message("ChannelLeftBridge", channel=CHANNEL, bridge={"id": "b"}), Left),
        (message("StasisStart", channel=CHANNEL, args=["tap", "leg=caller"]), Arrived),
        (message("ApplicationReplaced"), Replaced),
        (message("ChannelVarset", channel=CHANNEL), type(None)),
        (message("ChannelUserevent", eventname="Other", channel=CHANNEL), type(None)),
        (message("ChannelEnteredBridge", channel=CHANNEL,
                 bridge={"id": "b", "bridge_type": "holding"}), type(None)),
        ("{}", type(None)),
    ],
)  # fmt: skip
def test_each_kind_of_event_has_its_type(text: str, kind: type) -> None:
    assert type(parse(text)) is kind


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "what ARI sent is not JSON"),
        ("[" * 100_000, "what ARI sent is not JSON"),
        ("[]", "an event is not an object"),
        (message("ChannelCreated"),
         "ARI's ChannelCreated makes no sense: channel is not an object"),
        (message("ChannelCreated", channel={}),
         "ARI's ChannelCreated makes no sense: there is no id"),
        (message("ChannelDestroyed", channel={"id": "a\r\nb"}),
         "ARI's ChannelDestroyed makes no sense: there is no id"),
        (message("ChannelEnteredBridge", channel=CHANNEL, bridge={"id": "b", "channels": 1}),
         "ARI's ChannelEnteredBridge makes no sense: channels is not a list"),
        (message("StasisStart", channel=CHANNEL, args="tap"),
         "ARI's StasisStart makes no sense: args is not a list"),
        (message("ChannelUserevent", eventname="CallscribeTap", channel=CHANNEL,
                 userevent={"leg": "both"}),
         "ARI's ChannelUserevent makes no sense: Leg is neither caller nor callee"),
        (message("ChannelUserevent", eventname="CallscribeTap", channel=CHANNEL,
                 userevent={"call": "a b"}),
         "ARI's ChannelUserevent makes no sense: Call is no id: use ${UNIQUEID} or a UUID"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ProtocolError) as e:
        parse(text)
    assert str(e.value) == sentence


def test_texts_of_callers_cannot_end_a_line_nor_grow() -> None:
    odd = {**CHANNEL, "caller": {"number": "1\r\nAction: Hangup\u2028" + "x" * 300}}
    event = parse(message("ChannelCreated", channel=odd))
    assert isinstance(event, Seen)
    assert (
        event.channel.caller.startswith("1  Action: Hangup x") and len(event.channel.caller) == 256
    )


def test_a_user_event_is_a_wish() -> None:
    fields = {"eventname": "CallscribeTap", "channel": CHANNEL}
    assert parse(message("ChannelUserevent", **fields, userevent={})) == Asked(
        "1700000000.1", Wish()
    )
    said = {"CALL": "c1", "Leg": " Callee ", "Channel": "PJSIP/bob-1"}
    assert parse(message("ChannelUserevent", **fields, userevent=said)) == Asked(
        "PJSIP/bob-1", Wish("c1", "callee")
    )
    for said, consents in (("1", True), ("", False), ("no", False), ("11", False), (1, False)):
        assert parse(message("ChannelUserevent", **fields, userevent={"Consent": said})) == Asked(
            "1700000000.1", Wish(consents=consents)
        )


def test_listings_are_read() -> None:
    (channel,) = ari_events.channels(json.dumps([CHANNEL]))
    assert (channel.id, channel.state) == ("1700000000.1", "Up")
    one, two = ari_events.bridges(
        json.dumps([{"id": "a", "channels": ["1"]}, {"id": "b", "bridge_type": "holding"}])
    )
    assert (one.channels, one.talks, two.channels, two.talks) == (("1",), True, (), False)
    with pytest.raises(ProtocolError, match="^the answer is not a list$"):
        ari_events.channels("{}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"message": "Channel not found"}', "Channel not found"),
        ('{"message": "a\\nb"}', "a b"),
        ("<html>", ""),
        ("[]", ""),
        ('{"error": 1}', ""),
    ],
)
def test_what_an_error_says(text: str, said: str) -> None:
    assert ari_events.error_text(text) == said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    "channel caller peer bridge args userevent eventname id name state dialplan channelvars "
    "channels leg call consent CALLSCRIBE_CONSENT".split()
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*TYPES, PLACES]), st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON)))
def test_whatever_comes_it_is_an_event_or_a_sentence(kind: str, fields: dict[str, Any]) -> None:
    try:
        parse(json.dumps({"type": kind, "eventname": "CallscribeTap", **fields}))
    except ProtocolError as e:
        assert str(e).startswith(f"ARI's {kind} makes no sense: ")
