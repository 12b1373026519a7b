"""Telnyx Media Streaming. Pure.

Source: Telnyx's AsyncAPI description, "Stream call media over WebSocket". Payloads are those of
RTP, without headers: PCMU, PCMA, G722, L16. Messages may overtake each other, so chunks are put in
order. A call is known by its session: two legs of one session are one call, if the second says
``leg=callee`` among its custom parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.ingress.json_stream import JsonStream, Stream, rate_of
from bridge.ingress.media_socket import POLICY, SocketError, clean, extras, identifier, words
from bridge.types import CallInfo

CODECS = {"PCMU": "pcmu", "PCMA": "pcma", "G722": "g722", "L16": "l16?"}


class Telnyx(JsonStream):
    """One stream."""

    depth = 10  # 200 ms

    def started(self, start: Mapping[str, Any], message: Mapping[str, Any]) -> Stream:
        parameters = extras(start.get("custom_parameters"))
        session, control = words(start, "call_session_id"), words(start, "call_control_id")
        name = "call_session_id" if session else "call_control_id"
        return Stream(
            call=identifier(session or control, name),
            encoding=_encoding(start.get("media_format")),
            leg=parameters.get("leg", ""),
            info=CallInfo(
                id="",
                caller=words(start, "from"),
                callee=words(start, "to"),
                extra={
                    **parameters,
                    "stream_id": words(message, "stream_id"),
                    "call_control_id": control,
                    "client_state": words(start, "client_state"),
                },
            ),
        )


def _encoding(form: object) -> tuple[str, int]:
    given = form if isinstance(form, dict) else {}
    name = given.get("encoding", "PCMU")
    if not isinstance(name, str) or name.upper() not in CODECS:
        raise SocketError(
            POLICY, f"media_format.encoding {clean(name)!r} is not one of PCMU, PCMA, G722, L16"
        )
    return CODECS[name.upper()], rate_of(given, "sample_rate", 8000)
