"""Calls through a real Asterisk into the bridge, and words out at AMI and at a webhook.

The engine hears words that are coded in tones, so what must be heard is known exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import lab_ami
import lab_bridge
import lab_sink
import numpy as np
import pytest
from lab import Lab
from lab_ami import Ami
from lab_audio import to_wav
from lab_bridge import Bridge, Hook, speech, texts

from bridge.engine.tones import TonesModel
from bridge.recording import read_recording
from bridge.types import Samples

WORDS = [7, 77, 177, 7, 255, 0]
OTHERS = [12, 13, 200, 12, 99]
LONG = list(range(30))  # 12 s


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with lab_bridge.receive() as receiver:
        yield receiver
    assert receiver.forged == 0


@pytest.fixture
async def bridge(lab: Lab, hook: Hook, tmp_path: Path) -> AsyncIterator[Bridge]:
    async with lab_bridge.serve(lab, hook, tmp_path) as running:
        yield running
    assert "Traceback" not in running.log(), running.log()


def sound(lab: Lab, name: str, words: list[int]) -> str:
    """A sound file of coded words."""
    return lab.sound(name, to_wav(speech(words)))


def transcripts(ami: Ami, call: str, type_: str = "final") -> list[str]:
    """Texts of a call's Transcript events at an AMI client."""
    found = ami.find(Event="UserEvent", UserEvent="Transcript", CallID=call, Type=type_)
    return [event.get("Text", "") for event in found]


def check_numbers(hook: Hook, call: str) -> None:
    """A call's events are numbered without unannounced gaps, from its start to its end."""
    events = hook.of(call)
    assert [events[0]["type"], events[-1]["type"]] == ["call.started", "call.ended"]
    last = -1
    for event in events:
        assert event["data"]["seq"] - event["data"].get("gap_before", 0) - 1 == last
        last = event["data"]["seq"]


async def test_words_of_a_call_reach_ami_and_webhook(
    lab: Lab, ami: Ami, bridge: Bridge, hook: Hook
) -> None:
    await ami.originate("caller", sound(lab, "words", WORDS))
    joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
    call = joined["Value"]
    await hook.until(lambda: call in hook.ended(), "the call's end")
    assert hook.words(call) == texts(WORDS)
    check_numbers(hook, call)
    for event in hook.of(call):
        assert event["data"]["channel"] == joined["Channel"]
        assert event["data"]["uniqueid"] == joined["Uniqueid"]

    last = await ami.event(UserEvent="Transcript", CallID=call, Type="ended")
    assert last["Channel"] == joined["Channel"]
    assert " ".join(transcripts(ami, call)) == " ".join(texts(WORDS))
    assert transcripts(ami, call, "turn") == [" ".join(texts(WORDS))]
    assert transcripts(ami, call, "partial")
    assert texts(WORDS)[0] not in bridge.log()  # what is said stays out of logs


async def test_the_dialplan_reads_what_was_said(
    lab: Lab, ami: Ami, bridge: Bridge, hook: Hook
) -> None:
    """Call control hears a turn and ends the bridge's side; the call goes on, knowing the words."""
    pause = np.zeros(16000, np.int16)
    says = np.concatenate([speech(WORDS), pause, speech(LONG)])
    await ami.originate("caller", lab.sound("gather", to_wav(says)))
    joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
    call = joined["Value"]
    await ami.event(Event="VarSet", Variable="CALLSCRIBE_STATUS", Value="started")
    await ami.event(UserEvent="Transcript", CallID=call, Type="turn")
    assert await bridge.hang_up(call, "wrong") == 401
    assert not ami.find(UserEvent="LabAfter")
    assert await bridge.hang_up(call) in (200, 202, 204)
    after = await ami.event(Event="UserEvent", UserEvent="LabAfter", Id=call)
    assert (after["Channel"], after["Dial"]) == (joined["Channel"], "ANSWER")
    assert after["Text"] == " ".join(texts(WORDS))
    await hook.until(lambda: call in hook.ended(), "the call's end")
    heard = hook.words(call)
    assert heard == texts([*WORDS, *LONG])[: len(heard)]
    assert hook.of(call)[-1]["data"]["reason"] == "bridge"
    check_numbers(hook, call)


async def test_the_caller_hangs_up(lab: Lab, ami: Ami, bridge: Bridge, hook: Hook) -> None:
    await ami.originate("caller", sound(lab, "long", LONG))
    call = (await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID"))["Value"]
    await ami.event(UserEvent="Transcript", CallID=call, Type="partial")
    await ami.hang_up_all()
    await hook.until(lambda: call in hook.ended(), "the call's end")
    heard = hook.words(call)
    assert 1 <= len(heard) < len(LONG)
    assert heard == texts(LONG)[: len(heard)]
    check_numbers(hook, call)
    assert (await bridge.get(f"/calls/{call}"))["ended"] is True
    assert await bridge.get("/calls") in ([], {"calls": []})


async def test_both_legs_are_one_call(lab: Lab, ami: Ami, bridge: Bridge, hook: Hook) -> None:
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", sound(lab, "others", OTHERS))
    await ami.originate("both", sound(lab, "words", WORDS))
    call = (await ami.event(Event="UserEvent", UserEvent="CallscribeLeg", Leg="callee"))["Call"]
    await hook.until(lambda: call in hook.ended(), "the call's end")
    assert hook.words(call, "caller") == texts(WORDS)
    assert hook.words(call, "callee") == texts(OTHERS)
    check_numbers(hook, call)
    assert {e["data"]["call_id"] for e in hook.events} == {call}
    legs = {e["Leg"] for e in ami.find(UserEvent="Transcript", CallID=call, Type="final")}
    assert legs == {"caller", "callee"}


async def test_the_dialplan_consents_to_recording(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    """Of four calls, those two whose dialplan has said so."""
    recordings, says = tmp_path / "recordings", sound(lab, "words", WORDS)
    more = f'[recording]\nenabled = true\ndirectory = "{recordings}"\n'
    lab.set_global("LAB_CALLEE", "Local/callee@lab/n")
    lab.set_global("LAB_CALLEE_SAYS", sound(lab, "others", OTHERS))
    async with lab_bridge.serve(lab, hook, tmp_path, more=more) as bridge:
        for exten in ("caller", "agreeing", "both", "agreeingboth"):
            await ami.originate(exten, says)
        await hook.until(lambda: len(hook.ended()) == 4, "the calls' ends")
        await bridge.stop()
        assert "Traceback" not in bridge.log()
    one, two = sorted(recordings.iterdir(), key=lambda folder: len(list(folder.iterdir())))
    assert {path.name for path in one.iterdir()} == {"call.json", "caller.wav"}
    assert {path.name for path in two.iterdir()} == {"call.json", "caller.wav", "callee.wav"}
    for path, words in (
        (one / "caller.wav", WORDS),
        (two / "caller.wav", WORDS),
        (two / "callee.wav", OTHERS),
    ):
        [(heard, rate)] = read_recording(path)
        assert (rate, decoded(heard)) == (8000, texts(words))


def decoded(samples: Samples) -> list[str]:
    """The coded words in a recording, as the engine hears them."""
    model = TonesModel(1, rate=8000, block=640)
    model.batch.active[0] = model.batch.fresh[0] = True
    heard = []
    silent = np.zeros(8000 + -len(samples) % 640, np.int16)  # 8000: the model's delay, and more
    blocks = np.concatenate([samples, silent])
    for block in blocks[: len(blocks) // 640 * 640].reshape(-1, 640):
        model.batch.pcm[0] = block / 32768
        heard += [word.text for word in model.step()[0].words]
        model.batch.fresh[0] = False
    return heard


async def test_a_refused_call_goes_on_and_knows_why(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    async with lab_bridge.serve(lab, hook, tmp_path, slots=1) as bridge:
        await ami.originate("caller", sound(lab, "long", LONG))
        first = (await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID"))["Value"]
        await hook.until(lambda: bool(hook.of(first)), "the first call")
        await ami.originate("caller", sound(lab, "long", LONG))
        after = await ami.event(Event="UserEvent", UserEvent="LabAfter")
        assert after["Id"] != first
        assert after["Status"] == "refused:busy"
        await hook.until(lambda: bool(hook.of(after["Id"])), "the refusal")
        (refusal,) = hook.of(after["Id"])
        assert (refusal["type"], refusal["data"]["reason"]) == ("call.refused", "busy")
        await ami.event(UserEvent="Transcript", CallID=after["Id"], Type="refused", Reason="busy")
        assert first not in hook.ended()
        assert bridge.process is not None and bridge.process.returncode is None


async def test_twenty_calls_at_once(lab: Lab, ami: Ami, bridge: Bridge, hook: Hook) -> None:
    """Each hears its own words, all of them, once."""
    said = {n: [n, 100 + n, 255 - n, n, n, 100 + n] for n in range(20)}
    for n, words in said.items():
        await ami.originate("caller", sound(lab, f"call{n}", words))
    await hook.until(lambda: len(hook.ended()) == 20, "twenty ends")
    heard = sorted(hook.words(call) for call in hook.ended())
    assert heard == sorted(texts(words) for words in said.values())
    for call in hook.ended():
        check_numbers(hook, call)
        assert hook.of(call)[-1]["data"]["legs"]["caller"]["blocks_dropped"] == 0


async def test_asterisk_restarts_in_mid_call(lab: Lab, bridge: Bridge, hook: Hook) -> None:
    async with lab_ami.connect(lab.ami, "lab", lab.secret) as ami:
        await ami.originate("caller", sound(lab, "long", LONG))
        call = (await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID"))["Value"]
        await ami.event(UserEvent="Transcript", CallID=call, Type="partial")
    lab.halt()
    await hook.until(lambda: call in hook.ended(), "the call's end")
    heard = hook.words(call)
    assert heard and heard == texts(LONG)[: len(heard)]

    lab.start()
    await bridge.ready()
    lab.call_bridge_at(bridge.port)
    async with lab_ami.connect(lab.ami, "lab", lab.secret) as ami:
        await ami.originate("caller", sound(lab, "words", WORDS))
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
        await hook.until(lambda: joined["Value"] in hook.ended(), "the next call's end")
        assert hook.words(joined["Value"]) == texts(WORDS)
        assert hook.of(joined["Value"])[0]["data"]["channel"] == joined["Channel"]
        await ami.event(UserEvent="Transcript", CallID=joined["Value"], Type="final")


def joined_calls(ami: Ami) -> list[str]:
    """UUIDs that the dialplan has given, in their order."""
    return [event["Value"] for event in ami.find(Event="VarSet", Variable="CALLSCRIBE_ID")]


async def test_a_worker_dies_under_load(lab: Lab, ami: Ami, hook: Hook, tmp_path: Path) -> None:
    """kill -9, twice, with ten calls a second coming: nobody else's call notices.

    Five calls are up elsewhere, at another AudioSocket server. The port stays open all the time, so
    no connection is refused (which is what would damage them), and calls that come while there is
    no worker wait with their audio and are heard in full by the next one.
    """
    elsewhere, calls, kills = 5, 60, (15, 35)
    says, logged = sound(lab, "words", WORDS), len(lab.log())
    async with (
        lab_bridge.serve(lab, hook, tmp_path, slots=64) as bridge,
        lab_sink.listen() as other,
    ):
        for _ in range(elsewhere):
            await ami.originate("caller", "demo-instruct", f"CALLSCRIBE=127.0.0.1:{other.port}")
        await other.call(elsewhere, seconds=0.1)
        dead = []
        for n in range(calls):
            if n in kills:
                wanted = elsewhere + n
                await ami.until(lambda: len(joined_calls(ami)) == wanted, f"{wanted} calls")  # noqa: B023
                dead.append(bridge.kill_worker())
            await ami.originate("caller", says)
            await asyncio.sleep(0.1)
        await bridge.ready()
        assert not set(dead) & set(bridge.workers())
        await ami.until(lambda: len(joined_calls(ami)) == elsewhere + calls, "all calls")

        late = joined_calls(ami)[elsewhere + kills[-1] :]
        await hook.until(lambda: set(late) <= set(hook.ended()), "the ends of the last calls")
        assert [hook.words(call) for call in late] == [texts(WORDS)] * len(late)

        # Calls of the dead workers went on in the dialplan; nobody found the port closed.
        after = ami.find(UserEvent="LabAfter")
        assert after and not [e for e in after if e["Status"] == "unreachable"]
        bad = [line for line in lab.log()[logged:] if "descriptor" in line or "refused" in line]
        assert bad == []

        heard = list(other.heard.values())
        before = [len(h.audio) for h in heard]
        await other.until(
            lambda: all(len(h.audio) >= n + 8000 for h, n in zip(heard, before, strict=True)),
            "half a second more of each",
        )
        assert len(heard) == elsewhere and not any(h.over for h in heard)
        assert not set(other.heard) & {e["data"]["call_id"] for e in hook.events}


async def test_a_call_whose_worker_dies_goes_on_in_the_next_one(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    """[callscribe-again]: the same UUID dials again, and nothing is said twice."""
    outbox = str(tmp_path / "outbox.db")
    async with lab_bridge.serve(lab, hook, tmp_path, outbox=outbox) as bridge:
        await ami.originate("again", sound(lab, "thirty", LONG))
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
        call = joined["Value"]
        kinds = lambda: [e["type"] for e in hook.of(call)]  # noqa: E731
        await hook.until(lambda: "transcript.partial" in kinds(), "the first words")
        killed = len(hook.events)
        bridge.kill_worker()
        await hook.until(lambda: call in hook.ended(), "the call's end", within=60)
        after = hook.events[killed:]
        assert [e for e in after if e["type"] == "transcript.final"]
        events = {e["data"]["seq"]: e for e in hook.of(call)}  # some come twice, with their number
        assert {e["data"]["call_id"] for e in hook.events} == {call}
        assert [e["type"] for e in events.values()].count("call.started") == 1
        assert list(events) == sorted(events)
        words = [
            word["word"]
            for e in events.values()
            if e["type"] == "transcript.final"
            for word in e["data"]["words"]
        ]
        spoken = texts(LONG)
        assert words == [word for word in spoken if word in words]  # in order, and none twice
        assert len(words) > 5 and words[-1] == spoken[-1]


async def test_a_call_that_the_bridge_ended_is_not_dialled_again(
    lab: Lab, ami: Ami, hook: Hook, bridge: Bridge
) -> None:
    await ami.originate("again", sound(lab, "thirty", LONG))
    call = (await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID"))["Value"]
    await hook.until(lambda: len(hook.of(call)) > 1, "the first words")
    assert await bridge.hang_up(call) == 204
    after = await ami.event(UserEvent="LabAfter", Id=call)
    assert (after["Status"], after["Tries"]) == ("ended", "1")
