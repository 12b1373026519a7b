"""Plivo Audio Streams. Pure.

Source: Plivo's "Stream Event Protocol". Numbers are numbers, but ``timestamp``, which is a string
of Unix time in milliseconds. ``contentType`` of the XML is audio/x-l16;rate=8000 (default) or
16000, or audio/x-mulaw;rate=8000. ``extra_headers`` is one string, ``a=1;b=2``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bridge.ingress.json_stream import JsonStream, Stream, l16_or_mulaw, named_tracks
from bridge.ingress.media_socket import extras, identifier, words
from bridge.types import CallInfo


class Plivo(JsonStream):
    """One stream."""

    passed = frozenset({"playedStream", "clearedAudio"})
    epoch = True

    def started(self, start: Mapping[str, Any], message: Mapping[str, Any]) -> Stream:
        parameters = _pairs(message.get("extra_headers"))
        return Stream(
            call=identifier(start.get("callId"), "callId"),
            encoding=l16_or_mulaw(start.get("mediaFormat"), "sampleRate"),
            tracks=named_tracks(start.get("tracks")),
            leg=parameters.get("leg", ""),
            info=CallInfo(
                id="",
                caller=parameters.get("from", ""),
                callee=parameters.get("to", ""),
                extra={
                    **parameters,
                    "stream_id": words(start, "streamId"),
                    "account_id": words(start, "accountId"),
                },
            ),
        )


def _pairs(text: object) -> dict[str, str]:
    """``a=1;b=2`` or ``a=1,b=2``, or the object that some versions send."""
    if not isinstance(text, str):
        return extras(text)
    pairs = (pair.partition("=") for pair in re.split("[;,]", text[:2048]))
    return extras({name.strip(): value.strip() for name, equals, value in pairs if equals})
