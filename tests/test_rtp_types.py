"""Payload types: what call control says → a table, or a sentence."""

from __future__ import annotations

import pytest

from bridge.ingress.rtp_types import AudioType, BadMedia, payload_types

PCMU, PCMA, G722 = AudioType("pcmu", 8000), AudioType("pcma", 8000), AudioType("g722", 16000)


def l16(rate: int) -> AudioType:
    return AudioType("l16", rate)


STATIC = {0: PCMU, 8: PCMA, 9: G722, 11: l16(44100), 13: "cn", 19: "cn"}


def test_the_numbers_of_rfc_3551_and_101_hold_without_a_word() -> None:
    assert payload_types() == {**STATIC, 101: "telephone-event"}
    assert payload_types(events=96) == {**STATIC, 96: "telephone-event"}


@pytest.mark.parametrize(
    ("audio", "more"),
    [
        ("ulaw", {}),
        ("PCMA/8000", {}),
        ("g722/8000", {}),  # SDP's clock
        ("G722/16000", {}),
        ("L16/44100", {}),
        ("slin16", {118: l16(16000)}),
        ("L16/16000/1", {118: l16(16000)}),
        ("slin", {10: l16(8000), 11: l16(8000)}),
        ("slin24", {123: l16(24000)}),
        ("l16/48000", {126: l16(48000)}),
    ],
)
def test_a_codec_has_its_own_number_or_asterisks(audio: str, more: dict[int, AudioType]) -> None:
    assert payload_types(audio) == {**STATIC, 101: "telephone-event", **more}


def test_given_numbers_mean_what_is_given() -> None:
    given = {"96": "telephone-event/8000", "97": "L16/16000", "98": "CN/16000", "0": "alaw"}
    assert payload_types("l16/16000", given) == {
        **STATIC, 0: PCMA, 96: "telephone-event", 97: l16(16000), 98: "cn",
    }  # fmt: skip
    le = payload_types("l16le/16000", {"96": "l16le/16000"})
    assert le[96] == AudioType("l16le", 16000)
    assert payload_types("pcmu", {"101": "L16/8000"})[101] == l16(8000)


@pytest.mark.parametrize(
    ("audio", "given", "sentence"),
    [
        ("opus", {}, "codec 'opus' is not known; it is one of pcmu, pcma, g722, l16, l16le"),
        ("l16", {}, "codec 'l16' needs its rate, as \"l16/16000\""),
        ("l16/x", {}, "codec 'l16/x': expected a rate in Hz, as \"l16/16000\""),
        ("l16/²", {}, "codec 'l16/\\xb2': expected a rate in Hz, as \"l16/16000\""),
        ("L16/48000/2", {}, "codec 'L16/48000/2': only one channel can be heard"),
        ("pcmu/16000", {}, "codec 'pcmu' has a rate of 8000 Hz, not 16000"),
        (
            "l16le/16000",
            {},
            "codec l16le/16000 has no payload type of its own: give it one, "
            'as {"96": "l16le/16000"}',
        ),
        ("pcmu", {"x": "pcmu"}, "payload type 'x': expected a number from 0 to 127"),
        ("pcmu", {"": "pcmu"}, "payload type '': expected a number from 0 to 127"),
        ("pcmu", {"128": "pcmu"}, "payload type '128': expected a number from 0 to 127"),
        ("pcmu", {"-1": "pcmu"}, "payload type '-1': expected a number from 0 to 127"),
        ("pcmu", {"٣": "pcmu"}, "payload type '\\u0663': expected a number from 0 to 127"),
        (
            "pcmu",
            {"9" * 5000: "pcmu"},
            f"payload type '{'9' * 40}\\u2026': expected a number from 0 to 127",
        ),
        (
            "pcmu",
            {"72": "pcmu"},
            "payload type 72 cannot be told from RTCP (RFC 5761): expected 0 to 63 or 96 to 127",
        ),
        (
            "pcmu",
            {"96": "speex"},
            "codec 'speex' is not known; it is one of pcmu, pcma, g722, l16, l16le",
        ),
    ],
)
def test_what_cannot_be_heard_is_refused_with_a_sentence(
    audio: str, given: dict[str, str], sentence: str
) -> None:
    with pytest.raises(BadMedia) as e:
        payload_types(audio, given)
    assert str(e.value) == sentence
