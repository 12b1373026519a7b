"""A real headless Chromium, driven by its debugging protocol over the WebSocket that it offers."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from websockets.asyncio.client import ClientConnection, connect

PATIENCE = 30.0  # s
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-extensions "
    "--disable-dev-shm-usage --remote-debugging-port=0 --mute-audio "
    "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream "
    "--autoplay-policy=no-user-gesture-required"
).split()


def missing() -> str:
    """Why there is no browser here; empty when there is one."""
    return "" if shutil.which("chromium") else "no chromium: apt-get install chromium"


class Tab:
    """One page."""

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
        self._ids = itertools.count(1)
        self.errors: list[str] = []

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; exceptions of the page in between are kept."""
        number = next(self._ids)
        await self._ws.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(PATIENCE):
            while True:
                said = json.loads(await self._ws.recv())
                if said.get("method") == "Runtime.exceptionThrown":
                    self.errors.append(json.dumps(said["params"])[:500])
                if said.get("method") == "Log.entryAdded":
                    self.errors.append(said["params"]["entry"]["text"])
                if said.get("id") == number:
                    assert "error" not in said, said
                    result: dict[str, Any] = said["result"]
                    return result

    async def run(self, script: str) -> Any:
        """What an expression of JavaScript is."""
        result = await self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(PATIENCE):
            while not await self.run(f"!!({script})"):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.05)

    async def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({url!r}) && document.readyState == 'complete'")

    async def picture(self, path: Path, width: int = 1100, height: int = 800) -> None:
        """A screenshot."""
        import base64

        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        shot = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))  # noqa: ASYNC240 - a test's own file


@asynccontextmanager
async def chromium(folder: Path, more: Sequence[str] = ()) -> AsyncIterator[Tab]:
    """A browser with one page, ended on the way out."""
    profile = folder / "profile"
    process = await asyncio.create_subprocess_exec(
        *("chromium", *FLAGS, *more, f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        async with asyncio.timeout(PATIENCE):
            while not _port(port_file):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.05)
        port = _port(port_file)
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [p for p in await answer.json() if p["type"] == "page"]
        async with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as ws:
            yield Tab(ws)
    finally:
        process.terminate()
        await process.wait()


def _port(file: Path) -> str:
    """Where the browser listens; empty until it says so."""
    port, newline, _ = file.read_text().partition("\n") if file.exists() else ("", "", "")
    return port if newline else ""
