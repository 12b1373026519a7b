"""The public keys that an identity provider signs with, and when to ask it again. Pure.

Only `bridge.auth_jwt` looks inside a key. What cannot be used (symmetric, private, for encryption,
too short, of an algorithm that is not pinned) is not in the ring.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.auth_types import Denied, KeysWanted

ASK_AGAIN = 10.0  # s between two requests to the provider because of a key that is not known
MOST_KEYS = 64
LONGEST_ID = 256  # characters
FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # of algorithm → kty


@dataclass(frozen=True, slots=True)
class Key:
    """`algorithms`: those of the pinned ones that it may be used with."""

    id: str
    algorithms: frozenset[str]
    material: Any


class KeyRing:
    """`make(jwk, algorithm)` gives a key's material, or raises ValueError."""

    def __init__(
        self, algorithms: list[str], make: Callable[[Mapping[str, Any], str], object]
    ) -> None:
        self._pinned = algorithms
        self._make = make
        self._keys: tuple[Key, ...] = ()
        self._asked: float | None = None
        self._asking = False
        self._answered = False

    def __len__(self) -> int:
        return len(self._keys)

    # -- the fetcher's side --------------------------------------------------------------------

    def may_ask(self, now: float) -> bool:
        """Whether the provider may be asked because of a key that is not known."""
        return self._asked is None or not 0 <= now - self._asked < ASK_AGAIN

    def asking(self, now: float) -> None:
        """A request is on its way."""
        self._asked, self._asking = now, True

    def failed(self) -> None:
        """It had no answer of use: the keys stay as they are."""
        self._asking = self._answered = False

    def answered(self, document: bytes) -> None:
        """A JWKS (RFC 7517 §5). Raises ValueError with a sentence, and the keys stay."""
        keys = self._parsed(document)
        if not keys:
            raise ValueError(
                f"has no key for {', '.join(self._pinned)}: correct websocket.jwt.algorithms, or "
                "jwks_url"
            )
        self._keys, self._asking, self._answered = keys, False, True

    # -- the verifier's side -------------------------------------------------------------------

    def find(self, key_id: str | None, algorithm: str, now: float) -> Key:
        """The key with this id; without an id, the only one. Raises `Denied`, `KeysWanted`."""
        fitting = [
            key for key in self._keys if algorithm in key.algorithms and key_id in (None, key.id)
        ]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:  # no id; or one that the provider has given twice
            raise Denied(
                401, "the token does not say which key signed it", reason="jwt_key", wrong=True
            )
        if self._asking or self.may_ask(now):
            raise KeysWanted
        if not self._answered:
            raise Denied(
                503,
                "the identity provider's keys cannot be fetched at present; try again",
                reason="jwt_keys_away",
                retry_after=ASK_AGAIN,
            )
        raise Denied(
            401,
            "the token is signed with a key that the identity provider does not have",
            reason="jwt_key",
            wrong=True,
        )

    def _parsed(self, document: bytes) -> tuple[Key, ...]:
        try:
            entries = json.loads(document)["keys"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise ValueError("is not a JSON Web Key Set") from None
        if not isinstance(entries, list):
            raise ValueError("is not a JSON Web Key Set")
        keys = []
        for jwk in entries[:MOST_KEYS]:
            if isinstance(jwk, dict):
                keys += self._key(jwk)
        return tuple(keys)

    def _key(self, jwk: dict[str, Any]) -> list[Key]:
        """The key, if it is one to verify with; [] otherwise."""
        key_id = jwk.get("kid", "")
        if not isinstance(key_id, str) or len(key_id) > LONGEST_ID or "d" in jwk:
            return []
        operations = jwk.get("key_ops", ["verify"])
        if jwk.get("use", "sig") != "sig" or "verify" not in _list(operations):
            return []
        fitting = [
            name
            for name in self._pinned
            if jwk.get("kty") == FAMILIES.get(name[:2]) and jwk.get("alg", name) == name
        ]
        usable = {}
        for name in fitting:
            try:
                usable[name] = self._make(jwk, name)
            except ValueError:
                continue
        if not usable:
            return []
        return [Key(key_id, frozenset(usable), next(iter(usable.values())))]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
