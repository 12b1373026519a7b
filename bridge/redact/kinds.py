"""What can be redacted."""

from __future__ import annotations

from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["card", "ssn", "phone", "email", "number"]
KINDS: tuple[Kind, ...] = ("card", "ssn", "phone", "email", "number")
"""Where two things are found in the same words, the first of these names them.

``number`` is any number of six digits or more: a recogniser that mishears one digit of a card
makes it a number that is no card's.
"""
DIGITS = frozenset[Kind](("card", "ssn", "phone", "number"))
