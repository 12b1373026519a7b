"""What may stand in an AMI line, and what a message says."""

from __future__ import annotations

import unicodedata

import pytest
from fake_ami import Reader
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.errors import DeliveryError, ProtocolError
from bridge.pbx import ami_text
from bridge.pbx.ami_text import AmiDecoder, AmiValue, announcement, encode_action, split_value

UUID = "dd2cdbc7-9313-414e-8303-0975dad6d2d7"
ANY_TEXT = st.text(st.characters(), max_size=1200)  # surrogates and controls too
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.sampled_from(["Text", "CallID", "x-y_9", "Channel"])


def executed(wire: bytes) -> list[list[tuple[str, str]]]:
    """What Asterisk would make of these bytes; nothing may be left over."""
    reader = Reader()
    received = reader.feed(wire)
    assert reader.rest == b"" and not reader.headers
    assert [message.error for message in received] == [""] * len(received)
    return [message.headers for message in received]


def expected(text: str) -> str:
    """The documented replacement, said another way than the code says it."""
    lines = {"\u2028", "\u2029"}
    spaced = (" " if unicodedata.category(c) == "Cc" or c in lines else c for c in text)
    return "".join("?" if unicodedata.category(c) == "Cs" else c for c in spaced)


# -- values ---------------------------------------------------------------------------------------


@UNHURRIED
@given(ANY_TEXT)
def test_a_value_loses_controls_and_nothing_else(text: str) -> None:
    assert AmiValue(text) == expected(text)


@pytest.mark.parametrize("control", ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028"])
def test_each_control_becomes_one_space(control: str) -> None:
    assert AmiValue(f"a{control}b") == "a b"


@UNHURRIED
@given(ANY_TEXT, st.integers(8, 900))
@example("a " * 600, 900)
@example(" " * 2000, 900)
@example("\U0001f642" * 500, 901)
def test_pieces_join_to_the_whole(text: str, room: int) -> None:
    value = AmiValue(text)
    pieces = split_value(value, room)
    assert "".join(pieces) == value
    assert all(len(piece.encode()) <= room for piece in pieces)
    assert all(pieces) or not value


def test_no_piece_begins_or_ends_with_a_space() -> None:
    pieces = split_value(AmiValue("one two three four five " * 100), 50)
    assert len(pieces) > 40
    assert not any(p.startswith(" ") for p in pieces[1:])
    assert not any(p.endswith(" ") for p in pieces[:-1])


# -- actions --------------------------------------------------------------------------------------


@UNHURRIED
@given(
    st.lists(st.tuples(KEYS, ANY_TEXT.filter(lambda t: len(t.encode("utf-8", "replace")) < 850)))
)
@example([("Text", "hello\nChannel: PJSIP/evil")])
@example([("Text", "x\r\n\r\nAction: Originate\r\nChannel: Local/1@out\r\n\r\n")])
@example([("Text", "x\n\nAction: CoreStatus\nActionID: smuggled\n\nrest")])
@example([("Text", "cut\0here"), ("Text", "\r"), ("Text", "")])
def test_any_text_is_one_action_with_exactly_these_headers(headers: list[tuple[str, str]]) -> None:
    (got,) = executed(encode_action("UserEvent", "id-1", headers))
    clean = [(key, expected(value)) for key, value in headers]
    assert got == [("Action", "UserEvent"), ("ActionID", "id-1"), *clean]


@UNHURRIED
@given(ANY_TEXT, ANY_TEXT.map(lambda t: t[:200]))
def test_any_text_comes_back_from_its_lines(text: str, action_id: str) -> None:
    (got,) = executed(encode_action("UserEvent", action_id, [("Text", text)]))
    assert got[1] == ("ActionID", expected(action_id))
    texts = [(key, value) for key, value in got if key.startswith("Text")]
    assert "".join(value for _, value in texts) == expected(text)
    assert [key for key, _ in texts[1:]] == [f"Text-{n}" for n in range(2, len(texts) + 1)]
    assert all(len(f"{key}: {value}".encode()) <= 900 for key, value in texts)


def test_a_line_of_900_bytes_is_one_line_and_901_are_two() -> None:
    (fits,) = executed(encode_action("UserEvent", "i", [("Text", "x" * 894)]))
    (more,) = executed(encode_action("UserEvent", "i", [("Text", "x" * 895)]))
    assert len(fits) == 3 and len(more) == 4


def test_what_exceeds_128_headers_is_left_out_and_said() -> None:
    text = "слово " * 100_000
    (got,) = executed(encode_action("UserEvent", "i", [("Seq", "1"), ("Text", text)]))
    assert len(got) == 128 and got[-1] == ("Truncated", "yes")
    assert text.startswith("".join(value for key, value in got if key.startswith("Text")))


def test_other_actions_are_refused_rather_than_split() -> None:
    fits = [("Variable", "V"), ("Value", "x" * 1015)]
    assert executed(encode_action("Setvar", "i", fits))[0][-1] == ("Value", "x" * 1015)
    with pytest.raises(DeliveryError, match="more than the 1022 bytes .* shorten") as e:
        encode_action("Setvar", "i", [("Value", "x" * 1016)])
    assert e.value.permanent


def test_a_long_action_id_is_refused() -> None:
    with pytest.raises(DeliveryError, match="1022 bytes"):
        encode_action("UserEvent", "x" * 1100, [])


@pytest.mark.parametrize(
    "key", ["", "Te xt", "Text:", "A\nB", "Täxt", "ACTION", "ActionId", "x" * 65]
)
def test_a_header_name_is_never_repaired(key: str) -> None:
    with pytest.raises(DeliveryError, match="cannot be an AMI header") as e:
        encode_action("UserEvent", "i", [(key, "v")])
    assert e.value.permanent


# -- messages -------------------------------------------------------------------------------------

BANNER = b"Asterisk Call Manager/11.0.0\r\n"
STREAM = (
    BANNER
    + (
        "Response: Success\r\nActionID: 1\r\nMessage: grüße 東京 🙂\r\n\r\n"
        "Event: VarSet\r\nValue: a: b\r\nEmpty: \r\nBare\r\n\r\n"
    ).encode()
)
MESSAGES = [
    [("Response", "Success"), ("ActionID", "1"), ("Message", "grüße 東京 🙂")],
    [("Event", "VarSet"), ("Value", "a: b"), ("Empty", ""), ("Bare", "")],
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50, 1000])
def test_messages_survive_every_split(size: int) -> None:
    decoder, messages = AmiDecoder(), []
    for i in range(0, len(STREAM), size):
        messages += decoder.feed(STREAM[i : i + size])
    assert messages == MESSAGES
    assert decoder.version == "11.0.0"


def test_bytes_that_are_no_utf8_cost_a_character() -> None:
    assert AmiDecoder().feed(BANNER + b"Event: A\xff\xfeB\n\n") == [[("Event", "A\ufffd\ufffdB")]]


@pytest.mark.parametrize(
    "junk", [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 400", b"\r\n", b"Asterisk\n"]
)
def test_another_server_is_recognised(junk: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"not an Asterisk Manager.*ami\.port"):
        AmiDecoder().feed(junk)


def test_a_message_too_big_is_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ami_text, "MESSAGE", 100)
    decoder = AmiDecoder()
    decoder.feed(BANNER)
    assert decoder.feed(b"Event: A\n" + b"k: v\n" * 50 + b"\nEvent: B\n\n") == [[("Event", "B")]]
    assert decoder.oversized == 1


def test_the_end_of_an_endless_line_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ami_text, "MESSAGE", 100)
    decoder = AmiDecoder()
    decoder.feed(BANNER + b"Event: A\n")
    for _ in range(5):
        assert decoder.feed(b"x" * 101) == []
        assert len(decoder._rest) <= 101
    assert decoder.feed(b"\nEvent: Fake\n\nEvent: B\n\n") == [[("Event", "B")]]
    assert decoder.oversized == 1


@UNHURRIED
@given(st.binary(max_size=500))
def test_any_bytes_are_messages_or_an_error(data: bytes) -> None:
    decoder = AmiDecoder()
    decoder.feed(BANNER)
    for message in decoder.feed(data):
        assert message


# -- announcements --------------------------------------------------------------------------------

SNAPSHOT = {
    "channel": "PJSIP/anonymous-00000008",
    "calleridnum": "alice",
    "connectedlinenum": "<unknown>",
    "context": "lab",
    "exten": "9170",
    "uniqueid": "1790000000.8",
    "linkedid": "1790000000.7",
}
JOIN = ["CALLSCRIBE_ID"]


def varset(**changes: str) -> dict[str, str]:
    return {"event": "VarSet", **SNAPSHOT, "variable": "CALLSCRIBE_ID", "value": UUID, **changes}


def leg(**changes: str) -> dict[str, str]:
    return {"event": "UserEvent", **SNAPSHOT, "userevent": "CallscribeLeg", "id": UUID, **changes}


def test_a_variable_joins_uuid_and_channel() -> None:
    found = announcement(varset(value=UUID.upper()), JOIN)
    assert found is not None
    assert (found.uuid, found.call, found.leg) == (UUID, "", "caller")
    info = found.info
    assert (info.id, info.channel, info.uniqueid) == ("", SNAPSHOT["channel"], "1790000000.8")
    assert (info.linkedid, info.caller, info.callee) == ("1790000000.7", "alice", "9170")
    assert (info.context, info.exten) == ("lab", "9170")


def test_unknown_numbers_are_empty_and_s_is_no_number() -> None:
    found = announcement(varset(calleridnum="<unknown>", exten="s", connectedlinenum="12"), JOIN)
    assert found is not None
    assert (found.info.caller, found.info.callee, found.info.exten) == ("", "12", "s")


def test_a_userevent_announces_a_leg_of_a_call() -> None:
    event = leg(call=" 1790000000.7 ", leg="Callee", exten="s", connectedlinenum="4711")
    found = announcement(event, JOIN)
    assert found is not None
    assert (found.call, found.leg) == ("1790000000.7", "callee")
    assert (found.info.caller, found.info.callee) == ("4711", "alice")  # on the callee's channel


def test_a_userevent_needs_no_more_than_its_id() -> None:
    found = announcement({"event": "UserEvent", "userevent": "CallscribeLeg", "id": UUID}, JOIN)
    assert found is not None
    assert (found.call, found.leg, found.info.channel) == ("", "caller", "")


def test_blanks_around_an_id_are_no_harm() -> None:
    found = announcement(leg(id=f" {UUID.upper()} "), JOIN)
    assert found is not None and found.uuid == UUID


@pytest.mark.parametrize(
    "event",
    [
        varset(variable="OTHER"),
        varset(variable="__CALLSCRIBE_ID"),  # shows again on every channel that is dialled
        varset(value=""),
        leg(userevent="Transcript"),
        {"event": "Newexten", **SNAPSHOT},
        {"response": "Success"},
    ],
)
def test_other_events_are_none_of_ours(event: dict[str, str]) -> None:
    assert announcement(event, JOIN) is None


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (varset(value="42"), "no UUID"),
        (leg(id=f"{UUID}x"), "no UUID"),
        (leg(id=""), "no UUID"),
        (leg(leg="both"), "neither caller nor callee"),
        (leg(call="a b"), "Call is no id"),
        (leg(call="x" * 129), "Call is no id"),
    ],
)
def test_a_bad_announcement_says_what_is_wrong(event: dict[str, str], sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        announcement(event, JOIN)


def test_what_a_caller_calls_himself_is_cleaned_and_bounded() -> None:
    found = announcement(varset(calleridnum="\x1b[31mred" + "x" * 1000), JOIN)
    assert found is not None
    assert found.info.caller.startswith("[31mred") and len(found.info.caller) <= 256
