"""AMI as text: what may stand in a line, how an action is written, how messages are read.

Pure. The one rule that matters: a line feed inside a value begins a new header, and an empty line
begins a new *action*, which Asterisk executes (main/manager.c). So nothing becomes bytes here
without having gone through `AmiValue`, and header names are checked, never repaired.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias, cast

from bridge.errors import DeliveryError, ProtocolError
from bridge.types import Announcement, CallInfo, LegName, Listen

LINE = 900  # bytes of "Key: value" before a UserEvent's value goes on in Key-2
LONGEST_LINE = 1022  # bytes that Asterisk 22 takes; seen: 1023 is "line too long"
MAX_LISTEN = 600  # s that a dialplan may wait for a turn
HEADERS = 128  # per message, AST_MAX_MANHEADERS
MESSAGE = 256 * 1024  # bytes of one message from Asterisk; its own UserEvents stay below half
BANNER = b"Asterisk Call Manager/"

Pairs: TypeAlias = list[tuple[str, str]]

_CONTROLS = {c: " " for c in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CALL = re.compile(r"[A-Za-z0-9._:@+=-]{0,128}")
_SECONDS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")
_NOT_A_NUMBER = ("", "s", "h", "i", "t", "T", "o", "a", "e", "failed", "<unknown>")


class AmiValue(str):
    """Text that cannot end its line.

    Every C0 and C1 control, DEL, NUL, U+0085, U+2028 and U+2029 is a space, a lone surrogate
    (which UTF-8 cannot carry) a question mark. Everything else is as it was.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> AmiValue:
        clean = text.translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8")
        return super().__new__(cls, clean)


def split_value(value: AmiValue, room: int) -> list[str]:
    """Pieces of at most `room` UTF-8 bytes; joined with nothing in between they are `value`.

    A cut keeps characters whole and, where it can, avoids spaces, because most readers of AMI
    strip what they read and a space at an edge would be lost.
    """
    data, pieces, start = value.encode(), [], 0
    while len(data) - start > room:
        cut = _cut(data, start, start + room)
        pieces.append(data[start:cut].decode())
        start = cut
    return [*pieces, data[start:].decode()]


def _cut(data: bytes, start: int, latest: int) -> int:
    whole = [i for i in range(latest, max(start, latest - 64), -1) if data[i] & 0xC0 != 0x80]
    return next((i for i in whole if b" " not in data[i - 1 : i + 1]), whole[0])


def encode_action(name: str, action_id: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """One action, ready to be written. Raises `DeliveryError` (permanent) if it cannot be one.

    A UserEvent's value that is too long for a line goes on in ``Key-2``, ``Key-3``…; other
    actions have fixed headers, so there it is an error. What exceeds 128 lines is left out, and
    the last line then says ``Truncated: yes``.
    """
    lines = [("Action", AmiValue(name)), ("ActionID", AmiValue(action_id))]
    for key, text in headers:
        _check_key(key)
        value = AmiValue(text[: HEADERS * LINE])  # what is beyond would be left out anyway
        lines += _lines(key, value, LINE if name == "UserEvent" else 0)
    if len(lines) > HEADERS:
        lines = [*lines[: HEADERS - 1], ("Truncated", AmiValue("yes"))]
    encoded = [f"{key}: {value}".encode() for key, value in lines]
    if any(len(line) > LONGEST_LINE for line in encoded):
        raise DeliveryError(
            f"a header of {AmiValue(name[:64])} has more than the {LONGEST_LINE} bytes that "
            "Asterisk takes in one line; shorten the value",
            permanent=True,
        )
    return b"\r\n".join([*encoded, b"", b""])


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key) or key.lower() in ("action", "actionid"):
        raise DeliveryError(
            f"{key[:64]!r} cannot be an AMI header: expected letters, digits, '-' and '_', and "
            "neither Action nor ActionID",
            permanent=True,
        )


def _lines(key: str, value: AmiValue, limit: int) -> list[tuple[str, AmiValue]]:
    if not limit or len(key) + 2 + len(value.encode()) <= limit:
        return [(key, value)]
    pieces = split_value(value, limit - len(f"{key}-999: "))
    numbered = [key, *(f"{key}-{n}" for n in range(2, len(pieces) + 1))]
    return [(k, AmiValue(piece)) for k, piece in zip(numbered, pieces, strict=True)]


class AmiDecoder:
    """Bytes as they come → messages, each a list of (key, value) in Asterisk's order.

    Lines are decoded when they are complete, so a character split over two reads survives; what
    is not UTF-8 becomes U+FFFD. `version` is the banner's, None until it has come. A message of
    more than `MESSAGE` bytes is skipped and counted in `oversized`.
    """

    def __init__(self) -> None:
        self.version: str | None = None
        self.oversized = 0
        self._rest = b""  # of a line; never more than MESSAGE bytes and one read
        self._pairs: Pairs = []
        self._size = 0

    def feed(self, data: bytes) -> list[Pairs]:
        """Raises `ProtocolError` when the other side does not begin as Asterisk's AMI does."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages: list[Pairs] = []
        for line in lines:
            self._line(line.removesuffix(b"\r"), messages)
        if len(self._rest) > MESSAGE:
            self._size += len(self._rest)
            self._rest = b"?"  # whatever ends this line, it must not look like an empty one
        if self.version is None:
            self._banner(self._rest, complete=False)
        return messages

    def _line(self, line: bytes, messages: list[Pairs]) -> None:
        if self.version is None:
            self._banner(line, complete=True)
        elif not line:
            self._end(messages)
        else:
            self._size += len(line) + 2
            if self._size <= MESSAGE:
                self._pairs.append(_pair(line.decode("utf-8", "replace")))
            else:
                self._pairs = []

    def _end(self, messages: list[Pairs]) -> None:
        if self._size > MESSAGE:
            self.oversized += 1
        elif self._pairs:
            messages.append(self._pairs)
        self._pairs, self._size = [], 0

    def _banner(self, line: bytes, *, complete: bool) -> None:
        if line[: len(BANNER)] != BANNER[: len(line)] or (complete and len(line) < len(BANNER)):
            raise ProtocolError(
                "what answers there is not an Asterisk Manager: its first line should begin with "
                f"{BANNER.decode()!r}; check ami.host, ami.port and ami.tls"
            )
        if complete:
            self.version = AmiValue(line[len(BANNER) :].decode("utf-8", "replace"))[:64]


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key, value.removeprefix(" ")


def announcement(event: Mapping[str, str], join_variables: Collection[str]) -> Announcement | None:
    """What an AMI event says about a UUID, or None if it is about something else.

    `event` finds its keys in any case. Raises `ProtocolError` for an announcement without a
    UUID, with a leg that is none, or with a `Call` that cannot be an id.
    """
    match event.get("event", ""):
        # The exact name: an inherited __NAME is set again on every channel that is dialled
        case "VarSet" if event.get("variable", "") in join_variables and event.get("value", ""):
            return _announce(event, event.get("value", ""), "", "caller")
        case "UserEvent" if event.get("userevent", "") == "CallscribeLeg":
            leg = event.get("leg", "").strip().lower() or "caller"
            listen = _listen(event.get("listen", ""), event.get("begin", ""))
            return _announce(event, event.get("id", ""), event.get("call", "").strip(), leg, listen)
    return None


def _listen(seconds: str, begin: str) -> Listen | None:
    """``Listen: 15`` and ``Begin: 5``: one turn within 15 s, somebody speaks within 5."""
    if not seconds.strip():
        return None
    whole = _seconds(seconds)
    first = _seconds(begin) if begin.strip() else whole
    return Listen(whole, min(first, whole))


def _seconds(text: str) -> float:
    if not _SECONDS.fullmatch(text.strip()) or not 0 < float(text) <= MAX_LISTEN:
        raise ProtocolError(
            f"an announced leg's Listen and Begin are seconds, more than 0 and at most {MAX_LISTEN}"
        )
    return float(text)


def _announce(
    event: Mapping[str, str], uuid: str, call: str, leg: str, listen: Listen | None = None
) -> Announcement:
    uuid = uuid.strip().lower()
    if not _UUID.fullmatch(uuid):
        raise ProtocolError("an announced leg has no UUID: use ${UUID()} in the dialplan")
    if leg not in ("caller", "callee"):
        raise ProtocolError("an announced leg is neither caller nor callee: check its Leg header")
    if not _CALL.fullmatch(call):
        raise ProtocolError("an announced leg's Call is no id: use ${UNIQUEID} or a UUID")
    return Announcement(uuid, call, cast(LegName, leg), _info(event, leg), listen)


def _info(event: Mapping[str, str], leg: str) -> CallInfo:
    """The channel snapshot. On the callee's own channel, caller id is the callee's number."""

    def field(key: str) -> str:
        value = str(AmiValue(event.get(key, "")))[:256].strip()
        return "" if value == "<unknown>" else value

    exten, own, other = field("exten"), field("calleridnum"), field("connectedlinenum")
    dialled = other if exten in _NOT_A_NUMBER else exten
    return CallInfo(
        id="",
        channel=field("channel"),
        uniqueid=field("uniqueid"),
        linkedid=field("linkedid"),
        caller=own if leg == "caller" else other,
        callee=dialled if leg == "caller" else own,
        context=field("context"),
        exten=exten,
        extra={key: value for key in ("trunk", "tenant") if (value := field(key))},
    )
