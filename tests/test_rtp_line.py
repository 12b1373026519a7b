"""Datagrams in at a socket, events out: the whole line of RTP in one process, with real parts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import pytest

from bridge.audio.g711 import encode_alaw
from bridge.config import from_dict
from bridge.desk import Desk
from bridge.engine.tones import encode
from bridge.errors import BridgeError, Busy
from bridge.http.announce import BadAnnouncement
from bridge.ingress import rtcp
from bridge.ingress.rtp_types import BadMedia
from bridge.ingress.srtp import Opener, Sealer, keys
from bridge.line import SILENCE
from bridge.media import MediaAddress, MediaRequest, SrtpKey
from bridge.media_ports import REST
from bridge.server import Server
from bridge.types import Announcement, CallInfo, EndOfTurn, LegName, Pressed, Refused
from tests.rtp_peer import Clock, Peer
from tests.test_line import PATIENCE, Sink, assert_a_call, assert_said, name
from tests.waiting import until

QUIET = np.zeros(1600, np.int16)


class Bridge:
    """A server that takes RTP, on a clock that its peers move."""

    def __init__(self, **settings: Any) -> None:
        defaults = {
            "engine": {"kind": "tones", "slots": 24},
            "turns": {"partials": False},
            "rtp": {"ports": "32000-33999", "bye_wait": 0.05},
            "service": {"drain_timeout": 0, "flush_timeout": 10},
        }
        self.sink = Sink()
        self.clock = Clock()
        self.server = Server(from_dict(defaults | settings), sinks=[self.sink], clock=self.clock)
        self.peers: list[Peer] = []

    def peer(self, **options: Any) -> Peer:
        self.peers.append(Peer(self.clock, **options))
        return self.peers[-1]

    def announce(
        self,
        peer: Peer | None = None,
        *,
        uuid: str = "",
        call: str = "",
        leg: LegName = "caller",
        **media: Any,
    ) -> tuple[str, MediaAddress]:
        """As POST /calls. The UUID, and where to send; `peer` is told, and its address announced
        unless `source` says otherwise."""
        uuid = uuid or name()
        if peer is not None and "source" not in media:
            media["source"] = peer.sock.getsockname()
        info = CallInfo(id="", channel=f"PJSIP/{leg}")
        address = Desk(self.server).open_media(
            Announcement(uuid, call, leg, info), MediaRequest(**media)
        )
        if peer is not None:
            peer.to = (address.address, address.port)
        return uuid, address

    async def over(self, *calls: str) -> None:
        await until(lambda: self.sink.ended >= set(calls), PATIENCE)

    async def heard(self, call: str, frames: int, leg: LegName = "caller") -> None:
        """So many packets of a leg have been heard."""
        board = self.server.switchboard
        await until(
            lambda: (
                (found := board.find(call)) is not None
                and leg in found.legs
                and found.legs[leg].frames >= frames
            ),
            PATIENCE,
        )

    async def said(self, peer: Peer, call: str, words: list[int], leg: LegName = "caller") -> None:
        """Speak, and wait until all of it has been heard."""
        await self.played(peer.packets(encode(words)), peer, call, leg)

    async def played(
        self, packets: Iterable[bytes], peer: Peer, call: str, leg: LegName = "caller"
    ) -> None:
        """As `Peer.play`, no more at once than fits into a socket; until all has been heard."""
        found = self.server.switchboard.find(call)
        frames = found.legs[leg].frames if found is not None and leg in found.legs else 0
        waiting = list(packets)
        if frames == 0:  # nobody is known there yet
            for packet in waiting[:5]:
                peer.play([packet])
                await self.read(peer)
            frames, waiting = 5, waiting[5:]
            await self.heard(call, 1, leg)
        while waiting:
            some, waiting = waiting[:20], waiting[20:]
            peer.play(some)
            frames += len(some) - some.count(b"")
            await self.heard(call, frames - 4 if waiting else frames, leg)

    async def read(self, peer: Peer) -> None:
        """All that the peer has sent has been read by the bridge."""
        assert self.server.rtp is not None
        ports = self.server.rtp._open.values()
        (sock,) = [port.sock for port in ports if port.sock.getsockname()[1] == peer.to[1]]
        await until(lambda: not select.select([sock], [], [], 0)[0], PATIENCE)

    async def closed(self) -> None:
        await self.server.close()
        for peer in self.peers:
            peer.close()


Start = Callable[..., Awaitable[Bridge]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    bridges: list[Bridge] = []

    async def begin(**settings: Any) -> Bridge:
        bridges.append(Bridge(**settings))
        await bridges[-1].server.start({})
        return bridges[-1]

    yield begin
    for bridge in bridges:
        await bridge.closed()
        board = bridge.server.switchboard
        assert (board.calls, board.waiting, bridge.server.recogniser.used) == ({}, 0, 0)
        assert bridge.server.rtp is not None
        assert len(bridge.server.rtp.ports) == bridge.server.rtp.sockets.used == 0


async def test_words_come_out_exactly_and_on_time(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    said = [3, 1, 4, 1, 5, 9, 2, 6]
    await bridge.said(peer, call, said)
    peer.bye()
    await bridge.over(call)
    ended = assert_a_call(bridge.sink.of(call))
    assert_said(bridge.sink.words(call), said)
    assert (ended.reason, set(ended.legs)) == ("hangup", {"caller"})
    counts = ended.legs["caller"]
    assert (counts.frames, counts.words, counts.packets_lost, counts.concealed) == (160, 8, 0, 0)
    assert counts.seconds == pytest.approx(3.2)
    assert bridge.sink.of(call)[0].call.ingress == "rtp"


async def test_a_peer_that_is_learnt_loses_no_word(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer, source=None)
    await bridge.said(peer, call, [11, 12, 13])
    peer.bye()
    await bridge.over(call)
    assert_said(bridge.sink.words(call), [11, 12, 13])
    assert assert_a_call(bridge.sink.of(call)).legs["caller"].frames == 60


@pytest.mark.parametrize(
    ("codec", "number", "frame", "clock", "write", "rate"),
    [
        ("pcma", 8, 160, 160, encode_alaw, 8000),
        ("pcmu", 0, 80, 80, None, 8000),  # 10 ms
        ("pcmu", 0, 480, 480, None, 8000),  # 60 ms
        ("ulaw", 0, 160, 160, None, 8000),
        ("l16/8000", 11, 160, 160, lambda x: x.astype(">i2").tobytes(), 8000),
        ("slin16", 118, 320, 320, lambda x: x.astype(">i2").tobytes(), 16000),
        ("l16le/48000", 96, 960, 960, lambda x: x.astype("<i2").tobytes(), 48000),
    ],
)
async def test_codecs_and_packet_times(
    start: Start, codec: str, number: int, frame: int, clock: int, write: Any, rate: int
) -> None:
    bridge = await start()
    peer = bridge.peer()
    types = {"96": codec} if number == 96 else {}
    call, address = bridge.announce(peer, codec=codec, payload_types=types)
    assert address.codec == codec and number in address.payload_types
    options = {"encode": write} if write else {}
    packets = peer.packets(
        encode([1, 200, 3, 4, 55], rate), payload_type=number, frame=frame, clock=clock, **options
    )
    await bridge.played(packets, peer, call)
    peer.bye()
    await bridge.over(call)
    assert_said(bridge.sink.words(call), [1, 200, 3, 4, 55])


async def test_what_the_configuration_says_of_streams_holds_where_nothing_is_announced(
    start: Start,
) -> None:
    types = {"97": "l16/16000", "98": "telephone-event"}
    bridge = await start(
        rtp={"ports": "32000-33999", "codec": "l16/16000", "payload_types": types, "timeout": 5}
    )
    peer = bridge.peer()
    call, address = bridge.announce(peer)
    assert address.codec == "l16/16000"
    assert {n: address.payload_types[n] for n in (0, 97, 98)} == {
        0: "pcmu/8000", 97: "l16/16000", 98: "telephone-event",
    }  # fmt: skip
    packets = peer.packets(
        encode([20, 21], 16000),
        encode=lambda samples: samples.astype(">i2").tobytes(),
        payload_type=97,
        frame=320,
    )
    await bridge.played(packets, peer, call)
    bridge.clock.skew += 5.1
    await bridge.over(call)
    assert assert_a_call(bridge.sink.of(call)).reason == "timeout"
    assert_said(bridge.sink.words(call), [20, 21])


async def test_g722(start: Start) -> None:
    G722 = pytest.importorskip("G722").G722
    encoder = G722(16000, 64000)
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer, codec="g722")
    packets = peer.packets(
        encode([7, 70, 170], 16000), encode=encoder.encode, payload_type=9, frame=320, clock=160
    )
    await bridge.played(packets, peer, call)
    peer.bye()
    await bridge.over(call)
    assert_said(bridge.sink.words(call), [7, 70, 170])


async def test_two_legs_of_one_call_are_told_apart(start: Start) -> None:
    bridge = await start()
    caller, callee = bridge.peer(), bridge.peer(ssrc=77)
    bridge.announce(caller, call="c-1", leg="caller")
    bridge.announce(callee, call="c-1", leg="callee")
    await bridge.said(caller, "c-1", [1, 2])
    await bridge.said(callee, "c-1", [101, 102], "callee")
    await bridge.said(caller, "c-1", [3])
    caller.bye()
    callee.bye()
    await bridge.over("c-1")
    events = bridge.sink.of("c-1")
    ended = assert_a_call(events)
    assert set(ended.legs) == {"caller", "callee"}
    assert [w.text for w in bridge.sink.words("c-1", "caller")] == ["w001", "w002", "w003"]
    spoken = bridge.sink.words("c-1", "callee")
    assert [w.text for w in spoken] == ["w101", "w102"]
    # One clock: the callee spoke when the caller's first words were over.
    assert 0.7 < spoken[0].start < 1.5
    assert events[0].call.channel == "PJSIP/caller"
    assert events[-1].call.extra["callee_channel"] == "PJSIP/callee"
    call = bridge.server.switchboard.find("c-1")
    assert call is not None
    said = [line.partition(": ") for line in call.text().splitlines()]
    assert {leg for leg, _, _ in said} == {"caller", "callee"}


async def test_twenty_legs_at_once_hear_each_its_own_words(start: Start) -> None:
    bridge = await start()
    calls: dict[str, list[int]] = {}
    streams = []
    for i in range(20):
        peer = bridge.peer(ssrc=i)
        call, _ = bridge.announce(peer)
        calls[call] = [12 * i + n for n in range(6)]
        streams.append((peer, list(peer.packets(encode(calls[call])))))
    for at in range(0, 120, 10):
        for peer, packets in streams:
            for packet in packets[at : at + 10]:
                peer.send(packet)
        bridge.clock.skew += 0.2
        for call in calls:
            await bridge.heard(call, at + 6)
    for call in calls:
        await bridge.heard(call, 120)
    for peer, _ in streams:
        peer.bye()
    await bridge.over(*calls)
    for call, words in calls.items():
        assert_a_call(bridge.sink.of(call))
        assert [word.text for word in bridge.sink.words(call)] == [f"w{n:03d}" for n in words]


async def test_digits_come_once_and_between_the_words_around_them(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    await bridge.said(peer, call, [1, 2])
    peer.press("5")
    peer.press("#")
    await bridge.said(peer, call, [3])
    peer.bye()
    await bridge.over(call)
    assert [w.text for w in bridge.sink.words(call)] == ["w001", "w002", "w003"]
    pressed = [e.body for e in bridge.sink.of(call) if isinstance(e.body, Pressed)]
    assert [p.digit for p in pressed] == ["5", "#"]
    assert [p.at for p in pressed] == pytest.approx([0.8, 0.8], abs=0.25)
    assert bridge.sink.words(call)[-1].start == pytest.approx(1.0, abs=0.08)


async def test_lost_packets_are_counted_concealed_and_move_nothing(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    said = list(range(10, 22))
    packets = list(peer.packets(encode(said)))
    dice = random.Random(4)
    lost = sorted(dice.sample(range(4, len(packets) - 4), 12))  # of 240: 5 %
    sent = [b"" if i in lost else packet for i, packet in enumerate(packets)]
    await bridge.played(sent, peer, call)
    await bridge.played(peer.packets(QUIET), peer, call)
    peer.bye()
    await bridge.over(call)
    counts = assert_a_call(bridge.sink.of(call)).legs["caller"]
    assert counts.packets_lost == 12
    assert counts.concealed == pytest.approx(0.02 * 12)
    assert counts.seconds == pytest.approx(0.4 * 12 + 0.2)
    # Words are heard or not; those that are heard are in their places.
    heard = {word.text: word.start for word in bridge.sink.words(call)}
    assert len(heard) >= 8
    for text, start_at in heard.items():
        assert start_at == pytest.approx(0.4 * (int(text[1:]) - 10), abs=0.1)


async def test_packets_in_disorder_and_twice_lose_no_word(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    said = list(range(30, 40))
    packets = list(peer.packets(encode(said)))
    for i in range(10, 190, 9):
        packets[i], packets[i + 1] = packets[i + 1], packets[i]
    for some in range(0, len(packets), 20):
        peer.play(packets[some : some + 20])
        peer.play(packets[some + 12 : some + 14], 0.0)  # again
        await bridge.heard(call, some + 14)
    await bridge.played(peer.packets(QUIET), peer, call)
    peer.bye()
    await bridge.over(call)
    assert_said(bridge.sink.words(call), said)
    counts = assert_a_call(bridge.sink.of(call)).legs["caller"]
    assert (counts.packets_lost, counts.packets_duplicate, counts.concealed) == (0, 20, 0)


async def test_silence_that_is_not_sent_keeps_the_words_after_it_in_place(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    await bridge.said(peer, call, [1])
    for seconds in (0.5, 5.0):  # DTX: the timestamps go on, the numbers do not jump
        peer.timestamp = (peer.timestamp + round(seconds * 8000)) & 0xFFFFFFFF
        bridge.clock.skew += seconds
        await bridge.said(peer, call, [2])
    peer.bye()
    await bridge.over(call)
    starts = [word.start for word in bridge.sink.words(call)]
    assert starts == pytest.approx([0.0, 0.9, 6.3], abs=0.08)
    assert assert_a_call(bridge.sink.of(call)).seconds == pytest.approx(6.7)


async def test_a_turn_ends_though_nothing_comes_any_more(start: Start) -> None:
    """DTX: in real time, not with the next packet."""
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    await bridge.said(peer, call, [1, 2, 3])

    def turns() -> list[str]:
        return [e.body.text for e in bridge.sink.of(call) if isinstance(e.body, EndOfTurn)]

    await until(turns, PATIENCE)
    assert turns() == ["w001 w002 w003"]
    assert bridge.server.switchboard.calls[call].legs["caller"].counts().seconds == 1.2
    peer.timestamp = (peer.timestamp + 8 * 8000) & 0xFFFFFFFF
    bridge.clock.skew += 8
    await bridge.said(peer, call, [4, 5])
    await until(lambda: len(turns()) == 2, PATIENCE)
    peer.bye()
    await bridge.over(call)
    words = bridge.sink.words(call)
    assert [word.text for word in words] == ["w001", "w002", "w003", "w004", "w005"]
    assert [words[0].start, words[3].start] == pytest.approx([0.0, 9.2], abs=0.08)
    ended = assert_a_call(bridge.sink.of(call))
    assert ended.seconds == pytest.approx(10.0)
    assert ended.legs["caller"].silence_inserted == pytest.approx(8.0)


# -- who may speak -----------------------------------------------------------------------------


async def test_strangers_are_counted_and_never_heard(start: Start) -> None:
    bridge = await start()
    peer, stranger = bridge.peer(), bridge.peer()
    call, _ = bridge.announce(peer)
    stranger.to = peer.to
    stranger.speak(encode([99])[:1600])  # before the peer
    await bridge.said(peer, call, [1, 2])
    # The peer's own SSRC, and numbers and timestamps to come.
    stranger.sequence, stranger.timestamp = peer.sequence, peer.timestamp
    stranger.speak(encode([98, 97])[:4800])
    stranger.bye()
    await bridge.said(peer, call, [3])
    peer.bye()
    await bridge.over(call)
    assert [w.text for w in bridge.sink.words(call)] == ["w001", "w002", "w003"]
    counts = assert_a_call(bridge.sink.of(call)).legs["caller"]
    assert (counts.frames, counts.packets_foreign, counts.packets_invalid) == (60, 41, 0)
    assert stranger.answers() == []


async def test_another_stream_of_the_peers_address_must_prove_itself(start: Start) -> None:
    """Who spoofs the peer's address, too, needs its numbers, or silence of the peer."""
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    await bridge.said(peer, call, [1])
    for n in range(30):
        peer.send(struct.pack(">BBHII", 0x80, 0, 7000 + 50 * n, n, 666) + bytes(160))
    await bridge.said(peer, call, [2])
    peer.bye()
    await bridge.over(call)
    assert [w.text for w in bridge.sink.words(call)] == ["w001", "w002"]
    counts = assert_a_call(bridge.sink.of(call)).legs["caller"]
    assert (counts.frames, counts.packets_invalid) == (40, 30)


async def test_a_new_announcement_moves_the_call_to_another_source(start: Start) -> None:
    bridge = await start()
    old, new = bridge.peer(), bridge.peer()
    call, address = bridge.announce(old)
    await bridge.said(old, call, [1])
    new.to, new.sequence, new.timestamp = old.to, old.sequence, old.timestamp
    assert bridge.announce(new, uuid=call)[1].port == address.port
    await bridge.said(new, call, [2])
    old.speak(encode([66]))
    await bridge.said(new, call, [3])
    new.bye()
    await bridge.over(call)
    assert [w.text for w in bridge.sink.words(call)] == ["w001", "w002", "w003"]
    with pytest.raises(BadAnnouncement, match="from: 2001:db8::1 cannot send to rtp.listen"):
        bridge.announce(source=("2001:db8::1", 4000))


async def test_only_the_source_of_an_announced_stream_may_change(start: Start) -> None:
    bridge = await start()
    call, _ = bridge.announce(bridge.peer())
    sentence = "^this UUID has been announced with another stream; only its source may change$"
    with pytest.raises(ValueError, match=sentence):
        bridge.announce(bridge.peer(), uuid=call, codec="pcma")


KEY = "inline:" + base64.b64encode(bytes(range(30))).decode()


async def test_srtp(start: Start) -> None:
    pylibsrtp = pytest.importorskip("pylibsrtp")
    bridge = await start(rtp={"ports": "32000-33999", "require_srtp": True})
    peer = bridge.peer()
    with pytest.raises(
        BadAnnouncement, match="^media: srtp: this bridge takes no audio without it"
    ):
        bridge.announce(peer)
    call, _ = bridge.announce(peer, srtp=SrtpKey("AES_CM_128_HMAC_SHA1_80", KEY))
    session = pylibsrtp.Session(
        pylibsrtp.Policy(bytes(range(30)), pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
    )
    peer.speak(encode([99])[:1600])  # in the clear
    peer.seal = session.protect
    await bridge.said(peer, call, [5, 6])
    peer.seal = session.protect_rtcp
    bye = struct.pack(">BBHI", 0x80, 201, 1, peer.ssrc) + struct.pack(
        ">BBHI", 0x81, 203, 1, peer.ssrc
    )
    peer.send(session.protect_rtcp(bye))
    await bridge.over(call)
    assert [w.text for w in bridge.sink.words(call)] == ["w005", "w006"]
    counts = assert_a_call(bridge.sink.of(call)).legs["caller"]
    assert (counts.frames, counts.packets_invalid) == (40, 10)


async def test_reports_under_srtp_are_sealed_with_the_key_that_was_told(start: Start) -> None:
    """RFC 3711 §3.4: RTCP is not optional there, and in the clear would be nothing to the peer."""
    pytest.importorskip("pylibsrtp")
    bridge = await start()
    peer, suite = bridge.peer(), "AES_CM_128_HMAC_SHA1_80"
    srtp = SrtpKey(suite, KEY)
    call, address = bridge.announce(peer, srtp=srtp)
    assert address.srtp is not None and address.srtp.key != KEY
    again = bridge.announce(peer, uuid=call, srtp=srtp)[1]
    assert again.srtp == address.srtp  # a re-INVITE changes no key
    mine = Sealer(keys(suite, KEY))
    peer.seal = mine.rtp
    await bridge.said(peer, call, [5])
    report = struct.pack(">BBHIQIII", 0x80, 200, 6, peer.ssrc, 1 << 40, 0, 1, 160)
    peer.send(mine.rtcp(report))
    await bridge.read(peer)
    answers: list[bytes] = []
    while not answers:  # an answer is due some seconds later
        bridge.clock.skew += 0.5
        await bridge.said(peer, call, [6])
        answers += peer.answers()
    (answer,) = answers
    assert isinstance(rtcp.parse(answer), str)  # it is not in the clear
    opened = Opener(keys(address.srtp.suite, address.srtp.key)).rtcp(answer)
    assert opened is not None
    first, second = rtcp.parse(opened)  # type: ignore[misc]
    assert isinstance(first, rtcp.ReceiverReport) and isinstance(second, rtcp.Description)
    (block,) = first.blocks
    assert (block.ssrc, block.lost, block.lsr) == (peer.ssrc, 0, 1 << 24)
    peer.send(mine.rtcp(report + struct.pack(">BBHI", 0x81, 203, 1, peer.ssrc)))
    await bridge.over(call)


async def test_a_leg_that_somebody_else_knows_to_be_over_is_heard_to_its_end(start: Start) -> None:
    """As of a tap: nothing is sent that says so."""
    bridge = await start()
    rtp = bridge.server.rtp
    assert rtp is not None
    closed: list[str] = []
    rtp.on_closed = closed.append
    peer, never = bridge.peer(), bridge.peer()
    call, _ = bridge.announce(peer)
    await bridge.said(peer, call, [1, 2])
    peer.speak(encode([3])[:2880])  # and some more that is on its way
    rtp.end(call)
    await bridge.over(call)
    ended = assert_a_call(bridge.sink.of(call))
    assert (ended.reason, ended.legs["caller"].frames) == ("hangup", 40 + 18)
    assert [w.text for w in bridge.sink.words(call)][:2] == ["w001", "w002"]
    other, _ = bridge.announce(never)
    rtp.end(other)
    assert other not in bridge.server.switchboard.announced
    rtp.end(other)  # twice is no error
    assert closed == [call, other]


async def test_nobody_is_heard_until_it_is_said_who_sends(start: Start) -> None:
    bridge = await start(rtp={"ports": "32000-33999", "allow": ["127.0.0.0/8"]})
    rtp = bridge.server.rtp
    assert rtp is not None
    peer, stranger = bridge.peer(), bridge.peer()
    call, _ = bridge.announce(peer, source=None, held=True)
    stranger.to = peer.to
    for sender in (stranger, peer):
        sender.speak(encode([9]))
    await asyncio.sleep(0)
    assert bridge.server.recogniser.used == 0
    with pytest.raises(BadMedia, match="^from: 192.0.2.7 is in none of the networks of rtp.allow$"):
        rtp.listen_to(call, ("192.0.2.7", 4000))
    rtp.listen_to(call, peer.sock.getsockname())
    assert rtp.source(call) == peer.sock.getsockname()
    await bridge.said(peer, call, [4, 5])
    rtp.end(call)
    await bridge.over(call)
    assert [w.text for w in bridge.sink.words(call)] == ["w004", "w005"]
    assert assert_a_call(bridge.sink.of(call)).legs["caller"].packets_foreign == 40
    with pytest.raises(BadMedia, match="^the port has been closed meanwhile$"):
        rtp.listen_to(call, peer.sock.getsockname())
    assert rtp.source(call) is None


# -- how calls begin and end -------------------------------------------------------------------


async def test_a_leg_takes_its_slot_with_its_first_packet_and_has_it_reserved_before(
    start: Start,
) -> None:
    bridge = await start(engine={"kind": "tones", "slots": 1})
    first, second = bridge.peer(), bridge.peer()
    one, _ = bridge.announce(first)
    with pytest.raises(Busy, match="1 are kept for others"):
        bridge.announce(second)
    assert len(bridge.server.rtp.ports) == 1  # type: ignore[union-attr]
    assert bridge.server.recogniser.used == 0
    await bridge.said(first, one, [1])
    assert (bridge.server.recogniser.used, bridge.server.switchboard.gate.reserved) == (1, 0)
    first.bye()
    await bridge.over(one)
    assert [w.text for w in bridge.sink.words(one)] == ["w001"]
    two, _ = bridge.announce(second)
    await bridge.said(second, two, [2])


async def test_a_port_nobody_comes_to_is_closed_and_forgotten(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, address = bridge.announce(peer)
    assert address.expires_in == 30.0
    rtp = bridge.server.rtp
    assert rtp is not None and len(rtp.ports) == 1
    bridge.clock.skew += 30.1
    await until(lambda: len(rtp.ports) == 0, PATIENCE)
    await until(lambda: call not in bridge.server.switchboard.announced, PATIENCE)
    assert rtp.sockets.resting == 1
    bridge.clock.skew += REST
    await until(lambda: rtp.sockets.resting == 0, PATIENCE)
    assert bridge.sink.events == []


async def test_a_peer_that_falls_silent_is_gone_after_the_timeout(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    await bridge.said(peer, call, [1])
    bridge.clock.skew += 29.0
    await bridge.said(peer, call, [2])
    bridge.clock.skew += 30.1
    await bridge.over(call)
    assert assert_a_call(bridge.sink.of(call)).reason == "timeout"
    assert [w.text for w in bridge.sink.words(call)] == ["w001", "w002"]


async def test_call_control_ends_a_call_and_the_peer_is_told_if_it_listens(start: Start) -> None:
    bridge = await start()
    desk = Desk(bridge.server)
    for reports in (False, True):
        peer = bridge.peer()
        call, _ = bridge.announce(peer)
        await bridge.said(peer, call, [4])
        if reports:
            peer.report()
        await bridge.said(peer, call, [5])
        assert desk.hang_up(call)
        await bridge.over(call)
        assert assert_a_call(bridge.sink.of(call)).reason == "bridge"
        assert [w.text for w in bridge.sink.words(call)] == ["w004", "w005"]
        # RR, SDES, BYE: in that order, once; and nothing to who reports nothing.
        answers = peer.answers()
        assert len(answers) == reports
        assert all(answer[1] == 201 and answer[-7] == 203 for answer in answers)
        peer.speak(encode([6]))
    assert not desk.hang_up(call)


async def test_call_control_takes_an_announcement_back(start: Start) -> None:
    bridge = await start()
    desk = Desk(bridge.server)
    caller, callee = bridge.peer(), bridge.peer()
    bridge.announce(caller, call="c-2", leg="caller")
    second, _ = bridge.announce(callee, call="c-2", leg="callee")
    await bridge.said(caller, "c-2", [1])
    # The call and the port that waits for its other leg.
    assert desk.hang_up("c-2")
    assert bridge.server.rtp is not None and len(bridge.server.rtp.ports) == 0
    assert second not in bridge.server.switchboard.announced
    await bridge.over("c-2")
    callee.speak(encode([2]))
    one, _ = bridge.announce(bridge.peer())
    assert desk.hang_up(one) and not desk.hang_up(one)
    assert {event.call.id for event in bridge.sink.events} == {"c-2"}


def free_even_port() -> int:
    """Below those that the kernel gives to anybody."""
    while True:
        port = random.randrange(20000, 32000, 2)
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", port))
            return port


async def test_the_next_call_on_a_port_hears_nothing_of_the_last(start: Start) -> None:
    only = free_even_port()
    bridge = await start(rtp={"ports": f"{only}-{only + 1}"})
    peer, other = bridge.peer(), bridge.peer()
    first, address = bridge.announce(peer)
    with pytest.raises(Busy, match=f"^no port of rtp.ports = {only}-{only + 1} is free"):
        bridge.announce(other)
    await bridge.said(peer, first, [1])
    assert Desk(bridge.server).hang_up(first)
    await bridge.over(first)
    peer.speak(encode([2])[:3200])  # it has not noticed yet
    with pytest.raises(Busy):
        bridge.announce(other)
    bridge.clock.skew += REST
    second, again = bridge.announce(other, source=None)
    assert again.port == address.port == only
    peer.speak(encode([3])[:320])
    await bridge.said(other, second, [4])
    peer.speak(encode([5]))
    await bridge.said(other, second, [6])
    other.bye()
    await bridge.over(second)
    assert [w.text for w in bridge.sink.words(second)] == ["w004", "w006"]


async def test_nobody_is_announced_while_the_bridge_drains(start: Start) -> None:
    bridge = await start()
    late = bridge.peer()
    waiting, _ = bridge.announce(late)
    await bridge.server.drain()
    with pytest.raises(Busy, match="^the bridge is shutting down$"):
        bridge.announce(bridge.peer())
    late.speak(encode([1])[:1600])
    await bridge.over(waiting)
    (event,) = bridge.sink.of(waiting)
    assert event.body == Refused("draining")


async def test_a_worker_that_hands_over_waits_for_those_who_were_told_its_ports(
    start: Start,
) -> None:
    bridge = await start(service={"drain_timeout": 20, "flush_timeout": 10})
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    draining = asyncio.create_task(bridge.server.drain(handover=True))
    await until(lambda: bridge.server.draining)
    assert not draining.done()
    await bridge.said(peer, call, [1, 2])
    peer.bye()
    await bridge.over(call)
    await asyncio.wait_for(draining, PATIENCE)
    assert [w.text for w in bridge.sink.words(call)] == ["w001", "w002"]


async def test_an_error_of_ours_ends_its_call_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = await start()
    peer, other = bridge.peer(), bridge.peer()
    call, _ = bridge.announce(peer)
    healthy, _ = bridge.announce(other)
    await bridge.said(peer, call, [1])
    await bridge.said(other, healthy, [2])
    assert bridge.server.rtp is not None
    port = bridge.server.rtp._open[call]
    monkeypatch.setattr(type(port.ingress), "deadline", lambda self: 1 // 0)
    peer.speak(QUIET)
    await until(lambda: call not in bridge.server.rtp._open, PATIENCE)  # type: ignore[union-attr]
    monkeypatch.undo()
    await bridge.over(call)
    assert assert_a_call(bridge.sink.of(call)).reason == "internal"


# -- what is told ------------------------------------------------------------------------------


async def test_counts_are_in_the_api_and_in_the_metrics(start: Start) -> None:
    bridge = await start()
    peer = bridge.peer()
    call, _ = bridge.announce(peer)
    packets = list(peer.packets(encode([1, 2, 3])))
    packets[30] = b""
    await bridge.played(packets, peer, call)
    found = Desk(bridge.server).call(call)
    assert found is not None
    live = found["legs"]["caller"]  # type: ignore[index]
    assert (live["frames"], live["packets_lost"], live["concealed"]) == (59, 1, 0.02)
    assert metrics(bridge)['callscribe_rtp_packets_total{what="received"}'] == 59
    assert metrics(bridge)['callscribe_rtp_ports{state="heard"}'] == 1
    peer.bye()
    await bridge.over(call)
    found = Desk(bridge.server).call(call)
    assert found is not None
    after = found["legs"]["caller"]  # type: ignore[index]
    assert after["level"] == SILENCE and after["latency"] > 0
    now = {"words": 3, "blocks": 15, "level": SILENCE, "latency": after["latency"]}
    assert after == live | now
    told = metrics(bridge)
    assert told['callscribe_rtp_packets_total{what="received"}'] == 59
    assert told['callscribe_rtp_packets_total{what="lost"}'] == 1
    assert told['callscribe_rtp_packets_total{what="rtcp"}'] == 1
    assert told["callscribe_rtp_concealed_seconds_total"] == pytest.approx(0.02)
    assert told['callscribe_rtp_ports{state="resting"}'] == 1
    assert told["callscribe_rtp_jitter_seconds_count"] == 1
    assert told['callscribe_calls_started_total{ingress="rtp"}'] == 1


def metrics(bridge: Bridge) -> dict[str, float]:
    text = bridge.server.metrics.exposition()[0].decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def test_what_cannot_be_heard_is_refused_with_a_sentence(start: Start) -> None:
    anywhere = {"ports": "32000-33999", "allow": ["10.0.0.0/8"]}
    bridge = await start(rtp=anywhere)
    for media, sentence in [
        ({"codec": "opus"}, "media: codec 'opus' is not known; it is one of"),
        ({"source": ("192.0.2.1", 4)},
         "media: from: 192.0.2.1 is in none of the networks of rtp.allow"),
        ({"payload_types": {"72": "pcmu"}}, "media: payload type 72 cannot be told from RTCP"),
        ({"srtp": SrtpKey("ROT13", KEY)}, "media: srtp suite 'ROT13' is not known"),
        ({"srtp": SrtpKey("AES_CM_128_HMAC_SHA1_80", "inline:AAAA")},
         "media: the srtp key of AES_CM_128_HMAC_SHA1_80 is 30 bytes of key and salt, not 3"),
    ]:  # fmt: skip
        with pytest.raises(BadAnnouncement) as e:
            bridge.announce(**media)  # type: ignore[arg-type]
        assert str(e.value).startswith(sentence)
    assert bridge.server.rtp is not None
    assert (bridge.server.rtp.sockets.used, bridge.server.rtp.sockets.resting) == (0, 0)


async def test_samples_without_a_header(start: Start) -> None:
    """FreeSWITCH's unicast."""
    bridge = await start()
    peer, stranger = bridge.peer(), bridge.peer()
    call, address = bridge.announce(peer, kind="l16")
    assert (address.codec, address.payload_types) == ("l16le/8000", {})
    stranger.to = peer.to
    stranger.play([bytes(320)] * 5)
    samples = encode([9, 8, 7]).astype("<i2")
    for at in range(0, len(samples), 160):  # the clock is the arrival's
        peer.play([samples[at : at + 160].tobytes()])
        await bridge.read(peer)
    await bridge.heard(call, 60)
    stranger.play([bytes(320)] * 5)
    bridge.clock.skew += 30.1
    await bridge.over(call)
    ended = assert_a_call(bridge.sink.of(call))
    assert [w.text for w in bridge.sink.words(call)] == ["w009", "w008", "w007"]
    assert (ended.reason, ended.legs["caller"].packets_foreign) == ("timeout", 10)
    assert bridge.sink.of(call)[0].call.ingress == "l16"
    for media, sentence in [
        ({"source": None}, "from: needed, because samples without a header prove nothing"),
        ({"codec": "cn"}, "codec cn is no audio"),
        ({"payload_types": {"0": "pcmu"}}, "srtp and payload_types are RTP's; samples without"),
    ]:  # fmt: skip
        with pytest.raises(BadAnnouncement, match=f"^media: {sentence}"):
            bridge.announce(peer, kind="l16", **media)  # type: ignore[arg-type]


async def test_where_nobody_can_be_learnt_an_address_is_needed(start: Start) -> None:
    bridge = await start(
        rtp={"listen": "0.0.0.0", "advertise": "127.0.0.1", "allow_insecure": True}
    )
    with pytest.raises(BadAnnouncement, match="^media: from: needed, because rtp.allow names no"):
        bridge.announce()
    call, address = bridge.announce(peer := bridge.peer())
    assert address.address == "127.0.0.1"
    await bridge.said(peer, call, [8])
    peer.bye()
    await bridge.over(call)


async def test_a_uuid_that_is_a_call_already_gets_no_port(start: Start) -> None:
    bridge = await start()
    uuid = name()
    line = bridge.server.switchboard.opened(
        uuid, "audiosocket", lambda: None, lambda: 0.0, bridge.clock()
    )
    with pytest.raises(ValueError, match="^this UUID's call is up already, and it is not by RTP$"):
        bridge.announce(uuid=uuid, source=None)
    bridge.server.switchboard.closed(line, "eof")
    await bridge.over(uuid)
    with pytest.raises(ValueError, match="^a UUID has the form"):
        bridge.announce(uuid="c-1", source=None)
    assert bridge.server.rtp is not None and bridge.server.rtp.sockets.used == 0


async def test_without_rtp_in_the_configuration_there_are_no_ports() -> None:
    server = Server(from_dict({"engine": {"kind": "tones", "slots": 1}}))
    with pytest.raises(BadAnnouncement) as e:
        Desk(server).open_media(Announcement(name()), MediaRequest())
    assert str(e.value) == (
        "media: this bridge takes no RTP; its configuration needs an [rtp] section"
    )


async def test_before_the_engine_is_there_nobody_is_told_a_port() -> None:
    server = Server(from_dict({"engine": {"kind": "tones", "slots": 1}, "rtp": {}}))
    with pytest.raises(Busy, match="^the engine is loading$"):
        server.open_media(Announcement(name()), MediaRequest())
    await server.close()


async def test_an_address_of_another_machine_stops_the_start() -> None:
    server = Server(
        from_dict(
            {
                "engine": {"kind": "tones", "slots": 1},
                "rtp": {"listen": "192.0.2.77", "allow_insecure": True},
            }
        )
    )
    with pytest.raises(BridgeError, match="^rtp.listen = 192.0.2.77: Cannot assign requested"):
        await server.start({})
    await server.close()
