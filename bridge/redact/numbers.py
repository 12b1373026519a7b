"""Which digits of a run are a card's, a telephone's, a social security number's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bridge.redact.kinds import Kind
from bridge.redact.spoken import Group, Run

CARD = (12, 19)  # digits, ISO/IEC 7812
SSN = 9
PHONE = (8, 15)  # E.164; shorter ones are known in one town only
NUMBER = 6  # digits from which on `number` takes any

# Prefixes and lengths in use. A card that is part of a longer run must look like one of them: of
# sixteen digits any, a tenth passes Luhn's test.
_BRANDS = tuple(
    (re.compile(prefix), frozenset(lengths))
    for prefix, lengths in (
        ("4", (16, 19)),  # Visa
        ("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
        ("3[47]", (15,)),  # American Express
        ("30[0-5]|309|3[689]", range(14, 20)),  # Diners
        ("35(2[89]|[3-8])", range(16, 20)),  # JCB
        ("6011|64[4-9]|65|62|81", range(16, 20)),  # Discover, UnionPay
        ("50|5[6-8]|6[0378]|220[0-4]", range(16, 20)),  # Maestro, Mir
    )
)

Found = tuple[int, int, Kind]
"""Digits `first` to before `end` of a run."""


def find(run: Run, kinds: frozenset[Kind], regions: Sequence[str], *, ssn: bool) -> list[Found]:
    """What a run holds, as ranges of its digits. `ssn`: somebody has just spoken of such a number.

    A card is sought anywhere in it, for an expiry date may follow in the same breath. The others
    have no check digit: they are taken when the run, or a stretch of it that is left or set apart
    ("and"), is one from end to end.
    """
    digits = "".join(group.digits for group in run.groups)
    found: list[Found] = []
    if "card" in kinds:
        found += [(i, j, "card") for i, j in _cards(digits)]
    for i, j, groups in _stretches(run, found):
        text = digits[i:j]
        if "ssn" in kinds and is_ssn(text, groups):
            found.append((i, j, "ssn"))
        elif "phone" in kinds and is_phone(text, groups, regions):
            found.append((i, j, "phone"))
    at = 0
    for group in run.groups:
        end = at + len(group.digits)
        found += [(at, end, kind) for kind in _alone(group, kinds, regions)]
        at = end
    if ssn and "ssn" in kinds and not found and len(digits) > SSN:
        found += [(i, i + SSN, "ssn") for i in range(len(digits) - SSN + 1) if _ssn(digits[i:][:9])]
    if "number" in kinds and len(digits) >= NUMBER:
        found.append((0, len(digits), "number"))
    return found


def _cards(digits: str) -> Iterator[tuple[int, int]]:
    from stdnum import luhn

    if CARD[0] <= len(digits) <= CARD[1] and luhn.is_valid(digits):
        yield 0, len(digits)
    for i in range(len(digits) - CARD[0] + 1):
        for brand, lengths in _BRANDS:
            if brand.match(digits, i) is None:
                continue
            for n in lengths:
                if i + n <= len(digits) and luhn.is_valid(digits[i : i + n]):
                    yield i, i + n


def _stretches(run: Run, cards: Sequence[Found]) -> list[tuple[int, int, list[Group]]]:
    """The run, its parts between cards, and those set apart by "and": (digits from, to, groups)."""
    taken = {d for i, j, _ in cards for d in range(i, j)}
    whole: list[tuple[int, list[Group]]] = [(0, [])]
    apart: list[tuple[int, list[Group]]] = [(0, [])]
    at = 0
    for group in run.groups:
        cut = group.plus or any(d in taken for d in range(at, at + len(group.digits)))
        if cut:
            whole.append((at, []))
        if cut or not group.joined:
            apart.append((at, []))
        at += len(group.digits)
        if any(d in taken for d in range(at - len(group.digits), at)):
            whole.append((at, []))
            apart.append((at, []))
        else:
            whole[-1][1].append(group)
            apart[-1][1].append(group)
    return [
        (start, start + sum(len(g.digits) for g in groups), groups)
        for start, groups in {(s, id(g)): (s, g) for s, g in whole + apart}.values()
        if groups
    ]


def _alone(group: Group, kinds: frozenset[Kind], regions: Sequence[str]) -> Iterator[Kind]:
    """What one written word is by itself, whatever stands beside it: 123-45-6789."""
    if len(group.sizes) < 2:
        return
    if "ssn" in kinds and is_ssn(group.digits, [group]):
        yield "ssn"
    elif "phone" in kinds and is_phone(group.digits, [group], regions):
        yield "phone"


def is_ssn(digits: str, groups: Sequence[Group]) -> bool:
    """Nine digits that may be one, and not one word 123456789, or 12345-6789 as a ZIP code."""
    word = groups[0].sizes if len(groups) == 1 else ()
    return len(digits) == SSN and word not in ((9,), (5, 4)) and _ssn(digits)


def _ssn(digits: str) -> bool:
    from stdnum.us import ssn

    return bool(ssn.is_valid(digits))


def is_phone(digits: str, groups: Sequence[Group], regions: Sequence[str]) -> bool:
    """A number that can be dialled from one of the regions, area code included."""
    if not PHONE[0] <= len(digits) <= PHONE[1]:
        return False
    if groups[0].plus:
        return _dialled(f"+{digits}", "ZZ")
    return any(_national(digits, region) for region in regions)


def _national(digits: str, region: str) -> bool:
    import phonenumbers

    prefix = phonenumbers.ndd_prefix_for_region(region, True) or ""
    code = str(phonenumbers.country_code_for_region(region))
    spelt = code == "1" or digits.startswith((prefix, "00", "011")) or digits.startswith(code)
    return spelt and _dialled(digits, region)


def _dialled(text: str, region: str) -> bool:
    import phonenumbers

    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(text, region)))
    except phonenumbers.NumberParseException:
        return False
