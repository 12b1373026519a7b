"""The identity provider's keys over HTTP: every few minutes, and when a token names a new one.

Whoever knocks decides what a token says, so that an unknown key is asked for once in `ASK_AGAIN`
seconds at most, whoever names however many. While the provider is away, its last keys stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import aiohttp

from bridge.auth import Auth, Credential, Identity, KeysWanted, Knock
from bridge.auth_ring import KeyRing
from bridge.config_auth import JwtSettings

log = logging.getLogger(__name__)

LONGEST = 256 * 1024  # bytes of an answer; Keycloak's have 3000
TIMEOUT = 8.0  # s of a request
PATIENCE = 3.0  # s that a caller waits for it
RETRY = 30.0  # s after a failure, if that is sooner than the next time


class ProviderKeys:
    """Fills `ring` from `settings.jwks_url`. `clock`: Unix time, as `Auth.check` is given."""

    def __init__(
        self,
        settings: JwtSettings,
        ring: KeyRing,
        *,
        clock: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        assert settings.jwks_url is not None
        self.counters: Counter[str] = Counter()  # fetched, failed
        self._url = settings.jwks_url
        self._period = settings.jwks_refresh
        self._ring = ring
        self._clock = clock
        # To be made once: reading the system's certificates stops the event loop for 0.1 s.
        self._tls = tls or ssl.create_default_context()
        self._fetching: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.problem = ""  # what was wrong with the last request

    def start(self) -> None:
        """Fetch, and go on doing so, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep_fresh())

    async def close(self) -> None:
        """Stop."""
        for task in (self._task, self._fetching):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def refresh(self) -> None:
        """Ask again, unless that has just been done; back when there is an answer, or after
        `PATIENCE` seconds.

        Everybody who waits waits for the same request; it goes on when they have given up.
        """
        if self._fetching is None:
            if not self._ring.may_ask(self._clock()):
                return
            self._begin()
        if self._fetching is not None:
            await asyncio.wait({self._fetching}, timeout=PATIENCE)

    async def _keep_fresh(self) -> None:
        while True:
            if self._fetching is None:
                self._begin()
            if self._fetching is not None:
                await asyncio.wait({self._fetching})
            await asyncio.sleep(min(self._period, RETRY) if self.problem else self._period)

    def _begin(self) -> None:
        self._ring.asking(self._clock())
        self._fetching = asyncio.get_running_loop().create_task(self._fetch())

    async def _fetch(self) -> None:
        problem = "was not waited for"
        try:
            self._ring.answered(await self._get())
            problem = ""
            self.counters["fetched"] += 1
            if self.problem:
                log.info("websocket.jwt.jwks_url: there are keys again")
        except (OSError, TimeoutError, aiohttp.ClientError, ValueError) as e:
            problem = f"{urlsplit(self._url).netloc} {_what(e)}"
            self.counters["failed"] += 1
            if not self.problem:
                log.warning(
                    "websocket.jwt.jwks_url: %s; %d keys of before go on being used",
                    problem, len(self._ring),
                )  # fmt: skip
        finally:  # also when we are cancelled
            self.problem = problem
            if problem:
                self._ring.failed()
            self._fetching = None

    async def _get(self) -> bytes:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls, limit=1, force_close=True),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            ) as session,
            # No redirects: they could lead to where there is no TLS, or into our own network.
            session.get(self._url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"answered {response.status}")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > LONGEST:
                    raise ValueError(f"answers with more than {LONGEST} bytes")
            return bytes(data)


def _what(error: Exception) -> str:
    """In our own words: the error's text may repeat what the server said."""
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "has no certificate that this machine trusts"
        case TimeoutError():
            return f"did not answer within {TIMEOUT:g} s"
        case aiohttp.ClientConnectorError():
            return "cannot be connected to"
        case ValueError() if not isinstance(error, aiohttp.ClientError):
            return str(error)
    return "closed the connection, or did not answer in HTTP"


async def admit(
    auth: Auth,
    keys: ProviderKeys | None,
    knock: Knock,
    credentials: Sequence[Credential],
    clock: Callable[[], float] = time.time,
) -> Identity:
    """`Auth.check`, and once more when the provider's keys had to be fetched. Raises `Denied`."""
    try:
        return auth.check(knock, credentials, clock())
    except KeysWanted:
        if keys is None:
            raise
    await keys.refresh()
    return auth.check(knock, credentials, clock())


def make_keys(auth: Auth, settings: JwtSettings | None) -> ProviderKeys | None:
    """What `auth` needs fetched, if anything."""
    ring = auth.jwt.ring if auth.jwt is not None else None
    return ProviderKeys(settings, ring) if settings is not None and ring is not None else None
