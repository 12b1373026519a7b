"""The openai package: python deployment/clients/openai_realtime.py bridge/samples/call.wav"""

import asyncio
import base64
import sys

import soxr
from openai import AsyncOpenAI

from bridge.audio.g711 import encode_ulaw
from bridge.recording import read_recording


async def main(path: str, url: str = "http://127.0.0.1:8080") -> None:
    samples, rate = read_recording(path, channel=0)[0]
    audio = encode_ulaw(soxr.resample(samples, rate, 8000))  # as a telephone sends it
    client = AsyncOpenAI(api_key="any", base_url=f"{url}/v1")
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as session:
        heard = {"format": {"type": "audio/pcmu"}, "turn_detection": None}
        await session.session.update(session={"type": "transcription", "audio": {"input": heard}})
        for i in range(0, len(audio), 8000):  # a second
            piece = base64.b64encode(audio[i : i + 8000]).decode()
            await session.input_audio_buffer.append(audio=piece)
        await session.input_audio_buffer.commit()
        async for event in session:
            if event.type.endswith("transcription.delta"):
                print(event.delta, end="", flush=True)
            elif event.type.endswith("transcription.completed"):
                break
    print()


asyncio.run(main(*sys.argv[1:]))
