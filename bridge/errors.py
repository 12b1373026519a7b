"""What can go wrong, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class BridgeError(Exception):
    """Anything of ours. Its text is a sentence that a user can act on."""


class ConfigError(BridgeError):
    """The configuration is wrong: costs the start. One line per wrong key in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ProtocolError(BridgeError):
    """A peer broke its protocol: costs the peer its connection, nobody else anything.

    `before`: events of what was right in the same read, and in front of it.
    """

    before: Sequence[Any] = ()


class Busy(BridgeError):
    """No slot is free: costs the call that asked. `reason` is a `Refused.reason`."""

    def __init__(self, reason: str = "busy", text: str = "no free slot") -> None:
        super().__init__(text)
        self.reason = reason


class EngineUnavailable(BridgeError):
    """The engine cannot be had at all (not installed, no model): costs the start."""


class DeliveryError(BridgeError):
    """A sink did not take an event: costs a retry.

    `retry_after` in seconds is the sink's own wish, or None. `permanent` means that trying the
    same event again is pointless. `gone` means that the whole sink wants no more events.
    """

    def __init__(
        self,
        text: str,
        *,
        retry_after: float | None = None,
        permanent: bool = False,
        gone: bool = False,
    ) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.permanent = permanent
        self.gone = gone
