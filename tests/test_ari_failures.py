"""Taps where something goes wrong: Asterisk says no or nothing, goes and comes, or we did.

As in test_ari_taps.py, whose world this is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from fake_ari import OURS, TapsLab, World, labs
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import Busy
from bridge.pbx import ari_events
from bridge.pbx.ari_events import Wish
from bridge.pbx.ari_rules import Rule
from bridge.pbx.ari_tap import BACKOFF, GRACE, PATIENCE, Tap
from bridge.pbx.ari_taps import RETRIES
from bridge.types import LegName

ALL = (Rule(endpoint="*"),)
LISTINGS = ("channels", "bridges")

Make = Callable[..., TapsLab]


@pytest.fixture
def make() -> Iterator[Make]:
    yield from labs()


@pytest.fixture(params=["dialplan", "external_media", "rtp", "websocket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "status", "counter", "reason"),
    [
        ("/snoop/", 500, "error", "Asterisk answered 500 to the snoop: as the test wants it"),
        ("/snoop/", 403, "permission", "our ARI user may not: set read_only = no in ari.conf"),
        ("/snoop/", 404, "gone", "the channel was gone before it could be heard"),
        ("/continue", 409, "error", "Asterisk answered 409 to the join: as the test wants it"),
        ("externalMedia", 500, "error", "Asterisk answered 500 to the media: as the test wants it"),
        ("/bridges", 503, "error", "Asterisk answered 503 to the bridge: as the test wants it"),
        ("addChannel", 400, "error", "Asterisk answered 400 to the join: as the test wants it"),
    ],
)
def test_what_asterisk_refuses_is_told_and_tried_again(
    make: Make, part: str, status: int, counter: str, reason: str
) -> None:
    form = "dialplan" if part in ("/snoop/", "/continue") else "external_media"
    lab = make(*ALL, kind=form)
    lab.world.errors = {part: status}
    a = lab.world.new("PJSIP/alice-00000001")
    lab.run()
    assert lab.notices == [f"PJSIP/alice-00000001 is not tapped: {reason}; it is tried again"]
    assert lab.taps.counters[f"untapped_{counter}"] == 1
    assert lab.taps.states() == {"waiting": 1, "setup": 0, "up": 0}
    (call,) = lab.taps.describe()
    assert reason in str(call["legs"])
    assert [id for id in lab.world.channels if OURS.fullmatch(id)] == []  # nor is anything left
    lab.wait(BACKOFF[0] + 1)
    assert lab.one_call() == {"caller": a}
    assert len(lab.announced) == 2  # each attempt has a UUID of its own


@pytest.mark.parametrize("part", ["/snoop/", "/continue", "externalMedia", "addChannel"])
def test_a_silent_asterisk_costs_the_attempt(make: Make, part: str) -> None:
    form = "dialplan" if part in ("/snoop/", "/continue") else "external_media"
    lab = make(*ALL, kind=form)
    lab.silent = part
    lab.world.new("PJSIP/alice-00000001")
    lab.wait(PATIENCE + 0.1)
    assert lab.taps.counters["untapped_no_answer"] == 1
    lab.silent = ""
    lab.wait(BACKOFF[0] + 1)
    assert list(lab.one_call()) == ["caller"]


def test_a_request_that_comes_to_nothing_says_why(make: Make) -> None:
    lab = make(*ALL)
    lab.silent = "/snoop/"
    lab.world.new("PJSIP/alice-00000001")
    lab.world.events, events = [], lab.world.events
    for text in events:
        event = ari_events.parse(text)
        assert event is not None
        lab.taps.event(event, lab.now)
    (request,) = lab.taps.requests()
    lab.taps.answered(request, 0, "127.0.0.1:8088 did not answer within 5 s", lab.now)
    assert "did not answer within 5 s" in lab.notices[0]


def test_a_snoop_that_comes_too_late_is_removed(make: Make) -> None:
    """Its request was given up; Asterisk made it all the same."""
    lab = make(*ALL)
    lab.silent = "/snoop/"
    a = lab.world.new("PJSIP/alice-00000001")
    lab.wait(PATIENCE + 0.1)
    lab.silent = ""
    late = f"callscribe-s-{next(iter(lab.announced))}"
    lab.world.ask("POST", f"/channels/{a}/snoop/{late}", {})
    lab.run()
    assert late not in lab.world.channels


def test_no_audio_is_told_with_what_to_look_at(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    lab.world.deaf = True
    lab.world.new("PJSIP/alice-00000001")
    lab.wait(PATIENCE + 0.3 if kind == "rtp" else GRACE + 0.1)
    if kind == "rtp":
        assert "no audio came from Asterisk; can Asterisk reach rtp.listen" in lab.notices[0]
    elif kind == "dialplan":
        assert "no audio came from Asterisk; is [callscribe-snoop] in" in lab.notices[0]
    elif kind == "websocket":
        assert "does [callscribe] of websocket_client.conf lead to [websocket]" in lab.notices[0]
    else:
        assert "Asterisk answered 500 to the media: Allocation failed" in lab.notices[0]
    lab.world.deaf = False
    lab.wait(BACKOFF[0] + 1)
    assert list(lab.one_call()) == ["caller"]


def test_audio_that_never_comes_is_waited_for_so_long_and_no_longer(make: Make) -> None:
    lab = make(*ALL)
    lab.world._audio = lambda uuid: True  # type: ignore[method-assign]  # it stays, and is silent
    lab.world.new("PJSIP/alice-00000001")
    lab.wait(PATIENCE - 0.1)
    assert lab.taps.counters["untapped_no_audio"] == 0
    lab.wait(0.4)
    assert lab.taps.counters["untapped_no_audio"] == 1
    assert [id for id in lab.world.channels if OURS.fullmatch(id)] == []


@pytest.mark.parametrize(("ended", "counter"), [(False, "refused"), (True, "ended")])
def test_a_leg_that_was_not_taken_is_none_that_is_heard(
    make: Make, ended: bool, counter: str
) -> None:
    """Although Asterisk has not seen yet that its connection is over."""
    lab = make(*ALL)

    def audio(uuid: str) -> bool:
        lab.world.heard[uuid] = ended
        lab.ended.add(uuid)
        return True

    lab.world._audio = audio  # type: ignore[method-assign]
    lab.world.new("PJSIP/alice-00000001")
    lab.wait(PATIENCE + 0.3)
    assert lab.taps.counters[f"untapped_{counter}"] == 1
    assert lab.taps.counters["up"] == 0


def test_retries_are_ever_slower_and_go_on_while_the_channel_lives(make: Make) -> None:
    lab = make(*ALL)
    lab.world.ask = lambda *a: (500, None)  # type: ignore[method-assign, assignment]
    lab.world.new("PJSIP/alice-00000001")
    times: list[float] = []
    lab.run()
    while len(times) < 9:
        due = lab.taps.deadline()
        assert due is not None
        times.append(due - lab.now)
        lab.wait(due - lab.now)
    assert times == [0.5, 1, 2, 4, 8, 15, 15, 15, 15]  # half of the span, without jitter
    assert len(lab.notices) == 1  # once, not at every retry
    del lab.world.ask


def test_a_leg_without_room_is_tried_again_in_a_call_of_another_id(make: Make) -> None:
    """The first id has had its only event, the refusal."""
    lab = make(*ALL)
    lab.world.room = 0
    lab.world.talk()
    lab.wait(GRACE + 0.1)
    assert lab.taps.counters["untapped_refused"] == 2
    lab.world.room = 1000
    lab.wait(BACKOFF[0] + 1)
    assert set(lab.one_call()) == {"caller", "callee"}
    one, two, three, four = lab.announced.values()
    assert one.call == two.call != three.call == four.call
    assert (two.info.extra, three.info.extra) == ({}, {"call": one.call})


def test_while_we_drain_nobody_is_tapped(make: Make) -> None:
    lab = make(*ALL)
    lab.refuse = Busy("draining", "the bridge is shutting down")
    lab.world.new("PJSIP/alice-00000001")
    lab.wait(1)
    assert lab.taps.counters["untapped_announce"] >= 1
    assert lab.asked("snoop") == []
    assert lab.notices[0].endswith(" the bridge is shutting down; it is tried again")


def test_what_we_have_ended_stays_so_until_somebody_asks(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    a = lab.world.new("PJSIP/alice-00000001")
    lab.wait(1)
    (uuid,) = lab.announced
    lab.ended.add(uuid)
    lab.world.hang_up(f"callscribe-{'s' if kind == 'dialplan' else 'm'}-{uuid}")
    lab.wait(120)
    assert (lab.legs(), len(lab.announced)) == ({}, 1)
    assert lab.notices == ["PJSIP/alice-00000001 is not tapped: callscribe has ended this leg"]
    lab.taps.tap(a, Wish(), lab.now)
    lab.wait(1)
    assert list(lab.one_call()) == ["caller"]


def test_what_others_have_ended_is_made_again(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    lab.world.talk()
    lab.wait(40)
    lab.world.hang_up(next(id for id in lab.world.channels if OURS.fullmatch(id)))
    lab.wait(GRACE + BACKOFF[0] + 1)
    assert set(lab.one_call()) == {"caller", "callee"}
    assert lab.taps.counters["untapped_lost"] == 1


def test_a_call_that_ends_is_no_failure(make: Make, kind: str) -> None:
    """Although the snoop ends before its channel does."""
    lab = make(*ALL, kind=kind)
    a, _ = lab.world.talk()
    lab.wait(1)
    for id in [id for id in lab.world.channels if id.startswith("callscribe-s-")]:
        lab.world.hang_up(id)
    lab.wait(GRACE / 2)
    lab.world.hang_up(a)
    lab.wait(GRACE / 4)
    lab.end()
    assert lab.notices == []
    assert [key for key in lab.taps.counters if key.startswith("untapped")] == []


def test_a_deletion_that_fails_is_tried_a_few_times(make: Make) -> None:
    lab = make(*ALL)
    a = lab.world.new("PJSIP/alice-00000001")
    lab.wait(1)
    real, tries = lab.world.ask, []

    def ask(method: str, path: str, params: Any) -> Any:
        if method == "DELETE":
            tries.append(path)
            return 500, None
        return real(method, path, params)

    lab.world.ask = ask  # type: ignore[method-assign]
    lab.world.hang_up(a)
    lab.run()
    assert len(tries) == 0  # the snoop had gone with its channel
    b = lab.world.new("PJSIP/bob-00000002")
    lab.wait(1)
    lab.taps.stop()
    lab.run()
    assert len(tries) == 1  # and after a stop nothing is tried again
    lab.connect()
    assert len(tries) == 1
    assert lab.legs() and b in lab.legs().values()
    lab.world.ask = real  # type: ignore[method-assign]


def test_deletions_end(make: Make) -> None:
    lab = make(*ALL, kind="external_media")
    a = lab.world.new("PJSIP/alice-00000001")
    lab.wait(1)
    tries = 0
    real = lab.world.ask

    def ask(method: str, path: str, params: Any) -> Any:
        nonlocal tries
        tries += method == "DELETE" and "-b-" in path
        return (500, None) if method == "DELETE" else real(method, path, params)

    lab.world.ask = ask  # type: ignore[method-assign]
    lab.world.hang_up(a)
    lab.run()
    assert tries == RETRIES
    lab.world.ask = real  # type: ignore[method-assign]
    lab.connect()  # what is left goes with the next listing


# -- ARI comes and goes ---------------------------------------------------------------------------


def test_calls_that_are_up_already_are_tapped(make: Make) -> None:
    world = World()
    a, b = world.talk()
    lab = make(*ALL, world=world)
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": b}


def test_a_loss_of_ari_ends_no_tap(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    lab.world.talk()
    lab.wait(1)
    heard = lab.legs()
    lab.taps.lost("Asterisk closed the connection", lab.now)
    lab.wait(60)
    assert lab.legs() == heard
    lab.connect()
    lab.wait(1)
    assert (lab.legs(), len(lab.announced)) == (heard, 2)


def test_what_was_under_way_when_ari_went_is_begun_anew_when_it_comes(
    make: Make, kind: str
) -> None:
    lab = make(*ALL, kind=kind)
    lab.silent = "/continue" if kind == "dialplan" else "addChannel"
    a = lab.world.new("PJSIP/alice-00000001")
    lab.run()
    lab.taps.lost("it was stopped", lab.now)
    assert lab.notices == [
        "PJSIP/alice-00000001 is not tapped: ARI is down: it was stopped; it is tried again"
    ]
    lab.wait(60)
    assert lab.taps.counters["attempts"] == 1
    lab.silent = ""
    lab.connect()
    lab.wait(1)
    assert lab.one_call() == {"caller": a}
    ours = [id for id in lab.world.channels if OURS.fullmatch(id)]
    assert len(ours) == (1 if kind == "dialplan" else 2)  # of the first attempt nothing is left


def test_what_ended_unseen_is_found_out(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    a, b = lab.world.talk()
    lab.wait(1)
    lab.taps.lost("it was stopped", lab.now)
    lab.world.hang_up(a)
    lab.world.hang_up(next(id for id in lab.world.channels if OURS.fullmatch(id)))
    c, d = lab.world.talk("PJSIP/carol", "PJSIP/dave")
    lab.connect()
    lab.wait(GRACE + BACKOFF[0] + 1)
    assert sorted(lab.legs().values()) == sorted([b, c, d])


def test_after_a_restart_of_asterisk_nothing_is_remembered(make: Make) -> None:
    lab = make(*ALL)
    lab.world.talk()
    lab.wait(1)
    lab.taps.lost("it was stopped", lab.now)
    lab.world.channels.clear()
    lab.world.bridges.clear()
    lab.connect()
    assert lab.taps.describe() == [] and len(lab.taps.channels) == 0
    lab.world._count = 100
    a, b = lab.world.talk()
    lab.wait(1)
    assert lab.one_call() == {"caller": a, "callee": b}


def test_events_that_come_before_the_listing_count(make: Make) -> None:
    """The listing is older than what was told since it was asked for."""
    lab = make(*ALL)
    a = lab.world.new("PJSIP/alice-00000001", "Ring")
    lab.run()
    lab.taps.lost("for a moment", lab.now)
    lab.taps.connected()
    listing = json.dumps(lab.world.ask("GET", "/channels", {})[1])
    b = lab.world.new("PJSIP/bob-00000002")
    lab.world.hang_up(a)
    lab.run()
    assert lab.announced == {}  # nothing is begun before it is known what there is
    lab.taps.listed(ari_events.channels(listing), [], lab.now)
    lab.wait(1)
    assert lab.one_call() == {"caller": b}
    assert lab.taps.channels.get(a) is None


def test_who_left_a_bridge_before_the_listing_came_is_not_in_it(make: Make) -> None:
    lab = make(Rule(endpoint="PJSIP/alice"))
    a, b = lab.world.talk()
    lab.run()
    lab.taps.stop()
    lab.run()
    lab.taps.connected()
    channels, bridges = (json.dumps(lab.world.ask("GET", f"/{w}", {})[1]) for w in LISTINGS)
    lab.world.leave(f"bridge-{a}", b)
    lab.run()
    lab.taps.listed(ari_events.channels(channels), ari_events.bridges(bridges), lab.now)
    assert lab.taps.channels.partner(a) is None


def test_a_step_that_was_done_but_not_confirmed_when_ari_went_is_done_anew(make: Make) -> None:
    lab = make(*ALL)
    lab.mute = "/continue"
    a = lab.world.new("PJSIP/alice-00000001")
    lab.run()
    lab.taps.lost("it was stopped", lab.now)
    lab.mute = ""
    lab.connect()
    lab.wait(1)
    assert lab.one_call() == {"caller": a}
    assert len([id for id in lab.world.channels if OURS.fullmatch(id)]) == 1


def test_a_tap_of_the_bridge_before_is_adopted_and_not_made_twice(make: Make, kind: str) -> None:
    world = World()
    first = TapsLab(*ALL, kind=kind, world=world)
    first.connect()
    a, b = world.talk()
    first.wait(1)
    second = make(*ALL, kind=kind, world=world, first=1000)
    second.wait(60)
    if kind == "rtp":
        return check_begun_anew(second, a, b)
    assert second.announced == {}
    assert second.one_call() == {"caller": a, "callee": b}
    for id in [id for id in world.channels if id.startswith("callscribe-s-")]:
        world.hang_up(id)  # the first one drains: it ends its legs
    second.wait(GRACE + BACKOFF[0] + 1)
    assert len(second.announced) == 2
    assert second.one_call() == {"caller": a, "callee": b}


def check_begun_anew(second: TapsLab, a: str, b: str) -> None:
    """RTP would go on to a port that nobody has any more, and nobody would notice."""
    assert second.one_call() == {"caller": a, "callee": b}
    assert len(second.announced) == 2
    assert second.taps.counters["begun_anew"] == second.taps.counters["up"] == 2
    ours = {id for id in second.world.channels if OURS.fullmatch(id)}
    assert ours == {f"callscribe-{piece}-{uuid}" for piece in "sm" for uuid in second.announced}
    assert second.notices == []


@pytest.mark.parametrize("missing", ["m", "b", "join"])
def test_half_a_tap_of_the_bridge_before_is_removed(make: Make, missing: str) -> None:
    world = World()
    a = world.new("PJSIP/alice-00000001")
    names = {piece: f"callscribe-{piece}-{UUID(int=7)}" for piece in "smb"}
    world.ask("POST", f"/channels/{a}/snoop/{names['s']}", {})
    if missing != "m":
        world.ask("POST", "/channels/externalMedia",
                  {"external_host": "x", "data": "y", "channelId": names["m"]})  # fmt: skip
    if missing != "b":
        world.ask("POST", "/bridges", {"bridgeId": names["b"]})
    lab = make(kind="external_media", world=world)
    assert not set(names.values()) & {*world.channels, *world.bridges}
    assert a in world.channels
    assert lab.legs() == {}


def test_a_call_that_waits_in_our_application_is_sent_on(make: Make) -> None:
    """Its Stasis() was answered by nobody, because we were not there."""
    world = World()
    a, b = world.talk()
    world.stasis(a, "tap", "call=c1")
    world.channels[b].app, world.channels[b].data = "Stasis", "callscribe2,tap"
    lab = make(world=world)
    gone_on = [path for path in lab.asked("/continue") if "callscribe-s-" not in path]
    assert gone_on == [f"/channels/{a}/continue"]
    lab.wait(1)
    assert lab.legs() == {("c1", "caller"): a, ("c1", "callee"): b}


def test_stop_removes_everything_of_ours(make: Make, kind: str) -> None:
    lab = make(*ALL, kind=kind)
    a, b = lab.world.talk()
    lab.wait(1)
    lab.taps.stop()
    lab.run()
    assert set(lab.world.channels) == {a, b}
    assert [id for id in lab.world.bridges if OURS.fullmatch(id)] == []


# -- anything may happen --------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(
        st.sampled_from(
            "new up dial talk join leave hang_up hang_ours tap stasis event wait fail deaf "
            "lose connect end room".split()
        ),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=40,
)


def act(lab: TapsLab, what: str, m: int, n: int) -> None:
    """Something that may happen, to those of the channels that the numbers pick."""
    world = lab.world
    calls = [id for id in world.channels if not OURS.fullmatch(id)]
    ours = [id for id in world.channels if OURS.fullmatch(id)]
    a, b = (calls[k % len(calls)] if calls else "" for k in (m, n))
    free = [id for id in (a, b) if id and not any(id in in_ for in_ in world.bridges.values())]
    match what:
        case "new":
            local = f"Local/1@x-{m // 2:08x};{1 + n % 2}"
            state = ("Down", "Ring", "Up")[n % 3]
            names = {call.name for call in world.channels.values()}
            world.new(local if m < 3 and local not in names else f"PJSIP/p-{m}{n:07x}", state)
        case "up" if a:
            world.up(a)
        case "dial" if a != b:
            world.dial(a, b)
        case "talk":
            world.talk()
        case "join" if free:
            world.join(f"room-{n % 2}", *dict.fromkeys(free))
        case "leave":
            for room, members in list(world.bridges.items()):
                if a in members:
                    world.leave(room, a)
        case "hang_up" if a:
            world.hang_up(a)
        case "hang_ours" if ours:
            world.hang_up(ours[m % len(ours)])
        case "end" if lab.announced:
            lab.ended.add(list(lab.announced)[m % len(lab.announced)])
        # While ARI is lost AriLink.tap refuses, and does not get here.
        case "tap" if a and lab.taps.channels.find(a) and lab.taps._calls.synced:
            leg: LegName | None = (None, "caller", "callee")[n % 3]  # type: ignore[assignment]
            lab.taps.tap(a, Wish("" if n < 4 else f"c{m}", leg), lab.now)
        case "stasis" if a:
            world.stasis(a, "tap")
        case "event" if a:
            world.user_event(a, Leg=("", "caller", "nobody")[n % 3])
        case "wait":
            lab.wait(m * n / 4)
        case "fail":
            part = ("snoop", "continue", "externalMedia", "addChannel", "DELETE")[m % 5]
            world.errors[part] = (404, 500, 403)[n % 3]
        case "deaf":
            world.deaf = bool(m % 2)
        case "room":
            world.room = m
        case "lose":
            lab.taps.lost("the test's wish", lab.now)
        case "connect":
            lab.connect()


@settings(max_examples=300, deadline=None)
@given(ACTS, st.sampled_from(["dialplan", "external_media"]))
def test_whatever_happens_no_call_is_harmed_and_nothing_is_left(
    acts: list[tuple[str, int, int]], kind: str
) -> None:
    lab = TapsLab(*ALL, kind=kind)
    lab.connect()
    for n, (what, *numbers) in enumerate(acts):
        act(lab, what, *numbers)
        if n % 3:
            lab.run()
        live = [tap.channel for tap in all_taps(lab) if tap.live]
        assert len(live) == len(set(live))  # nobody is heard twice
    lab.world.errors.clear()
    lab.world.deaf, lab.world.room = False, 1000
    lab.connect()
    lab.end()
    lab.check()


def all_taps(lab: TapsLab) -> list[Tap]:
    return [tap for call in lab.taps._calls.by_first.values() for tap in call.taps.values()]
