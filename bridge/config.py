"""Every setting, validated, and the table of engine kinds.

One TOML file; every key also as environment (``BRIDGE_AMI__SECRET`` sets ``ami.secret``, and wins
over the file). An unknown or wrong key stops the start with the key's path and what was expected.
pydantic because its models, environment source and secret type are what this field uses.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from bridge.egress.signature import check_secret
from bridge.errors import ConfigError

ENGINE_KINDS = {
    # kind → "module:function"; the function takes EngineSettings and returns a Recogniser
    "kyutai": "bridge.engine.kyutai_engine:make",
    "pocketsphinx": "bridge.engine.pocketsphinx:make",
    "tones": "bridge.engine.tones:make",
}
RATES = (8000, 12000, 16000, 24000, 32000, 44100, 48000, 96000, 192000)


class Address(NamedTuple):
    """host:port, as given to bind() or connect()."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(value: object) -> Address:
    """``host:port`` or ``[v6]:port``. Raises ValueError with what was expected."""
    if isinstance(value, Address):
        return value
    host, colon, port = str(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not isinstance(value, str) or not colon or not host or not port.isdecimal():
        raise ValueError(f'expected "host:port", for example "127.0.0.1:9092", not {value!r}')
    if int(port) > 65535:
        raise ValueError(f"a port is at most 65535, not {port}")
    return Address(host, int(port))


def _networks(values: list[str]) -> list[str]:
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f'expected networks such as "10.0.0.0/8", not {value!r}') from None
    return values


def _rate(value: int | None) -> int | None:
    if value is not None and value not in RATES:
        raise ValueError(f"expected one of {', '.join(map(str, RATES))}, not {value}")
    return value


def _slots(value: object) -> object:
    """In one sentence; a union of types would make one of each."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if value == "auto" or (type(number) is int and 1 <= number <= 100_000):
        return number
    raise ValueError(f'expected 1 to 100000 or "auto", not {value!r}')


def is_hub_name(model: str) -> bool:
    """``owner/name``; a directory of that name on this machine comes first."""
    part = r"(?!.*(--|\.\.))\w([\w.-]{0,94}\w)?"  # as huggingface_hub's validate_repo_id has it
    return re.fullmatch(f"{part}/{part}", model, re.ASCII) is not None


def _model(value: str) -> str:
    if is_hub_name(value) or value in (".", "..") or value.startswith(("/", "./", "../", "~")):
        return value
    raise ValueError(
        'expected "owner/name" as on the hub, or a directory such as "/srv/stt-1b" or "./stt-1b", '
        f"not {value!r}"
    )


def _device(value: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value, re.ASCII):
        return value
    raise ValueError(f'expected "auto", "cuda", "cuda:" and a number, or "cpu", not {value!r}')


def _check_url(url: str, *, allow_insecure: bool) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # Not shown: a password or a token may be in it.
        raise ValueError("url: expected https://host/path, with a host")
    if parts.username or parts.password:
        raise ValueError("url: put no user name or password in it; requests are signed instead")
    if parts.scheme == "http" and not Address(parts.hostname, 0).loopback and not allow_insecure:
        raise ValueError(
            "url: http:// to a host that is not loopback sends transcripts in the clear; use "
            "https://, or set allow_insecure = true if the network in between is trusted"
        )


# NoDecode: host:port as it is also from the environment, not as JSON
Listen = Annotated[Address, NoDecode, BeforeValidator(parse_address)]
Networks = Annotated[list[str], AfterValidator(_networks)]
Party = Literal["caller", "callee"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Listener(_Section):
    listen: Listen
    allow_insecure: bool = False  # plaintext on anything but loopback

    @model_validator(mode="after")
    def _plaintext(self) -> Any:
        if not self.listen.loopback and not self.allow_insecure:
            raise ValueError(
                f"listen = {str(self.listen)!r} is not loopback and this listener has no TLS; "
                "set allow_insecure = true if the network in between is trusted"
            )
        return self


class EngineSettings(_Section):
    """[engine]"""

    kind: str = "auto"  # auto | kyutai | pocketsphinx | tones | "package.module:function"
    slots: Annotated[int | Literal["auto"], BeforeValidator(_slots)] = "auto"
    queue_seconds: float = Field(default=10.0, ge=0.16, le=120)  # queue 1, per leg
    replay_seconds: float = Field(default=12.0, ge=0, le=60)  # heard again after a fault, per leg
    step_budget: float | None = Field(default=None, ge=0, le=1)  # s; beyond it, no new legs; 0: off
    flush: bool = True  # at a pause, bring the last words at once
    model: Annotated[str, AfterValidator(_model)] = "kyutai/stt-1b-en_fr-candle"  # has pause heads
    revision: Annotated[str, Field(min_length=1)] | None = None  # branch, tag or commit of the hub
    device: Annotated[str, AfterValidator(_device)] = "auto"  # auto | cuda | cuda:N | cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    reserve_gb: float = Field(default=2.0, ge=0, le=1000)  # GiB that slots = auto leaves free
    watchdog: float = Field(default=6.0, ge=0, le=600)  # s of speech without text; 0: off
    step_timeout: float = Field(default=10.0, ge=0.5, le=600)  # s of a step: the engine has hung
    threads: int | None = Field(default=None, ge=1, le=1024)  # of torch on a CPU

    @model_validator(mode="after")
    def _known(self) -> EngineSettings:
        if self.kind != "auto" and self.kind not in ENGINE_KINDS and ":" not in self.kind:
            kinds = ", ".join(["auto", *ENGINE_KINDS])
            raise ValueError(f"kind: expected {kinds} or 'module:function', not {self.kind!r}")
        return self


class TurnSettings(_Section):
    """[turns]: when a pause ends a turn."""

    threshold: float = Field(default=0.6, gt=0, le=1)  # pause probability that begins a pause
    hysteresis: float = Field(default=0.2, ge=0, lt=1)  # below threshold − this, it is over
    min_pause: float = Field(default=0.6, ge=0, le=10)  # seconds of pause that end the turn
    max_final: float = Field(default=15.0, gt=0)  # seconds of words before a final is forced
    partials: bool = True


class AudioSocketSettings(_Listener):
    """[audiosocket]"""

    listen: Listen = Address("127.0.0.1", 9092)
    admission: Literal["open", "announced"] = "open"
    rate: Annotated[int | None, AfterValidator(_rate)] = None  # for Asterisk < 22.7: kind 0x10 lies
    keepalive: Literal["continuous", "1s", "off"] = "continuous"
    uuid_deadline: float = Field(default=2.0, gt=0, le=60)
    peer_timeout: float = Field(default=5.0, gt=0, le=600)  # a peer that acknowledges nothing
    join_wait: float = Field(default=2.0, ge=0, le=10)  # for what AMI or HTTP says of a UUID
    max_frame: int = Field(default=8192, ge=320, le=65535)  # bytes of payload
    max_connections: int = Field(default=4096, ge=1)
    max_connections_per_address: int = Field(default=4096, ge=1)
    allow: Networks = Field(default_factory=list)  # empty: any address


class PortRange(NamedTuple):
    """UDP ports, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def port_range(text: str) -> PortRange:
    """``first-last``. Raises ValueError with what was expected."""
    first, dash, last = text.partition("-")
    if not dash or not first.isdecimal() or not last.isdecimal():
        raise ValueError(f'expected "first-last", for example "20000-20999", not {text!r}')
    ports = PortRange(int(first), int(last))
    if not 1024 <= ports.first <= ports.last <= 65535:
        raise ValueError(f"expected ports from 1024 to 65535, the lower one first, not {ports}")
    if ports.first + ports.first % 2 > ports.last:
        raise ValueError(f"there is no even port in {ports}, and only these are used")
    return ports


def _ports(text: str) -> str:
    return str(port_range(text))


def _ip(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"expected an IP address of this machine, not {value!r}") from None


L16 = "(l16|l16le)/(8000|12000|16000|24000|32000|44100|48000)"
CodecName = Annotated[str, Field(pattern=f"^(pcmu|pcma|g722|{L16})$")]
TypeNumber = Annotated[str, Field(pattern="^([1-5]?[0-9]|6[0-3]|9[6-9]|1[01][0-9]|12[0-7])$")]
TypeName = Annotated[str, Field(pattern=f"^(pcmu|pcma|g722|{L16}|telephone-event|cn)$")]


class RtpSettings(_Section):
    """[rtp]: absent section, no RTP. A port is opened for each leg that is announced."""

    listen: Annotated[str, AfterValidator(_ip)] = "127.0.0.1"
    ports: Annotated[str, AfterValidator(_ports)] = "20000-20999"
    advertise: str | None = Field(default=None, pattern="^[A-Za-z0-9.:-]+$")  # None: as listen
    allow_insecure: bool = False  # RTP in the clear on anything but loopback
    require_srtp: bool = False
    allow: Networks = Field(default_factory=list)  # peers; those not announced are learnt in it
    codec: CodecName = "pcmu"  # of announcements that name none
    payload_types: dict[TypeNumber, TypeName] = Field(default_factory=dict)  # by number
    dtmf_type: int = Field(default=101, ge=0, le=127)  # telephone-event
    timeout: float = Field(default=30.0, ge=1, le=3600)  # without any packet
    jitter_floor: float = Field(default=0.02, ge=0, le=1)  # s that a missing packet is waited for
    jitter_cap: float = Field(default=0.2, ge=0.02, le=2)
    conceal: bool = True

    @property
    def address(self) -> str:
        """What peers are told."""
        return self.advertise or self.listen

    @property
    def learn(self) -> list[str]:
        """Networks in which a peer without an announced address may be found."""
        on_loopback = Address(self.listen, 0).loopback
        return self.allow or (["127.0.0.0/8", "::1/128"] if on_loopback else [])

    @model_validator(mode="after")
    def _checks(self) -> RtpSettings:
        insecure = not self.allow_insecure and not self.require_srtp
        if insecure and not Address(self.listen, 0).loopback:
            raise ValueError(
                f"listen = {self.listen!r} is not loopback and RTP is in the clear; set "
                "require_srtp = true, or allow_insecure = true if the network in between is trusted"
            )
        if self.address in ("0.0.0.0", "::"):
            raise ValueError(f"listen = {self.listen!r} needs advertise, the address peers send to")
        if self.jitter_floor > self.jitter_cap:
            raise ValueError(
                f"jitter_floor = {self.jitter_floor:g} is over jitter_cap = {self.jitter_cap:g}"
            )
        if 64 <= self.dtmf_type <= 95:
            raise ValueError(
                f"dtmf_type = {self.dtmf_type} cannot be told from RTCP (RFC 5761): expected 0 to "
                "63 or 96 to 127"
            )
        return self


class CallSettings(_Section):
    """[calls]"""

    max: int = Field(default=2000, ge=1)
    max_seconds: float = Field(default=4 * 3600, gt=0)
    keep_ended: int = Field(default=200, ge=0)  # ended calls that GET /calls/{id} still shows
    announce_ttl: float = Field(default=30.0, gt=0)  # seconds from POST /calls to the socket


class HttpSettings(_Listener):
    """[http]"""

    listen: Listen = Address("127.0.0.1", 8001)
    token: Annotated[SecretStr, Field(min_length=8)] | None = None  # bearer token of /calls
    hosts: list[str] = Field(default_factory=list)  # further Host names accepted on loopback


class AmiSettings(_Section):
    """[ami]: absent section, no AMI."""

    host: str = "127.0.0.1"
    port: int = Field(default=5038, ge=1, le=65535)
    tls: bool = False
    allow_insecure: bool = False
    username: str
    secret: SecretStr
    auth: Literal["md5", "plain"] = "md5"
    join_variables: list[str] = ["CALLSCRIBE_ID"]
    events: list[Literal["started", "partial", "final", "turn", "dtmf", "ended", "refused"]] = [
        "started", "partial", "final", "turn", "ended", "refused",
    ]  # fmt: skip
    set_variables: bool = True  # CALLSCRIBE_TEXT, CALLSCRIBE_STATUS
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


class TapRule(_Section):
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


class AriSettings(_Section):
    """[ari]: absent section, no ARI."""

    url: str = "http://127.0.0.1:8088/ari"
    allow_insecure: bool = False  # http:// to anything but loopback
    username: str = Field(min_length=1, pattern="^[^:]*$")  # of Basic authentication
    password: SecretStr
    app: str = Field(default="callscribe", pattern="^[A-Za-z0-9_-]{1,32}$")
    form: Literal["dialplan", "external_media"] = "dialplan"
    context: str = Field(default="callscribe-snoop", pattern="^[A-Za-z0-9_.-]{1,79}$")
    # form external_media: where Asterisk reaches [audiosocket]; None: audiosocket.listen
    audiosocket: Annotated[Address | None, NoDecode, BeforeValidator(parse_address)] = None
    taps: list[TapRule] = Field(default_factory=list)
    timeout: float = Field(default=5.0, gt=0, le=60)  # of connecting and of each request
    ping_interval: float = Field(default=10.0, gt=0, le=300)

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


class EslSettings(_Section):
    """[esl]: absent section, no FreeSWITCH."""

    host: str = "127.0.0.1"
    port: int = Field(default=8021, ge=1, le=65535)
    allow_insecure: bool = False  # the event socket has no TLS
    # user@domain of the directory; empty: the password alone
    username: str = Field(default="", pattern=r"^([A-Za-z0-9._-]+@[A-Za-z0-9._-]+)?$")
    password: SecretStr
    events: list[Literal["started", "partial", "final", "turn", "dtmf", "ended", "refused"]] = [
        "started", "partial", "final", "turn", "ended", "refused",
    ]  # fmt: skip
    set_variables: bool = True  # CALLSCRIBE_TEXT, CALLSCRIBE_STATUS
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


class WebhookSettings(_Section):
    """[[webhook]]"""

    url: str
    secret: SecretStr
    previous_secret: SecretStr | None = None  # also signed with, while receivers change over
    name: str = ""
    events: list[str] = Field(default_factory=list)  # prefixes such as "transcript."; empty: all
    timeout: float = Field(default=15.0, gt=0, le=60)
    allow_insecure: bool = False  # http:// to anything but loopback
    queue: int = Field(default=10_000, ge=10)

    @model_validator(mode="after")
    def _checks(self) -> WebhookSettings:
        _check_url(self.url, allow_insecure=self.allow_insecure)
        check_secret(self.secret.get_secret_value())
        if self.previous_secret is not None:
            check_secret(self.previous_secret.get_secret_value())
        return self


class LogSettings(_Section):
    """[log]"""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    transcripts: bool = False  # also log what is said


class ServiceSettings(_Section):
    """[service]"""

    drain_timeout: float = Field(default=30.0, ge=0)  # calls may go on this long after SIGTERM
    flush_timeout: float = Field(default=5.0, ge=0)  # sinks may go on this long after the calls


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
    http: HttpSettings = HttpSettings()
    ami: AmiSettings | None = None
    ari: AriSettings | None = None
    esl: EslSettings | None = None
    webhook: list[WebhookSettings] = Field(default_factory=list)
    log: LogSettings = LogSettings()
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
            _check_arrival(self.ari, self.audiosocket)
        names = [hook.name or urlsplit(hook.url).hostname for hook in self.webhook]
        for name in names:
            if names.count(name) > 1:  # metrics and message ids could not tell them apart
                raise ValueError(f"webhook: two are called {name!r}; give each a name of its own")
        return self

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


def _check_arrival(ari: AriSettings, audiosocket: AudioSocketSettings | None) -> None:
    """What ARI taps arrives at [audiosocket]. Raises ValueError where it could not."""
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
