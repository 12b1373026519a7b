"""The bridge as its users run it, `python -m bridge serve`, and a receiver of its webhooks."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web
from lab import Lab, free_port
from lab_audio import Samples
from lab_wait import Watched
from standardwebhooks import Webhook

from bridge.engine.tones import encode, text_of

REPOSITORY = Path(__file__).parents[2]
READY, STOP = 30.0, 15.0  # s
TOKEN = "the-token-of-the-tests"
SECRET = "whsec_" + base64.b64encode(b"a secret that only tests know...").decode()

Event = dict[str, Any]


def speech(words: list[int]) -> Samples:
    """Coded words, with the silence before them in which calls are set up."""
    quiet = np.zeros(8000, np.int16)
    return np.concatenate([quiet, encode(words), quiet[:4000]])


def texts(words: list[int]) -> list[str]:
    """How the tones engine spells them."""
    return [text_of(word) for word in words]


class Hook(Watched):
    """Receives webhooks, and keeps those whose signature is right."""

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.events: list[Event] = []
        self.forged = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            Webhook(SECRET).verify(body.decode(), dict(request.headers))
        except Exception:
            self.forged += 1
            return web.Response(status=401)
        await self.change(lambda: self.events.append(json.loads(body)))
        return web.Response(status=204)

    def of(self, call: str) -> list[Event]:
        """One call's events, as they came."""
        return [e for e in self.events if e["data"]["call_id"] == call]

    def words(self, call: str, leg: str = "caller") -> list[str]:
        """The words of a leg's finals."""
        finals = [e["data"] for e in self.of(call) if e["type"] == "transcript.final"]
        return [word["word"] for f in finals if f["leg"] == leg for word in f["words"]]

    def ended(self) -> list[str]:
        """Calls that are over."""
        return [e["data"]["call_id"] for e in self.events if e["type"] == "call.ended"]

    def seen(self) -> str:
        return str([(e["type"], e["data"]["call_id"][:8], e["data"]["seq"]) for e in self.events])


@asynccontextmanager
async def receive() -> AsyncIterator[Hook]:
    """A webhook receiver on a free loopback port."""
    hook = Hook()
    app = web.Application()
    app.router.add_post("/hook", hook.take)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    hook.url = f"http://127.0.0.1:{port}/hook"
    try:
        yield hook
    finally:
        await runner.cleanup()


class Bridge:
    """A running bridge. `port`: AudioSocket; `pid`: of the parent that holds the sockets."""

    def __init__(self, port: int, http: int, log: Path, session: aiohttp.ClientSession) -> None:
        self.port = port
        self._url = f"http://127.0.0.1:{http}"
        self._log = log
        self._session = session
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, config: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGE_")}
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bridge", "serve", "-c", str(config)),
                cwd=REPOSITORY,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await self.ready()

    async def ready(self) -> None:
        """Until it answers calls and is logged in at Asterisk."""
        try:
            async with asyncio.timeout(READY):
                while not await self._is_ready():  # noqa: ASYNC110 (another process: no event)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the bridge is not ready:\n{self.log()[-3000:]}") from None

    async def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, f"the bridge has ended:\n{self.log()[-3000:]}"
        try:
            metrics = str(await self.get("/metrics"))
            here = "\ncallscribe_ami_up 1" in metrics or "callscribe_ami_up" not in metrics
            return here and await self.get("/readyz") is not None
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def get(self, path: str) -> Any:
        """The answer, None unless it is 200."""
        limit = aiohttp.ClientTimeout(total=5)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self._session.get(self._url + path, headers=headers, timeout=limit) as answer:
            body = await answer.text()
            if answer.status != 200:
                return None
            return json.loads(body) if "json" in answer.content_type else body

    async def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        """POST: the status and the answer."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self._session.post(self._url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    @property
    def url(self) -> str:
        """Of its HTTP side."""
        return self._url

    async def add_rule(self, call: str, rule: dict[str, Any], token: str = TOKEN) -> int:
        """POST /calls/{call}/rules: the status."""
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self._url}/calls/{call}/rules"
        async with self._session.post(url, headers=headers, json=rule) as answer:
            return answer.status

    async def hang_up(self, call: str, token: str = TOKEN) -> int:
        """DELETE /calls/{call}: the status."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.delete(f"{self._url}/calls/{call}", headers=headers) as answer:
            return answer.status

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def workers(self) -> list[int]:
        """Process ids of the parent's children."""
        assert self.process is not None
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended meanwhile
                continue
            if parent == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def kill_worker(self) -> int:
        """kill -9 the one worker there is. Its process id."""
        (pid,) = self.workers()
        os.kill(pid, signal.SIGKILL)
        return pid

    async def stop(self) -> int:
        """SIGTERM; kill as the last resort. The exit status."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.terminate()
        try:
            return await asyncio.wait_for(self.process.wait(), STOP)
        except TimeoutError:
            for pid in self.workers():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            await self.process.wait()
            return -signal.SIGKILL


CONFIG = """
[engine]
kind = "{engine}"
slots = {slots}
[audiosocket]
listen = "127.0.0.1:{port}"
[http]
listen = "127.0.0.1:{http}"
token = "{token}"
{ami}[[webhook]]
url = "{hook}"
secret = "{secret}"
[outbox]
path = "{outbox}"
[service]
drain_timeout = 0.5
flush_timeout = 2.0
{more}
"""
AMI = """
[ami]
host = "127.0.0.1"
port = {port}
username = "{user}"
secret = "{secret}"
"""


@asynccontextmanager
async def serve(
    lab: Lab,
    hook: Hook,
    folder: Path,
    *,
    engine: str = "tones",
    slots: int = 32,
    more: str = "",
    ami: str = AMI,
    user: str = "callscribe",
    outbox: str = "",
) -> AsyncIterator[Bridge]:
    """A bridge that the lab's dialplan calls and that is logged in at it, as AMI's `user`.

    `more`: further settings, as TOML.
    """
    port, http = free_port(), free_port()
    config = folder / "bridge.toml"
    config.write_text(
        CONFIG.format(
            engine=engine,
            slots=slots,
            outbox=outbox,
            port=port,
            http=http,
            token=TOKEN,
            ami=ami.format(port=lab.ami, user=user, secret=lab.secret),
            more=more,
            hook=hook.url,
            secret=SECRET,
        )
    )
    async with aiohttp.ClientSession(trust_env=False) as session:
        bridge = Bridge(port, http, folder / "bridge.log", session)
        try:
            await bridge.start(config)
            lab.call_bridge_at(port)
            yield bridge
        finally:
            if lab.running:  # before the port closes: a refused connection harms Asterisk
                lab.cli("channel request hangup all", check=False)
            await bridge.stop()
