"""Taps by RTP, with real sockets: a fake ARI, a server, and the test sends what Asterisk would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_ari import OURS, FakeAri

from bridge import rtp_taps
from bridge.config import from_dict
from bridge.engine.tones import encode
from bridge.server import Server
from bridge.types import Ended
from tests.rtp_peer import Clock, Peer
from tests.test_line import Sink
from tests.waiting import until


class Lab:
    """A bridge that taps every call of a fake Asterisk, whose audio is sent by the test."""

    def __init__(self, fake: FakeAri, **settings: Any) -> None:
        self.fake, self.world = fake, fake.world
        self.peer = Peer(Clock())
        host, port = self.peer.sock.getsockname()
        self.world.local = {"UNICASTRTP_LOCAL_ADDRESS": host, "UNICASTRTP_LOCAL_PORT": str(port)}
        self.sink = Sink()
        ari = {
            "url": fake.url, "username": "callscribe", "password": "s3cret",
            "form": "external_media", "encapsulation": "rtp",
            "taps": [{"endpoint": "*", "legs": ["caller"]}],
        }  # fmt: skip
        values = {
            "engine": {"kind": "tones", "slots": 2}, "turns": {"partials": False},
            "rtp": {"ports": "34000-35999"}, "ari": ari,
            "service": {"drain_timeout": 0, "flush_timeout": 5},
        }  # fmt: skip
        self.server = Server(from_dict(values | settings), sinks=[self.sink])

    async def sent_to(self, number: int = 1) -> None:
        """The stream that Asterisk was asked for the `number`th time goes where it was told."""
        media = [p for m, path, p in self.world.asked if path == "/channels/externalMedia"]
        joined = [path for m, path, p in self.world.asked if path.endswith("/addChannel")]
        assert len(media) == len(joined) == number
        host, _, port = media[-1]["external_host"].rpartition(":")
        self.peer.to = (host, int(port))

    async def joined(self, number: int = 1) -> None:
        await self.fake.until(
            lambda: (
                [path.endswith("/addChannel") for _, path, _ in self.world.asked].count(True)
                == number
            )
        )
        await self.sent_to(number)

    async def heard(self, word: int) -> None:
        """A word is spoken, of 20 packets, and heard."""
        self.peer.speak(encode([word]))
        await until(lambda: sum(self.frames()) == 20)

    def frames(self) -> list[int]:
        return [c.legs["caller"].frames for c in self.server.switchboard.calls.values()]

    def ours(self) -> list[str]:
        """What is ours in Asterisk."""
        return [id for id in [*self.world.channels, *self.world.bridges] if OURS.fullmatch(id)]

    def ends(self) -> list[str]:
        return [e.body.reason for e in self.sink.events if isinstance(e.body, Ended)]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with FakeAri() as fake:
        made = Lab(fake)
        await made.server.start({})
        assert made.server.ari is not None
        try:
            yield made
        finally:
            await made.server.close()
            made.peer.close()
        assert made.server.rtp is not None and len(made.server.rtp.ports) == 0
        assert made.ours() == []


async def test_a_call_is_heard_from_the_address_that_asterisk_names(lab: Lab) -> None:
    a, _ = lab.world.talk()
    lab.fake.tell()
    await lab.joined()
    with Stranger(lab.peer.to) as stranger:
        stranger.speak(encode([99]))
        await lab.heard(7)
    await until(lambda: lab.server.ari and lab.server.ari.taps.states()["up"] == 1)
    lab.world.hang_up(a)
    lab.fake.tell()
    await until(lambda: lab.ends() == ["hangup"])  # at once, and not when nothing comes any more
    (call,) = lab.sink.ended
    assert [word.text for word in lab.sink.words(call)] == ["w007"]
    assert lab.sink.of(call)[-1].call.channel.startswith("PJSIP/alice-")
    await until(lambda: lab.ours() == [])


class Stranger(Peer):
    """Somebody else, who knows the port."""

    def __init__(self, to: tuple[str, int]) -> None:
        super().__init__(Clock(), ssrc=99)
        self.to = to

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def test_a_leg_that_call_control_ends_is_taken_down_and_not_made_again(lab: Lab) -> None:
    lab.world.talk()
    lab.fake.tell()
    await lab.joined()
    await lab.heard(7)
    (call,) = lab.server.switchboard.calls
    assert lab.server.switchboard.hang_up(call)
    await until(lambda: lab.ours() == [])
    assert lab.ends() in ([], ["bridge"])
    assert lab.server.ari is not None
    await until(lambda: lab.server.ari and lab.server.ari.counters["untapped_ended"] == 1)
    assert lab.server.ari.counters["attempts"] == 1


async def test_a_stream_that_stops_is_begun_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snoop is never silent: somebody has lost the channel, or the way is cut."""
    assert lab.server.ari is not None
    ports = lab.server.ari.taps._form.media.ports  # type: ignore[attr-defined]
    assert ports._request.timeout == rtp_taps.TIMEOUT
    monkeypatch.setattr(
        ports, "_request", type(ports._request)(codec="ulaw", held=True, timeout=0.3)
    )
    lab.world.talk()
    lab.fake.tell()
    await lab.joined()
    await lab.heard(7)
    await until(lambda: lab.server.ari and lab.server.ari.taps.states()["up"] == 1)
    await until(lambda: lab.ends() == ["timeout"])
    monkeypatch.undo()
    await lab.joined(2)
    await lab.heard(8)
    await until(lambda: [event.seq for event in lab.sink.events].count(0) == 2)
    first, second = (event.call.id for event in lab.sink.events if event.seq == 0)
    assert first != second
    assert len(lab.ours()) == 3  # one tap
