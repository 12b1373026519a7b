"""The RTP streams of a capture, and what its SIP says about them. Pure but for reading the file.

A stream is what one source (SSRC) sends from one address to another: at least `LEAST` packets that
follow each other. SDP (RFC 8866) is read from SIP over UDP: it tells what dynamic payload types
mean, and who called. SRTP, RTCP and everything else is left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bridge.audio.codecs import STATIC_TYPES
from bridge.capture_file import Capture, Datagram, Endpoint, is_capture, read_datagrams
from bridge.errors import BridgeError
from bridge.ingress.rtp_packet import parse
from bridge.ingress.rtp_types import BadMedia, payload_types

__all__ = ["Stream", "calls_of", "is_capture", "read_streams", "streams"]

LEAST: Final = 10  # packets
DROPOUT: Final = 3000  # packets that may be missing between two (RFC 3550 A.1)
NO_AUDIO: Final = ("cn", "telephone-event")
MAX_SDP: Final = 65_536  # bytes


@dataclass(frozen=True, slots=True)
class Stream:
    """One leg as it was captured.

    `packets` are (seconds on the capture's clock, datagram), in the order of the file. `types`:
    what its payload types mean, where that is known; `main` is the one most of its packets have.
    `leg`: where SIP says who called. `secure`: SDP says that it is SRTP.
    """

    ssrc: int
    source: Endpoint
    target: Endpoint
    packets: Sequence[tuple[float, bytes]] = field(repr=False)
    main: int = 0
    types: dict[int, str] = field(default_factory=dict)
    leg: str = ""
    secure: bool = False

    @property
    def begin(self) -> float:
        """Seconds, on the capture's clock."""
        return self.packets[0][0]

    @property
    def end(self) -> float:
        """Seconds, on the capture's clock."""
        return self.packets[-1][0]

    @property
    def label(self) -> str:
        """Where it went, for people."""
        return f"{_shown(self.source)} > {_shown(self.target)} (SSRC {self.ssrc:08x})"


def _shown(endpoint: Endpoint) -> str:
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_streams(path: str | Path, codec: str = "") -> list[Stream]:
    """All streams of a capture, the first to begin first.

    `codec` names the payload types that neither RFC 3551 nor an SDP names. Raises `BridgeError`
    when there is none, or the file cannot be read.
    """
    capture = read_datagrams(path)
    found = streams(capture.datagrams, codec)
    if not found:
        raise BridgeError(f"{path}: {_nothing(capture)}")
    return found


def _nothing(capture: Capture) -> str:
    text = (
        f"has no RTP stream: of {capture.packets} packets, {len(capture.datagrams)} are whole UDP "
        f"datagrams, and no {LEAST} of these follow each other as RTP does"
    )
    if capture.cut:
        text += f"; {capture.cut} packets are cut off, so capture them whole (tcpdump -s 0)"
    if capture.links:
        types = ", ".join(map(str, sorted(capture.links)))
        text += f"; link type {types} is not known (expected Ethernet, cooked, loopback or raw IP)"
    return text


def streams(datagrams: Iterable[Datagram], codec: str = "") -> list[Stream]:
    """As `read_streams`, of datagrams."""
    kept: dict[tuple[Endpoint, Endpoint, int], list[tuple[float, bytes]]] = {}
    said = _Said()
    for when, source, target, payload in datagrams:
        if said.hear(payload):
            continue
        packet = parse(payload)
        if isinstance(packet, str) or 64 <= packet.payload_type <= 95:  # RTCP (RFC 5761 §4)
            continue
        kept.setdefault((source, target, packet.ssrc), []).append((when, payload))
    found = [
        _stream(ssrc, source, target, packets, said, codec)
        for (source, target, ssrc), packets in kept.items()
        if _follow(packets)
    ]
    return sorted(found, key=lambda stream: stream.begin)


def _follow(packets: Sequence[tuple[float, bytes]]) -> bool:
    """Do enough of these numbers go on from the one before?"""
    numbers = [data[2] << 8 | data[3] for _, data in packets]
    steps = (after - before & 0xFFFF for before, after in zip(numbers, numbers[1:], strict=False))
    return 1 + sum(1 <= step <= DROPOUT for step in steps) >= LEAST


def _stream(
    ssrc: int,
    source: Endpoint,
    target: Endpoint,
    packets: Sequence[tuple[float, bytes]],
    said: _Said,
    codec: str,
) -> Stream:
    # What a number means is the receiver's to say (RFC 3264 §5.1); mostly both say the same.
    names = said.names | said.types.get(source, {}) | said.types.get(target, {})
    used = Counter(data[1] & 0x7F for _, data in packets)
    audio = [n for n, _ in used.most_common() if names.get(n, "").split("/")[0] not in NO_AUDIO]
    main = next((n for n in audio if n not in (13, 19)), next(iter(used)))
    types = {number: names[number] for number in sorted(used) if number in names}
    if codec and main not in names and main not in STATIC_TYPES:
        types[main] = codec
    leg = ""
    if source in said.callers or target in said.callers:
        leg = "caller" if source in said.callers else "callee"
    secure = source in said.secure or target in said.secure
    return Stream(ssrc, source, target, packets, main, types, leg, secure)


def codec_of(stream: Stream) -> str:
    """What to announce for its audio. Raises `BridgeError` for what no bridge hears."""
    if stream.secure:
        raise BridgeError(f"{stream.label} is encrypted (SRTP), and the capture has no keys for us")
    name = stream.types.get(stream.main, "")
    if not name and stream.main in STATIC_TYPES:
        static, rate = STATIC_TYPES[stream.main]
        name = f"{static}/{rate}"
    if not name:
        raise BridgeError(
            f"{stream.label} has payload type {stream.main}, which neither RFC 3551 nor an SDP in "
            "the capture names; name it: --codec l16/16000"
        )
    try:
        payload_types("pcmu", {str(stream.main): name})
    except BadMedia as e:
        raise BridgeError(f"{stream.label}: {e}") from None
    return name


# -- calls -----------------------------------------------------------------------------------------


def calls_of(found: Sequence[Stream]) -> list[list[Stream]]:
    """Which streams are one call, each call's caller first.

    Two that go between the same two addresses at the same time are the two directions of one
    call; so are two that are all there is. SIP says who called; else it is who spoke first.
    """
    calls: list[list[Stream]] = []
    left = list(found)
    while left:
        stream = left.pop(0)
        other = next((each for each in left if _opposite(stream, each)), None)
        if other is None and len(found) == 2 and left and _together(stream, left[0]):
            other = left[0]
        pair = [stream]
        if other is not None:
            left.remove(other)
            pair.append(other)
        if pair[0].leg == "callee" or pair[-1].leg == "caller" != pair[0].leg:
            pair.reverse()
        calls.append(pair)
    return calls


def _opposite(one: Stream, other: Stream) -> bool:
    mirrored = one.source == other.target and one.target == other.source
    return mirrored and _together(one, other)


def _together(one: Stream, other: Stream) -> bool:
    return one.begin <= other.end and other.begin <= one.end


# -- SIP -------------------------------------------------------------------------------------------

_SIP = re.compile(rb"SIP/2\.0 |[A-Z]{3,12} sips?:|[A-Z]{3,12} tel:")
_CALL = re.compile(rb"^(?:call-id|i)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_ADDRESS = re.compile(r"c=IN IP[46] ([0-9A-Fa-f.:]{2,45})")
_AUDIO = re.compile(r"m=audio ([0-9]{1,5})(?:/[0-9]+)? ([A-Za-z/]+)")
_RTPMAP = re.compile(r"a=rtpmap:([0-9]{1,3}) ([A-Za-z0-9_.-]+/[0-9]{1,6}(?:/[0-9]+)?)")


class _Said:
    """What the SDPs of a capture say: types by number, of an address, and of any."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.types: dict[Endpoint, dict[int, str]] = {}
        self.callers: set[Endpoint] = set()
        self.secure: set[Endpoint] = set()
        self._begun: set[bytes] = set()  # Call-IDs; a later INVITE may be anybody's

    def hear(self, payload: bytes) -> bool:
        """Is this SIP?"""
        if not _SIP.match(payload):
            return False
        head, _, body = payload[:MAX_SDP].partition(b"\r\n\r\n")
        invite = head.startswith(b"INVITE ")
        call = _CALL.search(head)
        name = call[1] if call else b""
        if b"m=audio" in body:
            # Somebody who offers nothing in the INVITE does so later: then nobody knows.
            self._sdp(body.decode("utf-8", "replace"), invite and name not in self._begun)
        if invite:
            self._begun.add(name)
        return True

    def _sdp(self, text: str, caller: bool) -> None:
        host, port, secure = "", 0, False
        session = ""
        names: dict[int, str] = {}
        inside = False  # of the first audio stream
        for line in text.splitlines():
            if line.startswith("m="):
                if port:
                    break
                audio = _AUDIO.match(line)
                inside = audio is not None
                if audio:
                    port, secure = int(audio[1]), "SAVP" in audio[2]
            elif address := _ADDRESS.match(line):
                if inside:
                    host = address[1]
                elif not port:
                    session = session or address[1]
            elif inside and (found := _RTPMAP.match(line)) and int(found[1]) < 128:
                names[int(found[1])] = found[2].lower()
        if not port:
            return
        here = ((host or session).lower(), port)
        self.names |= names
        self.types.setdefault(here, {}).update(names)
        if caller:
            self.callers.add(here)
        if secure:
            self.secure.add(here)
