"""Settings of recording."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bridge.config_fields import Section
from bridge.redact.kinds import Kind


class RecordingSettings(Section):
    """[recording]"""

    enabled: bool = False
    directory: str = Field(default="/var/lib/callscribe/recordings", min_length=1)
    format: Literal["wav", "opus"] = "wav"
    retention_days: float = Field(default=30.0, ge=0)  # 0: until somebody deletes them
    require_consent: bool = True
    transcript: bool = False  # finals in call.json
    redact: list[Kind] = Field(default_factory=list)  # of these
