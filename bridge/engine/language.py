"""Which of a model's languages is a final in? By the text alone; the owner of py3langid.

py3langid is a naive Bayes over byte n-grams whose model comes in its wheel: nothing is fetched.
What counts is by how much the log odds of the best language exceed those of the next. Measured
with py3langid 0.4 on English and French telephone sentences, 35 and 35 of them and 40 and 34
spellings of single words, and on 54 and 56 more that were chosen to be hard (names, numbers, words
that both have; half of them without capitals and punctuation):

    share of          sentences        single words     hard ones
    right / unsure    0.93 / 0.07      0.34 / 0.66      0.84 / 0.16

and none wrong with `SURE`: the largest error is a French "Correct." at 2.6. A single "yes" or "oui"
is not told. A call takes 10 to 50 µs; loading takes 0.8 s, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from bridge.errors import BridgeError

SURE = 4.0  # nats between the best and the next
ENOUGH = 500  # characters; more cannot change it, and nobody may make this slow
ROOM = 70  # MB, while loading


def tell(text: str, among: Sequence[str]) -> str:
    """The language of `text`, one of the ISO 639-1 codes `among`; empty when it cannot be told.

    With one language there is nothing to tell and nothing is loaded. The first call with several
    loads the model: call `load` before, where that must not hold anybody up. Raises as `load`.
    """
    if len(among) < 2:
        return among[0] if among else ""
    (best, score), (_, next_score), *_ = load(tuple(among))(text[:ENOUGH])
    return best if score - next_score >= SURE else ""


@lru_cache(maxsize=4)
def load(among: tuple[str, ...]) -> Callable[[str], list[tuple[str, float]]]:
    """A function from text to (language, log odds), best first. Blocks for most of a second.

    Raises `BridgeError` for a language that py3langid does not know, without py3langid, and
    without room for the temporary file (without a name) into which it unpacks its model.
    """
    try:
        from py3langid.langid import (  # type: ignore[import-untyped, unused-ignore]
            MODEL_FILE,
            LanguageIdentifier,
        )

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    except ImportError as e:
        raise BridgeError(
            "to tell languages apart py3langid is needed: pip install 'callscribe[kyutai]'"
        ) from e
    except OSError as e:
        raise BridgeError(
            f"to tell languages apart {ROOM} MB of room for a temporary file are needed: {e}"
        ) from e
    known = set(identifier.labels)
    for code in among:
        if code not in known:
            raise BridgeError(f"whether a text is {code!r} cannot be told: no such language")
    identifier.set_languages(list(among))
    rank: Callable[[str], list[tuple[str, float]]] = identifier.rank
    return rank
