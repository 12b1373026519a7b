"""Recordings: sample-exact, only with consent, whatever the call's name and the state of disks."""

from __future__ import annotations

import json
import os
import resource
import stat
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.call import Call
from bridge.config import RecordingSettings
from bridge.errors import ConfigError
from bridge.leg import Leg
from bridge.pausing import GUARD
from bridge.recorder import files
from bridge.recorder.recorder import DAY, SWEEP_EVERY, Recorder
from bridge.recorder.tape import MAX_CONCEALED, Piece, Tape
from bridge.recorder.writer import Writer
from bridge.recording import read_recording
from bridge.turns import TurnRules
from bridge.types import CallEvent, CallInfo, Final, Frame, Samples, Word
from tests.fakes import FakeRecogniser

WAIT = 30.0  # s; nothing here takes them


def noise(n: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).integers(-32768, 32767, n).astype(np.int16)


class Up:
    """A recorder, and calls whose legs it is told of."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.directory = directory
        self.settings = RecordingSettings(enabled=True, directory=str(directory), **changes)
        self.now = 1e9
        self.recorder = Recorder(self.settings, lambda: self.now)
        self.engine = FakeRecogniser(100)

    def call(self, name: str = "c-1", consent: bool = True) -> Call:
        info = CallInfo(name, recording_consent=consent)
        return Call(
            info, publish=self.recorder.put, over=lambda call: None, wall=lambda: 7.0, now=0.0
        )

    def leg(self, call: Call, name: str = "caller", now: float = 0.0) -> Leg:
        leg = call.add_leg(name, self.engine, TurnRules(), now=now)  # type: ignore[arg-type]
        self.recorder.leg(call, leg)
        return leg

    def settle(self) -> None:
        """Until what was asked of the writer is done."""
        self.recorder.find("nobody", "caller").result(WAIT)

    def read(self, call: str = "c-1", leg: str = "caller") -> tuple[Samples, int]:
        path = self.recorder.find(call, leg).result(WAIT)
        assert path is not None
        [(samples, rate)] = read_recording(path)
        return samples, rate

    def about(self, call: str = "c-1") -> dict:
        return json.loads((self.directory / call / "call.json").read_text())


@pytest.fixture
def start(tmp_path):
    started: list[Up] = []

    def make(**changes: object) -> Up:
        started.append(Up(tmp_path / "recordings", **changes))
        return started[-1]

    yield make
    for up in started:
        assert up.recorder.close(WAIT)


def frames(samples: Samples, rate: int = 8000, size: int = 160, start: int = 0) -> list[Frame]:
    return [Frame(samples[i : i + size], rate, start + i) for i in range(0, len(samples), size)]


# -- what is in the file -------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_leg_is_recorded_to_the_sample(start, rate):
    up = start()
    call = up.call()
    leg = up.leg(call)
    audio = noise(3 * rate + 17)
    for frame in frames(audio, rate):
        leg.on_frame(frame)
    call.end()
    samples, got = up.read()
    assert got == rate
    assert np.array_equal(samples, audio)
    assert up.recorder.counters == {"calls": 1, "finished": 1}


def test_both_legs_are_there_and_what_is_said_of_them(start):
    up = start()
    call = up.call()
    caller, callee = up.leg(call), up.leg(call, "callee", now=2.5)
    caller.on_frame(Frame(noise(800), 8000, 0))
    callee.on_frame(Frame(noise(1600, 1), 16000, 0))
    callee.on_frame(Frame(noise(1600, 2), 16000, 1600, concealed=True))
    callee.on_frame(Frame(noise(1600, 3), 16000, 3200, concealed=True))
    call.end()
    assert len(up.read(leg="caller")[0]) == 800
    assert len(up.read(leg="callee")[0]) == 4800
    assert up.about() == {
        "call_id": "c-1", "started": 7.0, "seconds": 2.8, "consent": True,
        "legs": {
            "caller": {"start": 0.0, "concealed": [], "samples": 800, "cut": False},
            "callee": {"start": 2.5, "concealed": [[0.1, 0.3]], "samples": 4800, "cut": False},
        },
    }  # fmt: skip


def test_what_is_missing_is_silence_so_that_times_stay(start):
    up = start()
    call = up.call()
    leg = up.leg(call)
    audio = noise(480)
    leg.on_frame(Frame(audio[:160], 8000, 800))  # a gap before it,
    leg.on_frame(Frame(audio[160:320], 8000, 8000))  # one in between,
    leg.on_frame(Frame(audio[320:], 8000, 100))  # and one that says it is early: heard at once
    call.end()
    samples, _ = up.read()
    wanted = np.zeros(8320, np.int16)
    wanted[800:960], wanted[8000:8160], wanted[8160:8320] = np.split(audio, 3)
    assert np.array_equal(samples, wanted)
    assert leg.counts().seconds * 8000 == len(samples)


def test_finals_are_beside_it_if_wanted(start):
    up = start(transcript=True)
    call = up.call()
    leg = up.leg(call)
    leg.on_frame(Frame(noise(160), 8000, 0))
    final = Final(0, "hello", (Word("hello", 0.25, 0.75, 1.0),))
    up.recorder.put(CallEvent(call.info, 1, 0.0, "caller", final))
    call.end()
    up.settle()
    assert up.about()["finals"] == [
        {"leg": "caller", "turn": 0, "text": "hello", "start": 0.25, "end": 0.75}
    ]


def test_opus_is_smaller_and_as_long(start):
    pytest.importorskip("soundfile")
    import soundfile

    up = start(format="opus")
    call = up.call()
    leg = up.leg(call)
    tone = (8000 * np.sin(np.arange(16000) * 0.3)).astype(np.int16)
    leg.on_frame(Frame(tone, 8000, 8000))  # after a second of nothing
    other = up.leg(call, "callee")
    other.on_frame(Frame(noise(4410), 44100, 0))  # which Opus does not know
    call.end()
    path = up.recorder.find("c-1", "caller").result(WAIT)
    assert path is not None and path.suffix == ".ogg"
    samples, rate = soundfile.read(path, dtype="int16")
    assert (len(samples), rate) == (24000, 8000)
    assert np.abs(samples[:7000]).max() < 100 < np.abs(samples[9000:]).max()
    assert path.stat().st_size < 24000
    assert len(up.read(leg="callee")[0]) == 4410


def test_opus_without_its_library_stops_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("bridge.recorder.recorder.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="soundfile is not installed: pip install 'callscribe"):
        Up(tmp_path, format="opus")


def test_an_unfinished_file_can_be_played(start):
    up = start()
    call = up.call()
    leg = up.leg(call)
    audio = noise(8000)
    leg.on_frame(Frame(audio, 8000, 0))
    up.settle()
    [(samples, _)] = read_recording(up.directory / "c-1.part" / "caller.wav")
    assert np.array_equal(samples, audio)
    assert up.recorder.find("c-1", "caller").result(WAIT) is None  # but it is not shown
    call.end()


# -- who is recorded -----------------------------------------------------------------------------


def test_without_consent_nothing_is_written(start):
    up = start()
    call = up.call(consent=False)
    leg = up.leg(call)
    leg.on_frame(Frame(noise(16000), 8000, 0))
    call.end()
    up.settle()
    assert list(up.directory.iterdir()) == []
    assert up.recorder.counters == {"no_consent": 1}


def test_late_consent_counts_from_then_on(start):
    up = start()
    call = up.call(consent=False)
    leg = up.leg(call, now=1.0)
    leg.on_frame(Frame(noise(8000), 8000, 0))
    call.learn(CallInfo("", recording_consent=True))
    audio = noise(800, 1)
    leg.on_frame(Frame(audio, 8000, 8000))
    call.end()
    assert np.array_equal(up.read()[0], audio)
    assert up.about()["legs"]["caller"]["start"] == 2.0


def test_consent_need_not_be_asked_for_here(start):
    up = start(require_consent=False)
    call = up.call(consent=False)
    up.leg(call).on_frame(Frame(noise(160), 8000, 0))
    call.end()
    assert len(up.read()[0]) == 160
    assert up.about()["consent"] is False


def test_a_pause_is_silence(start):
    up = start()
    call = up.call()
    leg = up.leg(call)
    audio = noise(8000)
    for frame in frames(audio):
        if frame.start == 1600:
            call.pause(None, "http")
        if frame.start == 3200:
            call.resume(None, "http")
        leg.on_frame(frame)
    call.end()
    wanted = audio.copy()
    wanted[1600 : 3200 + round(GUARD * 8000)] = 0
    assert np.array_equal(up.read()[0], wanted)


def test_what_a_paused_call_said_is_in_no_file(start):
    up = start()
    call = up.call()
    leg = up.leg(call)
    call.pause(None, "http")
    leg.on_frame(Frame(noise(16000), 8000, 0))
    call.end()
    assert not up.read()[0].any()


def test_what_a_process_left_when_it_died_is_deleted_with_its_call(start):
    up = start()
    for name, files_there in (("c-1.part", ["caller.wav"]), ("c-1~2.part", ["callee.ogg"])):
        (up.directory / name).mkdir()
        for file in files_there:
            (up.directory / name / file).write_bytes(b"RIFF")
    (up.directory / "c-10.part").mkdir()
    assert up.recorder.find("c-1", "caller").result(5) is None
    assert up.recorder.delete("c-1").result(5) is True
    assert [path.name for path in up.directory.iterdir()] == ["c-10.part"]
    assert up.recorder.delete("c-1").result(5) is False


def test_a_leg_that_changes_its_rate_is_recorded_until_then(start):
    up = start()
    call = up.call()
    leg = up.leg(call)
    leg.on_frame(Frame(noise(160), 8000, 0))
    leg.on_frame(Frame(noise(320), 16000, 320))
    call.end()
    assert len(up.read()[0]) == 160
    assert up.recorder.counters["rate_changed"] == 1


# -- names ---------------------------------------------------------------------------------------

HOSTILE = [
    "../../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "~root", "c-1~2",
    ".hidden", "x" * 5000, "caller.wav\n", "\ud800", "c-1.part", "=" + "0" * 40, "Ünïcode", "a b",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_call_cannot_choose_where_it_is_written(start, tmp_path, name):
    up = start()
    call = up.call(name)
    up.leg(call).on_frame(Frame(noise(160), 8000, 0))
    call.end()
    assert len(up.read(name)[0]) == 160
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]
    [folder] = up.directory.iterdir()
    assert folder.name.startswith("=") and len(folder.name) == 41
    assert up.recorder.delete(name).result(WAIT)
    assert list(up.directory.iterdir()) == []


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_ids_never_have_one_name(one, two):
    assert (files.folder_name(one) == files.folder_name(two)) == (one == two)
    for name in (files.folder_name(one), files.folder_name(f"../{one}")):
        assert Path("/d") / name == Path(os.path.normpath(f"/d/{name}")) != Path("/d")
        assert len(name) <= 100 and not name.endswith(files.PART)


@pytest.mark.parametrize("leg", ["../../c-2/caller", "call.json", "", "caller.wav", "both"])
def test_no_leg_but_a_leg_is_found(start, leg):
    up = start()
    for name in ("c-1", "c-2"):
        call = up.call(name)
        up.leg(call).on_frame(Frame(noise(160), 8000, 0))
        call.end()
    assert up.recorder.find("c-1", leg).result(WAIT) is None


def test_an_id_that_comes_again_takes_nothing_away(start):
    up = start()
    for length in (160, 320, 480):
        call = up.call()
        up.leg(call).on_frame(Frame(noise(length), 8000, 0))
        call.end()
    assert len(up.read()[0]) == 480  # the newest
    assert {p.name for p in up.directory.iterdir()} == {"c-1", "c-1~2", "c-1~3"}
    assert up.recorder.delete("c-1").result(WAIT)
    assert list(up.directory.iterdir()) == []


def test_nobody_else_can_read_them(start):
    up = start()
    call = up.call()
    up.leg(call).on_frame(Frame(noise(160), 8000, 0))
    call.end()
    up.settle()
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in [up.directory, *up.directory.rglob("*")]}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


# -- deleting ------------------------------------------------------------------------------------


def test_a_call_that_is_deleted_while_it_is_up_is_not_recorded_any_more(start):
    up = start()
    call = up.call()
    leg = up.leg(call)
    leg.on_frame(Frame(noise(8000), 8000, 0))
    assert up.recorder.delete("c-1").result(WAIT)
    leg.on_frame(Frame(noise(8000), 8000, 8000))
    up.leg(call, "callee").on_frame(Frame(noise(8000), 8000, 0))
    call.end()
    up.settle()
    assert list(up.directory.iterdir()) == []
    assert up.recorder.delete("c-1").result(WAIT) is False
    assert up.recorder.counters["deleted"] == 1


def recorded(directory: Path, name: str, age: float, now: float) -> Path:
    folder = directory / name
    folder.mkdir(parents=True)
    for file in ("caller.wav", "call.json"):
        (folder / file).write_bytes(b"x")
        os.utime(folder / file, (now - age, now - age))
    os.utime(folder, (now - age, now - age))
    return folder


def test_what_is_old_goes_at_the_start_and_every_hour(start):
    up = start(retention_days=2)
    old = recorded(up.directory, "old", 2 * DAY + 1, up.now)
    part = recorded(up.directory, "died.part", 2 * DAY + 1, up.now)
    young = recorded(up.directory, "young", 2 * DAY - SWEEP_EVERY, up.now)
    up.recorder.expire(50.0)
    up.settle()
    assert not old.exists() and not part.exists() and young.exists()
    up.now += SWEEP_EVERY + 1
    up.recorder.expire(50.0 + SWEEP_EVERY - 1)
    up.settle()
    assert young.exists()
    up.recorder.expire(50.0 + SWEEP_EVERY)
    up.settle()
    assert list(up.directory.iterdir()) == []
    assert up.recorder.counters["expired"] == 3


def test_without_retention_nothing_goes(start):
    up = start(retention_days=0)
    old = recorded(up.directory, "old", 1e8, up.now)
    up.recorder.expire(0.0)
    up.settle()
    assert old.exists()


def test_what_is_not_ours_is_left_alone(start, tmp_path, caplog):
    up = start(retention_days=1)
    mixed = recorded(up.directory, "mixed", 9 * DAY, up.now)
    (mixed / "thesis.tex").write_text("years of work")
    os.utime(mixed / "thesis.tex", (0, 0))
    os.utime(mixed, (0, 0))
    elsewhere = recorded(tmp_path / "elsewhere", "old", 9 * DAY, up.now)
    (up.directory / "link").symlink_to(elsewhere)
    (up.directory / "file").write_text("x")
    (up.directory / "a folder").mkdir()
    up.recorder.expire(0.0)
    up.settle()
    assert (mixed / "thesis.tex").exists() and (elsewhere / "caller.wav").exists()
    assert {p.name for p in up.directory.iterdir()} == {"mixed", "link", "file", "a folder"}
    assert up.recorder.counters["not_deleted"] == 1
    assert "1 old recordings could not be deleted" in caplog.text


# -- disks ---------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int):
    """What a full disk does: writes take a part, then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_the_file_and_not_the_call(start, caplog):
    up = start()
    call = up.call()
    leg = up.leg(call)
    audio = noise(40_000)
    with files_of_at_most(44 + 2 * 20_000 + 1):  # half a sample more than whole ones
        for frame in frames(audio):
            leg.on_frame(frame)
        up.settle()
        leg.on_frame(Frame(noise(8000), 8000, 40_000))
        assert len(up.engine.leases[0].blocks) > 70  # was heard all the same
        call.end()
        samples, _ = up.read()
    assert np.array_equal(samples, audio[:20_000])  # whole pieces
    assert up.about()["legs"]["caller"]["cut"] is True
    assert up.recorder.counters["failed"] == 1
    assert "its caller is not recorded any more: File too large" in caplog.text


def test_a_disk_that_takes_nothing_costs_no_more(start):
    up = start()
    call = up.call()
    with files_of_at_most(0):
        up.leg(call).on_frame(Frame(noise(8000), 8000, 0))
        up.settle()
    call.end()
    up.settle()
    assert up.recorder.counters["failed"] == 1
    assert list(up.directory.iterdir()) == []


def test_a_slow_disk_makes_nobody_wait(tmp_path, monkeypatch):
    stuck, gone_on = threading.Event(), threading.Event()

    def create(*_: object) -> Path:
        stuck.set()
        assert gone_on.wait(WAIT)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("bridge.recorder.files.create", create)
    writer = Writer(tmp_path, "wav", limit=10_000)
    piece = Piece(8000, 0, noise(2000))
    writer.put("c-1", "caller", piece)
    assert stuck.wait(WAIT)
    for _ in range(5):
        writer.put("c-1", "caller", piece)
    assert writer.counters["lost"] == 4  # 4000 bytes each
    assert writer.queued == 8000
    gone_on.set()
    assert writer.close(WAIT)
    assert writer.counters == {"lost": 4, "failed": 1}
    assert writer.queued == 0


def test_what_was_lost_is_silence(start, monkeypatch):
    up = start()
    call = up.call()
    leg = up.leg(call)
    audio = noise(12_000)
    leg.on_frame(Frame(audio[:4000], 8000, 0))
    up.settle()
    monkeypatch.setattr(up.recorder._writer, "_limit", 0)
    leg.on_frame(Frame(audio[4000:8000], 8000, 4000))
    monkeypatch.undo()
    leg.on_frame(Frame(audio[8000:], 8000, 8000))
    call.end()
    wanted = audio.copy()
    wanted[4000:8000] = 0
    assert np.array_equal(up.read()[0], wanted)
    assert up.recorder.counters["lost"] == 1


def test_a_directory_that_cannot_be_written_stops_the_start(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"^recording\.directory: .*/file/x: Not a directory$"):
        Up(tmp_path / "file" / "x")


# -- tapes ---------------------------------------------------------------------------------------


def test_much_concealment_is_listed_as_a_whole():
    tape = Tape(lambda piece: None, lambda: True, Counter())
    for i in range(3 * MAX_CONCEALED):
        tape(Frame(noise(8), 8000, 8 * i, concealed=i % 2 == 0))
    assert len(tape.concealed) == MAX_CONCEALED
    assert tape.concealed[-1][1] == pytest.approx((3 * MAX_CONCEALED - 1) / 1000)


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 900), st.booleans()), max_size=40))
def test_pieces_are_what_the_leg_heard(items):
    """Whatever starts frames claim, pieces do not overlap and follow the leg's own clock."""
    pieces: list[Piece] = []
    kept = True
    tape = Tape(pieces.append, lambda: kept, Counter())
    clock = 0
    wanted: dict[int, int] = {}
    for i, (start, length, kept) in enumerate(items):  # noqa: B007 - the tape asks
        tape(Frame(np.full(length, i + 1, np.int16), 8000, start))
        clock = max(clock, start)
        if kept:
            wanted |= {clock + j: i + 1 for j in range(length)}
        clock += length
    tape.stop()
    origin = round(tape.start * 8000)
    got: dict[int, int] = {}
    for piece in pieces:
        for j, value in enumerate(piece.samples.tolist()):
            assert origin + piece.at + j not in got
            got[origin + piece.at + j] = value
    assert got == wanted
