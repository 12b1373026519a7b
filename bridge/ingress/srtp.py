"""SRTP and SRTCP by libsrtp (RFC 3711, RFC 7714), with keys from an announcement (RFC 4568).

The only owner of pylibsrtp, which is imported when keys are announced. Nothing that a peer sends
raises: packets that fail are counted and are nobody's. A packet that comes twice fails too: the
replay window, `WINDOW` packets, cannot tell the network's copies from an attacker's.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bridge.ingress.rtp_types import BadMedia, Keys

if TYPE_CHECKING:
    from pylibsrtp import Policy, Session

WINDOW: Final = 64  # packets; RFC 3711 §3.3.2 asks for no less
MAX_SSRCS: Final = 8  # streams of one key that are remembered; the oldest is forgotten
MAX_PACKET: Final = 1500  # bytes; pylibsrtp's buffer
TRAILER: Final = 148  # bytes that pylibsrtp keeps free behind what it protects

# Suite → pylibsrtp's name of it, bytes of master key and salt.
SUITES: Final = {
    "AES_CM_128_HMAC_SHA1_80": ("SRTP_PROFILE_AES128_CM_SHA1_80", 30),
    "AES_CM_128_HMAC_SHA1_32": ("SRTP_PROFILE_AES128_CM_SHA1_32", 30),
    "AEAD_AES_128_GCM": ("SRTP_PROFILE_AEAD_AES_128_GCM", 28),
    "AEAD_AES_256_GCM": ("SRTP_PROFILE_AEAD_AES_256_GCM", 44),
}


def keys(suite: str, key: str) -> Keys:
    """SDES's words, ``inline:`` and base64 of key and salt. Raises `BadMedia`, without the key.

    A lifetime (``|2^31``) is taken and left alone; a master key identifier (``|1:4``) is refused.
    """
    if suite not in SUITES:
        raise BadMedia(
            f"srtp suite {ascii(suite[:40])} is not known; it is one of {', '.join(SUITES)}"
        )
    text, *parameters = key.removeprefix("inline:").split("|")
    if any(":" in parameter for parameter in parameters):
        raise BadMedia("the srtp key has a master key identifier (MKI), which is not supported")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadMedia('the srtp key is not base64, as "inline:…" of SDP\'s a=crypto') from None
    expected = SUITES[suite][1]
    if len(raw) != expected:
        raise BadMedia(
            f"the srtp key of {suite} is {expected} bytes of key and salt, not {len(raw)}"
        )
    made = Keys(suite, raw)
    _session(made, "SSRC_ANY_INBOUND")
    return made


def own_keys(suite: str, random: Callable[[int], bytes]) -> Keys:
    """A key and salt of our own, of a suite that `keys` has taken. Raises `BadMedia`."""
    made = Keys(suite, random(SUITES[suite][1]))
    _session(made, "SSRC_ANY_OUTBOUND")
    return made


def inline(keys: Keys) -> str:
    """As SDP spells a key (RFC 4568 §6.1)."""
    return "inline:" + base64.b64encode(keys.key).decode()


def _session(keys: Keys, direction: str) -> Session:
    """libsrtp's state for one direction. Raises `BadMedia`."""
    try:
        from pylibsrtp import Error, Policy, Session
    except ImportError:
        raise BadMedia("srtp needs a library: pip install 'callscribe[rtp]'") from None
    try:
        policy: Policy = Policy(
            keys.key, getattr(Policy, direction), 0, getattr(Policy, SUITES[keys.suite][0])
        )
        policy.window_size = WINDOW
        return Session(policy)
    except (AttributeError, Error):
        raise BadMedia(f"this libsrtp does not have the suite {keys.suite}") from None


class Opener:
    """One peer's packets, authenticated and decrypted. `failed` and `replayed` count the others."""

    __slots__ = ("_error", "_session", "_ssrcs", "failed", "replayed")

    def __init__(self, keys: Keys) -> None:
        self.failed = 0  # not authentic: another key, another's packet, or damaged
        self.replayed = 0  # had come before, or is older than the window
        self._session = _session(keys, "SSRC_ANY_INBOUND")
        self._ssrcs: OrderedDict[int, None] = OrderedDict()
        from pylibsrtp import Error

        self._error = Error

    def rtp(self, data: bytes) -> bytes | None:
        """The RTP packet inside; None: counted."""
        if len(data) > MAX_PACKET:
            self.failed += 1
            return None
        try:
            opened = self._session.unprotect(data)
        except self._error as e:
            self._count(e)
            return None
        self._remember(int.from_bytes(data[8:12], "big"))
        return opened

    def rtcp(self, data: bytes) -> bytes | None:
        """The RTCP packets inside; None: counted."""
        if len(data) > MAX_PACKET:
            self.failed += 1
            return None
        try:
            opened = self._session.unprotect_rtcp(data)
        except self._error as e:
            self._count(e)
            return None
        self._remember(int.from_bytes(data[4:8], "big"))
        return opened

    def _count(self, error: Exception) -> None:
        if "replay" in str(error):
            self.replayed += 1
        else:
            self.failed += 1

    def _remember(self, ssrc: int) -> None:
        """libsrtp keeps state for every SSRC with the right key, for ever: not of any number."""
        if ssrc in self._ssrcs:
            return
        self._ssrcs[ssrc] = None
        if len(self._ssrcs) > MAX_SSRCS:
            self._session.remove_stream(self._ssrcs.popitem(last=False)[0])


class Sealer:
    """Our own packets, encrypted: what a peer needs our key for."""

    __slots__ = ("_session",)

    def __init__(self, keys: Keys) -> None:
        self._session = _session(keys, "SSRC_ANY_OUTBOUND")

    def rtp(self, data: bytes) -> bytes:
        """Raises ValueError beyond `MAX_PACKET - TRAILER` bytes."""
        return self._session.protect(data)

    def rtcp(self, data: bytes) -> bytes:
        """As `rtp`."""
        return self._session.protect_rtcp(data)
