"""A mailbox: what a process was sent and has not received, with a bound or without."""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, final, overload

import anyio

from backplane.lowlevel import Parking, checkpoint, new_parking

from ._brief import brief
from ._errors import MailboxFullError
from ._reasons import Exit, Stopped

T = TypeVar("T")


class _Alive(enum.Enum):
    ALIVE = "alive"


ALIVE: Final = _Alive.ALIVE
"""In place of an exit reason, while there is none."""

BURST: Final = 100
"""So many messages a process receives in a row before it lets others run."""

lock: Final = threading.RLock()
"""Guards what takes several steps, in mailboxes as in all tables of this tier, and other
threads must not see half done. Nobody waits, or calls a user's function, while holding it.

A garbage collection in a guarded block may close the coroutine of a process, whose
end is to empty these tables: so it is re-entrant. And it is one: with a lock for
each registry, two threads could each hold one and be made to wait for the other's.
"""


class Overflow(enum.Enum):
    """What happens to a message for a bounded mailbox that is full.

    ``Exited`` and ``Down`` always come: for them there is no bound.
    """

    RAISE = "raise"
    """``send`` raises ``MailboxFullError``; ``wait_send`` waits for room."""
    DROP_NEWEST = "drop newest"
    """That message is dropped."""
    DROP_OLDEST = "drop oldest"
    """The one that has waited longest is dropped; the new one if only such are there as
    always come."""


def check_capacity(capacity: int | None) -> None:
    """Refuse what no mailbox can hold.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is less than 1.
    """
    if capacity is None:
        return
    if not isinstance(capacity, int):
        raise TypeError(f"a mailbox holds a whole number of messages, not {brief(capacity)}")
    if capacity < 1:
        raise ValueError(f"a mailbox holds one message or more, not {capacity}")


class Owed:
    """A message whose sender waits for an answer, and is told if a full mailbox drops it."""

    __slots__ = ()

    def dropped(self, error: MailboxFullError) -> None:
        """There will be no answer."""


class Signal:
    """A message that no mailbox is too full for, and that none drops."""

    __slots__ = ()


@final
class _Drained(Signal):
    __slots__ = ()


DRAINED: Final = _Drained()
"""The last in a mailbox that takes no more."""


Match: TypeAlias = type | tuple[type, ...] | Callable[[Any], object] | None
"""Which message is meant: of a type, or one for which a function returns something true."""


class Mailbox:
    """What all processes have, and nothing of who they are."""

    __slots__ = (
        "_burst", "_capacity", "_fatal", "_killed", "_news", "_overflow", "_parking", "_room",
        "_urgent", "_waiting", "mailbox", "now", "open", "reason",
    )  # fmt: skip

    mailbox: deque[Any]
    now: Callable[[], float]
    """The clock of its loop, once it runs."""
    open: bool
    """Whether it takes messages."""
    reason: Any
    """Why it ended, or ``ALIVE``."""

    def __init__(self, capacity: int | None, overflow: Overflow) -> None:
        check_capacity(capacity)
        self.open = True
        self.reason = ALIVE
        self.mailbox = deque()
        self._capacity = capacity
        self._overflow = overflow
        self._burst = 0
        self._urgent: deque[Any] | None = None
        self._parking: Parking | None = None
        self._room: set[Parking] | None = None
        self._waiting = False
        self._news = False
        self._killed = False
        self._fatal: tuple[Any, Any, Any] | None = None
        """What ends it, before it receives what was sent later."""

    if TYPE_CHECKING:

        @property
        def pid(self) -> Any:
            """The handle to give to others; a process has it."""

    # -- being sent to -------------------------------------------------------------

    def deliver(self, message: object) -> bool:
        """Put a message into the mailbox; False if it has ended, or takes no more."""
        if not self.open:
            return False
        if self._capacity is None:  # as `_put`, at less cost
            self.mailbox.append(message)
            self._news = True
            if self._waiting:
                self._waiting = False
                self._parking.wake()  # type: ignore[union-attr]
            return True
        return self._deliver_bounded(message)

    def _deliver_bounded(self, message: object) -> bool:
        assert self._capacity is not None
        dropped = None
        with lock:
            if not self.open:
                return False  # another thread has had it drained meanwhile
            if len(self.mailbox) < self._capacity:
                self._put(message)
            elif self._overflow is Overflow.RAISE:
                raise MailboxFullError(self.pid, self._capacity, message)
            else:
                dropped = self._dropped_for(message)
        if isinstance(dropped, Owed):
            dropped.dropped(MailboxFullError(self.pid, self._capacity, dropped))
        return True

    def _dropped_for(self, message: object) -> object:
        """Put a message into a full mailbox, and return what had to go instead of it."""
        if self._overflow is Overflow.DROP_OLDEST:
            for index, oldest in enumerate(list(self.mailbox)):
                if not isinstance(oldest, Signal):
                    del self.mailbox[index]
                    self._put(message)
                    return oldest
        return message

    def drain(self) -> None:
        """Take nothing more; end when all that is there has been received."""
        with lock:
            if self.reason is ALIVE and self.open:
                self.open = False
                self._put(DRAINED)

    def passes_drained(self, index: int) -> bool:
        """Whether there are messages behind ``DRAINED``, which is there; then it goes behind them.

        Another thread may have found the mailbox open, and have put its message in
        only after that was closed.
        """
        if all(isinstance(message, Signal) for message in list(self.mailbox)[index:]):
            return False
        del self.mailbox[index]
        self.mailbox.append(DRAINED)
        return True

    def deliver_in_any_case(self, message: object) -> bool:
        """Put a message into the mailbox, even if that is full."""
        if self.reason is not ALIVE:
            return False
        self._put(message)
        return True

    def deliver_urgent(self, message: object) -> bool:
        """Put a message in front of all in the mailbox."""
        if self.reason is not ALIVE:
            return False
        made(self, "_urgent", deque).append(message)
        self._news = True
        if self._waiting:
            self._parking.wake()  # type: ignore[union-attr]
        return True

    def _put(self, message: object) -> None:
        self.mailbox.append(message)
        self._news = True
        if self._waiting:
            self._parking.wake()  # type: ignore[union-attr]

    async def wait_deliver(self, message: object) -> bool:
        """Put a message into the mailbox as soon as there is room."""
        await checkpoint()
        if self._capacity is not None:
            parking = new_parking()
            room: set[Parking] = made(self, "_room", set)
            room.add(parking)
            try:
                while self.reason is ALIVE:
                    with lock:
                        if len(self.mailbox) < self._capacity:
                            return self.deliver(message)
                    await parking.park()
            finally:
                room.discard(parking)
        return self.deliver(message)

    # -- receiving --------------------------------------------------------------------

    @overload
    async def receive(self, match: type[T], timeout: float | None = None) -> T: ...  # noqa: ASYNC109
    @overload
    async def receive(self, match: Match = None, timeout: float | None = None) -> Any: ...  # noqa: ASYNC109
    async def receive(self, match: Match = None, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Take the first message out of the mailbox, or the first that matches.

        Those that do not match stay, in order; looking for one in a long mailbox
        takes time in proportion. Cancelling it loses nothing.

        Args:
            match: A type, several, or a function of the message.
            timeout: Seconds to wait; 0 looks once.

        Raises:
            TimeoutError: None has come in time.
            anyio.BusyResourceError: Another task of the process waits in this.
        """
        self._burst += 1
        if self._burst > BURST:
            self._burst = 0
            await checkpoint()
        accepts = _matcher(match)
        seen = 0
        deadline: float | None = None
        while True:
            if self._killed or self._fatal is not None:
                await self._meet_end()
            self._news = False
            size = len(self.mailbox)
            if accepts is None and size and self._capacity is None and not self._urgent:
                message = self.mailbox.popleft()
                if message is not DRAINED:
                    return message
                self.mailbox.appendleft(message)
            found, message = self._look(accepts, seen, size)
            if found:
                if message is DRAINED:
                    raise Exit(Stopped("drained"))
                return message
            # Where senders drop the oldest, what was looked at does not stay where it was.
            seen = 0 if self._overflow is Overflow.DROP_OLDEST else size
            if timeout is not None:
                if deadline is None:
                    deadline = self.now() + timeout
                if self.now() >= deadline:
                    raise TimeoutError
            if deadline is not None or self._waiting:
                await self._park(deadline)
                continue
            self._burst = 0  # as `_park`, without a coroutine more
            self._waiting = True
            try:
                if not self._news:
                    await self._parking.rest()  # type: ignore[union-attr]
            finally:
                self._waiting = False

    async def _meet_end(self) -> None:
        """Let an exit signal end this before it receives what was sent after that."""
        if self._killed:
            await new_parking().park()
        await checkpoint()

    def _look(
        self, accepts: Callable[[Any], object] | None, seen: int, size: int
    ) -> tuple[bool, Any]:
        """Take out what is meant: of ``size`` messages, ``seen`` have been looked at.

        ``DRAINED`` is meant if it is reached: nothing comes any more.
        """
        urgent = self._urgent
        if urgent:
            for index, message in enumerate(list(urgent)):
                if accepts is None or accepts(message):
                    del urgent[index]
                    return True, message
        if self._capacity is not None:
            return self._look_bounded(accepts)
        for index in range(seen, size):
            message = self.mailbox[index]
            if message is DRAINED:
                if self.passes_drained(index):
                    return self._look(accepts, index, size)
                return True, DRAINED
            if accepts is None or accepts(message):
                del self.mailbox[index]
                return True, message
        return False, None

    def _look_bounded(self, accepts: Callable[[Any], object] | None) -> tuple[bool, Any]:
        """The same, while senders may drop messages, and others wait for room."""
        for message in list(self.mailbox):
            if message is DRAINED:
                return True, DRAINED
            if (accepts is None or accepts(message)) and self._remove(message):
                for parking in list(self._room or ()):
                    parking.wake()
                return True, message
        return False, None

    def _remove(self, message: object) -> bool:
        """Take this very message out of the mailbox; False if a sender has dropped it."""
        with lock:
            for index, each in enumerate(list(self.mailbox)):
                if each is message:
                    del self.mailbox[index]
                    return True
        return False

    async def _park(self, deadline: float | None) -> None:
        """Sleep until something new may have come, or it is time."""
        parking = self._parking
        assert parking is not None
        if self._waiting:
            raise anyio.BusyResourceError("receiving from")
        self._burst = 0
        self._waiting = True
        try:
            # Looked at again after it is marked as waiting: another thread may have just sent.
            if not self._news:
                if deadline is None:
                    await parking.rest()
                else:
                    await parking.park_until(deadline)
        finally:
            self._waiting = False


def made(process: Mailbox, name: str, kind: Callable[[], Any]) -> Any:
    """A container that most processes never need: made once, whoever needs it first."""
    found = getattr(process, name)
    if found is None:
        with lock:
            found = getattr(process, name)
            if found is None:
                found = kind()
                setattr(process, name, found)
    return found


def _matcher(match: Match) -> Callable[[Any], object] | None:
    if match is None:
        return None
    if isinstance(match, type | tuple):
        return lambda message: isinstance(message, match)
    return match
