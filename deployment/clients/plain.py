"""16-bit samples in, JSON out: python deployment/clients/plain.py bridge/samples/call.wav"""

import asyncio
import sys

from websockets.asyncio.client import connect

from bridge.recording import read_recording


async def main(path: str, url: str = "ws://127.0.0.1:8080") -> None:
    samples, rate = read_recording(path, channel=0)[0]
    async with connect(f"{url}/?rate={rate}") as ws:
        await ws.send(samples.tobytes())  # or a few at a time, as a microphone gives them
        await ws.send('{"type": "end"}')
        async for message in ws:
            print(message)


asyncio.run(main(*sys.argv[1:]))
