"""Users' messages and requests to Devices on other nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from backplane import Line, NoConnection
from backplane.lowlevel import clock, end_of, new_parking, outpost_of

from ._errors import BridgeError, BusyError, EndedError, NotAllowedError, NotConnectedError
from ._exports import Right
from ._frames import Tell
from ._key import Key
from ._requests import Asked

_TALK: Final = Right.TALK.value


def tell(line: Line, message: Any, *, force: bool = False) -> None:
    """Send a message to the port of a Device on another node.

    Args:
        line: Leads to the Device.
        message: What to send.
        force: Send it even if the peer is slow: for the few messages that must not wait.

    A message that was taken here can still be lost: with the connection, or as the Device
    ends over there meanwhile. Those who are linked with it hear of either.

    Raises:
        NotConnectedError: The connection is gone. It may be that earlier messages were lost.
        EndedError: The Device has ended, as is known here; ``fault`` says why.
        NotAllowedError: The Device has no port, or was exported without ``Right.TALK``.
        BusyError: The peer is slow, and too much waits already: see ``wait_tell``.
        EncodeError: The message has no form on the wire, or is too large. Nothing was sent.
        ValueError: The Line leads to a Device of this process.
    """
    key = _key(line, "send a message")
    session = key.session
    if not line.connected:
        raise _ended(line, session, "send a message")
    raw = session.payloads.pack(message)
    session.outbox.say(Tell(key.line.token, msgspec.Raw(raw)), force)


def check(line: Line, message: Any) -> None:
    """Refuse a message that ``tell`` could not send, for what it is; nothing is sent.

    Raises:
        EncodeError: As for ``tell``.
    """
    outpost = outpost_of(line)
    assert outpost is not None
    session = outpost.key.session
    if session is not None:
        raw = session.payloads.pack(message)
        session.outbox.pack(Tell(outpost.key.line.token, msgspec.Raw(raw)))


async def wait_tell(line: Line, message: Any) -> None:
    """As ``tell``, but wait while the peer is slow: those who wait have their turn in order.

    Cancelled, it has sent nothing.
    """
    key = _key(line, "send a message")
    session = key.session
    outbox = session.outbox
    frame = Tell(key.line.token, msgspec.Raw(session.payloads.pack(message)))
    had_turn = False
    while True:
        if had_turn or not outbox.room:
            try:
                if not line.connected:
                    raise _ended(line, session, "send a message")
                outbox.say(frame)
            except BusyError:
                pass
            else:
                return
            finally:
                outbox.room.open()  # for the next one
        await outbox.room.wait(had_turn)
        had_turn = True


async def call(
    line: Line,
    message: Any,
    timeout: float | None = 5.0,  # noqa: ASYNC109
    *,
    as_type: Any = Any,
) -> Any:
    """Send a request to the port of a Device on another node, and wait for its answer.

    An answer that comes after the timeout, or after this was cancelled, reaches
    nobody; the other side is told that nobody waits. A port that never answers is
    waited for until the timeout, or if there is none, until its Device ends or the
    connection is lost. Over there the request knows how long it is waited for
    (``seconds``), and is told when it is not any longer (``over``).

    Args:
        line: Leads to the Device.
        message: What to ask.
        timeout: Seconds; None: for ever.
        as_type: What the answer is to be.

    Raises:
        NotConnectedError: The connection is gone, before the answer. It may have had its effect.
        EndedError: The Device has ended, before the answer; ``fault`` says why.
        NotAllowedError: As for ``tell``.
        RemoteError: The request failed over there; ``NobodyError`` if nobody takes any.
        TimeoutError: No answer came in time.
        BusyError: As for ``tell``. Nothing was sent.
        EncodeError: As for ``tell``.
        PayloadError: The answer is none of that type.
        ValueError: As for ``tell``, or ``timeout`` is no time.
    """
    key = _key(line, "ask")
    if not line.connected:
        raise _ended(line, key.session, "ask")
    parking = new_parking()
    asked = ask(line, message, timeout, parking.wake)
    try:
        await _wait(asked, parking, timeout)
    except BaseException:
        asked.give_up()
        raise
    if not asked.over:
        asked.give_up()
        raise TimeoutError(f"{line!r} did not answer within {timeout:g} seconds")
    return asked.result(as_type)


def ask(line: Line, message: Any, seconds: float | None, hear: Callable[[], object]) -> Asked:
    """Send a request without waiting: ``hear`` is called, in the node's loop, when it is over.

    Args:
        line: Leads to the Device.
        message: What to ask.
        seconds: How long the answer is waited for, as the other side is told.
        hear: What to call. Then ``result()`` of what this returns is the answer.

    Raises:
        As for ``tell``; but that the Device has ended is the answer of its node.
    """
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"{seconds!r} seconds are no time to wait: None is for ever")
    key = _key(line, "ask")
    session = key.session
    raw = session.payloads.pack(message)
    asked: Asked = session.calls.ask(key.line.token, raw, seconds, hear)
    return asked


async def _wait(asked: Asked, parking: Any, timeout: float | None) -> None:  # noqa: ASYNC109
    if timeout is None:
        while not asked.over:
            await parking.park()
        return
    now = clock()
    deadline = now() + timeout
    while not asked.over and now() < deadline:
        await parking.park_until(deadline)


def _ended(line: Line, session: Any, attempt: str) -> BridgeError:
    """The error of one who talks to a Device that is known to be gone."""
    end = end_of(line)
    assert end is not None
    if isinstance(end.fault, NoConnection) and session.is_down:
        gone: NotConnectedError = session.gone(attempt)
        return gone
    return EndedError(end.fault)


def _key(line: Line, attempt: str) -> Key:
    outpost = outpost_of(line)
    if outpost is None or not isinstance(outpost.key, Key):
        raise ValueError(f"{line!r} leads to a Device of this process: talk to it directly")
    key = outpost.key
    node = key.line.node
    if key.session is None:
        why = f"node {node!r} is not connected with this one, or was not when the Line came"
        raise NotConnectedError(node, attempt, f"{why}: connect, and have the Line sent again")
    if not key.line.rights & _TALK:
        raise NotAllowedError(line.id, attempt, node, "a port, or without Right.TALK")
    return key
