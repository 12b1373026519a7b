"""Tell an HTTP endpoint: one signed POST per event (Standard Webhooks 1.0).

Only the status decides. 2xx is success; everything else raises `DeliveryError`, and `verdict` says
what that costs. Redirects are not followed, because they would carry what was said, and our
signature, to an address that nobody configured. Texts of errors name host and status, never path,
query or secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver

from bridge import __version__
from bridge.config import WebhookSettings
from bridge.contract import body, event_type
from bridge.egress.resolver import NotPublic, PublicOnly
from bridge.egress.retry import WISH_LIMIT
from bridge.egress.signature import check_secret, sign
from bridge.errors import DeliveryError
from bridge.types import CallEvent, RuleFired

CONNECTIONS = 32
RUN_BYTES = 64 * 1024  # of a body that carries several events
ANSWER_LIMIT = 64 * 1024  # bytes of an answer that are read to keep the connection
ANSWER_TIME = 1.0  # seconds for them; the event was taken, its call's next one should not wait
TRIES = 3  # of an event that is answered 4xx
TRIES_REMEMBERED = 4096  # events; the outbox has fewer on their way
RETRIED_4XX = frozenset({408, 425, 429})  # they speak of the moment, not of the event
SLOW_DOWN = frozenset({429, 502, 503, 504})


def message_id(call_id: str, name: str, seq: int) -> str:
    """``webhook-id``: the same for every attempt. No dot, which the signature uses to separate."""
    return re.sub(r"[^A-Za-z0-9:_-]", "_", f"{call_id}:{name}:{seq}")


def run_id(events: Sequence[CallEvent], name: str) -> str:
    """``webhook-id``: the same for the same events. Of one call, from which to which."""
    first, last = events[0], events[-1]
    begin = message_id(first.call.id, name, first.seq)
    if first is last:
        return begin
    if all(event.call.id == first.call.id for event in events):
        return f"{begin}-{last.seq}"
    which = "\0".join(f"{event.call.id}\0{event.seq}" for event in events)
    return f"{begin}:{hashlib.sha256(which.encode('utf-8', 'replace')).hexdigest()[:24]}"


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds, from RFC 9110 10.2.3 (seconds or a date); None if there is no sense in it."""
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), WISH_LIMIT)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, moment.timestamp() - now), WISH_LIMIT)


class Webhook:
    """One endpoint. `wall` is Unix time, for the signatures' time and dates in answers.

    An address in the URL is the operator's own word; a name may only lead to public addresses,
    unless ``allow_private`` (`resolver.py`).
    """

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        wall: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._resolver = resolver
        self._host = urlsplit(settings.url).netloc
        self.name = settings.name or f"webhook:{urlsplit(settings.url).hostname}"
        self._settings, self._wall = settings, wall
        self.batch = settings.batch  # it takes runs (`runs.RunSink`) …
        self.run_bytes = RUN_BYTES  # … as long as this
        secrets = (settings.secret, settings.previous_secret)
        self._keys = [check_secret(s.get_secret_value()) for s in secrets if s is not None]
        self._tries: OrderedDict[str, int] = OrderedDict()  # by message id: times answered 4xx
        self._session: aiohttp.ClientSession | None = None

    def wants(self, event: CallEvent) -> bool:
        """Whether the settings ask for events of this type, or a rule names this webhook."""
        prefixes = tuple(self._settings.events)
        named = self._settings.name
        if isinstance(event.body, RuleFired) and named and event.body.webhook == named:
            return True
        return not prefixes or event_type(event).startswith(prefixes)

    async def start(self) -> None:
        """Make the session; connections are made when there is something to say."""
        resolver = self._resolver
        if not self._settings.allow_private:
            resolver = PublicOnly(resolver)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, resolver=resolver),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # 64 kB must stay 64 kB
            read_bufsize=ANSWER_LIMIT // 2,  # aiohttp holds up to twice as much
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def deliver(self, event: CallEvent) -> None:
        """POST the event. Raises `DeliveryError`."""
        name = message_id(event.call.id, self.name, event.seq)
        status, wish = await self.post(name, body(event))
        self._judge(name, status, wish)

    def encode(self, event: CallEvent) -> bytes:
        """An event as it is in an array."""
        return body(event)

    async def deliver_run(self, events: Sequence[CallEvent], bodies: Sequence[bytes]) -> None:
        """POST them as one JSON array, or one alone as it is. Raises `DeliveryError`."""
        name = run_id(events, self.name)
        content = b"[" + b",".join(bodies) + b"]" if len(bodies) > 1 else bodies[0]
        status, wish = await self.post(name, content)
        self._judge(name, status, wish)

    async def post(self, name: str, content: bytes) -> tuple[int, str | None]:
        """POST this body once, signed as message `name`: the answer's status and Retry-After.

        Raises `DeliveryError` where there is no answer.
        """
        if self._session is None:
            raise DeliveryError(f"{self._host}: the webhook is not started")
        try:
            return await self._post(self._session, content, self._headers(name, content))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise DeliveryError(self._sentence(error)) from None  # its text may hold the URL

    def _headers(self, name: str, content: bytes) -> dict[str, str]:
        now = int(self._wall())
        return {
            "content-type": "application/json",
            "user-agent": f"callscribe/{__version__}",
            "accept-encoding": "identity",
            "webhook-id": name,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self._keys, name, now, content),
        }

    async def _post(
        self, session: aiohttp.ClientSession, content: bytes, headers: dict[str, str]
    ) -> tuple[int, str | None]:
        """The answer's status and Retry-After. Raises what aiohttp raises."""
        async with session.post(
            self._settings.url, data=content, headers=headers, allow_redirects=False
        ) as response:
            await _drain(response)
            return response.status, response.headers.get("retry-after")

    def _judge(self, name: str, status: int, wish: str | None) -> None:
        """Raise unless the status is 2xx."""
        if 200 <= status < 300:
            self._tries.pop(name, None)
            return
        answered = f"{self._host} answered {status}"
        if status == 410:
            raise DeliveryError(f"{answered}: it wants no more events", gone=True)
        if 300 <= status < 400:
            raise DeliveryError(
                f"{answered}, and redirects are not followed; put the endpoint's own address "
                "into the webhook's url"
            )
        if 400 <= status < 500 and status not in RETRIED_4XX:
            raise DeliveryError(answered, permanent=self._given_up(name))
        wait = retry_after(wish, self._wall()) if status in SLOW_DOWN else None
        raise DeliveryError(answered, retry_after=wait)

    def _given_up(self, name: str) -> bool:
        """Count one more 4xx answer to this event. True when that was the last try."""
        tries = self._tries.pop(name, 0) + 1
        if tries >= TRIES:
            return True
        self._tries[name] = tries
        if len(self._tries) > TRIES_REMEMBERED:
            self._tries.popitem(last=False)
        return False

    def _sentence(self, error: Exception) -> str:
        """What went wrong, for somebody who can change it. Never the error's own text."""
        host = self._host
        match error:
            case aiohttp.ClientConnectorCertificateError():
                reason = getattr(error.certificate_error, "verify_message", "") or "not valid"
                return f"{host}: the TLS certificate is not trusted: {reason}"
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return f"{host}: no TLS there, or none that we can speak"
            case aiohttp.ClientConnectorError(os_error=NotPublic() as found):
                return str(found)
            case aiohttp.ClientConnectorDNSError():
                return f"{host}: the name cannot be resolved"
            case TimeoutError():
                return f"{host} did not answer within {self._settings.timeout:g} s"
            case aiohttp.ClientConnectorError():
                return f"{host} cannot be reached: {error.os_error.strerror or 'no connection'}"
            case aiohttp.ServerDisconnectedError() | OSError():
                return f"{host} closed the connection before it answered"
        return f"{host} did not answer in HTTP ({type(error).__name__})"


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the answer's body, so that its connection can be used again; or close the connection.

    Nobody needs the body: one that is long, slow or cut off costs its connection, nothing else.
    """
    if response.content.at_eof():  # as in nearly every case
        return
    left = ANSWER_LIMIT
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(ANSWER_TIME):
            while left > 0:
                chunk = await response.content.read(left)
                if not chunk and response.content.at_eof():
                    return
                left -= len(chunk)
    response.close()
