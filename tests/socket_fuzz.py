"""Whatever its peer says, a protocol says events or `SocketError`, and ends its legs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from bridge.ingress.media_socket import LegBegan, LegEnded, MediaSocket, SocketError, SocketEvent

Message = str | bytes
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def talks(draw: st.DrawFn, valid: Sequence[Message]) -> list[Message]:
    """Messages of a peer: most are valid, some have one thing changed, some are anything."""
    said: list[Message] = []
    for _ in range(draw(st.integers(1, 12))):
        message = draw(st.sampled_from(valid))
        match draw(st.integers(0, 5)):
            case 0:
                message = _mutated(draw, message)
            case 1:
                message = draw(st.binary(max_size=40) | st.text(max_size=40))
            case 2:
                message = json.dumps(draw(JSON))
        said.append(message)
    return said


def _mutated(draw: st.DrawFn, message: Message) -> Message:
    """One value of a JSON message changed, or one piece of another taken away."""
    try:
        found = json.loads(message)
    except ValueError:
        cut = draw(st.integers(0, len(message)))
        return message[:cut]
    place = found
    while isinstance(place, dict) and place:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or draw(st.booleans()):
            if draw(st.booleans()):
                del place[key]
            else:
                place[key] = draw(JSON)
            break
        place = place[key]
    return json.dumps(found)


def run(make: Callable[[], MediaSocket], said: Sequence[Message]) -> None:
    """Say it all. Legs that begin are legs that end."""
    media = make()
    legs: Counter[str] = Counter()

    def count(events: Sequence[SocketEvent]) -> None:
        for event in events:
            if isinstance(event, LegBegan):
                legs[event.leg] += 1
                assert legs[event.leg] == 1
            elif isinstance(event, LegEnded):
                legs[event.leg] -= 1
                assert legs[event.leg] == 0

    now = 1.0
    try:
        for message in said:
            now += 0.02
            if isinstance(message, str):
                count(media.text(message.encode("utf-8", "surrogatepass"), now))
            else:
                count(media.binary(message, now))
            media.messages()
            if media.goodbye is not None:
                break
            if now >= media.next_at:
                count(media.expire(now))
        count(media.expire(now + 60.0))
    except SocketError as e:
        assert str(e) and e.code in (1003, 1007, 1008, 1009, 1013)
    count(media.eof("eof"))
    assert not +legs
    assert media.eof("eof") == []
