"""OpenAI's Realtime API, as far as it transcribes: /v1/realtime. Pure.

Source: the types of openai-python. Theory of operation: one leg for all of a
session, from the first audio on. An *item* is what one commit takes: with turn detection the end
of a turn commits, without it the client does, and the recogniser is asked for everything before
that (`LegAsked`). Items are asked for in order, so words that are heard belong to the first that is
still being asked for, or else to the one that is open.

A ``delta`` is a word, told when it is certain, mostly before its item is committed; the deltas of
an item make its transcript. An item never ends sooner than the bridge's own turns do
(``turns.min_pause``), later if ``silence_duration_ms`` says so. ``threshold`` is the recogniser's
business.
"""

from __future__ import annotations

import binascii
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.ingress.media_socket import (
    BUSY,
    NORMAL,
    Opening,
    SocketError,
    SocketEvent,
    SocketRules,
    parse,
    words,
)
from bridge.ingress.pcm import STOPPED, Client, Pcm
from bridge.ingress.realtime_item import Item
from bridge.ingress.realtime_session import FORMATS, BadEvent, Session, updated
from bridge.types import CallEvent, EndOfTurn, Heard, LegName, Pressed, Word

TRANSCRIPTION = "conversation.item.input_audio_transcription."
SHORTEST = 0.1  # s; theirs: less is an empty buffer
MAX_ASKED = 64  # commits under way
MAX_WORDS = 20_000  # of an item; two hours of speech that nobody commits


class Realtime(Client):
    """One session."""

    idle = 1800.0  # a session may wait for its speaker; it takes a slot with its first audio

    def __init__(self, opening: Opening, rules: SocketRules, now: float) -> None:
        super().__init__(opening, rules, now)
        self.next_at = now + self.idle
        self._beta = "realtime=v1" in opening.headers.get("openai-beta", "")
        self._id = "sess_" + opening.id.replace("-", "")
        self._session = Session()
        self._pcm = Pcm()
        self._events = self._items = 0
        self._last: str | None = None  # the item before
        self._item = self._new_item(0.0)
        self._asked: deque[Item | None] = deque()  # None: whatever is open, if its turn ends
        self._speaking = self._turn_over = False
        self._tell_session("created")

    # -- in --------------------------------------------------------------------------------------

    def text(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        """An event that is wrong costs itself."""
        event_id: str | None = None
        try:
            said = parse(message)
            event_id = words(said, "event_id") or None
            events = self._understand(said, now)
        except SocketError as e:
            self._error(BadEvent(str(e), None, "invalid_json"), event_id)
        except BadEvent as e:
            self._error(e, event_id)
        else:
            if self._started:
                self.open(now)
            return events
        return ()

    def binary(self, message: bytes, now: float) -> Sequence[SocketEvent]:
        self._error(BadEvent("events are text, audio too: input_audio_buffer.append"), None)
        return ()

    def _understand(self, said: Mapping[str, Any], now: float) -> Sequence[SocketEvent]:
        kind = said.get("type")
        match kind:
            case "input_audio_buffer.append":
                return self._append(said.get("audio"), now)
            case "input_audio_buffer.commit" | "input_audio_buffer.clear":
                if len(self._asked) >= MAX_ASKED:
                    raise BadEvent("too many commits under way", None, "rate_limit_exceeded")
                return self._commit() if kind[19:] == "commit" else self._clear()
            case "session.update" | "transcription_session.update":
                self._beta = kind == "transcription_session.update"
                self._update(said.get("session"))
                return ()
        raise BadEvent("this event is none of a transcription session's", "type", "unknown_event")

    def _append(self, audio: object, now: float) -> Sequence[SocketEvent]:
        try:
            data = binascii.a2b_base64(audio, strict_mode=True)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise BadEvent("expected base64", "audio") from None
        (samples,) = self._pcm.feed(data)
        return self.audio(now, samples) if len(samples) else ()

    def _update(self, wanted: object) -> None:
        before, self._session = self._session, updated(self._session, wanted, beta=self._beta)
        _, encoding, rate = FORMATS[self._session.format]
        if self._session.format != before.format:
            self._pcm = Pcm(encoding)
            self.change_rate(rate)
        self.stopped = STOPPED if self._session.vad is not None else 0.0
        self._tell_session("updated")

    def _commit(self) -> Sequence[SocketEvent]:
        item, sent = self._item, self.clock / self.rate
        if sent - item.since < SHORTEST - 1e-6:
            code = "input_audio_buffer_commit_empty"
            raise BadEvent(f"the buffer has less than {SHORTEST * 1000:.0f} ms", None, code)
        self._committed(item, sent)
        return self.ask(item)

    def _clear(self) -> Sequence[SocketEvent]:
        item, sent = self._item, self.clock / self.rate
        self._say("input_audio_buffer.cleared")
        if sent == item.since:
            return ()
        item.wanted = False
        self._item = self._new_item(sent)
        self._speaking = False
        return self.ask(item)

    def ask(self, item: Item | None = None) -> list[SocketEvent]:
        self._asked.append(item)
        return super().ask()

    def expire(self, now: float) -> Sequence[SocketEvent]:
        if not self._started:  # nothing begins before the first audio
            if now >= self.next_at:
                self.leave(NORMAL, "no audio came")
            return ()
        return super().expire(now)

    # -- out -------------------------------------------------------------------------------------

    def heard(self, leg: LegName, heard: Heard) -> None:
        super().heard(leg, heard)
        item = (self._asked[0] if self._asked else None) or self._item
        first = next(iter((*heard.words, *heard.tentative)), None)
        if first is not None and item is self._item:
            self._turn_over = False
            if not self._speaking and self._session.vad is not None:
                self._starts(item, first, self._session.vad)
        for word in heard.words if item.wanted else ():
            if len(item.words) < MAX_WORDS:
                space = " " if item.words else ""
                item.words.append(word)
                self._of_item("delta", item, delta=space + word.text)
        self._end_of_speech()

    def told(self, leg: LegName, event: CallEvent) -> None:
        match event.body:
            case EndOfTurn(reason=reason) if not (self._asked and self._asked[0]):
                self._turn_over = True
                self._end_of_speech(at_once=reason != "pause")
            case Pressed(digit):
                kind = "input_audio_buffer.dtmf_event_received"
                self._say(kind, event=digit, received_at=int(event.at))
        super().told(leg, event)

    def finalised(self, leg: LegName) -> None:
        item = self._asked.popleft() if self._asked else None
        if item is not None and item.wanted:
            self._completed(item)

    def _starts(self, item: Item, first: Word, vad: Any) -> None:
        self._speaking = True
        item.since = max(item.since, first.start - vad.padding)
        start = round(1000 * item.since)
        self._say("input_audio_buffer.speech_started", audio_start_ms=start, item_id=item.id)

    def _end_of_speech(self, *, at_once: bool = False) -> None:
        """With turn detection: the turn is over, and has been for as long as was asked for."""
        vad, item = self._session.vad, self._item
        if vad is None or not self._speaking or not self._turn_over or not item.words:
            return
        if not at_once and self.listened - item.words[-1].end < vad.silence:
            return
        end = round(1000 * self.listened)
        self._say("input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=item.id)
        self._committed(item, self.listened)
        self._completed(item)

    def _new_item(self, since: float) -> Item:
        self._items += 1
        return Item(f"item_{self._id[5:]}_{self._items}", since)

    def _committed(self, item: Item, until: float) -> None:
        item.until = until
        before, self._last = self._last, item.id
        self._item = self._new_item(until)
        self._speaking = self._turn_over = False
        self._say("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        for what in ("created",) if self._beta else ("added", "done"):
            self._say(f"conversation.item.{what}", item=item.shown(), previous_item_id=before)

    def _completed(self, item: Item) -> None:
        self._of_item("completed", item, **item.completed(logprobs=self._session.logprobs))

    def hung_up(self, reason: str) -> None:
        """Items that will not be completed have failed."""
        error = {"type": "server_error", "code": "ended", "message": f"ended by the {reason}"}
        for item in [i for i in self._asked if i] + [self._item] * self._speaking:
            if item.wanted:
                self._of_item("failed", item, error={**error, "param": None})

    def refused(self, leg: LegName, reason: str) -> None:
        code = "rate_limit_exceeded" if reason in ("busy", "overload", "limit") else "unavailable"
        self._error(BadEvent(f"the session was not taken: {reason}", None, code), None)
        self.leave(BUSY, f"not taken: {reason}")

    # -- messages --------------------------------------------------------------------------------

    def _say(self, kind: str, **more: Any) -> None:
        self._events += 1
        self.say({"type": kind, "event_id": f"event_{self._id[5:]}_{self._events}", **more})

    def _of_item(self, what: str, item: Item, **more: Any) -> None:
        self._say(TRANSCRIPTION + what, item_id=item.id, content_index=0, **more)

    def _tell_session(self, what: str) -> None:
        kind = "transcription_session" if self._beta else "session"
        self._say(f"{kind}.{what}", session=self._session.shown(self._id, beta=self._beta))

    def _error(self, wrong: BadEvent, event_id: str | None) -> None:
        server = wrong.code in ("unavailable", "rate_limit_exceeded")
        kind = "server_error" if server else "invalid_request_error"
        error = {"type": kind, "code": wrong.code, "message": str(wrong)}
        self._say("error", error={**error, "param": wrong.param, "event_id": event_id})
