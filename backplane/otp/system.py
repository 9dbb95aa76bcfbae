"""What any server answers beside its own messages: Erlang's ``sys``.

These go in front of the server's mailbox, and are answered between two of its
messages, also while it is suspended. They do not wake a server up from an idle
timeout: that starts anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from backplane.lowlevel import clock

from . import _call
from ._call import DEFAULT_TIMEOUT
from ._gen_server import HIDDEN, GenServer
from ._loop import note, show
from ._server import Server
from ._sys import Answer, Operation, Statistics, Status, SystemRequest, Trace, Traced

_logger = logging.getLogger("backplane.otp")

__all__ = [
    "Answer",
    "Statistics",
    "Status",
    "Traced",
    "get_state",
    "get_status",
    "log",
    "replace_state",
    "resume",
    "statistics",
    "suspend",
    "trace",
    "untrace",
]


async def _ask(server: Server, operation: Operation, timeout: float | None) -> Any:  # noqa: ASYNC109
    process = _call.process_of(server, "system")
    return await _call.call_from_afar(process, operation, timeout, SystemRequest)


async def get_state(server: Server, timeout: float | None = DEFAULT_TIMEOUT) -> Any:  # noqa: ASYNC109
    """What the server's ``get_state`` returns."""
    return await _ask(server, lambda it, suspended: (suspended, it.get_state()), timeout)


async def replace_state(
    server: Server,
    fn: Callable[[Any], Any],
    timeout: float | None = DEFAULT_TIMEOUT,  # noqa: ASYNC109
) -> Any:
    """Give the server the state that ``fn`` makes of its state; return that.

    What ``fn`` raises the caller gets, and the state is as it was.
    """

    def replace(it: GenServer, suspended: bool) -> Any:
        state = fn(it.get_state())
        it.replace_state(state)
        return suspended, state

    return await _ask(server, replace, timeout)


async def suspend(server: Server, timeout: float | None = DEFAULT_TIMEOUT) -> None:  # noqa: ASYNC109
    """Have the server leave its messages alone. Its parent's exit and a kill still end it."""
    await _ask(server, lambda it, suspended: (True, None), timeout)


async def resume(server: Server, timeout: float | None = DEFAULT_TIMEOUT) -> None:  # noqa: ASYNC109
    """Have the server go on."""
    await _ask(server, lambda it, suspended: (False, None), timeout)


async def get_status(server: Server, timeout: float | None = DEFAULT_TIMEOUT) -> Status:  # noqa: ASYNC109
    """What the server is doing, its state as ``format_status`` shows it."""

    async def status(it: GenServer, suspended: bool) -> Any:
        process = it.process
        try:
            shown = await show(it, None, None)
        except Exception:
            _logger.exception("format_status of %r failed", process.pid)
            shown = {}
        return suspended, Status(
            server=repr(process.pid),
            state=shown.get("state", HIDDEN),
            suspended=suspended,
            mailbox=len(process.mailbox),
            links=len(process.links),
            trap_exit=process.trap_exit,
            statistics=it._otp_statistics,
            log=list(shown.get("log", ())),
        )

    result: Status = await _ask(server, status, timeout)
    return result


async def statistics(
    server: Server,
    on: bool | None = None,
    timeout: float | None = DEFAULT_TIMEOUT,  # noqa: ASYNC109
) -> Statistics | None:
    """What the server has done since statistics were turned on; turn them on, or off."""

    def turn(it: GenServer, suspended: bool) -> Any:
        if on is True:
            it._otp_statistics = Statistics(clock()())
        elif on is False:
            it._otp_statistics = None
        return suspended, None if it._otp_statistics is None else replace(it._otp_statistics)

    result: Statistics | None = await _ask(server, turn, timeout)
    return result


async def trace(
    server: Server,
    fn: Traced,
    timeout: float | None = DEFAULT_TIMEOUT,  # noqa: ASYNC109
) -> None:
    """Have ``fn(way, message)`` called with all that the server takes and returns.

    ``way`` is "in" or "out"; a call comes in as its ``From``, and goes out as an
    ``Answer``. What nobody waits for any longer is not handled, and not shown.

    If it raises, it is taken away, and the server goes on.
    """
    await _add(server, Trace(fn, 0), timeout)


async def log(
    server: Server,
    keep: int = 10,
    timeout: float | None = DEFAULT_TIMEOUT,  # noqa: ASYNC109
) -> None:
    """Have the server keep its last messages for ``get_status``."""
    await _add(server, Trace(None, keep), timeout)


async def untrace(server: Server, timeout: float | None = DEFAULT_TIMEOUT) -> None:  # noqa: ASYNC109
    """Undo all ``trace`` and ``log``."""

    def clear(it: GenServer, suspended: bool) -> Any:
        it._otp_traces = None
        it.process.calls.on_reply = None
        return suspended, None

    await _ask(server, clear, timeout)


async def _add(server: Server, one: Trace, timeout: float | None) -> None:  # noqa: ASYNC109
    def add(it: GenServer, suspended: bool) -> Any:
        it._otp_traces = [*(it._otp_traces or ()), one]
        it.process.calls.on_reply = lambda request, value: note(it, "out", Answer(value, request))
        return suspended, None

    await _ask(server, add, timeout)
