"""The RTP ingress, datagrams in, events out."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio import g711
from bridge.audio.codecs import codec
from bridge.ingress import rtcp, rtp, srtp
from bridge.ingress.rtp import Rtp, RtpCounts, RtpRules
from bridge.ingress.rtp_packet import MAX_PACKET, Packet, build, parse
from bridge.ingress.rtp_types import AudioType, PayloadType, payload_types
from bridge.types import Audio, Closed, Digit, Frame, IngressEvent, Samples, Warned

VECTORS = Path(__file__).parent / "vectors" / "rtp"
SSRC, OTHER = 0xCAFE0001, 0xBBBB0002
START = 64000  # timestamp of packet 0
KEY = "inline:" + base64.b64encode(bytes(range(30))).decode()


def payload(number: int, size: int = 160) -> bytes:
    """mu-law that is different in every packet."""
    return bytes((number * 7 + i) & 0xFF for i in range(size))


def datagram(
    number: int,
    data: bytes | None = None,
    *,
    kind: int = 0,
    ssrc: int = SSRC,
    timestamp: int | None = None,
    marker: bool = False,
) -> bytes:
    """Packet `number` of a stream of 20 ms packets that counts from 0."""
    ts = START + 160 * number if timestamp is None else timestamp
    data = payload(number) if data is None else data
    return build(Packet(kind, number & 0xFFFF, ts & 0xFFFFFFFF, ssrc, data, marker))


def event(number: int, begin: int, key: int = 5, *, end: bool = False) -> bytes:
    """A telephone-event packet, `number` in the stream; the event began at packet `begin`."""
    data = bytes([key, 0x80 if end else 0]) + (160 * (number - begin)).to_bytes(2, "big")
    return datagram(number, data, kind=101, timestamp=START + 160 * begin)


def feed(
    ingress: Rtp, datagrams: Iterable[bytes], now: float = 0.0, every: float = 0.02
) -> list[IngressEvent]:
    events: list[IngressEvent] = []
    for i, data in enumerate(datagrams):
        events += ingress.receive(data, now + i * every)
    return events


def frames(events: Iterable[IngressEvent]) -> list[Frame]:
    return [e.frame for e in events if isinstance(e, Audio)]


def audio(events: Iterable[IngressEvent]) -> Samples:
    """All samples, in order; asserts that they are on the clock without a gap or an overlap."""
    heard = [f for f in frames(events) if len(f.samples)]
    for a, b in zip(heard, heard[1:], strict=False):
        assert b.start == a.start + len(a.samples)
    return np.concatenate([f.samples for f in heard]) if heard else np.zeros(0, np.int16)


def sent(numbers: Iterable[int]) -> Samples:
    return g711.decode_ulaw(b"".join(payload(n) for n in numbers))


def running(rules: RtpRules | None = None) -> Rtp:
    """Packets 0 to 2 have come, at 0 to 0.04 s."""
    ingress = Rtp(rules or RtpRules(), 0.0)
    assert audio(feed(ingress, map(datagram, range(3)))).tolist() == sent(range(3)).tolist()
    return ingress


def accounted(counts: RtpCounts) -> int:
    return (
        counts.received + counts.duplicate + counts.stray + counts.invalid
        + counts.srtp_failed + counts.srtp_replayed + counts.rtcp
    )  # fmt: skip


# -- audio ---------------------------------------------------------------------------------------


def test_packets_become_audio_on_the_legs_clock_at_once() -> None:
    ingress = Rtp(RtpRules(), 100.0)
    assert ingress.receive(datagram(0), 100.0) == []  # one packet is no stream yet
    [first] = frames(ingress.receive(datagram(1), 100.02))
    assert (first.start, first.rate, first.packets, first.concealed) == (0, 8000, 2, False)
    assert first.samples.tolist() == sent(range(2)).tolist()
    [second] = frames(ingress.receive(datagram(2), 100.04))
    assert (second.start, second.packets) == (320, 1)
    assert ingress.seconds == pytest.approx(0.06)
    assert ingress.counts() == RtpCounts(received=3)


def test_many_at_once_are_what_they_are_one_by_one() -> None:
    datagrams = [(datagram(n), n * 0.02) for n in range(50)]
    together = Rtp(RtpRules(), 0.0).receive_many(datagrams)
    assert (
        audio(together).tolist()
        == audio(feed(Rtp(RtpRules(), 0.0), map(datagram, range(50)))).tolist()
    )
    assert len(together) < 5
    assert Rtp(RtpRules(), 0.0).receive_many([]) == ()


@pytest.mark.parametrize(
    ("announced", "kind", "data", "expected", "rate"),
    [
        ("pcmu", 0, b"\x00\x80\xff\x7f", [-32124, 32124, 0, 0], 8000),
        ("pcmu", 8, b"\xd5\x55\xaa\x2a", [8, -8, 32256, -32256], 8000),
        ("slin16", 118, b"\x00\x01\xff\x00\x7f\xff", [1, -256, 32767], 16000),
        ("slin", 10, b"\x00\x01\xff\xff", [1, -1], 8000),
        ("slin", 11, b"\x00\x01\xff\xff", [1, -1], 8000),
        ("pcmu", 11, b"\x00\x01\xff\xff", [1, -1], 44100),
        ("slin24", 123, b"\x00\x01\xff\xff", [1, -1], 24000),
        ("slin48", 126, b"\x00\x01\xff\xff\x05", [1, -1], 48000),  # an odd octet is no sample
    ],
)
def test_each_payload_type_has_its_codec(
    announced: str, kind: int, data: bytes, expected: list[int], rate: int
) -> None:
    ingress = Rtp(RtpRules(payload_types(announced)), 0.0)
    step = len(expected)
    packets = [datagram(n, data, kind=kind, timestamp=step * n) for n in range(2)]
    events = feed(ingress, packets)
    assert audio(events).tolist() == expected * 2
    assert {f.rate for f in frames(events)} == {rate}


def test_the_clock_of_wideband_audio_is_its_own() -> None:
    ingress = Rtp(RtpRules(payload_types("slin16")), 0.0)
    packets = [datagram(n, payload(n, 640), kind=118, timestamp=320 * n) for n in range(100)]
    assert len(audio(feed(ingress, packets))) == 100 * 320
    assert ingress.seconds == pytest.approx(2.0)
    assert ingress.counts().jitter == pytest.approx(0.0, abs=1e-9)


def test_the_origin_is_when_the_first_sample_came() -> None:
    ingress = Rtp(RtpRules(), 100.0)  # announced
    feed(ingress, map(datagram, range(10)), 107.0)
    assert ingress.origin == pytest.approx(107.0 - 0.02)


def test_l16_in_the_other_byte_order_is_heard_where_it_is_announced() -> None:
    rules = RtpRules(payload_types("l16le/8000", {"96": "l16le/8000"}))
    packets = [datagram(n, b"\x01\x00\x00\x01", kind=96, timestamp=2 * n) for n in range(2)]
    assert audio(feed(Rtp(rules, 0.0), packets)).tolist() == [1, 256, 1, 256]


def test_g722_is_16_khz_with_a_clock_of_8_khz() -> None:
    pytest.importorskip("G722")
    ingress = Rtp(RtpRules(payload_types("g722")), 0.0)
    events = feed(ingress, (datagram(n, kind=9) for n in range(50)))
    assert len(audio(events)) == 50 * 320
    assert frames(events)[-1].rate == 16000
    assert ingress.seconds == pytest.approx(1.0)
    assert ingress.counts().jitter == pytest.approx(0.0, abs=1e-9)


def test_g722_without_its_library_is_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, rate: int) -> None:
        raise ValueError("codec 'g722' needs a library: pip install G722")

    monkeypatch.setattr(rtp, "codec", missing)
    ingress = Rtp(RtpRules(), 0.0)
    events = feed(ingress, (datagram(n, kind=9) for n in range(5)))
    assert events == [Warned("unknown_type", "codec 'g722' needs a library: pip install G722")]
    assert ingress.counts() == RtpCounts(received=5, unknown_type=5)


@pytest.mark.parametrize("ptime", [10, 20, 30, 40, 60, 5, 100])
def test_any_packet_time_is_heard(ptime: int) -> None:
    size = 8 * ptime
    ingress = Rtp(RtpRules(), 0.0)
    packets = [datagram(n, payload(n, size), timestamp=size * n) for n in range(40)]
    events = feed(ingress, packets, every=ptime / 1000)
    assert (
        audio(events).tolist()
        == g711.decode_ulaw(b"".join(payload(n, size) for n in range(40))).tolist()
    )


def test_a_change_of_packet_time_is_heard() -> None:
    ingress = running()
    whole = payload(3, 480)
    packets = [
        datagram(3, whole[:80], timestamp=START + 480),
        datagram(4, whole[80:400], timestamp=START + 560),
        datagram(5, whole[400:], timestamp=START + 880),
    ]
    assert audio(feed(ingress, packets, 0.06)).tolist() == g711.decode_ulaw(whole).tolist()


# -- what else comes (M7) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["csrc-15", "extension-2-words", "csrc-2-extension-1-word-padding-1", "padding-4"]
)
def test_what_surrounds_the_payload_is_not_heard(name: str) -> None:
    data = (VECTORS / f"{name}.bin").read_bytes()
    packet = parse(data)
    assert isinstance(packet, Packet)
    following = bytearray(data)
    following[3] += 1
    following[7] += len(packet.payload)
    ingress = Rtp(RtpRules(), 0.0)
    events = feed(ingress, [data, bytes(following)])
    assert audio(events).tobytes() == g711.decode_ulaw(packet.payload).tobytes() * 2
    assert accounted(ingress.counts()) == ingress.counts().received == 2


def test_datagrams_that_are_no_packets_are_counted_by_what_is_wrong() -> None:
    ingress = running()
    good = datagram(3)
    bad = [
        b"", good[:11], b"\x40" + good[1:], b"\x8f" + good[1:20], b"\x90" + good[1:14],
        b"\xa0" + good[1:-1] + b"\x00", good + bytes(MAX_PACKET), bytes(65507),
    ]  # fmt: skip
    assert feed(ingress, bad) == []
    counts = ingress.counts()
    assert counts.faults == {
        "short": 2, "version": 1, "csrc": 1, "extension": 1, "padding": 1, "oversized": 2,
    }  # fmt: skip
    assert counts.invalid == 8
    assert audio(feed(ingress, [good], 0.06)).tolist() == sent([3]).tolist()


def test_every_truncation_of_a_packet_is_less_audio_or_nothing() -> None:
    whole = datagram(3)
    for length in range(len(whole)):
        ingress = running()
        heard = audio(feed(ingress, [whole[:length]], 0.06))
        assert heard.tolist() == sent([3])[: max(0, length - 12)].tolist()
        counts = ingress.counts()
        assert (counts.received, counts.invalid) == ((4, 0) if length >= 12 else (3, 1))


def test_comfort_noise_is_a_silence_that_nobody_lost() -> None:
    """One CN packet, then nothing for a second, then speech (RFC 3389)."""
    ingress = running()
    events = feed(ingress, [datagram(3, b"\x2e", kind=13)], 0.06)
    late = 53
    packets = [datagram(4, payload(4), timestamp=START + 160 * late, marker=True)]
    packets += [datagram(5, payload(5), timestamp=START + 160 * (late + 1))]
    events += feed(ingress, packets, 1.06)
    speech = [f for f in frames(events) if len(f.samples)]
    assert [f.start for f in speech] == [160 * late, 160 * (late + 1)]
    counts = ingress.counts()
    assert (counts.received, counts.lost, counts.concealed, counts.unknown_type) == (6, 0, 0, 0)


def test_unknown_payload_types_are_counted_said_once_and_silent() -> None:
    ingress = running()
    events = feed(ingress, (datagram(n, kind=18) for n in range(3, 6)), 0.06)
    text = "payload type 18 was not announced: silence instead"
    assert events == [Warned("unknown_type", text)]
    [frame] = [f for f in frames(feed(ingress, [datagram(6)], 0.12)) if len(f.samples)]
    assert (frame.start, frame.concealed) == (960, False)
    assert ingress.counts() == RtpCounts(received=7, unknown_type=3, jitter=ingress.counts().jitter)


def test_packets_without_payload_keep_the_stream_alive_and_are_silent() -> None:
    ingress = running(RtpRules(timeout=1.0))
    for n in range(3, 9):
        now = 0.04 + (n - 2) * 0.9
        assert not any(isinstance(e, Closed) for e in ingress.expire(now - 0.1))
        assert audio(ingress.receive(datagram(n, b""), now)).tolist() == []
    assert ingress.counts().received == 9


# -- order, loss, wraps, jumps (M2, M4) ------------------------------------------------------------


def test_reordered_packets_are_heard_in_order_and_duplicates_once() -> None:
    ingress = running()
    events = feed(ingress, map(datagram, [4, 3, 3, 4, 6, 5, 7]), 0.06, every=0.005)
    assert audio(events).tolist() == sent([3, 4, 5, 6, 7]).tolist()
    counts = ingress.counts()
    assert (counts.reordered, counts.duplicate, counts.lost, counts.late) == (2, 2, 0, 0)


def test_a_lost_packet_is_concealed_after_the_deadline_and_counted() -> None:
    ingress = running()
    assert audio(feed(ingress, [datagram(4)], 0.08)).tolist() == []
    due = ingress.deadline()
    assert due is not None
    assert 0.08 < due <= 0.28
    assert ingress.expire(due - 0.001) == []
    events = list(ingress.expire(due))
    assert [(f.start, f.concealed) for f in frames(events)] == [(480, True), (640, False)]
    assert audio(feed(ingress, [datagram(3)], due + 0.001)).tolist() == []  # too late
    counts = ingress.counts()
    assert (counts.lost, counts.late, counts.received) == (0, 1, 5)
    assert counts.concealed == pytest.approx(0.02)


@pytest.mark.parametrize("dropped", [(), (65535, 65536)])
@pytest.mark.parametrize("start", [0, (1 << 32) - 3000])
def test_wraps_of_number_and_timestamp_are_not_heard(dropped: tuple[int, ...], start: int) -> None:
    ingress = Rtp(RtpRules(), 0.0)
    numbers = [n for n in range(65520, 65570) if n not in dropped]
    packets = [datagram(n, timestamp=start + 160 * (n - 65520)) for n in numbers]
    events = [
        e
        for n, p in zip(numbers, packets, strict=True)
        for e in ingress.receive(p, (n - 65520) * 0.02)
    ]
    events += ingress.eof("eof", 2.0)
    real = [f for f in frames(events) if not f.concealed]
    assert np.concatenate([f.samples for f in real]).tolist() == sent(numbers).tolist()
    assert len(audio(events)) == 50 * 160
    assert ingress.counts().lost == len(dropped)


@pytest.mark.parametrize("jump", [0, 1, -1, 50, -50, 3000, -3000, 30000, -30000])
@pytest.mark.parametrize("seconds", [0, 1, -1, 60, -60])
def test_after_a_jump_of_number_or_timestamp_100_ms_at_most_are_not_heard(
    jump: int, seconds: int
) -> None:
    ingress = Rtp(RtpRules(), 0.0)
    feed(ingress, map(datagram, range(100)))
    events: list[IngressEvent] = []
    for n in range(100, 200):
        now = n * 0.02
        timestamp = START + 160 * n + 8000 * seconds
        events += ingress.receive(
            datagram(n + jump, payload(n), timestamp=timestamp, marker=n == 100), now
        )
        due = ingress.deadline()
        if due is not None and due < now + 0.02:
            events += ingress.expire(due)
    heard = frames(events)
    real = [f for f in heard if not f.concealed and len(f.samples)]
    whole = b"".join(f.samples.tobytes() for f in real)
    assert whole.endswith(sent(range(105, 200)).tobytes())
    ends = [0, *(f.start + len(f.samples) for f in heard)]
    assert all(f.start >= end for f, end in zip(heard, ends, strict=False))
    assert ingress.seconds == pytest.approx(4.0 + max(0, seconds), abs=61 if seconds else 0.3)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("jitter", [0.0, 0.02, 0.06, 0.2])
@pytest.mark.parametrize("doubled", [0.0, 0.05])
def test_through_a_bad_network_each_packet_is_heard_once_or_counted(
    loss: float, jitter: float, doubled: float
) -> None:
    rng = random.Random(f"{loss} {jitter} {doubled}")
    count = 500
    arrivals = sorted(
        (n * 0.02 + rng.uniform(0, jitter if n > 2 else 0), n)
        for n in range(count)
        if n in (0, 1, 2, count - 1) or rng.random() >= loss
        for _ in range(2 if rng.random() < doubled else 1)
    )
    ingress = Rtp(RtpRules(payload_types("slin")), 0.0)
    events: list[IngressEvent] = []
    for now, n in arrivals:
        while (due := ingress.deadline()) is not None and due <= now:
            events += ingress.expire(due)
        data = (n + 1).to_bytes(2, "big") * 160  # its samples say which it is; 0 is nobody's
        events += ingress.receive(datagram(n, data, kind=11), now)
    events += ingress.eof("eof", 20.0)
    counts = ingress.counts()
    heard = np.concatenate([f.samples for f in frames(events) if not f.concealed])
    numbers = heard.reshape(-1, 160)
    assert np.all(numbers == numbers[:, :1])
    assert np.all(np.diff(numbers[:, 0]) > 0)
    assert counts.received == len({n for _, n in arrivals})
    assert counts.duplicate == len(arrivals) - counts.received
    assert counts.lost == count - counts.received
    assert len(numbers) == counts.received - counts.late
    assert counts.concealed == pytest.approx(0.02 * (counts.lost + counts.late))
    assert len(audio(events)) == count * 160


def test_an_hour_with_all_its_wraps_is_heard_sample_by_sample() -> None:
    """180,000 packets: the numbers wrap twice, the timestamps once; the sender's clock is slow."""
    ingress = Rtp(RtpRules(payload_types("slin")), 0.0)
    begin = (1 << 32) - 8000 * 600
    step, behind = 50, 0
    values = np.arange(65536, dtype=np.uint16).view(np.int16)
    for first in range(0, 180_000, step):
        batch = []
        for n in range(first, first + step):
            low = n * 160 & 0xFFFF
            samples = values[low : low + 160] if low <= 65536 - 160 else np.roll(values, -low)[:160]
            data = samples.astype(">i2").tobytes()
            packet = Packet(11, 60_000 + n & 0xFFFF, begin + 160 * n & 0xFFFFFFFF, SSRC, data)
            batch.append((build(packet), n * 0.02 * (1 + 200e-6) + 0.001 * (n % 3)))
        for frame in frames(ingress.receive_many(batch)):
            assert frame.start == behind
            expected = np.arange(behind, behind + len(frame.samples)).astype(np.uint16)
            assert np.array_equal(frame.samples.view(np.uint16), expected)
            behind += len(frame.samples)
    assert behind == 180_000 * 160
    assert ingress.seconds == 3600.0
    counts = ingress.counts()
    assert counts.received == 180_000
    assert (counts.lost, counts.late, counts.duplicate, counts.restarts) == (0, 0, 0, 0)
    # Word latencies are measured against the origin, which has to follow the drift.
    assert ingress.origin == pytest.approx(3600 * 200e-6, abs=0.12)
    assert counts.jitter == pytest.approx(0.001, abs=0.0005)


# -- another SSRC, another codec (M3) -------------------------------------------------------------


def test_another_ssrc_is_heard_whole_behind_the_old_one() -> None:
    ingress = running()
    assert feed(ingress, (datagram(n, ssrc=OTHER) for n in range(500, 503)), 0.06) == []
    events = list(ingress.receive(datagram(503, ssrc=OTHER), 0.12))
    assert audio(events).tolist() == sent(range(500, 504)).tolist()
    assert frames(events)[0].start <= 480 + 480  # a gap of 60 ms at most
    assert audio(feed(ingress, [datagram(504, ssrc=OTHER)], 0.14)).tolist() == sent([504]).tolist()
    counts = ingress.counts()
    assert (counts.restarts, counts.lost, counts.concealed, counts.stray) == (1, 0, 0, 0)


def test_another_ssrc_beside_the_stream_is_never_heard() -> None:
    ingress = running()
    events: list[IngressEvent] = []
    for n in range(3, 100):
        events += ingress.receive(datagram(n), n * 0.02)
        assert ingress.receive(datagram(n + 1, ssrc=OTHER), n * 0.02 + 0.01) == []
    assert audio(events).tolist() == sent(range(3, 100)).tolist()
    assert ingress.counts().stray == 97


def test_a_change_of_codec_is_followed_and_the_clock_goes_on() -> None:
    rules = RtpRules(payload_types("slin16"))
    ingress = Rtp(rules, 0.0)
    events = feed(ingress, map(datagram, range(50)))
    wide = b"\x01\x02" * 320
    packets = [
        datagram(n, wide, kind=118, timestamp=START + 8000 + 320 * (n - 50)) for n in range(50, 100)
    ]
    events += feed(ingress, packets, 1.0)
    events += feed(ingress, (datagram(n, kind=8) for n in range(100, 150)), 2.0)
    heard = [f for f in frames(events) if len(f.samples)]
    at = 0.0
    for frame in heard:
        assert frame.start / frame.rate == pytest.approx(at, abs=0.06)
        at = (frame.start + len(frame.samples)) / frame.rate
    seconds = {
        rate: sum(len(f.samples) for f in heard if f.rate == rate) / rate for rate in (8000, 16000)
    }
    assert seconds == {8000: 2.0, 16000: 1.0}
    assert ingress.seconds == pytest.approx(3.0, abs=0.06)


def test_a_late_packet_of_the_codec_before_does_not_change_it_back() -> None:
    ingress = running()
    events = feed(
        ingress, [datagram(3), datagram(5, kind=8), datagram(4), datagram(6, kind=8)], 0.06
    )
    events += ingress.eof("eof", 1.0)
    real = b"".join(f.samples.tobytes() for f in frames(events) if not f.concealed)
    alaw = g711.decode_alaw(payload(5) + payload(6)).tobytes()
    assert real == sent([3]).tobytes() + alaw
    assert ingress.counts().late == 1


def test_two_numbers_of_one_codec_are_one_stream() -> None:
    ingress = running(RtpRules(payload_types("pcmu", {"96": "PCMU/8000"})))
    events = feed(ingress, (datagram(n, kind=96 * (n % 2)) for n in range(3, 50)), 0.06)
    assert audio(events).tolist() == sent(range(3, 50)).tolist()


# -- digits ----------------------------------------------------------------------------------------


def test_an_event_is_one_digit_and_its_time_is_silence() -> None:
    ingress = running()
    packets = [event(n, 3) for n in range(3, 8)] + [event(n, 3, end=True) for n in (8, 9, 10)]
    events = feed(ingress, packets, 0.06)
    assert [e for e in events if isinstance(e, Digit)] == [Digit("5")]
    assert audio(events).tolist() == []
    [frame] = [f for f in frames(feed(ingress, [datagram(11)], 0.22)) if len(f.samples)]
    assert (frame.start, frame.concealed) == (11 * 160, False)
    counts = ingress.counts()
    assert (counts.lost, counts.unknown_type, counts.concealed, counts.invalid) == (0, 0, 0, 0)


def test_events_beside_the_audio_disturb_nothing() -> None:
    """Some senders keep the audio on; each packet has its own number."""
    ingress = running()
    packets = []
    for i in range(10):
        packets += [event(3 + 2 * i, 3, end=i > 6)]
        packets += [datagram(4 + 2 * i, payload(i), timestamp=START + 160 * (3 + i))]
    events = feed(ingress, packets, 0.06, every=0.01)
    assert [e for e in events if isinstance(e, Digit)] == [Digit("5")]
    assert audio(events).tolist() == sent(range(10)).tolist()
    assert ingress.counts().jitter < 0.005


def test_a_digit_waits_for_the_audio_before_it() -> None:
    ingress = running()
    packets = [datagram(4), event(5, 5), event(6, 5, end=True), event(7, 5, end=True)]
    assert feed(ingress, packets, 0.08, every=0.005) == []  # packet 3 is missing
    events = ingress.receive(datagram(3), 0.1)
    assert [type(e) for e in events] == [Audio, Digit]
    assert audio(events).tolist() == sent([3, 4]).tolist()


def test_a_digit_waits_no_longer_than_the_audio_may() -> None:
    ingress = running(RtpRules(jitter_floor=0.1, jitter_cap=0.1))
    events: list[IngressEvent] = []
    number, now = 4, 0.08
    for data in (datagram(number), event(5, 5, end=True)):
        events += ingress.receive(data, now)
    assert events == []
    while not any(isinstance(e, Digit) for e in events):  # every second packet is lost
        number, now = number + 2, now + 0.04
        events += ingress.receive(datagram(number), now)
        events += ingress.expire(now)
        assert now < 0.08 + 0.1 + 0.04
    assert [type(e) for e in events][-1] is Digit


def test_a_digit_without_an_end_is_told_by_time() -> None:
    ingress = running()
    assert [
        e for e in feed(ingress, [event(3, 3), event(4, 3)], 0.06) if isinstance(e, Digit)
    ] == []
    assert ingress.deadline() == pytest.approx(0.08 + 0.15)
    assert [e for e in ingress.expire(0.231) if isinstance(e, Digit)] == [Digit("5")]
    assert not any(isinstance(e, Digit) for e in feed(ingress, [event(5, 3, end=True)], 0.3))


def test_digits_before_any_audio_are_told() -> None:
    ingress = Rtp(RtpRules(), 0.0)
    assert feed(ingress, [event(3, 3), event(4, 3, end=True)]) == [Digit("5")]


@pytest.mark.parametrize("change", ["ssrc", "eof"])
def test_a_digit_that_is_open_at_the_end_of_its_stream_is_told(change: str) -> None:
    ingress = running()
    events = feed(ingress, [event(3, 3)], 0.06)
    if change == "ssrc":
        events += feed(ingress, (datagram(n, ssrc=OTHER) for n in range(70, 76)), 0.08)
    else:
        events += ingress.eof("eof", 0.08)
    assert [e for e in events if isinstance(e, Digit)] == [Digit("5")]


# -- RTCP ------------------------------------------------------------------------------------------


def sender_report(ssrc: int = SSRC, ntp: int = 0x1111222233334444) -> bytes:
    body = ssrc.to_bytes(4, "big") + ntp.to_bytes(8, "big") + bytes(12)
    return b"\x80\xc8\x00\x06" + body


def goodbye(ssrc: int = SSRC) -> bytes:
    return b"\x80\xc9\x00\x01" + bytes(4) + b"\x81\xcb\x00\x01" + ssrc.to_bytes(4, "big")


def test_reports_go_to_a_peer_that_reports_and_say_what_was_lost() -> None:
    ingress = running(RtpRules(ssrc=0x1200, cname="scribe"))
    ingress.receive(sender_report(), 1.0)
    assert ingress.data_to_send() == ()
    assert ingress.deadline() == pytest.approx(3.5)
    feed(ingress, map(datagram, (5, 6, 7)), 1.0)
    ingress.expire(3.5)
    [data] = ingress.data_to_send()
    block = rtcp.ReportBlock(SSRC, 64, 2, 7, rtcp_jitter(ingress), 0x22223333, round(2.5 * 65536))
    assert rtcp.parse(data) == [
        rtcp.ReceiverReport(0x1200, (block,)), rtcp.Description(((0x1200, b"scribe"),)),
    ]  # fmt: skip
    assert ingress.data_to_send() == ()


def rtcp_jitter(ingress: Rtp) -> int:
    return int(ingress.counts().jitter * 8000)


def test_nobody_else_is_sent_anything() -> None:
    ingress = running()
    strange = [
        (VECTORS / "bad-rtcp-bleed-4-octets.bin").read_bytes(), b"\x80\xc8\x00\x00",
        b"\x80\xcb\x00\x00", sender_report(OTHER), goodbye(OTHER), b"\x80\xc9\x00\x01" + bytes(4),
    ]  # fmt: skip
    assert feed(ingress, strange, 0.1) == []
    for tick in range(200):
        feed(ingress, map(datagram, range(3 + tick * 5, 8 + tick * 5)), 0.1 * tick)
        ingress.expire(0.1 * tick)
    assert ingress.data_to_send() == ()
    ingress.hang_up(20.0)
    assert ingress.data_to_send() == ()
    counts = ingress.counts()
    assert (counts.rtcp, counts.faults) == (4, {"rtcp_length": 2})


def test_a_port_before_its_stream_answers_nothing() -> None:
    ingress = Rtp(RtpRules(), 0.0)
    assert feed(ingress, [sender_report(), goodbye()]) == []
    assert ingress.expire(10.0) == []
    assert ingress.data_to_send() == ()


def test_a_bye_is_a_hang_up_after_the_last_audio() -> None:
    ingress = running()
    feed(ingress, [datagram(4), event(5, 5)], 0.08)  # packet 3 is missing
    assert ingress.receive(goodbye(), 0.1) == []
    events = [*ingress.expire(0.2), *ingress.expire(2.09)]
    assert [type(e) for e in events] == [Audio, Audio, Digit]
    assert ingress.deadline() == pytest.approx(2.1)
    events = ingress.expire(2.1)
    assert events[-1] == Closed("hangup")
    assert ingress.deadline() is None
    assert ingress.receive(datagram(6), 0.12) == ()
    assert ingress.expire(99.0) == ()
    assert ingress.eof("eof", 99.0) == ()


def test_our_own_hang_up_says_goodbye_where_rtcp_is_spoken() -> None:
    ingress = running()
    ingress.receive(sender_report(), 0.1)
    ingress.hang_up(0.2)
    [data] = ingress.data_to_send()
    reports = rtcp.parse(data)
    assert isinstance(reports, list)
    assert reports[-1] == rtcp.Bye((1,))
    assert ingress.receive(datagram(3), 0.3) == ()


# -- time ------------------------------------------------------------------------------------------


def test_a_peer_that_is_silent_for_too_long_is_gone() -> None:
    ingress = running(RtpRules(timeout=5.0))
    assert ingress.expire(5.03) == []
    assert ingress.deadline() == pytest.approx(5.04)
    assert ingress.expire(5.04) == [Closed("timeout")]
    assert ingress.deadline() is None


def test_a_peer_that_never_comes_is_gone_too() -> None:
    ingress = Rtp(RtpRules(timeout=5.0), 100.0)
    assert ingress.deadline() == 105.0
    assert ingress.expire(105.0) == [Closed("timeout")]


def test_reports_keep_a_silent_call_up_and_rubbish_does_not() -> None:
    ingress = running(RtpRules(timeout=5.0))
    ingress.receive(sender_report(), 4.0)
    assert ingress.expire(8.9) == []
    feed(ingress, [b"rubbish", b"\x80\xc8\x00\x00", datagram(9, ssrc=OTHER)], 8.9, every=0.0)
    assert ingress.expire(9.0) == [Closed("timeout")]


def test_the_deadline_is_never_later_than_what_is_due() -> None:
    rng = random.Random(5)
    ingress = Rtp(RtpRules(timeout=2.0), 0.0)
    for n in range(2000):
        if rng.random() < 0.8:
            ingress.receive(
                datagram(n) if n % 50 else event(n, n, end=rng.random() < 0.5), n * 0.02
            )
        buffer = ingress._playout.buffer
        due = buffer.deadline() if buffer else None
        assert due is None or ingress.next_at <= due
        assert ingress.next_at <= ingress._digits.deadline
        ingress.expire(n * 0.02 + 0.01)


# -- SRTP ------------------------------------------------------------------------------------------


def sealed(packets: Iterable[bytes], key: str = KEY) -> list[bytes]:
    sealer = srtp.Sealer(srtp.keys("AES_CM_128_HMAC_SHA1_80", key))
    return [sealer.rtp(data) for data in packets]


def secured(**more: object) -> RtpRules:
    return RtpRules(srtp=srtp.keys("AES_CM_128_HMAC_SHA1_80", KEY), **more)  # type: ignore[arg-type]


def test_srtp_is_heard_and_a_replay_and_plain_rtp_are_not() -> None:
    ingress = Rtp(secured(), 0.0)
    packets = sealed(map(datagram, range(50)))
    assert audio(feed(ingress, packets)).tolist() == sent(range(50)).tolist()
    assert feed(ingress, packets, 1.0) == []
    assert feed(ingress, map(datagram, range(50, 60)), 2.0) == []
    counts = ingress.counts()
    assert (counts.received, counts.srtp_replayed, counts.srtp_failed) == (50, 50, 10)


def test_a_wrong_key_is_said_once_and_nothing_is_heard() -> None:
    ingress = Rtp(secured(), 0.0)
    other = "inline:" + base64.b64encode(bytes(30)).decode()
    events = feed(ingress, sealed(map(datagram, range(200)), other))
    text = "50 packets and none opens: is the srtp key that was announced theirs?"
    assert events == [Warned("srtp_failed", text)]
    assert ingress.counts() == RtpCounts(srtp_failed=200)
    assert ingress.expire(30.0) == [Closed("timeout")]


def test_rtcp_under_srtp_has_to_be_sealed_and_is_answered_sealed_or_not_at_all() -> None:
    answer = srtp.keys("AES_CM_128_HMAC_SHA1_80", "inline:" + base64.b64encode(bytes(30)).decode())
    for rules, answers in ((secured(), 0), (secured(answer=answer), 1)):
        ingress = Rtp(rules, 0.0)
        feed(ingress, sealed(map(datagram, range(3))))
        peer = srtp.Sealer(srtp.keys("AES_CM_128_HMAC_SHA1_80", KEY))
        assert ingress.receive(goodbye(), 0.05) == []
        ingress.receive(peer.rtcp(sender_report()), 0.06)
        ingress.expire(6.0)
        out = ingress.data_to_send()
        assert len(out) == answers
        for data in out:
            opened = srtp.Opener(answer).rtcp(data)
            assert opened is not None
            assert isinstance(rtcp.parse(opened), list)
        assert ingress.receive(peer.rtcp(goodbye()), 6.1) == []
        assert ingress.expire(8.1) == [Closed("hangup")]
        assert ingress.counts().srtp_failed == 1


# -- anything (M16) --------------------------------------------------------------------------------

TYPES: dict[int, PayloadType] = {**payload_types("slin16"), 96: AudioType("l16le", 8000)}
NUMBERS = [1, 1, 1, 1, 1, 1, 1, 1, 0, 2, 3, -1, -2, 50, 3000, -30000]
TICKS = [160, 160, 160, 160, 160, 160, 160, 320, 0, -160, 16000, 480000, -480000, 1 << 31, 1, 40]
KINDS = [0, 0, 0, 0, 0, 0, 0, 8, 96, 118, 13, 101, 101, 18, 127, 11]
SIZES = [160, 160, 160, 0, 1, 4, 480, 1500]
WAITS = [0.02, 0.02, 0.02, 0.02, 0.0, 0.001, 0.3, 3.0]
ODDITIES = ["cut", "flip", "rtcp", "bye", "noise", "expire", "options"]


def oddity(name: str, data: bytes, rng: random.Random) -> bytes:
    """A datagram that is not as it should be, or something else instead."""
    match name:
        case "cut":
            return data[: rng.randrange(len(data))]
        case "flip":
            at = rng.randrange(min(16, len(data)))
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case "rtcp":
            return sender_report(rng.choice([SSRC, OTHER]))
        case "bye":
            return goodbye(SSRC if rng.random() < 0.2 else 1)
        case "noise":
            return rng.randbytes(rng.randrange(60))
        case "options":
            packet = parse(data)
            assert isinstance(packet, Packet)
            padding = rng.randrange(1, 200)
            return build(packet, csrcs=[1, 2], extension=(1, bytes(8)), padding=padding)
    return data


def story(moves: bytes, rng: random.Random) -> Iterable[tuple[bytes, float, bool]]:
    """Datagrams, when they come, and whether time passes before; four octets make one."""
    number, timestamp, now = 65530, (1 << 32) - 1000, 0.0
    for a, b, c, d in zip(*[iter(moves)] * 4, strict=False):
        number, timestamp, now = (
            number + NUMBERS[a & 15],
            timestamp + TICKS[a >> 4],
            now + WAITS[b & 7],
        )
        ssrc = OTHER if c >= 0xC0 else SSRC
        data = datagram(
            number, rng.randbytes(SIZES[b >> 3 & 7]), kind=KINDS[c & 15], ssrc=ssrc,
            timestamp=timestamp, marker=b >= 0xE0,
        )  # fmt: skip
        yield (oddity(ODDITIES[d % 7], data, rng) if d >= 0xC0 else data), now, d >= 0xE0


def most(data: bytes) -> float:
    """Seconds of audio in a datagram, if all goes well."""
    packet = parse(data)
    kind = TYPES.get(packet.payload_type) if isinstance(packet, Packet) else None
    if not isinstance(packet, Packet) or not isinstance(kind, AudioType):
        return 0.0
    return codec(kind.name, kind.rate).samples(len(packet.payload)) / kind.rate


@given(st.binary(max_size=160), st.integers(0, 2**32))
@settings(max_examples=2000, deadline=None)
def test_whatever_comes_nothing_raises_and_no_more_is_heard_than_came(
    moves: bytes, seed: int
) -> None:
    ingress = Rtp(RtpRules(TYPES, timeout=5.0), 0.0)
    events: list[IngressEvent] = []
    came, seconds, now = 0, 0.0, 0.0
    closed = False
    for data, now, pause in story(moves, random.Random(seed)):
        if pause:
            events += ingress.expire(now)
            ingress.data_to_send()
        closed = closed or any(isinstance(e, Closed) for e in events)
        came += not closed
        seconds += most(data)
        events += ingress.receive(data, now)
    closed = any(isinstance(e, Closed) for e in events)
    if not closed:
        events += ingress.eof("eof", now)
    assert [e for e in events if isinstance(e, Closed)] == events[-1:]
    assert accounted(ingress.counts()) == came
    heard = sum(len(f.samples) / f.rate for f in frames(events) if not f.concealed)
    assert heard <= seconds + 1e-9
    end = 0.0
    for frame in frames(events):
        assert frame.start / frame.rate >= end - 1.01 / frame.rate
        end = (frame.start + len(frame.samples)) / frame.rate
    assert all(isinstance(e, Audio | Digit | Warned | Closed) for e in events)
