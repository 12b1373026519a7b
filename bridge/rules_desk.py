"""Rules put together: events of calls on one side, what switches and webhooks do on the other.

Every firing becomes an event `rule.fired` per action, numbered when the action has been done or
has failed; the call's end waits for it. Actions of one call are done one after the other, calls do
not wait for each other, and beyond [rules] queue firings are told as failed at once. An action is
tried once: what comes late is for a call that has gone on. Its deadline is the link's (ami.timeout,
esl.timeout).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from bridge import rules_actions
from bridge.config import RuleSettings, Settings, rule_from_dict
from bridge.config_rules import ACTIONS, Action, CallWebhook, HangUp, RaiseEvent, SetVariable
from bridge.errors import ConfigError, DeliveryError
from bridge.metrics import Metrics
from bridge.pbx.ami import AmiLink
from bridge.pbx.esl import EslLink
from bridge.pbx.esl_text import is_channel
from bridge.rules import Rulebook
from bridge.rules_text import Pattern, phrase
from bridge.rules_types import Firing, Place, Rule
from bridge.switchboard import Switchboard
from bridge.types import CallEvent, RuleFired

log = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["done", "failed", "dry_run"]
OUTCOMES: tuple[Outcome, ...] = ("done", "failed", "dry_run")
CALL_QUEUE = 32  # firings of one call that wait


class BadRule(ConfigError):
    """A rule that came by HTTP cannot be had."""


class Rules:
    """All rules of a server. `take` gets every event, after the sinks."""

    def __init__(
        self,
        settings: Settings,
        switchboard: Switchboard,
        metrics: Metrics,
        ami: AmiLink | None,
        esl: EslLink | None,
    ) -> None:
        self.counters: Counter[tuple[str, Outcome]] = Counter()
        self.errors = 0  # faults of ours
        self._settings = settings
        self._switchboard = switchboard
        self._ami, self._esl = ami, esl
        self._book = Rulebook([made(rule) for rule in settings.rule])
        self._queues: dict[str, deque[Firing]] = {}  # by call
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0  # firings, with those being done
        metrics.watch("rules_fired_total", "What rules did.", self._read, ["action", "outcome"],
                      "counter")  # fmt: skip
        metrics.gauge("rules_waiting", "Firings that wait.", lambda: self._waiting)

    def _read(self) -> dict[tuple[str, ...], float]:
        return {(a, o): float(self.counters[a, o]) for a in ACTIONS for o in OUTCOMES}

    def add(self, call_id: str, given: Mapping[str, Any]) -> list[str]:
        """A rule for one call; the names of all such. Raises `BadRule`, LookupError, ValueError."""
        try:
            rule = rule_from_dict(dict(given))
            self._settings.check_rules([rule])
        except ConfigError as e:
            raise BadRule(e.problems) from None
        except ValueError as e:
            raise BadRule([str(e)]) from None
        call_id, up = self._found(call_id)
        return self._book.add(call_id, made(rule), up=up)

    def _found(self, id: str) -> tuple[str, bool]:
        """A call's id, and whether it is up; `id` may be the UUID of one that is expected.

        Raises LookupError where it is neither.
        """
        if id in self._switchboard.calls:
            return id, True
        expected = self._switchboard.announced.call_of(id)
        if expected is None:
            raise LookupError("no call with this id is up or announced; GET /calls lists the calls")
        return expected, expected in self._switchboard.calls

    def expire(self) -> None:
        """Let time pass: rules of calls that will not come go."""
        if self._book.early:
            self._book.expect(self._switchboard.announced.calls())

    def of(self, call_id: str) -> dict[str, object]:
        """A call's own rules, and which of all are spent. Raises LookupError."""
        call_id, _ = self._found(call_id)
        own, spent = self._book.of(call_id)
        return {"rules": [rule.shown() for rule in own], "spent": spent}

    def remove(self, call_id: str, name: str) -> None:
        """Take a rule of one call away; what it has fired goes on. Raises LookupError."""
        call_id, _ = self._found(call_id)
        if not self._book.remove(call_id, name):
            raise LookupError("the call has no rule of its own of this name")

    def take(self, event: CallEvent) -> None:
        """Hear an event, and have done what it fires. Never raises: the call goes on."""
        try:
            for firing in self._book.hear(event):
                self._queue(firing)
        except Exception:
            self.errors += 1
            log.exception("call %s: rules failed at an event", event.call.id)

    def _queue(self, firing: Firing) -> None:
        call_id = firing.cause.call.id
        waiting = self._queues.get(call_id)
        if self._waiting >= self._settings.rules.queue or len(waiting or ()) >= CALL_QUEUE:
            reason = "too many firings wait (rules.queue)"
            for action in firing.rule.actions:
                self._tell(firing, action, "failed", reason)
            return
        self._waiting += 1
        if (call := self._switchboard.calls.get(call_id)) is not None:
            call.hold()
        if waiting is not None:
            waiting.append(firing)
            return
        self._queues[call_id] = deque([firing])
        task = asyncio.create_task(self._work(call_id), name="rules")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, call_id: str) -> None:
        """Do one call's firings in their order, until there are none."""
        waiting = self._queues[call_id]
        call = self._switchboard.calls.get(call_id)
        try:
            while waiting:
                try:
                    await self._perform(waiting[0])
                except Exception:
                    self.errors += 1
                    log.exception("call %s: a rule's actions failed", call_id)
                waiting.popleft()
                self._waiting -= 1
                if call is not None:
                    call.release()
        finally:
            self._waiting -= len(waiting)
            del self._queues[call_id]

    async def _perform(self, firing: Firing) -> None:
        dry = firing.rule.dry_run or self._settings.rules.dry_run
        failed = ""
        for action in firing.rule.actions:
            if dry:
                self._tell(firing, action, "dry_run")
            elif failed:
                self._tell(firing, action, "failed", f"{failed} before it failed")
            else:
                try:
                    await self._do(firing, action)
                except DeliveryError as e:
                    failed = action.do
                    self._tell(firing, action, "failed", str(e))
                else:
                    self._tell(firing, action, "done")

    async def _do(self, firing: Firing, action: Action) -> None:
        """Raises `DeliveryError`, whose text says why it was not done, or may not have been."""
        call_id = firing.cause.call.id
        match action:
            case CallWebhook():
                return  # its outbox has the event as soon as it is told
            case HangUp(target="bridge"):
                if not self._switchboard.hang_up(call_id):
                    raise DeliveryError("the call has ended")
                return
            case RaiseEvent():
                return await self._raise(firing, action)
        call = self._switchboard.calls.get(call_id)
        info = call.info if call is not None else firing.cause.call
        legs = tuple(call.legs) if call is not None else ()
        names = rules_actions.channels(info, legs, firing.cause.leg, action.target)
        if not names:
            raise DeliveryError(
                "the channel is not known: nobody announced it for this leg (CALLSCRIBE_ID, "
                "CallscribeLeg, or POST /calls)"
            )
        uuid = next(filter(is_channel, names), "")
        if self._esl is not None and uuid:
            return await self._freeswitch(self._esl, firing, action, uuid)
        if self._ami is None:
            raise DeliveryError("the call is no FreeSWITCH channel, and there is no [ami] section")
        folder = self._settings.rules.recordings
        await self._ami.action(*rules_actions.ami(action, firing, names[0], folder))

    async def _raise(self, firing: Firing, action: RaiseEvent) -> None:
        if self._ami is not None:
            await self._ami.action(*rules_actions.ami(action, firing, "", ""))
        if self._esl is not None:
            headers = [
                ("Channel-UUID" if key == "Channel" else key, text)
                for key, text in rules_actions.told(firing)
            ]
            await self._esl.event(f"callscribe::{action.event}", headers)

    async def _freeswitch(self, esl: EslLink, firing: Firing, action: Action, channel: str) -> None:
        if isinstance(action, SetVariable):
            value = rules_actions.value(action, firing)
            return await esl.setvar(channel, action.variable, value)
        folder = self._settings.rules.recordings
        await esl.api(rules_actions.esl(action, firing, channel, folder))

    def _tell(self, firing: Firing, action: Action, outcome: Outcome, reason: str = "") -> None:
        self.counters[action.do, outcome] += 1
        cause, rule = firing.cause, firing.rule
        if outcome == "failed":
            log.warning("call %s: rule %s: %s failed: %s", cause.call.id, rule.name, action.do,
                        reason)  # fmt: skip
        call = self._switchboard.calls.get(cause.call.id)
        if call is None:
            return
        body = RuleFired(
            rule=rule.name,
            action=action.do,
            outcome=outcome,
            reason=reason,
            turn=getattr(cause.body, "turn", 0),
            cause=cause.seq,
            matched=firing.matched,
            text=" ".join(word.text for word in firing.words),
            words=firing.words,
            webhook=action.webhook if isinstance(action, CallWebhook) and outcome == "done" else "",
        )
        call.fired(cause.leg, body)

    async def close(self) -> None:
        """Give up what has not been done. Idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def made(settings: RuleSettings) -> Rule:
    """A rule as the settings have it."""
    return Rule(
        name=settings.name,
        phrases=tuple(phrase(text) for text in settings.words or ()),
        pattern=Pattern(settings.regex) if settings.regex else None,
        leg=settings.leg,
        on=settings.on,
        min_confidence=settings.min_confidence,
        once=settings.once,
        dry_run=settings.dry_run,
        place=Place(**settings.when.model_dump()) if settings.when is not None else Place(),
        actions=tuple(settings.actions),
    )
