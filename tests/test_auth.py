"""Who comes in, who does not, and what they are told."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import subprocess
import sys
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.auth import Auth, Credential, Denied, Identity, KeysWanted, Knock, Pair, Secret
from bridge.auth_credentials import bearer, query, twilio
from bridge.config import Address
from bridge.config_auth import AuthSettings
from tests.knocks import CANARY, ISSUER, NOW, jwk, jwks, knock, rsa_key, token
from tests.test_auth_twilio import signed

KEY, OTHER = "cs_" + "k" * 40, "cs_" + "o" * 40
SECRET = "s" * 32
JWT = {"audience": "callscribe", "issuer": ISSUER, "secret": SECRET, "algorithms": ["HS256"]}
TWILIO = {"auth_token": "t" * 32}
PAGES = [Address("127.0.0.1", 8001)]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def auth(**more: Any) -> Auth:
    """One key, of the dialer, if nothing else is asked for."""
    given = more or {"key": [{"name": "dialer", "sha256": sha256(KEY)}]}
    return Auth(AuthSettings.model_validate(given), pages=PAGES)


def with_key(**more: Any) -> Auth:
    return auth(key=[{"name": "dialer", "sha256": sha256(KEY), **more}])


def show(text: str) -> list[Credential]:
    return [Secret(text, "Authorization: Bearer")]


def denied(
    door: Auth, knocked: Knock | None = None, credentials: list[Credential] | None = None,
    now: float = NOW,
) -> Denied:  # fmt: skip
    with pytest.raises(Denied) as e:
        door.check(knocked or knock(), credentials or [], now)
    text = "".join(traceback.format_exception(e.value))
    assert KEY not in text and SECRET not in text and CANARY not in str(e.value)
    return e.value


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_opens_and_has_a_name() -> None:
    door = auth()
    assert door.check(knock(), show(KEY), NOW) == Identity("dialer", "key")
    assert door.counters == {"accepted_key": 1}


@pytest.mark.parametrize("text", ["", OTHER, KEY[:-1], KEY + "x", KEY.upper(), sha256(KEY), "ü"])
def test_any_other_key_does_not(text: str) -> None:
    door = auth()
    wrong = denied(door, None, show(text))
    assert (wrong.status, wrong.reason) == (401, "key")
    assert wrong.sentence == "the key in Authorization: Bearer is wrong"
    assert door.counters == {"denied_key": 1}


def test_no_key_at_all() -> None:
    missing = denied(auth())
    assert (missing.status, missing.reason) == (401, "missing")


def test_the_first_of_several_that_is_right_counts() -> None:
    door = auth(key=[{"name": "a", "sha256": sha256(KEY)}, {"name": "b", "secret": OTHER}])
    both: list[Credential] = [*show("wrong"), Secret(OTHER, "?token="), *show(KEY)]
    assert door.check(knock(), both, NOW).name == "b"
    many: list[Credential] = [*show("wrong") * 8, *show(KEY)]
    assert denied(door, None, many).reason == "key"  # no more than eight are tried


def test_a_key_of_two_parts() -> None:
    door = with_key(id="wk-1")
    assert door.check(knock(), [Pair("wk-1", KEY, "")], NOW).name == "dialer"
    for wrong in (Pair("wk-2", KEY, ""), Pair("dialer", KEY, ""), Pair("wk-1", OTHER, "")):
        assert denied(door, None, [wrong]).reason == "key"
    assert denied(door, None, show(KEY)).reason == "key"  # half of it


def test_a_key_of_one_part_goes_by_its_name_where_a_client_sends_two() -> None:
    door = auth()
    assert door.check(knock(), [Pair("dialer", KEY, "")], NOW).name == "dialer"
    assert denied(door, None, [Pair("other", KEY, "")]).reason == "key"


def test_a_key_for_some_paths() -> None:
    door = with_key(paths=["/v1/listen", "/twilio/*"])
    for path in ("/v1/listen", "/twilio/", "/twilio/a/b"):
        assert door.check(knock(path), show(KEY), NOW)
    for path in ("/v1/listen/", "/v1", "/twilio", "/", "//v1/listen"):
        no = denied(door, knock(path), show(KEY))
        assert (no.status, no.sentence) == (403, "dialer may not use this path")
        assert not no.wrong  # nobody is guessing


def test_a_keys_rate() -> None:
    door = with_key(rate=2)
    for _ in range(2):
        door.check(knock(), show(KEY), NOW)
    slow = denied(door, None, show(KEY))
    assert (slow.status, slow.reason, slow.retry_after) == (429, "rate", 0.5)
    assert slow.sentence == "dialer may open 2 connections a second"
    assert door.check(knock(), show(KEY), NOW + 0.5)


def test_a_slow_rate_still_lets_one_in() -> None:
    door = with_key(rate=0.1)
    assert door.check(knock(), show(KEY), NOW)
    assert denied(door, None, show(KEY)).retry_after == pytest.approx(10)


def test_a_keys_connections() -> None:
    door = with_key(max_connections=1)
    who = door.check(knock(), show(KEY), NOW)
    again = door.check(knock(), show(KEY), NOW)  # both are on their way
    door.opened(who, "192.0.2.7")
    with pytest.raises(Denied, match="^dialer has its 1 connections"):
        door.opened(again, "192.0.2.7")
    assert denied(door, None, show(KEY)).reason == "key_connections"
    assert door.counters["denied_key_connections"] == 2
    door.closed(who, "192.0.2.7")
    door.opened(again, "192.0.2.7")
    assert len(door) == 1


def test_connections_of_an_address() -> None:
    door = auth(max_connections_per_address=1, key=[{"name": "dialer", "secret": KEY}])
    door.opened(door.check(knock(), show(KEY), NOW), "192.0.2.7")
    assert denied(door, None, show(KEY)).reason == "address_connections"
    assert door.check(knock(host="192.0.2.8"), show(KEY), NOW)


def test_what_is_wrong_takes_as_long_as_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is passed over, wherever the right one stands, and Twilio's variants are all tried."""
    compared = 0

    def counting(a: bytes, b: bytes) -> bool:
        nonlocal compared
        compared += 1
        return a == b

    monkeypatch.setattr("hmac.compare_digest", counting)
    keys = [{"name": f"k{i}", "secret": f"{KEY}{i}"} for i in range(5)]
    door = auth(key=keys, twilio=TWILIO, public_url="wss://x")
    url = signed("wss://x/t")
    shown: list[list[Credential]] = [
        show(f"{KEY}0"), show(f"{KEY}4"), show("wrong"), show("cs_"),
    ]  # fmt: skip
    counts = set()
    for credentials in shown:
        compared = 0
        with contextlib.suppress(Denied):
            door.check(knock(), credentials, NOW)
        counts.add(compared)
    assert counts == {5}
    counts = set()
    for value in (url, "wrong", signed("wss://x:443/t/")):
        compared = 0
        knocked = knock("/t", x_twilio_signature=value)
        with contextlib.suppress(Denied):
            door.check(knocked, [*twilio(knocked)], NOW)
        counts.add(compared)
    assert counts == {4}


# -- failures -------------------------------------------------------------------------------------


def test_an_address_that_keeps_guessing_has_to_wait(caplog: pytest.LogCaptureFixture) -> None:
    door = auth(max_failures=3, failure_wait=30, key=[{"name": "dialer", "secret": KEY}])
    for i in range(4):
        assert denied(door, None, show(f"{CANARY} {i}")).status == 401
    waiting = denied(door, None, show(KEY))  # also with the right one
    assert (waiting.status, waiting.reason, waiting.retry_after) == (429, "failures", 30.0)
    assert door.check(knock(host="192.0.2.8"), show(KEY), NOW)
    assert door.check(knock(), show(KEY), NOW + 30)
    assert caplog.messages == ["192.0.2.7: too many wrong keys; it has to wait"]


def test_whoever_shows_nothing_guesses_nothing() -> None:
    """A load balancer's probe."""
    door = auth(max_failures=1, key=[{"name": "dialer", "secret": KEY}])
    assert {denied(door).status for _ in range(10)} == {401}


def test_no_guess_hides_behind_what_is_not_one() -> None:
    """A signature that cannot be judged, a token whose key may yet be found."""
    strange = show(token(kid="new"))
    unjudged = [*twilio(knock(x_twilio_signature="x"))]
    for other, status in ((strange, 503), (unjudged, 403)):
        door = auth(jwt=from_provider(), max_failures=2, key=[{"name": "dialer", "secret": KEY}])
        for _ in range(3):
            assert denied(door, None, [*show("wrong"), *other]).status == status
        assert denied(door, None, show(KEY)).status == 429


def test_a_proxy_on_this_machine_never_waits() -> None:
    door = auth(max_failures=1, key=[{"name": "dialer", "secret": KEY}])
    proxied = knock(host="127.0.0.1", x_forwarded_for="203.0.113.9")
    assert {denied(door, proxied, show("wrong")).status for _ in range(10)} == {401}


def test_a_host_with_many_ipv6_addresses_is_one() -> None:
    door = auth(max_failures=2, key=[{"name": "dialer", "secret": KEY}])
    for i in range(3):
        denied(door, knock(host=f"2001:db8::{i}"), show("wrong"))
    assert denied(door, knock(host="2001:db8::99"), show(KEY)).status == 429


# -- this machine ---------------------------------------------------------------------------------


OPEN: dict[str, Any] = {"max_failures": 5}  # nothing that anybody would have to show


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.8.8.8"])
def test_without_any_key_this_machine_is_served(host: str) -> None:
    door = auth(**OPEN)
    nobody = Identity("loopback", "loopback")
    assert door.check(knock(host=host), [], NOW) == nobody
    assert door.check(knock(host=host), show("public_token"), NOW) == nobody
    door.opened(nobody, host)
    door.closed(nobody, host)


def test_without_any_key_nobody_else_is_served() -> None:
    for host in ("192.0.2.7", "::2", "", "localhost"):
        for credentials in ([], show("public_token")):
            no = denied(auth(**OPEN), knock(host=host), credentials)
            assert (no.status, no.reason) == (401, "not_loopback")


@pytest.mark.parametrize(
    "header", ["forwarded", "x_forwarded_for", "x_real_ip", "via", "x_forwarded_host"]
)
def test_a_proxy_on_this_machine_is_not_this_machine(header: str) -> None:
    proxied = knock(host="127.0.0.1", **{header: "127.0.0.1"})
    assert denied(auth(**OPEN), proxied).reason == "not_loopback"


def test_a_key_where_none_is_configured_is_as_good_as_none() -> None:
    """Clients of clouds cannot be told to show nothing."""
    assert auth(**OPEN).check(knock(host="127.0.0.1"), show(KEY), NOW).name == "loopback"


def test_with_a_key_this_machine_needs_it_too() -> None:
    assert denied(auth(), knock(host="127.0.0.1")).status == 401
    assert denied(auth(), knock(host="127.0.0.1"), show("public_token")).status == 401


# -- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["https://app.example.org", "https://APP.example.org:443", "http://10.1.1.1:3000"]
)
def test_a_page_that_is_allowed(origin: str) -> None:
    door = auth(
        allow_origins=["https://App.example.org", "http://10.1.1.1:3000"],
        key=[{"name": "dialer", "secret": KEY}],
    )
    assert door.check(knock(origin=origin), show(KEY), NOW)
    assert denied(door, knock(origin=origin)).reason == "missing"  # it is no key


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "null", "", "https://app.example.org.evil.example",
        "http://app.example.org", "https://app.example.org, https://evil.example", "file://",
        "https://app.example.org/", "https://me@app.example.org", "https://[", "http://127.0.0.1",
        "http://127.0.0.1:8002", "http://evil.example:8001",
    ],
)  # fmt: skip
def test_a_page_that_is_not(origin: str) -> None:
    """Whatever it shows, and also from this machine: DNS rebinding comes from there."""
    door = auth(allow_origins=["https://app.example.org"], key=[{"name": "d", "secret": KEY}])
    for host in ("192.0.2.7", "127.0.0.1"):
        for checker in (door, auth(**OPEN)):
            no = denied(checker, knock(origin=origin, host=host), show(KEY))
            assert (no.status, no.reason) == (403, "origin")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_our_own_page_on_this_machine(name: str) -> None:
    page = knock(origin=f"http://{name}:8001", host="127.0.0.1")
    assert auth(**OPEN).check(page, [], NOW).kind == "loopback"
    elsewhere = knock(origin=f"http://{name}:8001")
    assert denied(auth(), elsewhere, show(KEY)).reason == "origin"
    nobodys = Auth(AuthSettings(), pages=[Address("192.0.2.1", 8001)])
    assert denied(nobodys, page).reason == "origin"


# -- tokens and signatures ------------------------------------------------------------------------


def hs256(**more: Any) -> list[Credential]:
    return show(token(SECRET, algorithm="HS256", **more))


def test_a_token_opens() -> None:
    door = auth(jwt=JWT, key=[{"name": "dialer", "secret": KEY}])
    assert door.check(knock(), hs256(), NOW) == Identity("alice", "jwt")
    assert door.check(knock(), show(KEY), NOW) == Identity("dialer", "key")
    expired = denied(door, None, hs256(exp=NOW - 60))
    assert (expired.status, expired.sentence) == (401, "the token has expired")
    assert denied(door, None, show("a.b.c")).reason == "key"


def test_a_token_where_none_are_taken() -> None:
    assert denied(auth(), None, hs256()).reason == "key"


def test_wrong_tokens_count_as_guesses() -> None:
    door = auth(jwt=JWT, max_failures=1)
    for _ in range(2):
        assert denied(door, None, hs256(exp=NOW - 60)).status == 401
    assert denied(door, None, hs256()).status == 429


def test_limits_of_a_subject() -> None:
    door = auth(jwt={**JWT, "max_connections": 1, "rate": 1, "paths": ["/v1/*"]})
    alice = door.check(knock(), hs256(), NOW)
    door.opened(alice, "192.0.2.7")
    assert denied(door, None, hs256()).reason == "key_connections"
    assert door.check(knock(), hs256(sub="bob"), NOW).name == "bob"
    assert denied(door, None, hs256(sub="bob")).reason == "rate"
    assert denied(door, knock("/other"), hs256(sub="carol")).reason == "path"


def test_a_token_is_used_up_only_by_coming_in() -> None:
    door = auth(jwt={**JWT, "one_time": True, "max_connections": 1, "rate": 1})
    first = door.check(knock(), hs256(jti="0"), NOW)
    door.opened(first, "192.0.2.7")
    assert denied(door, None, hs256(jti="1")).reason == "key_connections"
    door.closed(first, "192.0.2.7")
    assert denied(door, None, hs256(jti="1")).reason == "rate"
    assert door.check(knock(), hs256(jti="1"), NOW + 1)
    assert denied(door, None, hs256(jti="1"), NOW + 2).reason == "jwt_replay"


def test_a_replayed_token_takes_nothing_from_its_subject() -> None:
    door = auth(jwt={**JWT, "one_time": True, "rate": 1})
    door.check(knock(), hs256(jti="0"), NOW)
    assert denied(door, None, hs256(jti="0"), NOW + 1).reason == "jwt_replay"
    assert door.check(knock(), hs256(jti="1"), NOW + 1)


def from_provider() -> dict[str, Any]:
    return {"audience": "callscribe", "issuer": ISSUER, "jwks_url": "https://sso.example.org/"}


def test_an_unknown_key_id_wants_keys_unless_another_credential_is_right() -> None:
    door = auth(jwt=from_provider(), key=[{"name": "dialer", "secret": KEY}], max_failures=1)
    strange = show(token(kid="new"))
    for _ in range(5):
        assert isinstance(denied(door, None, [*strange]), KeysWanted)
    assert door.counters == {"keys_wanted": 5}
    assert door.check(knock(), [*strange, *show(KEY)], NOW)
    assert door.jwt is not None and door.jwt.ring is not None
    door.jwt.ring.asking(NOW)
    door.jwt.ring.answered(jwks(jwk(rsa_key(), "new")))
    assert door.check(knock(), strange, NOW).name == "alice"


def test_twilios_signature_opens() -> None:
    door = auth(twilio=TWILIO, public_url="wss://calls.example.org")
    url = "wss://calls.example.org/twilio"
    right = knock("/twilio", x_twilio_signature=signed(url))
    assert door.check(right, [*twilio(right)], NOW) == Identity("twilio", "signature")
    other = knock("/other", x_twilio_signature=signed(url))
    no = denied(door, other, [*twilio(other)])
    assert (no.status, no.reason, no.wrong) == (403, "signature", True)
    assert denied(door, knock("/twilio")).reason == "missing"
    assert denied(door, knock("/twilio", host="127.0.0.1")).reason == "missing"
    assert denied(auth(), right, [*twilio(right)]).reason == "no_twilio"


def test_who_takes_no_tokens_loads_no_cryptography() -> None:
    code = (
        "import sys, bridge.auth; sys.exit('cryptography' in sys.modules or 'jwt' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# -- whatever comes -------------------------------------------------------------------------------


ANY = st.text(max_size=30)


@settings(deadline=None)
@given(ANY, ANY, ANY, ANY, ANY)
def test_nobody_comes_in_by_accident(
    path: str, host: str, origin: str, authorization: str, parameter: str
) -> None:
    door = auth(
        jwt=JWT, twilio=TWILIO, public_url="wss://x", key=[{"name": "dialer", "secret": KEY}]
    )
    knocked = Knock(
        path, {"token": parameter},
        {"origin": origin, "authorization": f"Bearer {authorization}",
         "x-twilio-signature": parameter},
        host,
    )  # fmt: skip
    found = [*bearer(knocked), *query(knocked, "token"), *twilio(knocked)]
    denied(door, knocked, found)
    without = Knock(path, {}, {}, host)
    denied(door, without, found)
    assert len(door) == 0


def test_nothing_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    long = CANARY * 2
    door = auth(
        jwt={**JWT, "secret": long},
        twilio={"auth_token": CANARY, "shared_key": CANARY},
        public_url="wss://calls.example.org",
        key=[{"name": "dialer", "secret": long}],
        max_failures=1,
    )
    signature = knock("/t", x_twilio_signature=CANARY)
    attempts: list[list[Credential]] = [
        show(long), [Pair(CANARY, CANARY, "")], show(CANARY), show(token(long, algorithm="HS256")),
        [*twilio(signature)],
    ]  # fmt: skip
    texts = [repr(door), repr(vars(door)), repr(door.counters)]
    for i, credentials in enumerate(attempts):
        texts.append(repr(credentials))
        try:
            texts.append(repr(door.check(knock(host=f"192.0.2.{i}"), credentials, NOW)))
        except Denied as e:
            texts.append(repr(e) + str(e) + repr(vars(e)))
    assert CANARY not in "".join([*texts, caplog.text])
