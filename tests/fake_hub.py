"""A Hugging Face hub on loopback: what its client asks for when it looks up and fetches models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef" * 2 + "01234567"


@dataclass
class FakeHub:
    """`files`: "owner/name" → name → content. `requests`: "GET /owner/name/resolve/…", in order.

    `refusal`: (status, X-Error-Code) that every request is answered with. `cut`: bytes after which
    a file's connection is closed, once. `hold`: after half of a file, wait for this.
    """

    url: str = ""
    commit: str = COMMIT
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    gated: bool = False
    cut: int | None = None
    hold: threading.Event | None = None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(self.path)
        hub.requests.append(f"{self.command} {path}")
        hub.tokens.append(self.headers["Authorization"])
        if hub.refusal:
            return self.refuse(*hub.refusal)
        if path.startswith("/api/models/"):
            return self.info(*path.removeprefix("/api/models/").partition("/revision/")[::2])
        model, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        if model not in hub.files:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", "v2", hub.commit):
            return self.refuse(404, "RevisionNotFound")
        if name not in hub.files[model]:
            return self.refuse(404, "EntryNotFound")
        return self.send_file(hub.files[model][name], body)

    def info(self, model: str, revision: str) -> None:
        if model not in self.hub.files:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("", "main", "v2"):
            return self.refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": name} for name in self.hub.files[model]]
        gated = "auto" if self.hub.gated else False
        self.send_file(
            json.dumps({"id": model, "gated": gated, "siblings": siblings, "tags": []}).encode(),
            body=True,
        )

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, content: bytes, body: bool) -> None:
        hub, begin = self.hub, 0
        if "Range" in self.headers:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if not body:
            return
        if hub.cut is not None:
            self.wfile.write(content[: hub.cut])
            hub.cut = None
            self.close_connection = True
            return
        half = begin + (len(content) - begin) // 2
        self.wfile.write(content[begin:half])
        if hub.hold is not None:
            self.wfile.flush()
            hub.hold.wait(10)
        self.wfile.write(content[half:])

    def log_message(self, *args: object) -> None:
        """Nothing; `requests` has it."""


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
