"""The page: served, watched and spoken to from a real browser; and the routes behind it."""

from __future__ import annotations

import asyncio
import json
import os
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from websockets.asyncio.client import connect

from bridge.http.live import QUEUE, Hub
from bridge.http.page import page
from bridge.http.vtt import vtt
from bridge.types import CallEvent, CallInfo, Started
from tests import browser
from tests.sockets import PATIENCE, Bridge, bridge, said, speech
from tests.test_twilio import CALL, messages, start
from tests.waiting import until

TOKEN = "the token of the page's tests"
WORDS = [7, 77, 177, 7, 255]

needs_browser = pytest.mark.skipif(
    bool(browser.missing()) and os.environ.get("CALLSCRIBE_REQUIRE_LAB") != "1",
    reason=browser.missing() or "-",
)


@pytest.fixture
async def served() -> AsyncIterator[Bridge]:
    async with bridge(http={}) as b:
        yield b


async def call(b: Bridge, words: list[int] = WORDS, *, stop: bool = True) -> None:
    """A call over Twilio's protocol, whole."""
    async with connect(f"{b.url}/twilio") as ws:
        await ws.send(json.dumps(start(["inbound"])))
        for message in messages(speech(words)):
            await ws.send(message)
        if stop:
            await ws.send(json.dumps({"event": "stop"}))
        await b.over()


async def test_a_browser_gets_the_page_and_a_tool_the_facts(served: Bridge) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(served.page, headers={"Accept": "text/html,*/*"}) as answer:
            assert answer.content_type == "text/html"
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy
            assert policy.count("'sha256-") == 2
        async with http.get(served.page) as answer:
            facts = await answer.json()
            assert facts["name"] == "callscribe" and facts["websocket"] == served.url


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    text, _ = page()
    assert "http://" not in text and "https://" not in text and "innerHTML" not in text


async def test_events_come_as_they_happen(served: Bridge) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"{served.page}/events") as stream:
        assert stream.content_type == "text/event-stream"
        await call(served)
        types: list[str] = []
        async with asyncio.timeout(PATIENCE):
            async for line in stream.content:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    assert event["data"]["call_id"] == CALL
                    types.append(event["type"])
                    if types[-1] == "call.ended":
                        break
    assert types[0] == "call.started" and "transcript.final" in types
    await until(lambda: not served.server.sinks.hub.watchers, PATIENCE)


def test_who_watches_too_slowly_loses_the_oldest_and_is_told() -> None:
    hub = Hub()
    watcher = hub.watch("mine")
    for seq in range(QUEUE + 5):
        hub.publish(CallEvent(CallInfo(id="mine"), seq, 0.0, None, Started()))
        hub.publish(CallEvent(CallInfo(id="another"), seq, 0.0, None, Started()))
    taken = watcher.take().decode().split("\n\n")
    assert json.loads(taken[0].removeprefix("data: ")) == {"type": "gap", "lost": 5}
    assert json.loads(taken[1].removeprefix("data: "))["data"]["seq"] == 5
    assert hub.counters["lost"] == 5 and watcher.take() == b""


async def test_calls_are_found_by_what_was_said(served: Bridge) -> None:
    await call(served)
    async with aiohttp.ClientSession() as http:
        for query, found in [
            ("ended=1", [CALL]),
            (f"ended=1&q={said([177]).upper()}", [CALL]),
            ("ended=1&q=nobody+said+this", []),
            ("q=", []),
        ]:
            async with http.get(f"{served.page}/calls?{query}") as answer:
                calls = (await answer.json())["calls"]
                assert [call["call_id"] for call in calls] == found
        async with http.get(f"{served.page}/calls/{CALL}/vtt") as answer:
            assert answer.content_type == "text/vtt"
            text = await answer.text()
            assert text.startswith("WEBVTT\n") and f"<v caller>{said(WORDS)}" in text
        async with http.get(f"{served.page}/calls/nobody/vtt") as answer:
            assert answer.status == 404


def test_what_is_said_is_no_markup_in_subtitles() -> None:
    finals = [{"leg": "callee", "text": "a <b> --> &\n\nc", "start": 3661.5, "end": 3661.5}]
    assert vtt(finals) == (
        "WEBVTT\n\n01:01:01.500 --> 01:01:01.501\n<v callee>a &lt;b&gt; --&gt; &amp; c\n"
    )


@needs_browser
async def test_words_of_a_call_appear_in_the_browser(served: Bridge, tmp_path: Path) -> None:
    async with browser.chromium(tmp_path) as tab:
        await tab.open(f"{served.page}/")
        await tab.until("document.querySelector('#state').textContent.includes('slots')")
        await call(served)
        await tab.until(f"document.querySelector('#calls button[data-id={CALL}]')")
        await tab.run(f"document.querySelector('#calls button[data-id={CALL}]').click()")
        await tab.until(f"document.querySelector('#words').textContent.includes({said(WORDS)!r})")
        await tab.until("document.querySelector('#legs .leg.caller')")
        await tab.run("document.querySelector('#search').value = 'nobody said this'")
        await tab.run("document.querySelector('#search').dispatchEvent(new Event('input'))")
        await tab.until("!document.querySelector('#calls button')")
        # On a telephone's screen nothing sticks out.
        await tab.picture(tmp_path / "phone.png", 360, 740)
        assert await tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.errors == []


@needs_browser
async def test_what_the_microphone_hears_appears(tmp_path: Path) -> None:
    """Chromium's fake microphone plays a file of the tones engine's words."""
    says = tmp_path / "says.wav"
    with wave.open(str(says), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(speech(WORDS).tobytes())
    async with (
        bridge(http={}) as b,
        browser.chromium(tmp_path, [f"--use-file-for-fake-audio-capture={says}"]) as tab,
    ):
        await tab.open(f"{b.page}/")
        await tab.until("!document.querySelector('#mic').disabled && sockets")
        await tab.run("document.querySelector('#mic').click()")
        await tab.until(f"document.querySelector('#words').textContent.includes({said([177])!r})")
        await tab.run("document.querySelector('#mic').click()")
        await b.over()
        assert tab.errors == []


@needs_browser
async def test_a_bridge_with_a_token_asks_for_it(tmp_path: Path) -> None:
    async with bridge(http={"token": TOKEN}) as b, browser.chromium(tmp_path) as tab:
        await call(b)
        await tab.open(f"{b.page}/")
        await tab.until("document.querySelector('#ask').open")
        await tab.run(f"document.querySelector('#token').value = {TOKEN!r}")
        await tab.run("document.querySelector('#ask button').click()")
        await tab.until(f"document.querySelector('#calls button[data-id={CALL}]')")
