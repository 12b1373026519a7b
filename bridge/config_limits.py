"""Settings of who may have how many calls."""

from __future__ import annotations

from pydantic import Field, model_validator

from bridge.config_fields import Section


class LimitSettings(Section):
    """[[limit]]: calls of one trunk or tenant."""

    name: str = Field(pattern="^[A-Za-z0-9_-]{1,32}$")  # in metrics, and in limit:NAME
    trunk: str = ""  # with * and ?: extra.trunk, or the channel's endpoint, PJSIP/acme
    tenant: str = ""  # with * and ?: extra.tenant
    max: int | None = Field(default=None, ge=0)  # calls at once; None: any number
    reserve: int = Field(default=0, ge=0)  # slots that no other calls get

    @model_validator(mode="after")
    def _something(self) -> LimitSettings:
        if self.max is None and not self.reserve:
            raise ValueError("expected max (calls at once), or reserve (slots kept for them)")
        if self.max is not None and self.reserve > self.max:
            raise ValueError(f"reserve = {self.reserve} is over max = {self.max}")
        return self


def check_limits(limits: list[LimitSettings], slots: int | None) -> None:
    """Names, and room left for others; `slots` None: not known yet. Raises ValueError."""
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"limit: two are called {name!r}; give each a name of its own")
    kept = sum(limit.reserve for limit in limits)
    if slots is not None and kept > slots:
        raise ValueError(
            f"limit: {kept} slots are reserved in all, and engine.slots = {slots} are fewer"
        )
