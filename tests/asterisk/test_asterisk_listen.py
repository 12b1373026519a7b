"""Listen and go on: a real dialplan waits in one Gosub for what the caller says."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import lab_bridge
import numpy as np
import pytest
from lab import Lab
from lab_ami import Ami, Message
from lab_audio import Samples, to_wav
from lab_bridge import TOKEN, Bridge, Event, Hook, texts

from bridge.engine.tones import encode

SAID = [[1, 2, 3], [44, 55], [255, 0, 128, 7]]


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


def turns(*said: list[int], quiet: float = 1.0, after: float = 2.0) -> Samples:
    """Turns of coded words, with silence before each and after the last."""
    silence = np.zeros(round(8000 * quiet), np.int16)
    pieces = [piece for words in said for piece in (silence, encode(words))]
    return np.concatenate([*pieces, np.zeros(round(8000 * after), np.int16)])


async def listen(
    lab: Lab, ami: Ami, says: Samples, args: str, times: int = 1, how: str = "callscribe-listen"
) -> None:
    for name, value in (("LISTEN", how), ("ARGS", args), ("TIMES", str(times))):
        lab.set_global(f"LAB_{name}", value)
    await ami.originate("listen", lab.sound("turns", to_wav(says)))


async def heard(ami: Ami, n: int = 1) -> Message:
    """What the dialplan had in its variables after it listened for the nth time."""
    return await ami.event(UserEvent="LabHeard", N=str(n))


def spoken(words: list[int]) -> str:
    return " ".join(texts(words))


async def test_several_turns_in_one_call(lab: Lab, ami: Ami, bridge: Bridge, hook: Hook) -> None:
    await listen(lab, ami, turns(*SAID), "20", times=3)
    for n, words in enumerate(SAID, 1):
        found = await heard(ami, n)
        assert (found["Result"], found["Text"]) == ("heard/1.00/", spoken(words))
        await hook.until(lambda: found["Id"] in hook.ended(), "the call's end")  # noqa: B023
        events = {e["type"]: e["data"] for e in hook.of(found["Id"])}
        assert events["listen.ended"]["status"] == events["call.ended"]["reason"] == "heard"
        assert events["listen.ended"]["text"] == spoken(words)
        told = await ami.event(UserEvent="Transcript", CallID=found["Id"], Type="listened")
        assert (told["Status"], told["Text"]) == ("heard", spoken(words))


async def test_silence_and_time_that_is_over(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    await listen(lab, ami, turns([9] * 20, quiet=2.5), "3,1", times=2)
    assert (await heard(ami, 1))["Result"] == "silence//"
    found = await heard(ami, 2)  # which ends in mid-word
    assert found["Result"] == "timeout/1.00/"
    assert set(found["Text"].split()) == {"w009"} and len(found["Text"].split()) >= 2


async def test_who_hangs_up_finds_that_in_h(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    await listen(lab, ami, turns([9] * 20, quiet=0.5), "20")
    await ami.event(UserEvent="CallscribeLeg")
    await ami.event(UserEvent="Transcript", Type="partial")
    await ami.action("Hangup", ("Channel", "/^Local/listen@lab-.*;1$/"))
    assert (await ami.event(UserEvent="LabGone"))["Status"] == "hangup"
    assert not ami.find(UserEvent="LabHeard")


async def test_a_bridge_that_dies_leaves_a_living_call(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    await listen(lab, ami, turns([9] * 40, quiet=0.5), "20")
    await ami.event(UserEvent="Transcript", Type="partial")
    bridge.kill_worker()
    assert (await heard(ami))["Result"] == "unavailable//"
    await bridge.ready()


@pytest.mark.soak
async def test_a_bridge_that_hangs_leaves_a_living_call(lab: Lab, ami: Ami, bridge: Bridge) -> None:
    """Only the dialplan's own clock ends it, five seconds later than the bridge would have."""
    await listen(lab, ami, turns([9] * 40, quiet=0.5), "2")
    await ami.event(UserEvent="Transcript", Type="partial")
    (worker,) = bridge.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        assert (await heard(ami))["Result"] == "unavailable//"
    finally:
        os.kill(worker, signal.SIGCONT)


async def test_a_refusal_is_known_without_waiting(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    more = '[[limit]]\nname = "local"\ntrunk = "Local/listen@*"\nmax = 1\n'
    async with lab_bridge.serve(lab, hook, tmp_path, more=more):
        await listen(lab, ami, turns([9] * 40, quiet=0.3), "20")
        await ami.event(UserEvent="Transcript", Type="partial")
        await ami.originate("listen", "demo-congrats")
        assert (await heard(ami))["Result"] == "refused:limit:local//"


async def test_without_ami(lab: Lab, ami: Ami, hook: Hook, tmp_path: Path) -> None:
    async with lab_bridge.serve(lab, hook, tmp_path, ami="") as bridge:
        lab.set_global("CALLSCRIBE_HTTP", bridge.url)
        lab.set_global("CALLSCRIBE_TOKEN", TOKEN)
        says = turns(SAID[0], quiet=0.5, after=4.0)
        await listen(lab, ami, says, "20,1", 2, "callscribe-listen-http")
        found = await heard(ami, 1)
        assert (found["Result"], found["Text"]) == ("heard/1.00/", spoken(SAID[0]))
        assert (await heard(ami, 2))["Result"] == "silence//"
        (began, *_) = hook.of(found["Id"])
        assert began["data"]["channel"].startswith("Local/listen@")
        assert began["data"]["linkedid"]


async def test_without_ami_a_refusal_says_why(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    more = '[[limit]]\nname = "local"\ntrunk = "Local/listen@*"\nmax = 0\n'
    async with lab_bridge.serve(lab, hook, tmp_path, ami="", more=more) as bridge:
        lab.set_global("CALLSCRIBE_HTTP", bridge.url)
        for n, (token, result) in enumerate([(TOKEN, "refused:limit:local"), ("x", "refused")], 1):
            lab.set_global("CALLSCRIBE_TOKEN", token)
            await listen(lab, ami, turns([9]), "20,1", 1, "callscribe-listen-http")
            told = lambda: ami.find(UserEvent="LabHeard")  # noqa: E731
            await ami.until(lambda: len(told()) == n, "the dialplan going on")  # noqa: B023
            assert told()[-1]["Result"] == f"{result}//", bridge.log()


HOSTILE = 'yes, "no" ${EXTEN} $(id) a;b|c [1] \\n\\, d'


async def test_text_that_would_break_an_argument_does_not(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    """An engine that hears what an attacker would say; the argument after it is still there."""
    engine = tmp_path / "hostile_ear.py"
    engine.write_text(ENGINE.format(said=json.dumps(HOSTILE)))
    os.environ["PYTHONPATH"], before = (
        f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        os.environ.get("PYTHONPATH"),
    )
    try:
        async with lab_bridge.serve(lab, hook, tmp_path, engine="hostile_ear:make"):
            await listen(lab, ami, turns([1, 2, 3]), "20")
            found = await heard(ami)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert found["Text"] == "yes no EXTEN id a b c 1 n d"
    assert (found["N"], found["Result"].split("/")[0]) == ("1", "heard")


ENGINE = """
from bridge.engine import tones

def make(settings):
    tones.text_of = lambda word: {said} if word == 1 else ""
    return tones.make(settings)
"""


def wall(event: Event) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


@pytest.mark.soak
@pytest.mark.parametrize("calls", [1, 10])
async def test_how_long_a_dialplan_waits(
    lab: Lab, ami: Ami, bridge: Bridge, hook: Hook, capsys: pytest.CaptureFixture[str], calls: int
) -> None:
    """From the end of speech, and of the turn, to the dialplan's next step, calls at a time."""
    times = 10
    came: dict[str, float] = {}
    says = turns(*[[n, n + 1, n + 2] for n in range(times)], quiet=1.5)
    for _ in range(calls):
        await listen(lab, ami, says, "20", times)

    def all_there() -> bool:
        for event in ami.find(UserEvent="LabHeard"):
            came.setdefault(event["Id"], time.time())
        return len(came) >= calls * times

    await ami.until(all_there, "all turns", 90.0)
    await hook.until(lambda: set(came) <= set(hook.ended()), "all ends")
    waits: dict[str, list[float]] = {"end of speech": [], "turn.ended": []}
    for id, at in came.items():
        events = {event["type"]: event for event in hook.of(id)}
        spoken_until = wall(events["call.started"]) + events["transcript.final"]["data"]["end"]
        waits["end of speech"].append(at - spoken_until)
        waits["turn.ended"].append(at - wall(events["turn.ended"]))
    results = {event["Result"] for event in ami.find(UserEvent="LabHeard")}
    assert results == {"heard/1.00/"}
    with capsys.disabled():
        for since, values in waits.items():
            low, p50, p95, high = (np.percentile(values, p) * 1000 for p in (0, 50, 95, 100))
            figures = f"{low:.1f} {p50:.1f} {p95:.1f} {high:.1f} ms"
            print(f"\n{since} → next step, {calls} calls, {len(values)} turns: {figures}")


async def test_a_call_is_paused_by_its_dialplan_by_digits_and_by_http(
    lab: Lab, ami: Ami, hook: Hook, tmp_path: Path
) -> None:
    """What is said meanwhile reaches nobody, and the words after it have their true times."""
    more = '[calls]\npause_digits = "*7"\n'
    words = list(range(40))
    async with lab_bridge.serve(lab, hook, tmp_path, more=more) as bridge:
        await ami.originate("caller", lab.sound("long", to_wav(turns(words, quiet=0.5))))
        joined = await ami.event(Event="VarSet", Variable="CALLSCRIBE_ID")
        call, channel = joined["Value"], joined["Channel"]

        async def heard_so_far(n: int) -> None:
            await hook.until(lambda: words_told(hook, call) >= n, f"{n} words")

        async def told(n: int) -> None:
            await ami.until(lambda: len(marks(ami, call)) == n, f"{n} marks")

        await heard_so_far(3)
        for n, (event, header) in enumerate(
            [("CallscribePause", ("Channel", channel)), ("CallscribeResume", ("CallID", call))], 1
        ):
            await ami.action("UserEvent", ("UserEvent", event), header)
            await told(n)
        for n, digits in enumerate(("*7", "12*7"), 3):
            for digit in digits:
                await ami.action(
                    "PlayDTMF", ("Channel", channel), ("Digit", digit), ("Receive", "1")
                )
            await told(n)
        assert (await bridge.post(f"/calls/{call}/pause"))[0] == 200
        await told(5)
        assert await bridge.post(f"/calls/{call}/resume", {"leg": "caller"}) == (
            200, {"paused": {"caller": False}},
        )  # fmt: skip
        await ami.hang_up_all()
        await hook.until(lambda: call in hook.ended(), "the call's end")
    events = [e["data"] for e in hook.of(call)]
    pauses = [e for e in hook.of(call) if e["type"].startswith("transcription.")]
    assert [e["data"]["by"] for e in pauses] == ["ami"] * 2 + ["dtmf"] * 2 + ["http"] * 2
    assert "".join(e["digit"] for e in events if "digit" in e) == "*7*7"
    said = [w for e in hook.of(call) if e["type"] == "transcript.final" for w in e["data"]["words"]]
    assert [w["word"] for w in said] == sorted(w["word"] for w in said)
    spans = [e["data"]["start"] for e in pauses]
    for begin, end in zip(spans[::2], spans[1::2], strict=True):
        assert not [w for w in said if begin + 0.1 < w["start"] < end], (begin, end, said)
    origin = said[0]["start"]
    for word in said:  # one each 0.4 s
        assert word["start"] == pytest.approx(origin + 0.4 * int(word["word"][1:]), abs=0.17)


def words_told(hook: Hook, call: str) -> int:
    partials = [e["data"] for e in hook.of(call) if e["type"].startswith("transcript.")]
    return max((len(p["words"]) for p in partials), default=0)


def marks(ami: Ami, call: str) -> list[Message]:
    """Pauses and their ends, as AMI was told."""
    told = ami.find(UserEvent="Transcript", CallID=call)
    return [event for event in told if event["Type"] in ("paused", "resumed")]
