"""The process side of the embedded recogniser. The only file that imports pocketsphinx.

Two kinds of process run this file:

* the **loader**, started by the bridge, reads the model once (0.4 s, 100 MB) and then waits on its
  control socket. Each message there carries one end of a socket pair;
* a **decoder**, which the loader forks for each such socket (4 ms, 25 MB of its own, the rest
  shared), listens to one lease and ends with it. A lease has its process and its socket to
  itself, so nothing can be said to the wrong leg and no state has to be reset.

Both end with whoever started them, and with their socket. They ignore SIGINT and SIGTERM, which a
terminal and systemd send to the whole group: calls that are being drained still need them.
Needs Linux (PR_SET_PDEATHSIG, SOCK_SEQPACKET). Imports neither numpy nor anything else of ours.

To a decoder, one packet each: `HEADER` (kind, index of the block), then for AUDIO one block of
int16 samples. Back: one JSON object per packet: first ``{"pid"}``, then for each AUDIO or END
``{"at", "keep", "pause"}`` and, where they changed, ``"words"`` and ``"tentative"``, each a list of
[text, start, end, confidence]; the answer to END also has ``"done"``. Times are seconds, index 0
being 0.0. `keep` is the second from which audio would have to be sent again to a new process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import struct
import sys
import traceback
from typing import Any

RATE = 16000
BLOCK = 1280  # samples, 80 ms
BLOCK_SECONDS = BLOCK / RATE
BYTES_PER_SECOND = 2 * RATE
HEADER = struct.Struct("<BI")
AUDIO, END = 1, 2
PACKET = 65536  # bytes: the largest packet either way

MAX_UTTERANCE = 20.0  # seconds; music on hold never pauses, and its lattice would grow for ever
PARTIAL_EVERY = 0.24  # seconds of audio; a hypothesis costs 50 us, telling it costs more
LEAD = 0.5  # seconds before speech that a new process wants too: the endpointer's window is 0.3
NICE = 5  # the event loop goes first; at 10, a busy machine starves us
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Where cepstral mean normalisation begins, before it has heard the caller: the mean over 80
# Asterisk prompts and 24 flite sentences, 8 kHz with each sample repeated. The model's own value
# (40, 3, -1, 0 ...) is for wide-band audio and spoils a call's first utterance: on 40 other
# prompts the word error rate falls from 0.80 to 0.75 with this one.
TELEPHONE_MEAN = "44.5,2.9,3.6,4.7,2.7,-2.4,0.5,-0.7,-3.2,1.0,-2.6,1.1,-0.9"

# A guess under way has no lattice yet, hence no posterior: neither certain nor unlikely.
TENTATIVE_CONFIDENCE = 0.5


def load() -> Any:
    """A decoder with the model that comes with pocketsphinx. Raises ImportError, RuntimeError.

    No second, flat-lexicon pass: on 24 sentences of flite's rms and awb at 8 kHz it takes
    the errors from 32 to 29 of 232 words, but the end of an utterance from 45 to 210 ms. The
    best path through the lattice costs 10 ms, takes 39 errors to 32, and gives posteriors.
    """
    from pocketsphinx import Decoder  # type: ignore[import-untyped, unused-ignore]

    return Decoder(
        samprate=RATE, fwdflat=False, bestpath=True, cmninit=TELEPHONE_MEAN, loglevel="FATAL"
    )


class Listener:
    """One leg's endpointer and decoder: PCM in, what to tell the bridge out."""

    def __init__(self, decoder: Any, base: float) -> None:
        """`base` is the second at which the audio begins."""
        from pocketsphinx import Endpointer

        self._decoder = decoder
        self._endpointer = Endpointer(sample_rate=RATE)
        self._frame = int(self._endpointer.frame_bytes)
        self._base = base
        self._rest = b""  # less than a frame
        self._fed = 0  # bytes
        self._utterance = 0.0  # where the decoder's frame 0 is
        self._decoded = 0  # bytes since there
        self._told = 0  # of which the last hypothesis knew
        self._end = base  # of the last utterance
        self._words: list[list[Any]] = []
        self._tentative: list[list[Any]] | None = None  # None: as before

    def feed(self, pcm: bytes) -> None:
        """Listen to int16 samples."""
        self._fed += len(pcm)
        data = self._rest + pcm
        whole = len(data) - len(data) % self._frame
        for offset in range(0, whole, self._frame):
            self._listen(data[offset : offset + self._frame])
        self._rest = data[whole:]

    def finish(self) -> None:
        """The audio has ended: whatever was being said is now certain."""
        if self._endpointer.in_speech:
            rest = self._rest or bytes(2)  # nothing at all is an IndexError
            self._decode(self._endpointer.end_stream(rest) or b"")
            self._end_utterance()

    def _listen(self, frame: bytes) -> None:
        before = self._endpointer.in_speech
        speech = self._endpointer.process(frame)
        if speech is None:
            return
        if not before:
            self._start_utterance(self._base + self._endpointer.speech_start)
        self._decode(speech)
        if not self._endpointer.in_speech:
            self._end_utterance()
        elif self._decoded >= MAX_UTTERANCE * BYTES_PER_SECOND:
            self._end_utterance()
            self._start_utterance(self._end)
        elif self._decoded - self._told >= PARTIAL_EVERY * BYTES_PER_SECOND:
            self._told = self._decoded
            self._tentative = self._hypothesis(certain=False)

    def _start_utterance(self, at: float) -> None:
        self._utterance, self._decoded, self._told = at, 0, 0
        self._decoder.start_utt()

    def _decode(self, speech: bytes) -> None:
        self._decoded += len(speech)
        if speech:
            self._decoder.process_raw(speech)

    def _end_utterance(self) -> None:
        self._decoder.end_utt()
        self._end = self._utterance + self._decoded / BYTES_PER_SECOND
        self._words += self._hypothesis(certain=True)
        self._tentative = []

    def _hypothesis(self, *, certain: bool) -> list[list[Any]]:
        """[text, start, end, confidence] per word, without fillers.

        Confidence of certain words: the posterior of the word in the lattice, given that the
        best path was searched. ``to(2)`` is a pronunciation of ``to``; ``<sil>``, ``[NOISE]``
        and ``</s>`` are nobody's words. A segment's last frame belongs to it.
        """
        words: list[list[Any]] = []
        for segment in self._decoder.seg() or ():
            text = segment.word.partition("(")[0]
            if text and text[0] not in "<[+":
                start = round(self._utterance + segment.start_frame / 100, 3)
                end = round(self._utterance + (segment.end_frame + 1) / 100, 3)
                confidence = min(1.0, segment.prob) if certain else TENTATIVE_CONFIDENCE
                words.append([text, start, end, round(confidence, 4)])
        return words

    def report(self) -> dict[str, Any]:
        """What was heard since the last report."""
        at = round(self._base + self._fed / BYTES_PER_SECOND, 3)  # the same whatever the base
        speaking = bool(self._endpointer.in_speech)
        keep = max(self._end, (self._utterance if speaking else at) - LEAD)
        report: dict[str, Any] = {"at": at, "keep": keep, "pause": 0.0 if speaking else 1.0}
        if self._words:
            report["words"], self._words = self._words, []
        if self._tentative is not None:
            report["tentative"], self._tentative = self._tentative, None
        return report


def decode(sock: socket.socket, decoder: Any) -> None:
    """Serve one lease until its socket closes. Blocks that never came are silence."""
    _tell(sock, {"pid": os.getpid()})
    listener, expected = None, 0
    while packet := sock.recv(PACKET):
        kind, index = HEADER.unpack_from(packet)
        if listener is None:
            listener, expected = Listener(decoder, index * BLOCK_SECONDS), index
        for _ in range(expected, index):
            listener.feed(bytes(2 * BLOCK))
        expected = index + 1
        if kind == AUDIO:
            listener.feed(packet[HEADER.size :])
            _tell(sock, listener.report())
        else:
            listener.finish()
            _tell(sock, {**listener.report(), "done": True})


def _tell(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.send(json.dumps(message, separators=(",", ":")).encode())


def end_with(parent: int) -> None:
    """Be killed when `parent`, which started us, ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _become_decoder(sock: socket.socket, decoder: Any, loader: int) -> None:
    try:
        end_with(loader)
        decode(sock, decoder)
    except ConnectionError:  # evicted between two packets
        pass
    except BaseException:  # the bridge sees the socket close; people want to know why
        traceback.print_exc()
    finally:
        os._exit(0)


def _fork(fd: int, control: socket.socket, decoder: Any) -> None:
    with socket.socket(fileno=fd) as sock:
        loader = os.getpid()
        try:
            child = os.fork()
        except OSError:  # no memory, no process: the bridge sees the socket close, and tries again
            return
        if not child:
            control.close()
            _become_decoder(sock, decoder, loader)


def _loaded(control: socket.socket) -> Any:
    try:
        decoder = load()
    except (ImportError, RuntimeError, ValueError, OSError) as e:
        _tell(control, {"error": f"{type(e).__name__}: {e}"})
        sys.exit(1)
    _tell(control, {"ready": True})
    return decoder


def main(control: socket.socket, parent: int) -> None:
    """Load the model, then fork a decoder for each socket that arrives, until the end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):  # ignored SIGCHLD: no zombies
        signal.signal(number, signal.SIG_IGN)
    end_with(parent)
    decoder = _loaded(control)
    os.nice(NICE)  # not before: nobody is being listened to while the model loads
    gc.freeze()  # a collection in a child would touch, and so copy, every page of objects
    while True:
        packet, fds, _, _ = socket.recv_fds(control, 16, 1)
        if not packet:
            return
        for fd in fds:
            _fork(fd, control, decoder)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
