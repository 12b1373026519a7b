"""Settings of the WebSocket listener."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from bridge.config_auth import AuthSettings
from bridge.config_fields import Address, Listen, Listener

File = Annotated[str, AfterValidator(os.path.expandvars)]  # $CREDENTIALS_DIRECTORY
Header = Annotated[str, Field(pattern="^[A-Za-z0-9-]{1,64}$")]
ADD_KEYS = (
    "add [[websocket.key]] (callscribe key new NAME makes one), [websocket.jwt] or "
    "[websocket.twilio]"
)


class WebSocketSettings(AuthSettings, Listener):
    """[websocket]: absent section, no WebSockets."""

    listen: Listen = Address("127.0.0.1", 8080)
    tls_cert: File | None = None  # PEM, with the chain
    tls_key: File | None = None  # PEM
    max_connections: int = Field(default=4096, ge=1)
    start_deadline: float = Field(default=5.0, gt=0, le=60)  # s from the upgrade to the first word
    # Two headers, as clients of /v1/stream send a key of two parts: its id, its secret
    key_headers: Annotated[list[Header], Field(min_length=2, max_length=2)] = [
        "Modal-Key", "Modal-Secret",
    ]  # fmt: skip
    patience: float = Field(default=10.0, gt=0, le=600)  # s without audio, where a protocol minds
    max_message: int = Field(default=1 << 20, ge=1024, le=16 * 1024 * 1024)  # bytes

    @model_validator(mode="after")
    def _plaintext(self) -> Any:
        """In place of the listener's own rule: here there can be TLS."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("expected tls_cert and tls_key, or neither")
        if self.public_url is not None and not self.authenticates:
            # A proxy on this machine would make the whole world a loopback peer.
            raise ValueError(f"public_url is set and nobody has to show a key; {ADD_KEYS}")
        if self.listen.loopback:
            return self
        if self.tls_cert is None and not self.allow_insecure:
            raise ValueError(
                f"listen = {str(self.listen)!r} is not loopback; set tls_cert and tls_key, or "
                "allow_insecure = true if the network in between is trusted"
            )
        if not self.authenticates:
            raise ValueError(
                f"listen = {str(self.listen)!r} is not loopback and nobody has to show a key; "
                f"{ADD_KEYS}"
            )
        return self
