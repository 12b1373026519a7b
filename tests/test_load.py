"""What session clients read of the load, and where it comes from."""

from __future__ import annotations

from bridge.config import from_dict
from bridge.desk import Desk, _model
from bridge.engine.choice import Choice
from bridge.load import Load
from bridge.server import Server
from tests.sockets import bridge


def test_latency_is_that_of_the_last_words() -> None:
    load = Load()
    assert load.milliseconds("final") == 0
    load.word("final", 1.0)
    assert load.milliseconds("final") == 1000
    for _ in range(200):
        load.word("final", 0.5)
    assert 499 < load.milliseconds("final") < 501


async def test_the_health_of_a_bridge_with_websockets() -> None:
    async with bridge() as b:
        b.server.loaded = False
        assert Desk(b.server).health().checks["websocket"] == "loading"
        b.server.loaded = True
        health = Desk(b.server).health()
    assert health.checks["websocket"] == "ok"
    assert health.model == {"model_size": "tones", "device": "cpu", "compute_type": "default"}


def test_kyutai_says_what_it_runs_on() -> None:
    server = Server(from_dict({"engine": {"kind": "tones", "device": "cuda:1"}}))
    server.choice = Choice("kyutai", "", "")
    assert _model(server) == {
        "model_size": "stt-1b-en_fr-candle",
        "device": "cuda",
        "compute_type": "bfloat16",
    }
    server.choice = None
    assert _model(server)["device"] == "unknown"
