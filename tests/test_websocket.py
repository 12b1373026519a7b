"""The WebSocket transport: opening, messages, pings, closing; and TLS around it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from bridge.errors import ProtocolError
from bridge.ingress.media_socket import MediaBase, Opening, SocketError, SocketEvent, SocketRules
from bridge.tls import Certificate
from bridge.transport.tls import Tls
from bridge.transport.websocket import PING_EVERY, PONG_WITHIN, Knocked, WebSocket
from bridge.types import Closed, Warned
from tests.sockets import PATIENCE, bridge, said, settle, speech
from tests.test_twilio import messages, start
from tests.waiting import until


class Echo(MediaBase):
    """Says back what it is told."""

    def __init__(self) -> None:
        super().__init__(Opening(), SocketRules(), 0.0)
        self.heard_of: list[bytes | str] = []
        self._started = True
        self.next_at = float("inf")

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        if message == b"leave":
            self.leave(1000, "as you wish")
        elif message == b"break":
            raise SocketError(1008, "é" * 100)
        elif message == b"event":
            return [Warned("echo", "event")]
        self.heard_of.append(message)
        self.say(message.decode("utf-8", "replace"))
        return ()

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        self.heard_of.append(message)
        self.say(message)
        return ()


class Pair:
    """Our end and a client of the library's, wired by hand."""

    def __init__(self, max_message: int = 65536) -> None:
        self.ours = WebSocket(max_message, 0.0)
        self.theirs = ClientProtocol(parse_uri("ws://here/path?a=b"))
        self.echo = Echo()

    def to_us(self, now: float = 1.0) -> list[object]:
        return list(self.ours.receive(b"".join(self.theirs.data_to_send()), now))

    def to_them(self) -> list[object]:
        for data in self.ours.data_to_send():
            self.theirs.receive_data(data)
        return list(self.theirs.events_received())

    def goodbye(self) -> tuple[int, str]:
        """Ours, as they read it."""
        self.ours.hang_up()
        self.to_them()
        close = self.theirs.close_rcvd
        assert close is not None
        return close.code, close.reason

    def open(self) -> Pair:
        self.theirs.send_request(self.theirs.connect())
        (knock,) = self.to_us()
        assert isinstance(knock, Knocked) and knock.raw_path == "/path?a=b" and knock.upgrade
        assert self.ours.accept(self.echo, 1.0) == ()
        assert len(self.to_them()) == 1
        return self


def test_messages_come_whole_however_they_were_cut() -> None:
    pair = Pair().open()
    pair.theirs.send_text(b"one", fin=False)
    pair.theirs.send_continuation(b" and ", fin=False)
    pair.theirs.send_ping(b"x")
    pair.theirs.send_continuation(b"two", fin=True)
    pair.theirs.send_binary(b"\x00\xff")
    data = b"".join(pair.theirs.data_to_send())
    for i in range(len(data)):
        assert pair.ours.receive(data[i : i + 1], 1.0) == []
    assert pair.echo.heard_of == [b"one and two", b"\x00\xff"]
    answers = [event for event in pair.to_them() if isinstance(event, Frame)]
    assert [a.opcode for a in answers] == [Opcode.PONG, Opcode.TEXT, Opcode.BINARY]


def test_a_message_that_is_too_long_costs_the_connection() -> None:
    pair = Pair(max_message=1000).open()
    pair.theirs.send_binary(bytes(1001))
    with pytest.raises(ProtocolError):
        pair.to_us()
    assert pair.goodbye()[0] == 1009


@pytest.mark.parametrize("garbage", [b"\x01\x00\x10" * 10, b"GET / HTTP/1.1\r\nbad\r\n\r\n"])
def test_what_is_no_http_costs_the_connection(garbage: bytes) -> None:
    ours = WebSocket(65536, 0.0)
    with pytest.raises(ProtocolError, match="no HTTP request"):
        ours.receive(garbage + b"\r\n\r\n", 1.0)


def test_an_error_of_the_protocol_is_its_close_code_and_sentence() -> None:
    pair = Pair().open()
    pair.theirs.send_text(b"break")
    with pytest.raises(SocketError):
        pair.to_us()
    assert pair.goodbye() == (1008, "é" * 60)
    assert not pair.ours.parting(b"")
    assert pair.ours.parting(b"".join(pair.theirs.data_to_send()))


def test_what_was_right_before_the_error_is_told() -> None:
    pair = Pair().open()
    for text in (b"event", b"event", b"break", b"event"):
        pair.theirs.send_text(text)
    with pytest.raises(SocketError) as e:
        pair.to_us()
    assert e.value.before == [Warned("echo", "event")] * 2
    pair = Pair().open()
    pair.theirs.send_text(b"event")
    pair.theirs.send_binary(b"")
    pair.theirs.send_text(b"event")
    data = b"".join(pair.theirs.data_to_send()) + b"\xff\xff"
    with pytest.raises(ProtocolError) as raised:
        pair.ours.receive(data + bytes(20), 1.0)
    assert raised.value.before == [Warned("echo", "event")] * 2


async def test_audio_before_nonsense_is_heard() -> None:
    async with bridge() as b:
        async with connect(f"{b.url}/twilio") as ws:
            await ws.send(json.dumps(start(["inbound"])))
            await until(lambda: b.server.recogniser.used == 1, PATIENCE)
            client = ClientProtocol(parse_uri("ws://here/"))
            client.state = State.OPEN
            for message in [*messages(speech([7, 77])), "nonsense"]:
                client.send_text(message.encode())
            ws.transport.write(b"".join(client.data_to_send()))
            await b.over()
        assert b.sink.words() == said([7, 77])


def test_a_protocol_that_leaves_has_said_everything_first() -> None:
    pair = Pair().open()
    pair.theirs.send_text(b"leave")
    assert pair.to_us() == [Closed("bridge")]
    assert pair.goodbye() == (1000, "as you wish")


def test_a_peer_that_closes_is_answered() -> None:
    pair = Pair().open()
    pair.theirs.send_close(1001)
    assert pair.to_us() == [Closed("hangup")]
    assert pair.goodbye()[0] == 1001
    assert pair.ours.parting(b"")


def test_pings_survive_silence_and_end_whoever_does_not_answer() -> None:
    pair = Pair().open()
    now = 1.0 + PING_EVERY
    assert pair.ours.expire(now) == ()
    pair.to_them()  # the library answers pings
    assert pair.to_us(now + 1) == []
    now += 1 + PING_EVERY
    pair.ours.expire(now)
    pair.ours.data_to_send()
    assert pair.ours.next_at == now + PONG_WITHIN
    assert pair.ours.expire(now + PONG_WITHIN) == [Closed("timeout")]


def test_who_asks_for_nothing_has_a_deadline() -> None:
    ours = WebSocket(65536, 0.0)
    assert ours.expire(4.9) == ()
    assert ours.expire(5.0) == [Closed("timeout")]


def test_equal_messages_wake_us_once_a_block() -> None:
    pair = Pair().open()
    assert pair.ours.low_water == 1
    pair.echo.until_block = 4
    pair.theirs.send_text(b"x" * 200)
    pair.to_us()
    assert 3 * 208 < pair.ours.low_water < 4 * 208


def test_a_peer_that_does_not_read_is_told_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()
    for _ in range(3):
        echo.say("x" * (1 << 19))
    assert echo.goodbye == (1008, "the client does not read what it is sent")
    assert echo.messages() == ()


def test_pings_whose_pongs_are_not_read_end_the_connection() -> None:
    pair = Pair().open()
    seen: list[object] = []
    for _ in range(200):
        for _ in range(100):
            pair.theirs.send_ping(b"x" * 100)
        seen += pair.to_us()  # and nothing is ever sent
        if seen:
            break
    assert seen == [Closed("bridge")]
    assert pair.goodbye() == (1008, "the client does not read what it is sent")


def test_a_cut_length_is_waited_for() -> None:
    """A length of 64 bits of which the first two have come is not too long yet."""
    pair = Pair(max_message=1024).open()
    assert pair.ours.receive(b"\x82\xff\x00", 1.0) == []
    pair.ours.receive(bytes(6) + b"\x02" + bytes(4) + b"ab", 1.0)
    assert pair.echo.heard_of == [b"ab"]
    assert pair.ours.receive(b"\x82\xff\x01" + bytes(6), 1.0) == []
    with pytest.raises(ProtocolError, match="exceeds"):
        pair.ours.receive(bytes(1), 1.0)


@given(st.data())
def test_messages_are_those_of_the_library_alone(data: st.DataObject) -> None:
    """Valid frames and odd ones, cut anywhere: the same messages, the same close code."""
    parts = data.draw(st.lists(frames(), max_size=8))
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pair, other = Pair(max_message=300).open(), ServerProtocol(max_size=300)
    other.state = State.OPEN
    other.parser = Protocol.parse(other)
    next(other.parser)
    theirs: list[bytes | str] = []
    other.receive_data(stream)
    whole: list[bytes] = []
    for event in other.events_received():
        if isinstance(event, Frame) and event.opcode not in (
            Opcode.PING,
            Opcode.PONG,
            Opcode.CLOSE,
        ):
            whole.append(bytes(event.data))
            if event.fin:
                theirs.append(b"".join(whole))
                whole.clear()
    over = False
    for begin, end in pairwise([0, *cuts, len(stream)]):
        if not over:
            try:
                over = bool(pair.ours.receive(stream[begin:end], 1.0))
            except ProtocolError:
                over = True
    assert pair.echo.heard_of == theirs
    if over or other.close_sent is not None:
        code = pair.goodbye()[0]
        assert other.close_sent is not None and code == other.close_sent.code


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame of a client; complete, whatever is wrong with it."""
    first = draw(
        st.sampled_from([0x81, 0x82, 0x82, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88])
        | st.integers(0, 255)
    )
    size = draw(st.sampled_from([0, 1, 2, 20, 125, 126, 127, 300, 301]))
    if first & 0x0F == 8:
        body = draw(st.sampled_from([b"", b"\x03", b"\x03\xe8", b"\x03\xe9bye", b"\x03\xed"]))
    else:
        body = bytes(draw(st.integers(0, 255)) for _ in range(min(size, 2))) + b"x" * (size - 2)
    forms = [b"%c" % (0x80 | len(body))] if len(body) < 126 else []
    forms += [b"\xfe" + len(body).to_bytes(2, "big"), b"\xff" + len(body).to_bytes(8, "big")]
    mask = draw(st.binary(min_size=4, max_size=4))
    masked = bytes(b ^ mask[i % 4] for i, b in enumerate(body))
    if draw(st.integers(0, 15)) == 0 and len(body) < 126:
        return bytes([first, len(body)]) + body  # nobody masked it
    return bytes([first]) + draw(st.sampled_from(forms)) + mask + masked


# -- on real sockets -------------------------------------------------------------------------------


async def test_a_page_is_no_websocket() -> None:
    async with bridge(
        websocket={"public_url": "wss://stt.example.com/", "twilio": {"auth_token": TOKEN}}
    ) as b:
        for path, status, shown in [
            ("/", "426 ", "this is for WebSockets"),
            ("/twilio/twiml", "200 ", 'url="wss://stt.example.com/twilio"'),
        ]:
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = (await asyncio.wait_for(reader.read(), PATIENCE)).decode()
            assert answer.startswith(f"HTTP/1.1 {status}") and shown in answer
            writer.close()


async def test_a_page_is_had_by_post_and_nonsense_is_answered() -> None:
    """Twilio asks for TwiML by POST, unless it is told otherwise."""
    public = "wss://stt.example.com"
    async with bridge(websocket={"public_url": public, "twilio": {"auth_token": TOKEN}}) as b:
        form = b"CallSid=CA1&From=%2B1" * 400
        head = b"Host: x\r\nContent-Length: %d\r\n\r\n" % len(form)
        for line, status, shown in [
            (b"POST /twilio/twiml HTTP/1.1\r\n", "200 ", f'url="{public}/twilio"'),
            (b"POST /ws HTTP/1.1\r\n", "426 ", "this is for WebSockets"),
            (b"what is this\r\n", "400 ", "no request"),
        ]:
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(line)
            await settle()
            writer.write(head + form)
            answer = (await asyncio.wait_for(reader.read(), PATIENCE)).decode()
            assert answer.startswith(f"HTTP/1.1 {status}") and shown in answer
            writer.close()


async def test_who_has_no_call_is_told_when_the_bridge_ends() -> None:
    async with bridge() as b:
        ws = await connect(f"{b.url}/twilio")
        closing = asyncio.create_task(b.server.close())
        with pytest.raises(ConnectionClosed) as e:
            await asyncio.wait_for(ws.recv(), PATIENCE)
        assert e.value.rcvd is not None and e.value.rcvd.code == 1000
        await closing


async def test_an_unknown_path_is_refused() -> None:
    async with bridge() as b:
        with pytest.raises(InvalidStatus) as e:
            await connect(f"{b.url}/nowhere")
        assert e.value.response.status_code == 404


async def test_a_full_bridge_says_so_and_leaks_nothing() -> None:
    async with bridge(slots=1) as b:
        async with connect(f"{b.url}/twilio") as one, connect(f"{b.url}/twilio") as two:
            await one.send(json.dumps(start(["inbound"], callSid="CA1")))
            await until(lambda: b.server.recogniser.used == 1, PATIENCE)
            await two.send(json.dumps(start(["inbound"], callSid="CA2")))
            with pytest.raises(ConnectionClosed) as e:
                await asyncio.wait_for(two.recv(), PATIENCE)
            assert e.value.rcvd is not None
            assert (e.value.rcvd.code, e.value.rcvd.reason) == (
                1013,
                "the call was not taken: busy",
            )
        await b.over(2)
        assert b.server.recogniser.used == 0


async def test_who_vanishes_gives_its_slot_back() -> None:
    async with bridge() as b:
        ws = await connect(f"{b.url}/twilio")
        await ws.send(json.dumps(start()))
        await until(lambda: b.server.recogniser.used == 2, PATIENCE)
        ws.transport.abort()
        await b.over()
        assert b.server.recogniser.used == 0


async def test_call_control_ends_a_stream() -> None:
    async with bridge() as b, connect(f"{b.url}/twilio") as ws:
        await ws.send(json.dumps(start()))
        await until(lambda: b.server.recogniser.used == 2, PATIENCE)
        (call,) = b.server.switchboard.calls
        assert b.server.switchboard.hang_up(call)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(ws.recv(), PATIENCE)
        await b.over()


async def test_while_draining_the_door_is_closed() -> None:
    async with bridge() as b:
        assert b.server.sockets is not None
        b.server.sockets.refuse = "draining"
        with pytest.raises(InvalidStatus) as e:
            await connect(f"{b.url}/twilio")
        assert e.value.response.status_code == 503


async def test_the_peers_close_is_quick() -> None:
    """The server closes the connection first (RFC 6455 §7.1.1): a client waits for that."""
    async with bridge() as b:
        ws = await connect(f"{b.url}/twilio", close_timeout=PATIENCE)
        await ws.send(json.dumps(start()))
        await ws.close()
        assert b.server.sockets is not None
        sockets = b.server.sockets
        await until(lambda: not sockets.connections, PATIENCE)
        assert sockets.counters["linger_timeouts"] == 0


# -- who may ---------------------------------------------------------------------------------------

TOKEN = "0123456789abcdef0123456789abcdef"
KEY = "a-key-of-the-tests-with-enough-characters"


async def refused(url: str, **headers: str) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as e:
        await connect(url, additional_headers=headers)
    return e.value


async def test_without_a_key_nobody_comes_in() -> None:
    one = {"name": "dialer", "secret": KEY, "max_connections": 1}
    async with bridge(websocket={"key": [one]}) as b:
        url = f"{b.url}/ws"
        assert (await refused(url)).response.status_code == 401
        wrong = await refused(url, Authorization="Bearer wrong")
        assert wrong.response.status_code == 401 and b"wrong" in bytes(wrong.response.body or b"")
        for headers in [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}]:
            async with connect(url, additional_headers=headers) as ws:
                assert (await refused(url, **headers)).response.status_code == 429  # one at once
                await ws.close()
            assert b.server.socket_user is not None
            auth = b.server.socket_user.auth
            await until(lambda auth=auth: not len(auth), PATIENCE)
        assert b.server.recogniser.used == 0


async def test_a_key_joins_its_own_calls_and_nobody_elses() -> None:
    keys = [{"name": name, "secret": f"{name}-{KEY}"} for name in ("one", "two")]
    async with bridge(websocket={"key": keys}) as b:
        board = b.server.switchboard

        async def stream(name: str, track: str) -> ClientConnection:
            headers = {"X-API-Key": f"{name}-{KEY}"}
            ws = await connect(f"{b.url}/twilio", additional_headers=headers)
            await ws.send(json.dumps(start([track], callSid="CA1")))
            return ws

        first = await stream("one", "inbound")
        await until(lambda: "CA1" in board.calls, PATIENCE)
        other = await stream("two", "outbound")
        await until(lambda: len(board.calls) == 2, PATIENCE)
        second = await stream("one", "outbound")
        await until(lambda: board.lines == 3, PATIENCE)
        assert set(board.calls["CA1"].legs) == {"caller", "callee"} and len(board.calls) == 2
        (stranger,) = [call for id, call in board.calls.items() if id != "CA1"]
        assert stranger.info.extra["call"] == "CA1" and set(stranger.legs) == {"callee"}
        for ws in (first, other, second):
            await ws.close()
        await b.over(2)


async def test_pages_of_others_do_not_come_in() -> None:
    async with bridge(http={}) as b:
        assert (
            await refused(f"{b.url}/ws", Origin="https://evil.example")
        ).response.status_code == 403
        proxied = await refused(f"{b.url}/ws", **{"X-Forwarded-For": "192.0.2.1"})
        assert proxied.response.status_code == 401


async def test_a_stream_is_let_in_by_twilios_signature() -> None:
    """By Twilio's own code, over the public URL and nothing else."""
    validator = pytest.importorskip("twilio.request_validator").RequestValidator(TOKEN)
    public = "wss://stt.example.com"
    async with bridge(websocket={"public_url": public, "twilio": {"auth_token": TOKEN}}) as b:
        right = validator.compute_signature(f"{public}/twilio", {})
        other = validator.compute_signature(f"{public}/other", {})
        async with connect(
            f"{b.url}/twilio", additional_headers={"X-Twilio-Signature": right}
        ) as ws:
            await ws.send(json.dumps(start(["inbound"])))
            await until(lambda: b.server.recogniser.used == 1, PATIENCE)
            await ws.close()
        await b.over()
        for headers in [{}, {"X-Twilio-Signature": other}, {"X-Twilio-Signature": "x" * 28}]:
            assert (await refused(f"{b.url}/twilio", **headers)).response.status_code in (401, 403)


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 127.0.0.1, by itself."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + [
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ]
        + ["-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return cert, key


async def test_a_call_over_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    client = ssl.create_default_context(cafile=cert)
    async with bridge(scheme="wss", websocket={"tls_cert": cert, "tls_key": key}) as b:
        async with connect(f"{b.url}/twilio", ssl=client) as ws:
            await ws.send(json.dumps(start(["inbound"])))
            for message in messages(speech([7, 77])):
                await ws.send(message)
            await ws.close()
        await b.over()
        assert b.sink.words() == said([7, 77])


async def test_our_end_over_tls_is_no_truncation(certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    context = ssl.create_default_context(cafile=cert)

    def ask(port: int) -> bytes:
        raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
        with context.wrap_socket(
            raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        ) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while data := client.recv(4096):  # raises where no close_notify comes
                answer += data
            return answer

    async with bridge(websocket={"tls_cert": cert, "tls_key": key}) as b:
        assert (await asyncio.to_thread(ask, b.port)).startswith(b"HTTP/1.1 426 ")
        url = f"wss://127.0.0.1:{b.port}/twilio"
        async with connect(url, ssl=context) as ws:
            await ws.send("{")
            with pytest.raises(ConnectionClosed) as e:
                await asyncio.wait_for(ws.recv(), PATIENCE)
            assert e.value.rcvd is not None and e.value.rcvd.code == 1007


async def test_plain_http_at_a_tls_port_costs_itself(
    certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = map(str, certificate)
    async with bridge(websocket={"tls_cert": cert, "tls_key": key}) as b:
        with caplog.at_level(logging.WARNING):
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.wait_for(reader.read(), PATIENCE)
            writer.close()
        assert "TLS failed" in caplog.text


def test_a_handshake_that_does_not_come_has_a_deadline(certificate: tuple[Path, Path]) -> None:
    context = Certificate(str(certificate[0]), str(certificate[1]), time.time()).context
    stream = Tls(context, WebSocket(65536, 0.0), 0.0)
    assert stream.next_at == 5.0
    assert stream.expire(5.0) == [Closed("timeout")]
