"""Pause, resume and what a dialplan heard, over HTTP."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qs

import pytest

from bridge.http.announce import BadAnnouncement, Wanted, parse_announcement
from bridge.types import Listen
from tests.test_http import BEARER, TOKEN, UUID, FakeService, serving


@pytest.mark.parametrize(
    ("action", "body", "leg"),
    [
        ("pause", b"", None),
        ("pause", b"{}", None),
        ("resume", b'{"leg": "caller"}', "caller"),
    ],
)
async def test_a_call_is_paused_and_resumed(action: str, body: bytes, leg: str | None) -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        path = f"/calls/{UUID}/{action}"
        status, answer, _ = await client.ask("POST", path, data=body, headers=BEARER)
    assert (status, answer) == (200, {"paused": {"caller": action == "pause"}})
    assert service.paused == [(UUID, leg, action == "resume")]


WHAT = 'expected {"leg": "caller"}, {"leg": "callee"}, or no body for both'


@pytest.mark.parametrize(
    ("id", "body", "status", "sentence"),
    [
        ("nobody", b"", 404, "no running call has this id; GET /calls lists the calls"),
        (UUID, b'{"leg": "callee"}', 404, "the call has no callee leg"),
        (UUID, b'{"leg": "both"}', 400, 'leg: expected "caller" or "callee"'),
        (UUID, b"[]", 400, WHAT),
        (UUID, b"\xff", 400, WHAT),
        (UUID, b'{"a": 1}', 400, WHAT),
        (UUID, b"x" * 2000, 400, "the body is longer than 1024 bytes"),
    ],
)  # fmt: skip
async def test_what_cannot_be_paused(id: str, body: bytes, status: int, sentence: str) -> None:
    async with serving(FakeService(), token=TOKEN) as client:
        path = f"/calls/{id}/pause"
        got, answer, _ = await client.ask("POST", path, data=body, headers=BEARER)
    assert (got, answer) == (status, {"error": sentence})


async def test_nobody_pauses_without_the_token() -> None:
    service = FakeService()
    async with serving(service, token=TOKEN) as client:
        status, _, _ = await client.ask("POST", f"/calls/{UUID}/pause")
    assert (status, service.paused) == (401, [])


async def test_what_was_heard_as_json_and_for_a_dialplan() -> None:
    async with serving(FakeService()) as client:
        _, answer, _ = await client.ask("GET", f"/calls/{UUID}/listen")
        _, form, headers = await client.ask("GET", f"/calls/{UUID}/listen/form")
        missing, _, _ = await client.ask("GET", "/calls/nobody/listen")
    assert answer == {"status": "heard", "confidence": 0.93, "language": "en", "text": "a, b"}
    assert headers["Content-Type"].startswith("text/plain")
    assert form == "status=heard&confidence=0.93&language=en&text=a%20b"
    assert parse_qs(form)["text"] == ["a b"]
    assert missing == 404


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (basic("callscribe", TOKEN), 200),
        (basic("", TOKEN), 200),
        (basic("callscribe", TOKEN + "x"), 401),
        (basic(TOKEN, ""), 401),
        ({"Authorization": "Basic !"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": f"Digest {TOKEN}"}, 401),
    ],
)
async def test_the_token_may_be_a_password(headers: dict[str, str], status: int) -> None:
    """CURL() of a dialplan can send nothing else and take it back."""
    async with serving(FakeService(), token=TOKEN) as client:
        got, _, _ = await client.ask("GET", "/calls", headers=headers)
    assert got == status


# -- POST /calls with listen -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "listen"),
    [
        (b'{"listen": {"seconds": 8}}', Listen(8.0, 8.0)),
        (b'{"listen": {"seconds": 8.5, "begin": 4}}', Listen(8.5, 4.0)),
        (b'{"listen": {"seconds": 8, "begin": 20}}', Listen(8.0, 8.0)),
        (b"{}", None),
    ],
)
def test_a_leg_is_announced_to_be_listened_to(given: bytes, listen: Listen | None) -> None:
    wanted = parse_announcement(given, lambda: UUID)
    assert isinstance(wanted, Wanted)
    assert wanted.announcement.listen == listen


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("8", "listen: expected an object with the keys seconds, begin"),
        ("{}", "listen.seconds: is missing"),
        ('{"seconds": "8"}', "listen.seconds: expected seconds, as 8"),
        ('{"seconds": true}', "listen.seconds: expected seconds, as 8"),
        ('{"seconds": 0}', "listen.seconds: expected more than 0 and at most 600 seconds"),
        ('{"seconds": NaN}', "listen.seconds: expected more than 0 and at most 600 seconds"),
        ('{"seconds": 8, "begin": 601}',
         "listen.begin: expected more than 0 and at most 600 seconds"),
        ('{"timeout": 8}', 'listen."timeout" is not a key; the keys are seconds, begin'),
    ],
)  # fmt: skip
def test_what_cannot_be_listened_to(given: str, sentence: str) -> None:
    body: Any = f'{{"listen": {given}}}'.encode()
    with pytest.raises(BadAnnouncement) as e:
        parse_announcement(body, lambda: UUID)
    assert str(e.value) == sentence
