"""SRTP with pylibsrtp itself as the peer."""

from __future__ import annotations

import base64
import random
import secrets
import subprocess
import sys
from typing import Any

import pytest

pylibsrtp = pytest.importorskip("pylibsrtp", reason="pylibsrtp is not installed")

from bridge.ingress.rtp_packet import Packet, build  # noqa: E402
from bridge.ingress.rtp_types import BadMedia, Keys  # noqa: E402
from bridge.ingress.srtp import MAX_SSRCS, SUITES, Opener, Sealer, keys, own_keys  # noqa: E402
from bridge.ingress.srtp import inline as spelt  # noqa: E402

SUITE = "AES_CM_128_HMAC_SHA1_80"
KEY = bytes(range(30))
SSRC = 0xCAFE0001
PROFILES = {
    "AES_CM_128_HMAC_SHA1_80": pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
    "AES_CM_128_HMAC_SHA1_32": pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_32,
    "AEAD_AES_128_GCM": pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    "AEAD_AES_256_GCM": pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
}
SIZES = {"AEAD_AES_128_GCM": 28, "AEAD_AES_256_GCM": 44}


def inline(key: bytes) -> str:
    return "inline:" + base64.b64encode(key).decode()


def material(suite: str) -> bytes:
    return bytes(range(SIZES.get(suite, 30)))


def sender(suite: str = SUITE, key: bytes = KEY) -> Any:
    policy = pylibsrtp.Policy(key, pylibsrtp.Policy.SSRC_ANY_OUTBOUND, srtp_profile=PROFILES[suite])
    return pylibsrtp.Session(policy)


def rtp(number: int, ssrc: int = SSRC) -> bytes:
    return build(
        Packet(0, number & 0xFFFF, 160 * number & 0xFFFFFFFF, ssrc, bytes([number % 251]) * 160)
    )


RTCP_SR = bytes.fromhex("80c80006 cafe0001 e50e2f4d4ccccccd 00027100 000003e8 00027100")


@pytest.mark.parametrize("suite", SUITES)
def test_what_a_peer_seals_is_opened(suite: str) -> None:
    peer = sender(suite, material(suite))
    opener = Opener(keys(suite, inline(material(suite))))
    for number in range(1000, 1100):
        assert opener.rtp(peer.protect(rtp(number))) == rtp(number)
    assert opener.rtcp(peer.protect_rtcp(RTCP_SR)) == RTCP_SR
    assert (opener.failed, opener.replayed) == (0, 0)


@pytest.mark.parametrize("suite", SUITES)
def test_what_we_seal_a_peer_opens(suite: str) -> None:
    policy = pylibsrtp.Policy(
        material(suite), pylibsrtp.Policy.SSRC_ANY_INBOUND, srtp_profile=PROFILES[suite]
    )
    peer = pylibsrtp.Session(policy)
    sealer = Sealer(keys(suite, inline(material(suite))))
    assert peer.unprotect(sealer.rtp(rtp(7))) == rtp(7)
    assert peer.unprotect_rtcp(sealer.rtcp(RTCP_SR)) == RTCP_SR


def test_the_roll_over_counter_goes_on_at_65536() -> None:
    peer, opener = sender(), Opener(keys(SUITE, inline(KEY)))
    rng = random.Random(1)
    for number in range(65_000, 65_536 * 2 + 1000):
        sealed = peer.protect(rtp(number))
        near = abs((number + 100) % 65_536) < 200
        if near and rng.random() < 0.2 or not near and number % 50:
            continue  # lost; most of them, for speed
        assert opener.rtp(sealed) == rtp(number)
    assert (opener.failed, opener.replayed) == (0, 0)


def test_the_order_may_change_at_the_roll_over() -> None:
    peer, opener = sender(), Opener(keys(SUITE, inline(KEY)))
    sealed = {n: peer.protect(rtp(n)) for n in range(65_500, 65_570)}
    for number in (*range(65_500, 65_534), 65_537, 65_534, 65_536, 65_535, *range(65_538, 65_570)):
        assert opener.rtp(sealed[number]) == rtp(number)


def test_a_replay_is_counted_and_not_heard() -> None:
    peer, opener = sender(), Opener(keys(SUITE, inline(KEY)))
    sealed = [peer.protect(rtp(n)) for n in range(100, 300)]
    assert all(opener.rtp(data) for data in sealed)
    assert [opener.rtp(data) for data in sealed] == [None] * 200
    sealed_rtcp = peer.protect_rtcp(RTCP_SR)
    assert opener.rtcp(sealed_rtcp) == RTCP_SR
    assert opener.rtcp(sealed_rtcp) is None
    assert (opener.failed, opener.replayed) == (0, 201)


def test_a_late_packet_within_the_window_of_64_is_opened_and_an_older_one_is_not() -> None:
    peer, opener = sender(), Opener(keys(SUITE, inline(KEY)))
    sealed = [peer.protect(rtp(n)) for n in range(100, 200)]
    late = [data for i, data in enumerate(sealed) if i not in (20, 40)]
    assert all(opener.rtp(data) for data in late)
    assert opener.rtp(sealed[40]) == rtp(140)  # 59 behind
    assert opener.rtp(sealed[20]) is None  # 79 behind
    assert (opener.failed, opener.replayed) == (0, 1)


@pytest.mark.parametrize("suite", SUITES)
def test_a_wrong_key_is_counted_and_not_heard(suite: str) -> None:
    wrong = bytes([1]) + material(suite)[1:]
    peer, opener = sender(suite, wrong), Opener(keys(suite, inline(material(suite))))
    for number in range(20):
        assert opener.rtp(peer.protect(rtp(number))) is None
    assert opener.rtcp(peer.protect_rtcp(RTCP_SR)) is None
    assert (opener.failed, opener.replayed) == (21, 0)


def test_plain_rtp_short_and_long_datagrams_and_noise_are_counted() -> None:
    opener = Opener(keys(SUITE, inline(KEY)))
    sealed, sealed_rtcp = sender().protect(rtp(1)), sender().protect_rtcp(RTCP_SR)
    rng = random.Random(2)
    junk = [rtp(1), rtp(1) + bytes(2000)]
    junk += [sealed[:n] for n in range(len(sealed))]
    junk += [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in range(len(sealed))]
    junk += [rng.randbytes(rng.randrange(300)) for _ in range(500)]
    for data in junk:
        assert opener.rtp(data) is None
    junk_rtcp = [RTCP_SR, RTCP_SR + bytes(2000)]
    junk_rtcp += [sealed_rtcp[:n] for n in range(len(sealed_rtcp))]
    junk_rtcp += [b"\x80\xc8" + rng.randbytes(rng.randrange(100)) for _ in range(500)]
    for data in junk_rtcp:
        assert opener.rtcp(data) is None
    assert opener.failed == len(junk) + len(junk_rtcp)
    assert opener.rtp(sealed) == rtp(1)


def test_the_ssrcs_that_are_remembered_are_few() -> None:
    peer, opener = sender(), Opener(keys(SUITE, inline(KEY)))
    for ssrc in range(1, 1000):
        assert opener.rtp(peer.protect(rtp(1, ssrc))) == rtp(1, ssrc)
    assert len(opener._ssrcs) == MAX_SSRCS
    # libsrtp has forgotten the first one: to it, its first packet is new.
    assert opener.rtp(sender().protect(rtp(1, 1))) == rtp(1, 1)
    assert opener.rtp(sender().protect(rtp(1, 999))) is None


@pytest.mark.parametrize(
    ("suite", "key", "sentence"),
    [
        (
            "NULL",
            inline(KEY),
            "srtp suite 'NULL' is not known; it is one of AES_CM_128_HMAC_SHA1_80, "
            "AES_CM_128_HMAC_SHA1_32, AEAD_AES_128_GCM, AEAD_AES_256_GCM",
        ),
        (SUITE, "inline:", f"the srtp key of {SUITE} is 30 bytes of key and salt, not 0"),
        (SUITE, inline(KEY[:16]), f"the srtp key of {SUITE} is 30 bytes of key and salt, not 16"),
        (
            "AEAD_AES_128_GCM",
            inline(KEY),
            "the srtp key of AEAD_AES_128_GCM is 28 bytes of key and salt, not 30",
        ),
        (
            SUITE,
            "inline:not base64!",
            'the srtp key is not base64, as "inline:…" of SDP\'s a=crypto',
        ),
        (SUITE, "inlin€", 'the srtp key is not base64, as "inline:…" of SDP\'s a=crypto'),
        (
            SUITE,
            inline(KEY) + "|2^31|1:4",
            "the srtp key has a master key identifier (MKI), which is not supported",
        ),
    ],
)
def test_keys_that_make_no_sense_are_refused_with_a_sentence(
    suite: str, key: str, sentence: str
) -> None:
    with pytest.raises(BadMedia) as e:
        keys(suite, key)
    assert str(e.value) == sentence


def test_keys_are_taken_as_sdp_has_them_and_never_shown() -> None:
    for text in (inline(KEY), inline(KEY) + "|2^31", inline(KEY) + "|2^20", inline(KEY)[7:]):
        made = keys(SUITE, text)
        assert made == Keys(SUITE, KEY)
        assert repr(made) == f"Keys(suite='{SUITE}')"


def test_keys_of_our_own_are_what_a_peer_reads_in_the_answer() -> None:
    for suite in SUITES:
        made = own_keys(suite, secrets.token_bytes)
        assert keys(suite, spelt(made)) == made != own_keys(suite, secrets.token_bytes)
        assert repr(made) == f"Keys(suite='{suite}')"


def test_without_the_library_keys_are_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pylibsrtp", None)
    with pytest.raises(BadMedia) as e:
        keys(SUITE, inline(KEY))
    assert str(e.value) == "srtp needs a library: pip install 'callscribe[rtp]'"


def test_the_library_is_loaded_with_the_first_keys_only() -> None:
    code = "import sys, bridge.ingress.rtp; sys.exit('pylibsrtp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
