"""A Device's shared half: whom to tell, whom it hears, its mailbox, and its end.

This is all the state of the mesh that other threads touch, and there is no
lock in it. A lock would have to be taken by ``Device.__del__``, which may run
during a garbage collection at any point of any thread, also while that thread
(or one that waits for it) holds the lock. Three habits stand in its place:

* **One table.** A plugboard *is* a dict, since single dict operations are the
  compound steps that Python itself makes atomic, with the GIL or without.
  What must be decided once (the cause of the end, the owner of the mailbox,
  the mailbox itself) is elected with ``setdefault``: the first one wins, and
  all who try learn who won.
* **Insert, then look.** ``listen`` puts its entry in and only then looks whether
  either end has closed meanwhile; ``close`` closes first and only then empties
  the table. So an entry is seen by one of the two, and the record of who has
  been told sees to it that it is told once.
* **Change, then settle.** A link is an entry in the speaker's table, and a note
  in the listener's, by which the listener can take the entry back when it
  ends. Whoever changed the entry makes the note agree with it, and looks again.

Plugboards refer to plugboards, never to Devices or Lines: nothing in the mesh
keeps a Device alive.
"""

from __future__ import annotations

import enum
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from ._messages import DeviceID, Disconnected, Dropped, Fault, Message, Realm, disconnected


class Waiter(Protocol):
    """Whoever waits for messages on a plugboard.

    Both methods may be called from any thread, any number of times, also when
    the wait is long over. They never raise and never wait.
    """

    def wake(self) -> None:
        """Tell that there is something to look at."""

    def wake_soon(self) -> None:
        """The same from inside a finalizer, where no loop's state may be touched."""


class State(enum.Enum):
    """Where a plugboard stands as long as it has no end."""

    OPEN = "connected"


End: TypeAlias = Fault | State | None

OPEN: Final = State.OPEN
# The entries of a plugboard's table that are no links. (Not an Enum: its hash is slow.)
_END: Final = "end"
_INBOX: Final = "inbox"
_OWNER: Final = "owner"
_ABSENT: Final = object()
_pop: Final[Callable[..., Any]] = dict.pop
"""As ``Plugboard.pop``, but that of an outpost tells nobody: one that has ended need not."""
_DROPPED: Final = Dropped()


def _wake(waiter: Waiter) -> None:
    waiter.wake()


def _wake_soon(waiter: Waiter) -> None:
    waiter.wake_soon()


def serials(gil: bool) -> Callable[[], int]:
    """A thread-safe source of 1, 2, 3 and so on.

    ``itertools.count`` is one where there is a GIL. Without, up to Python 3.13
    two threads can draw the same number from it.
    """
    draw = itertools.count(1).__next__
    if gil:
        return draw
    lock = threading.Lock()

    def draw_alone() -> int:
        with lock:
            return draw()

    return draw_alone


next_serial = serials(getattr(sys, "_is_gil_enabled", lambda: True)())

if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows
    os.register_at_fork(after_in_child=lambda: Realm.renew(next_serial()))


class Plugboard(dict[Any, Any]):
    """The table and the state of one Device.

    ======================  ===============  ======================================
    key                     value            meaning
    ======================  ===============  ======================================
    another plugboard       ``None``         that one is told when this one ends
    a serial number         that plugboard   this one is told when that one ends
    a negative one          a message        that one has been told of this one's end
    ``_END``                Fault or None    the first cause of the end
    ``_INBOX``              a deque          the mailbox
    ``_OWNER``              a ``Waiter``     who may take messages out
    ======================  ===============  ======================================

    The attributes repeat the elected entries, for speed: a write of an
    attribute always repeats what was elected, so it can be done by anyone.
    """

    __slots__ = ("end", "inbox", "name", "serial", "waiter")

    # Plugboards are told apart by identity; as dicts they could not be keys.
    if TYPE_CHECKING:

        def __eq__(self, other: object, /) -> bool: ...
        def __ne__(self, other: object, /) -> bool: ...
        def __hash__(self) -> int: ...  # type: ignore[override]
    else:
        __eq__ = object.__eq__
        __ne__ = object.__ne__
        __hash__ = object.__hash__

    serial: int
    name: str | None
    end: End
    inbox: deque[Message] | None
    waiter: Waiter | None

    @property
    def id(self) -> DeviceID:
        """The Device's identity, made anew each time: most Devices are never asked."""
        return DeviceID(self.serial)

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        state = "connected" if self.end is OPEN else "disconnected"
        return f"{self.id.serial}{name} {state}"

    # -- links ---------------------------------------------------------------

    def listen(self, speaker: Plugboard) -> None:
        """Be told when ``speaker`` ends.

        Should either end meanwhile, it is as if it had ended just after.
        """
        speaker[self] = None
        self[speaker.serial] = speaker
        if speaker.end is not OPEN or self.end is not OPEN or self not in speaker:
            speaker._settle(self)

    def pair(self, other: Plugboard) -> None:
        """Have each of two told when the other one ends.

        The other one listens first: one that lives elsewhere may refuse.
        """
        other.listen(self)
        other[self] = None  # as `listen`, without another call
        self[other.serial] = other
        if other.end is not OPEN or self.end is not OPEN or self not in other:
            other._settle(self)

    def unlisten(self, speaker: Plugboard) -> None:
        """Not be told of that any longer."""
        speaker.pop(self, None)
        speaker._settle(self)

    def _settle(self, listener: Plugboard) -> None:
        """Make the listener's note agree with this one's entry, whoever changes either.

        A settler that was overtaken may write a note that is out of date, but
        it looks at the entry once more afterwards; so the last one to look
        leaves the two in agreement.
        """
        end = self.end
        # The entry may have come after `close` had looked: then its maker tells.
        if end is not OPEN and listener.end is OPEN and self.pop(listener, _ABSENT) is None:
            self._tell_end(listener, self._news(), _wake)
        while True:
            if listener.end is not OPEN:
                self.pop(listener, None)
            if listener in self:
                listener[self.serial] = self
                if listener in self and listener.end is OPEN:
                    return
            else:
                listener.pop(self.serial, None)
                if listener not in self:
                    return

    # -- the end -------------------------------------------------------------

    def close(self, fault: Fault | None) -> None:
        """End, for the reason given first, and tell whoever listens.

        Several may close at once: they elect one cause, and share the telling.
        It costs one step for each link, and calls nobody's code.
        """
        if self.end is OPEN:
            self.end = self.setdefault(_END, fault)
        if len(self) > 1 or self.waiter is not None:  # one entry is the cause itself
            self._tell_all(_wake)

    def drop(self) -> None:
        """End in the owner's finalizer: so there is nobody else who could close."""
        self.end = _DROPPED
        if self.inbox is not None:
            self._forget_messages()
        if self:
            self._tell_all(_wake_soon)

    def _tell_all(self, wake: Callable[[Waiter], None]) -> None:
        message: Disconnected | None = None
        for key in self.copy():  # in one step; who adds an entry later, settles it
            if type(key) is int:
                if key > 0:
                    speaker = self.pop(key, None)
                    if speaker is not None:
                        speaker.pop(self, None)
            elif type(key) is not str and _pop(self, key, _ABSENT) is None:
                if message is None:
                    message = self._news()
                self._tell_end(key, message, wake)
                key.pop(self.serial, None)
        if self.inbox is not None:
            self._forget_messages()
        waiter = self.waiter
        if waiter is not None:
            wake(waiter)

    def _tell_end(
        self, listener: Plugboard, message: Disconnected, wake: Callable[[Waiter], None]
    ) -> None:
        """Tell a listener of the end, unless somebody has.

        While one thread ends this, others may link the listener again, and so
        put an entry in that has been told before: hence the record.
        """
        if self.setdefault(-listener.serial, message) is message:
            listener.hear(message, wake)

    def _news(self) -> Disconnected:
        """What is told of the end."""
        return disconnected(self.serial, self.end)  # type: ignore[arg-type]

    # -- the mailbox ---------------------------------------------------------

    def deliver(self, message: Message, wake: Callable[[Waiter], None] = _wake) -> bool:
        """Put a message into the mailbox; False if its owner has ended."""
        if self.end is not OPEN:
            return False
        inbox = self.inbox
        if inbox is None:
            inbox = self.inbox = self.setdefault(_INBOX, deque())
        inbox.append(message)
        waiter = self.waiter
        if waiter is not None:
            wake(waiter)
        if self.end is not OPEN:  # it ended meanwhile: nobody will take the message out
            self._forget_messages()  # type: ignore[unreachable]  # mypy knows no threads
        return True

    hear = deliver
    """Take the news of an end, which a link brings."""

    def take(self) -> Message | None:
        """The oldest message in the mailbox, removed from it; None if it is empty."""
        inbox = self.inbox
        if inbox and self.end is OPEN:
            try:
                return inbox.popleft()
            except IndexError:  # another thread was quicker
                return None
        return None

    def _forget_messages(self) -> None:
        self.inbox = None
        self.pop(_INBOX, None)

    def claim(self, waiter: Waiter) -> bool:
        """Make ``waiter`` the one who takes messages out; False if there is one already."""
        if self.setdefault(_OWNER, waiter) is not waiter:
            return False
        self.waiter = waiter
        return True

    def release(self) -> None:
        """Undo ``claim``. Only for the one who holds it."""
        self.waiter = None
        self.pop(_OWNER, None)
