"""Calls that are up, told over HTTP to pause and to go on; and what a dialplan that listened heard.

POST /calls/{id}/pause     {"leg": "caller"}, or nothing for the whole call
POST /calls/{id}/resume    the same
GET  /calls/{id}/listen    {"status": "heard", "text": "…", "confidence": 0.93, "language": "en"}
GET  /calls/{id}/listen/form   the same for Asterisk's CURL(): status=heard&confidence=0.93&…
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import cast
from urllib.parse import quote, urlencode

from aiohttp import web

from bridge.http.access import Refusal
from bridge.http.announce import LEGS
from bridge.http.service import LIMITS, SERVICE, Handler
from bridge.types import LegName

MAX_BODY = 1024  # bytes


async def pause(request: web.Request) -> web.StreamResponse:
    return await _pausing(request, resume=False)


async def resume(request: web.Request) -> web.StreamResponse:
    return await _pausing(request, resume=True)


async def _pausing(request: web.Request, *, resume: bool) -> web.StreamResponse:
    leg = _leg(await _body(request))
    legs = request.app[SERVICE].pause(request.match_info["id"], leg, resume=resume)
    if legs is None:
        raise Refusal(404, "no running call has this id; GET /calls lists the calls")
    if leg is not None and leg not in legs:
        raise Refusal(404, f"the call has no {leg} leg")
    return web.json_response({"paused": legs})


async def _body(request: web.Request) -> bytes:
    if (request.content_length or 0) > MAX_BODY:
        raise Refusal(400, f"the body is longer than {MAX_BODY} bytes", Connection="close")
    try:
        async with asyncio.timeout(request.app[LIMITS].body):
            return await request.read()
    except TimeoutError:
        raise Refusal(408, "the body took too long", Connection="close") from None
    except (ConnectionError, web.RequestPayloadError, web.HTTPRequestEntityTooLarge):
        raise Refusal(400, "the body is broken or was cut off", Connection="close") from None


def _leg(body: bytes) -> LegName | None:
    if not body.strip():
        return None
    try:
        given = json.loads(body.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        given = None
    if not isinstance(given, dict) or not set(given) <= {"leg"}:
        raise Refusal(400, 'expected {"leg": "caller"}, {"leg": "callee"}, or no body for both')
    leg = given.get("leg")
    if leg is not None and leg not in LEGS:
        raise Refusal(400, 'leg: expected "caller" or "callee"')
    return cast(LegName, leg) if leg else None


async def listen(request: web.Request) -> web.StreamResponse:
    return web.json_response(_heard(request))


async def listen_form(request: web.Request) -> web.StreamResponse:
    """Each value as text that a dialplan may have in it."""
    found = _heard(request, plain=True)
    return web.Response(text=urlencode(found, quote_via=quote))


def _heard(request: web.Request, *, plain: bool = False) -> dict[str, object]:
    found = request.app[SERVICE].listened(request.match_info["id"], plain=plain)
    if found is None:
        raise Refusal(404, "no call of this id is, or was, listened to for one turn")
    return found


READING: Mapping[str, Handler] = {
    "/calls/{id}/listen": listen,
    "/calls/{id}/listen/form": listen_form,
}
WRITING: Mapping[str, Handler] = {"/calls/{id}/pause": pause, "/calls/{id}/resume": resume}
