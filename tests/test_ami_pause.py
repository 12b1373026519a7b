"""What AMI says of legs to be listened to, of calls to pause, and whose they are."""

from __future__ import annotations

import pytest

from bridge.errors import ProtocolError
from bridge.pbx.ami_pause import PauseWish, pause_wish
from bridge.pbx.ami_text import announcement
from bridge.types import Listen

UUID = "dd2cdbc7-9313-414e-8303-0975dad6d2d7"


def leg(**headers: str) -> dict[str, str]:
    return {"event": "UserEvent", "userevent": "CallscribeLeg", "id": UUID, **headers}


@pytest.mark.parametrize(
    ("headers", "listen"),
    [
        ({}, None),
        ({"listen": "", "begin": ""}, None),
        ({"listen": "15", "begin": ""}, Listen(15.0, 15.0)),
        ({"listen": " 15 ", "begin": "5.5"}, Listen(15.0, 5.5)),
        ({"listen": "15", "begin": "60"}, Listen(15.0, 15.0)),
    ],
)
def test_one_event_says_whose_audio_it_is_and_that_it_is_listened_to(
    headers: dict[str, str], listen: Listen | None
) -> None:
    found = announcement(leg(channel="PJSIP/a-1", **headers), [])
    assert found is not None
    assert (found.uuid, found.info.channel, found.listen) == (UUID, "PJSIP/a-1", listen)


@pytest.mark.parametrize("seconds", ["0", "601", "-1", "1e3", "nan", "${ARG1}", "15s", "１５"])
def test_what_are_no_seconds(seconds: str) -> None:
    for headers in ({"listen": seconds}, {"listen": "9", "begin": seconds}):
        with pytest.raises(ProtocolError, match="^an announced leg's Listen and Begin are seconds"):
            announcement(leg(**headers), [])


def test_trunk_and_tenant_are_for_limits() -> None:
    found = announcement(leg(trunk="north", tenant="gold"), [])
    assert found is not None and found.info.extra == {"trunk": "north", "tenant": "gold"}
    found = announcement(leg(), [])
    assert found is not None and found.info.extra == {}


def pause(name: str = "CallscribePause", **headers: str) -> dict[str, str]:
    return {"event": "UserEvent", "userevent": name, **headers}


@pytest.mark.parametrize(
    ("event", "wish"),
    [
        (pause(channel="PJSIP/a-1"), PauseWish(False, "", "PJSIP/a-1", None)),
        (pause("CallscribeResume", callid="c-1"), PauseWish(True, "c-1", "", None)),
        (pause(channel="x", callid="c-1", leg=" Caller "), PauseWish(False, "c-1", "x", "caller")),
        (pause("Other", callid="c-1"), None),
        ({"event": "VarSet", "userevent": "CallscribePause", "channel": "x"}, None),
        ({"event": "Hangup"}, None),
    ],
)
def test_a_pause_names_a_call_or_a_channel(event: dict[str, str], wish: PauseWish | None) -> None:
    assert pause_wish(event) == wish


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (pause(), "a pause has neither CallID nor Channel"),
        (pause(channel="x", leg="both"), "a pause's Leg is neither caller nor callee"),
    ],
)
def test_what_is_no_pause(event: dict[str, str], sentence: str) -> None:
    with pytest.raises(ProtocolError) as e:
        pause_wish(event)
    assert str(e.value) == sentence
