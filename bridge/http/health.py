"""Health, readiness, information and metrics: open to all that can reach the listener."""

from __future__ import annotations

import time
from collections.abc import Mapping

from aiohttp import web

from bridge.http.service import SERVICE, Handler, Health


async def info(request: web.Request) -> web.StreamResponse:
    return web.json_response(request.app[SERVICE].info())


async def live(request: web.Request) -> web.StreamResponse:
    health = request.app[SERVICE].health()
    return web.json_response({"live": health.live}, status=200 if health.live else 503)


async def ready(request: web.Request) -> web.StreamResponse:
    health = request.app[SERVICE].health()
    body: dict[str, object] = {"ready": health.ready, "reasons": list(health.reasons)}
    outbox = health.checks.get("outbox", "ok")
    if outbox != "ok":  # calls go on all the same
        body["warnings"] = [f"outbox: {outbox}"]
    return web.json_response(body, status=200 if health.ready else 503)


async def startup(request: web.Request) -> web.StreamResponse:
    health = request.app[SERVICE].health()
    return web.json_response({"started": health.started}, status=200 if health.started else 503)


async def healthy(request: web.Request) -> web.StreamResponse:
    """The form that clients of the plain WebSocket read (its keys and types are theirs)."""
    service = request.app[SERVICE]
    health = service.health()
    body = {
        "status": _word(health, "healthy"),
        "websocket_available": health.checks.get("websocket") == "ok",
        "timestamp": int(time.time()),
        "service": str(service.info().get("name", "callscribe")),
    }
    return web.json_response(body, status=200 if health.live else 503)


async def status(request: web.Request) -> web.StreamResponse:
    """Everything about the health, in the form that clients of the session protocol read.

    Requests are calls. The averages are from a word's end to the message that says it, with the
    model's own delay, over the last words.
    """
    service = request.app[SERVICE]
    health, load = service.health(), service.metrics.load
    final = load.milliseconds("final")
    body = {
        "status": _word(health, "ready"),
        "accepting_requests": health.ready,
        "reasons": list(health.reasons),
        "checks": health.checks,
        "model": {
            "name": service.info().get("engine"),
            **health.model,
            "ready": health.checks.get("engine") == "ok",
        },
        "queue": {
            "depth": health.waiting,
            "avg_partial_ms": load.milliseconds("partial"),
            "avg_final_ms": final,
            "estimated_server_total_ms": final,
            "accepting_requests": health.ready,
            "total_requests": load.calls,
            "rejected_requests": load.refused,
        },
        "sessions": {"active": health.calls, "max": health.max_calls},
        "capacity": {
            "estimated_max_concurrent": health.slots,
            "current_load_percent": round(100 * health.used / max(health.slots, 1), 1),
        },
    }
    return web.json_response(body)


def _word(health: Health, good: str) -> str:
    if not health.live:
        return "unhealthy"
    if not health.started:
        return "starting"
    return good if health.ready else "not ready"


async def metrics(request: web.Request) -> web.StreamResponse:
    body, content_type = request.app[SERVICE].metrics.exposition()
    return web.Response(body=body, headers={"Content-Type": content_type})


HEALTH: Mapping[str, Handler] = {
    "/info": info,
    "/healthz": live,
    "/readyz": ready,
    "/metrics": metrics,
    "/health": healthy,
    "/health/live": live,
    "/health/ready": ready,
    "/health/startup": startup,
    "/health/status": status,
}
