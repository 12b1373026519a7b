"""Settings of the outbox: where events wait for their sinks."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from bridge.config_fields import Section


class OutboxSettings(Section):
    """[outbox]"""

    path: str = ""  # a file; empty: in memory, and what waits is lost with the process
    max_rows: int = Field(default=5_000_000, ge=1000)  # events on the disk, dead letters included
    max_mb: int = Field(default=2048, ge=1)
    dead_days: float = Field(default=30.0, ge=0, le=3650)  # that dead letters are kept
    resume: float = Field(default=30.0, ge=0, le=3600)  # s that a dead worker's call may come back

    @field_validator("path")
    @classmethod
    def _a_file(cls, value: str) -> str:
        if value and (value.endswith("/") or Path(value).is_dir()):
            raise ValueError(
                "expected a file, such as /var/lib/callscribe/outbox.db, not a directory"
            )
        return value
