"""Paths and the protocols that are spoken there."""

from __future__ import annotations

from base64 import b64encode

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from bridge.auth import Knock
from bridge.ingress.media_socket import MediaBase, Opening, SocketRules
from bridge.metrics import INGRESSES
from bridge.socket_kinds import PROTOCOLS, kind_of
from tests.sockets import bridge


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
    pair = ("Modal-Key", "Modal-Secret")
    (found,) = kind.find(Knock(path, {}, {header: value}, "192.0.2.1"), pair)
    assert getattr(found, "value", "") == "secret"


WAYS: list[tuple[str, dict[str, str], list[str]]] = [
    ("/ws", {"Authorization": "Bearer KEY"}, []),
    ("/ws?token=KEY", {}, []),
    ("/ws/stt", {"X-API-Key": "KEY"}, []),
    ("/v1/listen?encoding=linear16&sample_rate=8000", {"Authorization": "Token KEY"}, []),
    ("/v1/listen?encoding=linear16&sample_rate=8000", {}, ["token", "KEY"]),
    ("/v1/realtime", {}, ["realtime", "openai-insecure-api-key.KEY"]),
    ("/api/asr-streaming", {"kyutai-api-key": "KEY"}, []),
    ("/api/asr-streaming?auth_id=KEY", {}, []),
    ("/v1/stream", {"X-Id": "dialer", "X-Secret": "KEY"}, []),
    ("/asterisk/x", {"Authorization": "Basic " + b64encode(b"dialer:KEY").decode()}, ["media"]),
]
KEY = "a-key-with-enough-characters-in-it"


async def test_every_client_shows_its_key_in_its_own_way() -> None:
    """And is not let in with another one, or with none."""
    settings = {
        "key": [{"name": "dialer", "secret": KEY}],
        "key_headers": ["X-Id", "X-Secret"],
        "max_failures": 0,
    }
    async with bridge(websocket=settings) as b:
        for path, headers, offered in WAYS:
            for key, welcome in [(KEY, True), ("wrong-" + KEY, False)]:
                right = b64encode(f"dialer:{key}".encode()).decode()
                shown = {n: v.replace("KEY", key) for n, v in headers.items()}
                if "Basic" in headers.get("Authorization", ""):
                    shown = {"Authorization": f"Basic {right}"}
                asked = connect(
                    b.url + path.replace("KEY", key),
                    additional_headers=shown,
                    subprotocols=[Subprotocol(o.replace("KEY", key)) for o in offered] or None,
                )
                if welcome:
                    await (await asked).close()
                else:
                    with pytest.raises(InvalidStatus) as e:
                        await asked
                    assert e.value.response.status_code == 401
