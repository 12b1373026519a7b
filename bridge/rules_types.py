"""What a rule is, and what it is when one fires. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from bridge.pbx.ari_rules import endpoint, extension
from bridge.rules_text import Pattern, Phrase
from bridge.types import CallEvent, CallInfo, LegName, Word

if TYPE_CHECKING:
    from bridge.config_rules import Action


@dataclass(frozen=True, slots=True)
class Place:
    """Calls of which all is so; what is empty does not matter.

    `ingress`, `context` and `endpoint` (PJSIP/trunk) take ``*`` and ``?``; `exten`, `caller` and
    `callee` are as an extension in the dialplan: 100, or a pattern such as _2XX.
    """

    ingress: str = ""
    context: str = ""
    endpoint: str = ""
    exten: str = ""
    caller: str = ""
    callee: str = ""

    def holds(self, call: CallInfo) -> bool:
        """As much as is known of the call now."""
        return (
            (not self.ingress or fnmatchcase(call.ingress, self.ingress))
            and (not self.context or fnmatchcase(call.context, self.context))
            and (not self.endpoint or fnmatchcase(endpoint(call.channel), self.endpoint))
            and (not self.exten or extension(self.exten, call.exten))
            and (not self.caller or extension(self.caller, call.caller))
            and (not self.callee or extension(self.callee, call.callee))
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What must be said, by whom, how surely, and what is then to be done."""

    name: str
    phrases: tuple[Phrase, ...] = ()
    pattern: Pattern | None = None
    leg: LegName | Literal["any"] = "any"
    on: Literal["final", "partial"] = "final"
    min_confidence: float = 0.0  # of each word
    once: bool = True  # per call
    dry_run: bool = False
    place: Place = Place()
    actions: tuple[Action, ...] = ()

    def shown(self) -> dict[str, object]:
        """As one would write it; what is left to the defaults is left out."""
        told: dict[str, object] = {"name": self.name}
        if self.phrases:
            told["words"] = [" ".join(phrase) for phrase in self.phrases]
        if self.pattern is not None:
            told["regex"] = self.pattern.text
        for name, usual in (("leg", "any"), ("on", "final"), ("min_confidence", 0.0),
                            ("once", True), ("dry_run", False)):  # fmt: skip
            if getattr(self, name) != usual:
                told[name] = getattr(self, name)
        when = {name: value for name, value in asdict(self.place).items() if value}
        if when:
            told["when"] = when
        told["actions"] = [action.model_dump(exclude_defaults=True) for action in self.actions]
        return told


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule's condition has come true.

    `matched` is the phrase, or what the pattern matched: its first group, if it has one.
    """

    rule: Rule
    cause: CallEvent
    matched: str
    words: tuple[Word, ...]
