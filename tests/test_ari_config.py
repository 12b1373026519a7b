"""[ari]: one readable line per wrong key, and no password in any of them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bridge.config import Settings, from_dict
from bridge.errors import ConfigError

CANARY = "hunter2-canary"
ARI = {"username": "callscribe", "password": CANARY}
HEARS = {"audiosocket": {"listen": "127.0.0.1:9092"}}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
        monkeypatch.delenv(name)


def settings(**ari: Any) -> Settings:
    return from_dict({**HEARS, "ari": ARI | ari})


@pytest.mark.parametrize(
    ("ari", "problem"),
    [
        ({"url": "127.0.0.1:8088"}, "ari: url: expected http://host:port/ari"),
        ({"url": f"ftp://x:{CANARY}@y/"}, "ari: url: expected http://host:port/ari"),
        ({"url": "http://x:99999/ari"}, "ari: url: expected http://host:port/ari"),
        ({"url": f"http://callscribe:{CANARY}@127.0.0.1/ari"},
         "ari: url: put username and password in settings of their own"),
        ({"url": f"http://127.0.0.1/ari?api_key=x:{CANARY}"},
         "ari: url: put username and password in settings of their own"),
        ({"url": "http://10.0.0.1:8088/ari"},
         "ari: url: http:// to a host that is not loopback sends the password in the clear; use "
         "https:// (tlsenable in http.conf), or set allow_insecure = true if the network in "
         "between is trusted"),
        ({"username": "a:b"}, "ari.username: string should match pattern '^[^:]*$'"),
        ({"app": "a,b"}, "ari.app: string should match pattern '^[A-Za-z0-9_-]{1,32}$'"),
        ({"form": "rtp"}, "ari.form: input should be 'dialplan' or 'external_media'"),
        ({"audiosocket": "9092"},
         'ari.audiosocket: expected "host:port", for example "127.0.0.1:9092", not \'9092\''),
        ({"taps": [{}]},
         'ari.taps.0: expected context, exten or endpoint; endpoint = "*" is every call there is'),
        ({"taps": [{"endpoint": "*", "legs": []}]},
         "ari.taps.0.legs: list should have at least 1 item after validation, not 0"),
        ({"taps": [{"trunk": "x"}]},
         "ari.taps.0.trunk: is not a setting (deployment/bridge.toml shows them all)"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_one_line(ari: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as e:
        settings(**ari)
    assert e.value.problems == [problem]


def test_what_is_tapped_must_arrive_somewhere() -> None:
    with pytest.raises(ConfigError) as e:
        from_dict({"ari": ARI})
    assert e.value.problems == [
        "configuration: [ari] needs an [audiosocket] section: what it taps arrives there"
    ]


def test_an_external_media_channel_needs_an_address_to_call() -> None:
    anywhere = {"audiosocket": {"listen": "0.0.0.0:9092", "allow_insecure": True}}
    assert from_dict({**anywhere, "ari": ARI}).ari is not None
    media = ARI | {"form": "external_media"}
    with pytest.raises(ConfigError) as e:
        from_dict({**anywhere, "ari": media})
    assert e.value.problems == [
        "configuration: ari.form = \"external_media\" with audiosocket.listen = '0.0.0.0:9092' "
        "needs ari.audiosocket, the address at which Asterisk reaches it"
    ]
    there = from_dict({**anywhere, "ari": media | {"audiosocket": "192.0.2.1:9092"}})
    assert there.ari is not None and there.ari.audiosocket == ("192.0.2.1", 9092)


def test_taps_by_rtp_need_ports_and_no_audiosocket() -> None:
    media = {"form": "external_media", "encapsulation": "rtp"}
    found = from_dict({"rtp": {}, "ari": ARI | media}).ari
    assert found is not None and (found.encapsulation, found.format) == ("rtp", "ulaw")
    for sections, problem in [
        ({"ari": ARI | {"encapsulation": "rtp"}, "rtp": {}},
         'ari: encapsulation = "rtp" needs form = "external_media"'),
        ({"ari": ARI | media, **HEARS},
         'configuration: ari.encapsulation = "rtp" needs an [rtp] section: it arrives there'),
        ({"ari": ARI | media, "rtp": {"require_srtp": True}},
         'configuration: ari.encapsulation = "rtp" goes with no rtp.require_srtp: Asterisk\'s '
         "external media has no SRTP"),
        ({"ari": ARI | media | {"format": "opus"}, "rtp": {}},
         "ari.format: input should be 'ulaw', 'alaw', 'g722', 'slin' or 'slin16'"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError) as e:
            from_dict(sections)
        assert e.value.problems == [problem]


def test_what_is_right_is_taken() -> None:
    for ari in (
        {},
        {"url": "https://pbx.example:8089/asterisk/ari/"},
        {"url": "http://10.0.0.1:8088/ari", "allow_insecure": True},
        {"url": "http://[::1]:8088/ari"},
        {"taps": [{"endpoint": "PJSIP/trunk"}, {"context": "queues", "exten": "_2XX"}]},
    ):
        assert CANARY not in repr(settings(**ari))


def test_taps_can_be_said_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_ARI__TAPS", '[{"endpoint": "*", "legs": ["caller"]}]')
    monkeypatch.setenv("BRIDGE_ARI__AUDIOSOCKET", "192.0.2.1:9092")
    monkeypatch.setenv("BRIDGE_ARI__PASSWORD", "123456")
    ari = settings().ari
    assert ari is not None and ari.audiosocket == ("192.0.2.1", 9092)
    assert [(rule.endpoint, rule.legs) for rule in ari.taps] == [("*", ["caller"])]
    assert ari.password.get_secret_value() == "123456"


def test_who_is_announced_by_ari_need_not_be_by_others() -> None:
    announced = {"audiosocket": {"listen": "127.0.0.1:9092", "admission": "announced"}}
    assert from_dict({**announced, "ari": ARI}).ari is not None
