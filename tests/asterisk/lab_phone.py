"""Real SIP phones: baresip for one call, SIPp for many. Both play a sound file to Asterisk."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lab import Lab, free_port
from lab_wait import WAIT

MODULES = Path("/usr/lib/baresip/modules")
STOP = 5.0  # s

BARESIP = """
sip_listen 127.0.0.1:{port}
audio_player aufile,{folder}/heard.wav
audio_source aufile,{folder}/says.wav
audio_alert aufile,{folder}/alert.wav
module_path {modules}
module stdio.so
module g711.so
module aufile.so
module_app account.so
module_app menu.so
"""

# A caller that plays a file of mu-law to whoever answers. It never listens.
SIPP = """<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="caller">
<send retrans="500"><![CDATA[

INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:sipp@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: <sip:sipp@[local_ip]:[local_port]>
Max-Forwards: 70
Content-Type: application/sdp
Content-Length: [len]

v=0
o=- 1 1 IN IP4 [local_ip]
s=-
c=IN IP4 [media_ip]
t=0 0
m=audio [rtpstream_audio_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000

]]></send>
<recv response="100" optional="true"/>
<recv response="180" optional="true"/>
<recv response="183" optional="true"/>
<recv response="200" rrs="true"/>
<send><![CDATA[

ACK [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:sipp@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

]]></send>
<nop><action><exec rtp_stream="{file},1,0,PCMU/8000"/></action></nop>
<pause milliseconds="{milliseconds}"/>
<send retrans="500"><![CDATA[

BYE [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:sipp@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200"/>
</scenario>
"""


def missing() -> str:
    """Why there are no phones here, as a sentence; empty when there are."""
    if shutil.which("baresip") and shutil.which("sipp"):
        return ""
    return "no baresip or no sipp: run `make asterisk-lab` as root"


async def end(process: asyncio.subprocess.Process) -> None:
    """Terminate; kill as the last resort."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP)
    except TimeoutError:
        process.kill()
        await process.wait()


class Softphone:
    """baresip in a call. Commands are its keys, read from its stdin."""

    def __init__(self, process: asyncio.subprocess.Process, said: Path) -> None:
        self._process, self._said = process, said

    async def ready(self) -> None:
        """Until it takes calls."""
        async with asyncio.timeout(WAIT):
            while "baresip is ready" not in self._said.read_text("utf-8", "replace"):  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.05)

    async def press(self, digit: str) -> None:
        """A key during the call: DTMF (RFC 4733)."""
        assert self._process.stdin is not None
        self._process.stdin.write(digit.encode())
        await self._process.stdin.drain()


@asynccontextmanager
async def softphone(lab: Lab, folder: Path, wav: bytes, to: str) -> AsyncIterator[Softphone]:
    """A softphone that dials `to` and says `wav`; hangs up on the way out."""
    dial = ("-e", f"/dial sip:{to}@127.0.0.1:{lab.sip}")
    async with _baresip(folder / "phone", "alice", wav, 0, *dial) as phone:
        yield phone


@asynccontextmanager
async def answering(folder: Path, wav: bytes, name: str = "bob") -> AsyncIterator[str]:
    """A softphone that answers any call and says `wav`. Its SIP address."""
    port = free_port(socket.SOCK_DGRAM)
    async with _baresip(folder / name, name, wav, port, answers=True) as phone:
        await phone.ready()
        yield f"sip:{name}@127.0.0.1:{port}"


def _furnish(home: Path, name: str, wav: bytes, port: int, answers: bool) -> None:
    """baresip's directory."""
    home.mkdir()
    (home / "says.wav").write_bytes(wav)
    shutil.copy("/usr/share/baresip/ring.wav", home / "alert.wav")
    (home / "config").write_text(BARESIP.format(folder=home, modules=MODULES, port=port))
    mode = ";answermode=auto" if answers else ""
    (home / "accounts").write_text(f"<sip:{name}@127.0.0.1>;regint=0;audio_codecs=PCMU{mode}\n")
    (home / "contacts").write_text("")


@asynccontextmanager
async def _baresip(
    home: Path, name: str, wav: bytes, port: int, *arguments: str, answers: bool = False
) -> AsyncIterator[Softphone]:
    """baresip with a directory of its own. `port` 0: the kernel's choice."""
    _furnish(home, name, wav, port, answers)
    said = home / "log"
    with said.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("baresip", "-f", str(home), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    try:
        yield Softphone(process, said)
    except BaseException as e:
        e.add_note(f"the softphone said: {said.read_text('utf-8', 'replace')[-3000:]}")
        raise
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await end(process)


async def many(
    lab: Lab, folder: Path, ulaw: bytes, to: str, *, calls: int, rate: int, after: float = 0.5
) -> str:
    """That many SIP calls to `to`, `rate` a second, each saying `ulaw` (mu-law, 8 kHz) whole.

    `after`: seconds until it hangs up, by which SIPp may be late with its audio. Returns what SIPp
    printed. Raises AssertionError when a call failed.
    """
    file, scenario = folder / "says.ulaw", folder / "caller.xml"
    file.write_bytes(ulaw)
    milliseconds = len(ulaw) // 8 + round(1000 * after)
    scenario.write_text(
        SIPP.replace("{file}", str(file)).replace("{milliseconds}", str(milliseconds))
    )
    process = await asyncio.create_subprocess_exec(
        *("sipp", f"127.0.0.1:{lab.sip}", "-sf", str(scenario), "-s", to, "-i", "127.0.0.1"),
        *("-p", str(free_port(socket.SOCK_DGRAM)), "-mi", "127.0.0.1", "-mp", str(lab.phones)),
        *("-m", str(calls), "-l", str(calls), "-r", str(rate), "-nostdin", "-timeout", "60s"),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 70)
    finally:
        await end(process)
    assert process.returncode == 0, said.decode("utf-8", "replace")[-2000:]
    return said.decode("utf-8", "replace")
