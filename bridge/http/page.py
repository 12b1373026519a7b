"""The page to see it: one file, everything in it, nothing fetched from elsewhere.

What is in `page.html` may run and nothing else may: the policy names its script and its style by
their hashes. (The worklet that takes the microphone's samples is a blob that the script makes.)
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from aiohttp import web

from bridge.http.health import info

FILE = Path(__file__).with_name("page.html")


@lru_cache(1)
def page() -> tuple[str, str]:
    """The page and its Content-Security-Policy."""
    text = FILE.read_text("utf-8")
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script} blob:; worker-src blob:; style-src {style}; "
        "connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


async def root(request: web.Request) -> web.StreamResponse:
    """The page to browsers; to others what `/info` says."""
    if "text/html" not in request.headers.get("Accept", ""):
        return await info(request)
    text, policy = page()
    headers = {
        "Content-Security-Policy": policy,
        "Permissions-Policy": "microphone=(self)",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
    }
    return web.Response(text=text, content_type="text/html", headers=headers)
