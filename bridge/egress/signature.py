"""Standard Webhooks 1.0 signatures (symmetric, ``v1``). Pure."""

from __future__ import annotations

import base64
import hmac

TOLERANCE = 300.0  # seconds that a message may be old, or the clocks apart
MIN_SECRET, MAX_SECRET = 24, 64  # bytes, Standard Webhooks 1.0 "Symmetric signatures"


def check_secret(secret: str) -> bytes:
    """The key in a ``whsec_…`` secret. Raises ValueError, never quoting the secret."""
    encoded = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:  # binascii.Error is one; a letter beyond ASCII raises the plain one
        key = b""
    if not secret.startswith("whsec_") or not MIN_SECRET <= len(key) <= MAX_SECRET:
        raise ValueError(
            f"secret: expected whsec_ and {MIN_SECRET} to {MAX_SECRET} random bytes in base64; "
            "make one with: callscribe webhook secret"
        )
    return key


def sign(keys: list[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` header: one ``v1,<base64>`` per key, space separated."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys
    )


def verify(
    keys: list[bytes],
    message_id: str,
    timestamp: str,
    signatures: str,
    body: bytes,
    *,
    now: float,
    tolerance: float = TOLERANCE,
) -> None:
    """Check a message as its receiver should: one of the signatures is one of the keys'.

    Raises ValueError, which says why it is not to be believed.
    """
    if not timestamp.isascii() or not timestamp.isdecimal():
        raise ValueError("webhook-timestamp is not a number of seconds")
    age = now - int(timestamp)
    if abs(age) > tolerance:
        when = f"{age:.0f} s old" if age > 0 else f"{-age:.0f} s ahead of this clock"
        raise ValueError(f"it is {when}, and {tolerance:g} s are allowed: a replay, or a clock")
    told = [text for text in signatures.split() if text.startswith("v1,")]
    if not told:
        raise ValueError("webhook-signature has no v1 signature")
    for text in told:
        for right in sign(keys, message_id, int(timestamp), body).split():
            if hmac.compare_digest(text.encode(), right.encode()):
                return
    raise ValueError("no signature fits: another secret, or the body is not what was sent")
