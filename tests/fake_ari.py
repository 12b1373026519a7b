"""A small Asterisk: channels and bridges that answer ARI's requests and say what happens to them.

`World` is pure. Its answers and events have the shape and the order that were seen with Asterisk
22.10 (tests/vectors/ari), and whatever it is asked for it does, also to a channel that is a call's
own: so a test that nobody was harmed can fail. `TapsLab` has taps on a world, with a clock of its
own, and `FakeAri` serves a world over HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from aiohttp import WSMsgType, web

from bridge.errors import BridgeError, ProtocolError
from bridge.pbx import ari_events
from bridge.pbx.ari_media import AudioSocketMedia, Media, RtpMedia, WebSocketMedia
from bridge.pbx.ari_rules import Rule
from bridge.pbx.ari_tap import BACKOFF, Form, Outcome
from bridge.pbx.ari_taps import Taps
from bridge.types import Announcement, CallInfo, LegName

OURS = re.compile(r"callscribe-[smb]-[0-9a-f-]{36}")
Json = dict[str, Any]
Answer = tuple[int, Json | list[Json] | None]
GONE: Answer = (404, {"message": "Channel not found"})


@dataclass
class Call:
    """A channel, as ARI shows it."""

    id: str
    name: str
    state: str = "Up"
    context: str = "default"
    exten: str = "s"
    app: str = ""
    data: str = ""
    number: str = ""
    linkedid: str = ""
    created: int = 0
    variables: Json = field(default_factory=dict)

    def json(self) -> Json:
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "caller": {"name": "", "number": self.number},
            "connected": {"name": "", "number": ""},
            "dialplan": {
                "context": self.context,
                "exten": self.exten,
                "priority": 1,
                "app_name": self.app,
                "app_data": self.data,
            },
            "creationtime": f"2026-01-01T00:00:{self.created:08.3f}+0000",
            "channelvars": self.variables
            | ({"CHANNEL(linkedid)": self.linkedid} if self.linkedid else {}),
        }


@dataclass
class World:
    """`events` are to be taken out. `heard`: UUIDs whose audio has come → whether it was taken."""

    app: str = "callscribe"
    channels: dict[str, Call] = field(default_factory=dict)
    bridges: dict[str, list[str]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, Json]] = field(default_factory=list)
    heard: dict[str, bool] = field(default_factory=dict)
    room: int = 1000  # for legs
    deaf: bool = False  # nobody is there to take audio
    errors: dict[str, int] = field(default_factory=dict)  # part of a path → status, once
    registered: bool = True  # somebody is connected under the application's name
    missing: set[str] = field(default_factory=set)  # modules that are not loaded
    variables: dict[str, str] = field(default_factory=dict)  # global ones
    # of each UnicastRTP channel
    local: Json = field(default_factory=lambda: {"UNICASTRTP_LOCAL_ADDRESS": "127.0.0.1"})
    _count: int = 0

    # -- what people do -----------------------------------------------------------------------

    def new(self, name: str, state: str = "Up", **more: Any) -> str:
        """A channel; its id."""
        self._count += 1
        id = more.pop("id", f"1700000000.{self._count}")
        call = self.channels[id] = Call(id, name, state, created=self._count, **more)
        self.say("ChannelCreated", channel=call.json())
        return id

    def up(self, id: str) -> None:
        """A channel is answered."""
        self.channels[id].state = "Up"
        self.say("ChannelStateChange", channel=self.channels[id].json())

    def place(self, id: str, context: str, exten: str, app: str) -> None:
        """A channel comes to a place in the dialplan."""
        call = self.channels[id]
        call.context, call.exten, call.app = context, exten, app
        self.say("ChannelDialplan", channel=call.json())

    def dial(self, caller: str, peer: str) -> None:
        """One channel dials another."""
        self.channels[peer].app = "AppDial"
        self.say(
            "Dial",
            caller=self.channels[caller].json(),
            peer=self.channels[peer].json(),
            dialstatus="",
        )

    def join(self, bridge: str, *ids: str) -> None:
        """Channels come together."""
        for id in ids:
            self.bridges.setdefault(bridge, []).append(id)
            self._about("ChannelEnteredBridge", bridge, id)

    def leave(self, bridge: str, id: str) -> None:
        """A channel leaves a bridge; Asterisk's own end when they are empty."""
        self.bridges[bridge].remove(id)
        self._about("ChannelLeftBridge", bridge, id)
        if not self.bridges[bridge] and not bridge.startswith(self.app):
            del self.bridges[bridge]

    def hang_up(self, id: str) -> None:
        """A channel ends, and what snoops on it."""
        call = self.channels.pop(id, None)
        if call is None:
            return
        for bridge in [b for b, members in self.bridges.items() if id in members]:
            self.bridges[bridge].remove(id)
            self.say("ChannelLeftBridge", bridge=self._bridge(bridge), channel=call.json())
            if not self.bridges[bridge] and not bridge.startswith(self.app):
                del self.bridges[bridge]
        snoops = [c.id for c in self.channels.values() if c.name.startswith(f"Snoop/{id}-")]
        for snoop in snoops:
            self.hang_up(snoop)
        self.say("ChannelDestroyed", channel=call.json(), cause=16)

    def talk(self, caller: str = "PJSIP/alice", callee: str = "PJSIP/bob") -> tuple[str, str]:
        """Two talk: one has dialled the other, who has answered."""
        a = self.new(f"{caller}-{self._count:08x}", "Ring", context="from-alice", exten="200")
        b = self.new(f"{callee}-{self._count:08x}", "Down", context="from-bob")
        self.dial(a, b)
        self.up(b)
        self.up(a)
        self.join(f"bridge-{a}", b, a)
        return a, b

    def stasis(self, id: str, *args: str) -> None:
        """A channel comes to our application."""
        call = self.channels[id]
        call.app, call.data = "Stasis", ",".join([self.app, *args])
        self.say("StasisStart", channel=call.json(), args=list(args))

    def user_event(self, id: str, **fields: str) -> None:
        """CallscribeTap, by the dialplan of a channel."""
        channel = self.channels[id].json()
        self.say("ChannelUserevent", eventname="CallscribeTap", channel=channel, userevent=fields)

    def say(self, kind: str, **fields: object) -> None:
        """An event."""
        self.events.append(json.dumps({"type": kind, "application": self.app, **fields}))

    def _about(self, kind: str, bridge: str, id: str) -> None:
        self.say(kind, bridge=self._bridge(bridge), channel=self.channels[id].json())

    def _bridge(self, id: str) -> Json:
        return {"id": id, "bridge_type": "mixing", "channels": list(self.bridges[id])}

    # -- what we ask --------------------------------------------------------------------------

    def ask(self, method: str, path: str, params: Json) -> Answer:
        """One request of ARI's."""
        self.asked.append((method, unquote(path), params))
        for part in list(self.errors):
            if part in path:
                return self.errors.pop(part), {"message": "as the test wants it"}
        match [method, *map(unquote, path.strip("/").split("/"))]:
            case ["GET", "channels"]:
                return 200, [call.json() for call in self.channels.values()]
            case ["GET", "bridges"]:
                return 200, [self._bridge(id) for id in self.bridges]
            case ["POST", "channels", "externalMedia"]:
                return self._media(params)
            case ["POST", "channels", id, "snoop", snoop]:
                return self._snoop(id, snoop)
            case ["POST", "channels", id, "continue"]:
                return self._continue(id, params)
            case ["DELETE", "channels", id]:
                there = id in self.channels
                self.hang_up(id)
                return (204, None) if there else GONE
            case ["POST", "bridges"]:
                self.bridges[params["bridgeId"]] = []
                return 200, self._bridge(params["bridgeId"])
            case ["POST", "bridges", id, "addChannel"]:
                members = params["channel"].split(",")
                if not set(members) <= self.channels.keys():
                    return GONE
                self.join(id, *members)
                for member in members:  # an RTP stream begins with the bridge
                    if self.channels[member].name.startswith("UnicastRTP/"):
                        self._audio(member.removeprefix(f"{self.app}-m-"))
                return 204, None
            case ["DELETE", "bridges", id]:
                return (204, None) if self.bridges.pop(id, None) is not None else GONE
            case ["GET", "applications", app] if app != self.app or not self.registered:
                return 404, {"message": "Application not found"}
            case ["POST" | "PUT" | "GET", "applications", app, *_]:
                return 200, {"name": app}
            case ["GET", "asterisk", "info"]:
                return 200, {"system": {"version": "22.10.1"}}
            case ["GET", "asterisk", "variable"]:
                return 200, {"value": self.variables.get(params["variable"], "")}
            case ["GET", "asterisk", "modules", module] if module not in self.missing:
                return 200, {"name": module, "status": "Running"}
        return 404, {"message": "Resource not found"}

    def _snoop(self, id: str, snoop: str) -> Answer:
        if id not in self.channels:
            return 404, {"message": "Provided channel was not found"}
        self._count += 1
        self.new(f"Snoop/{id}-{self._count:08x}", id=snoop, app="Stasis", data=self.app)
        self.say("StasisStart", channel=self.channels[snoop].json(), args=[])
        return 200, self.channels[snoop].json()

    def _continue(self, id: str, params: Json) -> Answer:
        if id not in self.channels:
            return GONE
        call = self.channels[id]
        call.app, call.data = "Dial", ""
        if params and not self._audio(params["extension"]):
            self.hang_up(id)
        return 204, None

    def _media(self, params: Json) -> Answer:
        if params.get("encapsulation") == "rtp":
            self._count += 1
            name = f"UnicastRTP/{params['external_host']}-0x7f{self._count:08x}"
            local = {"UNICASTRTP_LOCAL_PORT": str(15000 + self._count), **self.local}
        elif params.get("transport") == "websocket":  # answered before anybody is there [seen]
            name, local = f"WebSocket/{params['external_host']}/0x7f{self._count:08x}", {}
            here = self._audio(params["transport_data"][7:43])
            self.new(name, id=params["channelId"], app="Stasis", data=self.app)
            channel = self.channels[params["channelId"]].json()
            if here:
                self.say("StasisStart", channel=channel, args=[])
            else:
                self.hang_up(params["channelId"])
            return 200, channel
        elif not self._audio(params["data"]):
            return 500, {"message": "Allocation failed"}
        else:
            name, local = f"AudioSocket/{params['external_host']}-{params['data']}", {}
        self.new(name, id=params["channelId"], app="Stasis", data=self.app, variables=local)
        self.say("StasisStart", channel=self.channels[params["channelId"]].json(), args=[])
        return 200, self.channels[params["channelId"]].json()

    def _audio(self, uuid: str) -> bool:
        """A connection to our AudioSocket: does it last?"""
        if self.deaf:
            return False
        self.heard[uuid] = self.room > 0
        self.room -= 1
        return self.heard[uuid]


class Ports:
    """UDP ports of one bridge. Implements `bridge.pbx.ari_media.Ports`."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[str, int] | None] = {}  # by UUID; None: not told yet
        self.ended: list[str] = []
        self.refuse = ""

    def open(self, uuid: str) -> None:
        self.sources[uuid] = None

    def address(self, uuid: str) -> str:
        return f"127.0.0.1:{20000 + 2 * list(self.sources).index(uuid)}"

    def listen_to(self, uuid: str, host: str, port: int) -> None:
        if self.refuse:
            raise BridgeError(self.refuse)
        self.sources[uuid] = (host, port)

    def end(self, uuid: str) -> None:
        self.ended.append(uuid)


class TapsLab:
    """A world and the taps on it. `announced`: by UUID; `ended`: UUIDs that we hung up."""

    def __init__(
        self, *rules: Rule, kind: str = "dialplan", world: World | None = None, first: int = 0
    ) -> None:
        self.world = world or World()
        self.now = 1000.0
        self.announced: dict[str, Announcement] = {}
        self.ended: set[str] = set()
        self.consented: list[LegName] = []  # after they were announced
        self.notices: list[str] = []
        self.refuse: Exception | None = None
        self.silent = ""  # part of a path that is not answered
        self.mute = ""  # the same, but what it asks for is done
        self._uuids = first
        self.ports = Ports()
        media: Media = AudioSocketMedia("127.0.0.1:9092")
        if kind == "rtp":
            media = RtpMedia(self.ports, "slin16")
        elif kind == "websocket":
            media = WebSocketMedia("callscribe", "slin16")
        external = kind if kind == "dialplan" else "external_media"
        form = Form(kind=external, media=media)  # type: ignore[arg-type]
        self.taps = Taps(
            form,
            rules,
            self._announce,
            self._outcome,
            new_uuid=self._new_uuid,
            jitter=lambda: 0.0,
            notice=self.notices.append,
            learn=self._learn,
        )

    def _new_uuid(self) -> str:
        self._uuids += 1
        return str(UUID(int=self._uuids))

    def _announce(self, announcement: Announcement) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.ports.open(announcement.uuid)
        self.announced[announcement.uuid] = announcement

    def _learn(self, announcement: Announcement) -> None:
        if self.refuse is not None:
            raise self.refuse
        before = self.announced[announcement.uuid]
        assert (before.call, before.leg) == (announcement.call, announcement.leg)
        assert replace(announcement.info, recording_consent=False) == CallInfo("")
        self.consented.append(announcement.leg)

    def _outcome(self, uuid: str, call: str, leg: LegName) -> Outcome:
        assert (self.announced[uuid].call, self.announced[uuid].leg) == (call, leg)
        if uuid not in self.world.heard:
            return "pending"
        if not self.world.heard[uuid]:
            return "refused"
        return "ended" if uuid in self.ended else "heard"

    def connect(self) -> None:
        self.world.events.clear()
        self.taps.connected()
        self.list()

    def list(self) -> None:
        channels = json.dumps(self.world.ask("GET", "/channels", {})[1])
        bridges = json.dumps(self.world.ask("GET", "/bridges", {})[1])
        self.taps.listed(ari_events.channels(channels), ari_events.bridges(bridges), self.now)
        self.run()

    def run(self) -> None:
        """Until neither side has anything to say."""
        while True:
            events, self.world.events = self.world.events, []
            for text in events:
                with contextlib.suppress(ProtocolError):
                    if event := ari_events.parse(text):
                        self.taps.event(event, self.now)
            requests = self.taps.requests()
            if not events and not requests:
                return
            for request in requests:
                if self.silent and self.silent in request.path:
                    continue
                status, body = self.world.ask(request.method, request.path, dict(request.params))
                if self.mute and self.mute in request.path:
                    continue
                text = json.dumps(body)
                text = ari_events.error_text(text) if status >= 300 else text
                self.taps.answered(request, status, text, self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass, stopping wherever the taps want to be woken."""
        self.run()
        end = self.now + seconds
        while (due := self.taps.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.taps.expire(self.now)
            self.run()
        self.now = end

    def legs(self) -> dict[tuple[str, str], str]:
        """(call, leg) → channel, of legs that are heard."""
        return {
            (str(call["call"]), leg): tap["channel"]
            for call in self.taps.describe()
            for leg, tap in call["legs"].items()  # type: ignore[attr-defined]
            if tap["state"] == "up"
        }

    def one_call(self) -> dict[str, str]:
        """leg → channel of the only call that is heard."""
        assert len({call for call, _ in self.legs()}) <= 1
        return {leg: channel for (_, leg), channel in self.legs().items()}

    def asked(self, what: str) -> list[str]:
        """Paths that were asked for."""
        return [path for method, path, _ in self.world.asked if what in f"{method} {path}"]

    def end(self) -> None:
        """Everybody hangs up."""
        for id in [id for id, c in self.world.channels.items() if not OURS.fullmatch(id)]:
            self.world.hang_up(id)
        self.wait(2 * BACKOFF[1])
        assert not self.world.channels and not self.world.bridges
        assert self.taps.describe() == []
        assert len(self.taps.channels) == 0
        assert self.taps.deadline() is None
        if isinstance(self.taps._form.media, RtpMedia):
            assert set(self.ports.sources) <= set(self.ports.ended)

    def check(self) -> None:
        """Nothing was ever done to a call's own channel that it could notice."""
        for method, path, params in self.world.asked:
            kind, _, rest = path.strip("/").partition("/")
            if method == "GET" or (method, path) == ("POST", "/channels/externalMedia"):
                continue
            if method == "DELETE":
                assert OURS.fullmatch(rest), path
            elif kind == "channels" and not OURS.fullmatch(rest.rpartition("/")[0]):
                assert re.fullmatch(r".*/snoop/callscribe-s-[0-9a-f-]{36}|.*/continue", rest), path
                assert params.get("whisper", "none") == "none"
                assert params.get("spy", "in") == "in"


def labs() -> Iterator[Callable[..., TapsLab]]:
    """For a fixture: makes labs that are connected, and looks at them when the test is over."""
    made: list[TapsLab] = []

    def new(*rules: Rule, **more: Any) -> TapsLab:
        lab = TapsLab(*rules, **more)
        made.append(lab)
        lab.connect()
        return lab

    yield new
    for lab in made:
        lab.end()
        lab.check()


class FakeAri:
    """``async with FakeAri() as fake``: ARI at `fake.url` for the user callscribe / s3cret."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.port = 0
        self.status = 0  # of every answer, instead of the right one
        self.silent: set[str] = set()  # parts of paths that get no answer
        self.sockets: list[web.WebSocketResponse] = []
        self.connections = 0
        self.pings = 0
        self.pongs = True
        self.bodies: list[object] = []
        self._outgoing: asyncio.Queue[str] = asyncio.Queue()
        self._sender: asyncio.Task[None] | None = None
        self._free = asyncio.Event()
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ari"

    async def __aenter__(self) -> FakeAri:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        app = web.Application()
        app.router.add_get("/ari/events", self._events)
        app.router.add_route("*", "/ari/{path:.*}", self._ask)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self._free.clear()
        self._sender = asyncio.create_task(self._send_all())

    async def stop(self) -> None:
        """As `core stop now`."""
        self._free.set()
        if self._sender is not None:
            self._sender.cancel()
        for socket in list(self.sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that happened here makes the condition true."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def tell(self) -> None:
        """Send what has happened in the world to whoever listens."""
        events, self.world.events = self.world.events, []
        for text in events:
            self.send(text)

    def send(self, text: str) -> None:
        """Send this as an event."""
        self._outgoing.put_nowait(text)

    async def _send_all(self) -> None:
        while True:
            text = await self._outgoing.get()
            for socket in list(self.sockets):
                with contextlib.suppress(ConnectionError):
                    await socket.send_str(text)

    def _refusal(self, request: web.Request) -> web.Response | None:
        good = "Basic " + base64.b64encode(b"callscribe:s3cret").decode()
        status = self.status or (401 if request.headers.get("Authorization") != good else 0)
        if not status:
            return None
        return web.json_response({"message": "Authentication required"}, status=status)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        self._changed.set()
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        app = request.query["app"]
        for other in self.sockets if app == self.world.app else []:
            await other.send_json({"type": "ApplicationReplaced", "application": app})
        self.sockets.append(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.PING:
                    self.pings += 1
                    self._changed.set()
                    if self.pongs:
                        await socket.pong(message.data)
        finally:
            self.sockets.remove(socket)
            self._changed.set()
        return socket

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if request.can_read_body:
            self.bodies.append(await request.json())
        path = request.raw_path.partition("?")[0].removeprefix("/ari")
        self.world.registered = bool(self.sockets)
        status, body = self.world.ask(request.method, path, dict(request.query))
        self._changed.set()
        self.tell()
        if any(part in path for part in self.silent):
            await self._free.wait()
        if body is None:
            return web.Response(status=status)
        return web.json_response(body, status=status)
