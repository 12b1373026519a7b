"""The event socket as text: what becomes bytes, and what bytes become."""

from __future__ import annotations

import pytest
from fake_esl import Reader, arguments, serialized
from hypothesis import HealthCheck, example, given
from hypothesis import settings as unhurried
from hypothesis import strategies as st

from bridge.errors import DeliveryError, ProtocolError
from bridge.pbx.esl_text import (
    BODY,
    HEADERS,
    VALUE,
    EslDecoder,
    EslMessage,
    EslValue,
    encode_command,
    is_channel,
    plain_event,
    quoted,
)

UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
REPLY = b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n"
API = b"Content-Type: api/response\nContent-Length: 4\n\n+OK\n"
EVENT = serialized(
    [("Event-Name", "CUSTOM"), ("Text", "it's 5 %, \u00fc"), ("None", "")], b"a\n\nb"
)
OUTER = b"Content-Length: %d\nContent-Type: text/event-plain\n\n" % len(EVENT) + EVENT
STREAM = b"Content-Type: auth/request\n\n" + REPLY + API + OUTER + REPLY

texts = st.text(max_size=300) | st.text(alphabet="\r\n\0 :\\'\u2028\x85aA", max_size=60)
relaxed = unhurried(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def decoded(data: bytes) -> list[EslMessage]:
    return EslDecoder().feed(data)


# -- out ------------------------------------------------------------------------------------------


def test_a_command_has_a_line_headers_and_a_body_of_so_many_bytes() -> None:
    wire = encode_command("sendevent CUSTOM", [("Leg", "caller"), ("Text", "ü")], "{ü}".encode())
    text = "sendevent CUSTOM\nLeg: caller\nText: ü\nContent-Length: 4\n\n{ü}"
    assert wire == text.encode()
    assert encode_command("nolog") == b"nolog\n\n"


@relaxed
@given(texts, texts)
@example("x\n\napi fsctl shutdown\n\n", "\rUnique-ID: x")
@example("please unload", "mod_event_socket")
def test_no_text_becomes_a_header_or_a_command(text: str, other: str) -> None:
    """Read as FreeSWITCH reads it: the same two headers, one command, and nothing that it traps."""
    headers = [("Text", text), ("Other", other)]
    reader = Reader()
    received = reader.feed(encode_command("sendevent CUSTOM", headers, b"\n\nexit\n\n"))
    assert [command.line for command in received] == ["sendevent CUSTOM"] and not reader.rest
    (command,) = received
    wanted = [(key, EslValue(value).lstrip(" ")) for key, value in headers]
    assert command.headers == [*wanted, ("Content-Length", "8")] and command.body == b"\n\nexit\n\n"
    assert b"mod_event_socket" not in command.block.lower()
    assert not any(value.startswith("ARRAY::") for _, value in command.headers)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("it's 5 % of ${a}; \u00fc\u6771", "it's 5 % of ${a}; \u00fc\u6771"),
        ("a\r\nb\0c\td\x85e\u2028f\u2029g\x7fh", "a  b c d e f g h"),
        ("unload MOD_event_socket now", "unload mod event socket now"),
        ("ARRAY::a|:b", "ARRAY: :a|:b"),
        ("  ARRAY::a", "ARRAY: :a"),
        ("not ARRAY::a", "not ARRAY::a"),
        ("\ud800", "?"),
    ],
)
def test_a_value_is_one_line_that_means_nothing_to_freeswitch(text: str, value: str) -> None:
    assert EslValue(text) == value


def test_a_long_value_is_cut_between_characters() -> None:
    assert EslValue("x" + "ü" * VALUE) == "x" + "ü" * (VALUE // 2 - 1)


@pytest.mark.parametrize(
    "key", ["", "Te\nxt", "T:", "Content-Length", "UNIQUE-ID", "_body", "a[1]"]
)
def test_a_header_that_would_mean_something_else_is_refused(key: str) -> None:
    with pytest.raises(DeliveryError, match="cannot be a header of ours") as e:
        encode_command("sendevent CUSTOM", [(key, "v")])
    assert e.value.permanent


@pytest.mark.parametrize(
    "line", ["auth a\nexit", "api x\r", "nolog\0", "api unload mod_event_socket"]
)
def test_a_line_is_checked_and_never_repaired(line: str) -> None:
    with pytest.raises(DeliveryError, match="control characters in it, or names its module"):
        encode_command(line)


@relaxed
@given(texts)
@example("it's John's")
@example("a\\'b\\\\ \\n")
def test_an_argument_arrives_as_it_was(text: str) -> None:
    wire = encode_command(f"api uuid_setvar {UUID} CALLSCRIBE_TEXT {quoted(text)}")
    (command,) = Reader().feed(wire)
    channel, name, *value = arguments(command.line.removeprefix("api uuid_setvar "))
    assert (channel, name) == (UUID, "CALLSCRIBE_TEXT")
    assert value in ([EslValue(text).strip(" ")], [])


def test_a_channel_is_a_uuid() -> None:
    assert is_channel(UUID) and is_channel(UUID.upper())
    for other in ("", "PJSIP/a-00000001", f"{UUID} x", f"{UUID}\n", UUID[:-1], f"'{UUID}'"):
        assert not is_channel(other)


# -- in -------------------------------------------------------------------------------------------


def test_replies_and_events_are_told_apart() -> None:
    auth, reply, api, event, last = decoded(STREAM)
    assert auth.kind == "auth/request"
    assert (reply.kind, reply.answer) == ("command/reply", "+OK accepted")
    assert (api.kind, api.answer, api.body) == ("api/response", "+OK", b"+OK\n")
    assert last == reply
    inner = plain_event(event)
    assert inner.headers == {
        "event-name": "CUSTOM", "text": "it's 5 %, \u00fc", "none": "", "content-length": "4",
    }  # fmt: skip
    assert inner.body == b"a\n\nb"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_any_cut_of_the_stream_gives_the_same_messages(size: int) -> None:
    decoder = EslDecoder()
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [m for piece in pieces for m in decoder.feed(piece)] == decoded(STREAM)


@relaxed
@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_wherever_it_is_cut(cuts: list[int]) -> None:
    decoder = EslDecoder()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert [m for piece in pieces for m in decoder.feed(piece)] == decoded(STREAM)


@unhurried(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from([b"\n", b"\n\n", b"Content-Length: 3\n", b"content-length: -1\n", REPLY]),
        max_size=30,
    )
)
def test_garbage_is_messages_or_a_protocol_error(pieces: list[bytes]) -> None:
    decoder = EslDecoder()
    try:
        for message in (m for piece in pieces for m in decoder.feed(piece)):
            assert message.kind is not None and "\n" not in message.answer
            plain_event(message)
    except ProtocolError:
        pass


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "9" * 30, "\u0663"])
def test_a_length_that_is_no_number_ends_it(length: str) -> None:
    with pytest.raises(ProtocolError, match="^FreeSWITCH sent a Content-Length that is no number$"):
        decoded(f"Content-Length: {length}\n\n".encode())


def test_bodies_and_headers_are_bounded() -> None:
    with pytest.raises(ProtocolError, match=f"a body of more than {BODY} bytes"):
        decoded(b"Content-Length: %d\n\n" % (BODY + 1))
    for endless in (b"x" * (HEADERS + 1), b"a: b\n" * HEADERS):
        with pytest.raises(ProtocolError, match=f"more than {HEADERS} bytes of headers"):
            decoded(endless)


def test_empty_lines_between_messages_and_carriage_returns_are_nothing() -> None:
    odd = b"\n\r\n" + REPLY.replace(b"\n", b"\r\n") + b"\n" + REPLY
    assert decoded(odd) == decoded(REPLY + REPLY)


def test_the_first_of_repeated_headers_counts() -> None:
    (message,) = decoded(b"A: 1\na: 2\nB:3\nno colon\n\n")
    assert message.headers == {"a": "1", "b": "3", "no colon": ""}


def test_an_event_keeps_bytes_that_are_no_text() -> None:
    message = EslMessage({}, b"Name: %FF%zz+a\nReply: x\n\n\xff\0")
    assert plain_event(message) == EslMessage({"name": "\ufffd%zz+a", "reply": "x"}, b"\xff\0")
    assert plain_event(EslMessage({})) == EslMessage({})


@relaxed
@given(st.dictionaries(st.from_regex("[a-z][a-z-]{0,9}", fullmatch=True), texts), st.binary())
def test_an_event_survives_the_way_through_freeswitch(headers: dict[str, str], body: bytes) -> None:
    headers.pop("content-length", None)
    data = serialized([(k, EslValue(v)) for k, v in headers.items()], body)
    (message,) = decoded(
        b"Content-Type: text/event-plain\nContent-Length: %d\n\n" % len(data) + data
    )
    found = plain_event(message)
    assert found.body == body
    assert {k: found.headers[k] for k in headers} == {k: EslValue(v) for k, v in headers.items()}
