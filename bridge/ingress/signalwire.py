"""SignalWire's cXML ``<Stream>``: Twilio's messages, and linear audio besides. Pure.

Source: SignalWire's "Stream" in the cXML reference: ``codec`` PCMU@8000h (default), L16@16000h,
L16@24000h; ``authBearerToken`` comes as ``Authorization: Bearer``.
"""

from __future__ import annotations

from bridge.ingress.json_stream import l16_or_mulaw
from bridge.ingress.twilio import Twilio


class SignalWire(Twilio):
    """One stream."""

    def encoding(self, form: object) -> tuple[str, int]:
        return l16_or_mulaw(form, "sampleRate")
