"""Settings of call control: HTTP, AMI, ARI, the event socket, webhooks, log, service."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from bridge.config_fields import (
    Address,
    Listen,
    Listener,
    Party,
    Section,
    check_url,
    parse_address,
)
from bridge.egress.signature import check_secret
from bridge.redact.kinds import Kind

EventKind = Literal[
    "started", "partial", "final", "turn", "dtmf", "paused", "resumed", "listened", "ended",
    "refused", "rule",
]  # fmt: skip


class HttpSettings(Listener):
    """[http]"""

    listen: Listen = Address("127.0.0.1", 8001)
    token: Annotated[SecretStr, Field(min_length=8)] | None = None  # bearer token of /calls
    hosts: list[str] = Field(default_factory=list)  # further Host names accepted on loopback
    redact: list[Kind] = Field(default_factory=list)  # of what /calls/{id} shows


class AmiSettings(Section):
    """[ami]: absent section, no AMI."""

    host: str = "127.0.0.1"
    port: int = Field(default=5038, ge=1, le=65535)
    tls: bool = False
    allow_insecure: bool = False
    username: str
    secret: SecretStr
    auth: Literal["md5", "plain"] = "md5"
    join_variables: list[str] = ["CALLSCRIBE_ID"]
    events: list[EventKind] = [
        "started", "partial", "final", "turn", "paused", "resumed", "listened", "ended", "refused",
        "rule",
    ]  # fmt: skip
    set_variables: bool = True  # CALLSCRIBE_TEXT, CALLSCRIBE_STATUS
    redact: list[Kind] = Field(default_factory=list)
    timeout: float = Field(default=5.0, gt=0, le=60)  # of connect, log-in and each action
    ping_interval: float = Field(default=10.0, gt=0, le=300)

    @model_validator(mode="after")
    def _plaintext(self) -> AmiSettings:
        if not self.tls and not self.allow_insecure and not Address(self.host, 0).loopback:
            raise ValueError(
                f"host = {self.host!r} is not loopback; set tls = true (port 5039), or "
                "allow_insecure = true if the network in between is trusted"
            )
        return self


class TapRule(Section):
    """One of ari.taps: calls of which a channel is all that is named here are listened to."""

    context: str = ""  # with * and ?, as a file name
    exten: str = ""  # as in the dialplan: 100, or a pattern such as _2XX
    endpoint: str = ""  # with * and ?: PJSIP/trunk
    legs: list[Party] = Field(default=["caller", "callee"], min_length=1)

    @model_validator(mode="after")
    def _something(self) -> TapRule:
        if not (self.context or self.exten or self.endpoint):
            raise ValueError(
                'expected context, exten or endpoint; endpoint = "*" is every call there is'
            )
        return self


class AriSettings(Section):
    """[ari]: absent section, no ARI."""

    url: str = "http://127.0.0.1:8088/ari"
    allow_insecure: bool = False  # http:// to anything but loopback
    username: str = Field(min_length=1, pattern="^[^:]*$")  # of Basic authentication
    password: SecretStr
    app: str = Field(default="callscribe", pattern="^[A-Za-z0-9_-]{1,32}$")
    form: Literal["dialplan", "external_media"] = "dialplan"
    encapsulation: Literal["audiosocket", "rtp", "websocket"] = "audiosocket"  # external_media
    format: Literal["ulaw", "alaw", "g722", "slin", "slin16"] = "ulaw"  # of rtp and websocket
    websocket: str = Field(default="callscribe", pattern="^[A-Za-z0-9_.-]{1,79}$")
    context: str = Field(default="callscribe-snoop", pattern="^[A-Za-z0-9_.-]{1,79}$")
    # form external_media: where Asterisk reaches [audiosocket]; None: audiosocket.listen
    audiosocket: Annotated[Address | None, NoDecode, BeforeValidator(parse_address)] = None
    taps: list[TapRule] = Field(default_factory=list)
    timeout: float = Field(default=5.0, gt=0, le=60)  # of connecting and of each request
    ping_interval: float = Field(default=10.0, gt=0, le=300)

    @model_validator(mode="after")
    def _media(self) -> AriSettings:
        if self.encapsulation != "audiosocket" and self.form != "external_media":
            raise ValueError(
                f'encapsulation = "{self.encapsulation}" needs form = "external_media"'
            )
        return self

    @model_validator(mode="after")
    def _checks(self) -> AriSettings:
        try:
            parts = urlsplit(self.url)
            host = parts.hostname if parts.port != 0 else None  # a port that is none raises
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            # Not shown: a password may be in it.
            raise ValueError("url: expected http://host:port/ari")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("url: put username and password in settings of their own")
        if parts.scheme == "http" and not Address(host, 0).loopback and not self.allow_insecure:
            raise ValueError(
                "url: http:// to a host that is not loopback sends the password in the clear; use "
                "https:// (tlsenable in http.conf), or set allow_insecure = true if the network in "
                "between is trusted"
            )
        return self


class EslSettings(Section):
    """[esl]: absent section, no FreeSWITCH."""

    host: str = "127.0.0.1"
    port: int = Field(default=8021, ge=1, le=65535)
    allow_insecure: bool = False  # the event socket has no TLS
    # user@domain of the directory; empty: the password alone
    username: str = Field(default="", pattern=r"^([A-Za-z0-9._-]+@[A-Za-z0-9._-]+)?$")
    password: SecretStr
    events: list[EventKind] = [
        "started", "partial", "final", "turn", "paused", "resumed", "listened", "ended", "refused",
        "rule",
    ]  # fmt: skip
    set_variables: bool = True  # CALLSCRIBE_TEXT, CALLSCRIBE_STATUS
    redact: list[Kind] = Field(default_factory=list)
    timeout: float = Field(default=5.0, gt=0, le=60)  # of connect, log-in and each command
    ping_interval: float = Field(default=10.0, gt=0, le=300)

    @model_validator(mode="after")
    def _checks(self) -> EslSettings:
        password = self.password.get_secret_value()
        if not password or not password.isprintable():  # a line feed would end the command
            raise ValueError("password: expected one line of printable characters")
        if not self.allow_insecure and not Address(self.host, 0).loopback:
            raise ValueError(
                f"host = {self.host!r} is not loopback and FreeSWITCH's event socket has no TLS; "
                "set allow_insecure = true if the network in between is trusted"
            )
        return self


class WebhookSettings(Section):
    """[[webhook]]"""

    url: str
    secret: SecretStr
    previous_secret: SecretStr | None = None  # also signed with, while receivers change over
    name: str = ""
    events: list[str] = Field(default_factory=list)  # prefixes such as "transcript."; empty: all
    timeout: float = Field(default=15.0, gt=0, le=60)
    allow_insecure: bool = False  # http:// to anything but loopback
    allow_private: bool = False  # the URL's name may lead to a private address
    queue: int = Field(default=10_000, ge=10)
    redact: list[Kind] = Field(default_factory=list)
    batch: bool = False  # several events, if they wait, as an array in one POST

    @model_validator(mode="after")
    def _checks(self) -> WebhookSettings:
        check_url(self.url, allow_insecure=self.allow_insecure)
        check_secret(self.secret.get_secret_value())
        if self.previous_secret is not None:
            check_secret(self.previous_secret.get_secret_value())
        return self


class LogSettings(Section):
    """[log]"""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    transcripts: bool = False  # also log what is said
    redact: list[Kind] = Field(default_factory=list)  # of transcripts


class RedactionSettings(Section):
    """[redaction]: how it is done, wherever a section says ``redact``."""

    # ISO 3166; whose telephone numbers are known without +
    regions: list[Annotated[str, Field(pattern="^[A-Z]{2}$")]] = ["US", "GB", "FR"]
    hold: float = Field(default=3.0, ge=0, le=30)  # s that the beginning of a number waits


class ServiceSettings(Section):
    """[service]"""

    drain_timeout: float = Field(default=30.0, ge=0)  # calls may go on this long after SIGTERM
    flush_timeout: float = Field(default=5.0, ge=0)  # sinks may go on this long after the calls
