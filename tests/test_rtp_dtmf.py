"""telephone-event (RFC 4733): one digit for each event, whatever is lost, late or doubled."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.ingress.rtp_dtmf import CLOSE_AFTER, EVENTS, Digits

Sent = tuple[int, bytes]  # timestamp and payload


def event(code: int, duration: int, *, end: bool = False) -> bytes:
    return bytes([code, 0x80 | 10 if end else 10]) + duration.to_bytes(2, "big")


def press(key: str, timestamp: int, *, packets: int = 4, ends: int = 3) -> list[Sent]:
    """What a sender makes of a key held for `packets` packets of 20 ms."""
    code = EVENTS.index(key)
    held = [(timestamp, event(code, 160 * (i + 1))) for i in range(packets)]
    return held + [(timestamp, event(code, 160 * (packets + 1), end=True))] * ends


def heard(digits: Digits, sent: list[Sent], now: float = 0.0, every: float = 0.02) -> str:
    return "".join(
        digits.hear(payload, timestamp, now + i * every)
        for i, (timestamp, payload) in enumerate(sent)
    )


@pytest.mark.parametrize("key", EVENTS)
def test_every_key_is_told_once_at_its_first_end_packet(key: str) -> None:
    digits = Digits()
    sent = press(key, 8000)
    assert [digits.hear(payload, ts, i * 0.02) for i, (ts, payload) in enumerate(sent)] == [
        "", "", "", "", key, "", "",
    ]  # fmt: skip
    assert digits.deadline == float("inf")
    assert digits.close() == ""


def test_the_same_key_twice_is_two_digits() -> None:
    assert heard(Digits(), press("7", 8000) + press("7", 9600)) == "77"


@pytest.mark.parametrize("lost", [(4,), (4, 5), (0, 1, 2, 3), (0, 4, 5), (0, 1, 2, 3, 4, 5)])
def test_any_packet_of_it_is_enough(lost: tuple[int, ...]) -> None:
    digits = Digits()
    assert heard(digits, [s for i, s in enumerate(press("#", 8000)) if i not in lost]) == "#"
    assert heard(digits, press("1", 16000), 1.0) == "1"


def test_without_an_end_time_closes_it_once() -> None:
    digits = Digits()
    assert heard(digits, press("5", 8000, ends=0)) == ""
    assert digits.deadline == pytest.approx(0.06 + CLOSE_AFTER)
    assert digits.expire(0.06 + CLOSE_AFTER - 0.001) == ""
    assert digits.expire(0.06 + CLOSE_AFTER) == "5"
    assert digits.expire(1.0) == ""
    assert heard(digits, press("5", 8000)[4:], 0.3) == ""  # the end, very late


def test_time_closes_it_also_when_packets_come_before_anybody_looked() -> None:
    digits = Digits()
    assert heard(digits, press("5", 8000, ends=0)) == ""
    assert digits.hear(event(5, 800), 8000, 2.0) == "5"  # held up somewhere for 2 s
    assert digits.hear(event(5, 960, end=True), 8000, 2.0) == ""


def test_without_an_end_the_next_event_closes_it() -> None:
    digits = Digits()
    sent = press("1", 8000, ends=0) + press("2", 9600, ends=0) + press("3", 11200)
    assert heard(digits, sent) == "123"


def test_late_packets_of_a_told_event_say_nothing() -> None:
    digits = Digits()
    first, second = press("1", 8000), press("2", 9600)
    assert heard(digits, first[:5] + second[:2] + first[2:] + second[2:]) == "12"


def test_an_event_that_was_overtaken_as_a_whole_is_told_all_the_same() -> None:
    digits = Digits()
    assert heard(digits, press("2", 9600)[:2] + press("1", 8000) + press("2", 9600)[2:]) == "12"


def test_a_key_held_beyond_16_bits_of_duration_is_one_digit() -> None:
    """RFC 4733 §2.5.1.3: another segment, whose timestamp is further on by 0xFFFF."""
    long = [
        (8000 + 0xFFFF * segment, event(9, 0xFFFF * i // 20))
        for segment in range(3)
        for i in range(1, 21)
    ]
    end = (8000 + 0xFFFF * 2, event(9, 0xFFFF, end=True))
    assert heard(Digits(), long + [end] * 3) == "9"


def test_a_key_held_with_its_duration_at_the_stop_is_one_digit() -> None:
    sent = [(8000, event(4, min(0xFFFF, 160 * i))) for i in range(1, 1000)]
    assert heard(Digits(), [*sent, (8000, event(4, 0xFFFF, end=True))]) == "4"


@pytest.mark.parametrize("code", [16, 17, 32, 255])
def test_a_flash_and_modems_are_no_digits(code: int) -> None:
    digits = Digits()
    sent = [(8000, event(code, 160)), (8000, event(code, 320, end=True))]
    assert heard(digits, sent) == ""
    assert heard(digits, [(9600, event(code, 160))]) == ""
    assert digits.expire(1.0) == ""


def test_short_payloads_are_nothing_and_long_ones_are_their_first_event() -> None:
    digits = Digits()
    whole = event(3, 160, end=True)
    assert [digits.hear(whole[:n], 8000, 0.0) for n in range(4)] == [""] * 4
    assert digits.hear(whole + b"\x00" * 40, 8000, 0.0) == "3"


def test_an_event_that_is_open_at_the_end_is_a_digit() -> None:
    digits = Digits()
    heard(digits, press("8", 8000, ends=0))
    assert digits.close() == "8"
    assert digits.close() == ""


@given(
    st.text(st.sampled_from(EVENTS), max_size=6), st.integers(0, 2**32), st.floats(0, 0.4)
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_dialled_number_survives_loss_doubling_and_neighbours_that_swap(
    number: str, seed: int, loss: float
) -> None:
    """As long as one packet of each event comes, before the next key is pressed."""
    rng = random.Random(seed)
    digits = Digits()
    told = ""
    for i, key in enumerate(number):
        sent = press(key, 8000 + 4000 * i)
        left = [s for s in sent if rng.random() >= loss] or [rng.choice(sent)]
        left += [s for s in left if rng.random() < 0.2]
        rng.shuffle(left)
        told += heard(digits, left, now=i * 0.5)
    assert told + digits.close() == number


@given(st.lists(st.tuples(st.binary(max_size=6), st.integers(0, 20), st.floats(0, 1)), max_size=50))
@settings(max_examples=500, deadline=None)
def test_anything_is_digits_and_not_more_than_packets(
    sent: list[tuple[bytes, int, float]],
) -> None:
    digits = Digits()
    now, told = 0.0, ""
    for payload, timestamp, wait in sent:
        now += wait
        told += digits.hear(payload, timestamp, now)
    told += digits.close()
    assert set(told) <= set(EVENTS)
    assert len(told) <= len(sent)
