"""`callscribe serve` with RTP: announced over HTTP, spoken to by UDP, renewed in between."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bridge.engine.tones import encode
from tests.rtp_peer import Clock, Peer
from tests.serving import Bridge, http, said, serving


async def announce(bridge: Bridge, peer: Peer, **more: Any) -> str:
    """The call's UUID; the peer knows where to send."""
    media = {"type": "rtp", "codec": "pcmu", "from": peer.source}
    status, text = await http(bridge.http, "/calls", "POST", media=media, **more)  # type: ignore
    assert status == 201, text
    answer = json.loads(text)
    peer.to = (answer["media"]["address"], answer["media"]["port"])
    return str(answer["uuid"])


async def speak(bridge: Bridge, peer: Peer, call: str, words: Iterable[int]) -> None:
    """Faster than real time; the first packet alone, because it makes room for the others."""
    for packet in peer.packets(encode(words)):
        peer.send(packet)
        await bridge.when(lambda: any(f"call={call}" in line for line in bridge.lines))


async def heard(bridge: Bridge, call: str, words: Iterable[int]) -> None:
    wanted = said(words)
    await bridge.when(lambda: " ".join(bridge.finals[call]) == wanted)


async def test_a_fresh_worker_takes_new_calls_and_the_old_one_keeps_its_ports(
    tmp_path: Path,
) -> None:
    clock = Clock()
    old, fresh = Peer(clock), Peer(clock, ssrc=5)
    try:
        async with serving(tmp_path, rtp={"ports": "30000-30001"}) as bridge:
            first = await announce(bridge, old)
            port = old.to[1]
            assert port == 30000
            await speak(bridge, old, first, [1, 2])
            bridge.process.send_signal(signal.SIGHUP)
            await bridge.logged(" takes over from ")
            await bridge.logged(": ready:", 2)
            # The only port of the range is the old worker's, who still hears the call on it.
            media = {"type": "rtp", "from": fresh.source}
            refused = await http(bridge.http, "/calls", "POST", media=media)  # type: ignore
            assert refused[0] == 503 and "no port of rtp.ports = 30000-30001 is free" in refused[1]
            await speak(bridge, old, first, [3])
            old.bye()
            await heard(bridge, first, [1, 2, 3])

            async def free() -> bool:
                status, _ = await http(bridge.http, "/calls", "POST", media=media)  # type: ignore
                return status == 201

            while not await free():  # when the old worker's port has rested
                pass
            status, text = await http(bridge.http, "/metrics")
            assert status == 200 and 'callscribe_rtp_ports{state="announced"} 1.0' in text
    finally:
        old.close()
        fresh.close()
