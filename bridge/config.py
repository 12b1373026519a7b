"""Every setting, validated, and the table of engine kinds.

One TOML file; every key also as environment (``BRIDGE_AMI__SECRET`` sets ``ami.secret``, and wins
over the file). An unknown or wrong key stops the start with the key's path and what was expected.
pydantic because its models, environment source and secret type are what this field uses.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from bridge.config_control import (
    AmiSettings,
    AriSettings,
    EslSettings,
    HttpSettings,
    LogSettings,
    RedactionSettings,
    ServiceSettings,
    TapRule,
    WebhookSettings,
)
from bridge.config_fields import (
    RATES,
    Address,
    PortRange,
    is_hub_name,
    parse_address,
    port_range,
)
from bridge.config_limits import LimitSettings, check_limits
from bridge.config_media import (
    ENGINE_KINDS,
    AudioSocketSettings,
    CallSettings,
    EngineSettings,
    RtpSettings,
    TurnSettings,
)
from bridge.config_outbox import OutboxSettings
from bridge.config_recording import RecordingSettings
from bridge.config_rules import RuleSettings, RulesSettings
from bridge.config_rules import check as check_rules
from bridge.config_websocket import WebSocketSettings
from bridge.errors import ConfigError

__all__ = [
    "ENGINE_KINDS", "RATES", "Address", "AmiSettings", "AriSettings", "AudioSocketSettings",
    "CallSettings", "EngineSettings", "EslSettings", "HttpSettings", "LogSettings",
    "OutboxSettings", "PortRange", "RecordingSettings", "RedactionSettings", "RtpSettings",
    "RuleSettings", "RulesSettings", "ServiceSettings", "Settings", "TapRule", "TurnSettings",
    "WebSocketSettings", "WebhookSettings", "from_dict", "is_hub_name", "load", "parse_address",
    "port_range", "rule_from_dict",
]  # fmt: skip


class Settings(BaseSettings):
    """The whole file."""

    model_config = SettingsConfigDict(
        env_prefix="BRIDGE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    engine: EngineSettings = EngineSettings()
    turns: TurnSettings = TurnSettings()
    audiosocket: AudioSocketSettings | None = None
    rtp: RtpSettings | None = None
    calls: CallSettings = CallSettings()
    limit: list[LimitSettings] = Field(default_factory=list)
    http: HttpSettings = HttpSettings()
    ami: AmiSettings | None = None
    ari: AriSettings | None = None
    esl: EslSettings | None = None
    websocket: WebSocketSettings | None = None
    webhook: list[WebhookSettings] = Field(default_factory=list)
    rules: RulesSettings = RulesSettings()
    rule: list[RuleSettings] = Field(default_factory=list, max_length=500)
    outbox: OutboxSettings = OutboxSettings()
    log: LogSettings = LogSettings()
    redaction: RedactionSettings = RedactionSettings()
    recording: RecordingSettings = RecordingSettings()
    service: ServiceSettings = ServiceSettings()

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.audiosocket and self.audiosocket.admission == "announced":
            if self.http.token is None and self.ami is None and self.ari is None:
                raise ValueError(
                    'audiosocket.admission = "announced" needs http.token (for POST /calls) '
                    "or an [ami] section, or nobody can announce a call"
                )
        if self.ari is not None:
            _check_arrival(self.ari, self.audiosocket, self.rtp, self.websocket)
        slots = self.engine.slots
        check_limits(self.limit, slots if isinstance(slots, int) else None)
        names = [hook.name or urlsplit(hook.url).hostname for hook in self.webhook]
        for name in names:
            if names.count(name) > 1:  # metrics and message ids could not tell them apart
                raise ValueError(f"webhook: two are called {name!r}; give each a name of its own")
        self.check_rules(self.rule)
        return self

    def check_rules(self, rules: list[RuleSettings]) -> None:
        """Whether rules may and can do what they say, with these settings. Raises ValueError."""
        named = {hook.name for hook in self.webhook if hook.name}
        has = {"ami": self.ami is not None, "esl": self.esl is not None}
        check_rules(rules, self.rules, **has, webhooks=named)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # environment over file


def _check_arrival(
    ari: AriSettings,
    audiosocket: AudioSocketSettings | None,
    rtp: RtpSettings | None,
    websocket: WebSocketSettings | None,
) -> None:
    """What ARI taps arrives at [audiosocket], [rtp] or [websocket]. ValueError: it could not."""
    if ari.encapsulation == "websocket":
        if websocket is None:
            raise ValueError(
                'ari.encapsulation = "websocket" needs a [websocket] section: it arrives there'
            )
        return
    if ari.encapsulation == "rtp":
        if rtp is None:
            raise ValueError('ari.encapsulation = "rtp" needs an [rtp] section: it arrives there')
        if rtp.require_srtp:
            raise ValueError(
                'ari.encapsulation = "rtp" goes with no rtp.require_srtp: '
                "Asterisk's external media has no SRTP"
            )
        return
    if audiosocket is None:
        raise ValueError("[ari] needs an [audiosocket] section: what it taps arrives there")
    anywhere = audiosocket.listen.host in ("0.0.0.0", "::")
    if ari.form == "external_media" and ari.audiosocket is None and anywhere:
        raise ValueError(
            f'ari.form = "external_media" with audiosocket.listen = {str(audiosocket.listen)!r} '
            "needs ari.audiosocket, the address at which Asterisk reaches it"
        )


def load(path: str | Path | None) -> Settings:
    """Read and check the file (None: only environment and defaults). Raises `ConfigError`."""
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as e:
            raise ConfigError([f"{path}: cannot be read: {e.strerror}"]) from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError([f"{path}: not TOML: {e}"]) from e
    return from_dict(data)


def from_dict(data: dict[str, Any]) -> Settings:
    """As `load`, from a dictionary."""
    strange = _strange_variables()
    if strange:
        raise ConfigError(strange)
    try:
        return Settings(**data)
    except ValidationError as e:
        raise ConfigError([_sentence(dict(error)) for error in e.errors()]) from None
    except SettingsError as e:  # names the section, never the value
        example = '["10.0.0.0/8"]'
        raise ConfigError(
            [f"environment: {e}; lists and tables are written as JSON there: {example}"]
        ) from None


def rule_from_dict(data: dict[str, Any]) -> RuleSettings:
    """One [[rule]], from a dictionary. Raises `ConfigError`."""
    try:
        return RuleSettings.model_validate(data)
    except ValidationError as e:
        raise ConfigError([_sentence(dict(error)) for error in e.errors()]) from None


def _strange_variables() -> list[str]:
    """BRIDGE_…__… of no section of ours: a slip of the pen that pydantic would pass over."""
    sections = {name.upper() for name in Settings.model_fields}
    return [
        f"{name}: is not a setting (deployment/bridge.toml shows them all)"
        for name in sorted(os.environ)
        if name.upper().startswith("BRIDGE_")
        and "__" in name
        and name[len("BRIDGE_") :].partition("__")[0].upper() not in sections
    ]


def _sentence(error: dict[str, Any]) -> str:
    """``ami.secret: is missing``. Never the value itself where it could be a secret."""
    path = ".".join(str(part) for part in error["loc"]) or "configuration"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "is not a setting (deployment/bridge.toml shows them all)"
    elif error["type"] == "missing":
        message = "is missing"
    elif error["type"] == "model_type":
        message = f"expected a table, such as [{path}]"
    elif error["type"] == "list_type":
        message = "expected a list; of tables, [[" + path + "]]"
    else:
        message = message[:1].lower() + message[1:]
    return f"{path}: {message}"
