"""The media channel of a tap by RTP: who is heard, from when on, and what ends what.

In the small Asterisk of `fake_ari`. What all forms do is in test_ari_taps.py and
test_ari_failures.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_ari import OURS, TapsLab, labs

from bridge.errors import ProtocolError
from bridge.pbx.ari_media import AudioSocketMedia, source
from bridge.pbx.ari_rules import Rule
from bridge.pbx.ari_tap import BACKOFF, GRACE, PATIENCE

ALL = (Rule(endpoint="*"),)

Make = Callable[..., TapsLab]


@pytest.fixture
def make() -> Iterator[Make]:
    yield from labs()


def answer(**variables: str) -> str:
    """What externalMedia is answered."""
    return json.dumps({"id": "x", "name": "UnicastRTP/y", "channelvars": variables})


def local(address: str, port: str) -> str:
    return answer(UNICASTRTP_LOCAL_ADDRESS=address, UNICASTRTP_LOCAL_PORT=port)


# -- what the answer says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (local("127.0.0.1", "15002"), ("127.0.0.1", 15002)),
        (local("::ffff:192.0.2.7", "1"), ("192.0.2.7", 1)),
        (local("2001:DB8::1", "65535"), ("2001:db8::1", 65535)),
    ],
)
def test_where_the_audio_comes_from(said: str, expected: tuple[str, int]) -> None:
    assert source(said) == expected


@pytest.mark.parametrize(
    "said",
    [
        "", "[]", "{}", '{"channelvars": []}', answer(UNICASTRTP_LOCAL_ADDRESS="127.0.0.1"),
        local("localhost", "15002"), local("127.0.0.1", "x"), local("127.0.0.1\r\nx", "15002"),
        local("127.0.0.1", "15002.0"),
    ],
)  # fmt: skip
def test_an_answer_that_does_not_say_it(said: str) -> None:
    with pytest.raises(
        ProtocolError,
        match="^Asterisk does not say where its audio comes from: expected "
        "UNICASTRTP_LOCAL_ADDRESS and UNICASTRTP_LOCAL_PORT in the answer to externalMedia$",
    ):
        source(said)


@pytest.mark.parametrize(("address", "port"), [("0.0.0.0", "1"), ("::", "1"), ("::1", "65536")])
def test_an_answer_that_cannot_be_true(address: str, port: str) -> None:
    with pytest.raises(ProtocolError, match=f"^Asterisk says .* comes from {address}, port {port}"):
        source(local(address, port))


# -- a leg's way ----------------------------------------------------------------------------------


def test_nobody_is_heard_before_asterisk_has_said_who_sends(make: Make) -> None:
    """And the stream is not asked to begin before that."""
    lab = make(*ALL, kind="rtp")
    lab.silent = "externalMedia"
    lab.world.new("PJSIP/alice-00000001")
    lab.run()
    assert list(lab.ports.sources.values()) == [None]
    lab.silent, lab.mute = "", "externalMedia"  # it is done, and its answer does not come
    lab.wait(PATIENCE + BACKOFF[0])
    assert list(lab.ports.sources.values()) == [None, None]
    assert lab.asked("addChannel") == []
    lab.mute = ""
    lab.wait(PATIENCE + 2 * BACKOFF[0])
    (channel,) = [c for c in lab.world.channels.values() if c.name.startswith("UnicastRTP/")]
    port = int(channel.variables["UNICASTRTP_LOCAL_PORT"])
    assert list(lab.ports.sources.values()) == [None, None, ("127.0.0.1", port)]
    assert len(lab.one_call()) == len(lab.asked("addChannel")) == 1


@pytest.mark.parametrize("where", ["answer", "networks"])
def test_a_sender_that_cannot_be_heard_costs_the_attempt(make: Make, where: str) -> None:
    lab = make(*ALL, kind="rtp")
    if where == "answer":
        lab.world.local = {"UNICASTRTP_LOCAL_ADDRESS": "0.0.0.0"}
        reason = "Asterisk says that its audio comes from 0.0.0.0, port "
    else:
        lab.ports.refuse = reason = "from: 127.0.0.1 is in none of the networks of rtp.allow"
    a = lab.world.new("PJSIP/alice-00000001")
    lab.run()
    assert lab.notices[0].startswith(f"PJSIP/alice-00000001 is not tapped: {reason}")
    assert lab.taps.counters["untapped_error"] == 1
    assert [id for id in lab.world.channels if OURS.fullmatch(id)] == []
    assert lab.ports.ended == list(lab.announced)
    lab.world.local, lab.ports.refuse = {"UNICASTRTP_LOCAL_ADDRESS": "127.0.0.1"}, ""
    lab.wait(2 * BACKOFF[0])
    assert lab.one_call() == {"caller": a}


@pytest.mark.parametrize("piece", ["s", "m"])
def test_whichever_piece_ends_first_takes_the_others_and_the_port(make: Make, piece: str) -> None:
    lab = make(*ALL, kind="rtp")
    a = lab.world.new("PJSIP/alice-00000001")
    lab.wait(1)
    (first,) = lab.announced
    lab.world.hang_up(f"callscribe-{piece}-{first}")
    lab.run()
    assert lab.ports.ended == [first]
    assert [id for id in lab.world.channels if OURS.fullmatch(id)] == []
    assert lab.world.bridges == {}
    lab.wait(GRACE + 2 * BACKOFF[0])
    assert lab.one_call() == {"caller": a} and len(lab.announced) == 2


@pytest.mark.parametrize("by_us", [True, False])
def test_a_leg_that_ends_on_our_side_ends_in_asterisk(make: Make, by_us: bool) -> None:
    """Who sends RTP is not told that nobody hears it."""
    lab = make(*ALL, kind="rtp")
    a = lab.world.new("PJSIP/alice-00000001")
    lab.wait(1)
    (first,) = lab.announced
    if by_us:  # DELETE /calls; otherwise nothing has come for a while
        lab.ended.add(first)
    lab.taps.unheard(first, lab.now)
    lab.run()
    assert [id for id in lab.world.channels if OURS.fullmatch(id)] == []
    assert lab.world.bridges == {} and a in lab.world.channels
    lab.wait(GRACE + 2 * BACKOFF[0])
    assert len(lab.announced) == (1 if by_us else 2)
    assert bool(lab.legs()) is not by_us
    lab.taps.unheard("00000000-0000-4000-8000-00000000ffff", lab.now)  # of nobody's


def test_a_loss_of_ari_in_mid_way_closes_the_port(make: Make) -> None:
    lab = make(*ALL, kind="rtp")
    lab.silent = "addChannel"
    lab.world.new("PJSIP/alice-00000001")
    lab.run()
    assert lab.ports.ended == []
    lab.taps.lost("its link ended", lab.now)
    assert lab.ports.ended == list(lab.announced)
    lab.silent = ""
    lab.connect()
    lab.wait(1)
    assert len(lab.one_call()) == 1


def test_audiosocket_asks_for_what_it_always_did() -> None:
    media: Any = AudioSocketMedia("192.0.2.1:9092")
    assert media.stays and not media.answers
    assert media.ask("u")["data"] == "u" and media.ask("u")["external_host"] == "192.0.2.1:9092"
    media.told("u", "anything")
    media.over("u")
