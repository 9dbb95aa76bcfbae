"""What a supervisor refuses, and how it fails. All are ``SupervisorError``s."""

from __future__ import annotations

import traceback
from typing import Any


class SupervisorError(Exception):
    """The base of all that this tier raises."""


class Permanent(Exception):
    """Raised by a child (or subclassed): a restart cannot mend what is wrong.

    The child is not restarted; what happens instead is what happens when its
    budget is spent. Wrap the reason: ``raise Permanent("no such table") from error``.
    """


class Ignore(Exception):
    """Raised by a child: there is nothing to do.

    By one that takes ``task_status`` before it says that it has started, by
    another at any time. That is no failure (OTP's ``ignore``): the next child is
    started, and this one stays known, and down, until ``restart_child`` or the
    restart of its group.
    """


class SpecError(SupervisorError, ValueError):
    """A specification or a setting makes no sense. Nothing was started."""


class NotRunningError(SupervisorError):
    """The supervisor is not running (yet, or any longer). Nothing was done."""

    def __init__(self, supervisor: str, attempt: str) -> None:
        super().__init__(supervisor, attempt)
        self.supervisor = supervisor
        self.attempt = attempt

    def __str__(self) -> str:
        return f"cannot {self.attempt}: supervisor {self.supervisor!r} is not running"


class SelfCallError(SupervisorError):
    """A child asked its own supervisor to change something while that waits for the child.

    It would wait for ever. Ask after ``task_status.started()``, or from a task
    that the child does not wait for. Nothing was done.
    """

    def __init__(self, supervisor: str, child: str, attempt: str) -> None:
        super().__init__(supervisor, child, attempt)
        self.supervisor = supervisor
        self.child = child
        self.attempt = attempt

    def __str__(self) -> str:
        return (
            f"child {self.child!r} cannot {self.attempt}: its supervisor {self.supervisor!r} "
            "is waiting for it to start or to stop"
        )


class _ChildError(SupervisorError):
    _text = ""

    def __init__(self, supervisor: str, child: str) -> None:
        super().__init__(supervisor, child)
        self.supervisor = supervisor
        self.child = child

    def __str__(self) -> str:
        return self._text.format(child=self.child, supervisor=self.supervisor)


class ChildNotFoundError(_ChildError):
    """The supervisor has no child of this id. Nothing was done."""

    _text = "supervisor {supervisor!r} has no child {child!r}"


class AlreadyStartedError(_ChildError):
    """A child of this id is running. Nothing was started."""

    _text = "child {child!r} of supervisor {supervisor!r} is already running"


class AlreadyPresentError(_ChildError):
    """There is a child of this id that does not run. Restart or delete it instead."""

    _text = (
        "supervisor {supervisor!r} has a child {child!r}, which does not run: "
        "use restart_child, or delete_child first"
    )


class ChildRunningError(_ChildError):
    """This needs a child that does not run. Terminate it first."""

    _text = "child {child!r} of supervisor {supervisor!r} is running: terminate it first"


class ChildRestartingError(_ChildError):
    """This needs a child that does not run, and it waits for its restart. Terminate it first."""

    _text = "child {child!r} of supervisor {supervisor!r} is being restarted: terminate it first"


class StartError(_ChildError):
    """A child did not start; ``__cause__`` says why. What had been started is stopped again."""

    _text = "child {child!r} of supervisor {supervisor!r} did not start"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {"__cause__": self.__cause__}

    def __str__(self) -> str:
        if self.__cause__ is None:
            return super().__str__()
        reason = "".join(traceback.format_exception_only(self.__cause__)).strip()
        return f"{super().__str__()}: {reason}"


class NotStartedError(SupervisorError):
    """A child ended, however well, before it said ``task_status.started()``."""

    def __init__(self, child: str) -> None:
        super().__init__(child)
        self.child = child

    def __str__(self) -> str:
        return f"child {self.child!r} returned before it called task_status.started()"


class StartTimeoutError(SupervisorError, TimeoutError):
    """A child did not say ``task_status.started()`` in time, and was stopped."""

    def __init__(self, child: str, seconds: float) -> None:
        super().__init__(child, seconds)
        self.child = child
        self.seconds = seconds

    def __str__(self) -> str:
        return f"child {self.child!r} did not start within {self.seconds:g} seconds"


class UnresponsiveError(SupervisorError):
    """A child that is watched did not report ``alive()`` in time, and was killed."""

    def __init__(self, child: str, seconds: float, stack: str = "") -> None:
        super().__init__(child, seconds)
        self.child = child
        self.seconds = seconds
        self.stack = stack
        """Where it stood, as a traceback."""

    def __str__(self) -> str:
        where = f"; it stood at:\n{self.stack}" if self.stack else ""
        return f"child {self.child!r} did not report alive() within {self.seconds:g} seconds{where}"


class MaxChildrenError(SupervisorError):
    """A dynamic supervisor has as many children as it may. Nothing was started."""

    def __init__(self, supervisor: str, limit: int) -> None:
        super().__init__(supervisor, limit)
        self.supervisor = supervisor
        self.limit = limit

    def __str__(self) -> str:
        return f"supervisor {self.supervisor!r} has its maximum of {self.limit} children"


class MaxRestartsError(SupervisorError):
    """A supervisor gave up: too many restarts. ``__cause__`` is what its child raised last."""

    def __init__(self, supervisor: str, child: str, reason: str) -> None:
        super().__init__(supervisor, child, reason)
        self.supervisor = supervisor
        self.child = child
        self.reason = reason

    def __str__(self) -> str:
        return f"supervisor {self.supervisor!r} gave up on child {self.child!r}: {self.reason}"


class ZombieLimitError(SupervisorError, Permanent):
    """More children than allowed could not be killed. Only a new process gets rid of them."""

    def __init__(self, supervisor: str, limit: int, names: tuple[str, ...]) -> None:
        super().__init__(supervisor, limit, names)
        self.supervisor = supervisor
        self.limit = limit
        self.names = names
        """What runs on."""

    def __str__(self) -> str:
        return (
            f"supervisor {self.supervisor!r} has more than {self.limit} zombies: "
            f"{', '.join(self.names)}; only a new process gets rid of them"
        )


_all: list[type[Exception]] = [SupervisorError, Permanent, Ignore]
_all += [*SupervisorError.__subclasses__(), *_ChildError.__subclasses__()]
for _error in _all:
    if not _error.__name__.startswith("_"):
        _error.__module__ = "backplane.supervisor"
