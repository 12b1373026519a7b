"""FreeSWITCH's event socket as text: what may stand in a command, how messages are read. Pure.

A command is a line, headers and an empty line, and a body where Content-Length says so. A line feed
in a value would begin a header, and two of them a *command*, which FreeSWITCH executes
(mod_event_socket.c, read_packet); NUL cuts, and a carriage return swallows what follows. So nothing
becomes bytes here without having gone through `EslValue`, and names and lines are checked, never
repaired. Two traps more, of the same file: a block that contains "unload" or "reload" and
"mod_event_socket" *anywhere*, also in a header's value, is taken for that command; and an event
with the Unique-ID of a channel goes to that channel instead of those who listen. What a caller
said stands in a body besides, which is read by its length and as nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from bridge.errors import DeliveryError, ProtocolError
from bridge.pbx.ami_text import AmiValue

VALUE = 8192  # UTF-8 bytes of a header's value; what is longer is whole in the body
HEADERS = 64 * 1024  # bytes of headers of one message from FreeSWITCH
BODY = 1024 * 1024  # bytes of its body; we ask for nothing that is near that
UNDEFINED = "_undef_"  # how FreeSWITCH writes an empty value

_MODULE = re.compile("mod_event_socket", re.IGNORECASE)
_ARRAY = re.compile("^ *ARRAY::")
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_NOT_OURS = ("content-length", "unique-id", "command")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,9}")


class EslValue(str):
    """Text that cannot end its line, name FreeSWITCH's module, or become an array; `VALUE` bytes.

    Controls are spaces, as in `AmiValue`. Everything else is as it was.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> EslValue:
        clean = str(AmiValue(text[:VALUE]))
        clean = _ARRAY.sub("ARRAY: :", _MODULE.sub("mod event socket", clean))
        return super().__new__(cls, clean.encode()[:VALUE].decode("utf-8", "ignore"))


def encode_command(line: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> bytes:
    """One command, ready to be written; values are made safe.

    Raises `DeliveryError` (permanent) for a line with controls, and for the name of a header that
    cannot be one or that would mean something else.
    """
    if line != AmiValue(line) or _MODULE.search(line):
        raise DeliveryError(
            "a command for FreeSWITCH has control characters in it, or names its module",
            permanent=True,
        )
    lines = [line]
    for key, value in headers:
        if not _KEY.fullmatch(key) or key.lower() in _NOT_OURS:
            raise DeliveryError(
                f"{key[:64]!r} cannot be a header of ours: expected letters, digits and '-', and "
                f"none of {', '.join(_NOT_OURS)}",
                permanent=True,
            )
        lines.append(f"{key}: {EslValue(value)}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\n".join([*lines, "", ""]).encode() + body


def is_channel(text: str) -> bool:
    """Whether this is a FreeSWITCH channel's UUID: what Asterisk calls a channel is not."""
    return _UUID.fullmatch(text) is not None


def quoted(value: str) -> str:
    """The last argument of an API command, so that it arrives with the quotes that are in it.

    FreeSWITCH strips them, and unescapes (switch_utils.c, cleanup_separated_string).
    """
    return EslValue(value).replace("\\", "\\\\").replace("'", "\\'")


@dataclass(frozen=True, slots=True)
class EslMessage:
    """What FreeSWITCH sent: headers by their name in lower case, of repeated ones the first."""

    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def kind(self) -> str:
        """Its Content-Type, such as ``command/reply``."""
        return self.headers.get("content-type", "")

    @property
    def answer(self) -> str:
        """The text of a reply to a command: ``+OK …`` or ``-ERR …``, on one line."""
        if self.kind == "command/reply":
            return str(AmiValue(self.headers.get("reply-text", ""))).strip()
        return str(AmiValue(self.body.decode("utf-8", "replace"))).strip()


class EslDecoder:
    """Bytes as they come → messages, whatever the cuts between them."""

    def __init__(self) -> None:
        self._buffer = bytearray()  # never more than BODY bytes and one read
        self._searched = 0  # bytes without a line feed
        self._lines: list[bytes] = []
        self._size = 0  # bytes of these
        self._headers: dict[str, str] | None = None  # complete; the body is missing
        self._length = 0

    def feed(self, data: bytes) -> list[EslMessage]:
        """Raises `ProtocolError` for what is no message, or too long; it is useless after that."""
        self._buffer += data
        messages: list[EslMessage] = []
        while self._headers is not None or self._head():
            assert self._headers is not None
            if len(self._buffer) < self._length:
                break
            body = bytes(self._buffer[: self._length])
            del self._buffer[: self._length]
            messages.append(EslMessage(self._headers, body))
            self._headers = None
        return messages

    def _head(self) -> bool:
        """Read on to the empty line. False: it has not come yet."""
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            self._searched = 0
            self._size += end + 1
            if self._size > HEADERS:
                break
            if line:
                self._lines.append(line)
            elif self._lines:
                self._headers = _headers(self._lines)
                self._length = _length(self._headers)
                self._lines, self._size = [], 0
                return True
            else:
                self._size = 0  # an empty line between two messages is nothing
        self._searched = len(self._buffer)
        if self._size + self._searched > HEADERS:
            raise ProtocolError(f"FreeSWITCH sent more than {HEADERS} bytes of headers")
        return False


def _headers(lines: Sequence[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        key, _, value = line.decode("utf-8", "replace").partition(":")
        headers.setdefault(key.strip().lower(), value.strip(" "))
    return headers


def _length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(text):
        raise ProtocolError("FreeSWITCH sent a Content-Length that is no number")
    if int(text) > BODY:
        raise ProtocolError(f"FreeSWITCH sent a body of more than {BODY} bytes")
    return int(text)


def plain_event(message: EslMessage) -> EslMessage:
    """The event inside a ``text/event-plain`` message: values decoded, and its own body.

    What follows the empty line is the body. Its Content-Length is not looked at: the message's own
    length already ends it, and a body that was sent to FreeSWITCH left another one in the headers.
    """
    head, _, body = message.body.partition(b"\n\n")
    encoded = _headers(head.split(b"\n")) if head else {}
    decoded = {
        key: "" if value == UNDEFINED else unquote(value, errors="replace")
        for key, value in encoded.items()
    }
    return EslMessage(decoded, body)
