"""Samples by UDP without a header: the clock, what is no audio, and who is heard."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

from bridge.audio.codecs import codec
from bridge.ingress.raw_udp import CANDIDATES, HELD, MAX_DATAGRAM, SEQUENTIAL, RawSource, RawUdp
from bridge.transport.udp import UdpPorts
from bridge.transport.udp_port import UdpPort
from bridge.types import Audio, Closed, Frame, IngressEvent, Samples, Warned

PEER = ("127.0.0.1", 4000)
NEIGHBOUR = ("127.0.0.1", 4002)
STRANGER = ("192.0.2.9", 4000)
TONE: Samples = (np.arange(160) * 150 - 12000).astype(np.int16)


def raw(name: str = "l16le", rate: int = 8000, now: float = 0.0) -> RawUdp:
    return RawUdp(codec(name, rate), 30.0, now)


def frames(events: Sequence[IngressEvent]) -> list[Frame]:
    return [event.frame for event in events if isinstance(event, Audio)]


def silence(n: int = 160) -> bytes:
    return bytes(2 * n)


# -- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate", "data"),
    [
        ("l16le", 8000, TONE.astype("<i2").tobytes()),
        ("l16", 16000, TONE.astype(">i2").tobytes()),
        ("l16le", 48000, TONE.astype("<i2").tobytes()),
    ],
)
def test_the_bytes_are_the_samples(name: str, rate: int, data: bytes) -> None:
    (frame,) = frames(raw(name, rate).receive(data, 0.0))
    assert (frame.rate, frame.start, frame.concealed, frame.packets) == (rate, 0, False, 1)
    assert np.array_equal(frame.samples, TONE)


def test_native_bytes_are_those_of_the_codec() -> None:
    (frame,) = frames(raw("pcmu", 8000).receive(b"\xff\x00\x80", 0.0))
    assert frame.samples.tolist() == [0, -32124, 32124]


def test_freeswitchs_comfort_noise_is_silence() -> None:
    """In a pause it sends bytes of 0xff, which is -1 in L16."""
    (frame,) = frames(raw().receive(b"\xff" * 320, 0.0))
    assert set(frame.samples.tolist()) == {-1}


def test_datagrams_that_came_together_are_one_frame() -> None:
    ingress = raw()
    (frame,) = frames(ingress.receive_many([(silence(), 0.02 * n) for n in range(4)]))
    assert (frame.start, len(frame.samples), frame.packets) == (0, 640, 4)
    (frame,) = frames(ingress.receive_many([(silence(), 0.08), (silence(80), 0.09)]))
    assert (frame.start, len(frame.samples)) == (640, 240)
    assert ingress.counts().received == 6


def test_a_gap_between_datagrams_that_came_together_makes_two_frames() -> None:
    first, second = frames(raw().receive_many([(silence(), 0.0), (silence(), 1.0)]))
    assert (first.start, first.packets, second.packets) == (0, 1, 1)
    assert second.start / 8000 == pytest.approx(0.96, abs=0.001)


@pytest.mark.parametrize("data", [b"", b"x", b"abc", bytes(MAX_DATAGRAM + 2)])
def test_what_cannot_be_audio_is_counted_and_said_once(data: bytes) -> None:
    ingress = raw()
    events = ingress.receive_many([(data, 0.0), (data, 0.02), (silence(), 0.04)])
    warned, audio = events
    assert isinstance(warned, Warned) and isinstance(audio, Audio)
    assert warned.text == f"a datagram of {len(data)} bytes is no l16le audio"
    assert (ingress.counts().invalid, ingress.counts().received) == (2, 1)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=700), st.floats(-0.1, 3)), max_size=40),
    st.sampled_from([("l16le", 8000), ("l16", 16000), ("pcmu", 8000)]),
)
def test_any_datagrams_at_any_time_keep_the_clock_going_on(
    given_: list[tuple[bytes, float]], kind: tuple[str, int]
) -> None:
    ingress, now, end, heard = raw(*kind), 0.0, 0, 0
    for data, pause in given_:
        now += pause
        for event in [*ingress.receive(data, now), *ingress.expire(now)]:
            if isinstance(event, Audio):
                assert event.frame.start >= end
                end = event.frame.start + len(event.frame.samples)
                heard += len(event.frame.samples)
    width = 1 if kind[0] == "pcmu" else 2
    assert heard == sum(len(data) // width for data, _ in given_ if len(data) % width == 0)
    assert ingress.seconds == end / kind[1]


# -- the clock ------------------------------------------------------------------------------------


def played(arrivals: Sequence[float], n: int = 160) -> tuple[RawUdp, list[Frame]]:
    """One datagram at each of these times, and time passing every 20 ms in between."""
    ingress, out, now = raw(), [], 0.0
    for at in arrivals:
        while now < at:
            out += frames(ingress.expire(now))
            now += 0.02
        out += frames(ingress.receive(silence(n), at))
    return ingress, out


def test_a_steady_stream_has_no_gaps() -> None:
    ingress, out = played([0.02 * n + 0.003 * (n % 7) for n in range(3000)])
    assert [frame.start for frame in out] == [160 * n for n in range(3000)]
    assert ingress.origin == pytest.approx(-0.02, abs=0.001)


def test_a_pause_is_filled_while_it_lasts_and_words_after_it_are_in_their_place() -> None:
    _, out = played([0.0, 0.02, 3.02, 3.04])
    ticks = [frame for frame in out if not len(frame.samples)]
    assert len(ticks) > 5 and ticks[-1].start / 8000 == pytest.approx(2.85, abs=0.1)
    words = [frame.start / 8000 for frame in out if len(frame.samples)]
    assert words[2] == pytest.approx(3.02, abs=0.17) and words[3] == words[2] + 0.02


def test_lost_datagrams_come_to_be_silence() -> None:
    _, out = played([0.02 * n for n in range(500) if n % 5])  # one in five
    assert out[-1].start / 8000 == pytest.approx(0.02 * 499, abs=0.2)


def test_a_burst_after_a_stall_loses_nothing_and_invents_nothing() -> None:
    ingress, out = played([*(0.02 * n for n in range(50)), *[2.0] * 50, 2.02, 2.04])
    assert sum(len(frame.samples) for frame in out) == 102 * 160
    assert ingress.seconds == pytest.approx(2.04 + 0.85, abs=0.2)  # what was filled stays filled
    assert ingress.origin == pytest.approx(-0.02, abs=0.001)  # late, not early


def test_a_burst_that_nothing_was_filled_in_for_was_sent_earlier() -> None:
    """The kernel held it while we were busy: its first sample is as old as it is long."""
    ingress = raw()
    ingress.receive_many([(silence(), 5.0)] * 50)
    assert ingress.origin == pytest.approx(4.0) and ingress.seconds == 1.0


def test_an_hour_of_a_clock_that_runs_fast_or_slow() -> None:
    for ppm in (-200, 200):
        ingress = raw()
        step = 0.08 * (1 + ppm / 1e6)
        for n in range(45_000):
            ingress.receive_many([(silence(640), n * step)])
        assert ingress.seconds == pytest.approx(3600, abs=1.0)


# -- the end --------------------------------------------------------------------------------------


def test_a_peer_that_is_gone_is_a_timeout() -> None:
    ingress = raw()
    assert ingress.deadline() == 30.0 and ingress.expire(29.9) == []
    ingress.receive(silence(), 29.0)
    assert ingress.deadline() == pytest.approx(29.25)
    ingress.expire(40.0)
    assert ingress.expire(58.9) and Closed("timeout") not in ingress.expire(58.95)
    assert ingress.expire(59.0) == (Closed("timeout"),)
    assert (ingress.deadline(), ingress.expire(99.0)) == (None, ())
    assert ingress.receive(silence(), 99.0) == []


def test_silence_is_not_made_up_before_anybody_has_spoken() -> None:
    assert raw().expire(20.0) == []


def test_the_end_is_told_once_and_nothing_is_ever_sent() -> None:
    ingress = raw()
    assert ingress.eof("eof", 1.0) == (Closed("eof"),) and ingress.eof("eof", 1.0) == ()
    other = raw()
    other.hang_up(1.0)
    assert other.receive(silence(), 1.0) == [] and other.eof("eof", 1.0) == ()
    assert ingress.data_to_send() == () == other.data_to_send()


# -- who is heard ---------------------------------------------------------------------------------


def test_an_announced_port_is_heard_from_the_first_and_nobody_else_is() -> None:
    source = RawSource(PEER)
    assert source.take(b"ab", PEER, 0.0) == [(b"ab", 0.0)]
    assert source.take(b"ab", NEIGHBOUR, 0.0) == source.take(b"ab", STRANGER, 0.0) == []
    assert source.strangers == 2
    assert source.senders() == [(ipaddress.ip_network("127.0.0.1"), 4000)]


def test_a_port_of_the_announced_host_is_learnt_and_loses_nothing() -> None:
    source = RawSource(("127.0.0.1", None))
    assert source.senders() == [(ipaddress.ip_network("127.0.0.1"), None)]
    sent = [(bytes([n]) * 320, 0.02 * n) for n in range(SEQUENTIAL)]
    for data, now in sent[:-1]:
        assert source.take(data, PEER, now) == []
        assert source.take(data, STRANGER, now) == []
    assert source.take(*sent[-1][:1], PEER, sent[-1][1]) == sent
    assert source.locked == PEER and source.strangers == SEQUENTIAL - 1
    assert source.take(b"ab", NEIGHBOUR, 1.0) == []
    assert source.take(b"ab", PEER, 1.0) == [(b"ab", 1.0)]


def test_neither_a_burst_nor_datagrams_of_all_sizes_teach_a_port() -> None:
    source = RawSource(("127.0.0.1", None))
    for n in range(20):
        assert source.take(bytes(320), PEER, 0.0) == []
        assert source.take(bytes(300 + n), NEIGHBOUR, 0.02 * n) == []
        assert source.take(b"", ("127.0.0.1", 4004), 0.02 * n) == []
    assert source.locked is None


def test_what_is_kept_while_learning_is_bounded() -> None:
    source = RawSource(("127.0.0.1", None))
    for n in range(1000):
        source.take(bytes(300 + n % 3), ("127.0.0.1", 5000 + n), 0.0)
        source.take(bytes(300 + n % 3), PEER, 0.0)
    assert len(source._candidates) == CANDIDATES
    assert max(len(kept) for kept in source._candidates.values()) == HELD
    source.close()
    assert source.strangers >= 1000 and not source._candidates


class _User:
    def __init__(self) -> None:
        self.samples: list[int] = []
        self.closed_ports = 0

    def opened(self, port: UdpPort, now: float) -> None:
        """Nothing to do."""

    def event(self, port: UdpPort, event: IngressEvent, now: float) -> None:
        if isinstance(event, Audio):
            self.samples += event.frame.samples.tolist()

    def closed(self, port: UdpPort) -> None:
        self.closed_ports += 1

    def turn_over(self) -> None:
        """Nothing to do."""


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


async def test_on_a_port_of_the_bridge_every_sample_arrives() -> None:
    """Real sockets, the port that RTP has, and a stranger who sends at the same time."""
    user = _User()
    ports = UdpPorts(user)
    with bound() as sock, bound() as peer, bound() as other:
        now = time.monotonic()
        gate = RawSource(peer.getsockname())
        port = ports.open(sock, raw(now=now), gate, now + 60)
        for n in range(40):
            other.sendto(b"\x7f\x7f" * 160, sock.getsockname())
            peer.sendto(np.full(160, n, "<i2").tobytes(), sock.getsockname())
        await until(lambda: len(user.samples) == 40 * 160)
        assert user.samples == [n for n in range(40) for _ in range(160)]
        assert port.strangers == 40
        ports.close()
    assert user.closed_ports == 1
