"""A client of the plain WebSocket protocol (bridge/ingress/plain.py): 24 kHz in, words out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from bridge.errors import BridgeError

RATE = 24000  # Hz
BLOCK = 1920  # samples; 80 ms
OPEN = 10.0  # s for the connection
LAST = 15.0  # s for the last words after the last sample
PATIENCE = 20.0  # s that the bridge may take to answer a ping

Told = Callable[[dict[str, Any]], None]


async def stream(url: str, key: str, audio: AsyncIterator[bytes], told: Told) -> None:
    """Send int16 samples as they come, then wait for the last words. Raises `BridgeError`.

    `told` gets every message. `url`: ``ws://127.0.0.1:8080/ws``.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with connect(
            url,
            additional_headers=headers,
            compression=None,
            open_timeout=OPEN,
            ping_timeout=PATIENCE,
        ) as ws:
            hearing = asyncio.create_task(_hear(ws, told))
            try:
                async for samples in audio:
                    await ws.send(samples)
                await ws.send(json.dumps({"type": "end"}))
                async with asyncio.timeout(LAST):
                    await hearing
            finally:
                hearing.cancel()
    except InvalidStatus as e:
        status = e.response.status_code
        said = bytes(e.response.body or b"").decode("utf-8", "replace").strip()
        raise BridgeError(f"{url}: the bridge answered {status}: {said[:200]}") from None
    except TimeoutError:
        raise BridgeError(f"{url}: no answer in time") from None
    except ConnectionClosed as e:
        why = e.rcvd.reason if e.rcvd is not None else ""
        raise BridgeError(f"{url}: the connection was closed{f': {why}' if why else ''}") from None
    except (OSError, WebSocketException) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise BridgeError(f"cannot connect to {url}: {why}; is [websocket] there?") from None


async def _hear(ws: ClientConnection, told: Told) -> None:
    async for message in ws:
        said = json.loads(message)
        if said.get("type") == "error":
            raise BridgeError(f"the bridge says: {said.get('message')}")
        told(said)
