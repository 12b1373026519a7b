"""Rules of one call, in JSON as [[rule]] of the configuration has them.

POST   /calls/{id}/rules          a rule more: {"call_id": "…", "rules": ["stop"]}
GET    /calls/{id}/rules          {"call_id": "…", "rules": [{"name": "stop", …}], "spent": []}
DELETE /calls/{id}/rules/{name}   a rule less
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from bridge.errors import ConfigError
from bridge.http.access import Refusal
from bridge.http.announce import BadAnnouncement, json_object
from bridge.http.service import SERVICE

EXAMPLE = '{"name": "stop", "words": ["stop"], "actions": [{"do": "hangup", "target": "bridge"}]}'


def adder(
    read: Callable[[web.Request], Awaitable[bytes]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler; `read` gives a request's whole body."""

    async def add(request: web.Request) -> web.StreamResponse:
        call_id = request.match_info["id"]
        try:
            given = json_object(await read(request), EXAMPLE)
            names = request.app[SERVICE].add_rule(call_id, given)
        except BadAnnouncement as e:
            raise Refusal(400, str(e)) from None
        except ConfigError as e:
            raise Refusal(400, "; ".join(e.problems)) from None
        except LookupError as e:
            raise Refusal(404, str(e.args[0])) from None
        except ValueError as e:
            raise Refusal(409, str(e)) from None
        return web.json_response({"call_id": call_id, "rules": names}, status=201)

    return add


async def listed(request: web.Request) -> web.StreamResponse:
    call_id = request.match_info["id"]
    try:
        found = request.app[SERVICE].rules(call_id)
    except LookupError as e:
        raise Refusal(404, str(e.args[0])) from None
    return web.json_response({"call_id": call_id, **found})


async def remove(request: web.Request) -> web.StreamResponse:
    try:
        request.app[SERVICE].remove_rule(request.match_info["id"], request.match_info["name"])
    except LookupError as e:
        raise Refusal(404, str(e.args[0])) from None
    return web.Response(status=204)
