"""Twilio Media Streams: 8 kHz mu-law. Pure.

Source: Twilio's "Media Streams - WebSocket messages". Numbers come as strings. Any
message to a one-way stream is an error there (31924), so nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from bridge.ingress.json_stream import JsonStream, Stream, named_tracks
from bridge.ingress.media_socket import POLICY, SocketError, extras, identifier, words
from bridge.types import CallInfo


def twiml(url: str) -> str:
    """What a number's webhook answers: both parties go to `url`, and the call goes on."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Response><Start><Stream url={quoteattr(url)} "
        'track="both_tracks"/></Start><!-- your own verbs: <Dial>, … --></Response>\n'
    )


class Twilio(JsonStream):
    """One stream."""

    def started(self, start: Mapping[str, Any], message: Mapping[str, Any]) -> Stream:
        parameters = extras(start.get("customParameters"))
        return Stream(
            call=identifier(start.get("callSid"), "callSid"),
            encoding=self.encoding(start.get("mediaFormat")),
            tracks=named_tracks(start.get("tracks")),
            leg=parameters.get("leg", ""),
            info=CallInfo(
                id="",
                caller=parameters.get("from", ""),
                callee=parameters.get("to", ""),
                extra={
                    **parameters,
                    "stream_sid": words(start, "streamSid"),
                    "account_sid": words(start, "accountSid"),
                },
            ),
        )

    def encoding(self, form: object) -> tuple[str, int]:
        """Of ``mediaFormat``. Raises `SocketError`."""
        if isinstance(form, dict) and form.get("encoding", "audio/x-mulaw") != "audio/x-mulaw":
            raise SocketError(POLICY, "mediaFormat.encoding: expected audio/x-mulaw")
        return "pcmu", 8000
