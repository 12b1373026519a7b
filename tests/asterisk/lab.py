"""A real Asterisk, from the laboratory directory, with a configuration of its own.

Everything it writes lies in one directory inside the laboratory, named after our process, and
goes when it stops. Every listener is on loopback, on a port that was free. It configures itself
from the repository's `asterisk/` samples, included as they are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

SAMPLES = Path(__file__).parents[2] / "asterisk"
ROOT = Path(os.environ.get("CALLSCRIBE_LAB", "/var/lib/callscribe-lab"))
PREFIX = "callscribe-lab-"
BOOT, STOP, CLI = 20.0, 10.0, 10.0  # s
RTP_PORTS = 300  # for Asterisk, two a call
PHONE_PORTS = 100  # above those, for phones
BRIDGE_PORTS = 100  # above those, for a bridge

# What the samples need, and what a softphone and the tests need beside it. With autoload the same
# samples work; without it the log holds nothing but what is about us.
MODULES = """
app_audiosocket app_chanspy app_dial app_echo app_exec app_mixmonitor app_originate app_playback
app_senddtmf app_stack app_userevent app_verbose bridge_builtin_features bridge_native_rtp
bridge_simple
chan_audiosocket chan_pjsip chan_websocket codec_alaw codec_g722 codec_gsm codec_resample
codec_ulaw format_gsm format_pcm format_sln format_wav func_callerid func_channel func_curl
func_dialplan func_global func_json func_logic func_shell func_strings func_uri func_uuid pbx_config
res_audiosocket res_clioriginate res_curl res_http_websocket res_pjproject res_pjsip
res_pjsip_caller_id res_pjsip_dtmf_info res_pjsip_endpoint_identifier_anonymous res_pjsip_logger
res_pjsip_nat res_pjsip_pubsub res_pjsip_rfc3326 res_pjsip_sdp_rtp res_pjsip_session
res_rtp_asterisk res_sorcery_astdb res_sorcery_config res_sorcery_memory res_timing_timerfd
res_websocket_client
""".split()

# Files that Asterisk complains about when they are missing, though empty ones do.
EMPTY = "acl ccss cdr cel chan_websocket features pjproject udptl".split()

DIALPLAN = """
#include "sample-extensions.conf"
[globals](+)
CALLSCRIBE=127.0.0.1:{closed}

[lab]
exten => caller,1,Gosub(callscribe,s,1)
 same => n,Set(RESULT=Id: ${{CALLSCRIBE_ID}},Status: ${{CALLSCRIBE_STATUS}})
 same => n,UserEvent(LabAfter,${{RESULT}},Dial: ${{DIALSTATUS}},Text: ${{CALLSCRIBE_TEXT}})
 same => n,Hangup()
exten => again,1,Gosub(callscribe-again,s,1)
 same => n,Set(RESULT=Id: ${{CALLSCRIBE_ID}},Status: ${{CALLSCRIBE_STATUS}})
 same => n,UserEvent(LabAfter,${{RESULT}},Tries: ${{CALLSCRIBE_TRIES}})
 same => n,Hangup()
exten => app,1,Gosub(callscribe-app,s,1)
 same => n,Set(RESULT=Id: ${{CALLSCRIBE_ID}},Status: ${{CALLSCRIBE_STATUS}})
 same => n,UserEvent(LabAfter,${{RESULT}},Try: ${{TRYSTATUS}})
 same => n,Hangup()
exten => ws,1,Gosub(callscribe-ws,s,1)
 same => n,Set(RESULT=Id: ${{CALLSCRIBE_ID}},Status: ${{CALLSCRIBE_STATUS}})
 same => n,UserEvent(LabAfter,${{RESULT}},Dial: ${{DIALSTATUS}},Text: ${{CALLSCRIBE_TEXT}})
 same => n,Hangup()
exten => wsraw,1,Answer()
 same => n,Dial(WebSocket/callscribe/${{LAB_WS}}v(call=${{LAB_CALL}}),20,g)
 same => n,UserEvent(LabAfter,Call: ${{LAB_CALL}},Dial: ${{DIALSTATUS}})
 same => n,Hangup()
exten => wsboth,1,Answer()
 same => n,Gosub(callscribe-ws-dial,s,1(${{LAB_CALLEE}}))
 same => n,UserEvent(LabAfter,Call: ${{CALLSCRIBE_CALL}},Dial: ${{DIALSTATUS}})
 same => n,Hangup()
exten => both,1,Answer()
 same => n,Gosub(callscribe-dial,s,1(${{LAB_CALLEE}}))
 same => n,UserEvent(LabAfter,Call: ${{CALLSCRIBE_CALL}},Dial: ${{DIALSTATUS}})
 same => n,Hangup()
exten => agreeing,1,Set(CALLSCRIBE_CONSENT=1)
 same => n,Goto(caller,1)
exten => agreeingboth,1,Set(CALLSCRIBE_CONSENT=1)
 same => n,Goto(both,1)
exten => callee,1,Answer()
 same => n,Playback(${{LAB_CALLEE_SAYS}})
 same => n,Hangup()
exten => listen,1,Answer()
 same => n,Set(LAB_N=0)
 same => n(again),Gosub(${{LAB_LISTEN}},s,1(${{LAB_ARGS}}))
 same => n,Set(LAB_N=$[${{LAB_N}} + 1])
 same => n,Set(RESULT=${{CALLSCRIBE_STATUS}}/${{CALLSCRIBE_CONFIDENCE}}/${{CALLSCRIBE_LANGUAGE}})
 same => n,Set(RESULT=${{RESULT}},Id: ${{CALLSCRIBE_LEG_ID}})
 same => n,UserEvent(LabHeard,Result: ${{RESULT}},Text: ${{CALLSCRIBE_TEXT}},N: ${{LAB_N}})
 same => n,GotoIf($[${{LAB_N}} < ${{LAB_TIMES}}]?again)
 same => n,Hangup()
exten => h,1,UserEvent(LabGone,Status: ${{CALLSCRIBE_STATUS}})
exten => echo,1,Answer()
 same => n,Echo()
"""

MANAGER = """
#include "sample-manager.conf"
[general](+)
port = {ami}
[callscribe](+)
secret = {secret}
[lab]
secret = {secret}
deny = 0.0.0.0/0.0.0.0
permit = 127.0.0.1/255.255.255.255
read = all
write = all
writetimeout = 5000
"""

PJSIP = """
#include "sample-pjsip.conf"
[callscribe-udp](+)
bind = 127.0.0.1:{sip}
"""

WEBSOCKET_CLIENT = """
#include "sample-websocket_client.conf"
[callscribe](+)
uri = {scheme}://127.0.0.1:{port}/asterisk
username = asterisk
password = {secret}
"""
WEBSOCKET_TLS = """
tls_enabled = yes
ca_list_file = {home}/ca.pem
verify_server_cert = yes
verify_server_hostname = yes
"""

ASTERISK = """
[directories]
astetcdir => {home}
astmoddir => {modules}
astvarlibdir => {home}/var
astdbdir => {home}/var
astkeydir => {home}/var
astdatadir => /usr/share/asterisk
astagidir => {home}/var
astspooldir => {home}/var
astrundir => {home}/run
astlogdir => {home}/log
[options]
dontwarn = yes
"""


class LabError(Exception):
    """The laboratory does not do what it should."""


def missing() -> str:
    """Why there is no laboratory here, as a sentence; empty when there is one."""
    if not (ROOT / "usr/sbin/asterisk").exists():
        return f"no Asterisk laboratory in {ROOT}: run `make asterisk-lab` as root"
    if os.geteuid() != 0:
        return "the Asterisk laboratory needs root: chroot does"
    return ""


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def free_range(count: int) -> int:
    """The first of `count` free UDP ports, below those the kernel gives out."""
    start = 10_000 + os.getpid() % 40 * count
    for base in range(start, start + 40 * count, count):
        first = base if base + count < 32_000 else base - 20_000
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind(("127.0.0.1", port))
            return first
    raise LabError(f"no {count} free UDP ports in a row")


def sweep() -> None:
    """Remove what test runs left that were killed."""
    for left in (ROOT / "tmp").glob(PREFIX + "*"):
        pid = left.name.removeprefix(PREFIX).split("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)


class Lab:
    """One Asterisk. `ami`, `sip`: its ports; `phones`, `bridge`: first of ports for their RTP.

    `secret`: of the AMI users callscribe and lab.
    """

    def __init__(self) -> None:
        sweep()
        self.outside = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=ROOT / "tmp"))
        self.inside = "/" + str(self.outside.relative_to(ROOT))
        self.secret = os.urandom(16).hex()
        self.process: subprocess.Popen[bytes] | None = None
        # Nobody listens on `closed` (port 1 is not given out), and few tests may call it: a
        # refused connection can harm Asterisk's other calls.
        self.closed = 1
        self.ami = free_port()
        self.sip = free_port(socket.SOCK_DGRAM)
        self._configure()

    # -- configuration -------------------------------------------------------------------------

    def _configure(self) -> None:
        for name in ("run", "log", "var", "var/keys", "sounds"):
            (self.outside / name).mkdir()
        modules = next(ROOT.glob("usr/lib/*/asterisk/modules"))
        rtp = free_range(RTP_PORTS + PHONE_PORTS + BRIDGE_PORTS)
        self.phones = rtp + RTP_PORTS
        self.bridge = self.phones + PHONE_PORTS
        files = {
            "asterisk": ASTERISK.format(home=self.inside, modules=f"/{modules.relative_to(ROOT)}"),
            "extensions": DIALPLAN.format(closed=self.closed),
            "manager": MANAGER.format(ami=self.ami, secret=self.secret),
            "websocket_client": self._websocket_client(self.closed),
            "pjsip": PJSIP.format(sip=self.sip),
            "rtp": f"[general]\nrtpstart = {rtp}\nrtpend = {rtp + RTP_PORTS - 1}\n",
            "logger": "[general]\n[logfiles]\nmessages => notice,warning,error\n",
            "modules": "[modules]\nautoload = no\n"
            + "".join(f"load = {name}.so\n" for name in MODULES),
            "indications": "[general]\ncountry = us\n[us]\n",
            **dict.fromkeys(EMPTY, ""),
        }
        for name, text in files.items():
            (self.outside / f"{name}.conf").write_text(text)
        for sample in SAMPLES.glob("*.conf"):
            shutil.copy(sample, self.outside / f"sample-{sample.name}")

    def sound(self, name: str, wav: bytes) -> str:
        """Make a sound file. Returns what Playback calls it."""
        (self.outside / "sounds" / f"{name}.wav").write_bytes(wav)
        return f"{self.inside}/sounds/{name}"

    def prompt(self, name: str) -> Path:
        """Asterisk's own recording of that name, 8 kHz wav."""
        return next((ROOT / "usr/share/asterisk/sounds").glob(f"en_US*/{name}.wav"))

    def log(self) -> list[str]:
        """Lines of the log: notices, warnings and errors."""
        path = self.outside / "log/messages"
        return path.read_text("utf-8", "replace").splitlines() if path.exists() else []

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start and wait until it takes calls. Raises `LabError`, with nothing left running.

        In a mount namespace of its own, so that its /proc goes with it; killed by the kernel when
        we are (setpriv), so that a test run that is killed leaves no Asterisk.
        """
        script = (
            'exec >>"$3" 2>&1; mount -t proc proc "$1/proc" && exec chroot "$1" asterisk -f -C "$2"'
        )
        output = str(self.outside / "log/output")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private"]
            + ["setpriv", "--pdeathsig", "KILL"]
            + ["sh", "-c", script, "asterisk", str(ROOT), f"{self.inside}/asterisk.conf", output],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + BOOT
        while time.monotonic() < deadline and self.process.poll() is None:
            if "fully booted" in self.cli("core waitfullybooted", check=False):
                return
            time.sleep(0.05)
        said = (self.outside / "log/output").read_text("utf-8", "replace")[-2000:]
        log = "\n".join(self.log()[-20:])
        self.kill()
        raise LabError(f"Asterisk did not start within {BOOT:.0f} s:\n{said}\n{log}")

    def cli(self, command: str, *, check: bool = True) -> str:
        """What Asterisk's console says to that command."""
        done = subprocess.run(
            ["chroot", ROOT, "asterisk", "-C", f"{self.inside}/asterisk.conf", "-rx", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLI,
        )
        if check and done.returncode:
            raise LabError(f"{command}: {done.stderr or done.stdout}")
        return done.stdout

    def call_bridge_at(self, port: int) -> None:
        """Where the samples' CALLSCRIBE points from now on."""
        self.cli(f"dialplan set global CALLSCRIBE 127.0.0.1:{port}")

    def connect_websockets_to(self, port: int, ca: Path | None = None) -> None:
        """Where [callscribe] of websocket_client.conf points from now on; `ca`: by TLS.

        Its user is ``asterisk``, and its password is `secret`.
        """
        text = self._websocket_client(port, ca)
        (self.outside / "websocket_client.conf").write_text(text)
        self.cli("module reload res_websocket_client.so")

    def _websocket_client(self, port: int, ca: Path | None = None) -> str:
        text = WEBSOCKET_CLIENT.format(
            port=port, secret=self.secret, scheme="ws" if ca is None else "wss"
        )
        if ca is None:
            return text
        shutil.copy(ca, self.outside / "ca.pem")
        return text + WEBSOCKET_TLS.format(home=self.inside)

    def set_global(self, name: str, value: str) -> None:
        """A global variable of the dialplan."""
        self.cli(f'dialplan set global {name} "{value}"')

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it, with kill as the last resort, and remove everything it wrote."""
        self.halt()
        shutil.rmtree(self.outside, ignore_errors=True)

    def halt(self) -> None:
        """End the process; calls that are up end with it. It can be started again."""
        if self.running:
            with contextlib.suppress(subprocess.TimeoutExpired, LabError):
                self.cli("core stop now", check=False)
                assert self.process is not None
                self.process.wait(STOP)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
