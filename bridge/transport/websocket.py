"""WebSockets for thousands of legs: RFC 6455 by the `websockets` library, without its I/O.

Theory of operation. A connection is a `StreamIngress` on our own TCP transport
(bridge/transport/tcp.py): one epoll for all, read every 5 ms, no task and no queue per message. The
library's sans-IO protocol does handshake, frames, masks, fragments, UTF-8-agnostic text, pings and
the closing handshake; a message costs it 4 µs, where its asyncio connection costs five times that.

First a `Knocked` says who wants what; whoever listens answers with `accept`, `refuse` or `page`,
now or a little later (`HANDSHAKE`). From then on messages go to the `MediaSocket`, and its events
come out. Compression is never agreed to: audio does not shrink, and time does.

Most frames are whole messages. They are unmasked here, without the library (its parser, a generator
that may stop at every byte, takes 5 µs of the 7 that such a message cost); whatever else there is,
control frames, fragments, anything odd, goes through it. Several messages' audio that came in one
read goes on as one frame of audio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask
from websockets.typing import Subprotocol

from bridge.errors import ProtocolError
from bridge.ingress.leg_audio import joined
from bridge.ingress.media_socket import (
    AWAY,
    MAX_UNREAD,
    NEVER,
    NORMAL,
    POLICY,
    MediaSocket,
    SocketError,
    SocketEvent,
)
from bridge.types import Closed

HANDSHAKE = 5.0  # s for the request, and for the answer to it
PING_EVERY, PONG_WITHIN = 15.0, 20.0  # s; a peer on hold sends nothing, but answers pings
MAX_REASON = 120  # bytes of UTF-8 in a close frame (RFC 6455 §5.5: 125 with the code)
LOW_WATER = 64  # bytes below which a wake-up is not worth postponing
OVERHEAD = 64  # bytes of memory that a frame of few bytes costs besides
POST = b"POST "  # of a page: Twilio asks so for TwiML, and the library takes it for no request
MAX_HEAD = 8192  # bytes of such a request

_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    426: "Upgrade Required", 429: "Too Many Requests", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Knocked:
    """Somebody wants a WebSocket, or (`upgrade` false) a page.

    `headers`: names in lower case; those that came several times joined by commas.
    """

    raw_path: str
    headers: Mapping[str, str]
    upgrade: bool


WebSocketEvent: TypeAlias = SocketEvent | Knocked


class WebSocket:
    """One connection. Implements `bridge.transport.connection.StreamIngress`."""

    keeps = True

    __slots__ = (
        "_asked", "_deaf", "_goodbye", "_kind", "_max", "_parts", "_ping_at", "_pong_by",
        "_protocol", "_request", "_rest", "_size", "_subprotocol", "media", "next_at",
    )  # fmt: skip

    def __init__(self, max_message: int, now: float) -> None:
        self._protocol = ServerProtocol(
            max_size=max_message, select_subprotocol=lambda protocol, offered: self._subprotocol
        )
        self._max = max_message
        self._rest = b""  # the beginning of a frame
        self._asked = False  # anything has come
        self._request: Request | None = None
        self._subprotocol: Subprotocol | None = None
        self._parts: list[bytes] = []  # of a message in fragments
        self._kind = Opcode.TEXT
        self._deaf = False  # no more events: it was refused, or is over
        self._goodbye: tuple[int, str] = (NORMAL, "")
        self._size = 0  # bytes of the last message's frame
        self._ping_at = self._pong_by = NEVER
        self.media: MediaSocket | None = None
        self.next_at = now + HANDSHAKE

    # -- the opening -----------------------------------------------------------------------------

    def accept(
        self, media: MediaSocket, now: float, subprotocol: str | None = None
    ) -> Sequence[WebSocketEvent]:
        """Open it for this protocol. An error in the request itself is answered, and is its end."""
        assert self._request is not None
        self._subprotocol = Subprotocol(subprotocol) if subprotocol is not None else None
        response = self._protocol.accept(self._request)
        self._protocol.send_response(response)
        if response.status_code != 101:
            return self._end("protocol")
        self.media = media
        self._ping_at = now + PING_EVERY
        self._plan()
        return ()

    def page(self, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a page instead, and end."""
        data = body.encode()
        fields = Headers({"Content-Type": "text/plain; charset=utf-8", **(headers or {})})
        fields["Content-Length"] = str(len(data))
        fields["Connection"] = "close"
        fields["Cache-Control"] = "no-store"
        reason = _REASONS.get(status, "Refused")
        self._protocol.writes.append(Response(status, reason, fields, data).serialize())
        self._deaf = True
        self.next_at = 0.0

    # -- StreamIngress ---------------------------------------------------------------------------

    @property
    def low_water(self) -> int:
        """Bytes worth a wake-up: those of a block, where messages are all alike."""
        wanted = self.media.until_block if self.media is not None else 1
        if wanted == 1 or self._size < LOW_WATER:
            return 1
        return (wanted - 1) * self._size + self._size // 2 - len(self._rest)

    def receive(self, data: bytes, now: float) -> Sequence[WebSocketEvent]:
        """Bytes as they came. Raises `ProtocolError`."""
        if self.media is None:
            posted = self._posted(data)
            events = self._by_library(data, now) if posted is None else posted
        else:
            events = joined(self._frames(data, now))
            if self._pong_by != NEVER:
                self._pong_by, self._ping_at = NEVER, now + PING_EVERY
            if self._unread():
                self._goodbye = (POLICY, "the client does not read what it is sent")
                self._protocol.writes.clear()
                events += self._end("bridge")
        self._plan()
        return events

    def _posted(self, data: bytes) -> list[WebSocketEvent] | None:
        """Somebody asks for a page by POST; None: this is for the library."""
        head = self._rest + data
        if (self._asked and not self._rest) or not head.startswith(POST):
            self._asked = True
            return None
        self._asked, self._rest = True, head
        if b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
            return []
        self._rest = b""
        return [Knocked(head.split(b" ", 2)[1].decode("latin-1"), {}, False)]

    def _unread(self) -> bool:
        """Does too much wait that the peer causes and does not read? Its pings' pongs, say."""
        writes = self._protocol.writes
        return sum(map(len, writes)) + OVERHEAD * len(writes) > MAX_UNREAD

    def _frames(self, data: bytes, now: float) -> list[WebSocketEvent]:
        """One frame after the other (RFC 6455 §5.2). Raises `ProtocolError`."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        events: list[WebSocketEvent] = []
        try:
            self._read(data, now, events)
        except ProtocolError as e:
            e.before = [*events, *e.before]
            raise
        return events

    def _read(self, data: bytes, now: float, events: list[WebSocketEvent]) -> None:
        """Their events are added to `events`."""
        texts: list[bytes] = []  # in a row
        at, end = 0, len(data)
        while end - at >= 2 and not self._deaf:
            first, size = data[at], data[at + 1]
            length, body = size & 0x7F, at + 6
            if length > 125:
                more = 2 if length == 126 else 8
                if end - at < 2 + more:
                    break
                length = int.from_bytes(data[at + 2 : at + 2 + more], "big")
                body += more
            if length > self._max or not size & 0x80:
                events += self._texts(texts, now)
                if not self._deaf:
                    events += self._by_library(data[at:], now)  # which knows what to answer
                return
            if end - body < length:
                break
            whole = (first == 0x81 or first == 0x82) and not self._parts
            if whole:
                self._size = body + length - at
                message = apply_mask(data[body : body + length], data[body - 4 : body])
            if whole and first == 0x81:
                texts.append(message)
            else:
                events += self._texts(texts, now)
                if self._deaf:
                    return
                if whole:
                    events += self._message(False, message, now)
                else:
                    events += self._by_library(data[at : body + length], now)
            at = body + length
        events += self._texts(texts, now)
        if not self._deaf:
            self._rest = data[at:]

    def _texts(self, texts: list[bytes], now: float) -> Sequence[WebSocketEvent]:
        """Messages in a row; empties the list."""
        if not texts:
            return ()
        media = self.media
        assert media is not None
        try:
            events = media.texts(texts, now)
        except SocketError as e:
            self._goodbye = (e.code, str(e))
            raise
        texts.clear()
        self._say()
        return self._unless_left(events)

    def _by_library(self, data: bytes, now: float) -> list[WebSocketEvent]:
        protocol = self._protocol
        protocol.receive_data(data)
        events: list[WebSocketEvent] = []
        for event in protocol.events_received():
            if self._deaf:
                break
            if type(event) is Frame:
                events.extend(self._frame(event, now))
            else:
                assert isinstance(event, Request)
                events.append(self._knock(event))
        if protocol.parser_exc is not None and not self._deaf:  # it has sent its close frame
            raise ProtocolError(str(protocol.parser_exc))
        if protocol.handshake_exc is not None and not self._deaf:
            if not any(protocol.writes):  # it answers some errors itself
                self.page(400, "this is no request that is understood here\n")
            raise ProtocolError("this is no HTTP request")
        return events

    def _knock(self, request: Request) -> Knocked:
        self._request = request
        headers: dict[str, str] = {}
        for name, value in request.headers.raw_items():
            name = name.lower()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        upgrade = headers.get("upgrade", "").lower() == "websocket"
        return Knocked(request.path, headers, upgrade)

    def _frame(self, frame: Frame, now: float) -> Sequence[WebSocketEvent]:
        media = self.media
        if media is None:
            return ()
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if frame.fin:
                return self._message(opcode is Opcode.TEXT, bytes(frame.data), now)
            self._kind, self._parts = opcode, [bytes(frame.data)]
        elif opcode is Opcode.CONT:
            self._parts.append(bytes(frame.data))
            if frame.fin:
                whole, self._parts = b"".join(self._parts), []
                return self._message(self._kind is Opcode.TEXT, whole, now)
        elif opcode is Opcode.CLOSE:
            code = self._protocol.close_rcvd.code if self._protocol.close_rcvd else NORMAL
            return self._end("hangup" if code in (NORMAL, AWAY, 1005) else "eof")
        return ()

    def _message(self, is_text: bool, data: bytes, now: float) -> Sequence[WebSocketEvent]:
        media = self.media
        assert media is not None
        try:
            events = media.text(data, now) if is_text else media.binary(data, now)
        except SocketError as e:
            self._goodbye = (e.code, str(e))
            raise
        self._say()
        return self._unless_left(events)

    def _unless_left(self, events: Sequence[SocketEvent]) -> Sequence[WebSocketEvent]:
        """Events, and the end if the protocol wants it."""
        if self.media is not None and self.media.goodbye is not None:
            return [*events, *self._end("bridge")]
        return events

    def _end(self, reason: str) -> Sequence[WebSocketEvent]:
        """Nothing more comes of it."""
        if self._deaf:
            return ()
        self._deaf = True
        legs = self.media.eof(reason) if self.media is not None else ()
        self.next_at = 0.0
        return [*legs, Closed(reason)]

    def expire(self, now: float) -> Sequence[WebSocketEvent]:
        """Let time pass: the handshake, pings, and the protocol's own."""
        media = self.media
        if self._deaf:
            self.next_at = NEVER
            return ()
        if media is None:
            if now < self.next_at:
                return ()
            return self._end("timeout")
        if now >= self._pong_by:
            self._goodbye = (AWAY, "no answer to pings")
            return self._end("timeout")
        if now >= self._ping_at:
            self._protocol.send_ping(b"")
            self._ping_at, self._pong_by = NEVER, now + PONG_WITHIN
        events: Sequence[WebSocketEvent] = ()
        if now >= media.next_at:
            try:
                events = self._unless_left(media.expire(now))
            except SocketError as e:
                self._goodbye = (e.code, str(e))
                events = self._end("timeout" if e.code == POLICY else "protocol")
        self._plan()
        return events

    def _plan(self) -> None:
        """When to be called next; at once while something waits to be sent."""
        if self._protocol.writes or self._deaf:
            self.next_at = 0.0
        elif self.media is not None:
            self.next_at = min(self.media.next_at, self._ping_at, self._pong_by)

    def data_to_send(self) -> Sequence[bytes]:
        """Frames to write."""
        self._say()
        out = [data for data in self._protocol.data_to_send() if data]  # b"" is its half-close
        if not self._deaf:
            self._plan()
        return out

    def _say(self) -> None:
        """What the protocol wants to say, as frames."""
        protocol = self._protocol
        if self.media is None or protocol.state is not State.OPEN:
            return
        for message in self.media.messages():
            if isinstance(message, str):
                protocol.send_text(message.encode("utf-8", "replace"))
            else:
                protocol.send_binary(message)

    def eof(self, reason: str) -> Sequence[WebSocketEvent]:
        """The stream is over."""
        return self._end(reason)

    def hang_up(self) -> None:
        """Say goodbye: with a close frame, or with 503 to who has not been let in."""
        protocol = self._protocol
        if protocol.state is State.OPEN:
            self._say()
            wish = self.media.goodbye if self.media is not None else None
            code, reason = wish or self._goodbye
            short = reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore")
            protocol.send_close(code, short)
        elif protocol.state is State.CONNECTING and not self._deaf:
            self.page(503, "no room, or not ready; try again\n", {"Retry-After": "5"})
        self._deaf = True

    def parting(self, data: bytes) -> bool:
        """What comes after our goodbye. True when the closing handshake is over."""
        protocol = self._protocol
        if data:
            protocol.receive_data(self._rest + data)
            self._rest = b""
            protocol.events_received()
        if self.media is None:  # it has had its page; closing before its request would reset it
            return bool(data) or self._asked
        return protocol.close_rcvd is not None or protocol.parser_exc is not None
