"""Sessions with timing: python deployment/clients/sessions.py bridge/samples/call.wav"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect

from bridge.recording import read_recording


async def main(path: str, url: str = "ws://127.0.0.1:8080") -> None:
    samples, rate = read_recording(path, channel=0)[0]
    config = {"lang_code": "en", "sample_rate": rate, "partial_results": False}
    async with connect(f"{url}/ws/stt") as ws:
        await ws.send(json.dumps({"type": "start_session", "session_id": "s-1", "config": config}))
        await ws.send(samples.tobytes())
        await ws.send('{"type": "end_session"}')
        async for message in ws:
            print(message)
            if json.loads(message)["type"] == "session_ended":
                break


asyncio.run(main(*sys.argv[1:]))
