"""BYE: an SSRC has left (RFC 3550 §6.6), and whether the call is over shows in what follows."""

from __future__ import annotations

import pytest

from bridge.ingress.rtp import Rtp, RtpRules
from bridge.ingress.rtp_bye import STRAY
from bridge.types import Audio, Closed, IngressEvent
from tests.test_rtp import (
    OTHER,
    SSRC,
    audio,
    datagram,
    feed,
    frames,
    goodbye,
    running,
    sender_report,
    sent,
)

WAIT = RtpRules().bye_wait


def let(ingress: Rtp, now: float) -> list[IngressEvent]:
    """Time passes until then, and the ingress is asked whenever it wants to be."""
    events: list[IngressEvent] = []
    while (due := ingress.deadline()) is not None and due <= now:
        events += ingress.expire(due)
    return events


def test_silence_after_it_is_the_end() -> None:
    ingress = running()
    assert ingress.receive(goodbye(), 0.06) == []
    assert let(ingress, 0.06 + WAIT - 0.01) == []
    assert let(ingress, 0.06 + WAIT) == [Closed("hangup")]
    assert ingress.receive(datagram(3), 3.0) == ()


def test_another_ssrc_goes_on_with_the_leg() -> None:
    """As after a re-INVITE, for which a phone has made its media anew."""
    ingress = running()
    ingress.receive(goodbye(), 0.06)
    news = [datagram(n, ssrc=OTHER) for n in range(500, 600)]
    events = feed(ingress, news, 1.0)
    events += let(ingress, 3.0)
    assert frames(events) and not [e for e in events if isinstance(e, Closed)]
    assert audio(events)[-1600:].tolist() == sent(range(590, 600)).tolist()
    assert let(ingress, 30.0) == []  # nor later on
    assert let(ingress, 60.0) == [Closed("timeout")]
    assert ingress.counts().restarts == 1


def test_a_sender_that_does_not_mean_it_goes_on() -> None:
    ingress = running()
    ingress.receive(goodbye(), 0.06)
    assert audio(feed(ingress, map(datagram, range(3, 200)), 0.06)).tolist()
    assert let(ingress, 5.0) == []
    assert ingress.receive(goodbye(), 5.0) == []  # and when it does
    assert let(ingress, 5.0 + WAIT) == [Closed("hangup")]


def test_packets_that_it_overtook_are_heard_and_take_nothing_back() -> None:
    ingress = running()
    ingress.receive(goodbye(), 0.06)
    late = feed(ingress, map(datagram, range(3, 8)), 0.06 + STRAY - 0.1)
    assert [type(event) for event in late] == [Audio] * 5
    assert let(ingress, 0.06 + WAIT) == [Closed("hangup")]


def test_it_is_not_said_anew_by_repeating_it() -> None:
    ingress = running()
    for n in range(10):
        ingress.receive(goodbye(), 0.06 + n / 10)
    assert let(ingress, 0.06 + WAIT) == [Closed("hangup")]


def test_of_others_it_says_nothing() -> None:
    ingress = running()
    ingress.receive(goodbye(OTHER), 0.06)
    assert let(ingress, 20.0) == []


@pytest.mark.parametrize(("wait", "end"), [(0.0, 0.06), (10.0, 10.06)])
def test_how_long_it_is_waited_for_is_a_setting(wait: float, end: float) -> None:
    ingress = running(RtpRules(bye_wait=wait))
    events = [*ingress.receive(goodbye(SSRC), 0.06), *let(ingress, end)]
    assert events == [Closed("hangup")]
    assert (ingress.deadline(), let(ingress, 99.0)) == (None, [])


def test_reports_alone_do_not_keep_a_leg() -> None:
    """A phone that holds may go on reporting."""
    ingress = running()
    ingress.receive(goodbye(), 0.06)
    ingress.receive(sender_report(), 1.0)
    assert let(ingress, 0.06 + WAIT) == [Closed("hangup")]
