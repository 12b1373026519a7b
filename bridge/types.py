"""The words we speak. Nothing here imports anything of ours.

A *call* has one or two *legs* (one speaker's audio each). A *frame* is audio as it arrived
(usually 20 ms), a *block* is what a recogniser takes at a time (80 ms). *Channel* is Asterisk's
name for an endpoint, never ours. Times are seconds as floats, sample counts are ints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Samples: TypeAlias = npt.NDArray[np.int16]
"""Linear PCM, int16[n], one channel."""

Block: TypeAlias = npt.NDArray[np.float32]
"""float32[n] in [-1, 1), exactly as long as the recogniser's `block`."""

LegName: TypeAlias = Literal["caller", "callee"]


@dataclass(frozen=True, slots=True)
class CallInfo:
    """Who is calling, as far as we know. `id` is ours to call control; the rest is Asterisk's."""

    id: str
    ingress: str = ""
    channel: str = ""
    uniqueid: str = ""
    linkedid: str = ""
    caller: str = ""
    callee: str = ""
    context: str = ""
    exten: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    recording_consent: bool = False  # of all who speak, as call control says
    listening: bool = False  # to one turn, with a dialplan that waits for it (`Listen`)


@dataclass(frozen=True, slots=True)
class Listen:
    """A leg that is listened to for one turn, and hung up on then: the dialplan goes on.

    `seconds` is the whole time from the leg's opening, `begin` the time in which somebody must
    have begun to speak.
    """

    seconds: float
    begin: float


@dataclass(frozen=True, slots=True)
class Announcement:
    """What call control said about a UUID, before or after the UUID's socket opened.

    `call` groups legs: two UUIDs announced with the same `call` are the two legs of one call.
    An empty `call` means that the leg is a call of its own, named by its UUID. `info.id` is not
    used. `channel` fields of `info` are those of the leg's own channel.
    """

    uuid: str
    call: str = ""
    leg: LegName = "caller"
    info: CallInfo = field(default_factory=lambda: CallInfo(id=""))
    listen: Listen | None = None


# -- what an ingress says -----------------------------------------------------------------------


@dataclass(slots=True)  # not frozen, which would cost a microsecond a frame; nobody changes one
class Frame:
    """Audio as it arrived.

    `start` is the index of the first sample on the leg's clock, at `rate` Hz. A start beyond the
    audio heard so far is a gap, to be filled with silence; a frame without samples only says how
    far the clock has run. `concealed` marks samples that nobody sent. `packets` of the peer that
    came together are in it.
    """

    samples: Samples
    rate: int
    start: int
    concealed: bool = False
    packets: int = 1


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer has said who it is. `id` is the UUID (36 characters, lower case)."""

    id: str


@dataclass(slots=True)  # as Frame
class Audio:
    """Audio of one leg."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Digit:
    """A DTMF digit, one of ``0-9 * # A-D``."""

    digit: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something odd that does not end the call, said once per call. `kind` names a counter."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer is done: `reason` is ``hangup`` (it said so), ``eof``, ``reset``, ``timeout``."""

    reason: str


IngressEvent: TypeAlias = Opened | Audio | Digit | Warned | Closed


# -- what a recogniser hears --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One word. `start` and `end` in seconds, `confidence` in 0…1."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What one leg's recogniser heard in one step.

    `words` are certain and will not be said again. `tentative` is the present guess at what
    follows them and replaces the guess before. `pause` in 0…1 is the probability that the
    speaker has paused. `at` is how far the recogniser has listened, in seconds; words that end
    before `settled` have all been said (infinite: whatever was heard has been). `stuck`: the
    recogniser hears speech and has fallen silent; it should hear the last seconds again, afresh.
    """

    words: tuple[Word, ...] = ()
    tentative: tuple[Word, ...] = ()
    pause: float = 0.0
    at: float = 0.0
    settled: float = math.inf
    stuck: bool = False


# -- what call control is told ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Partial:
    """What the turn sounds like so far, beyond its finals. Replaced by the next one."""

    turn: int
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Final:
    """Words that will not change any more. A turn may have several.

    `language` is ISO 639-1, empty where it cannot be told.
    """

    turn: int
    text: str
    words: tuple[Word, ...]
    language: str = ""


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """The speaker has finished. `text` is the whole turn.

    `reason` is ``pause``, ``hangup``, ``asked`` (the peer wanted what it had said so far),
    ``length`` (cut, after two minutes without a pause), or ``paused`` (call control wants to hear
    no more for a while).
    """

    turn: int
    text: str
    start: float
    end: float
    reason: str


TranscriptEvent: TypeAlias = Partial | Final | EndOfTurn


@dataclass(frozen=True, slots=True)
class Started:
    """A call's first event."""


@dataclass(frozen=True, slots=True)
class Pressed:
    """A digit was pressed, `at` seconds on the leg's clock."""

    digit: str
    at: float


@dataclass(frozen=True, slots=True)
class Paused:
    """From `at` seconds on the leg is not heard; `by`: ``http``, ``ami``, ``dtmf``."""

    at: float
    by: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """From `at` seconds on the leg is heard again."""

    at: float
    by: str


@dataclass(frozen=True, slots=True)
class Listened:
    """What came of a `Listen`.

    `status`: ``heard`` (a whole turn), ``timeout`` (cut while somebody spoke), ``silence`` (nobody
    spoke), ``hangup``, ``ended`` (call control ended it), ``unavailable`` (the engine is lost).
    `confidence` is the mean of the words', None without any.
    """

    status: str
    text: str = ""
    confidence: float | None = None
    language: str = ""


@dataclass(frozen=True, slots=True)
class LegCounts:
    """What one leg's audio came to. `lost` and `dropped` are what nobody heard.

    What is said of packets is 0 where the transport loses none. Of the peer's, `packets_late` came
    when their place had been played, and `packets_invalid` could not be heard: broken, not
    authentic, of a type or a stream that nobody announced. `packets_foreign` were others'.
    """

    seconds: float = 0.0
    frames: int = 0
    words: int = 0
    silence_inserted: float = 0.0  # seconds of gaps filled
    blocks: int = 0
    blocks_dropped: int = 0
    packets_lost: int = 0
    packets_late: int = 0
    packets_duplicate: int = 0
    packets_invalid: int = 0
    packets_foreign: int = 0
    jitter: float = 0.0  # seconds, RFC 3550 A.8
    concealed: float = 0.0  # seconds of audio that nobody sent
    paused: float = 0.0  # seconds that call control wanted nobody to hear


@dataclass(frozen=True, slots=True)
class Ended:
    """A call's last event."""

    reason: str
    seconds: float
    legs: Mapping[str, LegCounts]


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that was not taken, told at once. Its only event.

    `reason` is one of ``busy`` (no free slot), ``overload`` (a slot, but steps of the engine take
    too long already), ``draining``, ``limit`` (calls.max), ``limit:NAME`` (a [[limit]]),
    ``unannounced``, ``not ready``, ``outbox`` (its file is full).
    """

    reason: str


@dataclass(frozen=True, slots=True)
class LeftCall:
    """A call whose process is gone, and that may go on in another one.

    `next` is the number of its next event, `turns` the last turn of each leg (-1: it had none).
    `began`, and `at` of its last event, are Unix time.
    """

    info: CallInfo
    next: int
    began: float
    at: float
    turns: Mapping[LegName, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleFired:
    """A rule was met, and one of its actions done, or not.

    `action` is setvar, redirect, hangup, record, stop_record, userevent or webhook; `outcome` is
    done, failed (`reason` is a sentence) or dry_run. `matched` is the rule's phrase or what its
    pattern matched, `text` and `words` are what was said, in event `cause` of the same call.
    `webhook` names the one that must be told.
    """

    rule: str
    action: str
    outcome: Literal["done", "failed", "dry_run"]
    reason: str
    turn: int
    cause: int
    matched: str
    text: str
    words: tuple[Word, ...]
    webhook: str = ""


EventBody: TypeAlias = (
    Started | TranscriptEvent | Pressed | Paused | Resumed | Listened | Ended | Refused | RuleFired
)


@dataclass(frozen=True, slots=True)
class CallEvent:
    """One numbered event of one call, as every egress gets it.

    `seq` starts at 0 and has no gaps per call. `at` is Unix time. `leg` is None for events of
    the call as a whole. `gap_before` counts events of this call that this sink was not given,
    because a newer partial replaced them: `seq - gap_before - 1` is the sink's event before.
    """

    call: CallInfo
    seq: int
    at: float
    leg: LegName | None
    body: EventBody
    gap_before: int = 0
