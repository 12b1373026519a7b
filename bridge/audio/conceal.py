"""What to put where packets were lost, after ITU-T G.711 Appendix I.

The last pitch periods of what was heard are repeated: one period for 10 ms, two for the next 10,
then three, because a single one over and over buzzes. After 10 ms it fades, a fifth of its level
every 10 ms, and there is silence from 60 ms on: what was said before tells nothing about what is
said then.

Three things are other than in the appendix:

- A hole is filled when its end is known (`bridge/audio/jitter.py`), so what comes after it is
  continued backwards in the same way, and one passes into the other. On recorded calls the
  error of one lost packet of 20 ms is 0.19 of the speech's own energy; without that it is 0.45.
- The appendix delays all audio by 3.75 ms, so that it can blend the edges of the hole into what
  was received. Here received samples stay as they came: a continuation is led to its edge within
  the hole.
- The pitch is looked for with 7.5 ms of audio, not 20: the end of it is what the hole goes on from
  (error 0.45; with 20 ms it is 0.60). Either side has its own, which fits its phase, unless it is
  too short to have one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bridge.types import Samples

_Floats: TypeAlias = npt.NDArray[np.float64]

FULL, STEP, SILENT = 0.01, 0.2, 0.06
"""Full level for so many seconds; the share lost every 10 ms after it; silence from here on (s)."""
SHORTEST, LONGEST = 0.005, 0.015  # s of a pitch period: 66 to 200 Hz, or several of a higher voice
WINDOW = 0.0075  # s that are compared with what was a period before
QUIETEST = 250.0  # energy of a window below which there is no pitch to be found (the appendix's)
HISTORY = 3.25 * LONGEST
"""Seconds of audio on either side that are of use: three periods and a quarter to blend."""


def conceal(past: Samples, count: int, rate: int, after: Samples) -> Samples:
    """int16[count] for a hole at `rate` Hz.

    `past` is what was heard before it and `after` what follows it, of each `HISTORY` seconds or
    less; nothing stands for silence. Neither is changed.
    """
    concealed = np.zeros(count, np.int16)
    voiced = min(count, round(SILENT * rate))
    if not voiced:
        return concealed
    enough = round((SHORTEST + WINDOW) * rate)
    history, future = _history(past, rate), _history(after[: _size(rate)][::-1], rate)
    period = _period(history if len(past) >= enough or len(after) < enough else future, rate)
    forward = _continued(history, period, voiced, rate)
    if not len(after):
        concealed[:voiced] = forward.clip(-32768, 32767)
        return concealed
    if len(past) >= enough and len(after) >= enough:
        period = _period(future, rate)
    backward = _continued(future, period, voiced, rate)[::-1]
    both = max(0, 2 * voiced - count)  # samples that are reached from either side
    if both:
        share = _share(both)
        forward[voiced - both :] *= share[::-1]
        backward[:both] *= share
    filling = np.zeros(count)
    filling[:voiced] = forward
    filling[count - voiced :] += backward
    concealed[:] = filling.clip(-32768, 32767)
    return concealed


def _continued(history: _Floats, period: int, count: int, rate: int) -> _Floats:
    """float64[count]: how `history` would go on, fading."""
    quarter = period // 4
    filling = _repeated(history, period, quarter, count, round(FULL * rate))
    # What was heard goes on without a jump: the first quarter comes from where it was.
    length = min(quarter, count)
    filling[:length] += (history[-1] - history[-1 - period]) * _rise(quarter)[::-1][:length]
    filling *= _fade(rate)[:count]
    return filling


def _history(past: Samples, rate: int) -> _Floats:
    """float64: the last of `past`, with silence before it if there is too little."""
    size = _size(rate)
    history = np.zeros(size)
    heard = past[-size:]
    history[size - len(heard) :] = heard
    return history


def _size(rate: int) -> int:
    """`HISTORY` in samples: three of the longest periods and a quarter, each a whole number."""
    longest = round(LONGEST * rate)
    return 3 * longest + longest // 4


def _period(history: _Floats, rate: int) -> int:
    """The lag, in samples, at which the last `WINDOW` is most like what was before it."""
    coarse = max(1, rate // 8000)
    shortest, longest = round(SHORTEST * rate), round(LONGEST * rate)
    window = round(WINDOW * rate)
    if coarse == 1:
        return _best_lag(history, window, shortest, longest)
    whole = len(history) // coarse * coarse
    rough = history[len(history) - whole :].reshape(-1, coarse) @ np.ones(coarse)
    lag = _best_lag(rough, window // coarse, shortest // coarse, longest // coarse) * coarse
    shortest, longest = max(shortest, lag - coarse), min(longest, lag + coarse)
    near = history[len(history) - window - longest : len(history) - shortest]
    return longest - int(np.correlate(near, history[-window:]).argmax())


def _best_lag(signal: _Floats, window: int, shortest: int, longest: int) -> int:
    last = signal[-window:]
    earlier = signal[-window - longest : len(signal) - shortest]
    likeness = np.correlate(earlier, last)
    sums = (earlier * earlier).cumsum()
    energy = sums[window - 1 :].copy()
    energy[1:] -= sums[:-window]
    likeness /= np.sqrt(np.maximum(energy, QUIETEST))
    return longest - int(likeness.argmax())


def _repeated(history: _Floats, period: int, quarter: int, count: int, ten: int) -> _Floats:
    """float64[count]: the history's end over and over, each turn's last quarter led to the next.

    `ten` is 10 ms in samples, after which the turns grow longer.
    """
    size = len(history)
    rise = _rise(quarter)
    turns = []
    done, periods = 0, 1
    while done < count:
        turn = history[size - periods * period :].copy()
        done += len(turn)
        periods = min(1 + done // ten, 3)  # of the turn that follows
        before = size - periods * period
        turn[-quarter:] += (history[before - quarter : before] - turn[-quarter:]) * rise
        turns.append(turn)
    return np.concatenate(turns)[:count]


@lru_cache(256)
def _rise(length: int) -> _Floats:
    """float64[length]: from just above 0 to just below 1, half a period of a cosine."""
    rise: _Floats = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)
    rise.flags.writeable = False
    return rise


@lru_cache(64)
def _share(length: int) -> _Floats:
    """float64[length]: from just above 0 to just below 1, straight."""
    share: _Floats = (np.arange(length) + 0.5) / length
    share.flags.writeable = False
    return share


@lru_cache(16)
def _fade(rate: int) -> _Floats:
    """float64: the level of each sample of a hole, up to where there is silence."""
    ten = FULL * rate
    straight = 1.0 - STEP * (np.arange(round(SILENT * rate)) - ten) / ten
    fade: _Floats = np.minimum(straight, 1.0)
    fade.flags.writeable = False
    return fade
