"""Standard Webhooks 1.0 signatures (symmetric, ``v1``). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac

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
        "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        for key in keys
    )
