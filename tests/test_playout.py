"""Payloads, holes and pauses become frames, in order and decoded together."""

from __future__ import annotations

import numpy as np

from bridge.audio.codecs import codec
from bridge.audio.conceal import conceal
from bridge.audio.playout import MAX_READY, Playout
from bridge.types import Frame, Samples


class Counting:
    """mu-law that remembers what it was asked to decode."""

    name, rate, clock, width = "pcmu", 8000, 8000, 1

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.resets = 0
        self._codec = codec("pcmu", 8000)

    def samples(self, payload_bytes: int) -> int:
        return payload_bytes

    def decode(self, payload: bytes) -> Samples:
        self.calls.append(len(payload))
        return self._codec.decode(payload)

    def reset(self) -> None:
        self.resets += 1


def told(frames: list[Frame]) -> list[tuple[int, int, bool, int]]:
    return [(f.start, len(f.samples), f.concealed, f.packets) for f in frames]


def test_a_run_is_decoded_in_one_call_and_not_before_it_is_wanted() -> None:
    counting = Counting()
    playout = Playout(counting)
    playout.run.extend([bytes(160), bytes(80), bytes(160)])
    assert counting.calls == []
    assert told(playout.frames()) == [(0, 400, False, 3)]
    assert counting.calls == [400]
    assert playout.frames() == []
    playout.run.append(bytes(160))
    assert told(playout.frames()) == [(400, 160, False, 1)]


def test_holes_and_pauses_keep_their_place() -> None:
    playout = Playout(Counting())
    run = playout.run
    run.append(bytes(160))
    playout.lose(320)
    run.append(bytes(160))
    playout.pause(1000)
    run.append(bytes(160))
    playout.lose(160)
    playout.pause(840, told=True)
    assert told(playout.frames()) == [
        (0, 160, False, 1),
        (160, 320, True, 0),
        (480, 160, False, 1),
        (1640, 160, False, 1),
        (1800, 160, True, 0),
        (2800, 0, False, 1),
    ]
    run.append(bytes(160))
    assert told(playout.frames()) == [(2800, 160, False, 1)]


def test_a_hole_is_filled_when_what_follows_is_there() -> None:
    """Nothing is made up before: it may take another pull."""
    playout = Playout(Counting())
    playout.run.append(bytes(160))
    assert len(playout.frames()) == 1
    playout.lose(160)
    playout.run.append(bytes([0x80]) * 160)
    hole, _ = playout.frames()
    assert hole.concealed and hole.samples[:80].any() and hole.samples[80:].any()


def test_what_was_concealed_is_the_past_of_the_next_hole() -> None:
    """Between two holes lies one packet of 10 ms, which is too little to go on from."""
    wave = (8000 * np.sin(np.arange(1440) * 2 * np.pi * 100 / 8000)).astype("<i2")
    playout = Playout(codec("l16le", 8000))
    playout.run.append(wave[:800].tobytes())
    playout.lose(120)
    playout.run.append(wave[920:1000].tobytes())
    playout.lose(80)
    playout.run.append(wave[1080:1440].tobytes())
    before, first, packet, second, after = (frame.samples for frame in playout.frames())
    assert np.array_equal(first, conceal(before, 120, 8000, packet))
    assert np.array_equal(second, conceal(np.concatenate([before, first, packet]), 80, 8000, after))
    made = np.concatenate([before, first, packet, second, after])
    assert np.abs(made - wave.astype(int)).max() < 2000


def test_after_a_pause_the_past_is_silent() -> None:
    playout = Playout(Counting())
    playout.run.append(bytes(160))
    playout.pause(8000)
    playout.lose(160)
    playout.pause(0)
    _, hole = playout.frames()
    assert told([hole]) == [(8160, 160, True, 0)] and not hole.samples.any()


def test_a_change_decodes_what_is_ready_with_the_old_decoder() -> None:
    old, new = Counting(), codec("l16", 16000)
    playout = Playout(old)
    playout.run.append(bytes(160))
    playout.change(None)
    assert (old.calls, old.resets) == ([160], 1)
    playout.run.append(bytes(160))
    playout.change(new)
    playout.run.append(bytes(640))
    frames = playout.frames()
    assert told(frames) == [(0, 160, False, 1), (160, 160, False, 1), (640, 320, False, 1)]
    assert [frame.rate for frame in frames] == [8000, 8000, 16000]


def test_there_is_a_bound_and_the_clock_runs_on() -> None:
    playout = Playout(Counting())
    playout.run.extend([bytes(160)] * (MAX_READY - 3))
    playout.lose(160)
    playout.run.append(bytes(160))
    assert playout.bound() == 0
    playout.run.append(bytes(160))
    assert playout.bound() == MAX_READY - 1
    playout.run.append(bytes(160))
    assert playout.bound() == 0
    assert told(playout.frames()) == [(MAX_READY * 160, 160, False, 1)]
    for _ in range(MAX_READY):  # pauses are bounded too
        assert playout.bound() == 0
        playout.pause(1, told=True)
    assert playout.bound() == 0
    assert told(playout.frames()) == []
