"""A name must not lead a callback into our own network."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from bridge.config import WebhookSettings
from bridge.egress.addresses import not_public
from bridge.egress.webhook import Webhook
from bridge.errors import DeliveryError
from tests.test_webhook import SECRET, endpoint, event

INSIDE = {
    "127.0.0.1": "loopback",
    "127.8.8.8": "loopback",
    "::1": "loopback",
    "169.254.169.254": "link-local",
    "fe80::1%eth0": "link-local",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "192.168.1.1": "private",
    "fd00::1": "private",
    "100.64.0.1": "special",
    "0.0.0.0": "unspecified",
    "::": "unspecified",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "255.255.255.255": "private",
    "240.0.0.1": "private",
    "192.0.2.1": "private",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:a9fe:a9fe": "link-local",
    "64:ff9b::7f00:1": "loopback",
    "2002:7f00:1::": "loopback",
    "example.net": "no",
    "": "no",
}


class Names(AbstractResolver):
    """A name service that gives one answer after the other; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(hostname=host, host=ip, port=port, family=_family(ip), proto=0, flags=0)
            for ip in found
        ]

    async def close(self) -> None: ...


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


async def post(url: str, names: AbstractResolver | None = None, **options: Any) -> None:
    settings = WebhookSettings(
        **{"url": url, "secret": SECRET, "timeout": 5, "allow_insecure": True} | options
    )
    hook = Webhook(settings, resolver=names)
    await hook.start()
    try:
        await hook.deliver(event())
    finally:
        await hook.close()


@pytest.mark.parametrize(("address", "kind"), INSIDE.items())
def test_addresses_that_are_not_public(address: str, kind: str) -> None:
    assert not_public(address) == kind


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are(address: str) -> None:
    assert not_public(address) == ""


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "100.64.0.1", "::ffff:127.0.0.1"],
)
async def test_a_name_that_leads_inside_is_not_called(address: str) -> None:
    async with endpoint(200) as server:
        port = server.url.rpartition(":")[2].partition("/")[0]
        with pytest.raises(DeliveryError) as raised:
            await post(f"http://crm.example:{port}/hook", Names([address]))
        assert server.requests == []
    assert str(raised.value).startswith(f"crm.example is at {address}, which is a ")
    assert str(raised.value).endswith("set allow_private = true for this webhook if that is meant")
    assert not raised.value.permanent  # the name may be put right


async def test_it_is_when_the_settings_say_so() -> None:
    async with endpoint(200) as server:
        url = server.url.replace("127.0.0.1", "crm.example")
        await post(url, Names(["127.0.0.1"]), allow_private=True)
        assert len(server.requests) == 1
        assert server.requests[0].headers["host"].startswith("crm.example:")


async def test_an_address_in_the_url_and_localhost_are_the_operators_own_word() -> None:
    async with endpoint(200) as server:
        await post(server.url)
        await post(server.url.replace("127.0.0.1", "localhost"))
        assert len(server.requests) == 2


async def test_localhost_is_this_machine_and_nothing_else() -> None:
    with pytest.raises(DeliveryError, match="^localhost is at 10.0.0.1, which is a private"):
        await post("http://localhost:9/", Names(["10.0.0.1"]))


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "1.2.3.4."])
def test_an_address_in_disguise_is_no_setting(host: str) -> None:
    """The resolver takes them all, and what is taken for an address is not looked up."""
    with pytest.raises(ValueError, match=f"url: {host} is an address in disguise; write it as in"):
        WebhookSettings(url=f"https://{host}/hook", secret=SECRET)


async def test_a_name_that_leads_elsewhere_a_moment_later_leads_nowhere() -> None:
    """DNS rebinding: what was checked is what is connected to, and it is looked up once."""
    names = Names(["203.0.113.9"], ["127.0.0.1"])
    async with endpoint(200) as server:
        url = server.url.replace("127.0.0.1", "crm.example")
        for _ in range(2):
            with pytest.raises(DeliveryError):
                await post(url, names, timeout=0.2)
        assert server.requests == []


async def test_of_several_addresses_only_public_ones_are_tried() -> None:
    names = Names(["10.0.0.1", "127.0.0.1"])
    async with endpoint(200) as server:
        with pytest.raises(DeliveryError, match="is at 10.0.0.1, which is a private address"):
            await post(server.url.replace("127.0.0.1", "crm.example"), names)
        assert names.asked == 1 and server.requests == []


async def test_a_redirect_inside_is_not_followed() -> None:
    async with endpoint(200) as inside:

        async def elsewhere(_: web.BaseRequest) -> web.Response:
            return web.Response(status=302, headers={"location": inside.url})

        async with endpoint(elsewhere) as server:
            with pytest.raises(DeliveryError, match="redirects are not followed"):
                await post(server.url)
        assert inside.requests == []
