"""Tokens: whatever is not exactly what was asked for is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from bridge.auth_jwt import JwtVerifier, UsedTokens
from bridge.auth_ring import KeyRing
from bridge.auth_types import Denied, KeysWanted
from bridge.config_auth import JwtSettings
from bridge.errors import ConfigError
from tests.knocks import (
    CANARY,
    ISSUER,
    NOW,
    claims,
    ec_key,
    ed_key,
    jwk,
    jwks,
    pem,
    raw_token,
    rsa_key,
    token,
)

HMAC = CANARY * 2

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
JSON = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(
    st.text(max_size=2), SCALARS, max_size=2
)  # fmt: skip
ANYTHING = effort(max_examples=60, deadline=None)  # a first signature takes its time


def settings(**more: Any) -> JwtSettings:
    given = {"audience": "callscribe", "issuer": ISSUER, "public_key": pem(rsa_key()), **more}
    return JwtSettings.model_validate({k: v for k, v in given.items() if v is not None})


def verifier(**more: Any) -> JwtVerifier:
    return JwtVerifier(settings(**more))


def symmetric(**more: Any) -> JwtVerifier:
    return verifier(public_key=None, secret=HMAC, algorithms=["HS256"], **more)


def provider(*keys: dict[str, Any], **more: Any) -> tuple[JwtVerifier, KeyRing]:
    checker = verifier(public_key=None, jwks_url="https://sso.example.org/certs", **more)
    assert checker.ring is not None
    if keys:
        checker.ring.asking(NOW - 100)
        checker.ring.answered(jwks(*keys))
    return checker, checker.ring


def refused(checker: JwtVerifier, text: str, now: float = NOW) -> tuple[str, str]:
    """Reason and sentence."""
    with pytest.raises(Denied) as e:
        checker.verify(text, now)
    assert (e.value.status, e.value.wrong) == (401, True)
    assert CANARY not in str(e.value)
    return e.value.reason, e.value.sentence


def test_a_right_token_says_who_it_is() -> None:
    assert verifier().verify(token(), NOW).name == "alice"
    assert symmetric().verify(token(HMAC, algorithm="HS256"), NOW).name == "alice"
    several = token(aud=["other", "callscribe"], azp="dialer")
    assert verifier(name_claim="azp").verify(several, NOW).name == "dialer"


@pytest.mark.parametrize(
    ("key", "algorithm"), [(rsa_key, "PS256"), (ec_key, "ES256"), (ed_key, "EdDSA")]
)
def test_other_algorithms(key: Any, algorithm: str) -> None:
    text = token(key(), algorithm=algorithm, kid="k")
    assert verifier(public_key=pem(key()), algorithms=[algorithm]).verify(text, NOW)
    assert provider(jwk(key(), "k"), algorithms=[algorithm])[0].verify(text, NOW)


# -- the signature --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", None, 5, ["RS256"], {}, "HS256"])
def test_alg_none_and_whatever_is_not_pinned(name: object) -> None:
    reason, sentence = refused(verifier(), raw_token({"typ": "JWT", "alg": name}, claims()))
    assert (reason, sentence) == ("jwt_algorithm", "tokens must be signed with RS256")


def test_the_public_key_is_no_secret_of_hs256() -> None:
    """CVE-2022-29217 and its like: the attacker has the public key, and signs with it."""
    header = {"alg": "HS256", "typ": "JWT"}
    unsigned = raw_token(header, claims()).rpartition(".")[0]
    forge = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    for secret in (pem(rsa_key()).encode(), jwks(jwk(rsa_key(), "k"))):
        mac = base64.urlsafe_b64encode(forge.sign(unsigned.encode(), secret)).rstrip(b"=").decode()
        for checker in (verifier(), provider(jwk(rsa_key(), "k"))[0]):
            assert refused(checker, f"{unsigned}.{mac}")[0] == "jwt_algorithm"


def test_a_token_of_another_key() -> None:
    forged = token(rsa_key(1))
    assert refused(verifier(), forged) == ("jwt_signature", "the token's signature is wrong")
    assert refused(provider(jwk(rsa_key(), "k"))[0], forged)[0] == "jwt_signature"


def test_a_token_that_was_changed() -> None:
    head, _, tail = token().split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(sub="root")).encode()).decode().rstrip("=")
    assert refused(verifier(), f"{head}.{body}.{tail}")[0] == "jwt_signature"
    assert refused(verifier(), f"{head}.{body}.")[0] == "jwt_signature"


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]}, {"crit": []}, {"b64": True}, {"b64": False, "crit": ["b64"]},
        {"kid": 7}, {"kid": ["k"]}, {"kid": "k" * 300},
    ],
)  # fmt: skip
def test_headers_that_ask_for_more(header: dict[str, Any]) -> None:
    text = raw_token({"alg": "RS256", **header}, claims(), b"x" * 256)
    assert refused(verifier(), text)[0] == "jwt_malformed"


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c"])
def test_keys_that_a_token_brings_along_are_not_looked_at(name: str) -> None:
    forged = token(rsa_key(1), header={name: jwk(rsa_key(1), "k")})
    assert refused(verifier(), forged)[0] == "jwt_signature"


DEEP = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")


@pytest.mark.parametrize(
    "text", ["ey..", "eyJ.eyJ.", "ey!.a.b", f"{DEEP}.e30.", "a.b", "", "e30.e30.", "\ud800.a.b"]
)
def test_what_is_no_token(text: str) -> None:
    assert refused(verifier(), text)[0] in ("jwt_malformed", "jwt_algorithm")


@ANYTHING
@given(st.text() | st.from_regex(r"ey[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
def test_any_text_may_come(text: str) -> None:
    refused(verifier(), text)


@ANYTHING
@given(st.dictionaries(st.sampled_from(["alg", "kid", "crit", "typ", "b64"]), JSON), JSON)
def test_any_header_may_come(header: dict[str, Any], payload: object) -> None:
    refused(verifier(), raw_token(header, payload))


# -- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"exp": NOW - 10}, "jwt_expired"),
        ({"exp": 0}, "jwt_expired"),
        ({"exp": None}, "jwt_lifetime"),
        ({"exp": NOW + 311}, "jwt_lifetime"),
        ({"exp": str(int(NOW + 60))}, "jwt_malformed"),
        ({"exp": True}, "jwt_malformed"),
        ({"exp": float("nan")}, "jwt_malformed"),
        ({"exp": float("inf")}, "jwt_malformed"),
        ({"exp": 10**400}, "jwt_malformed"),
        ({"exp": [NOW + 60]}, "jwt_malformed"),
        ({"nbf": NOW + 11}, "jwt_early"),
        ({"nbf": "now"}, "jwt_malformed"),
        ({"iat": NOW + 11}, "jwt_early"),
        ({"iss": None}, "jwt_issuer"),
        ({"iss": ISSUER + "/"}, "jwt_issuer"),
        ({"aud": None}, "jwt_audience"),
        ({"aud": "callscrib"}, "jwt_audience"),
        ({"aud": "callscribe2"}, "jwt_audience"),
        ({"aud": ["callscribe2", ["callscribe"]]}, "jwt_audience"),
        ({"aud": []}, "jwt_audience"),
        ({"sub": None}, "jwt_subject"),
        ({"sub": ""}, "jwt_subject"),
        ({"sub": "a\nb"}, "jwt_subject"),
        ({"sub": "a" * 129}, "jwt_subject"),
    ],
)
def test_a_claim_that_is_wrong(change: dict[str, Any], reason: str) -> None:
    # not by PyJWT's encode, which checks some of it
    text = jwt.PyJWS().encode(json.dumps(claims(**change)).encode(), HMAC, "HS256")
    assert refused(symmetric(), text)[0] == reason


@pytest.mark.parametrize("name", ["iss", "sub"])
@pytest.mark.parametrize("value", [7, ["alice"], {}, True])
def test_a_claim_that_is_no_text(name: str, value: object) -> None:
    text = jwt.PyJWS().encode(json.dumps(claims(**{name: value})).encode(), HMAC, "HS256")
    assert refused(symmetric(), text)[0] in ("jwt_issuer", "jwt_subject")


@pytest.mark.parametrize("payload", [b"", b"[]", b"7", b"\xff", b"[" * 5000, b"9" * 5000])
def test_claims_that_are_none(payload: bytes) -> None:
    text = jwt.PyJWS().encode(payload, HMAC, "HS256")
    assert refused(symmetric(), text)[0] == "jwt_malformed"


def test_the_clocks_may_differ_by_the_leeway() -> None:
    checker = verifier()
    assert checker.verify(token(exp=NOW - 9), NOW)
    assert checker.verify(token(exp=NOW + 310, nbf=NOW + 10, iat=NOW + 10), NOW)
    assert verifier(leeway=0).verify(token(exp=NOW + 1), NOW)
    assert refused(verifier(leeway=0), token(exp=NOW), NOW)[0] == "jwt_expired"


def test_sentences_say_what_to_change() -> None:
    assert refused(verifier(), token(exp=NOW + 3600))[1] == (
        "the token must expire within 300 s (websocket.jwt.max_lifetime)"
    )
    assert refused(verifier(), token(aud="x"))[1] == "the token is for somebody else (aud)"


@ANYTHING
@given(JSON.filter(lambda claim: not isinstance(claim, dict)) | st.dictionaries(
    st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "jti"]), JSON))  # fmt: skip
def test_any_claims_may_come(payload: object) -> None:
    text = jwt.PyJWS().encode(json.dumps(payload).encode(), HMAC, "HS256")
    refused(symmetric(one_time=True), text)


# -- one time -------------------------------------------------------------------------------------


def test_a_one_time_token_works_once() -> None:
    checker = symmetric(one_time=True)
    first = checker.verify(token(HMAC, algorithm="HS256", jti="1"), NOW)
    other = checker.verify(token(HMAC, algorithm="HS256", jti="2"), NOW)
    checker.use(first, NOW)
    checker.use(other, NOW)
    for now in (NOW, NOW + 69):
        with pytest.raises(Denied, match="^the token works once, and has been used$") as e:
            checker.use(first, now)
        assert (e.value.status, e.value.reason) == (401, "jwt_replay")
    assert refused(checker, token(HMAC, algorithm="HS256"))[0] == "jwt_replay"
    assert refused(checker, token(HMAC, algorithm="HS256", jti="j" * 129))[0] == "jwt_replay"


def test_a_used_token_is_remembered_for_as_long_as_it_could_be_used() -> None:
    """Leeway included."""
    checker = symmetric(one_time=True)
    used = checker.verify(token(HMAC, algorithm="HS256", jti="1"), NOW)
    checker.use(used, NOW)
    again = checker.verify(token(HMAC, algorithm="HS256", jti="1"), NOW + 69.9)
    with pytest.raises(Denied, match="^the token works once"):
        checker.use(again, NOW + 69.9)
    assert refused(checker, token(HMAC, algorithm="HS256", jti="1"), NOW + 70)[0] == "jwt_expired"


def test_used_tokens_are_bounded() -> None:
    used = UsedTokens(most=3)
    for i in range(3):
        used.use(bytes([i]), NOW + 10 + i, NOW)
    with pytest.raises(Denied, match="^too many one-time tokens are in use; try again$") as e:
        used.use(b"x", NOW + 10, NOW)
    assert (e.value.status, e.value.retry_after, e.value.wrong) == (503, 10.0, False)
    used.use(b"x", NOW + 30, NOW + 10)
    assert len(used) == 3


# -- keys of a provider ---------------------------------------------------------------------------


def test_kid_chooses_the_key() -> None:
    checker, _ = provider(jwk(rsa_key(0), "a"), jwk(rsa_key(1), "b"))
    assert checker.verify(token(rsa_key(1), kid="b"), NOW)
    assert refused(checker, token(rsa_key(1), kid="a"))[0] == "jwt_signature"
    assert refused(checker, token(rsa_key(1))) == (
        "jwt_key", "the token does not say which key signed it",
    )  # fmt: skip


def test_an_unknown_kid_asks_for_keys_once_in_ten_seconds() -> None:
    checker, ring = provider(jwk(rsa_key(0), "a"))
    strange = token(rsa_key(1), kid="../../etc/passwd")
    with pytest.raises(KeysWanted):
        checker.verify(strange, NOW)
    ring.asking(NOW)
    with pytest.raises(KeysWanted):  # join those who wait
        checker.verify(strange, NOW)
    ring.answered(jwks(jwk(rsa_key(0), "a")))
    assert refused(checker, strange, NOW + 9)[0] == "jwt_key"
    assert checker.verify(token(kid="a"), NOW)
    with pytest.raises(KeysWanted):
        checker.verify(strange, NOW + 10)


def test_a_new_key_is_known_after_asking() -> None:
    checker, ring = provider(jwk(rsa_key(0), "a"))
    ring.asking(NOW)
    ring.answered(jwks(jwk(rsa_key(1), "b")))
    assert checker.verify(token(rsa_key(1), kid="b"), NOW)
    assert refused(checker, token(rsa_key(0), kid="a"))[0] == "jwt_key"  # withdrawn


def test_without_an_answer_it_is_our_fault_and_the_old_keys_stay() -> None:
    checker, ring = provider(jwk(rsa_key(0), "a"))
    ring.asking(NOW)
    ring.failed()
    with pytest.raises(Denied, match="^the identity provider's keys cannot be fetched") as e:
        checker.verify(token(rsa_key(1), kid="b"), NOW)
    assert (e.value.status, e.value.wrong, e.value.retry_after) == (503, False, 10.0)
    assert checker.verify(token(kid="a"), NOW)


@pytest.mark.parametrize(
    "strange",
    [
        {"kty": "oct", "k": "AAAA", "kid": "k"},
        {"kty": "oct", "k": "AAAA", "kid": "k", "alg": "RS256"},
        jwk(rsa_key(), "k", use="enc"),
        jwk(rsa_key(), "k", alg="RS512"),
        jwk(rsa_key(), "k", alg="HS256"),
        jwk(rsa_key(), "k", key_ops=["sign"]),
        jwk(rsa_key(), "k", d="AQAB"),
        jwk(rsa_key(), "k", n="AQAB"),
        jwk(rsa_key(), "k", n=None),
        jwk(rsa_key(), 7),  # type: ignore[arg-type]
        jwk(rsa_key(9, 1024), "k"),
        jwk(ec_key(), "k"),
        {"kty": "RSA"}, {}, [], None, "k",
    ],
)  # fmt: skip
def test_keys_that_cannot_be_used_are_left_out(strange: Any) -> None:
    _, ring = provider(jwk(rsa_key(), "a"))
    with pytest.raises(ValueError, match="^has no key for RS256: correct websocket.jwt.algorithm"):
        ring.answered(jwks(strange))
    ring.answered(jwks(strange, jwk(rsa_key(), "b")))
    assert len(ring) == 1


@pytest.mark.parametrize(
    "document", [b"", b"{}", b"[]", b'{"keys": 7}', b"\xff", b"[" * 100_000, b'{"keys": {}}']
)
def test_what_is_no_key_set(document: bytes) -> None:
    _, ring = provider(jwk(rsa_key(), "a"))
    with pytest.raises(ValueError, match="^is not a JSON Web Key Set$"):
        ring.answered(document)
    assert len(ring) == 1


NAMES = st.sampled_from(["kty", "kid", "alg", "use", "n", "e", "crv", "x", "y", "key_ops"])
WORDS = st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "sig", "AQAB"])
JWKS = st.dictionaries(NAMES, JSON | WORDS)


@ANYTHING
@given(st.lists(JWKS, max_size=3))
def test_a_provider_may_answer_anything(keys: list[dict[str, Any]]) -> None:
    algorithms = ["RS256", "ES256", "EdDSA"]
    _, ring = provider(jwk(rsa_key(), "a"), algorithms=algorithms)
    ring.answered(jwks(*keys, jwk(rsa_key(), "b")))
    assert len(ring) >= 1


# -- keys of the settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm", "problem"),
    [
        (lambda: "-----BEGIN NOTHING", "RS256", "expected a public key in PEM"),
        (lambda: pem(ec_key()), "RS256", "is of another kind; it is to verify RS256"),
        (lambda: pem(rsa_key()), "ES256", "is of another kind; it is to verify ES256"),
        (lambda: pem(rsa_key(9, 1024)), "RS256",
         "has 1024 bits, and 2048 is the least; it is to verify RS256"),
    ],
)  # fmt: skip
def test_a_key_that_does_not_go_with_the_algorithm(key: Any, algorithm: str, problem: str) -> None:
    with pytest.raises(ConfigError) as e:
        verifier(public_key=key(), algorithms=[algorithm])
    assert e.value.problems == [f"websocket.jwt.public_key: {problem}"]
