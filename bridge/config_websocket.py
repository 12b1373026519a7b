"""Settings of [websocket]."""

from __future__ import annotations

from pydantic import Field

from bridge.config_fields import Address, Listen, Listener


class WebSocketSettings(Listener):
    """[websocket]: absent section, no WebSockets."""

    listen: Listen = Address("127.0.0.1", 8080)
    public_url: str | None = None  # as peers see it: wss://stt.example.com
    max_connections: int = Field(default=4096, ge=1)
    max_connections_per_address: int = Field(default=4096, ge=1)
    start_deadline: float = Field(default=5.0, gt=0, le=60)
    patience: float = Field(default=10.0, gt=0, le=600)  # without audio, where a protocol minds
    max_message: int = Field(default=1 << 20, ge=1024, le=16 * 1024 * 1024)  # bytes
