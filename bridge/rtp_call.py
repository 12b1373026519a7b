"""Calls over RTP: from a recording or a capture, to ports or to a bridge that is asked for them."""

from __future__ import annotations

import asyncio
import functools
import itertools
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.announcing import BridgeApi
from bridge.caller import Clock, checked_uuid
from bridge.capture import calls_of, codec_of, read_streams
from bridge.config import Address
from bridge.errors import BridgeError
from bridge.ingress import rtcp
from bridge.recording import read_recording
from bridge.rtp_caller import RtpResult, bound_socket, connect, open_socket, send
from bridge.rtp_script import Beginning, Form, Impaired, Impairments, Schedule, impair, make_stream
from bridge.types import LegName

MAX_LEGS = 500  # every packet of every leg is in memory
AHEAD = 5.0  # s before its first packet that a leg is announced; a bridge waits for 30
ENDING = 15.0  # s after the last packet for the bridge to finish a call
UNKNOWN = 2.0  # s after which a call that it does not know of is none
ASKING = 0.2  # s between two questions
SET_BACK = 1.0  # s; less is disorder among packets

NAMES: tuple[LegName, LegName] = ("caller", "callee")


@dataclass(frozen=True, slots=True)
class Leg:
    """One stream to send. `begin`: seconds after its call does. `packets`: before impairments."""

    name: LegName
    sent: Impaired
    packets: int
    ssrc: int
    begin: float = 0.0
    media: Mapping[str, object] = field(default_factory=dict)
    """Of its announcement: codec, payload types, ptime."""


@dataclass(frozen=True, slots=True)
class Call:
    """One or two legs, `begin` seconds after the first call."""

    legs: Sequence[Leg]
    begin: float = 0.0


@dataclass
class Outcome:
    """What became of a call. `heard` is GET /calls/{id} and `text` the conversation, where there
    is a bridge to ask."""

    legs: list[RtpResult]
    heard: Mapping[str, object] | None = None
    text: str = ""


# -- what to send ----------------------------------------------------------------------------------


def recorded(
    path: str | Path,
    how: Form,
    network: Impairments,
    *,
    legs: int = 1,
    stagger: float = 0.0,
    channel: int | None = None,
    digits: Sequence[tuple[float, str]] = (),
    linger: float = 0.0,
) -> list[Call]:
    """A recording as calls: of a mono one the caller's leg, of a stereo one both.

    `legs` are taken in turn, and `stagger` seconds are between calls. Raises `BridgeError`.
    """
    recording = read_recording(path, channel=channel)
    count = max(legs, len(recording))
    if not 1 <= legs <= MAX_LEGS:
        raise BridgeError(f"legs: expected 1 to {MAX_LEGS} over RTP, not {legs}")
    media = {"codec": str(how.audio), "ptime": how.ptime * 1000, "payload_types": how.types}
    made = []
    for i in range(count):
        samples, rate = recording[i % len(recording)]
        begin = _beginning()
        packets = make_stream(samples, rate, how, begin, digits, linger)
        sent = impair(packets, network, i)
        name = NAMES[i % len(recording)]
        made.append(Leg(name, sent, len(packets), begin.ssrc, media=media))
    size = len(recording)
    return [
        Call(made[i : i + size], stagger * (i // size)) for i in range(0, count, size)
    ]  # fmt: skip


def _beginning() -> Beginning:
    return Beginning(secrets.randbits(32), secrets.randbits(16), secrets.randbits(32))


def captured(
    path: str | Path, network: Impairments, codec: str = "", *, announced: bool = False
) -> list[Call]:
    """A capture's streams as calls, packet by packet as they were seen.

    `announced`: a bridge will be told what is in them, so it must be known. Raises `BridgeError`.
    """
    found = read_streams(path, codec)
    first = found[0].begin
    number = itertools.count()
    calls = []
    for pair in calls_of(found):
        start = min(stream.begin for stream in pair)
        legs = []
        for name, stream in zip(NAMES, pair, strict=False):
            if len(pair) == 1 and stream.leg == "callee":
                name = "callee"
            schedule = _as_seen(stream.packets)
            sent = impair(schedule, network, next(number))
            media: dict[str, object] = {}
            if announced:
                try:
                    media = {"codec": codec_of(stream), "payload_types": _types(stream.types)}
                except BridgeError as e:
                    raise BridgeError(f"{path}: {e}") from None
            begin = stream.begin - start
            legs.append(Leg(name, sent, len(schedule), stream.ssrc, begin, media))
        calls.append(Call(legs, start - first))
    return calls


def _as_seen(packets: Sequence[tuple[float, bytes]]) -> Schedule:
    """From the first packet on. Where the capture's clock was set back, it goes on from there."""
    schedule: Schedule = []
    first, at = packets[0][0], 0.0
    for when, data in packets:
        if when - first < at - SET_BACK:
            first = when - at
        at = max(at, when - first)
        schedule.append((at, data))
    return schedule


def _types(types: Mapping[int, str]) -> dict[str, str]:
    return {str(number): name for number, name in types.items()}


# -- sending it ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports that somebody else has announced: legs take them in turn."""

    host: str
    ports: Sequence[int]


@dataclass(frozen=True, slots=True)
class Player:
    """Plays calls to one target, `pace` seconds a second. `on_sent` gets (leg, seconds sent)."""

    target: Ports | BridgeApi
    pace: float
    clock: Clock
    on_sent: Callable[[int, float], None] | None = None

    async def play(
        self, calls: Sequence[Call], uuids: Sequence[str] | None = None
    ) -> list[Outcome]:
        """All of them, each at its time. `uuids` are as many as legs. Raises `BridgeError` before
        anything is sent: wrong arguments."""
        count = sum(len(call.legs) for call in calls)
        if isinstance(self.target, Ports) and len(self.target.ports) != count:
            raise BridgeError(
                f"to: {_counted(count, 'leg')} need as many ports, as rtp://host:8000,8002, "
                f"not {len(self.target.ports)}"
            )
        if uuids is not None and len(uuids) != count:
            raise BridgeError(f"uuid: {count} legs need {count} UUIDs, not {len(uuids)}")
        given: Sequence[str | None] = uuids if uuids is not None else [None] * count
        names = iter([checked_uuid(text) for text in given])  # all, before anything is begun
        numbers = itertools.count()
        start = self.clock.now()
        playing = []
        for call in calls:
            legs = [
                _Playing(
                    leg, next(numbers), RtpResult(next(names), leg.name, packets_of=leg.packets)
                )
                for leg in call.legs
            ]
            playing.append(self._call(call, legs, start + call.begin * self.pace))
        return await asyncio.gather(*playing)

    async def _call(self, call: Call, legs: Sequence[_Playing], start: float) -> Outcome:
        await self.clock.sleep_until(start)
        for leg in legs:
            leg.result.call = legs[0].result.uuid
        early = [leg for leg in legs if leg.leg.begin <= AHEAD]
        try:
            # Both legs have their ports before either speaks.
            await asyncio.gather(*(self._open(leg) for leg in early))
            if not any(leg.result.error for leg in early):
                begun = self.clock.now()
                await asyncio.gather(*(self._leg(leg, begun) for leg in legs))
        finally:
            for leg in legs:
                leg.close()
        return await self._outcome([leg.result for leg in legs])

    async def _leg(self, leg: _Playing, begun: float) -> None:
        begin = begun + leg.leg.begin * self.pace
        if leg.sock is None:
            await self.clock.sleep_until(begin - AHEAD * self.pace)
            await self._open(leg)
        if leg.sock is not None:
            await send(
                leg.leg.sent.schedule,
                leg.sock,
                leg.result,
                begin,
                self.pace,
                self.clock,
                goodbye=rtcp.build(leg.leg.ssrc, "callscribe", (), bye=True),
                on_sent=functools.partial(self.on_sent, leg.number) if self.on_sent else None,
            )

    async def _open(self, leg: _Playing) -> None:
        """A socket that speaks to the leg's port; what hinders it is in the result."""
        result = leg.result
        try:
            if isinstance(self.target, Ports):
                to = Address(self.target.host, self.target.ports[leg.number])
                leg.sock = await open_socket(to)
            else:
                to = await self._announced(self.target, leg)
            result.to = str(to)
            result.met(leg.leg.sent)
        except BridgeError as e:
            result.ended_by, result.error = "error", str(e)
        except OSError as e:
            result.ended_by, result.error = "error", f"cannot send to the port: {e.strerror or e}"

    async def _announced(self, api: BridgeApi, leg: _Playing) -> Address:
        """Ask for a port, saying where we will send from: only that is listened to."""
        host = await api.local()
        leg.sock = sock = bound_socket(host)
        result, mine = leg.result, sock.getsockname()[1]
        about = {"uuid": result.uuid, "call": result.call, "leg": result.leg}
        to = await api.announce(about, leg.leg.media, (host, mine))
        await connect(sock, to)
        really = sock.getsockname()[0]
        if really != host:  # the way to the port is not the way to the HTTP side
            to = await api.announce(about, leg.leg.media, (really, mine))
        return to

    async def _outcome(self, results: list[RtpResult]) -> Outcome:
        if isinstance(self.target, Ports):
            return Outcome(results)
        try:
            return await self._asked(self.target, results)
        except BridgeError as e:
            results[0].error = results[0].error or str(e)
            return Outcome(results)

    async def _asked(self, api: BridgeApi, results: list[RtpResult]) -> Outcome:
        """What the bridge has heard, once it has ended the call; it is made to, in the end."""
        call = results[0].call
        if not any(result.packets_sent for result in results):
            if any(result.to for result in results):
                await api.hang_up(call)  # one leg has a port, and the other has none
            return Outcome(results)
        since = self.clock.now()
        while True:
            heard = await api.call(call)
            passed = self.clock.now() - since
            if heard is not None and heard.get("ended"):
                break
            if passed > (UNKNOWN if heard is None else ENDING):
                await api.hang_up(call)
                break
            await self.clock.sleep_until(self.clock.now() + ASKING)
        if heard is None:
            results[0].error = results[0].error or (
                "the bridge knows nothing of this call: it was busy, or heard no packet from us "
                "(an address is translated in between?); see its log"
            )
            return Outcome(results)
        return Outcome(results, heard, await api.text(call))


@dataclass(slots=True)
class _Playing:
    leg: Leg
    number: int
    result: RtpResult
    sock: socket.socket | None = None

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
