"""Where a request comes from: a page in a browser, this machine, a proxy on it. Pure."""

from __future__ import annotations

from collections.abc import Collection

from bridge.addresses import FORWARDING, is_loopback
from bridge.auth_types import Denied, Knock
from bridge.config import Address
from bridge.config_auth import checked_origin


class Origins:
    """Pages that may connect: those that are configured, and our own on this machine.

    Browsers let any page open a WebSocket anywhere, and only say which page it was.
    """

    def __init__(self, allowed: Collection[str], pages: Collection[Address]) -> None:
        self._allowed = frozenset(allowed)
        self._ours = frozenset(origin for page in pages for origin in _called(page))

    def check(self, knock: Knock) -> None:
        """Raises `Denied`. A client that is no browser sends no Origin, and passes."""
        given = knock.headers.get("origin")
        if given is None:
            return
        try:
            origin = checked_origin(given)
        except ValueError:  # "null", or two of them
            origin = ""
        ours = origin in self._ours and from_this_machine(knock)
        if origin not in self._allowed and not ours:
            raise Denied(
                403,
                "pages of this origin may not connect: add it to websocket.allow_origins",
                reason="origin",
            )


def from_this_machine(knock: Knock) -> bool:
    """A loopback peer that does not say it speaks for another."""
    forwarded = any(name.lower() in knock.headers for name in FORWARDING)
    return is_loopback(knock.host) and not forwarded


def check_loopback(knock: Knock) -> None:
    """Where no key is configured: this machine only, whatever it shows.

    Most clients cannot be told to show nothing; moshi-server's shows ``public_token``.
    """
    if not from_this_machine(knock):
        raise Denied(
            401,
            "only this machine is served until a key is configured: callscribe key new NAME",
            reason="not_loopback",
        )


def _called(page: Address) -> list[str]:
    """What a browser on this machine calls a page that we serve there."""
    if not page.loopback and page.host not in ("0.0.0.0", "::"):
        return []
    names = ("127.0.0.1", "localhost", "[::1]")
    return [checked_origin(f"http://{name}:{page.port}") for name in names]
