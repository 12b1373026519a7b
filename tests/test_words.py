"""Tokens → words, by hand and against SentencePiece itself; rows that never mix."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.engine.pauses import Mask
from bridge.engine.rows import ModelFacts, RowArrays, arrays
from bridge.engine.words import ModelBroken, WordRows
from bridge.types import Heard, Word

PIECES = """<unk> <s> </s> <pad> ▁hello ▁wor ld , . ▁Yes ▁ <0xC3> <0xA9> ▁caf lo ▁? <0x07> ▁New▁York
    """.split() + [""]  # fmt: skip
ID = {piece: at for at, piece in enumerate(PIECES)}
B, P = 0, 3  # boundary, padding
LOUD, QUIET = 1e-2, 0.0
FRAME = 0.08  # s
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def facts(slots: int = 1, *, large: bool = False, heads: int = 4) -> ModelFacts:
    """stt-1b-en_fr, or stt-2.6b-en with its longer delay and its silence first."""
    if large:
        return ModelFacts("2.6b", slots, "", delay=2.5, prefix=24000, heads=0)
    return ModelFacts("1b", slots, "", delay=0.5, heads=heads)


@dataclass
class Step:
    """What a model gives in one step for one row."""

    token: int = P
    probability: float = 1.0
    energy: float = QUIET
    pause: float = 0.0
    ending: bool = False


def steps(spelt: str, probability: float = 1.0) -> list[Step]:
    """Of pieces parted by spaces; ``_`` is a padding, ``|`` a boundary."""
    ids = [{"_": P, "|": B}.get(piece, ID.get(piece, -1)) for piece in spelt.split()]
    assert -1 not in ids
    return [Step(token, probability) for token in ids]


def put(into: RowArrays, row: int, step: Step) -> None:
    into.active[row] = True
    into.tokens[row] = step.token
    into.probability[row] = step.probability
    into.energy[row] = step.energy
    into.pauses[row] = step.pause


def alone(stream: Sequence[Step], about: ModelFacts | None = None, patience: float = 0.0,
          pieces: Sequence[str] = PIECES) -> list[Heard | None]:  # fmt: skip
    """What one row hears, step by step; None where there was no news."""
    about = about or facts()
    rows = WordRows(about, pieces, patience=patience)
    block = arrays(1, 8, about.heads)
    heard = []
    for at, step in enumerate(stream):
        put(block, 0, step)
        block.fresh[0] = at == 0
        heard.append(rows.hear(block, np.array([step.ending])).get(0))
    return heard


def words(heard: Sequence[Heard | None]) -> list[Word]:
    return [word for one in heard if one for word in one.words]


def texts(spelt: str) -> list[str]:
    return [word.text for word in words(alone(steps(spelt)))]


def times(word: Word) -> tuple[float, float]:
    return round(word.start, 6), round(word.end, 6)


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelt", "expected"),
    [
        ("_ | ▁hello _ _ | ▁wor ld _", ["hello", "world"]),
        ("| ▁hello , | ▁wor ld . _", ["hello,", "world."]),
        ("▁Yes . ▁hello ▁wor ld _", ["Yes.", "hello", "world"]),
        ("▁caf <0xC3> <0xA9> _", ["café"]),
        ("▁ <0xC3> <0xA9> _", ["é"]),
        ("▁ _ ▁hello _", ["hello"]),  # a lone beginning is no word
        ("▁ ▁hello _", ["hello"]),
        ("▁wor _ ld _", ["wor", "ld"]),  # what was told is not taken back
        ("lo _", ["lo"]),
        ("▁hello _ ▁? _", ["hello", "?"]),  # French puts a space before it
        ("▁hello _ . _", ["hello", "."]),
        ("▁wor </s> ld _", ["wor", "ld"]),
        ("<s> </s> _", []),
        ("▁caf <0xC3> _", ["caf\ufffd"]),  # half a character
        ("<0xA9> <0xC3> <0xC3> <0xA9> _", ["\ufffd\ufffdé"]),
        ("▁hello <0x07> . _", ["hello."]),
        ("▁New▁York _", ["New York"]),
        ("▁hello _ _ _ _ _ _", ["hello"]),
        ("_ _ | | _ | _", []),
    ],
)
def test_pieces_become_words(spelt: str, expected: list[str]) -> None:
    assert texts(spelt) == expected


def test_a_piece_without_text_is_none() -> None:
    heard = alone([Step(ID["▁wor"]), Step(len(PIECES) - 1), Step(ID["ld"]), Step()])
    assert [word.text for word in words(heard)] == ["wor", "ld"]


@pytest.mark.parametrize("token", [-2, -1, len(PIECES), 8000])
def test_an_id_that_the_tokenizer_does_not_know_is_no_text(token: int) -> None:
    assert [w.text for w in words(alone([Step(4), Step(token), Step(4), Step()]))] == ["hello"] * 2


def test_padding_and_boundary_are_the_models_own() -> None:
    about = ModelFacts("x", 1, "", 0.5, padding=ID["lo"], boundary=ID["ld"])
    stream = steps("lo ld ▁wor lo ▁hello ld")
    assert [word.text for word in words(alone(stream, about))] == ["wor", "hello"]


@pytest.mark.parametrize("closer", ["_", "|", "▁wor"])
def test_a_word_is_told_in_the_step_that_completes_it(closer: str) -> None:
    heard = alone(steps(f"_ ▁hello , {closer}"))
    assert [[w.text for w in one.words] if one else None for one in heard[1:]] == [
        [], [], ["hello,"]
    ]  # fmt: skip


def test_until_then_it_is_a_guess() -> None:
    heard = alone(steps("▁ <0xC3> <0xA9> ▁wor ld _"))
    guesses = [[word.text for word in one.tentative] for one in heard if one]
    assert guesses == [[], [], ["é"], ["wor"], ["world"], []]
    assert heard[3] and [word.text for word in heard[3].words] == ["é"]


def test_the_last_step_says_what_is_open() -> None:
    heard = alone([*steps("▁hello _ ▁wor"), Step(ID["ld"], ending=True)])
    last = heard[-1]
    assert last and [word.text for word in last.words] == ["world"] and last.tentative == ()
    both = alone([*steps("▁hello"), Step(ID["▁wor"], ending=True)])[-1]
    assert both and [word.text for word in both.words] == ["hello", "wor"]
    assert words(alone([*steps("▁hello"), Step(ending=True)]))[0].text == "hello"
    assert alone([Step(ending=True)]) == [Heard(at=0.08, settled=0.08 - 0.5)]


# -- times ---------------------------------------------------------------------------------------


def test_times_of_the_small_model() -> None:
    heard = alone(steps("_ " * 9 + "| ▁hello _ _ _ | ▁wor ld , ▁Yes _"))
    # Token of step k: k frames of 80 ms less the delay of 0.5 s.
    assert [times(word) for word in words(heard)] == [(0.3, 0.38), (0.7, 0.94), (0.94, 1.02)]


def test_times_of_the_large_model() -> None:
    """Its first second is silence: 12.5 frames, of which 12 are whole when the audio begins."""
    stream = [Step()] * 40 + steps("▁wor ld _")
    (word,) = words(alone(stream, facts(large=True)))
    frame = 12 + 40
    assert word.start == pytest.approx(frame * FRAME - 1.0 - 2.5)
    assert word.end == pytest.approx((frame + 2) * FRAME - 1.0 - 2.5)


def test_no_word_begins_before_the_audio() -> None:
    heard = alone(steps("▁hello ▁Yes _ _ _ ▁wor ld . _"))
    assert [times(word) for word in words(heard)] == [(0, 0), (0, 0), (0, 0.14)]
    cut = alone([Step(ID["▁hello"], ending=True)])
    assert [times(word) for word in words(cut)] == [(0, 0)]


def test_a_word_that_is_cut_off_is_no_longer_than_a_second() -> None:
    stream = [Step()] * 10 + steps("▁hello" + " lo" * 20)
    (whole,) = words(alone([*stream, Step()]))
    assert times(whole) == (0.3, 0.3 + 21 * FRAME)
    stream[-1].ending = True
    assert times(words(alone(stream))[0]) == (0.3, 1.3)
    short = [Step()] * 10 + steps("▁hello")
    short[-1].ending = True
    assert times(words(alone(short))[0]) == (0.3, 0.38)


def test_a_model_that_repeats_itself_spells_no_word_for_ever() -> None:
    heard = alone(steps("▁hello" + " ," * 300 + " _"))
    said = words(heard)
    assert [len(word.text) for word in said] == [132, 128, 301 - 2 * 128]
    assert [times(word)[1] for word in said[:-1]] == [times(word)[0] for word in said[1:]]
    assert max(len(word.text) for one in heard if one for word in one.tentative) == 132


def test_how_far_it_has_listened_and_what_is_settled() -> None:
    small = alone([Step(energy=LOUD * 2**k) for k in range(4)])
    assert [round(one.at, 6) for one in small if one] == [0.08, 0.16, 0.24, 0.32]
    assert [round(one.settled, 6) for one in small if one] == [-0.42, -0.34, -0.26, -0.18]
    large = alone([Step(energy=LOUD)], facts(large=True))[0]
    assert large and large.at == pytest.approx(0.04) and large.settled == pytest.approx(-2.46)


def test_a_guess_ends_where_the_audio_is_settled() -> None:
    heard = alone([Step()] * 10 + steps("▁wor ld"))
    last = heard[-1]
    assert last and [times(word) for word in last.tentative] == [(0.3, 0.46)]
    assert last.settled == pytest.approx(0.46)


# -- confidence and broken models ----------------------------------------------------------------


def test_confidence_is_the_geometric_mean_of_the_pieces() -> None:
    stream = [Step(ID["▁wor"], 0.9), Step(ID["ld"], 0.4), Step(P, 0.01), Step(ID["▁Yes"], 0.5)]
    heard = alone(stream)
    assert words(heard)[0].confidence == pytest.approx(math.sqrt(0.9 * 0.4))
    assert heard[-1] and heard[-1].tentative[0].confidence == pytest.approx(0.5)


@pytest.mark.parametrize(("probability", "least", "most"), [(0, 0, 1e-9), (1.0000001, 1, 1)])
def test_confidence_stays_in_its_bounds(probability: float, least: float, most: float) -> None:
    (word,) = words(alone([Step(ID["▁Yes"], probability), Step()]))
    assert least <= word.confidence <= most


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["probability", "pauses"])
def test_a_broken_model_is_noticed(bad: float, where: str) -> None:
    rows = WordRows(facts(4), PIECES)
    block = arrays(4, 8, 4)
    block.active[:3] = True
    getattr(block, where)[3] = bad  # of a row that did not take part: means nothing
    rows.hear(block, np.zeros(4, np.bool_))
    getattr(block, where)[1:3] = bad
    with pytest.raises(ModelBroken) as e:
        rows.hear(block, np.zeros(4, np.bool_))
    assert str(e.value) == "the model's probabilities are not numbers in 2 of 3 rows"


def test_what_rows_hold_that_took_no_part_means_nothing() -> None:
    rows = WordRows(facts(2, heads=0), PIECES)
    block = arrays(2, 8, 0)
    for junk in (math.nan, math.inf, -1.0, 1e30):
        put(block, 0, Step(ID["▁hello"], energy=LOUD))
        block.tokens[1], block.probability[1], block.energy[1] = -2, junk, junk
        assert list(rows.hear(block, np.array([False, True]))) == [0]


# -- news ----------------------------------------------------------------------------------------


def news(stream: Sequence[Step]) -> list[int]:
    return [at for at, one in enumerate(alone(stream)) if one is not None]


def test_silence_is_told_about_once_a_second() -> None:
    assert news([Step()] * 100) == [11, 23, 35, 47, 59, 71, 83, 95]


@pytest.mark.parametrize("last", [Step(energy=LOUD), Step(ID["▁hello"])])
def test_for_twelve_seconds_after_speech_or_text_every_step_is_told(last: Step) -> None:
    told = news([Step()] * 14 + [last] + [Step()] * 300)
    assert told[:3] == [11, 14, 15]
    assert told[1:151] == list(range(14, 164))
    assert told[151:153] == [167, 179]


def test_steps_without_the_row_are_no_silence() -> None:
    rows, block, ending = WordRows(facts(), PIECES), arrays(1, 8, 4), np.zeros(1, np.bool_)
    put(block, 0, Step(ID["▁hello"]))
    rows.hear(block, ending)
    block.active[0] = False
    assert [rows.hear(block, ending) for _ in range(300)] == [{}] * 300
    put(block, 0, Step())
    assert list(rows.hear(block, ending)) == [0] and list(rows.hear(block, ending)) == [0]


def test_a_pause_is_handed_on() -> None:
    stream = [Step(ID["▁hello"]), Step(pause=0.25), Step(pause=0.75)]
    assert [one.pause for one in alone(stream) if one] == [0, 0.25, 0.75]


def test_a_row_without_words_is_stuck_once() -> None:
    loud = [Step(energy=LOUD * (1 + 3 * (k % 2))) for k in range(100)]
    heard = alone(loud, patience=2.0)
    # 2 s of speech and the 0.5 s after which its words would have come; then twice as much.
    assert [at for at, one in enumerate(heard) if one and one.stuck] == [31, 31 + 57]
    loud[31].ending = True
    assert not any(one.stuck for one in alone(loud[:32], patience=2.0) if one)


# -- rows ----------------------------------------------------------------------------------------


def test_what_an_evicted_leg_left_open_is_not_said_to_the_next() -> None:
    rows = WordRows(facts(), PIECES)
    block = arrays(1, 8, 4)
    ending = np.zeros(1, np.bool_)
    put(block, 0, Step(ID["▁hello"]))
    rows.hear(block, ending)
    block.fresh[0] = True
    put(block, 0, Step())
    assert rows.hear(block, ending) == {}


def scramble(block: RowArrays, random: np.random.Generator) -> Mask:
    """Leaves in every row what means nothing while the row takes no part; so is what it returns."""
    slots = len(block.active)
    block.fresh[:] = random.random(slots) < 0.3
    block.tokens[:] = random.integers(-2, len(PIECES) + 2, slots)
    junk = np.array([np.nan, np.inf, -np.inf, -1, 0, 1e-6, 1e-2, 1], np.float32)
    block.probability[:] = random.choice(junk, slots)
    block.energy[:] = random.choice(junk, slots)
    block.pauses[:] = random.choice(junk, block.pauses.shape)
    return random.random(slots) < 0.5


STREAM = st.lists(
    st.builds(
        Step,
        token=st.sampled_from([P, P, B, *range(len(PIECES)), -2]),
        probability=st.sampled_from([0.1, 0.5, 0.99]),
        energy=st.sampled_from([QUIET, 1e-6, 1e-3, LOUD]),
        pause=st.sampled_from([0.0, 0.3, 0.9]),
    ),
    min_size=1,
    max_size=25,
)


@given(
    calls=st.lists(st.lists(STREAM, min_size=1, max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    patience=st.sampled_from([0.0, 0.4]),
    large=st.booleans(),
    evict=st.booleans(),
)
@UNHURRIED
def test_a_row_hears_the_same_whatever_the_others_do(
    calls: list[list[list[Step]]], seed: int, patience: float, large: bool, evict: bool
) -> None:
    """Rows, each with one call after another, that step and pause at random."""
    if evict:
        patience = 0.0  # which an alarm in a leg's very last step would hand on
    about = facts(len(calls), large=large)
    rows = WordRows(about, PIECES, patience=patience)
    random = np.random.default_rng(seed)
    block = arrays(len(calls), 8, about.heads)
    queues = [[(call, at) for call in streams for at in range(len(call))] for streams in calls]
    got: list[list[Heard | None]] = [[] for _ in calls]
    while any(queues):
        block.active[:] = False
        ending = scramble(block, random)
        for row, queue in enumerate(queues):
            if queue and random.random() < 0.7:
                call, at = queue.pop(0)
                put(block, row, call[at])
                block.fresh[row], ending[row] = at == 0, at == len(call) - 1 and not evict
        heard = rows.hear(block, ending)
        assert set(heard) <= set(np.flatnonzero(block.active).tolist())
        for row in np.flatnonzero(block.active).tolist():
            got[row].append(heard.get(row))
    for streams, told in zip(calls, got, strict=True):
        expected = []
        for call in streams:
            last = Step(**{**call[-1].__dict__, "ending": not evict})
            expected += alone([*call[:-1], last], facts(large=large), patience)
        assert told == expected


@given(STREAM, st.booleans())
@UNHURRIED
def test_words_are_in_order_and_come_before_they_are_settled(
    stream: list[Step], large: bool
) -> None:
    heard = alone([*stream, Step(ending=True)], facts(large=large))
    said = words(heard)
    edges = [0.0] + [edge for word in said for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert all(0 <= word.confidence <= 1 and word.text.strip() == word.text for word in said)
    settled = -math.inf
    for one in filter(None, heard):
        assert all(word.end >= settled - 1e-9 for word in one.words)
        assert all(word.end <= max(0.0, one.settled) + 1e-9 for word in one.words)
        settled = one.settled


# -- against SentencePiece -----------------------------------------------------------------------


class Tokenizer:
    """A small SentencePiece model with Kyutai's special ids, trained on the spot."""

    def __init__(self) -> None:
        sentencepiece = pytest.importorskip("sentencepiece")
        lines = (
            """Hello, how are you today? I would like to speak with the manager, please.
        My number is five zero one two three four. Comment ça va ? C'est très gentil à vous.
        Déjà vu : un café naïf, s'il vous plaît !""".split("\n")
            * 20
        )
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=320, byte_fallback=True,
            unk_id=B, bos_id=1, eos_id=2, pad_id=P, character_coverage=0.98, minloglevel=2,
            hard_vocab_limit=False, num_threads=1,
        )  # fmt: skip
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        count = self.processor.get_piece_size()
        self.pieces: list[str] = [self.processor.id_to_piece(i) for i in range(count)]

    def words(self, ids: Sequence[int]) -> str:
        heard = alone([*map(Step, ids), Step(ending=True)], pieces=self.pieces)
        return " ".join(word.text for word in words(heard))

    def decoded(self, ids: Sequence[int]) -> str:
        """SentencePiece's own text, with single spaces and without control characters."""
        text = " ".join(self.processor.decode(list(ids)).split())
        return "".join(c for c in text if c >= " " and not "\x7f" <= c <= "\x9f")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@given(text=st.text(st.sampled_from("ehlotwéçàïñ日😀,.?!' 5A"), max_size=30), data=st.data())
@UNHURRIED
def test_nothing_of_a_text_is_lost_or_said_twice(
    tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    """Encoded, with boundaries and paddings between its words, and back."""
    ids: list[int] = []
    for token in tokenizer.processor.encode(text):
        if tokenizer.pieces[token].startswith("▁"):
            ids += data.draw(st.lists(st.sampled_from([P, B]), max_size=3))
        ids.append(token)
    assert tokenizer.words(ids) == tokenizer.decoded([i for i in ids if i not in (B, P)])


@given(st.lists(st.integers(4, 400), max_size=20))
@UNHURRIED
def test_any_pieces_are_what_sentencepiece_makes_of_them(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    """Also bytes that are no UTF-8."""
    ids = [i for i in ids if i < len(tokenizer.pieces)]
    got, decoded = tokenizer.words(ids), tokenizer.decoded(ids)
    assert got.replace(" ", "") == decoded.replace(" ", "")
    assert len(got.split()) >= len(decoded.split())
