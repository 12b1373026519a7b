"""What people and tools ask us over HTTP: health, metrics, calls; announcing and hanging up.

Answers are JSON, a call's text and the metrics are plain text. The one page (bridge/http/page.py)
holds no text of a call, so none can become markup. Errors are ``{"error": sentence}``.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from collections.abc import Collection, Mapping

from aiohttp import web
from aiohttp.typedefs import Middleware

from bridge.errors import Busy, DeliveryError
from bridge.http import control, recordings, rules
from bridge.http.access import Access, Check, Refusal
from bridge.http.announce import (
    MAX_BODY,
    BadAnnouncement,
    TapWanted,
    Wanted,
    parse_announcement,
)
from bridge.http.health import HEALTH
from bridge.http.listener import Connection, HttpServer
from bridge.http.live import HUB, Hub, events
from bridge.http.page import root
from bridge.http.service import LIMITS, SERVICE, Handler, Health, Limits, Service
from bridge.http.vtt import vtt

__all__ = ["Health", "HttpServer", "Limits", "Service", "make_app"]

log = logging.getLogger(__name__)

HEADERS = {
    "Cache-Control": "no-store",  # what was said stays out of caches
    "X-Content-Type-Options": "nosniff",  # plain text stays plain text
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "callscribe",
}
SENTENCES = {
    404: "there is nothing at this address; GET /calls lists the calls, GET /health the health",
    405: "this address does not take this method; the Allow header says which it takes",
}
MAX_QUERY = 200  # characters
RETRY_AFTER = "5"  # seconds; a slot is free again when a call ends


def make_app(
    service: Service,
    *,
    token: str | None,
    hosts: Collection[str] = (),
    limits: Limits | None = None,
    hub: Hub | None = None,
) -> web.Application:
    """The application. `hub` is told events for `GET /events`.

    `hosts` are further Host names that a loopback listener answers to.
    Raises `ConfigError` for an empty token.
    """
    access = Access(token, hosts)
    app = web.Application(middlewares=[_errors, _host_check(access)], client_max_size=MAX_BODY)
    app[SERVICE] = service
    app[LIMITS] = limits or Limits()
    app[HUB] = hub or Hub()
    # Returning None is fine with every aiohttp; the types of some say otherwise.
    app.on_response_prepare.append(_prepare)  # type: ignore[arg-type, unused-ignore]
    app.router.add_get("/", root)
    for path, handler in HEALTH.items():
        app.router.add_get(path, handler)
    for path, handler in READING.items():
        app.router.add_get(path, _checked(access.check_reading, handler))
    for path, handler in control.WRITING.items():
        app.router.add_post(path, _checked(access.check_writing, handler))
    app.router.add_post("/calls", _checked(access.check_writing, announce))
    app.router.add_post("/calls/{id}/rules", _checked(access.check_writing, rules.adder(_body)))
    app.router.add_get("/calls/{id}/rules", _checked(access.check_reading, rules.listed))
    app.router.add_delete("/calls/{id}/rules/{name}", _checked(access.check_writing, rules.remove))
    app.router.add_delete("/calls/{id}", _checked(access.check_writing, hang_up))
    fetch = _checked(access.check_writing, recordings.fetch)
    app.router.add_get("/calls/{id}/recording/{leg}", fetch)
    app.router.add_delete(
        "/calls/{id}/recording", _checked(access.check_writing, recordings.delete)
    )
    return app


# -- around every request -----------------------------------------------------------------------


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as JSON; ours without details that could hold a call's text."""
    try:
        return await handler(request)
    except Refusal as e:
        return _error(e.status, e.sentence, e.headers)
    except web.HTTPException as e:
        allow = {"Allow": e.headers["Allow"]} if "Allow" in e.headers else {}
        return _error(e.status, SENTENCES.get(e.status, e.reason), allow)
    except Exception as e:
        stack = "".join(traceback.format_tb(e.__traceback__))  # where, without any value
        log.error("%s %s: %s\n%s", request.method, _route(request), type(e).__name__, stack)
        return _error(500, "the bridge failed at this; its log says where")


def _route(request: web.Request) -> str:
    """``/calls/{id}``, not the path: what a peer sends does not go into the log."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "-"


def _host_check(access: Access) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        access.check_host(request)
        return await handler(request)

    return check


def _checked(check: Check, handler: Handler) -> Handler:
    async def checked(request: web.Request) -> web.StreamResponse:
        check(request)
        return await handler(request)

    return checked


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    policy = response.headers.get("Content-Security-Policy")
    response.headers.update(HEADERS)
    if policy is not None:  # the page's own
        response.headers["Content-Security-Policy"] = policy
    request.app[SERVICE].metrics.http_response(response.status)
    if isinstance(request.protocol, Connection):
        request.protocol.answering()


def _error(
    status: int, sentence: str, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    return web.json_response({"error": sentence}, status=status, headers=headers)


# -- calls -----------------------------------------------------------------------------------------


async def calls(request: web.Request) -> web.StreamResponse:
    """Those that are up; with ``ended`` those that ended too; with ``q`` those that said that."""
    service, query = request.app[SERVICE], request.query
    if "ended" not in query and "q" not in query:
        return web.json_response({"calls": service.calls()})
    found = service.search(query.get("q", "")[:MAX_QUERY], ended="ended" in query)
    return web.json_response({"calls": found})


async def call(request: web.Request) -> web.StreamResponse:
    found = request.app[SERVICE].call(request.match_info["id"])
    if found is None:
        raise _unknown()
    return web.json_response(found)


async def text(request: web.Request) -> web.StreamResponse:
    found = request.app[SERVICE].text(request.match_info["id"])
    if found is None:
        raise _unknown()
    return web.Response(text=found)


async def subtitles(request: web.Request) -> web.StreamResponse:
    found = request.app[SERVICE].call(request.match_info["id"])
    if found is None:
        raise _unknown()
    finals = found["finals"]
    assert isinstance(finals, list)
    return web.Response(text=vtt(finals), content_type="text/vtt")


def _unknown() -> Refusal:
    return Refusal(404, "no call has this id, or it ended too long ago; GET /calls lists them")


async def announce(request: web.Request) -> web.StreamResponse:
    try:
        wanted = parse_announcement(await _body(request), lambda: str(uuid.uuid4()))
        answer = _announced(request.app[SERVICE], wanted)
    except BadAnnouncement as e:
        raise Refusal(400, str(e)) from None
    except Busy as e:
        retry = {"Retry-After": RETRY_AFTER}
        body = {"error": str(e), "reason": e.reason}
        return web.json_response(body, status=503, headers=retry)
    except DeliveryError as e:
        raise Refusal(503, str(e), Retry_After=RETRY_AFTER) from None
    except LookupError as e:
        raise Refusal(404, str(e.args[0])) from None
    except ValueError as e:
        raise Refusal(409, str(e)) from None
    return web.json_response(answer, status=201)


def _announced(service: Service, wanted: Wanted | TapWanted) -> dict[str, object]:
    if isinstance(wanted, TapWanted):
        call = service.tap(wanted.channel, wanted.call, wanted.leg, consents=wanted.consents)
        return {"call": call, "channel": wanted.channel}
    announcement = wanted.announcement
    answer: dict[str, object] = {
        "uuid": announcement.uuid,
        "call": announcement.call or announcement.uuid,
        "leg": announcement.leg,
        "reserved": True,
    }
    if wanted.media is None:
        return answer | {"expires_in": service.announce(announcement)}
    media = service.open_media(announcement, wanted.media)
    srtp = media.srtp
    return answer | {
        "expires_in": media.expires_in,
        "media": {
            "type": wanted.media.kind,
            "address": media.address,
            "port": media.port,
            "codec": media.codec,
            "payload_types": {str(number): name for number, name in media.payload_types.items()},
            **({"srtp": {"suite": srtp.suite, "key": srtp.key}} if srtp else {}),
        },
    }


async def _body(request: web.Request) -> bytes:
    """The whole body. Raises `Refusal` when it is too long, too slow, broken or cut off."""
    try:
        async with asyncio.timeout(request.app[LIMITS].body):
            return await request.read()
    except TimeoutError:
        raise Refusal(408, "the body took too long", Connection="close") from None
    except (ConnectionError, web.RequestPayloadError):  # the peer's fault, not one to log
        raise Refusal(400, "the body is broken or was cut off", Connection="close") from None
    except web.HTTPRequestEntityTooLarge:
        sentence = f"the body is longer than {MAX_BODY} bytes"
        raise Refusal(400, sentence, Connection="close") from None


async def hang_up(request: web.Request) -> web.StreamResponse:
    if not request.app[SERVICE].hang_up(request.match_info["id"]):
        raise Refusal(404, "no running call has this id; GET /calls lists the calls")
    return web.Response(status=204)


READING: Mapping[str, Handler] = {
    "/calls": calls,
    "/calls/{id}": call,
    "/calls/{id}/text": text,
    **control.READING,
    "/calls/{id}/vtt": subtitles,
    "/events": events,
}
