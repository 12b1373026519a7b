"""Payload codecs: every code of G.711, both orders of L16, G.722 in order and in pieces."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio.codecs import L16_RATES, STATIC_TYPES, Codec, codec
from bridge.types import Samples

NAMES = [("pcmu", 8000), ("pcma", 8000), ("g722", 16000), ("l16", 16000), ("l16le", 48000)]
EVERY_CODE = bytes(range(256))


def ulaw(code: int) -> int:
    """ITU-T G.711 as G.191's ulaw_expand does it: by hand, not by the tables of ours."""
    inverted = ~code & 0xFF
    magnitude = (((inverted & 0x0F) << 3) + 0x84 << (inverted >> 4 & 7)) - 0x84
    return -magnitude if inverted & 0x80 else magnitude


def alaw(code: int) -> int:
    """The same for alaw_expand."""
    turned = code ^ 0x55
    exponent = turned >> 4 & 7
    magnitude = ((turned & 0x0F) << 4) + 8
    if exponent:
        magnitude = magnitude + 0x100 << exponent - 1
    return magnitude if turned & 0x80 else -magnitude


def test_every_g711_code_has_its_value() -> None:
    """M8."""
    assert codec("pcmu", 8000).decode(EVERY_CODE).tolist() == [ulaw(c) for c in range(256)]
    assert codec("pcma", 8000).decode(EVERY_CODE).tolist() == [alaw(c) for c in range(256)]


@pytest.mark.parametrize("rate", L16_RATES)
def test_l16_comes_in_both_byte_orders(rate: int) -> None:
    samples = np.array([0, 1, -2, 0x1234, 32767, -32768], np.int16)
    for name, order in (("l16", ">i2"), ("l16le", "<i2")):
        l16 = codec(name, rate)
        decoded = l16.decode(samples.astype(order).tobytes() + b"\x7f")
        assert decoded.tolist() == samples.tolist()
        assert (l16.rate, l16.clock) == (rate, rate)
        assert decoded.dtype == np.int16
        assert l16.samples(13) == 6


@pytest.mark.parametrize(("name", "rate"), NAMES)
def test_a_codec_says_how_long_a_payload_is(name: str, rate: int) -> None:
    one = codec(name, rate)
    assert (one.name, one.rate, one.rate % one.clock) == (name, rate, 0)
    for size in (0, 1, 2, 80, 161, 1500):
        samples = one.decode(bytes(size))
        assert samples.dtype == np.int16 and samples.dtype.isnative
        assert len(samples) == one.samples(size)
        assert one.samples(size - size % one.width) == one.samples(size)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_payloads_may_be_joined(data: bytes, cuts: list[int]) -> None:
    """Several at once are the same as one after the other, with G.722's memory too."""
    edges = [0, *sorted(min(cut, len(data)) // 2 * 2 for cut in cuts), len(data)]
    for name, rate in NAMES:
        whole = codec(name, rate).decode(data)
        one = codec(name, rate)
        pieces = [one.decode(data[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_g722_is_the_recommendations() -> None:
    """The digest is libg722 1.2.8's, whose wheel gives the digests of the ITU's own vectors."""
    data = bytes((i * i // 7 + i * 37) % 256 for i in range(1600))
    decoded = codec("g722", 16000).decode(data)
    digest = hashlib.sha256(decoded.astype("<i2").tobytes()).hexdigest()
    assert digest == "25a3e097262e12ddd1aca8f1c96a5f5cbd2d37ec89dfc632c9102ce666d6fec2"


def test_g722_carries_wideband_speech() -> None:
    """A tone above 4 kHz and one below come through at their level."""
    from G722 import G722

    for frequency in (400, 5500):
        wave = (6000 * np.sin(np.arange(16000) * 2 * np.pi * frequency / 16000)).astype(np.int16)
        decoded = codec("g722", 16000).decode(G722(16000, 64000).encode(wave))
        sent, came = (
            np.abs(np.fft.rfft(x[4000:12000] * np.hanning(8000))) for x in (wave, decoded)
        )
        assert came.argmax() == sent.argmax() == frequency // 2
        assert came.max() == pytest.approx(sent.max(), rel=0.05)


def test_a_reset_forgets_the_stream() -> None:
    data = bytes(range(1, 161))
    for name, rate in NAMES:
        one = codec(name, rate)
        first = one.decode(data)
        second = one.decode(data)
        one.reset()
        assert np.array_equal(one.decode(data), first)
        assert np.array_equal(first, second) == (name != "g722")


def test_two_streams_do_not_hear_each_other() -> None:
    data = [bytes([n]) * 160 for n in range(8)]
    alone = [codec("g722", 16000), codec("g722", 16000)]
    mixed = [codec("g722", 16000), codec("g722", 16000)]
    expected: list[list[Samples]] = [
        [one.decode(d) for d in data[i::2]] for i, one in enumerate(alone)
    ]
    for i, d in enumerate(data):
        assert np.array_equal(mixed[i % 2].decode(d), expected[i % 2][i // 2])


def test_static_types_are_those_of_rfc_3551() -> None:
    assert STATIC_TYPES == {
        0: ("pcmu", 8000),
        8: ("pcma", 8000),
        9: ("g722", 16000),
        11: ("l16", 44100),
        13: ("cn", 8000),
    }
    for number, (name, rate) in STATIC_TYPES.items():
        if number != 13:
            assert codec(name, rate).rate == rate


def test_names_are_taken_as_sdp_has_them() -> None:
    assert codec("PCMU", 8000).name == "pcmu"
    assert codec("L16", 16000).name == "l16"
    g722: Codec = codec("G722", 8000)  # a=rtpmap:9 G722/8000
    assert (g722.rate, g722.clock) == (16000, 8000)


@pytest.mark.parametrize(
    ("name", "rate", "sentence"),
    [
        ("opus", 48000, "codec 'opus' is not known; it is one of pcmu, pcma, g722, l16, l16le"),
        ("cn", 8000, "codec 'cn' is not known; it is one of pcmu, pcma, g722, l16, l16le"),
        ("pcmu", 16000, "codec 'pcmu' has a rate of 8000 Hz, not 16000"),
        ("pcma", 0, "codec 'pcma' has a rate of 8000 Hz, not 0"),
        ("g722", 48000, "codec 'g722' has a rate of 16000 or 8000 Hz, not 48000"),
        (
            "l16",
            11025,
            "codec 'l16' has a rate of 8000 or 12000 or 16000 or 24000 or 32000 or 44100"
            " or 48000 Hz, not 11025",
        ),
    ],
)
def test_what_cannot_be_decoded_is_refused(name: str, rate: int, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        codec(name, rate)
    assert str(error.value) == sentence


def test_without_its_library_g722_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "G722", None)
    with pytest.raises(ValueError, match=r"^codec 'g722' needs a library: pip install G722$"):
        codec("g722", 16000)
