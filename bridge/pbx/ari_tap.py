"""One leg's tap: a snoop of its channel, and the way from there to us. Pure.

Two forms (both seen with Asterisk 22.10; first frame about 20 ms after the first request):

dialplan        snoop → continue in [callscribe-snoop] → Dial(AudioSocket/…). Ends by itself, with
                the call, with us, or with the snoop: nothing is ever left over.
external_media  snoop and a media channel (ari_media) in a mixing bridge of their own. Needs no
                dialplan; whichever of the three ends first, we delete the other two.

Each attempt has a UUID of its own, which names the audio's connection and, as ``app-s-UUID``
(snoop), ``app-m-UUID`` (media) and ``app-b-UUID`` (bridge), everything it makes in Asterisk. So
what is ours can be told by its name, by a bridge that has just started too; and because all such
names are of one length, none is the beginning of another, which Asterisk would refuse (it compares
ids by prefix). Only what listens is ever deleted, never the channel that is listened to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import quote

from bridge.errors import BridgeError
from bridge.pbx.ari_media import AudioSocketMedia, Media
from bridge.types import LegName

PATIENCE = 3.0  # s for each step; an idle Asterisk takes 2 ms, and its audio 20
LOOK = 0.25  # s between looks whether the audio has come
GRACE = 1.0  # s after a tap's end for its channel to end as well, as in most calls
BACKOFF = (1.0, 30.0)  # s: the first and the longest span that a retry is drawn from
STEADY = 30.0  # s of audio after which a failure is not part of a series

Piece: TypeAlias = Literal["s", "m", "b"]  # snoop, media channel, bridge
State: TypeAlias = Literal[
    "waiting", "snooping", "connecting", "joining", "arriving", "up", "ending", "over"
]
Outcome: TypeAlias = Literal["pending", "heard", "refused", "ended"]
"""What came of a UUID: no connection yet; it is or was a leg; it was turned away; we ended it."""

_PIECE = re.compile(r"-([smb])-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class Form:
    """How what is heard comes to us. `media`: for external_media."""

    app: str = "callscribe"
    kind: Literal["dialplan", "external_media"] = "dialplan"
    context: str = "callscribe-snoop"
    media: Media = field(default_factory=AudioSocketMedia)

    def name(self, piece: Piece, uuid: str) -> str:
        """What a piece is called in Asterisk."""
        return f"{self.app}-{piece}-{uuid}"

    def piece(self, id: str) -> tuple[Piece, str] | None:
        """The piece and UUID of a name that is one of ours."""
        found = _PIECE.fullmatch(id[len(self.app) :]) if id.startswith(f"{self.app}-") else None
        if found is None:
            return None
        piece: Piece = "s" if found[1] == "s" else "m" if found[1] == "m" else "b"
        return piece, found[2]

    def pieces(self) -> tuple[Piece, ...]:
        """All that a tap which is up consists of."""
        return ("s",) if self.kind == "dialplan" else ("s", "m", "b")

    @property
    def stays(self) -> bool:
        """Whether a process can hear on what another has begun."""
        return self.kind == "dialplan" or self.media.stays


@dataclass(frozen=True, slots=True)
class Request:
    """One request to ARI. What comes of it is told to `Taps.answered` with `uuid` and `step`.

    `path` is below ari.url, and quoted.
    """

    uuid: str
    step: str
    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()


def delete(piece: Piece, id: str) -> Request:
    """Remove a piece. 404 is as good as 204."""
    kind = "bridges" if piece == "b" else "channels"
    return Request("", f"delete {id}", "DELETE", f"/{kind}/{quote(id, safe='')}")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a leg is not tapped: `kind` names a counter, `reason` is a sentence."""

    kind: str
    reason: str


class Tap:
    """One leg's tap, through all its attempts.

    `due`: when `expire` wants to be called. `failure`: why there is no audio just now. `send` takes
    requests, `outcome` says what came of the attempt.
    """

    __slots__ = (
        "_form", "_made", "_needs", "_outcome", "_send", "_until", "adopted", "attempts", "call",
        "channel", "due", "failure", "leg", "state", "up_at", "uuid",
    )  # fmt: skip

    def __init__(
        self,
        channel: str,
        leg: LegName,
        form: Form,
        send: Callable[[Request], None],
        outcome: Callable[[Tap], Outcome],
        now: float,
    ) -> None:
        self.channel = channel  # its id
        self.leg = leg
        self.state: State = "waiting"
        self.failure: Failure | None = None
        self.uuid = ""
        self.call = ""  # the id under which the attempt was announced
        self.adopted = False  # another process began it, and hears it
        self.attempts = 0  # that failed, in a row
        self.due: float | None = now
        self.up_at = 0.0
        self._form = form
        self._send = send
        self._outcome = outcome
        self._until = 0.0
        self._made: set[Piece] = set()  # that may be there
        self._needs: set[str] = set()  # pieces, and "media" for its answer, not there yet

    @property
    def live(self) -> bool:
        """Under way or up."""
        return self.state not in ("waiting", "ending", "over")

    @property
    def coming(self) -> bool:
        """Its audio is not there yet, but may be in a moment."""
        return self.fresh or self.state in ("snooping", "connecting", "joining")

    @property
    def fresh(self) -> bool:
        """Nothing has been tried yet."""
        return self.state == "waiting" and not self.uuid

    @property
    def standing(self) -> tuple[State, int, Failure | None]:
        """Changes whenever there is something to count or to tell."""
        return self.state, self.attempts, self.failure

    # -- the way up ---------------------------------------------------------------------------

    def begin(self, uuid: str, now: float) -> None:
        """Try to listen, under this UUID, which has been announced."""
        self.uuid, self.adopted = uuid, False
        self._made, self._needs = {"s"}, set()
        self._step("snooping", now)
        where = f"/channels/{quote(self.channel, safe='')}/snoop/{self._name('s')}"
        self._ask("snoop", where, app=self._form.app, spy="in", whisper="none")

    def arrived(self, piece: Piece, now: float) -> None:
        """The snoop or the media channel is in our application."""
        if piece == "s" and self.state == "snooping":
            if self._form.kind == "dialplan":
                self._step("joining", now)
                place = {"context": self._form.context, "extension": self.uuid, "priority": "1"}
                self._ask("join", f"/channels/{self._name('s')}/continue", **place)
            else:
                self._connect(now)
        elif piece in self._needs:
            self._is_there(piece, now)

    def _connect(self, now: float) -> None:
        self._made |= {"m", "b"}
        media = self._form.media
        self._needs = {"m", "b", "media"} if media.answers else {"m", "b"}
        self._step("connecting", now)
        self._ask(
            "media",
            "/channels/externalMedia",
            app=self._form.app,
            channelId=self._name("m"),
            **media.ask(self.uuid),
        )
        self._ask("bridge", "/bridges", type="mixing", bridgeId=self._name("b"))

    def _is_there(self, what: str, now: float) -> None:
        self._needs.discard(what)
        if self.state == "connecting" and not self._needs:
            self._step("joining", now)
            members = f"{self._name('s')},{self._name('m')}"
            self._ask("join", f"/bridges/{self._name('b')}/addChannel", channel=members)

    def answered(self, step: str, status: int, text: str, now: float, jitter: float) -> None:
        """What ARI said to a request; status 0: nothing, and `text` says why.

        Of the media channel `text` is the whole answer.
        """
        if self.state not in ("snooping", "connecting", "joining"):
            return
        if not 200 <= status < 300:
            self.fail(_refused(step, status, text), now, jitter)
        elif step == "bridge":
            self._is_there("b", now)
        elif step == "media" and "media" in self._needs:
            try:
                self._form.media.told(self.uuid, text)
            except BridgeError as e:
                self.fail(Failure("error", str(e)), now, jitter)
            else:
                self._is_there("media", now)
        elif step == "join":
            self._until = now + PATIENCE
            self.state, self.due = "arriving", now + LOOK

    def expire(self, now: float, jitter: float) -> None:
        """Let time pass, when it is due; but who waits is begun by the caller."""
        self.due = None
        if self.state == "ending":
            self.fail(self.failure or _LOST, now, jitter)
        elif self.state == "arriving":
            self._look(now, jitter)
        elif self.state in ("snooping", "connecting", "joining"):
            self.fail(Failure("no_answer", f"Asterisk was silent while {self.state}"), now, jitter)

    def _look(self, now: float, jitter: float) -> None:
        """Has the audio come?"""
        came = self._outcome(self)
        if came == "heard":
            self.state, self.failure, self.up_at = "up", None, now
        elif came == "ended":
            self.end(_ENDED)
        elif now < self._until:
            self.due = now + LOOK
        else:
            self.fail(_BUSY if came == "refused" else self._no_audio(), now, jitter)

    # -- the way down -------------------------------------------------------------------------

    def ended(self, piece: Piece, now: float) -> None:
        """A piece is gone. Mostly because the call is over, which will be told in a moment."""
        self._made.discard(piece)
        self.unheard(now)

    def unheard(self, now: float) -> None:
        """As `ended`, where it is our own side that hears nothing any more."""
        if self.state in ("waiting", "ending", "over"):
            return
        came = self._outcome(self) if self.state in ("arriving", "up") else "gone"
        self._clean()
        if came == "ended":
            self.end(_ENDED)
            return
        if came == "heard" and now - self.up_at >= STEADY and self.state == "up":
            self.attempts = 0
        self.failure = {"pending": self._no_audio(), "refused": _BUSY, "heard": _LOST}.get(
            came, Failure("gone", "its snoop ended before it was heard")
        )
        self.state, self.due = "ending", now + GRACE

    def fail(self, why: Failure, now: float, jitter: float) -> None:
        """This attempt is over; another one comes."""
        self._clean()
        first, longest = BACKOFF
        span = min(longest, first * 2.0 ** min(self.attempts, 16))
        self.attempts += 1
        self.state, self.failure = "waiting", why
        self.due = now + span * (0.5 + jitter / 2)

    def suspend(self, why: Failure) -> None:
        """ARI is gone: what has been heard goes on being so, the rest waits for ARI."""
        if self.state != "over":
            self.due = None
        if self.state not in ("up", "arriving", "over"):
            self.state, self.failure = "waiting", why
            self._made.clear()  # found by name when ARI is back
            self._form.media.over(self.uuid)

    def found(self, pieces: set[Piece], now: float) -> None:
        """ARI is back, and these are what there is of this attempt."""
        self._made = set(pieces)
        if self.state == "arriving":
            self._until, self.due = now + PATIENCE, now
        for piece in set(self._form.pieces()) - pieces:
            self.ended(piece, now)

    def adopt(self, uuid: str, pieces: set[Piece], now: float) -> None:
        """Another process began this, and it is up.

        Where that one would not be missed if it were gone, it is taken down and begun anew.
        """
        self.uuid, self.adopted, self._made = uuid, True, set(pieces)
        self.state, self.up_at, self.due = "up", now, None
        if not self._form.stays:
            self._clean()
            self.state, self.due = "waiting", now

    def end(self, why: Failure | None = None) -> None:
        """For good. Removes what there may be."""
        self._clean()
        self.state, self.failure, self.due = "over", why, None

    # -- -------------------------------------------------------------------------------------

    def _step(self, state: State, now: float) -> None:
        self.state, self.due = state, now + PATIENCE

    def _clean(self) -> None:
        for piece in sorted(self._made):
            self._send(delete(piece, self._name(piece)))
        self._made.clear()
        if self.uuid:
            self._form.media.over(self.uuid)

    def _name(self, piece: Piece) -> str:
        return self._form.name(piece, self.uuid)

    def _ask(self, step: str, path: str, **params: str) -> None:
        self._send(Request(self.uuid, step, "POST", path, tuple(params.items())))

    def _no_audio(self) -> Failure:
        if self._form.kind == "dialplan":
            context = self._form.context
            hint = f"is [{context}] in extensions.conf, and CALLSCRIBE there where we listen?"
        else:
            hint = self._form.media.hint()
        return Failure("no_audio", f"no audio came from Asterisk; {hint}")


_LOST = Failure("lost", "its connection was lost while the call went on")
_ENDED = Failure("ended", "callscribe has ended this leg")
_BUSY = Failure("refused", "callscribe had no room for this leg")


def _refused(step: str, status: int, text: str) -> Failure:
    if status == 0:
        return Failure("no_answer", text)
    if status == 403:
        return Failure("permission", "our ARI user may not: set read_only = no in ari.conf")
    if status == 404 and step == "snoop":
        return Failure("gone", "the channel was gone before it could be heard")
    said = f": {text}" if text else ""
    return Failure("error", f"Asterisk answered {status} to the {step}{said}")
