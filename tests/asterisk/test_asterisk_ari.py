"""Taps by ARI on calls of a real Asterisk.

What must be heard is known exactly, because the engine hears words that are coded in tones. After
every test nothing is left in Asterisk: no channel, no bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import lab_ami
import lab_ari
import lab_phone
import numpy as np
import pytest
from lab import LabError
from lab_ami import Ami
from lab_ari import FORMS, AriLab, Rest, Tapping
from lab_audio import to_wav
from lab_bridge import texts

from bridge import doctor_ari, rtp_taps
from bridge.config import Settings, from_dict
from bridge.engine.tones import encode
from bridge.errors import DeliveryError
from bridge.media import MediaRequest
from bridge.pbx.ari_taps import NoChannel
from bridge.types import Announcement, LegName

WORDS = [7, 77, 177, 7, 255, 0]
OTHERS = [12, 13, 200, 12, 99]
LONG = list(range(50))  # 20 s
LEGS: tuple[tuple[LegName, list[int]], ...] = (("caller", WORDS), ("callee", OTHERS))
CHANNELS = (("Local/call@", ";2"), ("Local/callee@", ";1"))
EVERY_CALL = [{"endpoint": "*"}]
ALL_FORMS = pytest.mark.parametrize("form", list(FORMS))
BOTH_FORMS = pytest.mark.parametrize("form", ["dialplan", "external_media"])


@pytest.fixture(scope="module")
def _asterisk() -> Iterator[AriLab]:
    """As the fixture of that name in conftest.py."""
    yield from lab_ari.boot()


@pytest.fixture
async def lab(_asterisk: AriLab) -> AsyncIterator[AriLab]:
    """An Asterisk with ARI that has no calls, and has none when the test is over."""
    if not _asterisk.running:
        _asterisk.start()
    _asterisk.set_global("LAB_CALLEE", "Local/callee@lab/n")
    _asterisk.set_global("LAB_CALLEE_SAYS", sound(_asterisk, "others", OTHERS, after=5.0))
    yield _asterisk
    if _asterisk.running:
        _asterisk.cli("channel request hangup all", check=False)
        async with lab_ari.rest(_asterisk) as rest:
            await rest.nothing_left()


@pytest.fixture
async def rest(lab: AriLab) -> AsyncIterator[Rest]:
    async with lab_ari.rest(lab) as client:
        yield client


def sound(lab: AriLab, name: str, words: list[int], after: float = 0.5) -> str:
    """A sound file of coded words, with silence before them in which taps are made.

    And some after them, in seconds: the callee's is longer, so that the caller ends the call.
    """
    quiet = np.zeros(24000, np.int16)
    last = np.zeros(round(after * 8000), np.int16)
    return lab.sound(name, to_wav(np.concatenate([quiet, encode(words), last])))


def with_ami(lab: AriLab) -> dict[str, Any]:
    """The sample's account of AMI, for a bridge."""
    return {"ami": {"port": lab.ami, "username": "callscribe", "secret": lab.secret}}


async def call(lab: AriLab, ami: Ami, exten: str = "call", words: list[int] = WORDS) -> None:
    """A call whose caller says these words, and whose callee says the others."""
    await ami.originate(exten, sound(lab, f"says-{uuid4()}", words), context="ari")


async def both_heard(bridge: Tapping) -> str:
    """Wait for the end of the one call, of which both legs were heard whole. Its id."""
    await bridge.told.until(lambda: bool(bridge.told.ended()), "the call's end")
    (heard,) = bridge.told.calls()
    assert bridge.told.words(heard, "caller") == texts(WORDS)
    assert bridge.told.words(heard, "callee") == texts(OTHERS)
    return heard


# -- what is heard, and of whom -----------------------------------------------------------------


@ALL_FORMS
async def test_both_legs_of_a_call_are_told_apart(
    lab: AriLab, ami: Ami, rest: Rest, form: str
) -> None:
    async with lab_ari.serve(lab, **FORMS[form], taps=EVERY_CALL) as bridge:
        await call(lab, ami)
        await bridge.until_up(2)
        caller, callee = await rest.find("Local/call@ari", ";2"), await rest.find("Local/callee")
        await both_heard(bridge)
        info = bridge.told.events[-1].call
        assert (info.channel, info.uniqueid) == (caller["name"], caller["id"])
        assert info.extra["callee_channel"] == callee["name"].replace(";2", ";1")
        entered = await ami.event(Event="BridgeEnter", Channel=caller["name"])
        assert info.linkedid == entered["Linkedid"] != info.uniqueid
        await rest.nothing_left()  # while the bridge is still there: it is what cleans up
        assert bridge.link.taps.describe() == []
        assert bridge.link.counters["errors"] == bridge.link.counters["bad_events"] == 0


async def test_a_call_is_heard_that_is_answered_only_when_the_callee_answers(
    lab: AriLab, ami: Ami
) -> None:
    async with lab_ari.serve(lab, taps=EVERY_CALL) as bridge:
        await call(lab, ami, "unanswered")
        await both_heard(bridge)


async def test_a_callee_behind_another_local_channel_is_heard_itself(lab: AriLab, ami: Ami) -> None:
    """Asterisk takes the Local channel in between out of the call, and the taps stay."""
    lab.set_global("LAB_CALLEE", "Local/behind@ari")
    async with lab_ari.serve(lab, taps=EVERY_CALL) as bridge:
        await call(lab, ami)
        await both_heard(bridge)
        info = bridge.told.events[-1].call
        assert info.extra["callee_channel"].startswith("Local/callee@lab-")


async def test_a_rule_takes_the_calls_that_it_names_and_no_others(lab: AriLab, ami: Ami) -> None:
    rules = [{"context": "ari", "exten": "_2XX", "legs": ["callee"]}]
    async with lab_ari.serve(lab, taps=rules) as bridge:
        await call(lab, ami, "310")
        await call(lab, ami, "210")
        await bridge.told.until(lambda: bool(bridge.told.ended()), "the call's end")
        (heard,) = bridge.told.calls()
        assert bridge.told.words(heard, "callee") == texts(OTHERS)
        assert bridge.told.words(heard, "caller") == []


async def test_a_softphone_that_a_rule_names_is_heard(
    lab: AriLab, ami: Ami, tmp_path: Path
) -> None:
    sound(lab, "words", WORDS, after=20.0)
    lab.set_global("LAB_CALLEE_SAYS", sound(lab, "long-others", OTHERS, after=20.0))
    wav = (lab.outside / "sounds/words.wav").read_bytes()  # noqa: ASYNC240 - a small file
    async with lab_ari.serve(lab, taps=[{"endpoint": "PJSIP/anonymous"}]) as bridge:
        async with lab_phone.softphone(lab, tmp_path, wav, "talk"):
            await bridge.until_up(2)
            (heard,) = bridge.told.calls()
            await bridge.told.until(
                lambda: bridge.told.words(heard, "caller") == texts(WORDS), "the caller's words"
            )
            await bridge.told.until(
                lambda: bridge.told.words(heard, "callee") == texts(OTHERS), "the callee's"
            )
        await bridge.told.until(lambda: heard in bridge.told.ended(), "the call's end")
        info = bridge.told.events[-1].call
        assert info.channel.startswith("PJSIP/anonymous-") and info.caller == "alice"


async def test_ten_calls_at_once(lab: AriLab, ami: Ami, rest: Rest) -> None:
    """Twenty legs, each with words of its own, and each call's two together."""
    said = {n: [n, 100 + n, 255 - n] for n in range(10)}
    lab.set_global("LAB_CALLEE_SAYS", sound(lab, "short", OTHERS[:2], after=5.0))
    async with lab_ari.serve(lab, taps=EVERY_CALL) as bridge:
        for words in said.values():
            await call(lab, ami, words=words)
        await bridge.told.until(lambda: len(bridge.told.ended()) == 10, "ten ends")
        heard = sorted(bridge.told.words(id, "caller") for id in bridge.told.calls())
        assert heard == sorted(texts(words) for words in said.values())
        for id in bridge.told.calls():
            assert bridge.told.words(id, "callee") == texts(OTHERS[:2])
        await rest.nothing_left()
    assert lab.cli("core show channels count").startswith("0 active channels")


@pytest.mark.parametrize("format", ["alaw", "slin16"])
async def test_both_legs_come_by_rtp_as_external_media(
    lab: AriLab, ami: Ami, rest: Rest, format: str
) -> None:
    """Announced by somebody else's ARI application, a port for each leg."""
    async with lab_ari.serve(lab) as bridge, rest.hold("theirs"):
        await call(lab, ami)
        found = await rest.up(4)
        made = []
        for (leg, _), (begin, end) in zip(LEGS, CHANNELS, strict=True):
            announced = Announcement(str(uuid4()), "by-rtp", leg)
            port = bridge.server.open_media(announced, MediaRequest(codec=format))
            (id,) = [c["id"] for n, c in found.items() if n.startswith(begin) and n.endswith(end)]
            made += await rest.listen("theirs", id, f"{port.address}:{port.port}", format)
        for leg, words in LEGS:
            await bridge.told.until(
                lambda: bridge.told.words("by-rtp", leg) == texts(words),  # noqa: B023
                f"the {leg}'s words",
            )
        counts = bridge.server.switchboard.counts(bridge.server.switchboard.calls["by-rtp"])
        for heard in counts.values():
            assert (heard.packets_lost, heard.packets_invalid, heard.packets_foreign) == (0, 0, 0)
        await ami.hang_up_all()
        for path in made:
            with contextlib.suppress(LabError):  # the channels have been hung up, too
                await rest.ask("DELETE", path)


# -- who asks for it ----------------------------------------------------------------------------


async def test_the_dialplan_asks_for_its_call_to_be_heard(lab: AriLab, ami: Ami) -> None:
    """AMI tells of it too, and it is taken once."""
    async with lab_ari.serve(lab, more=with_ami(lab)) as bridge:
        link = bridge.server.link
        assert link is not None
        await asyncio.wait_for(link.up(), 30)
        await call(lab, ami)
        await call(lab, ami, "asks")
        await both_heard(bridge)
        assert link.counters["taps_asked"] == link.counters["bad_taps"] == 0
        assert link.counters["events"] > 0


async def test_the_dialplan_asks_for_one_leg_and_names_it(lab: AriLab, ami: Ami) -> None:
    async with lab_ari.serve(lab) as bridge:
        await call(lab, ami, "names")
        await bridge.told.until(lambda: bool(bridge.told.ended()), "the call's end")
        assert bridge.told.calls() == ["the-name"]
        assert bridge.told.words("the-name", "callee") == texts(WORDS)
        assert bridge.told.words("the-name", "caller") == []


async def test_a_channel_that_comes_by_stasis_goes_on_and_is_heard(lab: AriLab, ami: Ami) -> None:
    async with lab_ari.serve(lab) as bridge:
        await call(lab, ami, "stasis")
        after = await ami.event(UserEvent="LabAfter")
        assert after["Status"] == ""
        await both_heard(bridge)


async def test_without_us_a_channel_that_comes_by_stasis_goes_on(lab: AriLab, ami: Ami) -> None:
    await call(lab, ami, "stasis")
    after = await ami.event(UserEvent="LabAfter")
    assert after["Status"] == "unreachable"


async def test_ari_itself_asks_for_a_call(lab: AriLab, ami: Ami, rest: Rest) -> None:
    async with lab_ari.serve(lab) as bridge:
        await call(lab, ami)
        caller = await rest.find("Local/call@ari", ";2")
        await rest.ask(
            "POST",
            "/events/user/CallscribeTap",
            application="callscribe",
            source=f"channel:{caller['id']}",
        )
        await both_heard(bridge)


async def test_a_manager_client_asks_for_a_call(lab: AriLab, ami: Ami, rest: Rest) -> None:
    """AMI tells ARI nothing of it."""
    async with lab_ari.serve(lab, more=with_ami(lab)) as bridge:
        link = bridge.server.link
        assert link is not None
        await asyncio.wait_for(link.up(), 30)
        await call(lab, ami)
        caller = await rest.find("Local/call@ari", ";2")
        await bridge.until(lambda: len(bridge.link.taps.channels) == 4, "four channels")
        asked = [("UserEvent", "CallscribeTap"), ("Channel", caller["name"]), ("Call", "by-ami")]
        answer = await ami.action("UserEvent", *asked)
        assert answer["Response"] == "Success"
        await bridge.until_up(2)
        assert bridge.told.calls() == ["by-ami"] and link.counters["taps_asked"] == 1
        await ami.hang_up_all()
        await bridge.told.until(lambda: bridge.told.ended() == ["by-ami"], "the call's end")
        await rest.nothing_left()
        await ami.action("UserEvent", *asked)
        await bridge.until(lambda: link.counters["bad_taps"] == 1, "a channel that is gone")


async def test_a_call_that_is_up_is_tapped_by_a_channels_name(
    lab: AriLab, ami: Ami, rest: Rest
) -> None:
    async with lab_ari.serve(lab) as bridge:
        await call(lab, ami)
        caller = await rest.find("Local/call@ari", ";2")
        await bridge.until(lambda: len(bridge.link.taps.channels) == 4, "four channels")
        asked = bridge.link.tap(caller["name"])
        assert bridge.link.tap(caller["id"]) == asked  # twice is once
        assert await both_heard(bridge) == asked
        with pytest.raises(NoChannel, match=r"^Asterisk has no channel 'PJSIP/nobody-1'$"):
            bridge.link.tap("PJSIP/nobody-1")


# -- consent to recording -----------------------------------------------------------------------


@ALL_FORMS
async def test_a_caller_who_agrees_after_the_answer(lab: AriLab, ami: Ami, form: str) -> None:
    async with lab_ari.serve(lab, **FORMS[form], taps=EVERY_CALL) as bridge:
        await call(lab, ami, "agrees")
        await both_heard(bridge)
        said = [event.call.recording_consent for event in bridge.told.events]
        assert (said[0], said[-1]) == (False, True)


async def test_a_dialplan_that_asks_and_agrees(lab: AriLab, ami: Ami) -> None:
    async with lab_ari.serve(lab) as bridge:
        await call(lab, ami, "agreed")
        await both_heard(bridge)
        assert all(event.call.recording_consent for event in bridge.told.events)


# -- a tap never harms its call -----------------------------------------------------------------


@ALL_FORMS
async def test_a_tap_that_we_end_leaves_the_call_and_is_not_made_again(
    lab: AriLab, ami: Ami, rest: Rest, form: str
) -> None:
    async with lab_ari.serve(lab, **FORMS[form], taps=EVERY_CALL) as bridge:
        await call(lab, ami, words=LONG)
        await bridge.until_up(2)
        assert bridge.server.switchboard.hang_up(bridge.told.calls()[0])
        await bridge.until(lambda: bridge.link.counters["untapped_ended"] == 2, "two ends")
        assert len(await rest.up(4)) == 4
        assert bridge.link.counters["attempts"] == 2
        await rest.only("Local")


@ALL_FORMS
async def test_a_tap_that_somebody_else_ends_is_made_again(
    lab: AriLab, ami: Ami, rest: Rest, form: str
) -> None:
    async with lab_ari.serve(lab, **FORMS[form], taps=EVERY_CALL) as bridge:
        await call(lab, ami, words=LONG)
        await bridge.until_up(2)
        snoop = await rest.find("Snoop/")
        await rest.ask("DELETE", f"/channels/{snoop['id']}")
        await bridge.until(lambda: bridge.link.counters["up"] == 3, "a third tap")
        assert bridge.link.counters["untapped_lost"] == 1
        assert len(await rest.up(4)) == 4


@BOTH_FORMS
async def test_a_bridge_that_is_gone_leaves_the_call_and_the_next_one_hears_it(
    lab: AriLab, ami: Ami, rest: Rest, form: str
) -> None:
    """As by kill -9: nothing is said to Asterisk, its connections end."""
    async with lab_ari.serve(lab, **FORMS[form], taps=EVERY_CALL) as bridge:
        await call(lab, ami, words=LONG)
        await bridge.until_up(2)
        await bridge.link.close(leave=True)
        async with lab_ari.serve(lab, **FORMS[form], taps=EVERY_CALL) as after:
            await after.until(lambda: after.link.counters["adopted"] == 2, "two taps that are up")
            for id in bridge.told.calls():  # and their process ends
                bridge.server.switchboard.hang_up(id)
            await after.until(lambda: bool(after.told.calls()), "a call")
            await after.until_up(2)
            assert len(await rest.up(4)) == 4
            assert after.link.counters["attempts"] == 2
            for id in after.told.calls():
                after.server.switchboard.hang_up(id)
            await after.until(lambda: after.link.counters["untapped_ended"] == 2, "two ends")
            await rest.only("Local")


async def test_taps_by_rtp_of_a_bridge_that_is_gone_are_begun_anew(
    lab: AriLab, ami: Ami, rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by kill -9: Asterisk sends on, to ports that nobody has any more, and cannot notice."""
    monkeypatch.setattr(rtp_taps, "TIMEOUT", 1.0)
    async with lab_ari.serve(lab, **FORMS["rtp"], taps=EVERY_CALL) as bridge:
        await call(lab, ami, words=LONG)
        await bridge.until_up(2)
        monkeypatch.setattr(bridge.link.taps, "stays", True)
        await bridge.link.close(leave=True)
        left = {name for name in await rest.channels() if name.startswith("UnicastRTP/")}
        async with lab_ari.serve(lab, **FORMS["rtp"], taps=EVERY_CALL) as after:
            await after.until(lambda: after.link.counters["begun_anew"] == 2, "two taps of before")
            await after.until_up(2)
            assert after.link.counters["attempts"] == after.link.counters["up"] == 2
            assert len(await rest.up(4)) == 4
            assert not left & (await rest.channels()).keys()
            # And who hears no more ends its legs: nothing comes.
            first = bridge.told.calls()[0]
            await bridge.told.until(lambda: first in bridge.told.ended(), "the end of the first")
        await rest.only("Local")


async def test_what_a_bridge_before_us_left_is_removed(lab: AriLab, ami: Ami, rest: Rest) -> None:
    """Half a tap, and a call that waits in our application because we were not there."""
    snoop, bridge, foreign = f"callscribe-s-{uuid4()}", f"callscribe-b-{uuid4()}", "callscribe-b-1"
    async with rest.hold("callscribe"):
        await call(lab, ami, "stasis", LONG)
        caller = await rest.find("Local/stasis@ari", ";2")
        await rest.ask(
            "POST", f"/channels/{caller['id']}/snoop/{snoop}", app="callscribe", spy="in"
        )
        for id in (bridge, foreign):
            await rest.ask("POST", "/bridges", type="mixing", bridgeId=id)
        assert await rest.find("Snoop/")
    assert not ami.find(UserEvent="LabAfter")
    async with lab_ari.serve(lab) as after:
        await ami.event(UserEvent="LabAfter")
        await after.until_up(2)  # which is what it came for
        found = {bridge["id"] for bridge in await rest.ask("GET", "/bridges")}
        assert bridge not in found and foreign in found
        assert snoop not in {channel["id"] for channel in (await rest.channels()).values()}
    await rest.ask("DELETE", f"/bridges/{foreign}")


async def test_two_bridges_under_one_name_do_not_take_it_from_each_other_for_ever(
    lab: AriLab, ami: Ami, rest: Rest, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab_ari.serve(lab, taps=EVERY_CALL) as first:
        await call(lab, ami)
        await first.until_up(2)
        async with lab_ari.serve(lab, taps=EVERY_CALL) as second:
            await first.until(lambda: first.link.state == "replaced", "the loss of its name")
            await second.until(lambda: second.link.counters["adopted"] == 2, "two taps")
            await both_heard(first)  # by whom they were begun
            await rest.nothing_left()
            assert second.link.state == "up" and second.told.events == []
    assert "another client has connected as 'callscribe'" in caplog.text


async def test_a_channel_that_dies_at_once_leaves_nothing(
    lab: AriLab, ami: Ami, rest: Rest
) -> None:
    async with lab_ari.serve(lab, taps=[{"context": "ari", "exten": "dies"}]) as bridge:
        for _ in range(20):
            await call(lab, ami, "dies")
        await rest.nothing_left()
        await bridge.until(lambda: bridge.link.taps.describe() == [], "the end of all taps")
        assert bridge.link.counters["errors"] == 0


# -- what is in the way -------------------------------------------------------------------------


async def test_asterisk_is_killed_and_comes_again(lab: AriLab) -> None:
    async with lab_ari.serve(lab, taps=EVERY_CALL) as bridge:
        async with lab_ami.connect(lab.ami, "lab", lab.secret) as ami:
            await call(lab, ami, words=LONG)
            await bridge.until_up(2)
        lab.kill()
        await bridge.until(lambda: bridge.link.state == "down", "the loss")
        first = bridge.told.calls()[0]
        await bridge.told.until(lambda: first in bridge.told.ended(), "the call's end")
        with pytest.raises(DeliveryError, match="^ARI is (down|connecting): "):
            bridge.link.tap("PJSIP/alice-00000001")

        lab.start()
        lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
        lab.set_global("LAB_CALLEE_SAYS", sound(lab, "others", OTHERS, after=5.0))
        lab.call_bridge_at(bridge.port)
        await asyncio.wait_for(bridge.link.up(), 30)
        assert bridge.link.taps.describe() == []
        async with lab_ami.connect(lab.ami, "lab", lab.secret) as ami:
            await call(lab, ami)
            await bridge.told.until(lambda: len(bridge.told.ended()) == 2, "the next call's end")
        assert bridge.told.words(bridge.told.calls()[1], "caller") == texts(WORDS)


async def test_a_wrong_password_is_final_and_not_told(
    lab: AriLab, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab_ari.serve(lab, wait=False, password="wr0ng") as bridge:
        with pytest.raises(DeliveryError, match="refused the ARI user 'callscribe'") as e:
            await asyncio.wait_for(bridge.link.up(), 30)
        assert e.value.gone and bridge.link.state == "refused"
    assert "wr0ng" not in caplog.text


async def test_a_user_that_may_not_write_leaves_calls_untapped_and_is_told_why(
    lab: AriLab, ami: Ami, caplog: pytest.LogCaptureFixture
) -> None:
    lab.set_global("LAB_CALLEE_SAYS", sound(lab, "short", OTHERS[:1]))
    async with lab_ari.serve(lab, wait=False, username="reader", taps=EVERY_CALL) as bridge:
        await bridge.until(lambda: bridge.link.counters["reconnects"] > 0, "another try")
        await call(lab, ami)
        await ami.event(UserEvent="LabAfter", Dial="ANSWER")
        assert bridge.told.events == []
    assert "ARI does not let us subscribe to channels: 403 Write access denied" in caplog.text
    assert "our user needs read_only = no in ari.conf" in caplog.text


async def test_without_the_context_a_call_is_untapped_with_a_reason(
    lab: AriLab, ami: Ami, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab_ari.serve(lab, context="nowhere", taps=EVERY_CALL) as bridge:
        await call(lab, ami, words=LONG)
        await bridge.until(lambda: bridge.link.counters["untapped_no_audio"] >= 3, "failures")
        assert bridge.told.events == []
    assert "is [nowhere] in extensions.conf" in caplog.text


async def test_a_leg_for_which_there_is_no_slot_is_heard_when_one_is_free(
    lab: AriLab, ami: Ami
) -> None:
    async with lab_ari.serve(lab, slots=2, taps=EVERY_CALL) as bridge:
        await call(lab, ami, words=LONG)
        await bridge.until_up(2)
        first = bridge.told.calls()[0]
        await call(lab, ami, words=LONG)
        await bridge.until(lambda: bridge.link.counters["untapped_refused"] >= 2, "refusals")
        bridge.server.switchboard.hang_up(first)
        await bridge.until(lambda: bridge.link.counters["up"] == 4, "two more legs")
        assert set(bridge.told.refused()) & set(bridge.told.ended()) == set()
        (late,) = set(bridge.told.calls()) - {first} - set(bridge.told.refused())
        assert bridge.server.switchboard.calls[late].legs.keys() == {"caller", "callee"}


# -- doctor -------------------------------------------------------------------------------------


def configured(lab: AriLab, **ari: Any) -> Settings:
    """A bridge's settings, with AMI."""
    settings = lab_ari.settings(lab, 9092, 4, ari)
    return from_dict(settings | with_ami(lab))


@ALL_FORMS
async def test_doctor_finds_nothing_wrong(lab: AriLab, form: str) -> None:
    lab.call_bridge_at(9092)
    findings = await doctor_ari.check(configured(lab, **FORMS[form]))
    assert {finding.status for finding in findings} == {"ok"}, findings
    assert "Asterisk 22." in findings[0].found


@pytest.mark.parametrize(
    ("ari", "subject", "found"),
    [
        ({"password": "wr0ng"}, "ARI", "refused the ARI user 'callscribe'"),
        ({"url": "http://127.0.0.1:1/ari"}, "ARI", "cannot connect to 127.0.0.1:1: Connection"),
        ({"username": "reader"}, "ARI rights", "our user may only read"),
        ({"context": "nowhere"}, "ARI dialplan", "there is no context [nowhere]"),
    ],
)
async def test_doctor_names_what_is_wrong(
    lab: AriLab, ari: dict[str, Any], subject: str, found: str
) -> None:
    lab.call_bridge_at(9092)
    findings = await doctor_ari.check(configured(lab, **ari))
    (bad,) = [finding for finding in findings if finding.status != "ok"]
    assert (bad.status, bad.subject) == ("failed", subject)
    assert found in bad.found


async def test_doctor_takes_no_name_from_a_bridge_that_runs(lab: AriLab) -> None:
    async with lab_ari.serve(lab) as bridge:
        findings = await doctor_ari.check(configured(lab))
        assert "is connected: a callscribe that runs" in str(findings)
        assert bridge.link.state == "up"


# -- the samples --------------------------------------------------------------------------------


def test_the_samples_load_without_a_warning(_asterisk: AriLab) -> None:
    about = [line for line in _asterisk.boot if "ari.conf" in line or "http.conf" in line]
    assert about == []
    assert "Dial(AudioSocket/" in _asterisk.cli("dialplan show callscribe-snoop")
    assert f"Bound to 127.0.0.1:{_asterisk.ari}" in _asterisk.cli("http show status")


async def test_the_sample_account_is_closed_until_it_gets_a_password(lab: AriLab) -> None:
    """A password in a sample would be everybody's; without one nobody may log in."""
    sample = (lab.outside / "sample-ari.conf").read_text()
    assert not [line for line in sample.splitlines() if line.strip().startswith("password")]
    configured = (lab.outside / "ari.conf").read_text()
    try:
        (lab.outside / "ari.conf").write_text(sample)
        lab.cli("module reload res_ari")
        lab.secret, secret = "", lab.secret
        async with lab_ari.rest(lab) as rest:
            with pytest.raises(LabError, match="401"):
                await rest.ask("GET", "/asterisk/info")
        lab.secret = secret
    finally:
        (lab.outside / "ari.conf").write_text(configured)
        lab.cli("module reload res_ari")
