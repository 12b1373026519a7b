"""The words of authentication: who knocks, with what, and how it is answered. Pure.

What is secret is in no `repr`: these objects may stand in a log line or a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bridge.errors import BridgeError


@dataclass(frozen=True, slots=True)
class Knock:
    """One upgrade request. What it says is the peer's word, except `host`."""

    path: str  # "/v1/stream", without query
    query: Mapping[str, str] = field(repr=False)  # last value wins; percent-decoded
    headers: Mapping[str, str] = field(repr=False)  # names in lower case; repeated: joined by ", "
    host: str  # the peer's IP address
    raw_path: str = field(default="", repr=False)  # path and query as sent


@dataclass(frozen=True, slots=True)
class Identity:
    """Who may come in."""

    name: str  # label of the key, subject of the token, "loopback"
    kind: Literal["key", "jwt", "loopback", "signature"]


@dataclass(frozen=True, slots=True)
class Secret:
    """One word that may be an API key or a JWT. `source`: where it was, for sentences."""

    value: str = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A key of two parts."""

    id: str = field(repr=False)
    value: str = field(repr=False)
    source: str


@dataclass(frozen=True, slots=True)
class Signature:
    """Twilio's: X-Twilio-Signature, and X-Twilio-Webhooks-Signature-Settings or ""."""

    value: str = field(repr=False)
    settings: str = field(repr=False)
    source: str


Credential = Secret | Pair | Signature


class Denied(BridgeError):
    """Answer with `status` and close. The text is for the peer: it never quotes what was sent.

    `reason` is a word for metrics; `retry_after` is seconds, or None. `wrong`: what was shown is
    not right, which is held against the address.
    """

    def __init__(
        self,
        status: Literal[401, 403, 429, 503],
        sentence: str,
        *,
        reason: str,
        retry_after: float | None = None,
        wrong: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.reason = reason
        self.retry_after = retry_after
        self.wrong = wrong


class KeysWanted(Denied):
    """A token names a key that we do not have: fetch the keys and check once more.

    If nobody fetches, it is a `Denied` like any other.
    """

    def __init__(self) -> None:
        super().__init__(
            503,
            "the token is signed with a key that is not known here yet; try again",
            reason="jwt_key_unknown",
            retry_after=10.0,
        )
