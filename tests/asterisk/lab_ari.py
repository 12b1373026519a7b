"""An Asterisk with ARI, beside the laboratory's common one, and a bridge that taps its calls."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any
from uuid import uuid4

import aiohttp
import lab as laboratory
import pytest
from lab import BRIDGE_PORTS, MODULES, Lab, LabError, free_port
from lab_wait import WAIT, Watched

from bridge.config import from_dict
from bridge.pbx.ari import AriLink
from bridge.server import Server
from bridge.types import CallEvent, Ended, Final, LegName, Refused

ARI_MODULES = """
app_stasis bridge_softmix chan_rtp res_ari res_ari_applications
res_ari_asterisk res_ari_bridges res_ari_channels res_ari_events res_ari_model
res_rtp_multicast res_stasis res_stasis_answer res_stasis_playback res_stasis_recording
res_stasis_snoop
""".split()

HTTP = """
#include "sample-http.conf"
[general](+)
bindport = {port}
"""

ARI = """
#include "sample-ari.conf"
[callscribe](+)
password = {secret}
[reader]
type = user
read_only = yes
password = {secret}
"""

# Ways in which two come to talk; who says what, and who is called, is told by the test.
DIALPLAN = """
[ari]
exten => call,1,Answer()
 same => n,Dial(${LAB_CALLEE},30,g)
 same => n,UserEvent(LabAfter,Dial: ${DIALSTATUS})
exten => unanswered,1,Dial(${LAB_CALLEE},30)
exten => asks,1,Gosub(callscribe-tap,s,1)
 same => n,Dial(${LAB_CALLEE},30)
exten => agrees,1,Answer()
 same => n,Wait(0.5)
 same => n,Set(CALLSCRIBE_CONSENT=1)
 same => n,Dial(${LAB_CALLEE},30)
exten => agreed,1,Set(CALLSCRIBE_CONSENT=1)
 same => n,Gosub(callscribe-tap,s,1)
 same => n,Dial(${LAB_CALLEE},30)
exten => names,1,Answer()
 same => n,Gosub(callscribe-tap,s,1(callee,the-name))
 same => n,Dial(${LAB_CALLEE},30)
exten => stasis,1,Answer()
 same => n,Gosub(callscribe-tap-stasis,s,1)
 same => n,UserEvent(LabAfter,Status: ${CALLSCRIBE_STATUS})
 same => n,Dial(${LAB_CALLEE},30)
exten => behind,1,Dial(Local/callee@lab/n,30)
exten => dies,1,Answer()
 same => n,Hangup()
exten => _2XX,1,Goto(call,1)
exten => _3XX,1,Goto(call,1)
[callscribe-phone](+)
exten => talk,1,Goto(ari,call,1)
exten => hear,1,Answer()
 same => n,Wait(60)
"""


FORMS: dict[str, dict[str, str]] = {
    "dialplan": {"form": "dialplan"},
    "external_media": {"form": "external_media"},
    "rtp": {"form": "external_media", "encapsulation": "rtp"},
    "websocket": {"form": "external_media", "encapsulation": "websocket"},
}
"""What [ari] says of each way of a tap's audio."""


class AriLab(Lab):
    """As `Lab`, with ARI on port `ari`. `secret` is also the password of its users.

    `boot`: what it logged when it started.
    """

    def __init__(self) -> None:
        self.ari = free_port()
        self.boot: list[str] = []
        super().__init__()

    def _configure(self) -> None:
        super()._configure()
        assert not set(ARI_MODULES) & set(MODULES)
        with (self.outside / "modules.conf").open("a") as modules:
            modules.writelines(f"load = {name}.so\n" for name in ARI_MODULES)
        with (self.outside / "extensions.conf").open("a") as dialplan:
            dialplan.write(DIALPLAN)
        (self.outside / "websocket_client.conf").write_text("")
        (self.outside / "http.conf").write_text(HTTP.format(port=self.ari))
        (self.outside / "ari.conf").write_text(ARI.format(secret=self.secret))

    @property
    def url(self) -> str:
        """ari.url."""
        return f"http://127.0.0.1:{self.ari}/ari"


def boot() -> Iterator[AriLab]:
    """For a fixture: without a laboratory skip, or fail where there must be one."""
    if why := laboratory.missing():
        if os.environ.get("CALLSCRIBE_REQUIRE_LAB") == "1":
            pytest.fail(why)
        pytest.skip(why)
    lab = AriLab()
    try:
        lab.start()
        lab.boot = lab.log()
        yield lab
    finally:
        lab.stop()


class Rest:
    """A small ARI client of the tests' own: what is there, and what to do with it."""

    def __init__(self, lab: AriLab, session: aiohttp.ClientSession) -> None:
        self._lab, self._session = lab, session

    async def ask(self, method: str, path: str, **params: str) -> Any:
        """The answer to a request. Raises `LabError` unless it is a success."""
        async with self._session.request(method, self._lab.url + path, params=params) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise LabError(f"{method} {path}: {answer.status} {text}")
            return json.loads(text) if text else None

    async def channels(self) -> dict[str, dict[str, Any]]:
        """All channels, by name."""
        return {channel["name"]: channel for channel in await self.ask("GET", "/channels")}

    async def find(self, begin: str, end: str = "") -> dict[str, Any]:
        """The channel whose name begins and ends so, come or to come."""
        async with asyncio.timeout(WAIT):
            while True:
                for name, channel in (await self.channels()).items():
                    if name.startswith(begin) and name.endswith(end):
                        return channel
                await asyncio.sleep(0.01)

    async def listen(self, app: str, channel: str, host: str, format: str) -> list[str]:
        """What this channel says, by RTP to `host`: as an ARI application of one's own does it.

        The paths of what was made, which stays until it is deleted.
        """
        ids = [f"{app}-{piece}-{uuid4()}" for piece in "smb"]
        snoop, media, bridge = ids
        await self.ask("POST", f"/channels/{channel}/snoop/{snoop}", app=app, spy="in")
        await self.ask(
            "POST",
            "/channels/externalMedia",
            app=app,
            channelId=media,
            external_host=host,
            format=format,
        )
        await self.ask("POST", "/bridges", type="mixing", bridgeId=bridge)
        async with asyncio.timeout(WAIT):
            while True:
                found = {
                    c["id"]: c["dialplan"]["app_name"] for c in (await self.channels()).values()
                }
                if (found[snoop], found[media]) == ("Stasis", "Stasis"):
                    break
                await asyncio.sleep(0.01)
        await self.ask("POST", f"/bridges/{bridge}/addChannel", channel=f"{snoop},{media}")
        return [f"/channels/{media}", f"/bridges/{bridge}"]

    async def up(self, count: int) -> dict[str, dict[str, Any]]:
        """All channels that no bridge of ours made, once so many are up."""
        async with asyncio.timeout(WAIT):
            while True:
                found = {
                    name: channel
                    for name, channel in (await self.channels()).items()
                    if not name.startswith(("Snoop/", "AudioSocket/", "WebSocket/", "UnicastRTP/"))
                    and channel["state"] == "Up"
                }
                if len(found) == count:
                    return found
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def hold(self, app: str) -> AsyncIterator[None]:
        """Be that application, and do nothing with what comes."""
        params = {"app": app}
        async with self._session.ws_connect(f"{self._lab.url}/events", params=params):
            yield

    async def only(self, kind: str) -> None:
        """Wait until all channels are of this kind."""
        async with asyncio.timeout(WAIT):
            while {name.partition("/")[0] for name in await self.channels()} != {kind}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def nothing_left(self) -> None:
        """Wait until there is neither a channel nor a bridge."""
        left: list[str] = []
        try:
            async with asyncio.timeout(WAIT):
                while True:
                    left = [*await self.channels()]
                    left += [bridge["id"] for bridge in await self.ask("GET", "/bridges")]
                    if not left:
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"left in Asterisk: {left}") from None


@asynccontextmanager
async def rest(lab: AriLab) -> AsyncIterator[Rest]:
    """Log in as the bridge does."""
    auth = aiohttp.BasicAuth("callscribe", lab.secret)
    async with aiohttp.ClientSession(auth=auth, trust_env=False) as session:
        yield Rest(lab, session)


class Told(Watched):
    """An egress that remembers. Implements `bridge.interfaces.Egress`."""

    name = "told"

    def __init__(self) -> None:
        super().__init__()
        self.events: list[CallEvent] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def deliver(self, event: CallEvent) -> None:
        await self.change(lambda: self.events.append(event))

    def words(self, call: str, leg: LegName) -> list[str]:
        """The words of a leg's finals; of one that comes several times in a row, the first.

        A snoop gives a frame every 20 ms, silence where its channel's is late: on a machine that
        is too busy that may cut a word in two. No test says a word twice in a row.
        """
        bodies = [e.body for e in self.events if e.call.id == call and e.leg == leg]
        words = [w.text for body in bodies if isinstance(body, Final) for w in body.words]
        return [word for word, _ in groupby(words)]

    def calls(self) -> list[str]:
        """Ids of calls, in the order of their first event."""
        return list(dict.fromkeys(event.call.id for event in self.events))

    def ended(self) -> list[str]:
        """Calls that are over."""
        return [e.call.id for e in self.events if isinstance(e.body, Ended)]

    def refused(self) -> list[str]:
        """Calls that were not taken."""
        return [e.call.id for e in self.events if isinstance(e.body, Refused)]

    def seen(self) -> str:
        return str([(e.call.id, e.seq, e.leg, type(e.body).__name__) for e in self.events])


class Tapping:
    """A bridge in this process: its server, its ARI link, and what was told."""

    def __init__(self, server: Server, link: AriLink, told: Told, port: int) -> None:
        self.server, self.link, self.told, self.port = server, link, told, port

    async def until(self, wanted: Callable[[], object], what: str) -> None:
        """Wait for something of the link's, or of the taps'."""
        try:
            async with asyncio.timeout(WAIT):
                while not wanted():  # noqa: ASYNC110 - nobody tells us
                    await asyncio.sleep(0.01)
        except TimeoutError:
            taps = self.link.taps
            seen = f"{self.link.state} {taps.describe()} {taps.counters}"
            raise AssertionError(f"waited for {what}; seen: {seen}") from None

    async def until_up(self, legs: int) -> None:
        """Wait until just so many legs are heard."""
        await self.until(lambda: self.link.taps.states()["up"] == legs, f"{legs} legs that are up")


def settings(lab: AriLab, port: int, slots: int, ari: dict[str, Any]) -> dict[str, Any]:
    """A configuration of a bridge that taps `lab`."""
    base = {"url": lab.url, "username": "callscribe", "password": lab.secret}
    return {
        "rtp": {"listen": "127.0.0.1", "ports": f"{lab.bridge}-{lab.bridge + BRIDGE_PORTS - 1}"},
        "engine": {"kind": "tones", "slots": slots},
        "audiosocket": {"listen": f"127.0.0.1:{port}"},
        "websocket": {"listen": "127.0.0.1:0"},
        "ari": base | ari,
        "service": {"drain_timeout": 0.0, "flush_timeout": 2.0},
    }


@asynccontextmanager
async def serve(
    lab: AriLab,
    *,
    slots: int = 32,
    wait: bool = True,
    more: dict[str, Any] | None = None,
    **ari: Any,
) -> AsyncIterator[Tapping]:
    """A bridge with these settings in [ari], logged in, where the dialplan's CALLSCRIBE points.

    `more`: sections besides.
    """
    sock, web = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    told = Told()
    server = Server(from_dict(settings(lab, port, slots, ari) | (more or {})), sinks=[told])
    link = server.ari
    assert link is not None
    try:
        if lab.running:
            lab.call_bridge_at(port)
            if ari.get("encapsulation") == "websocket":
                lab.connect_websockets_to(web.getsockname()[1])
        await server.start({"audiosocket": sock, "websocket": web})
        if wait:
            await asyncio.wait_for(link.up(), WAIT)
        yield Tapping(server, link, told, port)
    finally:
        await server.drain()
        await server.close()
        sock.close()
        web.close()
