"""Settings of what goes in: engine, turns, AudioSocket, RTP, calls."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bridge.config_fields import (
    Address,
    CodecName,
    Listen,
    Listener,
    Networks,
    Section,
    TypeName,
    TypeNumber,
    checked_device,
    checked_ip,
    checked_model,
    checked_ports,
    checked_rate,
    checked_slots,
)

ENGINE_KINDS = {
    # kind → "module:function"; the function takes EngineSettings and returns a Recogniser
    "kyutai": "bridge.engine.kyutai_engine:make",
    "pocketsphinx": "bridge.engine.pocketsphinx:make",
    "tones": "bridge.engine.tones:make",
}


Speedup: TypeAlias = Literal["attention", "codes", "graph", "products"]


class EngineSettings(Section):
    """[engine]"""

    kind: str = "auto"  # auto | kyutai | pocketsphinx | tones | "package.module:function"
    slots: Annotated[int | Literal["auto"], BeforeValidator(checked_slots)] = "auto"
    queue_seconds: float = Field(default=10.0, ge=0.16, le=120)  # queue 1, per leg
    replay_seconds: float = Field(default=12.0, ge=0, le=60)  # heard again after a fault, per leg
    step_budget: float | None = Field(default=None, ge=0, le=1)  # s; beyond it, no new legs; 0: off
    flush: bool = True  # at a pause, bring the last words at once
    coalesce: float = Field(default=0.0, ge=0, le=0.08)  # s from one step's begin to the next's
    model: Annotated[str, AfterValidator(checked_model)] = "kyutai/stt-1b-en_fr-candle"
    revision: Annotated[str, Field(min_length=1)] | None = None  # branch, tag or commit of the hub
    device: Annotated[str, AfterValidator(checked_device)] = "auto"  # auto | cuda | cuda:N | cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    reserve_gb: float = Field(default=2.0, ge=0, le=1000)  # GiB that slots = auto leaves free
    watchdog: float = Field(default=6.0, ge=0, le=600)  # s of speech without text; 0: off
    step_timeout: float = Field(default=10.0, ge=0.5, le=600)  # s of a step: the engine has hung
    threads: int | None = Field(default=None, ge=1, le=1024)  # of torch on a CPU
    speedups: list[Speedup] = Field(default_factory=lambda: list(get_args(Speedup)))

    @model_validator(mode="after")
    def _known(self) -> EngineSettings:
        if self.kind != "auto" and self.kind not in ENGINE_KINDS and ":" not in self.kind:
            kinds = ", ".join(["auto", *ENGINE_KINDS])
            raise ValueError(f"kind: expected {kinds} or 'module:function', not {self.kind!r}")
        return self


class TurnSettings(Section):
    """[turns]: when a pause ends a turn."""

    threshold: float = Field(default=0.6, gt=0, le=1)  # pause probability that begins a pause
    hysteresis: float = Field(default=0.2, ge=0, lt=1)  # below threshold − this, it is over
    min_pause: float = Field(default=0.6, ge=0, le=10)  # seconds of pause that end the turn
    max_final: float = Field(default=15.0, gt=0)  # seconds of words before a final is forced
    partials: bool = True


class AudioSocketSettings(Listener):
    """[audiosocket]"""

    listen: Listen = Address("127.0.0.1", 9092)
    admission: Literal["open", "announced"] = "open"
    # For Asterisk < 22.7, which labels all rates alike
    rate: Annotated[int | None, AfterValidator(checked_rate)] = None
    keepalive: Literal["continuous", "1s", "off"] = "continuous"
    uuid_deadline: float = Field(default=2.0, gt=0, le=60)
    peer_timeout: float = Field(default=5.0, gt=0, le=600)  # a peer that acknowledges nothing
    join_wait: float = Field(default=2.0, ge=0, le=10)  # for what AMI or HTTP says of a UUID
    max_frame: int = Field(default=8192, ge=320, le=65535)  # bytes of payload
    max_connections: int = Field(default=4096, ge=1)
    max_connections_per_address: int = Field(default=4096, ge=1)
    allow: Networks = Field(default_factory=list)  # empty: any address


class RtpSettings(Section):
    """[rtp]: absent section, no RTP. A port is opened for each leg that is announced."""

    listen: Annotated[str, AfterValidator(checked_ip)] = "127.0.0.1"
    ports: Annotated[str, AfterValidator(checked_ports)] = "20000-20999"
    advertise: str | None = Field(default=None, pattern="^[A-Za-z0-9.:-]+$")  # None: as listen
    allow_insecure: bool = False  # RTP in the clear on anything but loopback
    require_srtp: bool = False
    allow: Networks = Field(default_factory=list)  # peers; those not announced are learnt in it
    codec: CodecName = "pcmu"  # of announcements that name none
    payload_types: dict[TypeNumber, TypeName] = Field(default_factory=dict)  # by number
    dtmf_type: int = Field(default=101, ge=0, le=127)  # telephone-event
    timeout: float = Field(default=30.0, ge=1, le=3600)  # without any packet
    bye_wait: float = Field(default=2.0, ge=0, le=3600)  # from a BYE to the leg's end
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


class CallSettings(Section):
    """[calls]"""

    max: int = Field(default=2000, ge=1)
    max_seconds: float = Field(default=4 * 3600, gt=0)
    keep_ended: int = Field(default=200, ge=0)  # ended calls that GET /calls/{id} still shows
    announce_ttl: float = Field(default=30.0, gt=0)  # seconds from POST /calls to the socket
    pause_digits: str = Field(default="", pattern="^[0-9*#A-D]{0,8}$")  # begin and end a pause
