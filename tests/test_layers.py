"""Imports point one way, and one file knows one outside thing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = "bridge.types bridge.errors bridge.interfaces"
TURNS = "bridge.turns"
CALLS = f"{PURE} bridge.audio.* {TURNS} bridge.leg bridge.call"
IO = f"{PURE} bridge.config bridge"  # bridge itself: only its version
AUTH = f"{PURE} bridge.addresses bridge.config bridge.config_auth"

ASSEMBLY = """
    __main__
    ami_user
    audiosocket_user
    bench.*
    cli
    demo
    demo_*
    desk
    doctor
    doctor_*
    outbox_command
    outbox_file
    redacting
    rtp_stream
    rtp_taps
    rtp_user
    rules_desk
    server
    sinks
    socket_kinds
    socket_session
    socket_user
    supervisor
    taps
    unicast
    watched
    webhook_command
    worker
"""

# Module → what of ours it may import besides its own package's insides; the first match counts.
# Read downwards: whatever stands lower knows more.
OURS: dict[str, str] = {
    "bridge": "",
    "bridge.types": "",
    "bridge.errors": "",
    "bridge.interfaces": "bridge.types",
    "bridge.audio.*": PURE,
    "bridge.turns": PURE,
    "bridge.accuracy": "",
    "bridge.addresses": "",
    "bridge.contract": PURE,
    "bridge.redact.stream": "bridge.types",
    "bridge.redact.*": "",
    "bridge.script": f"{PURE} bridge.audio.*",
    "bridge.recording": f"{PURE} bridge.audio.*",
    "bridge.ingress.freeswitch": f"{PURE} bridge.audio.* bridge.contract",
    "bridge.ingress.*": f"{PURE} bridge.audio.*",
    "bridge.engine.slots": PURE,
    "bridge.engine.words": PURE,
    "bridge.pausing": PURE,
    "bridge.admission": PURE,
    "bridge.silence": "",
    "bridge.leg": f"{PURE} bridge.audio.* {TURNS} bridge.pausing bridge.silence",
    "bridge.call": f"{PURE} bridge.audio.* {TURNS} bridge.leg",
    "bridge.left": "bridge.types",
    "bridge.line": "bridge.types bridge.leg bridge.admission",
    "bridge.listening": f"{CALLS} bridge.line",
    "bridge.joining": CALLS,
    "bridge.announced": "bridge.types bridge.admission bridge.joining",
    "bridge.switchboard": f"{CALLS} bridge.line bridge.left bridge.admission "
    "bridge.announced bridge.joining bridge.listening",
    # signature: the one thing that settings are checked with, and that has no settings itself.
    "bridge.config_fields": "",
    "bridge.rules_text": "",
    "bridge.rules_types": f"{PURE} bridge.rules_text bridge.pbx.ari_rules",
    "bridge.rules": f"{PURE} bridge.rules_text bridge.rules_types",
    "bridge.config_rules": "bridge.config_fields bridge.rules_text",
    "bridge.rules_actions": f"{PURE} bridge.config_rules bridge.rules_types bridge.egress.ami",
    "bridge.config_media": "bridge.config_fields",
    "bridge.config_limits": "bridge.config_fields",
    "bridge.config_auth": "bridge.config_fields",
    "bridge.config_websocket": "bridge.config_fields bridge.config_auth",
    "bridge.config_control": "bridge.config_fields bridge.egress.signature bridge.redact.kinds",
    "bridge.config_recording": "bridge.config_fields bridge.redact.kinds",
    "bridge.config_outbox": "bridge.config_fields",
    "bridge.config": "bridge.errors bridge.config_*",
    "bridge.farewell": "bridge.types",
    "bridge.logs": "bridge.config",
    "bridge.load": "",
    "bridge.metrics": "bridge bridge.load",
    "bridge.listeners": f"{IO} bridge.errors",
    "bridge.transport.websocket": f"{PURE} bridge.ingress.media_socket bridge.ingress.leg_audio",
    "bridge.transport.*": f"{IO} bridge.transport.*",
    "bridge.pbx.*": IO,
    "bridge.egress.*": f"{IO} bridge.contract",
    "bridge.engine.*": IO,
    "bridge.recorder.tape": "bridge.types",
    "bridge.recorder.files": "bridge.errors",
    "bridge.recorder.recorder": f"{CALLS} bridge.config bridge.recorder.*",
    "bridge.recorder.*": IO,
    "bridge.media": f"{PURE} bridge.ingress.*",
    "bridge.media_ports": f"{IO} bridge.transport.*",
    "bridge.auth_types": "bridge.errors",
    "bridge.auth_credentials": "bridge.auth_types bridge.errors",
    "bridge.auth_limits": "bridge.auth_types",
    "bridge.auth_twilio": "bridge.auth_types",
    "bridge.auth_ring": "bridge.auth_types",
    "bridge.auth_jwt": f"{AUTH} bridge.auth_types bridge.auth_ring",
    "bridge.auth_origin": f"{AUTH} bridge.auth_types",
    "bridge.auth": f"{AUTH} bridge.auth_[!k]*",
    "bridge.auth_keys": f"{AUTH} bridge.auth bridge.auth_types bridge.auth_ring",
    "bridge.tls": IO,
    "bridge.key_command": AUTH,
    "bridge.http.*": f"{IO} bridge.addresses bridge.contract bridge.metrics bridge.media "
    "bridge.ingress.rtp_types",
    "bridge.caller": f"{IO} bridge.script",
    "bridge.rtp_script": f"{PURE} bridge.audio.* bridge.ingress.* bridge.script",
    "bridge.rtp_caller": f"{IO} bridge.caller bridge.rtp_script",
    "bridge.capture_file": "bridge.errors",
    "bridge.capture": "bridge.errors bridge.audio.* bridge.ingress.* bridge.capture_file",
    "bridge.announcing": IO,
    "bridge.socket_client": "bridge.errors",
    "bridge.latency": "bridge.errors bridge.types bridge.audio.* bridge.recording "
    "bridge.socket_client",
    "bridge.mic": "bridge.errors bridge.logs bridge.socket_client",
    "bridge.rtp_call": f"{IO} bridge.announcing bridge.caller bridge.capture bridge.ingress.* "
    "bridge.recording bridge.rtp_caller bridge.rtp_script",
    "bridge.client_rtp": f"{IO} bridge.announcing bridge.caller bridge.capture bridge.rtp_call "
    "bridge.rtp_caller bridge.rtp_script",
    "bridge.client": f"{IO} bridge.caller bridge.client_rtp bridge.recording bridge.script",
    # Assembly: the only modules that know all kinds.
    **{f"bridge.{name}": "bridge bridge.*" for name in ASSEMBLY.split()},
}  # fmt: skip

PURE_MODULES = """
    bridge.accuracy
    bridge.addresses
    bridge.admission
    bridge.announced
    bridge.audio.*
    bridge.auth
    bridge.auth_credentials
    bridge.auth_jwt
    bridge.auth_limits
    bridge.auth_origin
    bridge.auth_ring
    bridge.auth_twilio
    bridge.auth_types
    bridge.call
    bridge.capture
    bridge.capture_file
    bridge.contract
    bridge.egress.pending
    bridge.egress.retry
    bridge.egress.signature
    bridge.engine.align
    bridge.engine.budget
    bridge.engine.checkpoint_config
    bridge.engine.checkpoint_memory
    bridge.engine.checkpoint_tensors
    bridge.engine.clock
    bridge.engine.pauses
    bridge.engine.rows
    bridge.engine.slots
    bridge.engine.words
    bridge.errors
    bridge.ingress.*
    bridge.interfaces
    bridge.joining
    bridge.left
    bridge.leg
    bridge.line
    bridge.listening
    bridge.load
    bridge.pausing
    bridge.pbx.ami_consent
    bridge.pbx.ami_pause
    bridge.pbx.ami_tap
    bridge.pbx.ami_text
    bridge.pbx.ari_calls
    bridge.pbx.ari_channels
    bridge.pbx.ari_events
    bridge.pbx.ari_media
    bridge.pbx.ari_rules
    bridge.pbx.ari_tap
    bridge.pbx.ari_tapped
    bridge.pbx.ari_taps
    bridge.pbx.esl_text
    bridge.recorder.tape
    bridge.redact.*
    bridge.rtp_script
    bridge.rules
    bridge.rules_actions
    bridge.rules_text
    bridge.rules_types
    bridge.script
    bridge.silence
    bridge.switchboard
    bridge.turns
    bridge.types
"""
IMPURE = """
    asyncio socket select selectors threading multiprocessing concurrent subprocess signal
    time random secrets ssl aiohttp websockets torch
"""

# Third-party library → the modules that may import it.
OWNERS = {
    "numpy": "bridge.*",
    "pydantic": "bridge.config bridge.config_*",
    "pydantic_settings": "bridge.config bridge.config_*",
    "soxr": "bridge.audio.resample bridge.bench.*",
    "panoramisk": "bridge.pbx.ami bridge.pbx.ami_connection",
    "prometheus_client": "bridge.metrics",
    "pocketsphinx": "bridge.engine.pocketsphinx_worker",
    # The doctor asks an endpoint, as the webhook would, without an event to deliver.
    "aiohttp": "bridge.egress.webhook bridge.egress.resolver bridge.http.* bridge.pbx.ari_http "
    "bridge.auth_keys bridge.doctor*",
    "jwt": "bridge.auth_jwt",
    "cryptography": "bridge.auth_jwt bridge.tls",  # keys; certificates
    "uvloop": "bridge.worker",
    "re2": "bridge.rules_text",
    "websockets": "bridge.transport.websocket bridge.socket_client bridge.bench.*",
    "sounddevice": "bridge.mic",
    "orjson": "bridge.ingress.media_socket bridge.ingress.said bridge.contract"
    " bridge.egress.packed bridge.egress.store_keys",
    "msgpack": "bridge.ingress.moshi",
    "sphn": "bridge.ingress.moshi",
    # The engine's own process, and what makes random weights and measures it.
    "torch": "bridge.engine.kyutai bridge.engine.kyutai_*",
    "moshi": "bridge.engine.kyutai bridge.engine.kyutai_*",
    "safetensors": "bridge.engine.kyutai_*",
    "sentencepiece": "bridge.engine.kyutai_*",
    "huggingface_hub": "bridge.engine.checkpoint",
    "py3langid": "bridge.engine.language",
    "soundfile": "bridge.recorder.sound",
    "stdnum": "bridge.redact.numbers",
    "phonenumbers": "bridge.redact.numbers bridge.redacting",
    "G722": "bridge.audio.codecs bridge.audio.encoders",
    "pylibsrtp": "bridge.ingress.srtp",
    "matplotlib": "bridge.bench.* bridge.latency",
}


def among(module: str, patterns: str) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns.split())


def imports(module: str, tree: ast.AST, *, package: bool = False) -> Iterator[str]:
    """Every module that is imported anywhere in the file, not only at its top."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body.clear()  # names for the type checker; nothing is loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where they point"
            source = node.module or ""
            for alias in node.names:  # `from bridge import client` imports bridge.client
                inner = f"{source}.{alias.name}"
                yield inner if is_module(inner) else source


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("bridge") and (path.is_dir() or path.with_suffix(".py").exists())


def allowed(module: str) -> str:
    found = (more for pattern, more in OURS.items() if fnmatch(module, pattern))
    return next(found, "?")


def same_package(module: str, other: str) -> bool:
    """`bridge.egress.ami` may import `bridge.egress.retry`; a package of one layer is one thing."""
    package = module.split(".")[:2]
    return module.count(".") > 1 and other.split(".")[:2] == package


def complaints(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports, a sentence each."""
    wrong = []
    rule = allowed(module)
    if rule == "?":
        return [f"{module} is in no layer: give it one in {Path(__file__).name}"]
    pure = among(module, PURE_MODULES)
    for name in sorted(set(imports(module, ast.parse(source)))):
        top = name.partition(".")[0]
        if top == "bridge":
            inside = same_package(module, name) and not (pure and not among(name, PURE_MODULES))
            if not among(name, rule) and not inside:
                wrong.append(f"{module} must not import {name}")
        elif top in IMPURE.split() and pure:
            wrong.append(f"{module} is pure and must not import {name}")
        elif top not in sys.stdlib_module_names and not among(module, OWNERS.get(top, "")):
            wrong.append(f"{module} does not own {name}")
    return wrong


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted((ROOT / "bridge").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append(("bridge" if parts == ("bridge", "__init__") else ".".join(parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_point_one_way(module: str, path: Path) -> None:
    assert complaints(module, path.read_text("utf-8")) == []


def test_nothing_of_ours_goes_round_in_a_circle() -> None:
    """Not even inside a package, where the table above does not look."""
    graph = {
        name: {
            other
            for other in imports(name, ast.parse(path.read_text("utf-8")))
            if other.startswith("bridge.") and other != name
        }
        for name, path in modules()
        if not among(name, "bridge bridge.cli bridge.demo* bridge.doctor* bridge.bench*")
    }
    while graph:
        leaves = {name for name, uses in graph.items() if not uses & graph.keys()}
        assert leaves, f"these import each other: {sorted(graph)}"
        graph = {name: uses for name, uses in graph.items() if name not in leaves}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("bridge.leg", "import asyncio", "bridge.leg is pure and must not import asyncio"),
        ("bridge.leg", "def f():\n from time import sleep",
         "bridge.leg is pure and must not import time"),
        ("bridge.types", "from bridge.errors import Busy",
         "bridge.types must not import bridge.errors"),
        ("bridge.turns", "from bridge.leg import Leg", "bridge.turns must not import bridge.leg"),
        ("bridge.leg", "from bridge.call import Call", "bridge.leg must not import bridge.call"),
        ("bridge.call", "from bridge.switchboard import Line",
         "bridge.call must not import bridge.switchboard"),
        ("bridge.egress.ami", "from bridge.pbx.ami import AmiLink",
         "bridge.egress.ami must not import bridge.pbx.ami"),
        ("bridge.transport.tcp", "from bridge.ingress import audiosocket",
         "bridge.transport.tcp must not import bridge.ingress.audiosocket"),
        ("bridge.engine.slots", "from bridge.engine.batcher import Batcher",
         "bridge.engine.slots must not import bridge.engine.batcher"),
        ("bridge.engine.tones", "import bridge.server",
         "bridge.engine.tones must not import bridge.server"),
        ("bridge.http.app", "from bridge import server",
         "bridge.http.app must not import bridge.server"),
        ("bridge.server", "import soxr", "bridge.server does not own soxr"),
        ("bridge.leg", "from soxr import resample", "bridge.leg does not own soxr"),
        ("bridge.desk", "import prometheus_client.core",
         "bridge.desk does not own prometheus_client.core"),
        ("bridge.egress.log", "import requests", "bridge.egress.log does not own requests"),
        ("bridge.brandnew", "", "bridge.brandnew is in no layer: give it one in test_layers.py"),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_found(module: str, source: str, complaint: str) -> None:
    assert complaints(module, source) == [complaint]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bridge.leg", "from bridge.audio.resample import make_resampler\nimport numpy.typing"),
        ("bridge.egress.ami", "from bridge.egress.retry import backoff\nimport asyncio"),
        ("bridge.server", "from bridge.pbx.ami import AmiLink\nimport time"),
        ("bridge.leg", "if TYPE_CHECKING:\n from bridge.server import Server"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert complaints(module, source) == []


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="^bridge.leg: relative imports hide"):
        complaints("bridge.leg", "from .call import Call")


def test_the_table_has_no_row_for_what_is_gone() -> None:
    """A layer without modules would let the next module of that name slip in unseen."""
    future = {"bridge.demo_*"}
    names = [name for name, _ in modules()]
    idle = [p for p in OURS if p not in future and not any(fnmatch(n, p) for n in names)]
    assert idle == []


def test_no_module_asks_what_a_transport_is() -> None:
    """uvloop's are of none of asyncio's classes, and in tests the loop is asyncio's."""
    for path in (ROOT / "bridge").rglob("*.py"):
        assert "isinstance(transport" not in path.read_text(), path
