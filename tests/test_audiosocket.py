"""The AudioSocket ingress: framing, deadlines, mislabelled audio, and the leg's clock."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio import g711
from bridge.errors import ProtocolError
from bridge.ingress.arrival import JITTER
from bridge.ingress.audiosocket import (
    MAX_STRANGE,
    RATES,
    SILENCE_MESSAGE,
    AudioSocket,
    Rules,
)
from bridge.types import Audio, Closed, Digit, IngressEvent, Opened, Warned

ID = "123e4567-e89b-12d3-a456-426614174000"
HELLO = b"\x01\x00\x10" + uuid.UUID(ID).bytes


def message(kind: int, payload: bytes = b"") -> bytes:
    return bytes([kind]) + len(payload).to_bytes(2, "big") + payload


def pcm(n: int = 160, seed: int = 1) -> bytes:
    """Speech-like: smooth, loud."""
    t = np.arange(n) + 1000 * seed
    return (8000 * np.sin(t / 9.0)).astype("<i2").tobytes()


def opened(rules: Rules | None = None, now: float = 0.0) -> AudioSocket:
    ingress = AudioSocket(rules or Rules(), now)
    assert ingress.receive(HELLO, now) == [Opened(ID)]
    return ingress


def samples_of(events: list[IngressEvent]) -> list[int]:
    return [s for e in events if isinstance(e, Audio) for s in e.frame.samples.tolist()]


def feed(
    ingress: AudioSocket, data: bytes, cuts: list[int], now: float = 0.0
) -> list[IngressEvent]:
    events: list[IngressEvent] = []
    edges = [0, *sorted({c for c in cuts if 0 < c < len(data)}), len(data)]
    for a, b in zip(edges, edges[1:], strict=False):
        events += ingress.receive(data[a:b], now)
    return events


@pytest.mark.parametrize(("kind", "rate"), RATES.items())
def test_every_rate_has_its_kind(kind: int, rate: int) -> None:
    payload = pcm(rate // 50)
    events = opened().receive(message(kind, payload), 0.02)
    assert [type(e) for e in events] == [Audio]
    frame = events[0].frame  # type: ignore[union-attr]
    assert (frame.rate, frame.start, frame.samples.tobytes()) == (rate, 0, payload)


def test_kind_0x10_is_what_the_listener_says_it_is() -> None:
    ingress = opened(Rules(rate=16000))
    events = ingress.receive(message(0x10, pcm(320)) + message(0x10, pcm(160)), 0.02)
    assert [(e.frame.rate, len(e.frame.samples)) for e in events] == [(16000, 480)]  # type: ignore[union-attr]
    fast = ingress.receive(message(0x10, pcm(160)), 0.03)
    assert fast[0].frame.rate == 16000  # type: ignore[union-attr]


PIECES = st.lists(
    st.one_of(
        st.integers(0, 500).map(lambda n: message(0x10, pcm(n)[: 2 * n])),
        st.just(message(0x10, pcm(160))),
        st.sampled_from(b"0123456789*#ABCD").map(lambda d: message(0x03, bytes([d]))),
        st.just(message(0x02)),
        st.just(HELLO),
        st.binary(max_size=4).map(lambda b: message(0xFF, b)),
    ),
    max_size=12,
)


@given(PIECES, st.lists(st.integers(0, 4000), max_size=40))
def test_any_cut_gives_the_same_samples_and_digits(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    whole, cut = opened().receive(data, 0.5), feed(opened(), data, cuts, 0.5)
    assert samples_of(list(whole)) == samples_of(cut)
    assert [e for e in whole if isinstance(e, Digit | Warned | Closed)] == [
        e for e in cut if isinstance(e, Digit | Warned | Closed)
    ]


def test_byte_by_byte() -> None:
    data = HELLO + message(0x10, pcm()) + message(0x03, b"7") + message(0x00)
    events = feed(AudioSocket(Rules(), 0.0), data, list(range(len(data))))
    assert [type(e) for e in events] == [Opened, Audio, Digit, Closed]
    assert events[2:] == [Digit("7"), Closed("hangup")]


def test_the_fast_path_and_the_slow_path_agree() -> None:
    data = b"".join(message(0x10, pcm(160, seed)) for seed in range(4))
    fast = opened().receive(data, 0.08)
    slow = feed(opened(), data, [1], 0.08)
    assert samples_of(list(fast)) == samples_of(slow)
    assert len(fast) == 1


def test_zero_and_odd_lengths_are_taken() -> None:
    ingress = opened()
    assert samples_of(list(ingress.receive(message(0x10), 0.0))) == []
    events = ingress.receive(message(0x10, pcm(10) + b"\x7f") + message(0x10, pcm(2)), 0.0)
    assert [type(e) for e in events] == [Warned, Audio]
    assert len(samples_of(list(events))) == 12
    assert [type(e) for e in ingress.receive(message(0x10, b"\x01"), 0.0)] == [Audio]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"GET / HTTP/1.1\r\n", "the first message must be the UUID (kind 0x01), not kind 0x47"),
        (message(0x10, pcm()), "the first message must be the UUID (kind 0x01), not kind 0x10"),
        (message(0x01, b"short"), "a UUID message has 16 bytes, not 5"),
        (b"\x01\xff\xff", "a message of 65535 bytes is over max_frame = 8192"),
        (HELLO + b"\x10\xff\xff", "a message of 65535 bytes is over max_frame = 8192"),
        (HELLO + message(0x01, bytes(16)), "a second UUID on one connection"),
        (HELLO + message(0x77) * MAX_STRANGE, "10 messages of unknown kinds in a row"),
    ],
)  # fmt: skip
def test_what_is_not_audiosocket(data: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError) as e:
        AudioSocket(Rules(), 0.0).receive(data, 0.0)
    assert str(e.value) == sentence


def test_unknown_kinds_are_skipped_and_said_once() -> None:
    ingress = opened()
    events = ingress.receive((message(0x77, b"abc") + message(0x10, pcm())) * 30, 0.6)
    assert [e for e in events if isinstance(e, Warned)] == [
        Warned("unknown_kind", "message kind 0x77 is unknown, skipped")
    ]
    assert len(samples_of(list(events))) == 30 * 160


def test_bad_digits_and_peer_errors_end_nothing() -> None:
    events = opened().receive(message(0x03, b"\n") + message(0x03) + message(0xFF, b"\x02"), 0.0)
    assert [e.kind for e in events if isinstance(e, Warned)] == ["bad_digit", "peer_error"]
    assert not any(isinstance(e, Digit | Closed) for e in events)


def test_after_the_hangup_nothing_more_is_said() -> None:
    ingress = opened()
    assert ingress.receive(message(0x00) + b"garbage", 0.0) == [Closed("hangup")]
    assert list(ingress.receive(b"more", 1.0)) == []
    assert list(ingress.eof("eof")) == []
    assert list(ingress.expire(100.0)) == []


@pytest.mark.parametrize("reason", ["eof", "reset"])
def test_eof_and_reset_are_a_hang_up(reason: str) -> None:
    assert list(opened().eof(reason)) == [Closed(reason)]


def test_the_uuid_has_a_deadline() -> None:
    ingress = AudioSocket(Rules(uuid_deadline=2.0), 10.0)
    assert ingress.deadline() == 12.0
    ingress.receive(HELLO[:7], 11.9)
    assert list(ingress.expire(11.99)) == []
    assert list(ingress.expire(12.0)) == [Closed("timeout")]


# -- keep-alive ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "most"), [("continuous", 50), ("1s", 1), ("off", 0)])
def test_silence_is_sent_at_its_pace(mode: str, most: int) -> None:
    ingress = opened(Rules(keepalive=mode))  # type: ignore[arg-type]
    first = list(ingress.data_to_send())
    assert first == ([] if mode == "off" else [SILENCE_MESSAGE])  # right after the UUID
    sent = []
    for tick in range(1, 101):
        ingress.expire(tick * 0.02)
        sent += ingress.data_to_send()
    assert len(sent) == 2 * most
    assert set(sent) <= {SILENCE_MESSAGE}
    assert len(SILENCE_MESSAGE) == 323


def test_before_the_uuid_nothing_is_sent() -> None:
    ingress = AudioSocket(Rules(), 0.0)
    ingress.expire(1.0)
    assert list(ingress.data_to_send()) == []


def test_a_stall_is_not_followed_by_a_burst_of_silence() -> None:
    ingress = opened()
    ingress.expire(5.0)
    assert len(ingress.data_to_send()) <= 2


def test_hanging_up_is_three_zero_bytes() -> None:
    ingress = opened()
    ingress.data_to_send()
    ingress.hang_up()
    assert list(ingress.data_to_send()) == [b"\x00\x00\x00"]
    assert list(ingress.receive(message(0x10, pcm()), 0.1)) == []


# -- the clock ----------------------------------------------------------------------------------


def starts(ingress: AudioSocket, arrivals: list[float]) -> list[float]:
    return [
        e.frame.start / e.frame.rate
        for at in arrivals
        for e in ingress.receive(message(0x10, pcm()), at)
        if isinstance(e, Audio)
    ]


def test_the_clock_counts_samples_while_they_come() -> None:
    arrivals = [0.02 * i + 0.015 * (i % 3) for i in range(1, 200)]  # 30 ms of jitter
    assert starts(opened(), arrivals) == pytest.approx([0.02 * i for i in range(199)])


def test_a_gap_is_skipped_by_the_clock() -> None:
    got = starts(opened(), [0.02, 0.04, 0.36, 0.38])
    assert got == pytest.approx([0.0, 0.02, 0.34 - JITTER, 0.36 - JITTER], abs=0.001)


def test_a_silent_channel_lets_the_clock_run_on() -> None:
    ingress = opened()
    starts(ingress, [0.02])
    for tick in range(200):
        ingress.expire(0.02 + tick * 0.02)
    assert ingress.seconds == pytest.approx(4.0, abs=0.3)
    assert starts(ingress, [4.02]) == pytest.approx([4.0 - JITTER], abs=0.005)


def test_a_backlog_moves_the_origin_back_instead_of_the_clock_forward() -> None:
    """The kernel held 6 s of audio while the bridge restarted."""
    ingress = opened(now=100.0)
    burst = message(0x10, pcm()) * 300
    ingress.receive(burst, 100.0)
    assert ingress.origin == pytest.approx(94.0)
    assert starts(ingress, [100.02, 100.4]) == pytest.approx([6.0, 6.38 - JITTER], abs=0.001)


def test_gaps_do_not_add_up() -> None:
    """A frame after a gap may be late; were the clock set by it, every gap would move it on."""
    ingress = opened()
    now = 0.0
    for gap in range(100):
        for frame in range(100):
            now += 0.02
            starts(ingress, [now + (0.03 if frame == 0 else 0.0)])
        now += 0.5 + gap % 3 / 10
    assert ingress.origin == pytest.approx(0.0, abs=0.05)
    assert starts(ingress, [now + 0.02]) == pytest.approx([now], abs=0.2)


def test_late_frames_after_filled_silence_do_not_move_the_origin() -> None:
    ingress = opened()
    starts(ingress, [0.02, 0.04])
    ingress.expire(1.04)  # 1 s of nothing: filled
    ingress.receive(message(0x10, pcm()) * 50, 1.05)  # they were only late
    assert ingress.origin == pytest.approx(0.0, abs=0.01)


def test_a_change_of_rate_keeps_the_time() -> None:
    ingress = opened()
    starts(ingress, [0.02, 0.04])
    [event] = ingress.receive(message(0x12, pcm(320)), 0.06)
    assert isinstance(event, Audio)
    assert event.frame.start / event.frame.rate == pytest.approx(0.04)


def test_the_low_water_mark_reaches_to_the_end_of_the_block() -> None:
    ingress = opened()
    assert ingress.low_water == 1
    ingress.receive(message(0x10, pcm()), 0.02)
    assert ingress.low_water == 3 * 323
    ingress.receive(message(0x10, pcm()) * 3, 0.08)
    assert ingress.low_water == 4 * 323
    ingress.receive(message(0x10, b""), 0.08)
    assert ingress.low_water == 1


# -- mu-law with the wrong label ------------------------------------------------------------------


def mulaw_frames(silent: bool = False) -> list[bytes]:
    t = np.arange(160 * 60)
    speech = (6000 * np.sin(t / 11.0) * (1 + np.sin(t / 400.0)) / 2).astype(np.int16)
    coded = g711.encode_ulaw(np.zeros_like(speech) if silent else speech)
    return [coded[i : i + 160] for i in range(0, len(coded), 160)]


@pytest.mark.parametrize(("silent", "spacing"), [(False, 0.02), (True, 0.02), (False, 0.0)])
def test_mislabelled_mulaw_is_decoded_with_one_warning(silent: bool, spacing: float) -> None:
    ingress = opened()
    events = [
        e
        for i, frame in enumerate(mulaw_frames(silent))
        for e in ingress.receive(message(0x10, frame), (i + 1) * spacing)
    ]
    assert [e.kind for e in events if isinstance(e, Warned)] == ["mulaw_mislabelled"]
    expected = g711.decode_ulaw(b"".join(mulaw_frames(silent)))
    assert samples_of(events) == expected.tolist()


def test_ten_millisecond_linear_frames_are_not_mulaw() -> None:
    ingress = opened()
    events = [e for i in range(60) for e in ingress.receive(message(0x10, pcm(80)), (i + 1) * 0.01)]
    assert not any(isinstance(e, Warned) for e in events)
    assert len(samples_of(events)) == 60 * 80
    quiet = opened()
    events = [
        e for i in range(60) for e in quiet.receive(message(0x10, bytes(160)), (i + 1) * 0.01)
    ]
    assert len(samples_of(events)) == 60 * 80


# -- fuzz ------------------------------------------------------------------------------------------


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=10), st.booleans())
@settings(max_examples=300)
def test_anything_is_taken_or_is_a_protocol_error(
    data: bytes, cuts: list[int], greeted: bool
) -> None:
    ingress = opened() if greeted else AudioSocket(Rules(), 0.0)
    try:
        events = feed(ingress, data, cuts, 0.3)
    except ProtocolError:
        return
    assert all(isinstance(e, Opened | Audio | Digit | Warned | Closed) for e in events)
