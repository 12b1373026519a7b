"""What is asked of the store, and what it answers. Pure.

Asked in order and done in order: what is asked after a `Keep` sees what it kept. `sink` is a sink's
name; `due` and `at` are Unix time, because they outlive the process and its clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bridge.types import CallEvent, LeftCall


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """`size` in bytes of the file; `dead_for` and `calls_for` in seconds."""

    rows: int = 5_000_000
    size: int = 2 << 30
    dead_for: float = 30 * 86400.0
    calls_for: float = 86400.0  # ids of calls that are over, so that none is used twice


# -- asked ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Note:
    """This event's number is used up, whatever becomes of the event: a call that goes on after a
    crash must not use it again, because a sink may have seen it."""

    event: CallEvent


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the event for the sink until it is done or dead. Answered `Safe`."""

    sink: str
    event: CallEvent
    rank: int
    ends: bool  # the call's last


@dataclass(frozen=True, slots=True)
class Await:
    """Nothing is kept; answered `Safe` when everything that was asked before is."""

    sink: str
    call: str
    seq: int


@dataclass(frozen=True, slots=True)
class Done:
    """The sink took it. With `kept` false it is an event that was never kept, a partial."""

    sink: str
    call: str
    seq: int
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Again:
    """The sink did not take it, `attempts` times by now, and is to be asked again."""

    sink: str
    call: str
    seq: int
    attempts: int
    due: float


@dataclass(frozen=True, slots=True)
class Dead:
    """It is given up: a dead letter, until an operator says otherwise or it is too old."""

    sink: str
    call: str
    seq: int
    error: str


@dataclass(frozen=True, slots=True)
class Bury:
    """The sink wants nothing more: all that is kept for it is dead."""

    sink: str
    error: str


@dataclass(frozen=True, slots=True)
class Over:
    """The sink has had everything of this call."""

    sink: str
    call: str


@dataclass(frozen=True, slots=True)
class Load:
    """The call's next events for the sink, beyond `after`. Answered `Loaded`."""

    sink: str
    call: str
    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take over what processes that are gone have left. Answered `Adopted`."""


@dataclass(frozen=True, slots=True)
class Tidy:
    """Forget what is too old, and when there is hardly any room, what matters least."""


Op: TypeAlias = Note | Keep | Await | Done | Again | Dead | Bury | Over | Load | Adopt | Tidy

# -- answered -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Safe:
    """It is on the disk, or (`stored` false) cannot be for the present."""

    sink: str
    call: str
    seq: int
    stored: bool = True


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One event as it was kept."""

    event: CallEvent
    attempts: int
    due: float
    at: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows in order of `seq`; `more`: there are others behind them."""

    sink: str
    call: str
    rows: tuple[StoredRow, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class LeftBacklog:
    """What a sink has still to be given of one call: `rows` events, the first of them at `due`.

    `last` is the number of the event that the sink took last, `over`: the call's end is kept.
    """

    sink: str
    call: str
    rows: int
    last: int
    over: bool
    attempts: int
    due: float


@dataclass(frozen=True, slots=True)
class Adopted:
    """`over`: ids of calls that have ended lately, oldest first."""

    backlogs: tuple[LeftBacklog, ...] = ()
    calls: tuple[LeftCall, ...] = ()
    over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shed:
    """These were dropped, because there was hardly any room."""

    sink: str
    call: str
    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Renewed:
    """The file was set aside and a new one begun: what is in memory is to be kept once more."""

    name: str


Result: TypeAlias = Safe | Loaded | Adopted | Shed | Renewed
