"""What the OTP layer refuses, and how it fails. All are ``ProcessError``s."""

from __future__ import annotations

from typing import Any

from ._brief import brief


class ProcessError(Exception):
    """The base of all that this tier raises."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def why(reason: object) -> str:
    """A reason in words. One that has gone through many processes is named once."""
    through, told = -1, reason
    while isinstance(reason, ProcessError) and hasattr(reason, "reason"):
        through, told, reason = through + 1, reason, reason.reason
    if told is reason:
        return brief(told)
    return f"{told}" if not through else f"{told} (and so did {through} more, one after another)"


class NoProcessError(ProcessError):
    """There is no such process (any longer). Nothing was done."""

    def __init__(self, target: object, attempt: str) -> None:
        super().__init__(target, attempt)
        self.target = target
        self.attempt = attempt

    def __str__(self) -> str:
        return f"cannot {self.attempt}: no process {brief(self.target)}"


class NotInProcessError(ProcessError, LookupError):
    """This is for the code of a process, and none is calling."""

    def __init__(self, attempt: str) -> None:
        super().__init__(attempt)
        self.attempt = attempt

    def __str__(self) -> str:
        return f"cannot {self.attempt}: no process is calling; spawn one in a Scope"


class ScopeError(ProcessError):
    """There is no scope to start a process in, or it is closed. Nothing was started."""


class MailboxFullError(ProcessError):
    """A bounded mailbox is full. The message was not taken; it is in ``message``."""

    def __init__(self, target: object, capacity: int, message: object) -> None:
        super().__init__(target, capacity, message)
        self.target = target
        self.capacity = capacity
        self.message = message

    def __str__(self) -> str:
        return f"the mailbox of {brief(self.target)} is full: it holds {self.capacity} messages"


class InitError(ProcessError):
    """A process did not start; ``reason`` says why. Nothing of it is left."""

    def __init__(self, name: str, reason: Any) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} did not start: {why(self.reason)}"


class StrayError(ProcessError):
    """What came out of a process's code is no error, but a cancellation that nobody asked for.

    Something that it waited for was cancelled, say, without itself being so. It has
    ended for this reason, as for an error; ``exception`` is what came out.
    """

    def __init__(self, exception: BaseException) -> None:
        super().__init__(exception)
        self.exception = exception

    def __str__(self) -> str:
        return f"{brief(self.exception)} came out of code that nobody had cancelled"


for _error in [ProcessError, *ProcessError.__subclasses__()]:
    _error.__module__ = "backplane.otp"
