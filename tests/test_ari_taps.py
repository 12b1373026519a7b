"""Who is heard, under what name: taps in a small world of calls, with a clock of the test's own.

After every test all calls hang up, and nothing of ours may be left; and in none may anything have
been asked of a call's own channel but to be listened to, or to go on (`fake_ari.labs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_ari import TapsLab, World, labs

from bridge.errors import BridgeError
from bridge.pbx import ari_events
from bridge.pbx.ari_calls import FIRST, SETTLE
from bridge.pbx.ari_events import Wish
from bridge.pbx.ari_rules import Rule
from bridge.pbx.ari_taps import NoChannel

VECTORS = Path(__file__).parent / "vectors/ari"
ALL = (Rule(endpoint="*"),)

Make = Callable[..., TapsLab]


@pytest.fixture
def make() -> Iterator[Make]:
    yield from labs()


@pytest.fixture(params=["dialplan", "external_media", "rtp", "websocket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- two who talk ---------------------------------------------------------------------------------


def test_both_parties_of_a_call_are_heard_under_their_names(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    caller, callee = lab.world.talk()
    lab.wait(1)
    assert lab.one_call() == {"caller": caller, "callee": callee}
    assert lab.taps.counters == {"attempts": 2, "up": 2}
    assert lab.notices == []


def test_what_is_announced_says_who_talks(make: Make) -> None:
    lab = make(*ALL)
    a = lab.world.new("PJSIP/alice-00000001", "Ring", context="in", exten="200", number="100")
    b = lab.world.new("PJSIP/bob-00000002", "Down", number="200", context="out")
    lab.world.dial(a, b)
    lab.world.up(b)
    lab.world.up(a)
    lab.run()
    caller, callee = lab.announced.values()
    assert (caller.leg, callee.leg) == ("caller", "callee")
    assert caller.call == callee.call != caller.uuid
    assert (caller.info.channel, caller.info.uniqueid) == ("PJSIP/alice-00000001", a)
    assert (caller.info.caller, caller.info.callee) == ("100", "200")
    assert (caller.info.context, caller.info.exten) == ("in", "200")
    assert (callee.info.channel, callee.info.callee) == ("PJSIP/bob-00000002", "200")
    assert caller.info.linkedid == callee.info.linkedid == a  # the oldest, as Asterisk has it


def test_the_callers_leg_comes_first_whoever_answers_first(make: Make, kind: str) -> None:
    """Whose audio comes first opens the call, and names its channel."""
    lab = make(*ALL, kind=kind)
    a = lab.world.new("PJSIP/alice-00000001", "Ring")
    b = lab.world.new("PJSIP/bob-00000002", "Down")
    lab.world.dial(a, b)
    lab.world.up(b)
    lab.wait(FIRST / 2)
    assert lab.announced == {}
    lab.world.up(a)
    lab.run()
    assert [announced.leg for announced in lab.announced.values()] == ["caller", "callee"]
    assert list(lab.world.heard) == list(lab.announced)


def test_a_callee_waits_no_longer_than_a_moment_for_its_caller(make: Make) -> None:
    lab = make(*ALL)
    a = lab.world.new("PJSIP/alice-00000001", "Ring")
    b = lab.world.new("PJSIP/bob-00000002", "Down")
    lab.world.dial(a, b)
    lab.world.up(b)
    lab.wait(FIRST)
    assert [announced.leg for announced in lab.announced.values()] == ["callee"]


def test_a_callee_does_not_wait_for_a_caller_who_cannot_be_heard(make: Make) -> None:
    lab = make(*ALL)
    lab.world.errors = {"/snoop/": 500}
    lab.world.talk()
    lab.run()
    assert [announced.leg for announced in lab.announced.values()] == ["caller", "callee"]
    lab.wait(1)
    assert set(lab.one_call()) == {"caller", "callee"}


def test_asterisks_own_linkedid_wins(make: Make) -> None:
    lab = make(*ALL)
    lab.world.new("PJSIP/alice-00000001", linkedid="1699999999.7")
    lab.wait(1)
    assert [a.info.linkedid for a in lab.announced.values()] == ["1699999999.7"]


def test_the_form_dialplan_asks_twice_a_leg_and_the_other_five_times(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    id = lab.world.new("PJSIP/alice-00000001")
    lab.wait(1)
    (uuid,) = lab.announced
    posts = [(path, params) for method, path, params in lab.world.asked if method == "POST"]
    s, m, b = (f"callscribe-{piece}-{uuid}" for piece in "smb")
    snoop = (
        f"/channels/{id}/snoop/{s}",
        {"app": "callscribe", "spy": "in", "whisper": "none"},
    )
    if kind == "dialplan":
        place = {"context": "callscribe-snoop", "extension": uuid, "priority": "1"}
        assert posts == [snoop, (f"/channels/{s}/continue", place)]
        return
    media = {
        "app": "callscribe",
        "channelId": m,
        "external_host": "127.0.0.1:9092",
        "encapsulation": "audiosocket",
        "transport": "tcp",
        "data": uuid,
        "format": "slin",
    }
    if kind == "rtp":
        more = {"encapsulation": "rtp", "transport": "udp", "format": "slin16"}
        media = media | {"external_host": "127.0.0.1:20000"} | more
        del media["data"]
    if kind == "websocket":
        more = {"encapsulation": "none", "transport": "websocket", "format": "slin16"}
        data = {"transport_data": f"v(uuid={uuid},format=slin16)"}
        media = media | {"external_host": "callscribe"} | more | data
        del media["data"]
    assert posts == [
        snoop,
        ("/channels/externalMedia", media),
        ("/bridges", {"type": "mixing", "bridgeId": b}),
        (f"/bridges/{b}/addChannel", {"channel": f"{s},{m}"}),
    ]


def test_nobody_is_heard_before_the_answer(make: Make) -> None:
    lab = make(*ALL)
    a = lab.world.new("PJSIP/alice-00000001", "Ring", context="in", exten="200")
    phones = [lab.world.new(f"PJSIP/bob{n}-0000000{n}", "Down") for n in (2, 3, 4)]
    for phone in phones:
        lab.world.dial(a, phone)
    lab.wait(1)
    assert lab.announced == {}
    lab.world.up(phones[1])
    lab.world.up(a)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": phones[1]}


def test_a_caller_in_a_menu_is_heard_alone_and_whom_it_reaches_later_joins(make: Make) -> None:
    lab = make(*ALL)
    a = lab.world.new("PJSIP/alice-00000001", context="menu")
    lab.wait(5)
    assert lab.one_call() == {"caller": a}
    b = lab.world.new("PJSIP/bob-00000002", "Down")
    lab.world.dial(a, b)
    lab.world.up(b)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": b}


def test_of_two_that_nobody_dialled_the_older_is_the_caller(make: Make) -> None:
    """As where another ARI application has called both."""
    lab = make(Rule(endpoint="PJSIP/bob"))
    a = lab.world.new("PJSIP/alice-00000001", "Down")
    b = lab.world.new("PJSIP/bob-00000002", "Down")
    lab.world.join("theirs", b, a)
    lab.world.up(b)
    lab.world.up(a)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": b}


def test_events_in_another_order_make_the_same_call(make: Make) -> None:
    """Bob's answer is told before it is told that Alice has dialled him."""
    lab = make(*ALL)
    a = lab.world.new("PJSIP/alice-00000001", "Ring")
    b = lab.world.new("PJSIP/bob-00000002", "Down")
    lab.world.channels[b].app = "AppDial"
    lab.world.up(b)
    lab.world.up(a)
    lab.run()
    lab.wait(SETTLE / 2)
    lab.world.dial(a, b)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": b}


def test_in_a_conference_each_is_a_call_of_its_own(make: Make) -> None:
    lab = make(*ALL)
    ids = [lab.world.new(f"PJSIP/p{n}-0000000{n}") for n in range(4)]
    lab.world.join("conference", *ids)
    lab.wait(1)
    assert sorted(lab.legs().values()) == ids
    assert {leg for _, leg in lab.legs()} == {"caller"}


def test_parked_calls_do_not_talk_with_each_other(make: Make) -> None:
    lab = make(*ALL)
    ids = [lab.world.new(f"PJSIP/p{n}-0000000{n}") for n in range(2)]
    lab.world.bridges["lot"] = []
    for id in ids:
        lab.world.bridges["lot"].append(id)
        held = {"id": "lot", "bridge_type": "holding", "channels": ids}
        lab.world.say("ChannelEnteredBridge", bridge=held, channel=lab.world.channels[id].json())
    lab.wait(1)
    assert len({call for call, _ in lab.legs()}) == 2


def test_after_a_transfer_the_new_party_is_heard(make: Make) -> None:
    lab = make(Rule(endpoint="PJSIP/alice"))
    a, b = lab.world.talk()
    lab.wait(1)
    c = lab.world.new("PJSIP/carol-00000009")
    lab.world.leave(f"bridge-{a}", b)
    lab.world.join(f"bridge-{a}", c)
    lab.world.hang_up(b)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": c}


def test_who_talks_with_somebody_else_by_now_is_no_leg_of_this_call(make: Make) -> None:
    lab = make(Rule(endpoint="PJSIP/alice"))
    a, b = lab.world.talk()
    lab.wait(1)
    c, d = (lab.world.new(f"PJSIP/{name}-0000000{n}") for n, name in ((8, "carol"), (9, "dave")))
    lab.world.leave(f"bridge-{a}", b)
    lab.world.join("other", b, d)
    lab.world.join(f"bridge-{a}", c)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": c}


def test_when_the_caller_leaves_first_the_callee_is_still_heard(make: Make) -> None:
    lab = make(Rule(endpoint="PJSIP/alice"))
    a, b = lab.world.talk()
    lab.wait(1)
    lab.world.hang_up(a)
    lab.wait(1)
    assert lab.one_call() == {"callee": b}
    c = lab.world.new("PJSIP/carol-00000009")
    lab.world.join("next", b, c)
    lab.wait(1)
    assert lab.one_call() == {"callee": b, "caller": c}


# -- Local channels -------------------------------------------------------------------------------


def through_local(world: World) -> tuple[str, str]:
    """Alice dials a Local channel behind which Bob is dialled. Bob answers first."""
    a = world.new("PJSIP/alice-00000001", "Ring", context="in", exten="200")
    near = world.new("Local/200@queue-00000005;1", "Down")
    far = world.new("Local/200@queue-00000005;2", "Ring", context="queue", exten="200")
    b = world.new("PJSIP/bob-00000002", "Down")
    world.dial(a, near)
    world.dial(far, b)
    world.up(b)
    world.up(far)
    world.up(near)
    world.up(a)
    world.join("far", b, far)
    world.join("near", near, a)
    return a, b


def test_behind_a_local_channel_the_party_itself_is_heard(make: Make) -> None:
    lab = make(*ALL)
    a, b = through_local(lab.world)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": b}


def test_a_rule_for_the_dialplan_behind_a_local_channel_taps_its_two_ends(make: Make) -> None:
    lab = make(Rule(context="queue"))
    _, b = through_local(lab.world)
    lab.wait(1)
    names = {leg: lab.world.channels[id].name for leg, id in lab.one_call().items()}
    assert names["callee"] == "PJSIP/bob-00000002" == lab.world.channels[b].name
    assert names["caller"] == "Local/200@queue-00000005;2"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_an_originated_local_channel_the_half_in_the_dialplan_is_the_caller(
    make: Make, order: tuple[int, int]
) -> None:
    lab = make(*ALL)
    halves = [lab.world.new(f"Local/1@x-00000001;{n}", "Down", context="x") for n in (1, 2)]
    lab.world.channels[halves[0]].app = "AppDial2"
    for n in order:
        lab.world.up(halves[n])
    lab.wait(1)
    assert lab.one_call() == {"caller": halves[1]}


# -- rules ----------------------------------------------------------------------------------------


def test_a_rule_of_place_looks_where_a_channel_runs_the_dialplan(make: Make) -> None:
    """Bob's own context shows on his channel too, but he was dialled and never ran it."""
    lab = make(Rule(context="from-bob"))
    lab.world.talk()
    lab.wait(1)
    assert lab.legs() == {}
    c = lab.world.new("PJSIP/carol-00000009", "Ring", context="in", exten="1")
    lab.world.place(c, "from-bob", "s", "Answer")
    lab.world.place(c, "elsewhere", "s", "Wait")
    lab.world.up(c)
    lab.wait(1)
    assert lab.one_call() == {"caller": c}  # it was there once


def test_a_rule_may_want_one_leg_only(make: Make) -> None:
    lab = make(Rule(endpoint="PJSIP/alice", legs=("callee",)))
    _, b = lab.world.talk()
    lab.wait(1)
    assert lab.one_call() == {"callee": b}


def test_a_trunk_is_tapped_whichever_way_the_call_goes(make: Make) -> None:
    lab = make(Rule(endpoint="PJSIP/trunk"))
    a, b = lab.world.talk("PJSIP/alice", "PJSIP/trunk")
    c, d = lab.world.talk("PJSIP/trunk", "PJSIP/bob")
    lab.world.talk("PJSIP/alice", "PJSIP/bob")
    lab.wait(1)
    assert sorted(lab.legs().values()) == sorted([a, b, c, d])
    assert {leg for (_, leg), id in lab.legs().items() if id in (a, c)} == {"caller"}


# -- who asks for it ------------------------------------------------------------------------------


def test_without_rules_nobody_is_heard_who_was_not_asked_for(make: Make) -> None:
    lab = make()
    a, b = lab.world.talk()
    lab.wait(1)
    assert lab.announced == {}
    call = lab.taps.tap("PJSIP/alice-00000000", Wish(), lab.now)
    lab.wait(1)
    assert lab.legs() == {(call, "caller"): a, (call, "callee"): b}
    assert lab.taps.tap(b, Wish(), lab.now) == call


def test_a_call_that_rings_is_heard_from_its_answer_under_the_id_that_was_told(
    make: Make,
) -> None:
    lab = make()
    a = lab.world.new("PJSIP/alice-00000001", "Ring")
    lab.run()
    call = lab.taps.tap(a, Wish("my-call"), lab.now)
    lab.wait(5)
    assert (call, lab.legs()) == ("my-call", {})
    lab.world.up(a)
    lab.wait(1)
    assert lab.legs() == {("my-call", "caller"): a}


# -- consent to recording -------------------------------------------------------------------------

YES = {"CALLSCRIBE_CONSENT": "1"}


def test_who_consents_before_is_announced_so_and_the_other_with_him(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    a = lab.world.new("PJSIP/alice-00000001", "Ring", variables=YES)
    b = lab.world.new("PJSIP/bob-00000002", "Down")
    lab.world.dial(a, b)
    lab.world.up(b)
    lab.world.up(a)
    lab.wait(1)
    assert [told.info.recording_consent for told in lab.announced.values()] == [True, True]
    assert lab.consented == []


def test_who_consents_later_is_heard_of_once(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    a, _ = lab.world.talk()
    lab.wait(1)
    lab.world.channels[a].variables = dict(YES)
    for exten in ("1", "2"):
        lab.world.place(a, "in", exten, "Playback")
        lab.wait(1)
    assert not any(told.info.recording_consent for told in lab.announced.values())
    assert sorted(lab.consented) == ["callee", "caller"]


@pytest.mark.parametrize("said", ["", "0", "no", "true", "11"])
def test_nothing_else_is_consent(make: Make, said: str) -> None:
    lab = make(*ALL)
    lab.world.new("PJSIP/alice-00000001", variables={"CALLSCRIBE_CONSENT": said})
    lab.wait(1)
    assert [told.info.recording_consent for told in lab.announced.values()] == [False]
    assert lab.consented == []


def test_consent_can_come_with_a_wish(make: Make) -> None:
    lab = make()
    a, b = lab.world.talk()
    lab.run()
    lab.taps.tap(a, Wish(consents=True), lab.now)
    lab.wait(1)
    assert [told.info.recording_consent for told in lab.announced.values()] == [True, True]
    c, d = lab.world.talk()
    lab.run()
    lab.taps.tap(c, Wish(), lab.now)
    lab.wait(1)
    lab.taps.tap(d, Wish(consents=True), lab.now)
    lab.wait(1)
    assert sorted(lab.consented) == ["callee", "caller"] and len(lab.legs()) == 4


def test_consent_of_a_leg_that_is_over_or_cannot_be_told_harms_nothing(make: Make) -> None:
    lab = make(*ALL)
    a, _ = lab.world.talk()
    lab.wait(1)
    lab.ended.add(next(iter(lab.announced)))
    lab.world.channels[a].variables = dict(YES)
    lab.world.place(a, "in", "1", "Playback")
    lab.wait(1)
    assert lab.consented == ["callee"]
    c, _ = lab.world.talk()
    lab.wait(1)
    lab.refuse = BridgeError("draining")
    lab.world.channels[c].variables = dict(YES)
    lab.world.place(c, "in", "1", "Playback")
    lab.wait(1)
    assert lab.consented == ["callee"] and len(lab.legs()) == 4


def test_two_legs_may_be_asked_for_one_by_one(make: Make) -> None:
    lab = make()
    a = lab.world.new("PJSIP/alice-00000001")
    b = lab.world.new("PJSIP/bob-00000002")
    lab.run()
    lab.world.user_event(a, Call="c1", Leg="Callee")
    lab.world.user_event(b, call="c1", leg="caller")
    lab.wait(1)
    assert lab.legs() == {("c1", "callee"): a, ("c1", "caller"): b}


def test_a_third_leg_of_a_call_is_refused_in_a_sentence(make: Make) -> None:
    lab = make()
    ids = [lab.world.new(f"PJSIP/p{n}-0000000{n}") for n in range(2)]
    for id in ids:
        lab.world.user_event(id, Call="c1", Leg="caller")
    lab.wait(1)
    assert lab.legs() == {("c1", "caller"): ids[0]}
    assert lab.notices == ["PJSIP/p1-00000001 is not tapped: its call has a caller leg"]


def test_a_user_event_may_name_another_channel(make: Make) -> None:
    lab = make()
    a, b = (lab.world.new(f"PJSIP/{name}-00000001") for name in ("alice", "bob"))
    lab.world.user_event(a, Channel="PJSIP/bob-00000001")
    lab.world.user_event(a, Channel="PJSIP/nobody-00000001")
    lab.wait(1)
    assert lab.one_call() == {"caller": b}
    assert lab.notices == [
        "a CallscribeTap asks in vain: Asterisk has no channel 'PJSIP/nobody-00000001'"
    ]
    with pytest.raises(NoChannel, match=r"^Asterisk has no channel '1\.1'$"):
        lab.taps.tap("1.1", Wish(), lab.now)


@pytest.mark.parametrize(
    ("args", "heard"),
    [
        (("tap",), ["caller"]),
        (("tap", "leg=callee", "call=c1"), ["callee"]),
        (("sing",), []),
        (("tap", "leg=both"), []),
        (("tap", "loud=yes"), []),
        ((), []),
    ],
)
def test_who_comes_by_stasis_goes_on_at_once_whatever_he_wants(
    make: Make, args: tuple[str, ...], heard: list[str]
) -> None:
    lab = make()
    a = lab.world.new("PJSIP/alice-00000001")
    lab.world.stasis(a, *args)
    lab.wait(1)
    assert list(lab.one_call()) == heard
    assert lab.asked("POST")[0] == f"/channels/{a}/continue"
    assert len(lab.notices) == (not heard)
    assert not lab.notices or lab.notices[0].startswith("PJSIP/alice-00000001 came by Stasis: ")


# -- Asterisk as it was ---------------------------------------------------------------------------


def replay(lab: TapsLab, name: str) -> None:
    """What a real Asterisk said, line by line; its answers are all yes."""
    for line in (VECTORS / name).read_text().splitlines():
        event = ari_events.parse(line)
        if event is not None:
            lab.taps.event(event, lab.now)
        lab.taps.expire(lab.now)
        lab.taps.requests()
        lab.now += 0.05


def test_a_softphones_call_as_asterisk_told_it() -> None:
    lab = TapsLab(Rule(context="callscribe-phone", exten="talk"))
    lab.connect()
    replay(lab, "a-softphone-calls-a-local-channel.jsonl")
    caller, callee = lab.announced.values()
    assert (caller.leg, caller.info.caller) == ("caller", "alice")
    assert caller.info.channel == "PJSIP/anonymous-00000000"
    assert (callee.leg, callee.call) == ("callee", caller.call)
    assert callee.info.channel == "Local/callee@lab-00000000;1"
    assert callee.info.linkedid == caller.info.linkedid == caller.info.uniqueid
    assert lab.taps.describe() == [] and len(lab.taps.channels) == 0


def test_a_local_channel_that_is_optimised_away_as_asterisk_told_it() -> None:
    lab = TapsLab()
    lab.connect()
    name = "a-call-asks-to-be-heard-and-a-local-channel-is-optimised-away.jsonl"
    replay(lab, name)
    heard = {a.leg: a.info.channel for a in lab.announced.values()}
    assert len(lab.announced) == 2
    assert heard["caller"] == "Local/asks@ari-00000001;2"
    assert heard["callee"].startswith("Local/callee@lab-") and heard["callee"].endswith(";1")
    assert len(lab.taps.channels) == 0
