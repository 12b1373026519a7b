"""X-Twilio-Signature on a WebSocket's upgrade. Pure.

An upgrade is a GET without parameters, so that what is signed is the URL alone, as Twilio was told
it: ``wss://`` and the public name. That comes from our settings, never from Host or X-Forwarded-*,
which whoever knocks can write. Twilio's own validators allow for a port or none;
whether the URL ends in a slash is lost in some proxies. All of these are tried, always.

The URL is the same for every call: whoever has seen one signature can send it again. Over TLS
nobody sees it but Twilio and us.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from bridge.auth_types import Knock, Signature

SHA1, SHA256 = "HMAC_SHA1", "HMAC_SHA256"
_HASHES = {SHA1: hashlib.sha1, SHA256: hashlib.sha256}


class TwilioSignatures:
    """Of one account. Several tokens while they are exchanged."""

    def __init__(
        self, public_url: str, tokens: Sequence[str], shared_keys: Sequence[str] = ()
    ) -> None:
        self._bases = bases(public_url)
        self._tokens = [token.encode() for token in tokens]
        self._shared_keys = [key.encode() for key in shared_keys]

    def right(self, knock: Knock, signature: Signature) -> bool:
        """Whether Twilio signed a URL of ours that leads to this request."""
        keys, algorithm = self._tokens, SHA1
        if signature.settings:  # a webhook rule's key; never tried with the account's token
            keys, algorithm = self._shared_keys, named_algorithm(signature.settings)
        if algorithm not in _HASHES:
            return False
        given = signature.value.encode("utf-8", "replace")
        right = False
        for url in (base + target for base in self._bases for target in targets(knock)):
            signed = url.encode("utf-8", "replace")
            for key in keys:
                mac = hmac.new(key, signed, _HASHES[algorithm]).digest()
                right |= hmac.compare_digest(base64.b64encode(mac), given)
        return right


def bases(public_url: str) -> list[str]:
    """``wss://host/prefix`` with and without the port where that is 443."""
    parts = urlsplit(public_url)
    host, prefix = parts.netloc, parts.path.rstrip("/")
    hosts = [host]
    if parts.port is None:
        hosts.append(f"{host}:443")
    elif parts.port == 443:
        hosts.append(host.rpartition(":")[0])
    return [f"wss://{name}{prefix}" for name in hosts]


def targets(knock: Knock) -> list[str]:
    """Path and query as they were sent, with and without a slash at the path's end."""
    path, mark, query = (knock.raw_path or knock.path).partition("?")
    other = path.removesuffix("/") if path.endswith("/") else f"{path}/"
    return [p + mark + query for p in (path, other)] if path.startswith("/") else []


def named_algorithm(settings: str) -> str:
    """``key=…,algorithm=HMAC_SHA256`` of X-Twilio-Webhooks-Signature-Settings."""
    for part in settings.split(","):
        name, _, value = part.partition("=")
        if name.strip() == "algorithm" and value.strip():
            return value.strip().upper()
    return SHA1
