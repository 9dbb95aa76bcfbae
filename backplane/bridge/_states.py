"""The states of a session, and which frames it takes in each."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ._frames import (
    Call,
    Cancel,
    Close,
    Find,
    Fire,
    Found,
    Frame,
    Hello,
    Listen,
    Ping,
    Pong,
    Proof,
    Ready,
    Refuse,
    Reply,
    Send,
    Tell,
    Unlisten,
    Unwatch,
    Watch,
)

if TYPE_CHECKING:
    from ._session import Session


class State(enum.Enum):
    """Where a session stands."""

    HELLO = "saying hello"
    PROOF = "proving itself"
    READY = "about to be taken into use"
    UP = "up"
    DOWN = "down"


Takes: TypeAlias = "dict[type[Frame], Callable[[Session, Any], None]]"

TAKES: Final[dict[State, Takes]] = {
    State.HELLO: {
        Hello: lambda session, frame: session.handshake.on_hello(frame),
        Close: lambda session, frame: session.on_close(frame),
    },
    State.PROOF: {
        Proof: lambda session, frame: session.handshake.on_proof(frame),
        Close: lambda session, frame: session.on_close(frame),
    },
    State.READY: {
        Ready: lambda session, frame: session.handshake.on_ready(frame),
        Close: lambda session, frame: session.on_close(frame),
    },
    State.UP: {
        Ping: lambda session, frame: session.outbox.put(Pong(frame.number), urgent=True),
        Pong: lambda session, frame: session.pulse.answered(frame),
        Close: lambda session, frame: session.on_close(frame),
        Find: lambda session, frame: session.lookups.on_find(frame),
        Found: lambda session, frame: session.lookups.on_found(frame),
        Watch: lambda session, frame: session.mirror.on_watch(frame),
        Unwatch: lambda session, frame: session.mirror.on_unwatch(frame),
        Listen: lambda session, frame: session.mirror.on_listen(frame),
        Unlisten: lambda session, frame: session.mirror.on_unlisten(frame),
        Fire: lambda session, frame: session.mirror.on_fire(frame),
        Send: lambda session, frame: session.mirror.on_send(frame),
        Tell: lambda session, frame: session.calls.on_tell(frame),
        Call: lambda session, frame: session.calls.on_call(frame),
        Reply: lambda session, frame: session.calls.on_reply(frame),
        Refuse: lambda session, frame: session.calls.on_refuse(frame),
        Cancel: lambda session, frame: session.calls.on_cancel(frame),
    },
    State.DOWN: {},
}
"""Who looks at a frame that comes. One that does not stand here ends the session."""
