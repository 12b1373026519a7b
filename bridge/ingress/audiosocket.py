"""Asterisk AudioSocket, the server's side, without I/O.

Theory of operation. One TCP connection is one leg. Messages are ``kind(1) length(2, big-endian)
payload`` (asterisk res/res_audiosocket.c); the first must be the UUID. Messages are put together
from any cuts, and the audio of one `receive` call becomes one `Audio` event.

Frames carry no time stamps: the leg's clock is that of their arrival (bridge/ingress/arrival.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bridge.audio import g711
from bridge.errors import ProtocolError
from bridge.ingress.arrival import QUIET, Arrival
from bridge.types import (
    Audio,
    Closed,
    Digit,
    Frame,
    IngressEvent,
    Opened,
    Samples,
    Warned,
)

HANGUP, UUID, SILENCE, DTMF, ERROR = 0x00, 0x01, 0x02, 0x03, 0xFF
SLIN = 0x10
RATES = {
    0x10: 8000,
    0x11: 12000,
    0x12: 16000,
    0x13: 24000,
    0x14: 32000,
    0x15: 44100,
    0x16: 48000,
    0x17: 96000,
    0x18: 192000,
}
DIGITS = frozenset(b"0123456789*#ABCD")
ERRORS = {1: "the calling party hung up", 2: "frame forwarding failed", 4: "out of memory"}

HEADER = 3
FRAME_8K = 323  # header and 20 ms at 8 kHz
_FRAMES_8K = np.dtype([("header", "S3"), ("samples", "<i2", 160)])
_MAX_FAST = 64  # frames that the fast path takes at once
_FAST_KINDS, _FAST_HIGH, _FAST_LOW = (byte * _MAX_FAST for byte in (b"\x10", b"\x01", b"\x40"))

HANGUP_MESSAGE = b"\x00\x00\x00"
SILENCE_MESSAGE = b"\x10\x01\x40" + bytes(320)  # header and payload in one write

MAX_STRANGE = 10  # unknown kinds in a row that make the stream garbage
NO_SAMPLES: Samples = np.zeros(0, np.int16)


@dataclass(frozen=True, slots=True)
class Rules:
    """What an AudioSocket listener asks of its peers. Times in seconds, sizes in bytes."""

    rate: int | None = None  # what kind 0x10 really carries: Asterisk < 22.7 labels all rates so
    keepalive: Literal["continuous", "1s", "off"] = "continuous"
    uuid_deadline: float = 2.0
    max_frame: int = 8192


class AudioSocket:
    """One peer's stream. Implements `bridge.interfaces.Ingress`.

    `next_at` is the deadline as a plain attribute, because it is read for every leg every 20 ms.
    """

    keeps = False  # silence that is late helps nobody

    __slots__ = (
        "_arrival", "_buffer", "_jury", "_mulaw", "_out", "_said", "_silence_at", "_state",
        "_strange", "frames", "message_size", "next_at", "rules", "uuid",
    )  # fmt: skip

    def __init__(self, rules: Rules, now: float) -> None:
        self.rules = rules
        self.uuid = ""
        self.frames = 0  # audio messages
        self.message_size = 0  # bytes of the last audio message, header included; 0: none yet
        self.next_at = now + rules.uuid_deadline
        self._state: Literal["new", "open", "closed"] = "new"
        self._buffer = b""
        self._out: list[bytes] = []
        self._arrival = Arrival(now, rules.rate or 8000)
        self._silence_at = float("inf")
        self._strange = 0
        self._said: set[str] = set()
        self._jury: _MuLawJury | None = _MuLawJury()
        self._mulaw = False

    # -- in ------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> Sequence[IngressEvent]:
        """Bytes as they came. Raises `ProtocolError`; after that only `hang_up` makes sense."""
        n, rest = divmod(len(data), FRAME_8K)
        if (
            rest == 0
            and self._state == "open"
            and not self._buffer
            and 0 < n <= _MAX_FAST
            and data[0::FRAME_8K] == _FAST_KINDS[:n]
            and data[1::FRAME_8K] == _FAST_HIGH[:n]
            and data[2::FRAME_8K] == _FAST_LOW[:n]
        ):
            self.frames += n
            self.message_size = FRAME_8K
            self._strange = 0
            self._jury = None
            samples = np.frombuffer(data, _FRAMES_8K)["samples"].ravel()
            return (self._heard(samples, self.rules.rate or 8000, now, n),)
        return self._receive_any(data, now)

    def _receive_any(self, data: bytes, now: float) -> Sequence[IngressEvent]:
        events: list[IngressEvent] = []
        buffer = self._buffer + data
        at = 0
        pending: list[Samples] = []  # audio of one rate not yet made an event
        pending_rate = self._arrival.rate
        while self._state != "closed" and len(buffer) > at:
            if self._state == "new" and buffer[at] not in (HANGUP, UUID, ERROR):
                raise ProtocolError(
                    f"the first message must be the UUID (kind 0x01), not kind 0x{buffer[at]:02x}"
                )
            if len(buffer) - at < HEADER:
                break
            kind, length = buffer[at], buffer[at + 1] << 8 | buffer[at + 2]
            if length > self.rules.max_frame:
                raise ProtocolError(
                    f"a message of {length} bytes is over max_frame = {self.rules.max_frame}"
                )
            if len(buffer) - at < HEADER + length:
                break
            payload = buffer[at + HEADER : at + HEADER + length]
            at += HEADER + length
            if kind in RATES:
                decoded = self._decode(kind, payload, now, events)
                if decoded is None:
                    continue
                samples, rate = decoded
                if pending and rate != pending_rate:
                    events.append(self._heard(_joined(pending), pending_rate, now, len(pending)))
                    pending = []
                pending.append(samples)
                pending_rate = rate
            else:
                if pending:  # order of audio and digits is kept
                    events.append(self._heard(_joined(pending), pending_rate, now, len(pending)))
                    pending = []
                self._control(kind, payload, now, events)
        if pending:
            events.append(self._heard(_joined(pending), pending_rate, now, len(pending)))
        self._buffer = b"" if self._state == "closed" else buffer[at:]
        return events

    def _control(self, kind: int, payload: bytes, now: float, events: list[IngressEvent]) -> None:
        if kind not in (HANGUP, UUID, SILENCE, DTMF, ERROR):
            self._strange += 1
            if self._strange >= MAX_STRANGE:
                raise ProtocolError(f"{MAX_STRANGE} messages of unknown kinds in a row")
            self._warn("unknown_kind", f"message kind 0x{kind:02x} is unknown, skipped", events)
            return
        self._strange = 0
        match kind:
            case 0x01:
                self._identified(payload, now, events)
            case 0x00:
                self._state = "closed"
                events.append(Closed("hangup"))
            case 0x03:
                if len(payload) != 1 or payload[0] not in DIGITS:
                    self._warn("bad_digit", "a DTMF message without one of 0-9*#A-D", events)
                else:
                    events.append(Digit(payload.decode("ascii")))
            case 0xFF:  # informational; the end of the stream is said by its end
                code = payload[0] if payload else 0
                text = ERRORS.get(code, "unknown code")
                self._warn("peer_error", f"the peer reports error 0x{code:02x}: {text}", events)

    def _identified(self, payload: bytes, now: float, events: list[IngressEvent]) -> None:
        if len(payload) != 16:
            raise ProtocolError(f"a UUID message has 16 bytes, not {len(payload)}")
        said = str(uuid.UUID(bytes=payload))
        if self._state == "new":
            self._state = "open"
            self.uuid = said
            self._arrival.restart(now)
            if self.rules.keepalive != "off":
                self._silence_at = now
            events.append(Opened(said))
            self.next_at = now
            self._keepalive(now)
        elif said != self.uuid:
            raise ProtocolError("a second UUID on one connection")

    def _decode(
        self, kind: int, payload: bytes, now: float, events: list[IngressEvent]
    ) -> tuple[Samples, int] | None:
        """Samples and their rate, or None while the jury is out."""
        self.frames += 1
        self.message_size = HEADER + len(payload)
        self._strange = 0
        if kind == SLIN and self.rules.rate is None:
            if self._jury is not None:
                verdict = self._jury.hear(payload, now)
                if verdict == "unsure":
                    return None
                payload = b"".join(self._jury.held)
                self._jury = None
                self._mulaw = verdict == "mulaw"
            if self._mulaw:
                text = "frames marked as signed linear are mu-law; give the dial string c(slin)"
                self._warn("mulaw_mislabelled", text, events)
                return g711.decode_ulaw(payload), 8000
        if len(payload) % 2:  # whole samples only; Asterisk itself lets odd lengths pass
            self._warn("odd_length", f"an audio message of {len(payload)} bytes", events)
        rate = self.rules.rate if kind == SLIN and self.rules.rate else RATES[kind]
        return np.frombuffer(payload, "<i2", len(payload) // 2), rate

    def _warn(self, kind: str, text: str, events: list[IngressEvent]) -> None:
        if kind not in self._said:  # once per call
            self._said.add(kind)
            events.append(Warned(kind, text))

    # -- the clock -----------------------------------------------------------------------------

    def _heard(self, samples: Samples, rate: int, now: float, packets: int) -> Audio:
        start = self._arrival.place(len(samples), rate, now)
        return Audio(Frame(samples, rate, start, False, packets))

    @property
    def seconds(self) -> float:
        """How far the leg's clock has run."""
        return self._arrival.seconds

    @property
    def origin(self) -> float:
        """When the first sample came."""
        return self._arrival.origin

    @property
    def low_water(self) -> int:
        """Bytes that are worth a wake-up: up to the end of the present 80 ms, or 1."""
        size = self.message_size
        block = self._arrival.rate * 2 // 25
        if not HEADER + 1 < size <= HEADER + 2 * block or self._state != "open":
            return 1
        frame = (size - HEADER) // 2  # samples
        return -((self._arrival.clock % block - block) // frame) * size

    # -- time ----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `expire` wants to be called."""
        return None if self._state == "closed" else self.next_at

    def expire(self, now: float) -> Sequence[IngressEvent]:
        """Let time pass: the UUID's deadline, silence to send, silence to fill in."""
        if self._state == "closed":
            return ()
        if self._state == "new":
            if now < self.next_at:
                return ()
            self._state = "closed"
            return (Closed("timeout"),)
        self._keepalive(now)
        if not self._arrival.fill(now):
            return ()
        return (Audio(Frame(NO_SAMPLES, self._arrival.rate, self._arrival.clock)),)

    def _keepalive(self, now: float) -> None:
        if now + 0.01 >= self._silence_at:  # ticks of 20 ms meet frames of 20 ms
            self._out.append(SILENCE_MESSAGE)
            period = 0.02 if self.rules.keepalive == "continuous" else 1.0
            # After a stall, one frame and on: a burst of silence helps nobody.
            late = now - self._silence_at > period
            self._silence_at = (now if late else self._silence_at) + period
        self.next_at = min(self._silence_at, now + QUIET)

    # -- out -----------------------------------------------------------------------------------

    def eof(self, reason: str) -> Sequence[IngressEvent]:
        """The connection is over: `reason` is ``eof`` or ``reset``; both are a hang-up."""
        if self._state == "closed":
            return ()
        self._state = "closed"
        return (Closed(reason),)

    def hang_up(self) -> None:
        """End the call from our side. What still comes in is read and ignored."""
        self._state = "closed"
        self._out.append(HANGUP_MESSAGE)

    def parting(self, data: bytes) -> bool:
        """Asterisk closes, after it has read our hang-up."""
        return False

    def data_to_send(self) -> Sequence[bytes]:
        """Messages to write, each in one write."""
        if not self._out:
            return ()
        out, self._out = self._out, []
        return out


def _joined(parts: list[Samples]) -> Samples:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _MuLawJury:
    """Is 0x10 with 160 bytes 10 ms of linear PCM, or 20 ms of mu-law with the wrong label?

    Asterisk's channel driver sends any format that is not slin raw under kind 0x10 (seen on
    22.10). Frames are held, at most a second of them, until either their look or their pace tells:
    speech is smooth in its own coding and noise in the other; 160 bytes every 20 ms are mu-law.
    """

    FEW = 3  # frames that may tell by their look
    ENOUGH = 8  # frames for a verdict on pace
    MOST = 50  # frames held

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self._first = 0.0

    def hear(self, payload: bytes, now: float) -> Literal["mulaw", "slin", "unsure"]:
        self.held.append(payload)
        if len(payload) != 160:
            return "slin"
        if len(self.held) == 1:
            self._first = now
        data = b"".join(self.held[-self.ENOUGH :])
        linear = _roughness(np.frombuffer(data, "<i2", len(data) // 2))
        mulaw = _roughness(g711.decode_ulaw(data))
        if len(self.held) >= self.FEW and mulaw < 0.6:
            return "mulaw"
        if linear < 0.6 and mulaw > 1.2:
            return "slin"
        if len(self.held) < self.ENOUGH:
            return "unsure"
        pace = (now - self._first) / (len(self.held) - 1)
        if pace > 0.015:
            return "mulaw"
        # A burst of silence says nothing yet; at 10 ms a frame it is linear.
        return "slin" if pace > 0.005 or len(self.held) >= self.MOST else "unsure"


def _roughness(samples: Samples) -> float:
    """Energy of the first difference over energy: about 2 for noise, well under 1 for speech.

    Low and high bytes of linear PCM, taken for two mu-law samples, are noise; so is little-endian
    PCM made of two mu-law bytes, mostly. 1.0, telling nothing, for what is nearly silent.
    """
    x = samples.astype(np.float32)
    x -= x.mean()
    energy = float(x @ x)
    if energy < 100.0**2 * len(x):
        return 1.0
    d = np.diff(x)
    return float(d @ d) / energy
