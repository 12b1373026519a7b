"""float32 at 24 kHz in, text out: python deployment/clients/stream.py bridge/samples/call.wav"""

import asyncio
import json
import sys

import numpy as np
import soxr
from websockets.asyncio.client import connect

from bridge.recording import read_recording


async def main(path: str, url: str = "ws://127.0.0.1:8080") -> None:
    samples, rate = read_recording(path, channel=0)[0]
    audio = soxr.resample(samples / 32768, rate, 24000).astype("<f4")
    async with connect(f"{url}/v1/stream") as ws:
        for i in range(0, len(audio), 1920):  # 80 ms
            await ws.send(np.ascontiguousarray(audio[i : i + 1920]).tobytes())
        async for message in ws:  # to the end: ten seconds without audio
            print(json.loads(message).get("text", ""), end="", flush=True)
    print()


asyncio.run(main(*sys.argv[1:]))
