"""GenServer: a process that serves calls and casts, one at a time."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Final

from ._call import serving
from ._from import From
from ._messages import Shown, outline
from ._process import Process
from ._reasons import ExitReason
from ._returns import UnknownRequestError
from ._sys import Statistics, Trace

_logger = logging.getLogger("backplane.otp")


_OWN: Final = frozenset({"process", "_otp_statistics", "_otp_traces"})
"""The attributes of a server that are no part of its state."""


HIDDEN: Final = Shown("(not shown)")


class GenServer:
    """The base of servers. Its instance is the state; its callbacks run one at a time.

    Callbacks may be plain or async functions. What one raises ends the server
    for that reason, after ``terminate``; all who wait for an answer hear it.

    In the server's code, ``self.process`` is its process: it can receive, link,
    monitor and trap exits (``self.process.trap_exit = True`` in ``init``). One that
    traps exits is told of its parent's exit signal by ``terminate``, between two
    messages, however many are queued; one that does not is cancelled.

    A subclass may give its own methods and attributes any names but these, which
    mean here what they say: ``init``, ``terminate`` and all that begin with
    ``handle_``, ``format_status``, ``get_state``, ``replace_state``, ``process``,
    ``trap_exit``, ``label``, ``current_from`` and ``time_left``.
    """

    process: Process
    """The process that this server is."""
    trap_exit: ClassVar[bool] = False
    """Whether its processes trap exits, so that ``terminate`` is called at a shutdown."""
    _otp_statistics: Statistics | None = None
    _otp_traces: list[Trace] | None = None
    label: ClassVar[str | None] = None
    """What to call its processes in reports; by default the class's name."""
    __backplane_spec__: ClassVar[str] = "child_spec"
    """What makes a child of it, for a supervisor that was given the class."""

    def current_from(self) -> From | None:
        """The call that is being handled: for a marked method that returns ``NO_REPLY``."""
        return serving.get()[0]

    def time_left(self) -> float | None:
        """Seconds until the caller of what is being handled gives up; None if it never does."""
        request = serving.get()[0]
        until = None if request is None else request.deadline_here(self.process.now)
        return None if until is None else max(until - self.process.now(), 0.0)

    # -- callbacks -------------------------------------------------------------------

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Set up. ``start`` returns when this has, with what it raises as the reason if it does.

        It may return ``NoReply(timeout=..., then=...)``, or raise ``Ignore``.
        """
        if args or kwargs:
            raise TypeError(
                f"{type(self).__name__} takes no arguments: it has no init that would take them"
            )

    def handle_call(self, message: Any, from_: From) -> Any:
        """Answer a call: with what is returned, or as ``Reply``, ``NO_REPLY`` or ``Stop`` say."""
        raise UnknownRequestError(type(self).__name__, "call", message)

    def handle_cast(self, message: Any) -> Any:
        """Take a cast."""
        raise UnknownRequestError(type(self).__name__, "cast", message)

    def handle_info(self, message: Any) -> Any:
        """Take any other message: ``Down``, ``Exited``, or what was sent to the pid."""
        _logger.warning("%r has no handle_info and was sent %s", self.process.pid, outline(message))

    def handle_continue(self, argument: Any) -> Any:
        """Do what ``then=argument`` asked for, before any other message."""
        raise UnknownRequestError(type(self).__name__, "continue", argument)

    def handle_timeout(self) -> Any:
        """Nothing has come for the time that a callback gave as ``timeout``."""
        raise UnknownRequestError(type(self).__name__, "timeout", None)

    def terminate(self, reason: ExitReason) -> Any:
        """Clean up before the end.

        Called when a callback stops the server or raises, when it is asked to
        stop, and at its parent's exit signal if it traps exits. Not called at a
        kill, nor if an exit signal ends one that does not trap exits. If it
        raises, that becomes the reason.
        """

    def format_status(self, status: dict[str, Any]) -> Any:
        """What reports and ``get_status`` show: a dict with "state", "message", "reason", "log".

        By default the state is left out, and of the message all but its type, or the
        name of the method: they may hold secrets.
        """
        return {**status, "state": HIDDEN, "message": Shown(outline(status["message"]))}

    def get_state(self) -> Any:
        """What ``system.get_state`` returns: by default the instance's attributes."""
        return {key: value for key, value in vars(self).items() if key not in _OWN}

    def replace_state(self, state: Any) -> None:
        """Take what ``system.replace_state`` has made of ``get_state()``.

        Raises:
            TypeError: It is no dict of attributes. The state is as it was.
        """
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise TypeError(f"the state of a server is a dict of attributes, not {state!r}")
        for key in list(self.get_state()):
            delattr(self, key)
        vars(self).update(state)
