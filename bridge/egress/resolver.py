"""Names to addresses for webhooks: looked up once, checked, connected to as they were checked."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from bridge.egress.addresses import not_public


class NotPublic(OSError):
    """A name leads to where a callback must not go. Its text is a sentence."""


class PublicOnly(AbstractResolver):
    """Only public addresses; `localhost`, which nobody else answers for, may be this machine.

    aiohttp connects to what `resolve` returns and asks nobody again, so a name that leads elsewhere
    a moment later (DNS rebinding) leads nowhere.
    """

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises `NotPublic` when no address is left, and what resolving raises."""
        found = await self._inner.resolve(host, port, family)
        kinds = [not_public(result["host"]) for result in found]
        ours = ("", "loopback") if host == "localhost" else ("",)
        good = [result for result, kind in zip(found, kinds, strict=True) if kind in ours]
        if found and not good:
            raise NotPublic(
                f"{host} is at {found[0]['host']}, which is {_article(kinds[0])} address; set "
                "allow_private = true for this webhook if that is meant"
            )
        return good

    async def close(self) -> None:
        """Let go."""
        await self._inner.close()


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else kind if kind == "no" else f"a {kind}"
