"""Reading recordings: every form, and a sentence for everything that is none."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.audio.g711 import encode_alaw, encode_ulaw
from bridge.errors import BridgeError
from bridge.recording import STREAMED, read_recording

SAMPLES = np.array([0, 1000, -1000, 32767, -32768, 8], np.int16)


def wave(
    audio: bytes,
    *,
    kind: int = 1,
    channels: int = 1,
    rate: int = 8000,
    bits: int = 16,
    extra: bytes = b"",
    size: int | None = None,
    before: bytes = b"",
) -> bytes:
    """A WAVE file. `size` is what its data chunk claims, `before` other chunks."""
    width = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * width, width, bits) + extra
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(audio) if size is None else size) + audio
    return b"RIFF" + struct.pack("<I", len(body)) + body


def read(tmp_path: Path, name: str, data: bytes, channel: int | None = None):
    path = tmp_path / name
    path.write_bytes(data)
    return read_recording(path, channel=channel)


def refused(tmp_path: Path, name: str, data: bytes, channel: int | None = None) -> str:
    """The sentence, without the path in front of it."""
    with pytest.raises(BridgeError) as e:
        read(tmp_path, name, data, channel)
    said = str(e.value)
    assert said.startswith(f"{tmp_path / name}: ")
    return said.removeprefix(f"{tmp_path / name}: ")


def test_reads_16_bit(tmp_path):
    [(samples, rate)] = read(tmp_path, "a.wav", wave(SAMPLES.tobytes(), rate=16000))
    assert rate == 16000 and samples.dtype == np.int16
    assert samples.tolist() == SAMPLES.tolist()


def test_reads_8_bit_as_unsigned(tmp_path):
    [(samples, _)] = read(tmp_path, "a.wav", wave(bytes([128, 0, 255, 129]), bits=8))
    assert samples.tolist() == [0, -32768, 127 << 8, 1 << 8]


@pytest.mark.parametrize(("kind", "encode"), [(7, encode_ulaw), (6, encode_alaw)])
@pytest.mark.parametrize("extra", [b"", b"\0\0"])
def test_reads_g711(tmp_path, kind, encode, extra):
    data = wave(encode(SAMPLES), kind=kind, bits=8, extra=extra)
    [(samples, rate)] = read(tmp_path, "a.wav", data)
    assert rate == 8000
    assert np.abs(samples.astype(int) - SAMPLES).max() <= 1024  # the widest step's half


def test_reads_extensible(tmp_path):
    guid = struct.pack("<H", 7) + bytes.fromhex("000000001000800000aa00389b71")
    extra = struct.pack("<HHI", 22, 8, 0) + guid
    [(samples, _)] = read(tmp_path, "a.wav", wave(b"\xff\xff", kind=0xFFFE, bits=8, extra=extra))
    assert samples.tolist() == [0, 0]


def test_a_stereo_file_is_two_channels(tmp_path):
    left, right = SAMPLES, SAMPLES[::-1]
    both = np.stack([left, right], axis=1).tobytes()
    data = wave(both, channels=2)
    channels = read(tmp_path, "a.wav", data)
    assert [samples.tolist() for samples, _ in channels] == [left.tolist(), right.tolist()]
    assert all(samples.flags.c_contiguous for samples, _ in channels)
    [(only, _)] = read(tmp_path, "a.wav", data, 1)
    assert only.tolist() == right.tolist()


def test_other_chunks_are_skipped_with_their_padding(tmp_path):
    note = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    [(samples, _)] = read(tmp_path, "a.wav", wave(SAMPLES.tobytes(), before=note))
    assert samples.tolist() == SAMPLES.tolist()


@pytest.mark.parametrize("size", [STREAMED, 0xFFFF_FFFF])
def test_a_piped_file_does_not_know_its_size(tmp_path, size):
    [(samples, _)] = read(tmp_path, "a.wav", wave(SAMPLES.tobytes() + b"x", size=size))
    assert samples.tolist() == SAMPLES.tolist()


@pytest.mark.parametrize(
    ("name", "data", "rate"),
    [
        ("a.sln", SAMPLES.tobytes(), 8000),
        ("A.SLN16", SAMPLES.tobytes(), 16000),
        ("a.sln44", SAMPLES.tobytes(), 44100),
        ("a.ulaw", encode_ulaw(SAMPLES), 8000),
        ("a.al", encode_alaw(SAMPLES), 8000),
    ],
)
def test_reads_headerless_by_name(tmp_path, name, data, rate):
    [(samples, said)] = read(tmp_path, name, data)
    assert said == rate and len(samples) == len(SAMPLES)
    assert np.abs(samples.astype(int) - SAMPLES).max() <= 1024


def test_content_wins_over_a_name(tmp_path):
    [(samples, rate)] = read(tmp_path, "a.sln", wave(SAMPLES.tobytes(), rate=16000))
    assert (rate, len(samples)) == (16000, len(SAMPLES))


CUT = wave(SAMPLES.tobytes() * 4000)[:-24000]
SENTENCES = [
    ("a.wav", b"", "is empty"),
    ("a.wav", b"ID3 something", "is named .wav but has no RIFF/WAVE header"),
    ("a.wav", CUT, "is cut off: 1.50 of 3.00 seconds are there; copy it again"),
    ("a.wav", wave(b"")[:-8], "is cut off: its header has no audio after it; copy it again"),
    ("a.wav", wave(b"")[:30], "is cut off inside its header; copy it again"),
    ("a.wav", wave(b""), "has a header but no audio"),
    ("a.wav", b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "has audio before its format; save it with sox"),
    ("a.wav", wave(b"ab", channels=3), "has 3 channels; a call has one or two"),
    ("a.wav", wave(b"ab", channels=0), "has 0 channels; a call has one or two"),
    ("a.wav", wave(b"ab", rate=1), "says 1 samples a second; expected 4000 to 192000"),
    ("a.sln", b"abc", "has an odd number of bytes, but .sln has two bytes a sample"),
    ("a.mp3", b"ID3", "is not a recording: expected .wav, .ulaw, .alaw or .sln (.sln16 …)"),
    ("a.sln7", b"ab", "is not a recording: expected .wav, .ulaw, .alaw or .sln (.sln16 …)"),
    (
        "a.wav",
        wave(b"abcd", kind=3, bits=32),
        "is 32-bit floating point; expected 16-bit or 8-bit PCM, mu-law or A-law "
        "(sox IN -b 16 OUT.wav makes one)",
    ),
    (
        "a.wav",
        wave(b"abc", bits=24),
        "is 24-bit PCM; expected 16-bit or 8-bit PCM, mu-law or A-law "
        "(sox IN -b 16 OUT.wav makes one)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "sentence"), SENTENCES)
def test_says_what_is_wrong(tmp_path, name, data, sentence):
    assert refused(tmp_path, name, data) == sentence


def test_says_which_channels_there_are(tmp_path):
    mono, stereo = wave(b"abcd"), wave(b"abcd", channels=2)
    said = "so there is no channel 2 (they start at 0)"
    assert refused(tmp_path, "a.wav", mono, 2) == f"has one channel, {said}"
    assert refused(tmp_path, "a.wav", stereo, 2) == f"has 2 channels, {said}"


def test_says_that_a_directory_or_nothing_is_no_recording(tmp_path):
    with pytest.raises(BridgeError, match="is a directory; name one recording in it"):
        read_recording(tmp_path)
    with pytest.raises(BridgeError, match="cannot be read: No such file or directory"):
        read_recording(tmp_path / "none.wav")
    with pytest.raises(BridgeError, match="/dev/zero: is not a plain file"):
        read_recording("/dev/zero")


def test_refuses_huge_files_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("bridge.recording.MAX_BYTES", 1 << 20)
    path = tmp_path / "a.wav"
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(BridgeError, match="is larger than 1 MiB; cut it into calls"):
        read_recording(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    at=st.integers(0, 60),
    junk=st.binary(max_size=8),
    cut=st.integers(0, 60),
    name=st.sampled_from(["a.wav", "a.sln", "a.ulaw", "a"]),
)
def test_a_damaged_file_is_read_or_refused_with_a_sentence(tmp_path, at, junk, cut, name):
    good = wave(SAMPLES.tobytes(), channels=2)
    bad = good[:at] + junk + good[at + len(junk) : len(good) - cut]
    try:
        channels = read(tmp_path, name, bad)
    except BridgeError as e:
        assert str(e).startswith(str(tmp_path))
    else:
        assert 1 <= len(channels) <= 2
        assert all(samples.dtype == np.int16 and rate >= 4000 for samples, rate in channels)
