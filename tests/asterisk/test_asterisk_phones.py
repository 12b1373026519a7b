"""Calls from real SIP phones, over RTP, through a real Asterisk, into the bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import lab_bridge
import lab_phone
import pytest
from lab import Lab
from lab_ami import Ami
from lab_audio import read_wav, to_wav
from lab_bridge import REPOSITORY, Hook, speech, texts
from lab_sink import Sink

from bridge.audio.g711 import encode_ulaw

WORDS = [7, 77, 177, 7, 255, 0]

pytestmark = pytest.mark.skipif(bool(lab_phone.missing()), reason=lab_phone.missing() or "-")


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with lab_bridge.receive() as receiver:
        yield receiver


async def test_a_softphone_reaches_audiosocket(
    lab: Lab, ami: Ami, sink: Sink, tmp_path: Path
) -> None:
    """The sample's pjsip.conf and [callscribe-phone], keys included."""
    async with lab_phone.softphone(lab, tmp_path, to_wav(speech(WORDS)), "stt") as phone:
        heard = await sink.call(seconds=1.0)
        await phone.press("7")
        await sink.until(lambda: heard.digits == "7", "the digit 7")
        assert set(heard.kinds) == {0x10}
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID", Value=heard.uuid)
        assert joined["Channel"].startswith("PJSIP/anonymous-")
        assert (joined["CallerIDNum"], joined["Exten"]) == ("alice", "s")
    await sink.until(lambda: heard.over, "the end of the connection")


async def test_a_softphone_is_understood(lab: Lab, ami: Ami, hook: Hook, tmp_path: Path) -> None:
    async with lab_bridge.serve(lab, hook, tmp_path):
        async with lab_phone.softphone(lab, tmp_path, to_wav(speech(WORDS)), "stt"):
            joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
            call = joined["Value"]
            await hook.until(lambda: hook.words(call)[: len(WORDS)] == texts(WORDS), "words")
        await hook.until(lambda: call in hook.ended(), "the call's end")
        started = hook.of(call)[0]["data"]
        assert (started["channel"], started["caller"]) == (joined["Channel"], "alice")


async def test_twenty_sip_calls_at_once(lab: Lab, ami: Ami, hook: Hook, tmp_path: Path) -> None:
    async with lab_bridge.serve(lab, hook, tmp_path):
        await lab_phone.many(lab, tmp_path, encode_ulaw(speech(WORDS)), "stt", calls=20, rate=10)
        await hook.until(lambda: len(hook.ended()) == 20, "twenty ends")
        assert [hook.words(call) for call in hook.ended()] == [texts(WORDS)] * 20


async def test_speech_is_recognised(lab: Lab, ami: Ami, hook: Hook, tmp_path: Path) -> None:
    """Words of a language, by the recogniser that works anywhere."""
    says = read_wav(REPOSITORY / "tests/vectors/the-number-is-four-seven-one.wav")
    async with lab_bridge.serve(lab, hook, tmp_path, engine="pocketsphinx", slots=1):
        await ami.originate("caller", lab.sound("speech", to_wav(says)))
        call = (await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID"))["Value"]
        await hook.until(lambda: call in hook.ended(), "the call's end")
        assert {"four", "seven", "one"} <= set(hook.words(call))
        last = await ami.event(UserEvent="Transcript", CallID=call, Type="turn")
        assert "four seven one" in last["Text"]
