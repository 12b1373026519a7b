"""`callscribe serve` beside FreeSWITCH, on the event loop that it really has (uvloop)."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
from fake_esl import FakeEsl

from bridge.engine.tones import encode
from tests.serving import PATIENCE, http, serving

CHANNEL = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
PACKET = 320  # samples


async def test_a_channel_is_asked_for_and_its_words_come_back(tmp_path: Path) -> None:
    """uvloop's transports are none of asyncio's classes: this link once never came up on it."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    async with (
        FakeEsl() as fake,
        serving(
            tmp_path,
            rtp={"ports": "34000-34999"},
            esl={"port": fake.port, "password": "s3cret"},
        ) as bridge,
    ):
        fake.channels = {CHANNEL}
        await bridge.logged("event socket: logged in at ")
        media: Any = {"type": "l16", "codec": "l16le/16000", "from": "127.0.0.1"}
        status, text = await http(
            bridge.http, "/calls", "POST", call=CHANNEL, channel=CHANNEL, media=media
        )
        assert status == 201, text
        await fake.until(lambda: fake.named("sendmsg"))
        to = ("127.0.0.1", json.loads(text)["media"]["port"])
        audio = encode([3, 1, 4], 16000)
        audio = np.concatenate([audio, np.zeros(16000, np.int16)])
        for at in range(0, len(audio), PACKET):  # its clock is the time of arrival
            peer.sendto(audio[at : at + PACKET].astype("<i2").tobytes(), to)
            await asyncio.sleep(PACKET / 16000)
        peer.close()
        await fake.until(lambda: (CHANNEL, "CALLSCRIBE_TEXT") in fake.variables)
        await fake.until(lambda: len(fake.fired) >= 2)
        assert json.loads(fake.fired[0][1])["type"] == "call.started"
        async with asyncio.timeout(PATIENCE):
            status, _ = await http(bridge.http, f"/calls/{CHANNEL}", "DELETE")
        assert status < 300
