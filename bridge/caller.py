"""The caller's side of one leg: plays samples into a bridge over AudioSocket, as Asterisk would.

What it does like Asterisk (res_audiosocket.c, app_audiosocket.c): it connects, says its UUID
first, sends a frame every 20 ms in one write, reads all the time, takes only hang-up and signed
linear back, ends the call on anything else, and hangs up by closing its side of the connection.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias
from uuid import UUID, uuid4

from bridge.config import Address
from bridge.errors import BridgeError
from bridge.script import DTMF, HANGUP, KINDS, NAME, RATES, Script, make_script, message
from bridge.types import Samples

CONNECT_TIMEOUT = 5.0
STALL_TIMEOUT = 10.0  # a bridge that reads nothing for so long is not reading
HANGUP_TIMEOUT = 2.0  # for the bridge to close its side after we closed ours
REFUSAL_WINDOW = 3.0  # a hang-up this early is a refusal; admission may wait for join_wait

REFUSAL = "the bridge refused the call: busy, draining, or UUID not announced"

End: TypeAlias = Literal["us", "peer", "refused", "error"]


class Clock(Protocol):
    """Where the pace comes from; tests give one that does not wait."""

    def now(self) -> float:
        """Seconds, monotonic."""

    async def sleep_until(self, when: float) -> None:
        """Return at `when` or later; at once when it has passed. Always yields to the loop."""


class LoopClock:
    """The event loop's clock."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.now()))


@dataclass
class LegResult:
    """What became of one leg.

    `seconds` is audio sent. `bytes_received` is all that came from the bridge, `silence_received`
    counts its audio frames that held only zeros. `ended_by`: ``us`` when the recording was played
    to its end, ``peer`` when the bridge hung up or went away (then `error` says so), ``refused``
    when it hung up within `REFUSAL_WINDOW` without having said anything (its keep-alive silence
    begins before it decides), ``error`` for anything else. `error` is empty or a sentence.
    """

    uuid: str
    frames_sent: int = 0
    seconds: float = 0.0
    bytes_received: int = 0
    silence_received: int = 0
    ended_by: End = "us"
    error: str = ""

    @property
    def failed(self) -> bool:
        """A bridge may hang up on a caller; refusing one or going away is a failure."""
        return self.ended_by in ("refused", "error") or bool(self.error)


class _Line(asyncio.Protocol):
    """One connection: reads and counts all that comes, and says when it is over.

    `over` is done with the reason when nothing more should be sent.
    """

    def __init__(self, result: LegResult) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[tuple[End, str]] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.heard_sound = False
        self.result = result
        self.hung_up = False  # by us
        self._buffer = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self.result.bytes_received += len(data)
        self._buffer += data
        while len(self._buffer) >= 3 and not self.over.done():
            kind, size = struct.unpack_from(">BH", self._buffer)
            if len(self._buffer) < 3 + size:
                return
            self._message(kind, bytes(self._buffer[3 : 3 + size]))
            del self._buffer[: 3 + size]
        if self.over.done():
            self._buffer.clear()

    def _message(self, kind: int, payload: bytes) -> None:
        if kind == HANGUP:
            self._end("peer", "")
        elif kind not in KINDS.values():
            self._end("error", f"the bridge sent kind 0x{kind:02x}, which Asterisk does not take")
        elif not payload:
            self._end("error", "the bridge sent audio of no length, which Asterisk does not take")
        else:
            silent = payload.count(0) == len(payload)
            self.result.silence_received += silent
            self.heard_sound |= not silent

    def eof_received(self) -> bool:
        self._end("peer", "the bridge closed the connection without hanging up; see its log")
        return False  # let the transport close

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("peer", "the bridge went away without hanging up; see its log")
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def _end(self, by: End, error: str) -> None:
        if not self.over.done():
            self.over.set_result((by, error))
            self._writable.set()  # whoever waits to write should see that it is over

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def writable(self) -> None:
        """Wait until the bridge has read enough. Raises TimeoutError when it does not read."""
        if not self._writable.is_set():
            async with asyncio.timeout(STALL_TIMEOUT):
                await self._writable.wait()


async def play_audiosocket(
    samples: Samples,
    rate: int,
    host: str,
    port: int,
    *,
    uuid: str | None = None,
    realtime: bool = True,
    speed: float = 1.0,
    digits: Sequence[tuple[float, str]] = (),
    on_sent: Callable[[float], None] | None = None,
    linger: float = 0.0,
    clock: Clock | None = None,
) -> LegResult:
    """Play one leg: int16[n] at `rate` Hz. What goes wrong on the line is in the result.

    `realtime=False` sends as fast as the bridge reads, otherwise `speed` is the pace. `digits`
    are (seconds, digit). `on_sent` is told the seconds of audio sent so far. Raises `BridgeError`
    only for arguments that make no call.
    """
    script = make_script(samples, rate, digits, linger)
    pace = pace_of(realtime, speed)
    leg = checked_uuid(uuid)
    return await play(script, Address(host, port), leg, pace, on_sent, clock or LoopClock())


def pace_of(realtime: bool, speed: float) -> float:
    """Seconds of waiting per second of audio."""
    if not 0 < speed <= 1000:
        raise BridgeError(f"speed: expected more than 0 and at most 1000, not {speed}")
    return 1 / speed if realtime else 0.0


def checked_uuid(text: str | None) -> str:
    """Lower case; a new one for None. Only the form with hyphens, like Asterisk's uuid_parse."""
    try:
        leg = str(UUID(text) if text is not None else uuid4())
        if text is not None and leg != text.lower():
            raise ValueError
    except ValueError:
        raise BridgeError(f"uuid: expected 36 characters as uuidgen prints, not {text!r}") from None
    return leg


async def play(
    script: Script,
    to: Address,
    leg: str,
    pace: float,
    on_sent: Callable[[float], None] | None,
    clock: Clock,
) -> LegResult:
    """As `play_audiosocket`, of a script made before. `pace`: seconds waited per second."""
    result = LegResult(leg)
    line = _Line(result)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            transport, _ = await loop.create_connection(lambda: line, to.host, to.port)
    except OSError as e:  # TimeoutError is one
        result.ended_by = "error"
        result.error = f"cannot connect to {to}: {_reason(e)}; is the bridge running there?"
        return result
    transport.set_write_buffer_limits(high=0)  # so that "writable" means "all is sent"
    try:
        transport.write(message(NAME, UUID(leg).bytes))
        start = clock.now()
        await _send(script, transport, line, pace, on_sent, clock)
        await _hang_up(transport, line)
        _judge(line, early=clock.now() - start < REFUSAL_WINDOW)
    except TimeoutError:
        result.ended_by = "error"
        result.error = f"the bridge has read nothing for {STALL_TIMEOUT:.0f} s; it hangs"
    finally:
        transport.abort()
        await line.closed
    return result


def _reason(e: OSError) -> str:
    """asyncio's own text repeats the address; a resolver's numbers are not errno's."""
    if e.errno is not None and e.errno > 0:
        return os.strerror(e.errno)
    return e.strerror or str(e) or f"no answer in {CONNECT_TIMEOUT:.0f} s"


async def _send(
    script: Script,
    transport: asyncio.Transport,
    line: _Line,
    pace: float,
    on_sent: Callable[[float], None] | None,
    clock: Clock,
) -> None:
    """Send the script, every message at its own time from the start, so that nothing drifts."""
    start, result = clock.now(), line.result
    samples = 0
    for due, each in script:
        await clock.sleep_until(start + due * pace)
        await line.writable()
        if line.over.done():
            return
        transport.write(each)
        if each[0] != DTMF:
            result.frames_sent += 1
            samples += (len(each) - 3) // 2
            result.seconds = samples / RATES[each[0]]
            if on_sent is not None:
                on_sent(result.seconds)
    await clock.sleep_until(start + result.seconds * pace)
    await line.writable()


async def _hang_up(transport: asyncio.Transport, line: _Line) -> None:
    """Close our side and let the bridge close its own.

    Closing with its silence unread would reset the connection, and could cost it the last audio.
    """
    line.hung_up = not line.over.done()
    if line.hung_up:
        transport.write_eof()
        await asyncio.wait({line.closed}, timeout=HANGUP_TIMEOUT)


def _judge(line: _Line, *, early: bool) -> None:
    """Write down who ended the leg. A refusal may arrive after we have sent everything."""
    result = line.result
    by, error = line.over.result() if line.over.done() else ("us", "")
    if by == "peer" and not error and early and not line.heard_sound:
        result.ended_by = "refused"
        result.error = REFUSAL
    elif not line.hung_up:
        result.ended_by, result.error = by, error
