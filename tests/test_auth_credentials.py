"""Each client's place for its key, and nothing that any client could send breaks them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.auth_credentials import (
    LONGEST,
    LONGEST_PART,
    basic,
    bearer,
    header,
    looks_like_jwt,
    pair,
    query,
    read_knock,
    subprotocol,
    token,
    twilio,
)
from bridge.auth_types import Knock, Pair, Secret, Signature
from bridge.errors import ProtocolError
from tests.knocks import CANARY, knock


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_every_place() -> None:
    assert bearer(knock(authorization="Bearer abc")) == (Secret("abc", "Authorization: Bearer"),)
    assert bearer(knock(authorization="bEARER  abc ")) == (Secret("abc", "Authorization: Bearer"),)
    assert token(knock(authorization="Token abc")) == (Secret("abc", "Authorization: Token"),)
    assert basic(knock(authorization=f"Basic {encoded('pbx:p:w')}")) == (
        Pair("pbx", "p:w", "Authorization: Basic"),
    )
    assert header(knock(kyutai_api_key="abc"), "kyutai-api-key") == (
        Secret("abc", "kyutai-api-key"),
    )
    assert header(knock(x_api_key="abc"), "X-API-KEY") == (Secret("abc", "X-API-KEY"),)
    assert query(knock(query={"auth_id": "abc"}), "auth_id") == (Secret("abc", "?auth_id="),)
    assert pair(knock(modal_key="wk-1", modal_secret="ws-2")) == (
        Pair("wk-1", "ws-2", "Modal-Key and Modal-Secret"),
    )
    assert pair(knock(a="1", b="2"), "A", "B") == (Pair("1", "2", "A and B"),)
    offered = "realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1"
    assert subprotocol(knock(sec_websocket_protocol=offered)) == (
        Secret("sk-1", "Sec-WebSocket-Protocol"),
    )
    assert twilio(knock(x_twilio_signature="abc=")) == (
        Signature("abc=", "", "X-Twilio-Signature"),
    )


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer   ", "Digest abc", "Bearerabc", f"Bearer {'a' * 8193}"],
)
def test_no_bearer(value: str) -> None:
    assert bearer(knock(authorization=value)) == ()


@pytest.mark.parametrize(
    "text", ["nocolon", ":empty", "empty:", "a" * 513 + ":b", "a:" + "b" * 513]
)
def test_no_basic(text: str) -> None:
    assert basic(knock(authorization=f"Basic {encoded(text)}")) == ()


@pytest.mark.parametrize("value", ["Basic !!!", "Basic YWJj=", "Basic /////w==", "Basic ü"])
def test_basic_that_is_not_base64_of_text(value: str) -> None:
    assert basic(knock(authorization=value)) == ()


def test_a_request_as_it_was_sent() -> None:
    target = "/v1/a%20b?token=x%2Fy&model=&token=last"
    headers = [("Origin", "https://a"), ("ORIGIN", "https://b"), ("X-Api-Key", "k")]
    knocked = read_knock(target, headers, "192.0.2.7")
    assert (knocked.path, knocked.raw_path, knocked.host) == ("/v1/a b", target, "192.0.2.7")
    assert knocked.query == {"token": "last", "model": ""}
    assert knocked.headers == {"origin": "https://a, https://b", "x-api-key": "k"}


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("", "the request's target must be a path"),
        ("https://evil.example/t", "the request's target must be a path"),
        ("/t#x", "the request's target must be a path"),
        ("/t?" + "&".join("a=b" for _ in range(65)), "a URL has at most 64 parameters here"),
    ],
)
def test_a_request_that_is_none(target: str, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{sentence}$"):
        read_knock(target, [], "192.0.2.7")


@settings(deadline=None)
@given(st.text(), st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9))))
def test_any_request_is_read_or_refused(target: str, headers: list[tuple[str, str]]) -> None:
    for text in (target, f"/{target}"):
        try:
            knocked = read_knock(text, headers, "192.0.2.7")
        except ProtocolError:
            continue
        assert knocked.raw_path == text
        assert set(knocked.headers) == {name.lower() for name, _ in headers}


def test_no_other_place() -> None:
    nothing = knock()
    for found in (
        bearer(nothing), token(nothing), basic(nothing), header(nothing, "x"), query(nothing, "x"),
        pair(nothing), subprotocol(nothing), twilio(nothing),
        pair(knock(modal_key="a")), pair(knock(modal_secret="a")),
        subprotocol(knock(sec_websocket_protocol="openai-insecure-api-key.")),
        twilio(knock(x_twilio_signature="a" * 513)),
        query(knock(query={"token": ""}), "token"),
    ):  # fmt: skip
        assert found == ()


def test_two_headers_of_one_name_are_no_key() -> None:
    """They arrive joined; whichever of them a proxy had looked at, we take neither."""
    [found] = bearer(knock(authorization="Bearer abc, Bearer abc"))
    assert found.value == "abc, Bearer abc"


def test_nothing_shows_a_secret() -> None:
    knocked = knock(
        authorization=f"Bearer {CANARY}", query={"token": CANARY}, raw_path=f"/v1?token={CANARY}"
    )
    both = knock(authorization=f"Basic {encoded(f'{CANARY}:{CANARY}')}", x_twilio_signature=CANARY)
    assert CANARY not in repr([knocked, *bearer(knocked), *query(knocked, "token")])
    assert CANARY not in repr([*basic(both), *twilio(both)])
    assert [len(found) for found in (bearer(knocked), basic(both), twilio(both))] == [1, 1, 1]


def test_what_looks_like_a_token() -> None:
    assert looks_like_jwt("eyJh.eyJh.")
    assert not looks_like_jwt("cs_abc") and not looks_like_jwt("eyJh.eyJh")


LETTERS = st.text(st.characters(exclude_categories=[]), max_size=80)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([
    "authorization", "modal-key", "modal-secret", "x-api-key", "sec-websocket-protocol",
    "x-twilio-signature", "x-twilio-webhooks-signature-settings",
]), LETTERS | LETTERS.map(lambda text: f"Basic {text}") | LETTERS.map(lambda t: f"Bearer {t}")),
    st.dictionaries(st.just("token"), LETTERS))  # fmt: skip
def test_anything_may_be_sent(headers: dict[str, str], parameters: dict[str, str]) -> None:
    knocked = Knock("/", parameters, headers, "192.0.2.7")
    for found in (
        bearer(knocked), token(knocked), basic(knocked), header(knocked, "x-api-key"),
        pair(knocked), query(knocked, "token"), subprotocol(knocked), twilio(knocked),
    ):  # fmt: skip
        assert len(found) <= 1
        for credential in found:
            assert 0 < len(credential.value) <= LONGEST


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), min_size=1),
       st.text(st.characters(exclude_categories=["Cs"]), min_size=1))  # fmt: skip
def test_basic_is_read_as_it_was_written(user: str, password: str) -> None:
    found = basic(knock(authorization=f"Basic {encoded(f'{user}:{password}')}"))
    if max(len(user), len(password)) <= LONGEST_PART:
        assert found == (Pair(user, password, "Authorization: Basic"),)
