"""What settings are made of: addresses, networks, port ranges, URLs, and how they are checked."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import NoDecode

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


def checked_networks(values: list[str]) -> list[str]:
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f'expected networks such as "10.0.0.0/8", not {value!r}') from None
    return values


def checked_rate(value: int | None) -> int | None:
    if value is not None and value not in RATES:
        raise ValueError(f"expected one of {', '.join(map(str, RATES))}, not {value}")
    return value


def checked_slots(value: object) -> object:
    """In one sentence; a union of types would make one of each."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if value == "auto" or (type(number) is int and 1 <= number <= 100_000):
        return number
    raise ValueError(f'expected 1 to 100000 or "auto", not {value!r}')


def is_hub_name(model: str) -> bool:
    """``owner/name``; a directory of that name on this machine comes first."""
    part = r"(?!.*(--|\.\.))\w([\w.-]{0,94}\w)?"  # as huggingface_hub's validate_repo_id has it
    return re.fullmatch(f"{part}/{part}", model, re.ASCII) is not None


def checked_model(value: str) -> str:
    if is_hub_name(value) or value in (".", "..") or value.startswith(("/", "./", "../", "~")):
        return value
    raise ValueError(
        'expected "owner/name" as on the hub, or a directory such as "/srv/stt-1b" or "./stt-1b", '
        f"not {value!r}"
    )


def checked_device(value: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value, re.ASCII):
        return value
    raise ValueError(f'expected "auto", "cuda", "cuda:" and a number, or "cpu", not {value!r}')


def check_url(url: str, *, allow_insecure: bool) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # Not shown: a password or a token may be in it.
        raise ValueError("url: expected https://host/path, with a host")
    if parts.username or parts.password:
        raise ValueError("url: put no user name or password in it; requests are signed instead")
    if _odd_number(parts.hostname):
        raise ValueError(
            f"url: {parts.hostname} is an address in disguise; write it as in 192.0.2.1"
        )
    if parts.scheme == "http" and not Address(parts.hostname, 0).loopback and not allow_insecure:
        raise ValueError(
            "url: http:// to a host that is not loopback sends transcripts in the clear; use "
            "https://, or set allow_insecure = true if the network in between is trusted"
        )


def _odd_number(host: str) -> bool:
    """2130706433, 0x7f000001, 0177.0.0.1, 127.1: the resolver takes them all for 127.0.0.1."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        number = r"(0x[0-9a-f]*|[0-9]+)"
        return re.fullmatch(rf"{number}(\.{number})*\.?", host, re.I) is not None
    return False


# NoDecode: host:port as it is also from the environment, not as JSON
Listen = Annotated[Address, NoDecode, BeforeValidator(parse_address)]
Networks = Annotated[list[str], AfterValidator(checked_networks)]
Party = Literal["caller", "callee"]


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


def checked_ports(text: str) -> str:
    return str(port_range(text))


def checked_ip(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"expected an IP address of this machine, not {value!r}") from None


L16 = "(l16|l16le)/(8000|12000|16000|24000|32000|44100|48000)"
CodecName = Annotated[str, Field(pattern=f"^(pcmu|pcma|g722|{L16})$")]
TypeNumber = Annotated[str, Field(pattern="^([1-5]?[0-9]|6[0-3]|9[6-9]|1[01][0-9]|12[0-7])$")]
TypeName = Annotated[str, Field(pattern=f"^(pcmu|pcma|g722|{L16}|telephone-event|cn)$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listener(Section):
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
