"""Where clients put their secrets, one function for each place. Pure.

Each gives none or one credential, so that a protocol lists the places its clients use:
``[*bearer(knock), *query(knock, "token")]``. What is empty, or longer than any secret of ours or
token of an identity provider, is none.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote

from bridge.auth_types import Credential, Knock, Pair, Secret, Signature
from bridge.errors import ProtocolError

LONGEST = 8192  # characters; Keycloak's tokens with many roles have 4000
LONGEST_PART = 512  # of a key of two parts

PARAMETERS = 64

Found = tuple[Credential, ...]


def read_knock(target: str, headers: Iterable[tuple[str, str]], host: str) -> Knock:
    """From a request line's target and the headers, as they were sent. Raises `ProtocolError`."""
    path, _, text = target.partition("?")
    if not path.startswith("/") or "#" in target:
        raise ProtocolError("the request's target must be a path")
    try:
        parameters = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=PARAMETERS))
    except ValueError:
        raise ProtocolError(f"a URL has at most {PARAMETERS} parameters here") from None
    together: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        together[name] = f"{together[name]}, {value}" if name in together else value
    return Knock(unquote(path), parameters, together, host, target)


def bearer(knock: Knock) -> Found:
    """``Authorization: Bearer …`` (RFC 6750)."""
    return _authorization(knock, "Bearer")


def token(knock: Knock) -> Found:
    """``Authorization: Token …``, as Deepgram's clients send it."""
    return _authorization(knock, "Token")


def basic(knock: Knock) -> Found:
    """``Authorization: Basic …`` (RFC 7617), as Asterisk's chan_websocket sends it."""
    for found in _authorization(knock, "Basic"):
        assert isinstance(found, Secret)
        try:
            text = base64.b64decode(found.value, validate=True).decode("utf-8")
        except ValueError:  # not base64, or not UTF-8
            return ()
        user, colon, password = text.partition(":")
        return _pair(user, password, "Authorization: Basic") if colon else ()
    return ()


def header(knock: Knock, name: str) -> Found:
    """A header of its own: ``kyutai-api-key``, ``x-api-key``."""
    return _secret(knock.headers.get(name.lower(), ""), name)


def pair(knock: Knock, id_header: str = "Modal-Key", secret_header: str = "Modal-Secret") -> Found:
    """Two headers."""
    key_id = knock.headers.get(id_header.lower(), "")
    secret = knock.headers.get(secret_header.lower(), "")
    return _pair(key_id.strip(), secret.strip(), f"{id_header} and {secret_header}")


def query(knock: Knock, name: str) -> Found:
    """A parameter of the URL, for clients that can set nothing else; proxies may log it."""
    return _secret(knock.query.get(name, ""), f"?{name}=")


def subprotocol(knock: Knock, prefix: str = "openai-insecure-api-key.") -> Found:
    """An offered subprotocol that carries a key, as browsers must; it is not the one to choose."""
    offered = knock.headers.get("sec-websocket-protocol", "")[: 2 * LONGEST].split(",")
    for protocol in (word.strip() for word in offered):
        if protocol.startswith(prefix):
            return _secret(protocol[len(prefix) :], "Sec-WebSocket-Protocol")
    return ()


def after_token(knock: Knock) -> Found:
    """The subprotocol offered after ``token`` or ``bearer``: Deepgram's clients in browsers."""
    offered = knock.headers.get("sec-websocket-protocol", "")[: 2 * LONGEST].split(",")
    scheme, key = (word.strip() for word in (*offered, "")[:2])
    return _secret(key, "Sec-WebSocket-Protocol") if scheme in ("token", "bearer") else ()


def twilio(knock: Knock) -> Found:
    """``X-Twilio-Signature``."""
    value = knock.headers.get("x-twilio-signature", "").strip()
    settings = knock.headers.get("x-twilio-webhooks-signature-settings", "")
    if not value or len(value) > LONGEST_PART or len(settings) > LONGEST_PART:
        return ()
    return (Signature(value, settings, "X-Twilio-Signature"),)


def looks_like_jwt(text: str) -> bool:
    """``{"`` in base64, and three parts: nothing else is a JSON Web Token."""
    return text.startswith("ey") and text.count(".") == 2


def _authorization(knock: Knock, scheme: str) -> Found:
    given, _, value = knock.headers.get("authorization", "").partition(" ")
    if given.lower() != scheme.lower():
        return ()
    return _secret(value, f"Authorization: {scheme}")


def _secret(value: str, source: str) -> Found:
    value = value.strip()
    return (Secret(value, source),) if 0 < len(value) <= LONGEST else ()


def _pair(key_id: str, value: str, source: str) -> Found:
    if not key_id or not value or max(len(key_id), len(value)) > LONGEST_PART:
        return ()
    return (Pair(key_id, value, source),)
