"""The deepgram-sdk package: python deployment/clients/deepgram_live.py bridge/samples/call.wav"""

import asyncio
import sys
from pathlib import Path

from deepgram import AsyncDeepgramClient
from deepgram.environment import DeepgramClientEnvironment as Environment


async def main(data: bytes, url: str = "ws://127.0.0.1:8080") -> None:
    here = Environment(base=url, production=url, agent=url, agent_rest=url)
    client = AsyncDeepgramClient(api_key="any", environment=here)
    async with client.listen.v1.connect(model="any", multichannel="true") as session:
        for i in range(0, len(data), 8192):
            await session.send_media(data[i : i + 8192])
        await session.send_close_stream()
        async for message in session:
            if message.type == "Results":
                print(message.channel_index[0], message.channel.alternatives[0].transcript)


recording = Path(sys.argv[1]).read_bytes()  # a WAV file says itself what is in it
asyncio.run(main(recording, *sys.argv[2:]))
