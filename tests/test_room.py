"""Is there room? A server asked over HTTP before a call is answered."""

from __future__ import annotations

import time
from typing import Any

import aiohttp

from bridge.engine.batcher import Batcher
from bridge.engine.budget import SLOW
from tests.serving import GOODBYE, Peer
from tests.test_server import Begin, Up, begin
from tests.waiting import until

__all__ = ["begin"]

HEADERS = {"Authorization": "Bearer a secret word"}
LIMIT = {"name": "acme", "tenant": "acme", "max": 1}


async def ask(up: Up, method: str, path: str, **body: object) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{up.http_port}{path}"
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.request(method, url, json=body, headers=HEADERS) as answer,
    ):
        return answer.status, await answer.json() if answer.status != 204 else None


async def test_room_is_promised_until_it_is_used_or_given_back(begin: Begin) -> None:
    up = await begin(engine={"slots": 2})
    status, first = await ask(up, "POST", "/calls")
    assert (status, first["reserved"], first["expires_in"]) == (201, True, 30.0)
    _, second = await ask(up, "POST", "/calls", call="c-2")
    status, answer = await ask(up, "POST", "/calls")
    assert (status, answer["reason"]) == (503, "busy")
    assert answer["error"] == "0 of the engine's 2 slots are taken, and 2 are kept for others"
    assert await up.metric("slots_reserved") == 2.0
    async with Peer(up.audiosocket) as stranger:
        await stranger.hello()
        assert await stranger.goodbye() == GOODBYE
    assert (await ask(up, "DELETE", "/calls/c-2"))[0] == 204
    async with Peer(up.audiosocket) as caller:
        caller.id = first["uuid"]
        await caller.hello()
        await until(lambda: first["uuid"] in up.server.switchboard.calls)
        assert await up.metric("slots_reserved") == 0.0
        assert await up.metric("reservations_total", what="used") == 1.0
        assert await up.metric("reservations_total", what="released") == 1.0
    assert second["uuid"] not in up.server.switchboard.calls


async def test_a_limit_that_is_reached_has_its_name_in_the_answer_and_in_the_scrape(
    begin: Begin,
) -> None:
    up = await begin(limit=[LIMIT])  # type: ignore[arg-type]
    extra = {"tenant": "acme"}
    assert (await ask(up, "POST", "/calls", extra=extra))[0] == 201
    status, answer = await ask(up, "POST", "/calls", extra=extra)
    assert (status, answer) == (
        503, {"error": "the limit acme of 1 calls is reached", "reason": "limit:acme"},
    )  # fmt: skip
    assert await up.metric("limit_calls", limit="acme") == 1.0
    assert await up.metric("limit_refused_total", limit="acme") == 1.0
    assert (await ask(up, "POST", "/calls"))[0] == 201


async def test_an_engine_that_is_too_slow_makes_no_promises(
    begin: Begin,
) -> None:
    up = await begin(engine={"step_budget": 0.04})
    assert (await ask(up, "POST", "/calls"))[0] == 201
    engine = up.server.recogniser
    assert isinstance(engine, Batcher)
    for _ in range(SLOW):
        engine.budget.add(1.0, time.monotonic())
    status, answer = await ask(up, "POST", "/calls")
    assert (status, answer["reason"]) == (503, "overload")


async def test_a_call_is_paused_over_http_and_shows_it(begin: Begin) -> None:
    up = await begin()
    _, announced = await ask(up, "POST", "/calls", listen={"seconds": 60})
    id = announced["uuid"]
    async with Peer(up.audiosocket) as caller:
        caller.id = id
        await caller.hello()
        await until(lambda: id in up.server.switchboard.calls)
        assert await ask(up, "POST", f"/calls/{id}/pause") == (200, {"paused": {"caller": True}})
        await caller.speak([1, 2])
        await until(
            lambda: up.server.switchboard.calls[id].legs["caller"].counts().paused > 0.7, 10.0
        )
        assert (await ask(up, "GET", f"/calls/{id}/listen"))[1]["status"] == "listening"
        assert (await ask(up, "DELETE", f"/calls/{id}"))[0] == 204
        assert await caller.goodbye() == GOODBYE
    await until(lambda: up.sink.ended(id), 10.0)
    assert up.sink.finals(id) == []
    assert (await ask(up, "GET", f"/calls/{id}/listen"))[1]["status"] == "ended"
    assert (await ask(up, "GET", "/calls/nobody/listen"))[0] == 404
