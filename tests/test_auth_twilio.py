"""X-Twilio-Signature against Twilio's own validator."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator

from bridge.auth_twilio import TwilioSignatures, bases, named_algorithm, targets
from bridge.auth_types import Knock, Signature
from tests.knocks import knock

URL, TOKEN, OLD, SHARED = "wss://calls.example.org", "t" * 32, "o" * 32, "s" * 32
RULE = "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"


def signed(url: str, token: str = TOKEN, algorithm: str | None = None) -> str:
    return str(RequestValidator(token).compute_signature(url, {}, algorithm))


def right(signature: str, knocked: Knock, settings: str = "", public_url: str = URL) -> bool:
    checker = TwilioSignatures(public_url, [TOKEN, OLD], [SHARED])
    return checker.right(knocked, Signature(signature, settings, ""))


def test_a_known_signature() -> None:
    """Computed once by hand: openssl dgst -sha1 -hmac 12345 -binary | base64."""
    checker = TwilioSignatures("wss://example.com", ["12345"])
    signature = Signature("7PR3qMkpDyEJtMrVOY/LDyNq8J8=", "", "")
    assert checker.right(knock("/media"), signature)


@pytest.mark.parametrize(
    "url",
    [
        f"{URL}/twilio", f"{URL}:443/twilio", f"{URL}/twilio/", f"{URL}:443/twilio/",
    ],
)  # fmt: skip
def test_the_ways_to_write_the_same_address(url: str) -> None:
    for path in ("/twilio", "/twilio/"):
        for public_url in (URL, f"{URL}:443", f"{URL}/"):
            assert right(signed(url), knock(path), public_url=public_url)


@pytest.mark.parametrize(
    "url",
    [
        "https://calls.example.org/twilio", "ws://calls.example.org/twilio",
        "wss://evil.example/twilio", f"{URL}/other", f"{URL}:8443/twilio", f"{URL}/Twilio",
        f"{URL}/twilio?x=1", "/twilio", "",
    ],
)  # fmt: skip
def test_a_signature_of_another_address_is_wrong(url: str) -> None:
    assert not right(signed(url), knock("/twilio"))


def test_what_the_request_says_of_its_host_counts_for_nothing() -> None:
    forged = knock(
        "/twilio", host="203.0.113.9", x_forwarded_host="evil.example", x_forwarded_proto="https"
    )
    assert not right(signed("wss://evil.example/twilio"), forged)
    assert right(signed(f"{URL}/twilio"), forged)


def test_another_port_is_part_of_the_address() -> None:
    public = f"{URL}:8443"
    assert right(signed(f"{public}/t"), knock("/t"), public_url=public)
    assert not right(signed(f"{URL}/t"), knock("/t"), public_url=public)
    assert not right(signed(f"{URL}:443/t"), knock("/t"), public_url=public)


def test_a_prefix_that_a_proxy_takes_away() -> None:
    assert right(signed(f"{URL}/calls/t"), knock("/t"), public_url=f"{URL}/calls")


def test_path_and_query_as_they_were_sent() -> None:
    knocked = knock("/a b", raw_path="/a%20b?x=%31")
    assert right(signed(f"{URL}/a%20b?x=%31"), knocked)
    assert right(signed(f"{URL}/a%20b/?x=%31"), knocked)
    assert not right(signed(f"{URL}/a b"), knocked)
    assert targets(knock("x", raw_path="https://h/p")) == []


def test_the_root() -> None:
    assert right(signed(URL), knock("/")) and right(signed(f"{URL}/"), knock("/"))


def test_two_tokens_while_they_are_exchanged() -> None:
    assert right(signed(f"{URL}/t", OLD), knock("/t"))
    assert not right(signed(f"{URL}/t", "x" * 32), knock("/t"))


def test_a_webhook_rules_shared_key() -> None:
    url = f"{URL}/t"
    assert right(signed(url, SHARED, "HMAC_SHA256"), knock("/t"), RULE)
    assert not right(signed(url, SHARED), knock("/t"), RULE)
    assert not right(signed(url, TOKEN, "HMAC_SHA256"), knock("/t"), RULE)
    assert not right(signed(url, SHARED, "HMAC_SHA256"), knock("/t"))
    assert not right(signed(url, SHARED), knock("/t"))
    assert not right(signed(url, SHARED), knock("/t"), "key=k,algorithm=HMAC_MD5")
    checker = TwilioSignatures(URL, [TOKEN])
    assert not checker.right(knock("/t"), Signature(signed(url, "", "HMAC_SHA256"), RULE, ""))


@pytest.mark.parametrize(
    ("settings", "algorithm"),
    [
        (RULE, "HMAC_SHA256"), ("algorithm=hmac_sha256", "HMAC_SHA256"), ("key=x", "HMAC_SHA1"),
        ("algorithm=", "HMAC_SHA1"), (" algorithm = HMAC_SHA256 , key=1", "HMAC_SHA256"),
    ],
)  # fmt: skip
def test_the_algorithm_that_is_named(settings: str, algorithm: str) -> None:
    assert named_algorithm(settings) == algorithm


@settings(deadline=None)
@given(st.text(), st.text(max_size=20))
def test_nothing_forged_passes(signature: str, settings: str) -> None:
    assert not right(signature, knock("/t"), settings)


PATHS = st.text("abcXYZ019-_.~%/", max_size=20).map(lambda text: f"/{text}")


@settings(deadline=None)
@given(PATHS, st.text("abcdefghij0123456789", min_size=1), st.sampled_from([URL, f"{URL}:443"]))
def test_whatever_twilio_takes_we_take(path: str, token: str, public_url: str) -> None:
    url = public_url + path
    signature = signed(url, token)
    assert RequestValidator(token).validate(url, {}, signature)
    checker = TwilioSignatures(public_url, [token])
    assert checker.right(knock(path), Signature(signature, "", ""))
    assert not checker.right(knock(f"{path}x"), Signature(signature, "", ""))


def test_addresses_are_few() -> None:
    assert bases(URL) == [URL, f"{URL}:443"]
    assert bases("wss://[2001:db8::1]:443/x/") == [
        "wss://[2001:db8::1]:443/x", "wss://[2001:db8::1]/x"
    ]  # fmt: skip
