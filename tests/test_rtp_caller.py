"""What `callscribe call` sends over RTP, packet by packet; and into a real bridge."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bridge import client
from bridge.announcing import BridgeApi
from bridge.audio.codecs import codec
from bridge.audio.encoders import encoder
from bridge.capture_file import Datagram, datagrams
from bridge.client_rtp import parse_ports, summary_rtp
from bridge.engine.tones import encode
from bridge.errors import BridgeError
from bridge.ingress.rtp_packet import Packet, is_rtcp, parse
from bridge.rtp_call import Call, Leg, Outcome, Player, Ports, captured, recorded
from bridge.rtp_caller import DEAF, RtpResult
from bridge.rtp_script import (
    Beginning,
    Impaired,
    Impairments,
    Schedule,
    form,
    impair,
    impairments,
    make_stream,
)
from tests.serving import TOKEN, Bridge, http, said, serving
from tests.test_capture import ANSWER, INVITE, A, B, both, ethernet, pcap, rtp, udp
from tests.test_client import VirtualClock

BEGIN = Beginning(0xABCD, 65534, 0xFFFFFF00)
RAMP = np.arange(1000, dtype=np.int16)  # 125 ms at 8 kHz: six packets and a quarter
CALM = Impairments()


def packets(schedule: Schedule) -> list[Packet]:
    found = [parse(data) for _, data in schedule]
    assert all(isinstance(each, Packet) for each in found)
    return found


def times(schedule: Schedule) -> list[float]:
    return [round(when, 6) for when, _ in schedule]


# -- the schedule ----------------------------------------------------------------------------------


def test_a_recording_becomes_packets_at_even_times():
    schedule = make_stream(RAMP, 8000, form(), BEGIN)
    sent = packets(schedule)
    assert times(schedule) == [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12]
    assert [p.sequence for p in sent] == [65534, 65535, 0, 1, 2, 3, 4]
    assert [p.timestamp for p in sent[:3]] == [0xFFFFFF00, 0xFFFFFFA0, 0x40]
    assert {(p.ssrc, p.payload_type, len(p.payload)) for p in sent} == {(0xABCD, 0, 160)}
    assert [p.marker for p in sent] == [True] + [False] * 6


@pytest.mark.parametrize(
    ("name", "ptime", "number", "size", "ticks"),
    [
        ("pcmu", 10, 0, 80, 80),
        ("alaw", 60, 8, 480, 480),
        ("PCMA/8000", 20, 8, 160, 160),
        ("g722", 20, 9, 160, 160),
        ("g722", 40, 9, 320, 320),
        ("slin", 20, 11, 320, 160),
        ("l16/16000", 20, 118, 640, 320),
        ("slin48", 10, 126, 960, 480),
        ("l16/44100", 20, 11, 1764, 882),
        ("l16le/24000", 30, 96, 1440, 720),
    ],
)
def test_codecs_have_their_numbers_sizes_and_clocks(name, ptime, number, size, ticks):
    how = form(name, ptime)
    one, two, *_ = packets(make_stream(RAMP, 8000, how, Beginning(1)))
    assert (one.payload_type, len(one.payload), two.timestamp) == (number, size, ticks)


@pytest.mark.parametrize("name", ["pcmu", "pcma", "l16/8000", "l16le/8000"])
def test_what_is_sent_decodes_to_what_was_recorded(name):
    how = form(name)
    sent = packets(make_stream(RAMP * 30, 8000, how, BEGIN))
    heard = codec(how.audio.name, 8000).decode(b"".join(p.payload for p in sent))
    assert len(heard) == 1120 and np.abs(heard[1000:]).max() <= 8  # A-law has no zero
    assert np.abs(heard[:1000].astype(int) - RAMP * 30).max() <= (0 if "l16" in name else 1024)


def test_g722_decodes_to_what_was_recorded():
    pytest.importorskip("G722")
    tone = (8000 * np.sin(np.arange(8000) * 2 * np.pi * 440 / 16000)).astype(np.int16)
    sent = packets(make_stream(tone, 16000, form("g722"), BEGIN))
    heard = codec("g722", 16000).decode(b"".join(p.payload for p in sent)).astype(float)
    delay = 22  # samples, of the codec's filters
    assert len(heard) == 8000
    assert np.corrcoef(heard[500 + delay : 7000 + delay], tone[500:7000])[0, 1] > 0.99


def test_another_rate_is_resampled():
    sent = packets(make_stream(np.zeros(4410, np.int16), 44100, form("l16/16000"), BEGIN))
    assert [len(p.payload) for p in sent] == [640] * 5


def test_the_encoders_of_both_byte_orders():
    samples = np.array([1, -2], np.int16)
    assert encoder("l16", 8000).encode(samples) == b"\x00\x01\xff\xfe"
    assert encoder("l16le", 8000).encode(samples) == b"\x01\x00\xfe\xff"
    with pytest.raises(ValueError, match="codec 'opus' is not known"):
        encoder("opus", 48000)


def test_a_key_is_an_event_instead_of_audio():
    schedule = make_stream(RAMP, 8000, form(), Beginning(1), [(0.03, "5")])
    sent = packets(schedule)
    assert [p.payload_type for p in sent] == [0, 0] + [101] * 7 + [0] * (len(sent) - 9)
    events = sent[2:9]
    assert [p.sequence for p in sent] == list(range(len(sent)))
    assert {p.timestamp for p in events} == {320} and sent[9].timestamp == 7 * 160
    assert [p.marker for p in events] == [True] + [False] * 6
    bodies = [struct.unpack("!BBH", p.payload) for p in events]
    assert bodies == [(5, 10, 160 * n) for n in (1, 2, 3, 4)] + [(5, 138, 800)] * 3
    assert times(schedule)[2:9] == [0.04, 0.06, 0.08, 0.1, 0.12, 0.12, 0.12]


def test_keys_wait_for_each_other_and_the_recording_for_them():
    schedule = make_stream(RAMP, 8000, form(), Beginning(1), [(0.2, "#"), (0.2, "1")])
    keys = [
        (round(when, 3), p.payload[0])
        for (when, _), p in zip(schedule, packets(schedule), strict=True)
        if p.marker and p.payload_type == 101
    ]
    assert keys == [(0.2, 11), (0.36, 1)]
    silent = packets(schedule)[8]
    assert silent.payload == b"\xff" * 160  # after the recording, before the first key


def test_silence_follows_where_it_is_wanted():
    sent = packets(make_stream(RAMP, 8000, form(), BEGIN, linger=0.1))
    assert len(sent) == 12 and sent[-1].payload == b"\xff" * 160


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("opus",), "codec 'opus' is not known; it is one of pcmu, pcma, g722, l16, l16le"),
        (("l16",), "codec 'l16' needs its rate, as \"l16/16000\""),
        (("CN",), "codec 'CN' is no audio; it is one of pcmu, pcma, g722, l16, l16le"),
        (("pcmu", 5), "ptime: expected 10 to 60 ms, not 5"),
        (("pcmu", float("nan")), "ptime: expected 10 to 60 ms, not nan"),
        (("l16/44100", 11), "ptime: 11 ms of l16/44100 are not a whole number of samples"),
    ],
)
def test_says_which_form_is_none(arguments, sentence):
    with pytest.raises(BridgeError) as e:
        form(*arguments)
    assert str(e.value) == sentence


# -- the network -----------------------------------------------------------------------------------

LONG: Schedule = [(0.02 * n, struct.pack("!I", n)) for n in range(10_000)]


def numbers(sent: Impaired) -> list[int]:
    return [struct.unpack("!I", data)[0] for _, data in sent.schedule]


def test_a_calm_network_changes_nothing():
    assert impair(LONG, CALM) == Impaired(LONG)
    assert impair([], impairments(5, 40, 1, 1)).schedule == []
    assert impair(LONG[:1], impairments(0, 40, 100, 100)).twice == 1


@pytest.mark.parametrize("share", [1, 5, 20, 100])
def test_loss_is_the_share_that_was_asked_for(share):
    sent = impair(LONG, impairments(loss=share))
    assert sent.lost + len(sent.schedule) == 10_000
    assert sent.lost == pytest.approx(100 * share, rel=0.1)
    left = numbers(sent)
    assert left == sorted(set(left)) and set(sent.schedule) <= set(LONG)


def test_jitter_is_late_by_no_more_and_overtakes():
    sent = impair(LONG, impairments(jitter=40))
    late = [when - 0.02 * n for (when, _), n in zip(sent.schedule, numbers(sent), strict=True)]
    assert (
        min(late) >= 0 and 0.0399 < max(late) <= 0.04 and np.mean(late) == pytest.approx(0.02, 0.05)
    )
    assert sorted(numbers(sent)) == list(range(10_000)) != numbers(sent)
    assert times(sent.schedule) == sorted(times(sent.schedule))
    calm = impair(LONG, impairments(jitter=19.9))
    assert numbers(calm) == list(range(10_000))


def test_reordered_packets_go_behind_up_to_three_later_ones():
    sent = impair(LONG, impairments(reorder=2))
    order = numbers(sent)
    behind = [sum(other > n for other in order[max(0, i - 4) : i]) for i, n in enumerate(order)]
    held = sum(each > 0 for each in behind)
    # Two neighbours that are both held back may stay in order.
    assert max(behind) == 3 and sent.held_back * 0.9 < held <= sent.held_back
    assert sent.held_back == pytest.approx(200, rel=0.2)
    assert sorted(order) == list(range(10_000))


def test_duplicates_come_within_50_ms():
    sent = impair(LONG, impairments(duplicate=3))
    count = Counter(numbers(sent))
    twice = [n for n, times in count.items() if times == 2]
    assert max(count.values()) == 2 and len(twice) == sent.twice == pytest.approx(300, rel=0.2)
    gaps = [
        max(t) - min(t)
        for n in twice
        for t in [[when for when, data in sent.schedule if data == struct.pack("!I", n)]]
    ]
    assert 0 <= min(gaps) and 0.045 < max(gaps) <= 0.05


def test_what_is_lost_meets_with_nothing_else():
    sent = impair(LONG, impairments(loss=100, reorder=100, duplicate=100))
    assert sent == Impaired([], lost=10_000, held_back=0, twice=0)


def test_a_lost_packet_is_lost_in_both_copies():
    sent = impair(LONG, impairments(loss=50, duplicate=100))
    assert len(sent.schedule) == 2 * (10_000 - sent.lost) and sent.twice == 10_000 - sent.lost


def test_the_same_seed_is_the_same_network_for_each_leg_another():
    hard = impairments(5, 40, 1, 1, seed=3)
    assert impair(LONG, hard) == impair(LONG, hard)
    assert impair(LONG, hard) != impair(LONG, hard, 1)
    assert impair(LONG, hard) != impair(LONG, impairments(5, 40, 1, 1, seed=4))


def test_asking_for_more_loses_no_other_packets():
    plain = set(numbers(impair(LONG, impairments(loss=5))))
    assert set(numbers(impair(LONG, impairments(5, 60, 5, 5)))) == plain


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss": 101}, "loss: expected 0 to 100 percent, not 101"),
        ({"reorder": -1}, "reorder: expected 0 to 100 percent, not -1"),
        ({"duplicate": float("nan")}, "dup: expected 0 to 100 percent, not nan"),
        ({"jitter": 20_000}, "jitter: expected 0 to 10000 ms, not 20000"),
        ({"seed": -1}, "seed: expected a number from 0 on, not -1"),
    ],
)
def test_says_which_network_is_none(options, sentence):
    with pytest.raises(BridgeError) as e:
        impairments(**options)
    assert str(e.value) == sentence


# -- calls -----------------------------------------------------------------------------------------


def write_wav(path: Path, *channels: np.ndarray) -> Path:
    length = max(map(len, channels))
    sound = np.stack([np.pad(c, (0, length - len(c))) for c in channels], axis=1)
    audio, n = sound.astype("<i2").tobytes(), len(channels)
    head = struct.pack("<IHHIIHH", 16, 1, n, 8000, 16000 * n, 2 * n, 16)
    riff = b"WAVEfmt " + head + b"data" + struct.pack("<I", len(audio)) + audio
    path.write_bytes(b"RIFF" + struct.pack("<I", len(riff)) + riff)
    return path


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "stereo.wav", RAMP, -RAMP)


def test_legs_of_a_stereo_recording_are_pairs(stereo):
    calls = recorded(stereo, form("l16/8000"), CALM, legs=4, stagger=2.0)
    assert [[leg.name for leg in call.legs] for call in calls] == [["caller", "callee"]] * 2
    assert [call.begin for call in calls] == [0.0, 2.0]
    one, two = calls[0].legs
    first = [packets(leg.sent.schedule)[0].payload[:4] for leg in (one, two)]
    assert first == [b"\0\0\0\1", b"\0\0\xff\xff"]
    assert len({leg.ssrc for call in calls for leg in call.legs}) == 4
    assert one.media == {
        "codec": "l16/8000", "ptime": 20.0,
        "payload_types": {"101": "telephone-event", "11": "l16/8000"},
    }  # fmt: skip


def test_one_channel_is_a_caller(stereo):
    [call] = recorded(stereo, form(), CALM, channel=1)
    assert [leg.name for leg in call.legs] == ["caller"] and call.legs[0].packets == 7


def write_pcap(path: Path, heard) -> Path:
    data = pcap([])
    for when, source, target, payload in heard:
        frame = ethernet(udp(payload, source, target))
        whole, part = divmod(round((1e9 + when) * 1e6), 10**6)
        data += struct.pack("<IIII", whole, part, len(frame), len(frame)) + frame
    path.write_bytes(data)
    assert len(datagrams(data).datagrams) == len(heard)
    return path


def test_a_capture_is_played_as_it_was_seen(tmp_path):
    heard = [each for each in both() if each.payload != rtp(3, ssrc=1)]
    [call] = captured(write_pcap(tmp_path / "x.pcap", heard), CALM, announced=True)
    caller, callee = call.legs
    assert (caller.name, callee.name, caller.begin, round(callee.begin, 6)) == (
        "caller", "callee", 0.0, 0.1,
    )  # fmt: skip
    assert times(caller.sent.schedule)[:4] == [0.0, 0.02, 0.04, 0.08]
    assert [data for _, data in callee.sent.schedule] == [rtp(n, ssrc=2) for n in range(20)]
    assert caller.media == {"codec": "pcmu/8000", "payload_types": {}}


def test_a_clock_that_was_set_back_stops_no_stream(tmp_path):
    heard = [
        Datagram(0.02 * n - 3600 * (n > 9) - 0.025 * (n == 5), A, B, rtp(n)) for n in range(20)
    ]
    [call] = captured(write_pcap(tmp_path / "x.pcap", heard), CALM)
    gaps = np.diff([when for when, _ in call.legs[0].sent.schedule])
    expected = [0.02] * 4 + [0.0, 0.04] + [0.02] * 3 + [0.0] + [0.02] * 9
    assert gaps.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_capture_that_no_bridge_hears_can_still_be_sent(tmp_path):
    path = write_pcap(tmp_path / "x.pcap", both(99))
    assert captured(path, CALM)[0].legs[0].packets == 20
    with pytest.raises(BridgeError, match=r"x\.pcap: 192.*has payload type 99, which neither"):
        captured(path, CALM, announced=True)
    assert captured(path, CALM, "pcma", announced=True)[0].legs[0].media == {
        "codec": "pcma", "payload_types": {"99": "pcma"},
    }  # fmt: skip


def test_what_sdp_said_is_announced(tmp_path):
    sip = [Datagram(0.0, B, A, ANSWER), Datagram(0.0, A, B, INVITE)]
    [call] = captured(write_pcap(tmp_path / "x.pcap", [*sip, *both(96)]), CALM, announced=True)
    assert call.legs[0].media["payload_types"] == {"96": "l16/16000/1"}


# -- sending ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(count: int = 1) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(count)
        ]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        yield socks


def to(socks: list[socket.socket]) -> Ports:
    return Ports("127.0.0.1", [sock.getsockname()[1] for sock in socks])


def received(sock: socket.socket) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(4096))
    return found


async def test_both_legs_go_to_their_ports_at_their_times(stereo):
    clock = VirtualClock()
    calls = recorded(stereo, form(), CALM)
    told: list[tuple[int, float]] = []
    with listening(2) as socks:
        [outcome] = await Player(
            to(socks), 1.0, clock, lambda leg, seconds: told.append((leg, seconds))
        ).play(calls)
        came = [received(sock) for sock in socks]
    for leg, data in zip(calls[0].legs, came, strict=True):
        assert data[:-1] == [each for _, each in leg.sent.schedule]
        assert is_rtcp(data[-1]) and data[-1][-4:] == leg.ssrc.to_bytes(4, "big")  # BYE
    assert sorted(clock.asked)[-2:] == pytest.approx([0.12, 0.12])
    assert [(leg.ended_by, leg.packets_sent) for leg in outcome.legs] == [("us", 7)] * 2
    assert told[-1][1] == pytest.approx(0.12) and {leg for leg, _ in told} == {0, 1}
    assert outcome.heard is None and not any(leg.failed for leg in outcome.legs)


async def test_late_timers_do_not_add_up(stereo):
    clock = VirtualClock(late=0.015)
    with listening(2) as socks:
        await Player(to(socks), 0.5, clock).play(recorded(stereo, form(), CALM))
    asked = sorted(set(round(each, 3) for each in clock.asked))
    assert asked[-1] - asked[-7] == pytest.approx(0.06)  # half the time, and not a bit more


async def test_a_leg_that_begins_later_does(tmp_path):
    legs = [Leg("caller", Impaired([(0.0, b"a"), (30.0, b"b")]), 2, 1),
            Leg("callee", Impaired([(0.0, b"c")]), 1, 2, begin=20.0)]  # fmt: skip
    clock = VirtualClock()
    with listening(2) as socks:
        await Player(to(socks), 1.0, clock).play([Call(legs, 1.0)])
        assert received(socks[1])[0] == b"c"
    assert {1.0, 16.0, 21.0, 31.0} <= {round(each, 3) for each in clock.asked}


async def test_nobody_listens():
    with listening(1) as socks:
        target = to(socks)
    leg = Leg("caller", Impaired([(n * 0.02, rtp(n)) for n in range(1000)]), 1000, 7)
    [outcome] = await Player(target, 1.0, VirtualClock()).play([Call([leg])])
    [result] = outcome.legs
    assert result.failed and result.packets_sent < 3 * DEAF
    assert result.error == (
        f"nobody listens at 127.0.0.1:{target.ports[0]}: Connection refused; a port must be "
        "announced (POST /calls), which --to http://host:port does by itself"
    )


async def test_a_port_that_closes_in_mid_call_ends_the_leg():
    leg = Leg("caller", Impaired([(n * 0.02, rtp(n)) for n in range(1000)]), 1000, 7)
    with listening(1) as socks:
        target = to(socks)

        def close(_: int, seconds: float) -> None:
            if seconds > 10:
                socks[0].close()

        [outcome] = await Player(target, 1.0, VirtualClock(), close).play([Call([leg])])
    [result] = outcome.legs
    assert (result.ended_by, result.error) == ("peer", "")
    assert 500 < result.packets_sent < 600


async def test_a_cancelled_call_says_goodbye():
    go = asyncio.Event()

    class Stuck(VirtualClock):
        async def sleep_until(self, when: float) -> None:
            if when > 110:
                go.set()
                await asyncio.Event().wait()
            await super().sleep_until(when)

    leg = Leg("caller", Impaired([(0.0, b"a"), (30.0, b"b")]), 2, 1)
    with listening(1) as socks:
        task = asyncio.create_task(Player(to(socks), 1.0, Stuck()).play([Call([leg])]))
        await asyncio.wait_for(go.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [is_rtcp(data) for data in received(socks[0])] == [False, True]


async def test_as_many_ports_as_legs(stereo):
    with pytest.raises(BridgeError) as e:
        await Player(Ports("127.0.0.1", [9]), 1.0, VirtualClock()).play(
            recorded(stereo, form(), CALM)
        )
    assert str(e.value) == ("to: 2 legs need as many ports, as rtp://host:8000,8002, not 1")
    with pytest.raises(BridgeError, match="^uuid: expected 36 characters as uuidgen prints, not"):
        await Player(Ports("127.0.0.1", [9, 11]), 1.0, VirtualClock()).play(
            [Call([a_leg()]), Call([a_leg()])], ["40325ec2-5efd-4bd3-805f-53576e581d13", "x"]
        )
    with pytest.raises(BridgeError, match="^uuid: 2 legs need 2 UUIDs, not 1$"):
        await Player(Ports("127.0.0.1", [9, 11]), 1.0, VirtualClock()).play(
            recorded(stereo, form(), CALM), ["x"]
        )


# -- asking a bridge -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answering(answer: Callable[[str, dict], tuple[int, object]]) -> AsyncIterator[str]:
    """An HTTP server of our own: `answer` gets "METHOD /path" and the body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next((int(line[15:]) for line in head.splitlines()
                           if line.lower().startswith("content-length:")), 0)  # fmt: skip
            body = await reader.readexactly(length)
            status, said = answer(" ".join(head.split()[:2]), json.loads(body or b"{}"))
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            writer.write(
                f"HTTP/1.1 {status} x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
            )
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def a_leg(count: int = 3) -> Leg:
    return Leg("caller", Impaired([(n * 0.02, rtp(n)) for n in range(count)]), count, 7)


async def test_a_leg_is_announced_with_the_address_it_comes_from():
    asked: list[tuple[str, dict]] = []
    with listening(1) as socks:
        port = socks[0].getsockname()[1]

        def answer(line: str, body: dict) -> tuple[int, object]:
            asked.append((line, body))
            if line.startswith("POST"):
                return 201, {"media": {"address": "127.0.0.1", "port": port}}
            if line.endswith("/text"):
                return 200, b"caller: \x1b[31mred\ncallee: hm\n"
            return 200, {"ended": True, "legs": {"caller": {"words": 1, "seconds": 0.06}}}

        async with answering(answer) as url:
            [outcome] = await Player(BridgeApi(url, "x"), 1.0, VirtualClock()).play(
                [Call([a_leg()])]
            )
        source = socks[0].recvfrom(4096)[1]
    post = asked[0][1]
    assert asked[0][0] == "POST /calls" and post["media"]["from"] == f"127.0.0.1:{source[1]}"
    assert post["leg"] == "caller" and post["uuid"] == post["call"] == outcome.legs[0].uuid
    assert outcome.text == "caller: \N{REPLACEMENT CHARACTER}[31mred\ncallee: hm"
    first, second, *text = summary_rtp([outcome]).splitlines()
    assert first == (
        f"{post['uuid']}  caller to 127.0.0.1:{port}: played to the end, 0.0 s, 3 packets sent"
    )
    assert second == (
        "  the bridge: 1 words in 0.1 s, packets 0 lost, 0 late, 0 duplicate, jitter 0.0 ms, "
        "0.00 s concealed"
    )
    assert text == outcome.text.splitlines()


async def test_a_leg_that_comes_from_elsewhere_than_was_said_is_announced_again():
    asked: list[dict] = []
    with listening(1) as socks:
        port = socks[0].getsockname()[1]

        def answer(line: str, body: dict) -> tuple[int, object]:
            asked.append(body)
            return 201, {"media": {"address": "127.0.0.1", "port": port}}

        async with answering(answer) as url:
            api = BridgeApi(url)
            api._local = "127.0.0.9"  # as if HTTP went another way
            await Player(api, 1.0, VirtualClock()).play([Call([a_leg(0)])])
    one, two = (body["media"].pop("from") for body in asked if body)
    assert (one.split(":")[0], two.split(":")[0]) == ("127.0.0.9", "127.0.0.1")
    assert one.split(":")[1] == two.split(":")[1] and asked[0] == asked[1]


async def test_a_call_the_bridge_does_not_end_is_ended():
    asked: list[str] = []
    with listening(1) as socks:
        port = socks[0].getsockname()[1]

        def answer(line: str, body: dict) -> tuple[int, object]:
            asked.append(line.split()[0])
            media = {"address": "127.0.0.1", "port": port}
            return 200, {"media": media, "ended": False} if "text" not in line else b""

        async with answering(answer) as url:
            await Player(BridgeApi(url), 1.0, VirtualClock()).play([Call([a_leg()])])
    assert asked.count("DELETE") == 1 and 70 < asked.count("GET") < 80


async def test_a_call_the_bridge_does_not_know_has_failed():
    with listening(1) as socks:
        port = socks[0].getsockname()[1]

        def answer(line: str, body: dict) -> tuple[int, object]:
            if line.startswith("POST"):
                return 201, {"media": {"address": "127.0.0.1", "port": port}}
            return 404, {"error": "no"}

        async with answering(answer) as url:
            [outcome] = await Player(BridgeApi(url), 1.0, VirtualClock()).play([Call([a_leg()])])
    assert outcome.legs[0].failed
    assert outcome.legs[0].error.startswith("the bridge knows nothing of this call: it was busy")


async def test_a_call_whose_second_leg_has_no_port_is_not_begun():
    asked: list[str] = []
    with listening(1) as socks:
        port = socks[0].getsockname()[1]

        def answer(line: str, body: dict) -> tuple[int, object]:
            asked.append(line.split()[0])
            if body.get("leg") == "callee":
                return 503, {"error": "no free slot"}
            return 201, {"media": {"address": "127.0.0.1", "port": port}}

        async with answering(answer) as url:
            legs = [a_leg(), Leg("callee", Impaired([(0.0, rtp(0))]), 1, 8)]
            [outcome] = await Player(BridgeApi(url), 1.0, VirtualClock()).play([Call(legs)])
        assert received(socks[0]) == []
    assert sorted(asked) == ["DELETE", "POST", "POST"]
    assert [leg.error for leg in outcome.legs] == ["", f"{url} refused (503): no free slot"]


@pytest.mark.parametrize(
    ("status", "said", "sentence"),
    [
        (401, {"error": "send \x07 it"}, " refused (401): send \N{REPLACEMENT CHARACTER} it; give "
         "--token, or BRIDGE_HTTP__TOKEN in the environment"),
        (500, b"<html>", " refused (500): it says no more"),
        (201, b"[]", " answers as no bridge does"),
        (201, {"uuid": 1}, " answers as no bridge does that takes RTP"),
        (201, {"media": {"address": 1, "port": 2}}, " answers as no bridge does that takes RTP"),
        (201, {"media": {"address": "a", "port": 0}}, " answers as no bridge does that takes RTP"),
    ],
)  # fmt: skip
async def test_says_what_a_bridge_answers(status, said, sentence):
    async with answering(lambda line, body: (status, said)) as url:
        with pytest.raises(BridgeError) as e:
            await BridgeApi(url).announce({}, {}, ("127.0.0.1", 1))
    assert str(e.value) == url + sentence


async def test_says_when_there_is_no_bridge():
    with listening(1) as socks:  # a UDP port's number, on which no TCP is
        url = f"http://127.0.0.1:{socks[0].getsockname()[1]}"
        with pytest.raises(BridgeError) as e:
            await BridgeApi(url).local()
    assert str(e.value) == f"cannot ask {url}: Connection refused; is the bridge's [http] there?"


@pytest.mark.parametrize("url", ["http://", "http://a:port", "ftp://a", "http://[::1"])
def test_says_what_a_bridge_s_address_looks_like(url):
    with pytest.raises(BridgeError) as e:
        BridgeApi(url)
    assert str(e.value) == f"to: expected http://host:port, not {url!r}"


def test_a_token_is_a_header():
    with pytest.raises(BridgeError, match="^token: has characters that no HTTP header takes$"):
        BridgeApi("http://a", "x\r\nHost: b")


# -- the command -----------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    client.add_arguments(parser)
    return parser.parse_args(words)


def test_ports_are_read():
    assert parse_ports("rtp://192.0.2.1:4000") == Ports("192.0.2.1", [4000])
    assert parse_ports("rtp://[::1]:4000,4002/") == Ports("::1", [4000, 4002])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "rtp://a"], "to: expected rtp://host:port, or rtp://host:port,port for two "
         "legs, not 'rtp://a'"),
        (["--to", "rtp://a:0"], "to: expected rtp://host:port, or rtp://host:port,port for two "
         "legs, not 'rtp://a:0'"),
        (["--to", "rtp://a:1,"], "to: expected rtp://host:port, or rtp://host:port,port for two "
         "legs, not 'rtp://a:1,'"),
        (["--to", "http://"], "to: expected http://host:port, not 'http://'"),
        (["--to", "rtp://a:1", "--fast"], "fast: nobody says over RTP what is too fast; use "
         "--speed 5"),
        (["--to", "rtp://a:1", "--loss", "101"], "loss: expected 0 to 100 percent, not 101"),
        (["--to", "rtp://a:1", "--legs", "501"], "legs: expected 1 to 500 over RTP, not 501"),
        (["--to", "rtp://a:1", "--stagger", "-1"], "stagger: expected 0 to 3600 seconds, not -1.0"),
        (["--to", "rtp://a:1", "--speed", "0"], "speed: expected more than 0 and at most 1000, "
         "not 0.0"),
        (["--to", "rtp://a:1", "--digit", "1:x"], "digit 'x' at 1.0 s: expected one of 0-9 * # "
         "A-D, from 0 s on"),
        (["--loss", "5"], "loss: only RTP has it: --to http://host:port or rtp://host:port"),
        (["--to", "audiosocket://a:1", "--codec", "pcma"],
         "codec: only RTP has it: --to http://host:port or rtp://host:port"),
    ],
)  # fmt: skip
async def test_the_command_refuses_what_makes_no_call(stereo, words, sentence, capsys):
    assert await client.run(arguments(str(stereo), *words)) == 2
    assert capsys.readouterr() == ("", f"callscribe call: {sentence}\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "audiosocket://a:1"], "{}: is a capture of RTP: --to http://host:port or rtp://…"),
        (["--legs", "2"], "legs: a capture is played as it is; leave --legs out"),
        (["--digit", "1:1"], "digit: a capture is played as it is; leave --digit out"),
        (["--ptime", "20"], "ptime: a capture is played as it is; leave --ptime out"),
        (["--codec", "opus"], "codec 'opus' is not known; it is one of pcmu, pcma, g722, l16, "
         "l16le"),
        (["--to", "rtp://a:1"], "to: 2 legs need as many ports, as rtp://host:8000,8002, not 1"),
    ],
)  # fmt: skip
async def test_the_command_refuses_what_a_capture_is_not(tmp_path, words, sentence, capsys):
    path = write_pcap(tmp_path / "x.pcap", both())
    assert await client.run(arguments(str(path), *words)) == 2
    assert capsys.readouterr() == ("", f"callscribe call: {sentence.format(path)}\n")


async def test_a_capture_goes_to_the_bridge_on_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bridge.client_rtp.CAPTURES_TO", "http://127.0.0.1:1")
    path = write_pcap(tmp_path / "x.pcap", both())
    assert await client.run(arguments(str(path))) == 1
    assert "cannot ask http://127.0.0.1:1: Connection refused" in capsys.readouterr().out


def test_many_legs_are_summed_up():
    counts = {"caller": {"words": 3, "packets_lost": 2}}
    legs = [RtpResult("u", packets_sent=50, lost=1) for _ in range(5)]
    bad = RtpResult("u", ended_by="error", error="busy")
    outcomes = [Outcome([leg], {"legs": counts}) for leg in legs] + [Outcome([bad])]
    assert summary_rtp(outcomes) == (
        "6 legs, 250 packets sent, 5 lost by our doing: 5 played to the end, 1 failed\n"
        "  the bridge: 15 words, 10 packets lost on 5 legs\n"
        "  1 x busy"
    )


def test_what_we_did_to_the_packets_is_said():
    leg = RtpResult("u", "callee", "c", "h:1", 100, 97, lost=5, held_back=3, twice=2, seconds=1.98)
    assert summary_rtp([Outcome([leg], {"legs": "none"})]) == (
        "u  callee to h:1: played to the end, 2.0 s, 97 packets sent (of 100; by our doing 5 "
        "lost, 2 twice, 3 held back)"
    )


# -- into a real bridge ----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a_bridge(folder: Path) -> AsyncIterator[Bridge]:
    async with serving(folder, rtp={"ports": "34000-34999"}) as bridge:
        yield bridge


async def test_two_legs_into_a_real_bridge(tmp_path, capsys):
    """A recording, impaired, by announcement; a capture; and ports that were announced before."""
    one, two = [1, 2, 3], [101, 102]
    path = write_wav(tmp_path / "call.wav", encode(one), encode(two))
    async with a_bridge(tmp_path) as bridge:
        url, words = f"http://127.0.0.1:{bridge.http}", ["--token", TOKEN, "--speed", "5"]
        network = ["--loss", "4", "--jitter", "30", "--reorder", "2", "--dup", "5"]
        assert await client.run(arguments(str(path), "--to", url, *words, *network)) == 0
        out = capsys.readouterr().out
        assert f"caller: {said(one)}" in out and f"callee: {said(two)}" in out
        lines = [line for line in out.splitlines() if " packets sent (of 60; by our doing " in line]
        assert len(lines) == 2
        lost = [int(line.partition("doing ")[2].split()[0]) for line in lines]
        assert [f"packets {n} lost" in out for n in lost] == [True, True]

        seen = [
            Datagram(when + begin, source, target, data)
            for words_of, source, target, begin in ((one, A, B, 0.0), (two, B, A, 0.1))
            for when, data in make_stream(
                encode(words_of), 8000, form("pcma"), Beginning(begin > 0)
            )
        ]
        capture = write_pcap(tmp_path / "call.pcap", sorted(seen))
        assert await client.run(arguments(str(capture), "--to", url, *words)) == 0
        out = capsys.readouterr().out
        assert f"caller: {said(one)}" in out and f"callee: {said(two)}" in out

        ports = []
        for leg in ("caller", "callee"):
            body = {"call": "c-1", "leg": leg, "media": {"type": "rtp"}}
            status, text = await http(bridge.http, "/calls", "POST", **body)
            assert status == 201
            ports.append(json.loads(text)["media"]["port"])
        target = f"rtp://127.0.0.1:{ports[0]},{ports[1]}"
        assert await client.run(arguments(str(path), "--to", target, "--digit", "0.7:5")) == 0
        await bridge.when(
            lambda: any("call=c-1" in x and "type=call.ended" in x for x in bridge.lines)
        )
        assert sum("call=c-1" in x and "type=dtmf" in x for x in bridge.lines) == 2
