"""Recordings over HTTP: fetched and deleted by whoever has the token, and by nobody without one."""

from __future__ import annotations

from aiohttp import web

from bridge.http.access import Refusal
from bridge.http.service import SERVICE

TYPES = {".wav": "audio/wav", ".ogg": "audio/ogg; codecs=opus"}
NONE = "there is no recording of this call; there is one when the call is over, if it was recorded"


async def fetch(request: web.Request) -> web.StreamResponse:
    """GET /calls/{id}/recording/{leg}: the file, also in parts (Range)."""
    service, names = request.app[SERVICE], request.match_info
    try:
        path = await service.recording(names["id"], names["leg"])
    except TimeoutError:
        raise _slow() from None
    if path is None:
        raise Refusal(404, NONE)
    response = web.FileResponse(path)
    response.content_type = TYPES[path.suffix].partition(";")[0]
    response.headers["Content-Disposition"] = f'attachment; filename="{path.name}"'
    return response


async def delete(request: web.Request) -> web.StreamResponse:
    """DELETE /calls/{id}/recording: all legs; of a call that is up, recording ends."""
    try:
        if not await request.app[SERVICE].delete_recording(request.match_info["id"]):
            raise Refusal(404, NONE)
    except TimeoutError:
        raise _slow() from None
    except OSError as e:
        raise Refusal(503, f"the recording could not be deleted: {e.strerror}") from None
    return web.Response(status=204)


def _slow() -> Refusal:
    return Refusal(503, "the disk of the recordings does not answer", Retry_After="10")
