"""FreeSWITCH's samples, held against the bridge: each announcement is posted, each answer read.

The dialplan is run by a model of mod_dialplan_xml and of mod_curl's argument parser, with the real
HTTP side of the bridge. What FreeSWITCH itself makes of it nobody has seen.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from fake_esl import FakeEsl, arguments

from bridge import config, doctor_esl
from bridge.config import EslSettings
from bridge.egress.esl import SUBCLASS, headers
from bridge.errors import Busy
from bridge.ingress.rtp_types import payload_types
from bridge.media import MediaAddress, MediaRequest
from bridge.types import Announcement, CallEvent, CallInfo, Final, Word
from tests.test_http import TOKEN, Client, FakeService, serving

FOLDER = Path(__file__).parent.parent / "asterisk" / "freeswitch"
README = (FOLDER / "README.md").read_text("utf-8")
UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
# mod_sofia's rtp.c: what the endpoint reads of the variables, and cannot do without.
ENDPOINT = {
    "local_addr",
    "local_port",
    "remote_addr",
    "remote_port",
    "codec",
    "ptime",
    "pt",
    "rate",
}
NEEDED = ENDPOINT - {"ptime", "rate"}
# mod_dptools.c, eavesdrop: the variables that say whom it hears.
EAVESDROP = {"eavesdrop_bridge_aleg", "eavesdrop_bridge_bleg", "eavesdrop_enable_dtmf"}


class Service(FakeService):
    """Gives out the ports of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.next_port = 12042

    def open_media(self, announcement: Announcement, request: MediaRequest) -> MediaAddress:
        super().open_media(announcement, request)
        assert request.codec == ("pcmu" if request.kind == "rtp" else "l16le/8000")
        assert payload_types(given={"96": request.codec})  # a codec that there is
        port, self.next_port = self.next_port, self.next_port + 2
        return MediaAddress("127.0.0.1", port, 30.0, "pcmu", {0: "pcmu/8000"})


@dataclass
class Channel:
    """One caller in the dialplan. `actions`: what would be executed, in order."""

    number: str
    client: Client
    variables: dict[str, str] = field(default_factory=lambda: {"uuid": UUID, "read_rate": "8000"})
    actions: list[tuple[str, str]] = field(default_factory=list)

    def expand(self, text: str, groups: tuple[str, ...] = ()) -> str:
        text = re.sub(r"\$(\d)", lambda m: groups[int(m[1]) - 1], text)
        return re.sub(r"\$\{(\w+)\}", lambda m: self.variables.get(m[1], ""), text)

    async def hunt(self, extensions: list[ET.Element]) -> None:
        for extension in extensions:
            if await self.parse(extension) and extension.get("continue") != "true":
                return

    async def parse(self, extension: ET.Element) -> bool:
        for condition in extension:
            name = condition.attrib["field"]
            value = self.expand(name) if "$" in name else {"destination_number": self.number}[name]
            found = re.search(condition.attrib["expression"], value)
            if found is None:
                return False  # break="on-false"
            for action in condition:
                data = self.expand(action.get("data", ""), found.groups())
                if action.get("inline") == "true":
                    await self.execute(action.attrib["application"], data)
                else:
                    self.actions.append((action.attrib["application"], data))
        return True

    async def execute(self, application: str, data: str) -> None:
        if application == "set":
            name, _, value = data.partition("=")
            self.variables[name] = value
        else:
            assert application == "curl"
            self.variables["curl_response_data"] = await self.curl(data)

    async def curl(self, data: str) -> str:
        """mod_curl's curl, application or API."""
        url, *words = arguments(data, 31)
        method, body, sent = "get", "", {}
        while words:
            word = words.pop(0)
            if word in ("get", "head"):
                method = word
            elif word in ("post", "put", "patch", "delete"):
                method, body = word, unquote(words.pop(0)) if words else ""
            elif word == "append_headers":
                key, _, value = words.pop(0).partition(":")
                sent[key] = value.strip()
            elif word == "content-type":
                sent["Content-Type"] = words.pop(0)
            else:
                assert word in ("connect-timeout", "timeout") and words.pop(0).isdecimal()
        assert url.startswith("http://127.0.0.1:8001/")
        path = urlsplit(url).path
        async with self.client.session.request(
            method, f"http://127.0.0.1:{self.client.port}{path}", data=body, headers=sent
        ) as response:
            self.variables["curl_response_code"] = str(response.status)
            return await response.text()

    def settings(self) -> dict[str, str]:
        """What `set` would set."""
        pairs = (data.partition("=") for name, data in self.actions if name == "set")
        return {name: value for name, _, value in pairs}


def dialplan(token: str = TOKEN) -> list[ET.Element]:
    """The extensions, with the variables of the preprocessor in their places."""
    text = (FOLDER / "dialplan" / "callscribe.xml").read_text("utf-8")
    globals_ = {
        line.attrib["data"].partition("=")[0]: line.attrib["data"].partition("=")[2]
        for line in ET.fromstring(text).iter("X-PRE-PROCESS")
    }
    globals_["callscribe_token"] = token
    text = re.sub(r"\$\$\{(\w+)\}", lambda m: globals_[m[1]], text)
    return list(ET.fromstring(text).iter("extension"))


def endpoint(data: str) -> tuple[dict[str, str], str]:
    """The variables before ``rtp/…``, and what comes after it."""
    found = re.fullmatch(r".*?[\[{]([^\]}]*)[\]}]rtp/callscribe(?: (.*))?", data)
    assert found is not None, data
    pairs = dict(pair.split("=") for pair in found[1].split(","))
    assert NEEDED <= set(pairs) <= ENDPOINT | EAVESDROP
    assert (pairs["codec"], pairs["pt"]) == ("PCMU", "0")
    return pairs, found[2] or ""


# -- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.xml")), ids=lambda path: path.stem)
def test_every_file_is_well_formed_and_in_the_readme(path: Path) -> None:
    assert ET.fromstring(path.read_text("utf-8")).tag in ("include", "configuration")
    assert f"`{path.relative_to(FOLDER)}`" in README


def test_the_readme_says_what_it_was_tested_against() -> None:
    assert "**tested against a scripted peer**" in README
    assert "No\nFreeSWITCH has run them." in README


def test_every_variable_of_the_dialplan_is_set_in_it() -> None:
    text = (FOLDER / "dialplan" / "callscribe.xml").read_text("utf-8")
    used = set(re.findall(r"\$\$\{(\w+)\}", text))
    given = set(re.findall(r'cmd="set" data="(\w+)=', text))
    assert used == given
    assert set(re.findall(r"(?<!\$)\$\{(\w+)\}", text)) == {
        "uuid", "curl_response_data", "read_rate",
    }  # fmt: skip


# -- the dialplan ---------------------------------------------------------------------------------


async def test_a_caller_alone_is_announced_and_bridged() -> None:
    service = Service()
    async with serving(service, token=TOKEN) as client:
        channel = Channel("8600", client)
        await channel.hunt(dialplan())
    (announced,) = service.announced
    assert (announced.call, announced.leg, announced.info.channel) == (UUID, "caller", UUID)
    assert service.requested == [MediaRequest(codec="pcmu", source=("127.0.0.1", None))]
    *_, (answer, _), (bridge, data) = channel.actions
    assert (answer, bridge) == ("answer", "bridge")
    ports, _ = endpoint(data)
    assert (ports["remote_port"], ports["local_port"]) == ("12042", "13042")
    assert (ports["remote_addr"], ports["local_addr"]) == ("127.0.0.1", "127.0.0.1")


async def test_both_parties_are_announced_as_one_call_and_the_call_goes_on() -> None:
    service = Service()
    mine = ET.fromstring(
        '<extension><condition field="destination_number" expression="^1005$">'
        '<action application="bridge" data="user/1005"/></condition></extension>'
    )
    async with serving(service, token=TOKEN) as client:
        channel = Channel("1005", client)
        await channel.hunt([*dialplan(), mine])
    assert [(a.call, a.leg) for a in service.announced] == [(UUID, "caller"), (UUID, "callee")]
    assert channel.actions[-1] == ("bridge", "user/1005")
    on_answer = {k: v for k, v in channel.settings().items() if k.startswith("api_on_answer")}
    for leg, side, port in (("caller", "aleg", "12042"), ("callee", "bleg", "12044")):
        command = on_answer.pop(f"api_on_answer_callscribe_{leg}")
        assert command.startswith("bgapi originate {")
        variables, application = endpoint(command)
        assert (variables["remote_port"], application) == (port, f"&eavesdrop({UUID})")
        sides = {name for name in variables if name.startswith("eavesdrop_bridge")}
        assert sides == {f"eavesdrop_bridge_{side}"}  # with neither, or both, it hears both
    assert not on_answer


@pytest.mark.parametrize("number", ["8600", "1005"])
async def test_the_end_of_the_call_is_told(number: str) -> None:
    service = Service()
    async with serving(service, token=TOKEN) as client:
        channel = Channel(number, client)
        await channel.hunt(dialplan())
        hook = channel.settings()["api_hangup_hook"]
        assert hook.startswith("curl ")
        await channel.curl(hook.removeprefix("curl "))
    assert service.hung_up == [UUID]


@pytest.mark.parametrize("number", ["8600", "1005"])
@pytest.mark.parametrize("wrong", ["busy", "token", "ports"])
async def test_a_call_goes_on_without_the_bridge(number: str, wrong: str) -> None:
    service = Service()
    service.error = Busy() if wrong == "busy" else None
    service.next_port = 20042 if wrong == "ports" else 12042
    async with serving(service, token=TOKEN) as client:
        channel = Channel(number, client)
        await channel.hunt(dialplan("a wrong one" if wrong == "token" else TOKEN))
    assert channel.actions == []


async def test_a_callee_who_cannot_be_heard_does_not_cost_the_caller() -> None:
    class OneLeg(Service):
        def open_media(self, announcement: Announcement, request: MediaRequest) -> MediaAddress:
            if announcement.leg == "callee":
                raise Busy
            return super().open_media(announcement, request)

    async with serving(OneLeg(), token=TOKEN) as client:
        channel = Channel("1005", client)
        await channel.hunt(dialplan())
    assert [name for name in channel.settings() if "on_answer" in name] == [
        "api_on_answer_callscribe_caller"
    ]


async def test_unicast_is_announced_before_the_call_is_parked() -> None:
    async with serving(Service(), token=TOKEN) as client:
        channel = Channel("8601", client)
        await channel.hunt(dialplan())
    names = [name for name, _ in channel.actions]
    assert names[0] == "answer" and names[-1] == "park" and names.index("curl") < len(names) - 1


async def test_unicast_is_taken() -> None:
    service = Service()
    async with serving(service, token=TOKEN) as client:
        channel = Channel("8601", client)
        await channel.hunt(dialplan())
        (data,) = [data for name, data in channel.actions if name == "curl"]
        await channel.curl(data)
    assert channel.variables["curl_response_code"] == "201"
    request = MediaRequest(kind="l16", codec="l16le/8000", source=("127.0.0.1", None))
    assert service.requested == [request]


# -- the event socket -----------------------------------------------------------------------------


def parameters(path: str) -> dict[str, str]:
    root = ET.fromstring((FOLDER / path).read_text("utf-8"))
    return {param.attrib["name"]: param.attrib["value"] for param in root.iter("param")}


async def test_the_user_of_the_samples_has_all_that_the_bridge_needs() -> None:
    user = parameters("directory/callscribe.xml")
    assert user["esl-allowed-events"] == f"CUSTOM {SUBCLASS} {doctor_esl.SUBCLASS}"
    async with FakeEsl() as fake:
        allowed = set(user["esl-allowed-api"].split())
        fake.users = {"callscribe@pbx": (user["esl-password"], allowed)}
        settings = EslSettings(
            port=fake.port, username="callscribe@pbx", password=user["esl-password"]
        )
        findings = await asyncio.wait_for(doctor_esl.check(settings), 20)
    assert [finding.status for finding in findings] == ["ok"] * 3


def test_the_event_socket_is_on_loopback_where_the_bridge_looks() -> None:
    socket = parameters("autoload_configs/event_socket.conf.xml")
    assert (socket["listen-ip"], int(socket["listen-port"])) == (
        EslSettings(password="x").host,
        EslSettings(password="x").port,
    )
    assert socket["password"] != doctor_esl.WELL_KNOWN


# -- the README -----------------------------------------------------------------------------------


def test_the_settings_in_the_readme_are_settings() -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    settings = config.from_dict(tomllib.loads(toml))
    assert settings.rtp is not None and settings.rtp.ports == "12000-12999"
    assert settings.esl is not None and settings.http.token is not None


def test_the_event_in_the_readme_is_one() -> None:
    words = (Word("hello", 0.5, 0.9, 0.9), Word("there", 1.0, 1.456, 0.5))
    call = CallInfo(UUID, channel=UUID)
    event = CallEvent(call, 5, 0.0, "caller", Final(2, "hello there", words, "en"))
    lines = [f"{key}: {value}" for key, value in [("Event-Subclass", SUBCLASS), *headers(event)]]
    assert "```\n" + "\n".join(lines) + "\n```" in README
