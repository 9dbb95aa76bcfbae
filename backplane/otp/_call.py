"""Calls: a request, one answer or the reason why there is none, and nothing that comes too late.

A request goes into the server's mailbox like any message. Its sender sleeps
until it is answered, the server ends, or it is time. From then on the request
is void: an answer reaches nobody, and a server that has not begun with it drops
it unhandled.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from types import FrameType
from typing import Any, Final

from backplane.lowlevel import checkpoint, clock, new_parking

from ._call_errors import CallingSelfError, CallTimeoutError, DeadlineError, ServerDownError
from ._errors import NoProcessError
from ._from import Calls, From
from ._handles import Pid
from ._handles import current as _process
from ._names import Target, resolve
from ._process import Process
from ._reasons import NOPROC

DEFAULT_TIMEOUT = 5.0
"""Seconds that a call waits (Erlang's default)."""


NOBODY: Final[list[From | None]] = [None]


serving: ContextVar[list[From | None]] = ContextVar("backplane.serving", default=NOBODY)
"""The request that the code is at work for: what it asks others must not take longer.

In a box, which is emptied when it is answered: to set it twice for each would cost more
than all else that is done for it. Tasks that a handler has started keep the box.
"""


_PARKINGS: Final = 32
"""So many places to sleep are kept for the next callers."""


def _limit(caller: Process | None, seconds: float | None, now: Callable[[], float]) -> float | None:
    """In how many seconds a caller gives up, who may be at work for another one."""
    request = None if caller is None else serving.get()[0]
    if request is None or request.over:
        return seconds
    until = request.deadline_here(now)
    if until is None:
        return seconds
    left = max(until - now(), 0.0)
    return left if seconds is None else min(seconds, left)


def time_limit(seconds: float | None, now: Callable[[], float]) -> float | None:
    """In how many seconds the calling process gives up, at the latest."""
    return _limit(_process.get(), seconds, now)


def process_of(server: Target, request: object) -> Process:
    """The process that is to be called."""
    try:
        return resolve(server, "call it")
    except NoProcessError:
        raise ServerDownError(server, request, NOPROC) from None


def refuse_self_call(process: Process, message: object) -> None:
    """Raise if the calling code is what ``process`` waits for: it could never answer.

    That is its own task, and all that works on a call that it has not answered. Other
    tasks that its code has started may call it like anybody.
    """
    served = serving.get()[0]
    if (served is not None and served.server is process and not served.over) or is_awaited_by(
        process
    ):
        raise CallingSelfError(process.pid, message)


def is_awaited_by(process: Process) -> bool:
    """Whether the calling code runs in the task of a process, not in one that it has started."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_flags & _AWAITS:
        frame = frame.f_back
    # What awaits something is the frame below it; below the first coroutine of a task is the
    # loop, or, where tasks begin at once, the plain function that has started it.
    while frame is not None and frame.f_code.co_flags & _AWAITS:
        if frame.f_code is Process.run.__code__:
            return frame.f_locals["self"] is process
        frame = frame.f_back
    return False


_AWAITS: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


async def call(server: Target, message: Any, timeout: float | None = DEFAULT_TIMEOUT) -> Any:  # noqa: ASYNC109
    """Send a server a request for ``handle_call``, and wait for its answer.

    From inside a server that handles a call, it waits at most for what is left
    of that call's time.

    Args:
        server: A pid, a name, a via address, or a ``ServerRef``.
        message: Anything.
        timeout: Seconds; None for ever.

    Raises:
        ServerDownError: It has ended, or ends before it answers.
        CallTimeoutError: It did not answer in time. The answer reaches nobody.
        DeadlineError: The time of the call that this was made for is over.
        CallingSelfError: It is the server itself that calls.
        MailboxFullError: Its mailbox is bounded, and full.
    """
    process = server._process if type(server) is Pid else process_of(server, message)
    calls = process.calls
    if calls is None or calls.thread != get_ident():
        return await call_from_afar(process, message, timeout)
    own = timeout
    caller = _process.get()
    if caller is not None:
        if caller is process:
            refuse_self_call(process, message)
        timeout = _limit(caller, timeout, calls.now)
    if timeout is not None and not timeout > 0:
        await checkpoint()
        raise _late(process, CallTimeoutError(process.pid, message, timeout), own)
    deadline = None if timeout is None else calls.now() + timeout
    parkings = calls.parkings
    parking = parkings.pop() if parkings else new_parking()
    request = From(process, calls, message, caller, parking, deadline, timeout)
    calls[request] = True
    try:
        if not process.deliver(request):
            request.server_ended(process.absence)
        elif deadline is not None and deadline < calls._due:
            calls.watch(deadline)
        while not request.over:
            await parking.rest()
    except BaseException:
        request.abandon()
        raise
    if len(parkings) < _PARKINGS:
        parkings.append(parking)
    if request.error is not None:
        raise _late(process, request.error, own).with_traceback(None)
    return request.value


def _late(process: Process, error: BaseException, own: float | None) -> BaseException:
    """The error of a call, which its caller would have let wait for ``own`` seconds."""
    if type(error) is CallTimeoutError and error.target == process.pid and error.seconds != own:
        if error.seconds != error.seconds:
            raise ValueError("timeout is a number of seconds, or None for ever, not nan")
        cut = DeadlineError(error.target, error.request, error.seconds)
        cut.served = serving.get()[0]
        return cut
    return error


async def call_from_afar(
    process: Process,
    message: Any,
    timeout: float | None,  # noqa: ASYNC109
    in_front: Callable[..., Any] | None = None,
) -> Any:
    """The same from another loop, or to a process that is no server: with a timer of its own."""
    now, own = clock(), timeout
    timeout = time_limit(timeout, now)
    if timeout is not None and not timeout > 0:
        await checkpoint()
        raise _late(process, CallTimeoutError(process.pid, message, timeout), own)
    deadline = None if timeout is None else now() + timeout
    request = send_request(process, message, timeout, in_front)
    try:
        await answer(request, deadline, now)
        if not request.over:
            request.expire()
    finally:
        request.abandon()
    if request.error is not None:
        raise _late(process, request.error, own).with_traceback(None)
    return request.value


def send_request(
    process: Process,
    message: Any,
    seconds: float | None,
    in_front: Callable[..., Any] | None = None,
) -> From:
    """Put a request into a server's mailbox; or in front of it, made into something else."""
    caller = _process.get()
    if caller is process:
        refuse_self_call(process, message)
    request = new_request(process, message, seconds, caller, None)
    request.hearers = []
    deliver(request, None if in_front is None else in_front(message, request))
    return request


def new_request(
    process: Process,
    message: Any,
    seconds: float | None,
    caller: Process | None,
    parking: Any,
) -> From:
    """A request for a server, which ``deliver`` brings to it."""
    calls = Calls.of(process)
    if calls is None:
        raise ServerDownError(process.pid, message, process.absence)
    # On the server's clock: between loops, as of now.
    deadline = None
    if seconds is not None and calls.thread:
        deadline = calls.now() + seconds if calls.thread == get_ident() else None
    request = From(process, calls, message, caller, parking, deadline, seconds)
    if deadline is None and seconds is not None:
        request._sent_at = time.monotonic()  # there is no virtual time between two loops
    return request


def deliver(request: From, urgent: Any = None) -> None:
    """Put a request into its server's mailbox; or in front of it, made into something else."""
    process = request.server
    request._calls[request] = True
    try:
        sent = process.deliver(request) if urgent is None else process.deliver_urgent(urgent)
    except BaseException:
        request.abandon()
        raise
    if not sent:
        request.server_ended(process.absence)


async def answer(request: From, deadline: float | None, now: Callable[[], float]) -> None:
    """Wait until a request is over, or until a time."""
    parking = new_parking()
    request.hearers.append(parking.wake)
    try:
        if deadline is None:
            while not request.over:
                await parking.park()
            return
        while not request.over and now() < deadline:
            await parking.park_until(deadline)
    finally:
        request.hearers.remove(parking.wake)
