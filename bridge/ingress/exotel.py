"""Exotel's Stream and Voicebot applets. Pure.

Source: Exotel's "Working with the Stream and Voicebot Applet". As Twilio's, with names of other
spelling: base64 of little-endian samples, 8 kHz unless the URL or ``media_format`` says another
rate (``?sample-rate=16000``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.ingress.json_stream import JsonStream, Stream, rate_of
from bridge.ingress.media_socket import extras, identifier, words
from bridge.types import CallInfo


class Exotel(JsonStream):
    """One stream: what the caller says."""

    def started(self, start: Mapping[str, Any], message: Mapping[str, Any]) -> Stream:
        parameters = extras(start.get("custom_parameters"))
        form = start.get("media_format")
        known = form if isinstance(form, dict) else {}
        given = self.opening.query.get("sample-rate", "8000")
        asked = int(given) if given in ("8000", "16000", "24000") else 8000
        return Stream(
            call=identifier(start.get("call_sid"), "call_sid"),
            encoding=(
                "l16le",
                rate_of(known, "sample_rate", asked),
            ),
            tracks=("inbound",),
            leg=parameters.get("leg", ""),
            info=CallInfo(
                id="",
                caller=words(start, "from"),
                callee=words(start, "to"),
                extra={
                    **parameters,
                    "stream_sid": words(start, "stream_sid") or words(message, "stream_sid"),
                    "account_sid": words(start, "account_sid"),
                },
            ),
        )
