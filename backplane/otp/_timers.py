"""Timers: messages and exits that are sent later."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, final

from backplane.lowlevel import Alarm, clock, set_alarm

from ._errors import ProcessError
from ._handles import Pid
from ._mailbox import ALIVE, lock
from ._names import Pointer, Sendable, Target, current_registry, resolve
from ._process import Process
from ._reasons import KILL, SHUTDOWN, ExitReason
from ._tables import living

_logger = logging.getLogger("backplane.otp")


@final
class Timer:
    """Something that is still to be sent. ``send_after`` and its kind make them.

    It is its owner's, and gone before anybody hears of the owner's end, or the
    target's if that was given by its pid. It is for the loop that it was made in.
    """

    __slots__ = (
        "__weakref__", "_alarm", "_due", "_fn", "_interval", "_now", "_owners", "_thread",
    )  # fmt: skip

    def __init__(
        self, delay: float, interval: float | None, fn: Callable[[], object], *owners: Process
    ) -> None:
        self._fn = fn
        self._interval = interval
        self._owners = owners
        self._thread = threading.get_ident()
        self._now = clock()
        self._due = self._now() + delay
        self._alarm: Alarm | None = None
        with lock:
            if all(owner.reason is ALIVE for owner in owners):
                self._alarm = set_alarm(self._due, self._ring)
                for owner in owners:
                    owner.at_end(self._drop)

    @property
    def active(self) -> bool:
        """Whether anything is still to be sent."""
        return self._alarm is not None

    @property
    def due(self) -> float | None:
        """When, on its loop's clock, something is sent next; None if nothing is."""
        return self._due if self.active else None

    @property
    def left(self) -> float | None:
        """Seconds until it is due; None if nothing is still to be sent."""
        return max(0.0, self._due - self._now()) if self.active else None

    def cancel(self) -> float | None:
        """Have nothing more sent, and return how many seconds were left.

        None if nothing was still to be sent; what has been sent may still be in a
        mailbox.
        """
        left = self.left
        return left if self._drop() else None

    def _drop(self) -> bool:
        with lock:
            alarm, self._alarm = self._alarm, None
        if alarm is None:
            return False
        self._disown()
        # Its loop's thread alone may touch an alarm; in another it rings for nothing.
        if threading.get_ident() == self._thread:
            alarm.cancel()
        return True

    def _ring(self) -> None:
        with lock:
            if self._alarm is None:
                return
            if self._interval is None:
                self._alarm = None
            else:
                # A whole number of intervals after the start: it does not drift, and what
                # a busy loop has missed is not made up for.
                late = max(0.0, self._now() - self._due)
                self._due += self._interval * (1 + late // self._interval)
                self._alarm = set_alarm(self._due, self._ring)
        if self._interval is None:
            self._disown()
        try:
            self._fn()
        except ProcessError:
            pass  # nobody has the name, or the mailbox is full: its sender has gone on
        except Exception:  # of a target of the user's own make; it would end all of trio
            _logger.exception("a timer could not send")

    def _disown(self) -> None:
        for owner in self._owners:
            owner.not_at_end(self._drop)

    def __repr__(self) -> str:
        state = "over" if not self.active else f"due at {self._due:g}"
        return f"<Timer {state}>"


def send_after(
    delay: float, target: Target | Sendable, message: object, *, owner: Pid | None = None
) -> Timer:
    """Send a message later: not before ``delay`` seconds are over.

    A name or a ``Via`` is looked up when it is due, a name in the registry that is
    around now. If it is free then, or the mailbox is full, nothing happens.

    Args:
        delay: Seconds of the running loop's clock.
        target: To whom.
        message: What.
        owner: With whose end the timer is gone; by default the calling process's.

    Raises:
        ValueError: The delay is negative, or not finite.
        NotInProcessError: No process is calling, and no owner was given.
        NoProcessError: The owner has ended.
        NoRegistryError: The target is a plain name, and no registry is around.
    """
    to = _address(target)
    return _timer(delay, None, lambda: to.send(message), to, owner)


def send_every(
    interval: float, target: Target | Sendable, message: object, *, owner: Pid | None = None
) -> Timer:
    """Send a message again and again, for the first time after one interval.

    It does not drift. What falls due while the loop is busy is sent once, late.
    The arguments are those of ``send_after``; the interval must not be 0.
    """
    if interval == 0:
        raise ValueError("a timer's interval must not be 0")
    to = _address(target)
    return _timer(interval, interval, lambda: to.send(message), to, owner)


def exit_after(
    delay: float, target: Target, reason: ExitReason = SHUTDOWN, *, owner: Pid | None = None
) -> Timer:
    """Send an exit signal later, as from the owner. The rest is as for ``send_after``."""
    sender = living(owner, "set a timer").pid
    to = _address(target)
    return _timer(delay, None, lambda: resolve(to, "exit").signal(sender, reason), to, sender)


def kill_after(delay: float, target: Target, *, owner: Pid | None = None) -> Timer:
    """``exit_after`` with ``KILL``."""
    return exit_after(delay, target, KILL, owner=owner)


def _address(target: Target | Sendable) -> Any:
    """The same, to be used where no registry is around: a name by way of the one around now."""
    pointed: Any = target
    while not isinstance(pointed, Pid) and isinstance(pointed, Pointer):
        pointed = pointed.target
    return current_registry().via(pointed) if isinstance(pointed, str) else pointed


def _timer(
    delay: float,
    interval: float | None,
    fn: Callable[[], object],
    target: object,
    owner: Pid | None,
) -> Timer:
    if not 0 <= delay < math.inf:
        raise ValueError(f"a timer wants a finite number of seconds from 0 on, not {delay!r}")
    owners = [living(owner, "set a timer")]
    if isinstance(target, Pid):
        owners.append(target._process)
    return Timer(delay, interval, fn, *owners)
