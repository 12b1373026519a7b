import base64
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from bridge.egress.signature import check_secret, sign

SENTENCE = (
    "secret: expected whsec_ and 24 to 64 random bytes in base64; "
    "make one with: callscribe webhook secret"
)


def secret(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def test_the_vector_that_the_libraries_of_standard_webhooks_share() -> None:
    key = check_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert (
        sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@given(st.binary(min_size=24, max_size=64), st.from_regex(r"[A-Za-z0-9:_-]+", fullmatch=True))
def test_the_oracle_signs_the_same(key: bytes, name: str) -> None:
    body = '{"text":"één"}'
    moment = datetime.fromtimestamp(1700000000, UTC)
    expected = standardwebhooks.Webhook(secret(key)).sign(name, moment, body)
    assert sign([check_secret(secret(key))], name, 1700000000, body.encode()) == expected


def test_one_signature_per_key() -> None:
    old, new = b"o" * 24, b"n" * 24
    both = sign([new, old], "id", 1, b"x").split(" ")
    assert both == [sign([new], "id", 1, b"x"), sign([old], "id", 1, b"x")]
    assert both[0] != both[1]


@pytest.mark.parametrize("size", [24, 25, 64])
def test_secrets_of_the_right_size(size: int) -> None:
    assert check_secret(secret(b"k" * size)) == b"k" * size


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "whsec_",
        "hunter2",
        secret(b"k" * 23),
        secret(b"k" * 65),
        secret(b"k" * 32).removeprefix("whsec_"),
        "whsec_" + "!" * 32,
        "whsec_" + "é" * 32,
        secret(b"k" * 25).rstrip("="),
    ],
)
def test_wrong_secrets_are_told_and_not_quoted(wrong: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_secret(wrong)
    assert str(raised.value) == SENTENCE
