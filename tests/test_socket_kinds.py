"""Paths and the protocols that are spoken there."""

from __future__ import annotations

import pytest

from bridge.auth import Knock
from bridge.ingress.media_socket import MediaBase, Opening, SocketRules
from bridge.metrics import INGRESSES
from bridge.socket_kinds import PROTOCOLS, kind_of


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "pcm"),
        ("", "pcm"),
        ("/twilio", "twilio"),
        ("/twilio/", "twilio"),
        ("/twilio/x", None),
        ("/asterisk", "asterisk"),
        ("/asterisk/", "asterisk"),
        ("/asterisk/office/2", "asterisk"),
        ("/asterisks", None),
        ("/freeswitch/7f4de4bc-17d7-11dd-b7a0-db4edd065621", "freeswitch"),
        ("/audiohook/monitor", "audiohook"),
        ("/nothing", None),
    ],
)
def test_a_path_is_a_protocol(path: str, name: str | None) -> None:
    found = kind_of(path)
    assert (found.name if found else None) == name


@pytest.mark.parametrize("path", PROTOCOLS)
def test_every_protocol_loads_and_is_counted_by_its_name(path: str) -> None:
    kind = PROTOCOLS[path]
    assert kind.name in INGRESSES
    assert isinstance(kind.load()(Opening(path), SocketRules(), 0.0), MediaBase)


@pytest.mark.parametrize(
    ("path", "header", "value"),
    [
        ("/telnyx", "x-telnyx-streaming-auth-token", "secret"),  # stream_auth_token
        ("/audiohook", "x-api-key", "secret"),
        ("/signalwire", "authorization", "Bearer secret"),  # authBearerToken
        ("/vonage", "authorization", "Bearer secret"),
        ("/exotel", "authorization", "Basic a2V5OnNlY3JldA=="),
        ("/asterisk", "authorization", "Basic a2V5OnNlY3JldA=="),  # websocket_client.conf
        ("/freeswitch", "authorization", "Basic a2V5OnNlY3JldA=="),
    ],
)
def test_each_vendors_key_is_found_where_it_puts_it(path: str, header: str, value: str) -> None:
    kind = kind_of(path)
    assert kind is not None
    (found,) = kind.find(Knock(path, {}, {header: value}, "192.0.2.1"))
    assert getattr(found, "value", "") == "secret"
