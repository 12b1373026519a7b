"""Settings of rules: what must be said, what is then done, and what rules may do at all.

A rule can only do what is on the lists of [rules]; `check` says so at the start, and again for a
rule that comes by HTTP. Names and values that go into a command of the switch are of characters
that mean nothing to it, to a dialplan or to a shell.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bridge.config_fields import Section
from bridge.rules_text import Pattern, phrase

ACTIONS = ("setvar", "redirect", "hangup", "record", "stop_record", "userevent", "webhook")
FORMATS = ("wav", "WAV", "gsm", "ulaw", "alaw", "sln")  # FreeSWITCH's is wav
OURS = frozenset(
    ["CALLSCRIBE"]
    + [f"CALLSCRIBE_{name}" for name in "ID CALL TEXT STATUS CONFIDENCE LANGUAGE CONSENT".split()]
)
_CONTEXT = r"^[A-Za-z0-9_.-]{1,79}$"
# Neither $ { } [ ] \ ; & | < > nor quotes, which dialplans and shells evaluate, nor line ends.
_VALUE = re.compile(r"[\w .,:@/+*#?!=-]{0,200}")

Party: TypeAlias = Literal["leg", "call"]  # the channel of who said it, or the call's


class SetVariable(Section):
    """A channel variable; no value: what was said, in safe characters."""

    do: Literal["setvar"]
    variable: str = Field(pattern="^[A-Za-z_][A-Za-z0-9_]{0,79}$")
    value: str | None = None
    target: Party = "leg"

    @field_validator("variable")
    @classmethod
    def _free(cls, value: str) -> str:
        if value.lstrip("_") in OURS:
            raise ValueError(f"the name {value} has a meaning already; expected one of your own")
        return value

    @field_validator("value")
    @classmethod
    def _safe(cls, value: str | None) -> str | None:
        if value is not None and not _VALUE.fullmatch(value):
            raise ValueError(
                "expected at most 200 letters, digits, spaces and . , : @ / + * # ? ! = - _; "
                "dialplans evaluate others"
            )
        return value


class Redirect(Section):
    """Send the channel elsewhere in the dialplan."""

    do: Literal["redirect"]
    context: str = Field(pattern=_CONTEXT)
    exten: str = Field(default="s", pattern="^[A-Za-z0-9*#+_.@-]{1,79}$")
    priority: str = Field(default="1", pattern="^([1-9][0-9]{0,5}|[A-Za-z][A-Za-z0-9_-]{0,39})$")
    target: Party = "leg"

    @field_validator("priority", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return str(value) if type(value) is int else value


class HangUp(Section):
    """End a channel, or only the bridge's side of the call, after which the dialplan goes on."""

    do: Literal["hangup"]
    target: Literal["leg", "call", "bridge"] = "leg"
    cause: int = Field(default=16, ge=1, le=127)  # Q.850


class Record(Section):
    """Have the switch record the channel's call into [rules] recordings."""

    do: Literal["record"]
    file: str = "{call_id}.wav"
    target: Party = "leg"

    @field_validator("file")
    @classmethod
    def _template(cls, value: str) -> str:
        name, _, suffix = value.replace("{call_id}", "0", 1).rpartition(".")
        if "{call_id}" not in value or not re.fullmatch("[A-Za-z0-9_-]{1,64}", name):
            raise ValueError(
                'expected "{call_id}", with letters, digits, - and _ about it, and a format, '
                'as "{call_id}-complaint.wav"'
            )
        if suffix not in FORMATS:
            raise ValueError(f"expected one of .{', .'.join(FORMATS)} at its end")
        return value


class StopRecording(Section):
    """End what `record` began."""

    do: Literal["stop_record"]
    target: Party = "leg"


class RaiseEvent(Section):
    """A UserEvent of its own for Asterisk's listeners; with FreeSWITCH, callscribe::<event>."""

    do: Literal["userevent"]
    event: str = Field(default="CallscribeRule", pattern="^[A-Za-z][A-Za-z0-9_-]{0,63}$")

    @field_validator("event")
    @classmethod
    def _not_ours(cls, value: str) -> str:
        if value.casefold() in ("transcript", "callscribeleg", "callscribetap"):
            raise ValueError(f"the name {value} has a meaning already; expected one of your own")
        return value


class CallWebhook(Section):
    """The webhook of that name gets the event, whatever its `events` are."""

    do: Literal["webhook"]
    webhook: str = Field(min_length=1)


Action: TypeAlias = (
    SetVariable | Redirect | HangUp | Record | StopRecording | RaiseEvent | CallWebhook
)


def _known(value: object) -> object:
    """In one sentence what pydantic says in one of each kind."""
    if isinstance(value, Section):
        return value
    if not isinstance(value, dict) or value.get("do") not in ACTIONS:
        raise ValueError(f'expected {{ do = "…", … }} with one of {", ".join(ACTIONS)}')
    return value


AnyAction = Annotated[Action, Field(discriminator="do")]
Checked = Annotated[AnyAction, BeforeValidator(_known)]


class WhenSettings(Section):
    """Calls of which all is so; see `bridge.rules.Place`."""

    ingress: str = ""
    context: str = ""
    endpoint: str = ""
    exten: str = ""
    caller: str = ""
    callee: str = ""


class RuleSettings(Section):
    """[[rule]]"""

    name: str = Field(pattern="^[A-Za-z0-9_.-]{1,64}$")
    words: list[str] | None = Field(default=None, max_length=200)
    regex: str = ""
    leg: Literal["caller", "callee", "any"] = "any"
    on: Literal["final", "partial"] = "final"
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    once: bool = True
    dry_run: bool = False
    when: WhenSettings | None = None
    actions: list[Checked] = Field(min_length=1, max_length=8)

    @model_validator(mode="after")
    def _said(self) -> RuleSettings:
        if bool(self.words) == bool(self.regex):
            raise ValueError('expected either words = ["…"] or regex = "…"')
        for text in self.words or ():
            phrase(text)
        if self.regex:
            Pattern(self.regex)
        return self


class RulesSettings(Section):
    """[rules]: what rules may do."""

    allow_actions: list[Literal[
        "setvar", "redirect", "hangup", "record", "stop_record", "userevent", "webhook"
    ]] = ["setvar", "userevent", "webhook"]  # fmt: skip
    allow_contexts: list[Annotated[str, Field(pattern=_CONTEXT)]] = Field(default_factory=list)
    allow_variables: list[str] = ["CALLSCRIBE_*"]  # with * and ?
    recordings: str = ""  # a directory, as the switch sees it
    dry_run: bool = False  # of all rules
    queue: int = Field(default=1000, ge=1)  # firings that wait or are being done

    @field_validator("recordings")
    @classmethod
    def _directory(cls, value: str) -> str:
        parts = value.split("/")
        if value and not (re.fullmatch("/[A-Za-z0-9_./-]{1,400}", value) and ".." not in parts):
            raise ValueError(
                "expected an absolute path of letters, digits, . _ and -, and without .. in it; "
                "switches split or evaluate other characters"
            )
        return value.rstrip("/")


def check(
    rules: Sequence[RuleSettings],
    allowed: RulesSettings,
    *,
    ami: bool,
    esl: bool,
    webhooks: Collection[str],
) -> None:
    """What can be known before anybody speaks. Raises ValueError for the first that cannot be."""
    names = [rule.name for rule in rules]
    for rule in rules:
        if names.count(rule.name) > 1:
            raise ValueError(f"rule: two are called {rule.name!r}; give each a name of its own")
        for action in rule.actions:
            wrong = _forbidden(action, allowed) or _impossible(action, ami, esl, webhooks)
            if wrong:
                raise ValueError(f"rule {rule.name!r}: {wrong}")


def _forbidden(action: Action, allowed: RulesSettings) -> str:
    """Why the lists of [rules] do not allow this; empty where they do."""
    if action.do not in allowed.allow_actions:
        return f"may not {action.do}; add it to rules.allow_actions if rules are to do that"
    match action:
        case Redirect() if action.context not in allowed.allow_contexts:
            return (
                f"may not redirect to {action.context}; add the context to rules.allow_contexts "
                "if what callers say may lead there"
            )
        case SetVariable() if not any(
            fnmatchcase(action.variable, pattern) for pattern in allowed.allow_variables
        ):
            return (
                f"may not set {action.variable}; rename it, as CALLSCRIBE_{action.variable}, or "
                "add it to rules.allow_variables"
            )
        case Record() if not allowed.recordings:
            return "record needs rules.recordings, the directory that the switch records into"
    return ""


def _impossible(action: Action, ami: bool, esl: bool, webhooks: Collection[str]) -> str:
    """What the configuration lacks for this; empty where nothing."""
    match action:
        case CallWebhook() if action.webhook not in webhooks:
            known = ", ".join(sorted(webhooks)) or "none has a name"
            return f"there is no webhook {action.webhook!r} ([[webhook]] with name = …: {known})"
        case CallWebhook():
            return ""
        case HangUp(target="bridge"):
            return ""
        case _ if not ami and not esl:
            return f"{action.do} needs an [ami] section, or [esl] for FreeSWITCH"
    return ""
