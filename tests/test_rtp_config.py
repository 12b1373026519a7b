"""[rtp]: what is taken, and the sentence for what is not."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.config import PortRange, RtpSettings, from_dict, port_range
from bridge.errors import ConfigError
from bridge.ingress.rtp_types import payload_types


def rtp(**keys: Any) -> RtpSettings:
    settings = from_dict({"rtp": keys}).rtp
    assert settings is not None
    return settings


def problem(**keys: Any) -> str:
    with pytest.raises(ConfigError) as e:
        rtp(**keys)
    (sentence,) = e.value.problems
    return sentence


def test_without_a_section_there_is_no_rtp() -> None:
    assert from_dict({}).rtp is None


def test_the_minimal_section() -> None:
    settings = rtp(listen="127.0.0.1", ports="20000-20999")
    assert settings == rtp()
    assert port_range(settings.ports) == PortRange(20000, 20999)
    assert (settings.address, settings.learn) == ("127.0.0.1", ["127.0.0.0/8", "::1/128"])


def test_away_from_loopback_nobody_is_learnt_unless_networks_are_named() -> None:
    anywhere = {"listen": "0.0.0.0", "advertise": "bridge.example", "allow_insecure": True}
    assert rtp(**anywhere).learn == []
    assert rtp(**anywhere, allow=["10.0.0.0/8"]).learn == ["10.0.0.0/8"]
    assert rtp(**anywhere).address == "bridge.example"
    assert rtp(allow=["127.0.0.1/32"]).learn == ["127.0.0.1/32"]


def test_srtp_is_as_good_as_a_trusted_network() -> None:
    assert rtp(listen="192.0.2.1", require_srtp=True).address == "192.0.2.1"
    assert rtp(listen="2001:DB8::1", allow_insecure=True).listen == "2001:db8::1"


def test_the_environment_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_RTP__PORTS", "30000-30001")
    monkeypatch.setenv("BRIDGE_RTP__ALLOW", '["10.0.0.0/8"]')
    monkeypatch.setenv("BRIDGE_RTP__PAYLOAD_TYPES", '{"96": "l16/16000"}')
    settings = rtp()
    assert (settings.ports, settings.allow) == ("30000-30001", ["10.0.0.0/8"])
    assert settings.payload_types == {"96": "l16/16000"}


INSECURE = (
    "rtp: listen = '192.0.2.1' is not loopback and RTP is in the clear; set require_srtp = true, "
    "or allow_insecure = true if the network in between is trusted"
)
RANGE = 'rtp.ports: expected "first-last", for example "20000-20999", not '


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"listen": "192.0.2.1"}, INSECURE),
        ({"listen": "localhost"},
         "rtp.listen: expected an IP address of this machine, not 'localhost'"),
        ({"listen": "127.0.0.1:20000"},
         "rtp.listen: expected an IP address of this machine, not '127.0.0.1:20000'"),
        ({"listen": "0.0.0.0", "allow_insecure": True},
         "rtp: listen = '0.0.0.0' needs advertise, the address peers send to"),
        ({"advertise": "::"},
         "rtp: listen = '127.0.0.1' needs advertise, the address peers send to"),
        ({"ports": "20000"}, RANGE + "'20000'"),
        ({"ports": "a-b"}, RANGE + "'a-b'"),
        ({"ports": "20000-19998"},
         "rtp.ports: expected ports from 1024 to 65535, the lower one first, not 20000-19998"),
        ({"ports": "1000-2000"},
         "rtp.ports: expected ports from 1024 to 65535, the lower one first, not 1000-2000"),
        ({"ports": "20001-20001"},
         "rtp.ports: there is no even port in 20001-20001, and only these are used"),
        ({"allow": ["pbx"]}, "rtp.allow: expected networks such as \"10.0.0.0/8\", not 'pbx'"),
        ({"jitter_floor": 0.3},
         "rtp: jitter_floor = 0.3 is over jitter_cap = 0.2"),
        ({"dtmf_type": 72},
         "rtp: dtmf_type = 72 cannot be told from RTCP (RFC 5761): expected 0 to 63 or 96 to 127"),
        ({"timeout": 0}, "rtp.timeout: input should be greater than or equal to 1"),
        ({"codecs": []}, "rtp.codecs: is not a setting (deployment/bridge.toml shows them all)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(keys: dict[str, Any], sentence: str) -> None:
    assert problem(**keys) == sentence


@pytest.mark.parametrize("codec", ["opus", "l16", "l16/11025", "PCMU", "l16/8000/2", ""])
def test_codecs_that_cannot_be_heard_stop_the_start(codec: str) -> None:
    assert problem(codec=codec).startswith("rtp.codec: ")
    assert problem(payload_types={"96": codec}).startswith("rtp.payload_types.96: ")


@pytest.mark.parametrize("number", ["64", "95", "128", "-1", "x", "1000", "64 "])
def test_so_do_numbers_that_are_none_of_audio(number: str) -> None:
    assert problem(payload_types={number: "pcmu"}).startswith(f"rtp.payload_types.{number}")


def test_every_codec_that_may_be_configured_can_be_heard() -> None:
    rates = (8000, 12000, 16000, 24000, 32000, 44100, 48000)
    for codec in ["pcmu", "pcma", "g722", *(f"l16{le}/{r}" for le in ("", "le") for r in rates)]:
        settings = rtp(codec=codec, payload_types={"96": codec, "97": "telephone-event"})
        payload_types(settings.codec, settings.payload_types, events=settings.dtmf_type)
    for number in (*range(64), *range(96, 128)):
        payload_types("pcmu", rtp(payload_types={str(number): "cn"}).payload_types)
