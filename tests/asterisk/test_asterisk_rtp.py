"""SIP phones' audio, through a real Asterisk, as RTP into the bridge's ports."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import lab_ari
import lab_loss
import lab_phone
import numpy as np
import pytest
from lab import LabError
from lab_ami import Ami
from lab_ari import FORMS, AriLab, Rest
from lab_audio import Samples, to_wav
from lab_bridge import speech, texts

from bridge.accuracy import word_errors
from bridge.audio.g711 import encode_ulaw
from bridge.engine.tones import encode
from bridge.media import MediaRequest
from bridge.types import Announcement

WORDS = [7, 77, 177, 7, 255, 0]
OTHERS = [12, 13, 200, 12, 99]
LOSS = 0.3

needs_phones = pytest.mark.skipif(bool(lab_phone.missing()), reason=lab_phone.missing() or "-")


@pytest.fixture(scope="module")
def _asterisk() -> Iterator[AriLab]:
    yield from lab_ari.boot()


@pytest.fixture
async def lab(_asterisk: AriLab) -> AsyncIterator[AriLab]:
    """An Asterisk with ARI that has no calls, and has none when the test is over."""
    yield _asterisk
    _asterisk.cli("channel request hangup all", check=False)
    async with lab_ari.rest(_asterisk) as rest:
        await rest.nothing_left()


@pytest.fixture
async def rest(lab: AriLab) -> AsyncIterator[Rest]:
    async with lab_ari.rest(lab) as client:
        yield client


def said(words: list[int], before: float = 2.0, after: float = 20.0) -> Samples:
    """Coded words, with silence in which the call is set up, and in which it stays up."""
    quiet = [np.zeros(round(seconds * 8000), np.int16) for seconds in (before, after)]
    return np.concatenate([quiet[0], encode(words), quiet[1]])


@needs_phones
async def test_two_softphones_in_one_call_are_told_apart(lab: AriLab, tmp_path: Path) -> None:
    """Each party is a phone of its own, and comes to a port of its own."""
    rules = [{"endpoint": "PJSIP/anonymous"}]
    async with (
        lab_ari.serve(lab, **FORMS["rtp"], taps=rules) as bridge,
        lab_phone.answering(tmp_path, to_wav(said(OTHERS))) as bob,
    ):
        lab.set_global("LAB_CALLEE", f"PJSIP/anonymous/{bob}")
        async with lab_phone.softphone(lab, tmp_path, to_wav(said(WORDS)), "talk"):
            await bridge.until_up(2)
            (heard,) = bridge.told.calls()
            await bridge.told.until(
                lambda: bridge.told.words(heard, "caller") == texts(WORDS), "alice's words"
            )
            await bridge.told.until(
                lambda: bridge.told.words(heard, "callee") == texts(OTHERS), "bob's words"
            )
            legs = bridge.server.switchboard.counts(bridge.server.switchboard.calls[heard])
            for counts in legs.values():
                assert counts.packets_lost == counts.packets_invalid == counts.packets_foreign == 0
        await bridge.told.until(lambda: heard in bridge.told.ended(), "the call's end")
        info = bridge.told.events[-1].call
        assert info.ingress == "rtp" and info.caller == "alice"
        assert info.channel.startswith("PJSIP/anonymous-")
        assert info.extra["callee_channel"].startswith("PJSIP/anonymous-")
        assert info.extra["callee_channel"] != info.channel
        assert bridge.link.taps.describe() == []


@needs_phones
async def test_twenty_sip_calls_at_once_come_by_rtp(
    lab: AriLab, rest: Rest, tmp_path: Path
) -> None:
    rules = [{"context": "callscribe-phone", "exten": "hear", "legs": ["caller"]}]
    async with lab_ari.serve(lab, **FORMS["rtp"], taps=rules) as bridge:
        told = bridge.told
        says = encode_ulaw(speech(WORDS))
        await lab_phone.many(lab, tmp_path, says, "hear", calls=20, rate=20, after=3.0)
        await told.until(lambda: len(told.ended()) == 20, "twenty ends")
        assert [told.words(id, "caller") for id in told.ended()] == [texts(WORDS)] * 20
        assert {event.call.ingress for event in told.events} == {"rtp"}
        await rest.nothing_left()
        rtp = bridge.server.rtp
        assert rtp is not None and len(rtp.ports) == 0
        totals = rtp.totals()
        assert totals["lost"] == totals["invalid"] == totals["stray"] == 0
        assert bridge.link.counters["up"] == bridge.link.counters["attempts"] == 20


async def test_with_thirty_percent_of_its_packets_lost_a_call_is_heard(
    lab: AriLab, ami: Ami, rest: Rest
) -> None:
    """Asterisk's packets, through a relay that loses them (lab_loss.py)."""
    words = [*range(30, 45)]  # 6 s
    sound = lab.sound("lossy", to_wav(said(words, before=1.0)))
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", sound)
    async with (
        lab_ari.serve(lab) as bridge,
        rest.hold("theirs"),
        lab_loss.relay(LOSS) as relay,
    ):
        request = MediaRequest(codec="ulaw", source=relay.address)
        port = bridge.server.open_media(Announcement(str(uuid4()), "lossy"), request)
        relay.to = (port.address, port.port)
        await ami.originate("call", sound, context="ari")
        caller = await rest.find("Local/call@ari", ";2")
        where = f"{relay.address[0]}:{relay.address[1]}"
        made = await rest.listen("theirs", caller["id"], where, "ulaw")
        board, told = bridge.server.switchboard, bridge.told
        await bridge.until(lambda: "lossy" in board.calls, "a call")
        leg = board.calls["lossy"].legs["caller"]
        await bridge.until(lambda: leg.counts().seconds > 8.5, "the words and the pause after them")
        heard = told.words("lossy", "caller")
        (counts,) = board.counts(board.calls["lossy"]).values()
        came = relay.came.copy()
        await ami.hang_up_all()
        for path in made:
            with contextlib.suppress(LabError):  # the channels have been hung up, too
                await rest.ask("DELETE", path)
    wrong, of = word_errors(" ".join(texts(words)), " ".join(heard))
    assert of == 15 and wrong <= 2, heard  # none, mostly; each is 0.4 s, and one may be too bare
    assert 0.2 < came.count(False) / len(came) < 0.4
    # Every loss is known, nothing else is, and the leg's clock has run on over it. What waits
    # behind the newest holes is not told yet.
    assert abs(counts.packets_lost - came.count(False)) < 20
    assert counts.packets_late == counts.packets_invalid == counts.packets_foreign == 0
    assert abs(counts.concealed - 0.02 * counts.packets_lost) < 0.5
    assert abs(counts.seconds - 0.02 * len(came)) < 0.5
